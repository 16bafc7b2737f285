"""How good does a PRM get by execution alone, with three times the labels and a longer baseline?

    python -m prm_jax.study --study studies/larger.py

48,000 responses of a baseline of 100 PPO steps, to 12,000 problems, and 4,800 steps of the PRM,
where studies/default.py has 16,000, 50, 4,000 and 2,400. The completer solves more, so labels are
right more often, and more of them are kept. An hour and a half of one core for each seed.
"""

from prm_jax.config import (
    ChainsConfig,
    Config,
    EvaluateConfig,
    LabelConfig,
    PPOConfig,
    PRMConfig,
    ProblemsConfig,
)
from prm_jax.study import Arm, Study


def get_study() -> Study:
    return Study(
        name="larger",
        config=Config(
            value_init=False,
            problems=ProblemsConfig(
                chains=ChainsConfig(train=12_000, test_horizons=(6, 8), final=500)
            ),
            ppo=PPOConfig(steps=100),
            label=LabelConfig(prompts=12_000, validation_prompts=256),
            prm=PRMConfig(steps=4_800),
            evaluate=EvaluateConfig(samples=5),
        ),
        seeds=(0, 1, 2),
        baseline="ppo",
        ordering=("sft", "ppo", "dense", "perfect"),
        arms=(
            Arm("sft", measure="sft", about="imitates solved problems"),
            Arm("ppo", measure="rl", about="PPO on unit tests"),
            Arm("dense", about="DenseReward: the PRM's scores as line rewards"),
            Arm("perfect", {"dense.source": "oracle"}, about="dense rewards from the exact oracle"),
        ),
        about="DenseReward by a PRM of three times the labels.",
    )
