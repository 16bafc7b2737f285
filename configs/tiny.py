"""The whole method on a laptop CPU, from random weights, on the built-in problems.

    python -m prm_jax.train                      # this file is the default; `make demo` runs it

Expected: the time that README gives, 1.4 GiB in the largest process. Seed 0, pass@1 on 200 held-
out problems, JAX 0.10.2: SFT .336, RL .538, RL + PRM .710 on one machine, .337, .514 and .586 on
another (LABBOOK.md). Every setting stands at its default, which is this size: 3 layers of width
64, 600 steps of SFT, 50 PPO steps of 128 rollouts, 4 x 2,000 labelled responses, 1,200 steps of
the PRM.
"""

from prm_jax.config import Config


def get_config() -> Config:
    return Config()
