"""The paper's recipe at the size of tiny.py: K = 20, Revised-only, lambda 0.25 / 0.025, both on.

python -m prm_jax.train --config configs/tiny_paper.py
"""

from prm_jax.config import Config, paper_recipe


def get_config() -> Config:
    return paper_recipe(Config())
