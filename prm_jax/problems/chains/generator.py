"""The seeded generator of chains: a problem asks for list operations, one after the other.

A prompt gives one step per line, labelled with the variable that holds its result, and opens the
function; the solution has one line per step. Hidden tests are chosen so that they catch every
confusion at every line and every pair of them: a program with one or two mistakes never passes.
"""

import dataclasses
import random
from collections.abc import Callable, Iterable, Iterator, Sequence

from prm_jax.config import ChainsConfig, ConfigError
from prm_jax.problems.chains.operations import (
    OPERATIONS,
    WORDINGS,
    Step,
    Wording,
    render,
)
from prm_jax.types import CallTests

# Names of variables, without f (the function), v and i (inside expressions), l and w.
NAMES = "abcdeghjkmnopqrstuxyz"
INDENT = "    "
PROBLEM_SPLITS = ("train", "validation", "test", "test_long", "final")

_WORDING_SHARE = (0.5, 0.25, 0.25)
# The share of right lines in SFT solutions by wording: hard wordings are mostly misread, so that
# there is something to learn from the tests.
_RIGHT_SHARE: dict[Wording, float] = {"easy": 0.97, "medium": 0.70, "hard": 0.30}
_DOMINANT_SHARE = 0.7  # of the mistakes
_COMMENT_SHARE, _PASS_SHARE = 0.03, 0.01  # of the lines of SFT solutions have one before them
_TESTS = 6
_LONGEST_RESULT = 100  # numbers in an expected list
_MOST_REFUSALS = 20_000  # candidates in a row that are no new problem
_INPUT_LENGTHS = range(12, 18)
_INPUT_VALUES = range(-9, 21)
_OPERATIONS = tuple(OPERATIONS.values())


@dataclasses.dataclass(frozen=True)
class Chain:
    """Steps and the names of their variables: names[k] is what step k reads."""

    steps: tuple[Step, ...]
    names: str

    def prompt(self) -> str:
        """The steps in words, each labelled with the variable it fills, and the open function."""
        labels = [*self.names[1:], "return"]
        steps = "".join(
            f"{label}: {step.words()}\n" for label, step in zip(labels, self.steps, strict=True)
        )
        return steps + self.program_prefix()

    def program_prefix(self) -> str:
        return f"def f({self.names[0]}):\n"

    def solution(self) -> str:
        """The body of the function, one line per step, without a newline at the end."""
        return self.body([OPERATIONS[step.operation].expression for step in self.steps])

    def plan(self, templates: Sequence[str] | None = None) -> str:
        """The steps in easy words, a line each: of the solution, or of a body with templates."""
        templates = templates or [OPERATIONS[step.operation].expression for step in self.steps]
        return "\n".join(s.planned(t) for s, t in zip(self.steps, templates, strict=True))

    def body(self, templates: Sequence[str]) -> str:
        """The body that computes step k with the expression templates[k]."""
        heads = [f"{name} = " for name in self.names[1:]] + ["return "]
        return "\n".join(
            INDENT + head + render(template, name, step.number)
            for head, template, name, step in zip(
                heads, templates, self.names, self.steps, strict=True
            )
        )

    def program(self, templates: Sequence[str] | None = None) -> str:
        """The body whatever the names: equal for two chains that compute the same."""
        chain = Chain(self.steps, NAMES[: len(self.steps)])
        return chain.solution() if templates is None else chain.body(templates)


@dataclasses.dataclass(frozen=True)
class ChainProblem:
    """A chain with its hidden tests."""

    chain: Chain
    tests: CallTests


@dataclasses.dataclass(frozen=True)
class SFTPair:
    """A prompt and a completion as a hasty programmer would write it."""

    chain: Chain
    completion: str
    plan: str  # which the completion carries out


def run(steps: Sequence[Step], values: list[int]) -> list[int]:
    """The result of the chain on a list."""
    for step in steps:
        values = OPERATIONS[step.operation].apply(values, step.number)
    return values


def tests_catch_every_confusion(steps: Sequence[Step], inputs: Sequence[list[int]]) -> bool:
    """Whether each confusion, and each skipped step, changes the result of one of the inputs.

    These are single changes; `tests_catch_every_pair` looks for two that cancel each other.
    """
    lists = _lists(steps, inputs)
    for line in reversed(range(len(steps))):
        for wrong in (*_confusions(steps[line]), _skip):
            changed = [wrong(values, steps[line].number) for values in lists[line]]
            if _same_results(steps[line + 1 :], changed, lists[-1]):
                return False
    return True


def tests_catch_every_pair(steps: Sequence[Step], inputs: Sequence[list[int]]) -> bool:
    """Whether any two confusions at once still change the result of one of the inputs."""
    lists = _lists(steps, inputs)
    for first in range(len(steps)):
        for wrong in _confusions(steps[first]):
            changed = [wrong(values, steps[first].number) for values in lists[first]]
            for second in range(first + 1, len(steps)):
                number = steps[second].number
                for wrong_too in _confusions(steps[second]):
                    # Lazily: the first input mostly tells already.
                    twice = (wrong_too(values, number) for values in changed)
                    if _same_results(steps[second + 1 :], twice, lists[-1]):
                        return False
                changed = [run(steps[second : second + 1], values) for values in changed]
    return True


def _lists(steps: Sequence[Step], inputs: Sequence[list[int]]) -> list[list[list[int]]]:
    """lists[k][t] is what step k reads in test t; the last ones are the results."""
    lists = [list(inputs)]
    for step in steps:
        lists.append([run([step], values) for values in lists[-1]])
    return lists


def _same_results(
    steps: Sequence[Step], lists: Iterable[list[int]], results: Iterable[list[int]]
) -> bool:
    return all(run(steps, values) == result for values, result in zip(lists, results, strict=True))


def _confusions(step: Step) -> tuple[Callable[[list[int], int], list[int]], ...]:
    return OPERATIONS[step.operation].apply_confused


def _skip(values: list[int], number: int) -> list[int]:
    return values


def _sample_chain(rng: random.Random, horizon: int, pool: str) -> Chain:
    """A chain without the same operation twice in a row; its names start anywhere in the pool.

    Names from anywhere let short chains teach the names that only long chains need.
    """
    steps: list[Step] = []
    for wording in rng.choices(WORDINGS, _WORDING_SHARE, k=horizon):
        operation = rng.choice(_OPERATIONS)
        while steps and operation.name == steps[-1].operation:
            operation = rng.choice(_OPERATIONS)
        steps.append(Step(operation.name, rng.choice(operation.numbers), wording))
    start = rng.randrange(len(pool) - horizon + 1)
    return Chain(tuple(steps), pool[start : start + horizon])


def _name_pool(config: ChainsConfig) -> str:
    longest = max(
        config.sft_horizons[1],
        config.train_horizons[1],
        config.test_horizons[1],
        config.long_horizons[1],
    )
    if longest > len(NAMES):
        raise ConfigError(
            f"problems.chains.long_horizons = {config.long_horizons} is not allowed: the "
            f"generator has names for {len(NAMES)} lines, so no horizon may be above {len(NAMES)}"
        )
    return NAMES[:longest]


def make_problems(config: ChainsConfig) -> dict[str, list[ChainProblem]]:
    """Problems of every split, balanced over horizons; no two share a program or a test.

    Raises ConfigError where the horizons do not admit that many different problems.
    """
    pool = _name_pool(config)
    sizes = {
        "train": (config.train, config.train_horizons),
        "validation": (config.validation, config.train_horizons),
        "test": (config.test, config.test_horizons),
        "test_long": (config.test, config.long_horizons),
        "final": (config.final, config.test_horizons),
    }
    programs: set[str] = set()
    asserts: set[str] = set()
    splits: dict[str, list[ChainProblem]] = {}
    for split in PROBLEM_SPLITS:
        size, (low, high) = sizes[split]
        if not size:
            continue  # a dataset has no empty splits
        rng = random.Random(f"chains {config.seed} {split}")
        splits[split] = []
        refused = 0
        while len(splits[split]) < size:
            if refused == _MOST_REFUSALS:
                raise ConfigError(
                    f"problems.chains.seed = {config.seed}: {split} has {len(splits[split])} of "
                    f"{size} problems and no other was found with {low} to {high} lines; ask for "
                    "fewer problems or for horizons with more different programs"
                )
            refused += 1
            horizon = low + len(splits[split]) % (high - low + 1)
            chain = _sample_chain(rng, horizon, pool)
            inputs = [
                rng.choices(_INPUT_VALUES, k=rng.choice(_INPUT_LENGTHS)) for _ in range(_TESTS)
            ]
            if chain.program() in programs or not tests_catch_every_confusion(chain.steps, inputs):
                continue
            results = [run(chain.steps, values) for values in inputs]
            tests = tuple(f"assert f({i}) == {r}" for i, r in zip(inputs, results, strict=True))
            if len(asserts | set(tests)) < len(asserts) + _TESTS:
                continue
            if max(map(len, results)) > _LONGEST_RESULT:
                continue
            if not tests_catch_every_pair(chain.steps, inputs):
                continue
            refused = 0
            programs.add(chain.program())
            asserts.update(tests)
            splits[split].append(ChainProblem(chain, CallTests(tests)))
    return splits


def make_sft_pairs(config: ChainsConfig, problems: Iterable[ChainProblem]) -> Iterator[SFTPair]:
    """SFT pairs, mostly short, some with mistakes; no problem's program is asked for or given."""
    pool = _name_pool(config)
    programs = {problem.chain.program() for problem in problems}
    rng = random.Random(f"chains {config.seed} sft")
    low, high = config.sft_horizons
    horizons = range(low, high + 1)
    shares = [high + 1 - horizon for horizon in horizons]
    refused = 0
    for _ in range(config.sft_pairs):
        while True:
            chain = _sample_chain(rng, rng.choices(horizons, shares)[0], pool)
            templates = [_hasty_template(rng, step) for step in chain.steps]
            if programs.isdisjoint((chain.program(), chain.program(templates))):
                break
            refused += 1
            if refused == _MOST_REFUSALS:
                raise ConfigError(
                    f"problems.chains.sft_horizons = {config.sft_horizons}: the problems leave too "
                    "few programs for SFT; ask for fewer problems or longer SFT horizons"
                )
        refused = 0
        body = _with_comments(rng, chain, chain.body(templates))
        yield SFTPair(chain, body, chain.plan(templates))


def _hasty_template(rng: random.Random, step: Step) -> str:
    """The expression of a step, or a confusion of it."""
    operation = OPERATIONS[step.operation]
    if rng.random() < _RIGHT_SHARE[step.wording]:
        return operation.expression
    dominant, *others = operation.confusions
    return dominant if rng.random() < _DOMINANT_SHARE else rng.choice(others)


def _with_comments(rng: random.Random, chain: Chain, body: str) -> str:
    """The body with a comment that repeats the step, or a `pass`, before a few lines."""
    lines = []
    for step, line in zip(chain.steps, body.split("\n"), strict=True):
        extra = rng.random()
        if extra < _COMMENT_SHARE:
            lines.append(f"{INDENT}# {step.words()}")
        elif extra < _COMMENT_SHARE + _PASS_SHARE:
            lines.append(f"{INDENT}pass")
        lines.append(line)
    return "\n".join(lines)
