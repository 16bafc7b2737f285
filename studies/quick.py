"""Does RL help, and would perfect line labels help more? The smallest study that can tell.

    python -m prm_jax.study --study studies/quick.py

At most 30 minutes on two quiet cores. Expected: SFT < PPO < PPO with the exact oracle's labels as
line rewards, each step beyond two standard errors over the seeds. No labels by execution and no PRM
are made: this is the ceiling that they work towards.
"""

from prm_jax.config import (
    ChainsConfig,
    Config,
    DenseConfig,
    EvaluateConfig,
    LabelConfig,
    PPOConfig,
    ProblemsConfig,
    SFTConfig,
)
from prm_jax.study import Arm, Study


def get_study() -> Study:
    config = Config(
        value_init=False,
        problems=ProblemsConfig(chains=ChainsConfig(train=2_000, validation=64, test=100)),
        sft=SFTConfig(steps=400, checkpoint_every=400),
        ppo=PPOConfig(steps=60, checkpoint_every=60),
        dense=DenseConfig(source="oracle"),
        label=LabelConfig(checkpoints=1),
        evaluate=EvaluateConfig(samples=5),
    )
    return Study(
        name="quick",
        config=config,
        seeds=(0, 1, 2, 3),
        baseline="ppo",
        ordering=("sft", "ppo", "perfect"),
        arms=(
            Arm("sft", measure="sft", about="imitates solved problems"),
            Arm("ppo", measure="rl", about="PPO on unit tests"),
            Arm("perfect", about="PPO with the oracle's line labels as dense reward"),
        ),
        about="SFT, PPO on unit tests, and PPO with perfect line labels as dense reward.",
    )
