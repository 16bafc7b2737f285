"""The list operations that chains are made of, each one Python expression on a list.

An operation is asked for in three wordings of rising difficulty, and has confusions: wrong
expressions that a hasty reader would write instead, the most tempting one first.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

Wording = Literal["easy", "medium", "hard"]
WORDINGS: tuple[Wording, ...] = ("easy", "medium", "hard")


def _compile(template: str) -> Callable[[list[int], int], list[int]]:
    """The template as a function of (list, number); only the constants of this module come here."""
    return eval(f"lambda x, n: {template.format(x='x', n='n', m='(n + 1)')}")


@dataclasses.dataclass(frozen=True)
class Operation:
    """`expression` and `confusions` are templates: {x} the list, {n} a number, {m} is n + 1."""

    name: str
    expression: str
    words: tuple[str, str, str]
    confusions: tuple[str, ...]
    numbers: tuple[int, ...] = (0,)  # what {n} may be; (0,) where the operation has no number

    @functools.cached_property
    def apply(self) -> Callable[[list[int], int], list[int]]:
        """The operation as a function of (list, number)."""
        return _compile(self.expression)

    @functools.cached_property
    def apply_confused(self) -> tuple[Callable[[list[int], int], list[int]], ...]:
        """The confusions as functions of (list, number)."""
        return tuple(map(_compile, self.confusions))


def render(template: str, variable: str, number: int) -> str:
    """The template of an expression as Python text."""
    return template.format(x=variable, n=number, m=number + 1)


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of a chain: what to do, with which number, and how it is worded in the prompt."""

    operation: str
    number: int
    wording: Wording

    def expression(self, variable: str) -> str:
        """The right expression for this step on the list called `variable`."""
        return render(OPERATIONS[self.operation].expression, variable, self.number)

    def confused_expressions(self, variable: str) -> tuple[str, ...]:
        """The plausible mistakes for this step, the dominant one first."""
        confusions = OPERATIONS[self.operation].confusions
        return tuple(render(confusion, variable, self.number) for confusion in confusions)

    def words(self) -> str:
        """The step as the prompt asks for it."""
        operation = OPERATIONS[self.operation]
        return operation.words[WORDINGS.index(self.wording)].format(n=self.number)

    def planned(self, template: str) -> str:
        """The step in easy words, as the plan of a solution puts it whose line has this template.

        A confusion that is the expression of another operation is planned as that one; any other is
        a slip of the line, and the plan is right.
        """
        operation, more = _named().get(template, (OPERATIONS[self.operation], 0))
        return operation.words[0].format(n=self.number + more)


# Short expressions and short wordings: a solution takes about five tokens a line. Most operations
# keep most of their input, so that a mistake in the first line still shows in the result.
_SMALL = (1, 2, 3)
_DIGITS = (1, 2, 3, 4, 5, 6, 7, 8)

OPERATIONS: dict[str, Operation] = {
    operation.name: operation
    for operation in (
        Operation(
            "drop_first",
            "{x}[{n}:]",
            ("drop first {n}", "skip {n}", "behead {n}"),
            ("{x}[:-{n}]", "{x}[{m}:]", "{x}[:{n}]"),
            _SMALL,
        ),
        Operation(
            "drop_last",
            "{x}[:-{n}]",
            ("drop last {n}", "cut {n}", "curtail {n}"),
            ("{x}[{n}:]", "{x}[:-{m}]", "{x}[-{n}:]"),
            _SMALL,
        ),
        Operation(
            "repeat",
            "{x} * {n}",
            ("repeat {n} times", "{n} copies", "echo {n}"),
            ("[v * {n} for v in {x}]", "{x} + [{n}]"),
            (2, 3),
        ),
        Operation(
            "append",
            "{x} + [{n}]",
            ("append {n}", "put {n} last", "close with {n}"),
            ("[{n}] + {x}", "[v + {n} for v in {x}]"),
            _DIGITS,
        ),
        Operation(
            "prepend",
            "[{n}] + {x}",
            ("prepend {n}", "put {n} first", "open with {n}"),
            ("{x} + [{n}]", "[v + {n} for v in {x}]"),
            _DIGITS,
        ),
        Operation(
            "add",
            "[v + {n} for v in {x}]",
            ("add {n}", "raise by {n}", "shift up {n}"),
            ("[v - {n} for v in {x}]", "[v + {m} for v in {x}]", "[v * {n} for v in {x}]"),
            _DIGITS,
        ),
        Operation(
            "subtract",
            "[v - {n} for v in {x}]",
            ("subtract {n}", "lower by {n}", "shift down {n}"),
            ("[{n} - v for v in {x}]", "[v + {n} for v in {x}]", "[v - {m} for v in {x}]"),
            _DIGITS,
        ),
        Operation(
            "subtract_from",
            "[{n} - v for v in {x}]",
            ("subtract from {n}", "take from {n}", "gap to {n}"),
            ("[v - {n} for v in {x}]", "[{n} + v for v in {x}]", "[{m} - v for v in {x}]"),
            _DIGITS,
        ),
        Operation(
            "multiply",
            "[v * {n} for v in {x}]",
            ("multiply by {n}", "scale by {n}", "stretch by {n}"),
            ("[v + {n} for v in {x}]", "[v * {m} for v in {x}]", "[v // {n} for v in {x}]"),
            (2, 3, 4),
        ),
        Operation(
            "add_position",
            "[v + i for i, v in enumerate({x})]",
            ("add index", "add count", "tilt"),
            ("[v * i for i, v in enumerate({x})]", "[v - i for i, v in enumerate({x})]"),
        ),
        Operation(
            "negate",
            "[-v for v in {x}]",
            ("negate", "flip signs", "mirror"),
            ("[abs(v) for v in {x}]", "{x}[::-1]"),
        ),
        Operation(
            "absolute",
            "[abs(v) for v in {x}]",
            ("absolute", "drop signs", "distances"),
            ("[-v for v in {x}]", "[v for v in {x} if v > 0]"),
        ),
        Operation(
            "at_least",
            "[max(v, {n}) for v in {x}]",
            ("at least {n}", "raise to {n}", "floor {n}"),
            ("[min(v, {n}) for v in {x}]", "[v for v in {x} if v > {n}]"),
            _SMALL,
        ),
        Operation(
            "above",
            "[v for v in {x} if v > {n}]",
            ("keep above {n}", "drop up to {n}", "clear {n}"),
            ("[v for v in {x} if v < {n}]", "[max(v, {n}) for v in {x}]"),
            _SMALL,
        ),
        Operation(
            "below",
            "[v for v in {x} if v < {n}]",
            ("keep below {n}", "drop from {n}", "stay under {n}"),
            ("[v for v in {x} if v > {n}]", "[min(v, {n}) for v in {x}]"),
            (6, 7, 8),
        ),
        Operation(
            "even",
            "[v for v in {x} if not v % 2]",
            ("keep even", "drop odd", "halvable"),
            ("[v for v in {x} if v % 2]", "[v // 2 for v in {x}]"),
        ),
        Operation(
            "odd",
            "[v for v in {x} if v % 2]",
            ("keep odd", "drop even", "unpaired"),
            ("[v for v in {x} if not v % 2]", "{x}[1::2]"),
        ),
        Operation(
            "every_other",
            "{x}[::2]",
            ("every other", "even indices", "thin out"),
            ("{x}[1::2]", "[v for v in {x} if not v % 2]"),
        ),
        Operation(
            "reverse",
            "{x}[::-1]",
            ("reverse", "backwards", "turn around"),
            ("sorted({x}, reverse=True)", "[-v for v in {x}]"),
        ),
        Operation(
            "ascending",
            "sorted({x})",
            ("sort up", "low to high", "rising"),
            ("sorted({x}, reverse=True)", "[v + i for i, v in enumerate({x})]"),
        ),
        Operation(
            "descending",
            "sorted({x}, reverse=True)",
            ("sort down", "high to low", "falling"),
            ("sorted({x})", "{x}[::-1]"),
        ),
    )
}


@functools.cache
def _named() -> dict[str, tuple[Operation, int]]:
    """The templates that are an operation's expression, with its number or with the next one."""
    found = {}
    for operation in OPERATIONS.values():
        found[operation.expression.replace("{n}", "{m}")] = operation, 1
        found[operation.expression] = operation, 0
    return found
