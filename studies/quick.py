"""Does RL help, and would perfect line labels help more? The smallest study that can tell.

    python -m prm_jax.study --study studies/quick.py

28 CPU minutes, 18 minutes on two cores. It asks whether SFT < PPO < PPO with the exact oracle's
labels as line rewards, each step beyond two standard errors over the seeds: it is
(results/quick.md). No labels by execution and no PRM are made: this is the ceiling that they work
towards. Half of the rollouts with these labels, if they do as well as PPO with all of them, leave
one program for each rollout to pay for labels.
"""

from prm_jax.config import (
    ChainsConfig,
    Config,
    DenseConfig,
    EvaluateConfig,
    LabelConfig,
    PPOConfig,
    ProblemsConfig,
)
from prm_jax.study import Arm, Study


def get_study() -> Study:
    config = Config(
        value_init=False,
        # Held-out problems as long as those of training, and 50 steps: with 100 PPO comes to two of
        # three by itself, and the ceiling is half as far above it.
        problems=ProblemsConfig(
            chains=ChainsConfig(validation=64, test=200, test_horizons=(6, 8)),
        ),
        ppo=PPOConfig(steps=50),
        dense=DenseConfig(source="oracle"),
        label=LabelConfig(checkpoints=1),
        evaluate=EvaluateConfig(samples=5, inspect=0),
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
            Arm(
                "perfect_half",
                {"ppo.rollouts": 64},
                about="the same with half of the rollouts: what labels may cost",
            ),
        ),
        about="SFT, PPO on unit tests, and PPO with perfect line labels as dense reward.",
    )
