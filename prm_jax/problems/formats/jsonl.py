"""Our own format, JSON Lines with a field for everything that a Problem holds (docs/problems.md).

The fields of tests are those that `prm_jax.judge` reads, so one file serves both.
"""

from typing import Any

from prm_jax.problems.formats import human_eval, words
from prm_jax.problems.rows import BadRow, Row
from prm_jax.types import CallTests, CheckTests, Limits, Problem, StdioTests, Tests

_SPLITS = ("train", "validation", "test")
_TESTS = ("tests", "test_list", "test", "cases")
FIELDS = frozenset(
    ("task_id", "split", "prompt", "instruction", "program_prefix", "solution", "plan", "horizon")
    + ("difficulty", *_TESTS, "setup", "test_setup_code", "entry_point", "float_tolerance")
    + ("cpu_s", "memory_mib", "output_bytes")
)


def problem(row: Row) -> Problem:
    """The problem that a row describes; raises BadRow."""
    unknown = sorted(row.fields.keys() - FIELDS)
    if unknown:
        raise row.wrong(unknown[0], f"left out: the fields are {', '.join(sorted(FIELDS))}")
    prefix = row.text("program_prefix", "")
    solution = row.text("solution", "")
    default = Limits()
    return Problem(
        task_id=row.name("task_id"),
        prompt=row.text("prompt"),
        tests=_tests(row, prefix),
        solution=solution,
        plan=row.text("plan", "").strip("\n"),
        program_prefix=prefix,
        instruction=row.text("instruction", ""),
        horizon=row.whole("horizon", words.horizon(solution)),
        difficulty=row.text("difficulty", ""),
        limits=Limits(
            cpu_s=row.number_above_0("cpu_s", default.cpu_s),
            memory_mib=row.whole("memory_mib", default.memory_mib, least=1),
            output_bytes=row.whole("output_bytes", default.output_bytes, least=1),
        ),
    )


def split(row: Row) -> str:
    """What the row says, else what the file's name says, else test; raises BadRow."""
    name = row.text("split", row.split or "test")
    if name not in _SPLITS:
        raise row.wrong("split", f"one of {_SPLITS}")
    return name


def fields(problem: Problem, split: str) -> dict[str, Any]:
    """The row of a problem, every field written out: `problem(fields(p)) == p`."""
    found: dict[str, Any] = {
        "task_id": problem.task_id,
        "split": split,
        "prompt": problem.prompt,
        "instruction": problem.instruction,
        "program_prefix": problem.program_prefix,
        "solution": problem.solution,
        "plan": problem.plan,
        "horizon": problem.horizon,
        "difficulty": problem.difficulty,
        "cpu_s": problem.limits.cpu_s,
        "memory_mib": problem.limits.memory_mib,
        "output_bytes": problem.limits.output_bytes,
    }
    match problem.tests:
        case CallTests(asserts=asserts, setup=setup, float_tolerance=tolerance):
            found |= {"tests": list(asserts), "setup": setup, "float_tolerance": tolerance}
        case CheckTests(code=code, entry_point=entry_point):
            found |= {"test": code, "entry_point": entry_point}
        case StdioTests(cases=cases, float_tolerance=tolerance):
            found |= {"cases": [list(case) for case in cases], "float_tolerance": tolerance}
    return found


def _tests(row: Row, prefix: str) -> Tests:
    kinds = [name for name in _TESTS if row.has(name)]
    if len(kinds) != 1:
        found = ", ".join(kinds) or "none of them"
        raise BadRow(f"{row.where}: one of {_TESTS} must be given, not {found}")
    tolerance = _tolerance(row)
    match kinds[0]:
        case "cases":
            return StdioTests(_cases(row), tolerance)
        case "test":
            if tolerance:
                raise row.wrong("float_tolerance", "left out: test code compares by itself")
            entry_point = row.text("entry_point")
            if not entry_point.strip():
                raise row.wrong("entry_point", "the name of a function")
            code = human_eval.with_helpers(row.text("test"), prefix, entry_point)
            return CheckTests(code, entry_point)
        case name:
            asserts = row.texts(name)
            if not asserts:
                raise row.wrong(name, "a list of assert statements, not empty")
            setup = row.text("setup", row.text("test_setup_code", ""))
            return CallTests(asserts, setup, tolerance)


def _tolerance(row: Row) -> float:
    value = row.fields.get("float_tolerance") or 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e6:
        raise row.wrong("float_tolerance", "a number from 0 to a million")
    return float(value)


def _cases(row: Row) -> tuple[tuple[str, str], ...]:
    allowed = "a list of [standard input, expected output], not empty"
    value = row.value("cases", allowed)
    if not isinstance(value, list) or not value:
        raise row.wrong("cases", allowed)
    cases = []
    for case in value:
        match case:
            case [str(given), str(expected)]:
                cases.append((given, expected))
            case _:
                raise row.wrong("cases", allowed)
    return tuple(cases)
