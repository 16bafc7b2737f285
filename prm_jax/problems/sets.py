"""The problem sets of a run, prepared at first use and read from disk after that.

Nothing else in the project knows where problems come from: another dataset is another builder
beside `chains`, and another branch of `load_problems`.
"""

import contextlib
import dataclasses
import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import tensorflow_datasets as tfds

from prm_jax.config import ProblemsConfig
from prm_jax.problems.chains.builder import Chains, builder_config
from prm_jax.problems.chains.generator import Chain
from prm_jax.problems.chains.operations import Step
from prm_jax.types import CallTests, Limits, Problem

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class ProblemSets:
    """SFT pairs and problems; `steps` holds what the oracle needs to know, by task_id."""

    sft: Sequence[tuple[str, str]]  # (prompt, completion)
    train: Sequence[Problem]
    validation: Sequence[Problem]
    test: Sequence[Problem]
    test_long: Sequence[Problem]
    steps: Mapping[str, Chain]


def load_problems(config: ProblemsConfig, data_dir: Path, limits: Limits) -> ProblemSets:
    """Reads the problem sets, preparing them under `data_dir` first if they are not there.

    Preparing is atomic: files are written beside their place and moved there when complete.
    `limits` is what each program of each problem may use. Raises ConfigError for settings that
    the generator cannot fulfil.
    """
    with _quiet_tfds():
        match config.name:
            case "chains":
                builder = Chains(
                    data_dir=str(data_dir),
                    config=builder_config(config),
                    file_format="array_record",
                )
        builder.download_and_prepare()
    sources: Any = builder.as_data_source()
    splits: dict[str, list[Problem]] = {}
    steps: dict[str, Chain] = {}
    for split in ("train", "validation", "test", "test_long"):
        source = sources[split]
        splits[split] = []
        for example in source.__getitems__(range(len(source))):
            problem = _problem(example, limits)
            splits[split].append(problem)
            steps[problem.task_id] = _chain(example)
    return ProblemSets(
        sft=_View(sources["sft"], _pair),
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        test_long=splits["test_long"],
        steps=steps,
    )


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """Keeps back what tfds prints while it prepares: it speaks of downloads, and there are none."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        log.setLevel(level)
        tfds.enable_progress_bar()


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


def _pair(example: Mapping[str, Any]) -> tuple[str, str]:
    return example["prompt"].decode(), example["completion"].decode()


def _chain(example: Mapping[str, Any]) -> Chain:
    columns = zip(example["operations"], example["numbers"], example["wordings"], strict=True)
    steps = tuple(Step(o.decode(), int(n), w.decode()) for o, n, w in columns)
    return Chain(steps, example["names"].decode())


def _problem(example: Mapping[str, Any], limits: Limits) -> Problem:
    chain = _chain(example)
    hard = sum(step.wording == "hard" for step in chain.steps)
    return Problem(
        task_id=example["task_id"].decode(),
        prompt=example["prompt"].decode(),
        tests=CallTests(tuple(a.decode() for a in example["asserts"])),
        solution=example["completion"].decode(),
        program_prefix=chain.program_prefix(),
        horizon=len(chain.steps),
        difficulty=f"{hard} hard",
        limits=limits,
    )
