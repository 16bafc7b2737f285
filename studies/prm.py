"""What should a PRM learn, and from which labels?

    python -m prm_jax.study --study studies/prm.py

Every arm trains another PRM on one set of responses, half of those of studies/default.py, which is
what configs/tiny.py has; `whole_waves`, `rates` and `commented` have labels of their own.
PRMs are held against the exact oracle on responses to problems that they never saw, and as judges
of the same whole programs, an outcome model among them. Where the choice changes what is rewarded,
the PRM pays a policy as well.
"""

from prm_jax.config import ChainsConfig, Config, EvaluateConfig, ProblemsConfig
from prm_jax.study import Arm, Study


def get_study() -> Study:
    return Study(
        name="prm",
        config=Config(
            value_init=False,
            problems=ProblemsConfig(chains=ChainsConfig(test_horizons=(6, 8))),
            evaluate=EvaluateConfig(samples=5),
        ),
        seeds=(0, 1, 2),
        baseline="ppo",
        also_less=("dense",),
        arms=(
            Arm("ppo", measure="rl", about="PPO on unit tests"),
            Arm("dense", about="DenseReward, the PRM as the defaults have it"),
            Arm("all_lines", {"prm.loss_on": "all"}, about="the loss on all lines (paper)"),
            Arm(
                "revised_only",
                {"prm.selection": "revised_only", "prm.loss_on": "all"},
                about="Revised responses, the loss on all lines (paper)",
            ),
            Arm("outcome_model", {"prm.loss_on": "outcome"}, about="an outcome model for a PRM"),
            Arm(
                "full_data",
                {"prm.selection": "full"},
                measure="prm",
                about="all labelled responses",
            ),
            Arm(
                "medium_only",
                {"prm.selection": "medium_only"},
                measure="prm",
                about="problems of medium difficulty",
            ),
            Arm(
                "repairs",
                {"prm.repairs": True},
                measure="prm",
                about="completions that passed train the PRM too",
            ),
            Arm(
                "counts",
                {"prm.target": "counts"},
                measure="prm",
                about="single completions as targets, not whether one passes",
            ),
            Arm(
                "whole_waves",
                {"label.wave": 8, "label.search": "binary"},
                measure="prm",
                about="labels by a binary search with all of K, as rates need them",
            ),
            Arm(
                "rates",
                {"prm.target": "rate", "label.wave": 8, "label.search": "binary"},
                measure="prm",
                about="the same, shares of passing completions as targets",
            ),
            Arm(
                "commented",
                {"label.neutral_comments": False},
                about="comments labelled as any other line",
            ),
        ),
        about="One choice of the PRM changed.",
    )
