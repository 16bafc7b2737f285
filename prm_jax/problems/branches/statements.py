"""The statements that functions with branches are made of, each one line of Python.

A function keeps a total `s` while it goes over `a`, a list or a number, item by item (`v`). Each
statement is asked for in three wordings of rising difficulty, and has confusions: wrong lines that
a hasty reader would write instead, the most tempting one first.
"""

import dataclasses
import re
from typing import Literal

Wording = Literal["easy", "medium", "hard"]
WORDINGS: tuple[Wording, ...] = ("easy", "medium", "hard")
Kind = Literal["start", "list", "number", "if", "else", "action", "exit", "return"]


@dataclasses.dataclass(frozen=True)
class Statement:
    """`code` and `confusions` are templates: {n} is a number, {m} is n + 1."""

    name: str
    kind: Kind  # list and number are loops, over an argument of that type
    code: str
    words: tuple[str, str, str]
    confusions: tuple[str, ...] = ()
    numbers: tuple[int, ...] = (0,)  # what {n} may be; (0,) where the statement has no number

    @property
    def reads_item(self) -> bool:
        """Whether it, or a confusion of it, makes sense inside the loop only."""
        return self.kind == "exit" or any(
            re.search(r"\bv\b", code) for code in (self.code, *self.confusions)
        )


def render(template: str, number: int) -> str:
    """The template of a line as Python text, without its indent."""
    return template.format(n=number, m=number + 1)


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a function: what it does, how it is worded, and how deep it is indented."""

    statement: str
    number: int
    wording: Wording
    depth: int  # 1 in the body of the function

    def code(self) -> str:
        return render(STATEMENTS[self.statement].code, self.number)

    def confused_code(self) -> tuple[str, ...]:
        """The plausible mistakes for this line, the dominant one first."""
        return tuple(render(c, self.number) for c in STATEMENTS[self.statement].confusions)

    def words(self) -> str:
        """The line as the prompt asks for it."""
        return STATEMENTS[self.statement].words[WORDINGS.index(self.wording)].format(n=self.number)


_DIGITS = (1, 2, 3, 4, 5, 6, 7, 8)

STATEMENTS: dict[str, Statement] = {
    statement.name: statement
    for statement in (
        Statement(
            "start",
            "start",
            "s = {n}",
            ("start at {n}", "from {n}", "begin with {n}"),
            ("s = -{n}", "s = {m}"),
            _DIGITS,
        ),
        # ------------------------------------------------------------------------------- loops
        Statement(
            "items",
            "list",
            "for v in a:",
            ("each item:", "go through:", "walk along:"),
            ("for v in a[1:]:", "for v in a[:-1]:"),
        ),
        Statement(
            "backwards",
            "list",
            "for v in a[::-1]:",
            ("each item from the end:", "backwards:", "walk home:"),
            ("for v in a:", "for v in a[:-1]:"),
        ),
        Statement(
            "after",
            "list",
            "for v in a[{n}:]:",
            ("each item after {n}:", "skip {n}:", "late by {n}:"),
            ("for v in a[:{n}]:", "for v in a[{m}:]:"),
            (1, 2, 3),
        ),
        Statement(
            "every_other",
            "list",
            "for v in a[::2]:",
            ("every other item:", "even places:", "in strides:"),
            ("for v in a[1::2]:", "for v in a:"),
        ),
        Statement(
            "below_it",
            "number",
            "for v in range(a):",
            ("each number below it:", "up to it:", "short of it:"),
            ("for v in range(a + 1):", "for v in range(a - 1):"),
        ),
        Statement(
            "through_it",
            "number",
            "for v in range(1, a + 1):",
            ("each number from 1 through it:", "up through it:", "all the way:"),
            ("for v in range(1, a):", "for v in range(2, a + 1):"),
        ),
        Statement(
            "down",
            "number",
            "for v in range(a, 0, -1):",
            ("each number from it down:", "down to 1:", "countdown:"),
            ("for v in range(1, a):", "for v in range(a - 1, 0, -1):"),
        ),
        # ------------------------------------------------------------------------- conditions
        Statement(
            "odd",
            "if",
            "if v % 2:",
            ("if odd:", "if uneven:", "if unpaired:"),
            ("if not v % 2:", "if v > 2:"),
        ),
        Statement(
            "even",
            "if",
            "if not v % 2:",
            ("if even:", "if paired:", "if halvable:"),
            ("if v % 2:", "if v < 2:"),
        ),
        Statement(
            "above",
            "if",
            "if v > {n}:",
            ("if above {n}:", "if over {n}:", "if past {n}:"),
            ("if v < {n}:", "if v > {m}:"),
            _DIGITS,
        ),
        Statement(
            "below",
            "if",
            "if v < {n}:",
            ("if below {n}:", "if under {n}:", "if shy of {n}:"),
            ("if v > {n}:", "if v < {m}:"),
            _DIGITS,
        ),
        Statement(
            "multiple",
            "if",
            "if not v % {n}:",
            ("if multiple of {n}:", "if split by {n}:", "if in {n}s:"),
            ("if v % {n}:", "if not v % {m}:"),
            (3, 4, 5),
        ),
        Statement(
            "total_above",
            "if",
            "if s > {n}:",
            ("if total above {n}:", "if total over {n}:", "if richer than {n}:"),
            ("if s < {n}:", "if s % {n}:"),
            (5, 6, 7, 8),
        ),
        Statement(
            "total_odd",
            "if",
            "if s % 2:",
            ("if total odd:", "if total uneven:", "if lopsided:"),
            ("if not s % 2:", "if s > 2:"),
        ),
        Statement(
            "total_negative",
            "if",
            "if s < 0:",
            ("if total negative:", "if total below zero:", "if in debt:"),
            ("if s > 0:", "if s % 2:"),
        ),
        Statement("else", "else", "else:", ("else:", "otherwise:", "failing that:")),
        # ---------------------------------------------------------------------------- actions
        Statement(
            "add_item",
            "action",
            "s += v",
            ("add item", "count it in", "gather"),
            ("s -= v", "s = v"),
        ),
        Statement(
            "subtract_item",
            "action",
            "s -= v",
            ("subtract item", "take it off", "shed"),
            ("s = v - s", "s += v"),
        ),
        Statement(
            "from_item",
            "action",
            "s = v - s",
            ("subtract from item", "item less total", "swing"),
            ("s -= v", "s += v"),
        ),
        Statement(
            "larger",
            "action",
            "s = max(s, v)",
            ("larger of both", "maximum", "climb"),
            ("s = min(s, v)", "s = v"),
        ),
        Statement(
            "smaller",
            "action",
            "s = min(s, v)",
            ("smaller of both", "minimum", "sink"),
            ("s = max(s, v)", "s = v"),
        ),
        Statement(
            "add",
            "action",
            "s += {n}",
            ("add {n}", "raise by {n}", "gain {n}"),
            ("s -= {n}", "s += {m}", "s = {n}"),
            _DIGITS,
        ),
        Statement(
            "subtract",
            "action",
            "s -= {n}",
            ("subtract {n}", "lower by {n}", "lose {n}"),
            ("s += {n}", "s -= {m}", "s = {n} - s"),
            _DIGITS,
        ),
        Statement(
            "double",
            "action",
            "s *= 2",
            ("double", "twice as much", "twofold"),
            ("s += 2", "s *= 3"),
        ),
        Statement(
            "negate",
            "action",
            "s = -s",
            ("negate", "flip sign", "mirror"),
            ("s = abs(s)", "s = 1 - s"),
        ),
        Statement(
            "stop", "exit", "break", ("stop", "leave", "call it a day"), ("continue", "s = 0")
        ),
        Statement(
            "next", "exit", "continue", ("next item", "skip it", "move on"), ("break", "s = 0")
        ),
        # ---------------------------------------------------------------------------- results
        Statement(
            "total",
            "return",
            "return s",
            ("return total", "give it back", "hand over"),
            ("return -s", "return s + 1"),
        ),
        Statement(
            "negated",
            "return",
            "return -s",
            ("return negated", "give its opposite", "hand over mirrored"),
            ("return s", "return abs(s)"),
        ),
        Statement(
            "plus",
            "return",
            "return s + {n}",
            ("return plus {n}", "give {n} more", "hand over topped by {n}"),
            ("return s - {n}", "return s + {m}"),
            _DIGITS,
        ),
        Statement(
            "times",
            "return",
            "return s * {n}",
            ("return times {n}", "give {n} of it", "hand over {n} copies"),
            ("return s + {n}", "return s * {m}"),
            (2, 3, 4),
        ),
    )
}
