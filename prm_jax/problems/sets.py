"""The problem sets of a run, prepared at first use and read from disk after that.

Nothing else in the project knows where problems come from: the built-in ones come from their
generators, every other set from a file that prm_jax/problems reads.
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import tensorflow_datasets as tfds

from prm_jax.config import ConfigError, ProblemsConfig
from prm_jax.problems.benchmarks import read_problems
from prm_jax.problems.branches import builder as branches_builder
from prm_jax.problems.builder import quiet_tfds
from prm_jax.problems.chains import builder as chains_builder
from prm_jax.problems.chains.generator import Chain
from prm_jax.problems.chains.operations import Step
from prm_jax.problems.oracle import Asked
from prm_jax.types import CallTests, Limits, Problem

T = TypeVar("T")
GENERATED = Path.home() / ".cache/prm_jax/problems"
BUILT_IN = ("chains", "branches")  # sets that a generator makes


@dataclasses.dataclass(frozen=True)
class ProblemSets:
    """What SFT imitates, what RL and the labels ask, what judges the PRM and the policies."""

    sft: Sequence[Problem]  # read for their prompts and solutions only
    train: Sequence[Problem]
    validation: Sequence[Problem]
    held_out: Mapping[str, Sequence[Problem]]  # the first set is the one that results quote
    stop_strings: tuple[str, ...] = ()  # that end a completion of these problems
    asked: Mapping[str, Asked] = dataclasses.field(default_factory=dict)  # for the oracle, by task


def data_folder(name: str, beside: Path) -> Path:
    """Where a set is prepared: for a built-in one, in a folder that all runs of this user share.

    It is named after the generator's own code. `beside` is for other sets, and where a home
    cannot be written to.
    """
    if name not in BUILT_IN:
        return beside
    builder = chains_builder if name == "chains" else branches_builder
    sources = sorted(Path(builder.__file__).parent.glob("*.py"))
    digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()[:12]
    folder = GENERATED / digest
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return beside
    return folder if os.access(folder, os.W_OK) else beside


def load_problems(config: ProblemsConfig, data_dir: Path, limits: Limits) -> ProblemSets:
    """Reads the problem sets, preparing them under `data_dir` first if they are not there.

    Preparing is atomic: files are written beside their place and moved there when complete.
    `limits` is what each program may use where its problem does not say. Raises ConfigError for
    settings that cannot be fulfilled and for a set that has nothing to train on.
    """
    if config.name == "chains":
        builder = chains_builder.Chains
        settings = chains_builder.builder_config(config.chains)
        return _generated(builder, settings, data_dir, config.held_out, limits, _chain)
    if config.name == "branches":
        builder, read = branches_builder.Branches, branches_builder.read_function
        settings = branches_builder.builder_config(config.branches)
        return _generated(builder, settings, data_dir, config.held_out, limits, read)
    return _benchmark(config, data_dir, limits)


def _benchmark(config: ProblemsConfig, data_dir: Path, limits: Limits) -> ProblemSets:
    found = read_problems(config.name, data_dir)

    def split(name: str) -> list[Problem]:
        return [
            dataclasses.replace(p, limits=limits) if p.limits == Limits() else p
            for p in found.splits.get(name, ())
        ]

    train, validation, test = split("train"), split("validation"), split("test")
    if not train or not test:
        raise ConfigError(
            f"problems.name = {config.name!r} is not allowed: training needs splits train and "
            f"test, and it has {', '.join(found.splits)}; evaluate it with prm_jax.evaluate, or "
            "give each problem of a file of your own a split (docs/problems.md)"
        )
    if not validation:
        kept = config.validation or max(1, len(train) // 10)
        if kept >= len(train):
            raise ConfigError(
                f"problems.validation = {kept} is not allowed: it must be below the {len(train)} "
                f"training problems of {config.name}, which has no validation split; give some of "
                "its problems that split"
            )
        train, validation = train[:-kept], train[-kept:]
    return ProblemSets(
        sft=[p for p in train if p.solution],
        train=train,
        validation=validation,
        held_out={"test": test},
        stop_strings=found.stop_strings,
    )


def _generated(
    kind: type[tfds.core.GeneratorBasedBuilder],
    settings: tfds.core.BuilderConfig,
    data_dir: Path,
    held_out: str,
    limits: Limits,
    read: Callable[[Mapping[str, Any]], Asked],
) -> ProblemSets:
    """The sets of a generator; `read` makes what a problem asks for of a builder's example."""

    def opened() -> tfds.core.GeneratorBasedBuilder:
        return kind(data_dir=str(data_dir), config=settings, file_format="array_record")

    with quiet_tfds():
        builder = opened()
        try:
            builder.download_and_prepare()
        except FileExistsError:  # another process was quicker: runs of a study start together
            builder = opened()
    sources: Any = builder.as_data_source()
    splits: dict[str, list[Problem]] = {}
    asked: dict[str, Asked] = {}
    judging = ("final",) if held_out == "final" else ("test", "test_long")
    for split in ("train", "validation", *judging):
        source = sources[split]
        splits[split] = []
        for example in source.__getitems__(range(len(source))):
            problem = _problem(example, read(example), limits)
            splits[split].append(problem)
            asked[problem.task_id] = read(example)
    return ProblemSets(
        sft=_View(sources["sft"], lambda example: _problem(example, read(example), limits)),
        train=splits["train"],
        validation=splits["validation"],
        held_out={split: splits[split] for split in judging},
        asked=asked,
    )


class _View(Sequence[T], Generic[T]):
    """A data source whose records are turned into what the project reads, when they are read."""

    def __init__(self, source: Any, make: Callable[[Mapping[str, Any]], T]):
        self._source = source
        self._make = make

    def __len__(self) -> int:
        return len(self._source)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            rows = range(len(self))[index]
            return [self._make(r) for r in self._source.__getitems__(rows)] if rows else []
        return self._make(self._source[range(len(self))[index]])

    def __iter__(self):
        return iter(self[:])


def _chain(example: Mapping[str, Any]) -> Chain:
    columns = zip(example["operations"], example["numbers"], example["wordings"], strict=True)
    steps = tuple(Step(o.decode(), int(n), w.decode()) for o, n, w in columns)
    return Chain(steps, example["names"].decode())


def _problem(example: Mapping[str, Any], asked: Asked, limits: Limits) -> Problem:
    parts = asked.steps if isinstance(asked, Chain) else asked.lines
    hard = sum(part.wording == "hard" for part in parts)
    return Problem(
        task_id=example["task_id"].decode(),
        prompt=example["prompt"].decode(),
        tests=CallTests(tuple(a.decode() for a in example["asserts"])),
        solution=example["completion"].decode(),
        plan=example["plan"].decode() if "plan" in example else "",
        program_prefix=asked.program_prefix(),
        horizon=len(parts),
        difficulty=f"{hard} hard",
        limits=limits,
    )
