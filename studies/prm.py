"""What should a PRM learn, and from which labels?

    python -m prm_jax.study --study studies/prm.py

Every arm trains another PRM on one set of responses, half of those of studies/default.py, which is
what configs/tiny.py has; `whole_waves`, `rates`, `commented` and the last four have labels of their
own. PRMs are held against the exact oracle on responses to problems that they never saw, and as judges
of the same whole programs, an outcome model among them. Where the choice changes what is rewarded,
the PRM pays a policy as well. `ppo_same_programs` is what `dense` competes with where programs are what
is paid for: PPO with as many as the baseline, the labels and DenseReward take together.
"""

from prm_jax.config import ChainsConfig, Config, EvaluateConfig, ProblemsConfig
from prm_jax.study import Arm, Study

# `dense` takes 136,099 programs (results/prm.md), its own 6,400 rollouts among them.
STEPS_OF_AS_MANY_PROGRAMS = 1_064


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
        greedy=True,
        arms=(
            Arm("ppo", measure="rl", about="PPO on unit tests"),
            Arm(
                "ppo_same_programs",
                {"ppo.steps": STEPS_OF_AS_MANY_PROGRAMS},
                measure="rl",
                about="PPO with all programs that DenseReward takes, labels included",
            ),
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
            Arm("k4", {"label.samples_per_prefix": 4}, about="labels of 4 completions, not 8"),
            Arm(
                "author_completes",
                {"label.completer": "policy"},
                about="whoever wrote a response completes its prefixes (paper)",
            ),
            Arm(
                "cooler",
                {"label.temperature": 0.6},
                about="responses and completions for labels at temperature 0.6, not 1",
            ),
            Arm(
                "k20",
                {"label.samples_per_prefix": 20},
                about="labels of 20 completions (paper)",
            ),
        ),
        about="One choice of the PRM changed.",
    )
