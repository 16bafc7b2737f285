"""What does a label cost, and how right is it?

    python -m prm_jax.study --study studies/labels.py

Every arm labels the same responses in another way (but for `cool`, whose responses are cooler,
too): who completes, how often, and which prefixes. No PRM is trained by them; first errors are held
against the exact oracle, and the search of every prefix says how often completions are not
monotone. The baseline has the settings of studies/default.py; 1,200 responses a seed.
"""

from prm_jax.config import ChainsConfig, Config, EvaluateConfig, LabelConfig, ProblemsConfig
from prm_jax.study import Arm, Study


def _arm(name: str, about: str, **changed: object) -> Arm:
    settings = {f"label.{field}": value for field, value in changed.items()}
    return Arm(name, settings, measure="label", about=about)


def get_study() -> Study:
    return Study(
        name="labels",
        config=Config(
            value_init=False,
            problems=ProblemsConfig(chains=ChainsConfig(test_horizons=(6, 8))),
            label=LabelConfig(prompts=300, validation_prompts=8),
            evaluate=EvaluateConfig(samples=5),
        ),
        seeds=(0, 1, 2),
        baseline="ppo",
        arms=(
            Arm("ppo", measure="rl", about="writes the responses"),
            _arm("as_it_is", "K = 8 by the best checkpoint, prefixes at the least expected cost"),
            _arm("binary", "the middle prefix (paper)", search="binary"),
            _arm("dense", "every prefix", search="dense"),
            _arm("k4", "K = 4", samples_per_prefix=4),
            _arm("k20", "K = 20 (paper)", samples_per_prefix=20),
            _arm("settled", "given up where a pass is unlikely", settle=0.05),
            _arm("cool", "completions and responses at temperature 0.6", temperature=0.6),
            _arm("by_writer", "by whoever wrote the response (paper)", completer="policy"),
        ),
        about="One choice of the labels changed.",
    )
