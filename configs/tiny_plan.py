"""Responses that open with a plan, at the size of tiny.py: the plan is the process's first step.

    python -m prm_jax.train --config configs/tiny_plan.py --workdir runs/plan

A response has twice as many chances to go wrong as without a plan, so its programs have 4 to 6
lines and not 6 to 8, and SFT takes 900 steps. RESULTS.md has a study near it, studies/plan.py, and
what scoring the plan adds.
"""

from prm_jax.config import (
    ChainsConfig,
    Config,
    PRMConfig,
    ProblemsConfig,
    PromptsConfig,
    SFTConfig,
)


def get_config() -> Config:
    return Config(
        max_completion_tokens=84,  # plans take a third of a response
        problems=ProblemsConfig(
            chains=ChainsConfig(
                sft_horizons=(1, 6), train_horizons=(4, 6), test_horizons=(4, 6),
                long_horizons=(7, 8),
            )
        ),
        prompts=PromptsConfig(plan=True),
        sft=SFTConfig(steps=900),
        prm=PRMConfig(loss_on="all"),  # lines of a lost plan are scored, too
    )  # fmt: skip
