"""CodeContests (Li et al. 2022, AlphaCode, arXiv 2203.07814): competition problems on stdin.

Fields: name, description, public_tests, private_tests, generated_tests (input and output),
time_limit (seconds, nanos), memory_limit_bytes, solutions (language, solution), difficulty,
cf_rating. The reference is the first solution in Python 3.
"""

from typing import Any

from prm_jax.problems.formats import contest, words
from prm_jax.problems.rows import Row
from prm_jax.types import Limits, Problem

STOP_STRINGS = contest.STOP_STRINGS
_PYTHON3 = (3, "PYTHON3")
_TOLERANCE = 1e-5
# The enumeration of the published schema, from 1.
_DIFFICULTIES = ("EASY", "MEDIUM", "HARD", "HARDER", "HARDEST", "EXTERNAL")
_FIRST_LETTER = 7  # A to V


def problem(row: Row) -> Problem | None:
    """A problem of CodeContests with all its tests, None if it has none; raises BadRow."""
    question = row.text("description")
    inputs, outputs = [], []
    for field in ("public_tests", "private_tests", "generated_tests"):
        for given, expected in _columns(row, field, "input", "output"):
            inputs.append(given)
            outputs.append(expected)
    if not inputs:
        return None
    written = _columns(row, "solutions", "language", "solution")
    solution = contest.reference(str(text) for kind, text in written if kind in _PYTHON3)
    return Problem(
        task_id=row.name("name"),
        prompt=contest.prompt(question, "", calls=False),
        tests=contest.stdio_tests(row, "public_tests", inputs, outputs, _TOLERANCE),
        solution=solution,
        instruction=contest.instruction(question, "", calls=False),
        horizon=words.horizon(solution),
        difficulty=_difficulty(row),
        limits=_limits(row),
    )


def split(row: Row) -> str:
    """What the file's name says, as published: train, valid or test."""
    return row.split or "test"


def _columns(row: Row, field: str, first: str, second: str) -> list[tuple[Any, Any]]:
    """Pairs of two columns, or of the same fields of a list of objects."""
    value = row.fields.get(field)
    match value:
        case None:
            return []
        case dict():
            left, right = value.get(first), value.get(second)
            if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
                return list(zip(left, right, strict=True))
        case list() if all(isinstance(v, dict) and {first, second} <= v.keys() for v in value):
            return [(item[first], item[second]) for item in value]
    raise row.wrong(field, f"an object with lists {first} and {second} of equal length")


def _difficulty(row: Row) -> str:
    """Codeforces' rating where there is one, else the published class."""
    rating = row.whole("cf_rating", 0)
    value = row.fields.get("difficulty") or 0
    if isinstance(value, str):
        return value
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise row.wrong("difficulty", "a whole number, at least 0")
    if rating:
        return str(rating)
    if value >= _FIRST_LETTER:
        return chr(ord("A") + value - _FIRST_LETTER)
    return _DIFFICULTIES[value - 1] if value else ""


def _limits(row: Row) -> Limits:
    default = Limits()
    memory = row.whole("memory_limit_bytes", 0)
    memory_mib = max(1, memory >> 20) if memory else default.memory_mib
    match row.fields.get("time_limit"):
        case None:
            return Limits(memory_mib=memory_mib)
        case {"seconds": int(seconds), **rest} if seconds >= 0:
            cpu_s = seconds + (rest.get("nanos") or 0) / 1e9
            return Limits(cpu_s=cpu_s or default.cpu_s, memory_mib=memory_mib)
    raise row.wrong("time_limit", "an object with whole numbers seconds and nanos")
