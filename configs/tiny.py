"""The whole method on a laptop CPU, from random weights, on the built-in problems.

    python -m prm_jax.train                      # this file is the default; `make demo` runs it

Expected: about 6 minutes on two cores, 2 GiB. Seed 0, pass@1 on 200 held-out problems with JAX
0.10.2: SFT .336, RL .752, RL + PRM .749 (LABBOOK.md). Every setting stands at its default, which is
this size: 3 layers of width 64, 600 steps of SFT, 100 PPO steps of 128 rollouts, 4 x 1,000 labelled
responses.
"""

from prm_jax.config import Config


def get_config() -> Config:
    return Config()
