"""Does scoring the plan add to scoring the lines?

    python -m prm_jax.study --study studies/plan.py

Every response opens with a plan, the steps in plain words, and the code carries it out. Words that
are read wrongly make a wrong plan, and a slip of the code a wrong line. Labels and PRM judge the
plan as the first step. The arms pay the lines alone, plan and lines alike, or the lines for what
they are worth given their plan. With a plan a response has twice as many chances to go wrong, so
programs are shorter here than in studies/default.py, and SFT is longer.
"""

from prm_jax.config import (
    ChainsConfig,
    Config,
    EvaluateConfig,
    LabelConfig,
    PPOConfig,
    PRMConfig,
    ProblemsConfig,
    PromptsConfig,
    SFTConfig,
)
from prm_jax.study import Arm, Study


def get_study() -> Study:
    return Study(
        name="plan",
        config=Config(
            value_init=False,
            max_completion_tokens=84,  # plans take a third of a response
            problems=ProblemsConfig(
                chains=ChainsConfig(
                    sft_horizons=(1, 6),
                    train_horizons=(4, 6),
                    test_horizons=(4, 6),
                    long_horizons=(7, 8),
                    final=500,
                )
            ),
            prompts=PromptsConfig(plan=True),
            sft=SFTConfig(steps=900),
            ppo=PPOConfig(steps=50),
            label=LabelConfig(prompts=1_500),
            prm=PRMConfig(steps=1_200, loss_on="all"),  # lines of a lost plan are scored, too
            evaluate=EvaluateConfig(samples=5),
        ),
        seeds=(0, 1, 2),
        baseline="ppo",
        also_less=("lines", "full_lines", "perfect_lines"),
        ordering=("sft", "ppo", "perfect"),
        arms=(
            Arm("sft", measure="sft", about="imitates plans and solutions"),
            Arm("ppo", measure="rl", about="PPO on unit tests"),
            Arm("lines", {"dense.plan": False}, about="the PRM's scores of the lines alone"),
            Arm("plan_and_lines", about="the PRM's scores of plan and lines"),
            Arm("relative", {"dense.form": "plan"}, about="lines relative to their plan"),
            Arm(
                "full_lines",
                {"dense.plan": False, "prm.selection": "full"},
                about="lines alone, by a PRM of all labelled responses",
            ),
            Arm(
                "full_plan_and_lines",
                {"prm.selection": "full"},
                about="plan and lines, by a PRM of all labelled responses",
            ),
            Arm("perfect", {"dense.source": "oracle"}, about="the oracle's, of plan and lines"),
            Arm(
                "perfect_lines",
                {"dense.source": "oracle", "dense.plan": False},
                about="the oracle's, paid at the lines alone",
            ),
            Arm(
                "perfect_relative",
                {"dense.source": "oracle", "dense.form": "plan"},
                about="the oracle's, lines relative to their plan",
            ),
        ),
        about="PPO with process rewards where each response opens with a plan.",
    )
