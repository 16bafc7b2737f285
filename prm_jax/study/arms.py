"""What a study file says: the arms that are compared, the seeds, and what they have in common."""

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from prm_jax.config import Config, ConfigError
from prm_jax.config.section import mistyped
from prm_jax.config_file import run_file

Measured = Literal["sft", "rl", "label", "prm", "rl_prm"]
POLICIES = ("sft", "rl", "rl_prm")  # what these stages leave can be judged by pass@1
Settings = Mapping[str, Any] | Callable[[Config], Config]


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to train, told by how its settings differ from those of the study."""

    name: str
    settings: Settings = dataclasses.field(default_factory=dict)
    """Settings by path, `{"dense.form": "progress"}`, or a function of the study's config."""
    measure: Measured = "rl_prm"
    """The stage whose policy is the arm's; only the stages that it needs are run. `label` and `prm`
    train none: such an arm is judged by its labels and its PRM alone, at a fraction of the cost."""
    shares: str = ""
    """An arm listed before this one whose stages up to `through` serve this one too, even where
    its settings for these stages differ: a change of `ppo` then concerns the measured stage only,
    and labels and PRM stay what they were. Stages that agree are shared without it."""
    through: Literal["sft", "rl", "label", "prm"] = "prm"
    """The last stage that is taken from the arm `shares`."""
    seeds: tuple[int, ...] = ()
    """Only these of the study's seeds; empty: all of them. With `--seeds`, those of
    both. An arm has no seed that the arm which it shares stages with has not."""
    about: str = ""
    """A few words for the tables."""

    def __post_init__(self):
        for field, wanted in mistyped(self):
            raise ConfigError(
                f"arm {self.name!r}: {field} = {getattr(self, field)!r} is not allowed: it must be "
                f"{wanted}"
            )
        if isinstance(self.settings, Mapping) and "seed" in self.settings:
            raise ConfigError(
                f"arm {self.name!r}: seed is no setting of an arm: all arms have the seeds of the "
                "study"
            )


@dataclasses.dataclass(frozen=True)
class Study:
    """Arms times seeds."""

    name: str
    config: Config
    """What all arms start from; its `seed` is replaced by each of `seeds`."""
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    baseline: str
    """The arm that the others are compared with, seed by seed."""
    also_less: tuple[str, ...] = ()
    """Further arms that all others are compared with."""
    redraw: Literal["all", "rl"] = "all"
    """all: each seed draws SFT, labels and PRM anew. rl: the measured stage and the evaluation
    alone; everything before comes from the first seed."""
    greedy: bool = False
    """Evaluate at temperature 0 as well."""
    ordering: tuple[str, ...] = ()
    """Arms that are expected to get better in this order; the page says whether they do."""
    priced: tuple[str, ...] = ()
    """Arms whose pass@1 is drawn against all programs that they took."""
    confidence: float = 0.95
    """Of the intervals."""
    about: str = ""
    """What the study asks, for the head of the page."""

    def __post_init__(self):
        for field, wanted in mistyped(self):
            raise ConfigError(
                f"{field} = {getattr(self, field)!r} is not allowed: it must be {wanted}"
            )
        names = [arm.name for arm in self.arms]
        for name in [self.name, *names]:
            if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", name):
                raise ConfigError(
                    f"name = {name!r} is not allowed: it names folders, so it must be of "
                    "lower-case letters, digits and _ . -"
                )
        if len(set(names)) < len(names):
            raise ConfigError(f"arms: two have one name among {', '.join(names)}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds = {self.seeds} is not allowed: give different numbers")
        if not 0 < self.confidence < 1:
            raise ConfigError(f"confidence = {self.confidence} must lie between 0 and 1")
        named = {
            "baseline": (self.baseline,), "also_less": self.also_less,
            "ordering": self.ordering, "priced": self.priced,
        }  # fmt: skip
        for field, name in [(field, name) for field, some in named.items() for name in some]:
            if name not in names:
                raise ConfigError(f"{field} = {name!r} is no arm; {nearest(name, names)}")
        for i, arm in enumerate(self.arms):
            if arm.shares and arm.shares not in names[:i]:
                raise ConfigError(
                    f"{arm.name}: shares = {arm.shares!r} is no arm listed before it; "
                    f"{nearest(arm.shares, names[:i])}"
                )
            self.config_of(arm, self.seeds[0])  # refuses bad settings before any work
        for field, name in [(field, name) for field, some in named.items() for name in some]:
            if (measure := self.arm(name).measure) not in POLICIES:
                raise ConfigError(
                    f"{field} = {name!r} has no pass@1, since it measures {measure!r}: give it "
                    f"one of {', '.join(POLICIES)}, or name another arm"
                )

    @property
    def compared_with(self) -> tuple[str, ...]:
        """The arms that the others are held against, the baseline first."""
        return tuple(dict.fromkeys((self.baseline, *self.also_less)))

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)

    def config_of(self, arm: Arm, seed: int) -> Config:
        """The settings of one run; raises ConfigError, naming the arm, for bad settings."""
        try:
            if isinstance(arm.settings, Mapping):
                config = with_settings(self.config, arm.settings)
            else:
                config = arm.settings(self.config)
        except ConfigError as error:
            raise ConfigError(f"arm {arm.name!r}: {error}") from error
        return dataclasses.replace(config, seed=seed)


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """`config` with other values at some paths, such as `{"dense.form": "progress"}`.

    Raises ConfigError for a path that names no setting. Values are checked together, not one by
    one, so two that are only allowed together can be given in any order.
    """
    return _with(config, {name: value for name, value in settings.items()}, "")


def _with(section: Any, settings: dict[str, Any], where: str) -> Any:
    fields = [field.name for field in dataclasses.fields(section)]
    changed: dict[str, Any] = {}
    below: dict[str, dict[str, Any]] = {}
    for path, value in settings.items():
        name, _, rest = path.partition(".")
        if name not in fields or (rest and not dataclasses.is_dataclass(getattr(section, name))):
            raise ConfigError(f"{where}{path} is no setting; {nearest(name, fields)}")
        if rest:
            below.setdefault(name, {})[rest] = value
        else:
            changed[name] = value
    for name, inner in below.items():
        whole = changed.get(name, getattr(section, name))
        changed[name] = _with(whole, inner, f"{where}{name}.")
    return dataclasses.replace(section, **changed)


def load_study(path: Path) -> Study:
    """Runs a study file and returns its `get_study()`.

    Raises ConfigError if it has none, or if an arm asks for a seed that the study does not have.
    """
    study = run_file(path, "study", "get_study")
    if not isinstance(study, Study):
        raise ConfigError(f"{path}: get_study() returned {type(study).__name__}, not a Study")
    for arm in study.arms:
        if other := sorted(set(arm.seeds) - set(study.seeds)):
            raise ConfigError(
                f"{path}: arm {arm.name!r}: seeds = {arm.seeds} is not allowed: {other[0]} is none "
                f"of the study's, {study.seeds}"
            )
    return study


def nearest(name: str, names: list[str]) -> str:
    """The name that was meant, as the end of a message."""
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"there are {', '.join(names)}" if names else "there is none"
