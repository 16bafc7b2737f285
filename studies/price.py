"""What should be spent on labels, and how do they do against as many programs of PPO?

    python -m prm_jax.study --study studies/price.py

`dense` is DenseReward as the defaults have it, with 8,000 labelled responses; `ppo_same_programs`
is PPO with all programs that it takes, those of the baseline and of the labels included. The next
two label with fewer completions, or by another completer; each trains its own PRM, which pays a
policy. Then the PRM learns while RL runs, from completions that are some of the rollouts: on top of
the labels of `dense`, or (`at_once`) from nothing, with as many programs as `ppo`. The last three
have four times the rollouts.
"""

from prm_jax.config import ChainsConfig, Config, EvaluateConfig, ProblemsConfig
from prm_jax.study import Arm, Study

# `dense` took 136,099 programs in studies/prm.py, its own 6,400 rollouts among them.
STEPS_OF_AS_MANY_PROGRAMS = 1_064
LONGER = {"ppo.steps": 200}
LEARNS = {"dense.prm_updates": 1, "dense.completions": 16, "label.samples_per_prefix": 4}
# One response to a prompt: `remove_hard` would leave out all whose first line is called lost.
AT_ONCE = {
    "dense.source": "labels",
    "dense.prm_updates": 4,
    "dense.completions": 64,
    "label.samples_per_prefix": 4,
    "prm.selection": "full",
}


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
        also_less=("dense", "dense_4x"),
        greedy=True,
        priced=("ppo", "ppo_4x", "ppo_same_programs", "k4", "dense", "dense_4x"),
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
                "prm_learns",
                LEARNS,
                shares="dense",
                about="DenseReward; an eighth of the rollouts label others, and the PRM learns",
            ),
            Arm(
                "at_once",
                AT_ONCE,
                about="policy, critic and PRM at once: half of the programs label the other half",
            ),
            Arm("ppo_4x", LONGER, measure="rl", about="PPO with four times the programs"),
            Arm(
                "dense_4x", LONGER, shares="dense", about="DenseReward with four times the rollouts"
            ),
            Arm(
                "prm_learns_4x",
                LEARNS | LONGER,
                shares="dense",
                about="`prm_learns` with four times the rollouts",
            ),
        ),
        about="What labels take, and what it brings.",
    )
