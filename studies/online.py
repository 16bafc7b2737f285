"""Can labels pay for themselves? Process supervision at equal total programs.

    python -m prm_jax.study --study studies/online.py

PPO generates 6,400 programs, all in all. `online` has as many and spends half of them on
completions that label its own failing responses as it goes, and trains on them as rollouts too;
`online_few` spends an eighth. `restarts` trains on completions made in the same way and pays no
label. `perfect` and `perfect_half` are the bound: the oracle's labels for nothing, with all of the
rollouts or with half of them. Whatever makes labels, they can cost no more than what PPO needs
beyond these to come as far. The last five have four times the programs, where the policy passes
more often.
"""

from prm_jax.config import ChainsConfig, Config, EvaluateConfig, LabelConfig, ProblemsConfig
from prm_jax.study import Arm, Study

ONLINE = {
    "dense.source": "labels",
    "dense.completions": 64,
    "label.samples_per_prefix": 4,
}
FEW = ONLINE | {"dense.completions": 16}
RESTARTS = ONLINE | {"dense.lam_fail": 0.0, "dense.lam_pass": 0.0}
LONGER = {"ppo.steps": 200}


def get_study() -> Study:
    return Study(
        name="online",
        config=Config(
            value_init=False,
            problems=ProblemsConfig(chains=ChainsConfig(test_horizons=(6, 8))),
            label=LabelConfig(checkpoints=1),
            evaluate=EvaluateConfig(samples=5, inspect=0),
        ),
        seeds=(0, 1, 2),
        baseline="ppo",
        also_less=("perfect_half", "ppo_4x"),
        arms=(
            Arm("sft", measure="sft", about="imitates solved problems"),
            Arm("ppo", measure="rl", about="PPO on unit tests"),
            Arm("online", ONLINE, about="half of the programs label the other half, K = 4"),
            Arm(
                "online_few",
                FEW,
                about="an eighth of the programs label some of the others",
            ),
            Arm(
                "online_k2",
                ONLINE | {"label.samples_per_prefix": 2},
                about="the same with K = 2",
            ),
            Arm(
                "restarts",
                RESTARTS,
                about="such completions as rollouts, and no line rewards",
            ),
            Arm(
                "perfect",
                {"dense.source": "oracle"},
                about="the oracle's labels, for nothing",
            ),
            Arm(
                "perfect_half",
                {"dense.source": "oracle", "ppo.rollouts": 64},
                about="the oracle's labels with half of the rollouts: the bound for `online`",
            ),
            Arm("ppo_4x", LONGER, measure="rl", about="PPO with four times the programs"),
            Arm("online_4x", ONLINE | LONGER, about="`online` with four times the programs"),
            Arm("online_few_4x", FEW | LONGER, about="`online_few` with four times the programs"),
            Arm("restarts_4x", RESTARTS | LONGER, about="`restarts` with four times the programs"),
            Arm(
                "perfect_4x",
                {"dense.source": "oracle"} | LONGER,
                about="the oracle's labels with four times the programs",
            ),
        ),
        about="Labels within the programs that PPO has.",
    )
