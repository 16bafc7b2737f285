"""Is it the result of one kind of problem? The main arms on the other built-in family.

    python -m prm_jax.study --study studies/branches.py

`branches` are functions with a loop, conditions and early exits, where `chains` are one operation
after the other. All else is as in studies/default.py, but for prompts and responses that are
longer.
"""

from prm_jax.config import (
    BranchesConfig,
    Config,
    EvaluateConfig,
    LabelConfig,
    PRMConfig,
    ProblemsConfig,
)
from prm_jax.study import Arm, Study


def get_study() -> Study:
    return Study(
        name="branches",
        config=Config(
            value_init=False,
            max_prompt_tokens=80,
            max_completion_tokens=80,
            problems=ProblemsConfig(
                name="branches", branches=BranchesConfig(test_horizons=(7, 9), final=500)
            ),
            label=LabelConfig(prompts=4_000),
            prm=PRMConfig(steps=2_400),
            evaluate=EvaluateConfig(samples=5),
        ),
        seeds=(0, 1, 2),
        baseline="ppo",
        also_less=("dense",),
        ordering=("sft", "ppo", "dense", "perfect"),
        arms=(
            Arm("sft", measure="sft", about="imitates solved problems"),
            Arm("ppo", measure="rl", about="PPO on unit tests"),
            Arm("dense", about="DenseReward: the PRM's scores as line rewards"),
            Arm("both", {"value_init": True}, about="DenseReward and ValueInit"),
            Arm("perfect", {"dense.source": "oracle"}, about="dense rewards from the exact oracle"),
        ),
        about="PPO on unit tests with and without process supervision, where code branches.",
    )
