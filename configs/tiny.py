"""The whole method on a laptop CPU, from random weights, on the built-in problems.

    python -m prm_jax.train                      # this file is the default
"""

from prm_jax.config import Config


def get_config() -> Config:
    return Config()
