"""What the contest sets share: prompts, cases of standard input, calls of a method, references.

Their published graders read an answer as text or as JSON; what they count as equal is written out
in the asserts, so that the sandbox compares on its own side.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from prm_jax.problems.formats import words
from prm_jax.problems.formats.literals import literal
from prm_jax.problems.rows import Row
from prm_jax.sandbox.core import identifiers
from prm_jax.types import CallTests, StdioTests

# A completion ends where the next question would begin, or the code block does.
STOP_STRINGS = ("\nQUESTION:", "\nANSWER:", "\n```")

# What contest sites import before a function of a contestant; the published graders do it too.
FUNCTION_PREFIX = """\
import bisect, collections, copy, functools, heapq, itertools, math, operator, random, re, string
import sys
from bisect import *
from collections import *
from functools import *
from heapq import *
from itertools import *
from math import *
from typing import *
from builtins import *
sys.setrecursionlimit(50_000)

"""
_DECIMAL = re.compile(r"[+-]?\d*\.\d+(?:[eE][+-]?\d+)?")
_FUTURE = re.compile(r"^from __future__ ", re.MULTILINE)


def prompt(question: str, starter_code: str, *, calls: bool) -> str:
    """The prompt of the APPS paper (Hendrycks et al. 2021, arXiv 2105.09938, section 4)."""
    form = "Call-Based" if calls else "Standard Input"
    starter = f"\n{starter_code.strip()}\n" if starter_code.strip() else ""
    return f"\nQUESTION:\n{question.strip()}\n{starter}\nUse {form} format\n\nANSWER:\n"


def instruction(question: str, starter_code: str, *, calls: bool) -> str:
    """The question and the form of the answer, for a chat model."""
    if calls:
        task = f"{question.strip()}\n\nWrite a Python solution that begins like this:"
        return words.program_instruction(f"{task}\n\n{words.fenced(starter_code)}")
    return words.program_instruction(
        f"{question.strip()}\n\nWrite a Python program that reads the input from standard input "
        "and prints the output to standard output."
    )


def stdio_tests(
    row: Row, field: str, inputs: Sequence[Any], outputs: Sequence[Any], tolerance: float
) -> StdioTests:
    """Cases of texts or lists of lines; the tolerance counts where an output has decimals.

    Raises BadRow, which names `field`.
    """
    cases = tuple(
        (_lines(row, field, given), _lines(row, field, expected))
        for given, expected in zip(inputs, outputs, strict=True)
    )
    decimals = any(_DECIMAL.fullmatch(w) for _, expected in cases for w in expected.split())
    return StdioTests(cases, tolerance if decimals else 0.0)


def call_tests(target: str, calls: Iterable[tuple[Sequence[Any], Sequence[Any]]]) -> CallTests:
    """Asserts that `target(*arguments)` is one of the answers that count as right."""
    statements = []
    for arguments, answers in calls:
        call = f"{target}({', '.join(map(literal, arguments))})"
        known = list(dict.fromkeys(map(literal, answers)))
        what = f"== {known[0]}" if len(known) == 1 else f"in ({', '.join(known)})"
        statements.append(f"assert {call} {what}")
    return CallTests(tuple(statements))


def target(row: Row, field: str, name: Any, in_class: bool) -> str:
    """How a function is called: by name, or as a method of LeetCode's class; raises BadRow."""
    if not isinstance(name, str) or not name.isidentifier():
        raise row.wrong(field, f"an object whose function name is an identifier, not {name!r}")
    return f"Solution().{name}" if in_class else name


def as_sequences(value: Any) -> list[Any]:
    """A list of JSON, and the tuple that a program may return in its place."""
    return [value, tuple(value)] if isinstance(value, list) else [value]


def reference(solutions: Iterable[str], must_have: str = "") -> str:
    """The first solution that Python 3 reads and that names `must_have`; "" if there is none."""
    for solution in solutions:
        code = solution.replace("\r\n", "\n").strip("\n")
        if must_have not in code or (must_have and _FUTURE.search(code)):
            continue  # an import from __future__ cannot follow the usual imports
        try:
            body = identifiers.parse(code).body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        if body:
            return code + "\n"
    return ""


def _lines(row: Row, field: str, value: Any) -> str:
    match value:
        case str():
            return value
        case list() if all(isinstance(line, str) for line in value):
            return "\n".join(value)
    raise row.wrong(field, f"cases of texts or lists of lines, not {str(value)[:60]!r}")
