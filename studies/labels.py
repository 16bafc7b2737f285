"""What makes labels and PRM good, and does it show in the policy?

    python -m prm_jax.study --study studies/labels.py

Every arm changes one choice of the labels or of the PRM. PPO and its 50 steps are those of
studies/default.py; responses and steps of the PRM are half of that study's, which is what
configs/tiny.py has, so that all arms of a seed fit into an hour of two cores. Labels are held
against the exact oracle and against a search of every prefix, PRMs against responses of problems
that they never saw, and as judges of the same whole programs, an outcome model among them.
"""

from prm_jax.config import ChainsConfig, Config, EvaluateConfig, ProblemsConfig
from prm_jax.study import Arm, Study

LABELS = (
    Arm(
        "commented",
        {"label.neutral_comments": False},
        about="comments labelled as any other line",
    ),
    Arm(
        "completer_policy",
        {"label.completer": "policy"},
        about="completed by whoever wrote the response (paper)",
    ),
    Arm("k4", {"label.samples_per_prefix": 4}, about="K = 4 completions of a prefix"),
    Arm("k20", {"label.samples_per_prefix": 20}, about="K = 20 (paper)"),
    Arm("cool_labels", {"label.temperature": 0.6}, about="completions at temperature 0.6"),
    Arm("binary_search", {"label.search": "binary"}, about="the middle is probed (paper)"),
    Arm("dense_search", {"label.search": "dense"}, about="every prefix is probed"),
    Arm("settled", {"label.settle": 0.05}, about="a prefix is given up early"),
    Arm(
        "soft_labels",
        {"prm.target": "rate", "label.wave": 8},
        about="shares of passing completions as targets",
    ),
    Arm(
        "counts",
        {"prm.target": "counts", "label.wave": 8},
        about="the same, each weighing as many as its completions",
    ),
)

PRMS = (
    Arm("all_lines", {"prm.loss_on": "all"}, about="PRM's loss on all lines (paper)"),
    Arm("outcome_model", {"prm.loss_on": "outcome"}, about="an outcome model for a PRM"),
    Arm("full_data", {"prm.selection": "full"}, about="all labelled responses"),
    Arm("medium_only", {"prm.selection": "medium_only"}, about="problems of medium difficulty"),
    Arm(
        "revised_only",
        {"prm.selection": "revised_only", "prm.loss_on": "all"},
        about="Revised responses, loss on all lines (paper)",
    ),
    Arm("repairs", {"prm.repairs": True}, about="completions that passed train the PRM too"),
)


def get_study() -> Study:
    return Study(
        name="labels",
        config=Config(
            value_init=False,
            problems=ProblemsConfig(chains=ChainsConfig(test_horizons=(6, 8), final=500)),
            evaluate=EvaluateConfig(samples=5),
        ),
        seeds=(0, 1, 2),
        baseline="ppo",
        arms=(
            Arm("ppo", measure="rl", about="PPO on unit tests"),
            Arm("dense", about="DenseReward, labels and PRM as the defaults have them"),
            *PRMS,
            *LABELS,
        ),
        about="DenseReward with one choice of labels or PRM changed.",
    )
