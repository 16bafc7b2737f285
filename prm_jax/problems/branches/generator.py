"""The seeded generator of functions with branches: a total, a loop, conditions, early exits.

A prompt gives one line of words for each line of the solution, indented as the code is, and opens
the function. Hidden tests are chosen so that they catch every confusion at every line, every pair
of them, and every action left out: a program with one or two mistakes never passes.
"""

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence

from prm_jax.config import BranchesConfig, ConfigError
from prm_jax.problems.branches.statements import STATEMENTS, WORDINGS, Kind, Line, Wording
from prm_jax.types import CallTests

INDENT = "    "
PREFIX = "def f(a):\n"
PROBLEM_SPLITS = ("train", "validation", "test", "test_long", "final")

_WORDING_SHARE = (0.5, 0.25, 0.25)
# The share of right lines in SFT solutions by wording: hard wordings are mostly misread, so that
# there is something to learn from the tests.
_RIGHT_SHARE: dict[Wording, float] = {"easy": 0.97, "medium": 0.70, "hard": 0.30}
_DOMINANT_SHARE = 0.7  # of the mistakes
_COMMENT_SHARE, _PASS_SHARE = 0.03, 0.01  # of the lines of SFT solutions have one before them
_LIST_SHARE = 0.6  # of the functions take a list, the others a number
_EXIT_SHARE = 0.15  # of the branches leave the loop or the item
_BEHIND_SHARE = 0.25  # of the functions have a branch or an action after the loop
_BLOCK_LINES, _BLOCK_SHARE = (1, 2, 4), (0.2, 0.5, 0.3)  # an action, an if, an if with an else
_TESTS = 8
_FEWEST_RESULTS = 4  # different ones among the tests
_LARGEST_RESULT = 99_999
_MOST_REFUSALS = 20_000  # candidates in a row that are no new problem
_INPUT_LENGTHS = range(8, 14)
_INPUT_VALUES = range(-9, 21)
_INPUT_NUMBERS = range(4, 40)
_FEWEST_LINES = 4  # start, loop, an action, return


@dataclasses.dataclass(frozen=True)
class Function:
    """The lines of a solution, from the start of the total to the return."""

    lines: tuple[Line, ...]

    def prompt(self) -> str:
        """The lines in words, indented by one blank a level, and the open function."""
        words = "".join(f"{' ' * (line.depth - 1)}{line.words()}\n" for line in self.lines)
        return words + PREFIX

    def program_prefix(self) -> str:
        return PREFIX

    def solution(self) -> str:
        """The body of the function, without a newline at the end."""
        return self.body([line.code() for line in self.lines])

    def body(self, codes: Sequence[str]) -> str:
        """The body that has codes[k] in line k."""
        return "\n".join(
            INDENT * line.depth + code for line, code in zip(self.lines, codes, strict=True)
        )

    @property
    def takes_list(self) -> bool:
        return STATEMENTS[self.lines[1].statement].kind == "list"


@dataclasses.dataclass(frozen=True)
class BranchProblem:
    """A function with its hidden tests."""

    function: Function
    tests: CallTests


@dataclasses.dataclass(frozen=True)
class SFTPair:
    """A prompt and a completion as a hasty programmer would write it."""

    function: Function
    completion: str


# ------------------------------------------------------------------------------------ what it does


def compiled(body: str) -> Callable[[list[int] | int], int]:
    """The function with this body; only lines of this room's own templates come here."""
    scope: dict = {}
    exec(PREFIX + body, scope)
    return scope["f"]


def tests_catch_every_confusion(function: Function, inputs: Sequence[list[int] | int]) -> bool:
    """Whether each confusion, and each action left out, changes the result of some input."""
    codes = [line.code() for line in function.lines]
    wrong = [[*line.confused_code(), *(["pass"] if _acts(line) else [])] for line in function.lines]
    changes = [{k: code} for k in range(len(codes)) for code in wrong[k]]
    return _all_caught(function, codes, changes, inputs)


def tests_catch_every_pair(function: Function, inputs: Sequence[list[int] | int]) -> bool:
    """Whether any two confusions at once still change the result of some input."""
    codes = [line.code() for line in function.lines]
    wrong = [line.confused_code() for line in function.lines]
    changes = [
        {k: code, other: code_too}
        for k, other in itertools.combinations(range(len(codes)), 2)
        for code in wrong[k]
        for code_too in wrong[other]
    ]
    return _all_caught(function, codes, changes, inputs)


def _all_caught(
    function: Function,
    codes: Sequence[str],
    changes: Iterable[dict[int, str]],
    inputs: Sequence[list[int] | int],
) -> bool:
    results = [compiled(function.body(codes))(value) for value in inputs]
    for change in changes:
        changed = compiled(function.body([change.get(k, code) for k, code in enumerate(codes)]))
        # Lazily: the first input mostly tells already.
        if all(changed(v) == result for v, result in zip(inputs, results, strict=True)):
            return False
    return True


def _acts(line: Line) -> bool:
    return STATEMENTS[line.statement].kind in ("action", "exit")


# ----------------------------------------------------------------------------------------- problems


def _of_kind(*kinds: Kind, in_loop: bool = True) -> list[str]:
    return [
        s.name for s in STATEMENTS.values() if s.kind in kinds and (in_loop or not s.reads_item)
    ]


def _line(rng: random.Random, names: Sequence[str], depth: int) -> Line:
    statement = STATEMENTS[rng.choice(names)]
    (wording,) = rng.choices(WORDINGS, _WORDING_SHARE)
    return Line(statement.name, rng.choice(statement.numbers), wording, depth)


def _block(rng: random.Random, size: int, depth: int, in_loop: bool) -> list[Line]:
    """An action (1 line), a condition with an action (2), or one with an else as well (4)."""
    actions = _of_kind("action", in_loop=in_loop)
    if size == 1:
        return [_line(rng, actions, depth)]
    block = [_line(rng, _of_kind("if", in_loop=in_loop), depth)]
    leaves = in_loop and size == 2 and rng.random() < _EXIT_SHARE
    block.append(_line(rng, _of_kind("exit") if leaves else actions, depth + 1))
    if size == 4:
        others = [name for name in actions if name != block[1].statement]
        block += [_line(rng, ["else"], depth), _line(rng, others, depth + 1)]
    return block


def _sample_function(rng: random.Random, horizon: int) -> Function:
    """A function of `horizon` lines."""
    loop = "list" if rng.random() < _LIST_SHARE else "number"
    lines = [_line(rng, ["start"], 1), _line(rng, _of_kind(loop), 1)]
    left = horizon - 3
    behind: list[Line] = []
    if left >= 3 and rng.random() < _BEHIND_SHARE:
        behind = _block(rng, rng.choice((1, 2)), 1, in_loop=False)
        left -= len(behind)
    while left:
        fitting = [(n, share) for n, share in zip(_BLOCK_LINES, _BLOCK_SHARE, strict=True)
                   if n <= left]  # fmt: skip
        (size,) = rng.choices([n for n, _ in fitting], [share for _, share in fitting])
        lines += _block(rng, size, 2, in_loop=True)
        left -= size
    return Function((*lines, *behind, _line(rng, _of_kind("return"), 1)))


def _inputs(rng: random.Random, function: Function) -> list[list[int] | int]:
    if function.takes_list:
        return [rng.choices(_INPUT_VALUES, k=rng.choice(_INPUT_LENGTHS)) for _ in range(_TESTS)]
    return list(rng.sample(_INPUT_NUMBERS, _TESTS))


def make_problems(config: BranchesConfig) -> dict[str, list[BranchProblem]]:
    """Problems of every split, balanced over horizons; no two share a program.

    Raises ConfigError where the horizons do not admit that many different problems.
    """
    sizes = {
        "train": (config.train, config.train_horizons),
        "validation": (config.validation, config.train_horizons),
        "test": (config.test, config.test_horizons),
        "test_long": (config.test, config.long_horizons),
        "final": (config.final, config.test_horizons),
    }
    programs: set[str] = set()
    splits: dict[str, list[BranchProblem]] = {}
    for split in PROBLEM_SPLITS:
        size, (low, high) = sizes[split]
        if not size:
            continue  # a dataset has no empty splits
        rng = random.Random(f"branches {config.seed} {split}")
        splits[split] = []
        refused = 0
        while len(splits[split]) < size:
            if refused == _MOST_REFUSALS:
                raise ConfigError(
                    f"problems.branches.seed = {config.seed}: {split} has {len(splits[split])} of "
                    f"{size} problems and no other was found with {low} to {high} lines; ask for "
                    "fewer problems or for horizons with more different programs"
                )
            refused += 1
            function = _sample_function(rng, low + len(splits[split]) % (high - low + 1))
            if function.solution() in programs:
                continue
            inputs = _inputs(rng, function)
            right = compiled(function.solution())
            results = [right(value) for value in inputs]
            if len(set(results)) < _FEWEST_RESULTS or max(map(abs, results)) > _LARGEST_RESULT:
                continue
            if not tests_catch_every_confusion(function, inputs):
                continue
            if not tests_catch_every_pair(function, inputs):
                continue
            refused = 0
            programs.add(function.solution())
            tests = tuple(f"assert f({i}) == {r}" for i, r in zip(inputs, results, strict=True))
            splits[split].append(BranchProblem(function, CallTests(tests)))
    return splits


# --------------------------------------------------------------------------------------------- SFT


def make_sft_pairs(config: BranchesConfig, problems: Iterable[BranchProblem]) -> Iterator[SFTPair]:
    """SFT pairs, mostly short, some with mistakes; no problem's program is asked for or given."""
    programs = {problem.function.solution() for problem in problems}
    rng = random.Random(f"branches {config.seed} sft")
    low, high = config.sft_horizons
    horizons = range(low, high + 1)
    shares = [high + 1 - horizon for horizon in horizons]
    refused = 0
    for _ in range(config.sft_pairs):
        while True:
            function = _sample_function(rng, rng.choices(horizons, shares)[0])
            codes = [_hasty_code(rng, line) for line in function.lines]
            if programs.isdisjoint((function.solution(), function.body(codes))):
                break
            refused += 1
            if refused == _MOST_REFUSALS:
                raise ConfigError(
                    f"problems.branches.sft_horizons = {config.sft_horizons}: the problems leave "
                    "too few programs for SFT; ask for fewer problems or longer SFT horizons"
                )
        refused = 0
        yield SFTPair(function, _with_comments(rng, function, codes))


def _hasty_code(rng: random.Random, line: Line) -> str:
    """The code of a line, or a confusion of it."""
    confusions = line.confused_code()
    if not confusions or rng.random() < _RIGHT_SHARE[line.wording]:
        return line.code()
    dominant, *others = confusions
    return dominant if rng.random() < _DOMINANT_SHARE else rng.choice(others)


def _with_comments(rng: random.Random, function: Function, codes: Sequence[str]) -> str:
    """The body with a comment that repeats the words, or a `pass`, before a few lines."""
    texts = []
    for line, code in zip(function.lines, codes, strict=True):
        extra = rng.random()
        indent = INDENT * line.depth
        if extra < _COMMENT_SHARE:
            texts.append(f"{indent}# {line.words()}")
        elif extra < _COMMENT_SHARE + _PASS_SHARE and code != "else:":  # it would part it from if
            texts.append(f"{indent}pass")
        texts.append(indent + code)
    return "\n".join(texts)
