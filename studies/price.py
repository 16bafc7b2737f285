"""What should be spent on labels, and how do they do against as many programs of PPO?

    python -m prm_jax.study --study studies/price.py

`dense` is DenseReward as the defaults have it, with 8,000 labelled responses; `ppo_same_programs`
is PPO with all programs that it takes, those of the baseline and of the labels included. The next
four label with fewer or more completions, at another temperature, or by another completer; each
trains its own PRM, which pays a policy.
"""

from prm_jax.config import ChainsConfig, Config, EvaluateConfig, ProblemsConfig
from prm_jax.study import Arm, Study

# `dense` took 136,099 programs in studies/prm.py, its own 6,400 rollouts among them.
STEPS_OF_AS_MANY_PROGRAMS = 1_064


def get_study() -> Study:
    return Study(
        name="price",
        config=Config(
            value_init=False,
            problems=ProblemsConfig(chains=ChainsConfig(test_horizons=(6, 8))),
            evaluate=EvaluateConfig(samples=5),
        ),
        seeds=(0, 1, 2),
        baseline="ppo",
        also_less=("dense",),
        greedy=True,
        priced=("ppo", "ppo_same_programs", "k4", "dense", "k20"),
        arms=(
            Arm("ppo", measure="rl", about="PPO on unit tests"),
            Arm(
                "ppo_same_programs",
                {"ppo.steps": STEPS_OF_AS_MANY_PROGRAMS},
                measure="rl",
                about="PPO with all programs that DenseReward takes, labels included",
            ),
            Arm("dense", about="DenseReward, labels and PRM as the defaults have them"),
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
        about="What labels take, and what it brings.",
    )
