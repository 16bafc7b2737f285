"""Does process supervision help, by how much, and which of its choices matter?

    python -m prm_jax.study --study studies/default.py            # development problems
    python -m prm_jax.study --study studies/default.py --final    # once, when nothing will change

Every seed draws SFT, the baseline, labels and PRM anew. The arms that the question is about have
five seeds; those that change one choice, and PPO without labels in other ways, have three. Models,
problems and PPO are those of configs/tiny.py, but held-out problems are as long as those of
training, and labels and steps of the PRM are twice as many: with fewer it cannot tell new responses
(LABBOOK.md). Labels are the question of studies/labels.py, and what a PRM learns from them that of
studies/prm.py.
"""

import dataclasses

from prm_jax.config import (
    ChainsConfig,
    Config,
    EvaluateConfig,
    LabelConfig,
    PPOConfig,
    PRMConfig,
    ProblemsConfig,
)
from prm_jax.study import Arm, Study

SOME = (0, 1, 2)  # seeds of the arms that change one choice
# A PRM arm samples, beside its own 6,400 rollouts, those of the baseline, 16,000 responses and some
# 220,000 completions. PPO with a twentieth of these programs has twice the steps.
TWENTIETH_OF_TOTAL_STEPS = 100


def _only_some(*arms: Arm) -> tuple[Arm, ...]:
    return tuple(dataclasses.replace(arm, seeds=SOME) for arm in arms)


BASELINES = (
    Arm("sft", measure="sft", about="imitates solved problems"),
    Arm("ppo", measure="rl", about="PPO on unit tests"),
    Arm(
        "partial",
        {"ppo.outcome": "partial"},
        measure="rl",
        seeds=SOME,
        about="credit for passed tests",
    ),
    Arm(
        "grpo",
        {"ppo.advantage": "group", "ppo.samples_per_prompt": 8},
        measure="rl",
        seeds=SOME,
        about="group baseline, no critic",
    ),
    Arm(
        "ppo_longer",
        {"ppo.steps": TWENTIETH_OF_TOTAL_STEPS},
        measure="rl",
        about="PPO with a twentieth of the programs that labels and both runs of RL take",
    ),
    Arm(
        "ppo_4x",
        {"ppo.steps": 2 * TWENTIETH_OF_TOTAL_STEPS},
        measure="rl",
        seeds=SOME,
        about="PPO with a tenth of them",
    ),
)

PROCESS = (
    Arm("dense", about="DenseReward: the PRM's scores as line rewards"),
    Arm("value", {"dense.enabled": False, "value_init": True}, about="ValueInit: PRM as critic"),
    Arm("both", {"value_init": True}, about="DenseReward and ValueInit"),
    Arm("perfect", {"dense.source": "oracle"}, about="dense rewards from the exact oracle"),
    Arm(
        "perfect_both",
        {"dense.source": "oracle", "value_init": True},
        seeds=SOME,
        about="the same, and the critic from the PRM",
    ),
)

REWARDS = _only_some(
    Arm("progress", {"dense.form": "progress"}, about="reward of a line: score less the last"),
    Arm("min", {"dense.form": "min"}, about="the worst line only"),
    Arm(
        "good_prefix",
        {"dense.form": "good_prefix", "dense.lam_fail": 0.5, "dense.lam_pass": 0.0},
        about="the lines before the first error",
    ),
    Arm("failing_only", {"dense.lam_pass": 0.0}, about="line rewards of failing programs only"),
    Arm("passing_only", {"dense.lam_fail": 0.0}, about="line rewards of passing programs only"),
    Arm(
        "paper_weights",
        {"dense.lam_fail": 0.25, "dense.lam_pass": 0.025},
        about="weights of the paper: .25 and .025",
    ),
    Arm(
        "not_normalised",
        {"dense.length_normalised": False, "dense.allow_rank_inversion": True},
        about="without the division by the number of lines",
    ),
    Arm(
        "unbounded",
        {"dense.lam_fail": 2.0, "dense.lam_pass": 2.0, "dense.allow_rank_inversion": True},
        about="weights that can rank a failing program above a passing one",
    ),
)

CRITIC = _only_some(
    Arm(
        "critic_warmup",
        {"value_init": True, "ppo.critic_warmup_steps": 10},
        shares="both",
        about="both, the critic trained on returns before PPO",
    ),
    Arm(
        "decoupled_lambda",
        {"ppo.critic_lambda": 1.0},
        shares="dense",
        about="critic's returns with lambda 1",
    ),
)

QUARTER = Arm(
    "quarter",
    {"label.prompts": 1_000, "prm.steps": 600},
    seeds=SOME,
    about="DenseReward with a quarter of the responses and of the PRM's steps",
)


def get_study() -> Study:
    return Study(
        name="default",
        config=Config(
            value_init=False,
            problems=ProblemsConfig(chains=ChainsConfig(test_horizons=(6, 8), final=500)),
            ppo=PPOConfig(steps=50),
            label=LabelConfig(prompts=4_000),
            prm=PRMConfig(steps=2_400, selection="remove_hard"),
            evaluate=EvaluateConfig(samples=5),
        ),
        seeds=(0, 1, 2, 3, 4),
        baseline="ppo",
        also_less=("dense",),
        ordering=("sft", "ppo", "dense", "perfect"),
        priced=("ppo", "ppo_longer", "ppo_4x", "quarter", "dense"),
        arms=(*BASELINES, *PROCESS, *REWARDS, *CRITIC, QUARTER),
        about="PPO on unit tests with and without process supervision, and one choice at a time.",
    )
