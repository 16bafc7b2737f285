"""Judge programs from a JSONL file: `python -m prm_jax.judge --programs programs.jsonl`.

Every line has a `program` and its tests, or the `task_id` of a problem that has them; a line with
the verdict comes out for each line that goes in, in the same order. docs/sandbox.md describes the
fields.
"""

import argparse
import collections
import dataclasses
import gzip
import json
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any

from prm_jax.config import ProblemsConfig
from prm_jax.sandbox import Sandbox, SandboxError, SandboxRefused
from prm_jax.sandbox.core import identifiers
from prm_jax.sandbox.core.tiers import TIERS
from prm_jax.sandbox.in_process import BadSuite, as_calls
from prm_jax.types import CallTests, CheckTests, Limits, StdioTests, Tests, Verdict

_MAX_LINE_BYTES = 64 << 20
_DATA_FOLDER = "runs/judge"  # where the built-in problems are prepared
_SHOW_EVERY = 50
_READ_HERE = ("jsonl", "human_eval", "mbpp")  # forms whose tests a line of programs may have too
_FORGEABLE = "judged in the program's own interpreter, where a program can forge this verdict"
_ALL_JUDGED, _SOME_NOT_JUDGED, _UNUSABLE = 0, 1, 2


class BadLine(ValueError):
    """A line that cannot be judged; says which field is at fault and what it must be."""


@dataclasses.dataclass(frozen=True)
class _Problem:
    """What programs of a problem are judged by; its own limits, where it has some."""

    tests: Tests
    limits: Limits | None = None


@dataclasses.dataclass
class _Line:
    """A line of the input: its id, and either work under way or why there is none."""

    number: int
    id: Any = None
    verdict: Future[Verdict] | None = None
    trouble: str = ""
    note: str = ""  # what the verdict does not say


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 if every line was judged, 1 if some could not be, 2 on unusable input."""
    options = _parser().parse_args(arguments)
    limits = Limits(cpu_s=options.cpu_s, memory_mib=options.memory_mib)
    try:
        problems = _read_problems(options.problems) if options.problems else {}
        programs = _open(options.programs)
    except (OSError, EOFError, zlib.error, BadLine) as error:
        print(f"judge: {error}", file=sys.stderr)
        return _UNUSABLE
    try:
        with programs, Sandbox(options.jobs, options.min_tier) as sandbox:
            with open(options.out, "w") if options.out else nullcontext(sys.stdout) as out:
                return _judge(programs, problems, limits, sandbox, out, options.in_process)
    except (SandboxRefused, OSError, EOFError, zlib.error) as error:
        print(f"judge: {error}", file=sys.stderr)
        return _UNUSABLE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m prm_jax.judge", description=__doc__)
    add = parser.add_argument
    add("--programs", required=True, metavar="FILE.jsonl", help="programs, one JSON object a line")
    add("--problems", metavar="NAME|FILE", help="problems, joined by task_id (docs/problems.md)")
    add("--out", metavar="FILE.jsonl", help="verdicts, one JSON object a line (standard output)")
    add("--jobs", type=_at_least_0, default=0, help="programs at once (0: the cores at hand)")
    add("--cpu-s", type=_above_0, default=Limits.cpu_s, help="CPU seconds of one program or case")
    add("--memory-mib", type=_at_least_1, default=Limits.memory_mib, help="MiB of data")
    add("--min-tier", choices=TIERS, default="T3", help="weakest isolation that is accepted")
    add("--in-process", action="store_true", help="judge `suite` lines too: verdicts can be forged")
    return parser


def _judge(
    programs: IO[bytes],
    problems: dict[str, _Problem],
    limits: Limits,
    sandbox: Sandbox,
    out: IO[str],
    in_process: bool,
) -> int:
    """Submit lines as they are read and write verdicts in their order."""
    pending: collections.deque[_Line] = collections.deque()
    done = failed = 0

    def write_first() -> None:
        nonlocal done, failed
        record = _record(pending.popleft(), sandbox.tier)
        out.write(json.dumps(record) + "\n")
        done += 1
        failed += record["status"] == "infrastructure"
        if sys.stderr.isatty() and done % _SHOW_EVERY == 0:
            print(f"\r{done} judged", end="", file=sys.stderr, flush=True)

    for number, line in _lines(programs):
        pending.append(_submit(number, line, problems, limits, sandbox, in_process))
        while pending and (pending[0].verdict is None or pending[0].verdict.done()):
            write_first()
    while pending:
        write_first()
    out.flush()
    if sys.stderr.isatty():
        print(f"\r{done} judged, {failed} could not be", file=sys.stderr)
    return _SOME_NOT_JUDGED if failed else _ALL_JUDGED


def _submit(
    number: int,
    line: bytes | None,
    problems: dict[str, _Problem],
    limits: Limits,
    sandbox: Sandbox,
    in_process: bool = False,
) -> _Line:
    item = _Line(number)
    try:
        row = _object(line)
        item.id = row.get("id", row.get("task_id", number))
        program = _text(row, "program")
        if "suite" in row:
            program, tests = _suite(program, _text(row, "suite"), in_process)
            item.note = _FORGEABLE
        else:
            tests = _tests(row, problems)
            item.note = _borrowed(tests)
            limits = _own_limits(row, problems) or limits
        item.verdict = sandbox.submit(program, tests, _limits(row, limits))
    except BadLine as error:
        item.trouble = f"line {number}: {error}"
    return item


def _record(line: _Line, tier: str) -> dict[str, Any]:
    record = {
        "id": line.id, "status": "infrastructure", "passed": False, "tests_passed": 0,
        "tests_total": 0, "cpu_s": 0.0, "wall_s": 0.0, "tier": tier, "message": line.trouble,
    }  # fmt: skip
    if line.verdict is not None:
        try:
            verdict = line.verdict.result()
            record |= dataclasses.asdict(verdict) | {"passed": verdict.passed}
            record["message"] = "; ".join(text for text in (line.note, verdict.message) if text)
        except SandboxError as error:
            record["message"] = f"line {line.number}: {error}"
    return record


# ------------------------------------------------------------------------------- lines to tests


def _tests(row: dict[str, Any], problems: dict[str, _Problem]) -> Tests:
    """The tests that a line carries, or those of its problem."""
    if not any(field in row for field in ("tests", "test_list", "test", "cases")):
        if "task_id" not in row:
            raise BadLine("no tests: give tests, test with entry_point, cases, or a task_id")
        problem = problems.get(str(row["task_id"]))
        if problem is None:
            raise BadLine(f"task_id = {row['task_id']!r} is none of the {len(problems)} problems")
        return problem.tests
    tolerance = _number(row, "float_tolerance", 0.0)
    if "cases" in row:
        cases = row["cases"]
        if not isinstance(cases, list) or not cases or not all(map(_is_case, cases)):
            raise BadLine("cases must be a list of [standard input, expected output], not empty")
        return StdioTests(tuple((given, expected) for given, expected in cases), tolerance)
    if "test" in row:
        return _check(_text(row, "test"), _text(row, "entry_point"), row)
    field = "tests" if "tests" in row else "test_list"
    asserts = row[field]
    if not isinstance(asserts, list) or not all(isinstance(a, str) for a in asserts) or not asserts:
        raise BadLine(f"{field} must be a list of assert statements, not empty")
    setup = next((_text(row, name) for name in ("setup", "test_setup_code") if name in row), "")
    return CallTests(tuple(asserts), setup, tolerance)


def _check(test: str, entry_point: str, row: dict[str, Any]) -> CheckTests:
    """Test code, with the functions that it calls of what comes before the program."""
    prefix = _text(row, "program_prefix") if row.get("program_prefix") else ""
    prefix = prefix or (_text(row, "prompt") if row.get("prompt") else "")
    if not prefix:
        return CheckTests(test, entry_point)
    # Loads TensorFlow Datasets: only when asked for.
    from prm_jax.problems.formats.human_eval import with_helpers

    return CheckTests(with_helpers(test, prefix, entry_point), entry_point)


def _suite(program: str, suite: str, in_process: bool) -> tuple[str, CallTests]:
    """A suite that runs beside the program, if that was asked for."""
    if not in_process:
        raise BadLine("suite runs in the program's interpreter and can be forged: --in-process")
    try:
        return as_calls(program, suite)
    except BadSuite as error:
        raise BadLine(f"suite: {error}") from error


def _borrowed(tests: Tests) -> str:
    """A warning, if test code calls functions that only the program defines."""
    if not isinstance(tests, CheckTests):
        return ""
    try:
        names = set(identifiers.free_names(tests.code)) - identifiers.sources(tests.code).keys()
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""  # the sandbox says what is wrong with them
    names -= {tests.entry_point}
    what = "the test uses {} of the program, which a program can replace: give the prompt"
    return what.format(", ".join(sorted(names))) if names else ""


def _own_limits(row: dict[str, Any], problems: dict[str, _Problem]) -> Limits | None:
    problem = problems.get(str(row.get("task_id")))
    return problem.limits if problem else None


def _limits(row: dict[str, Any], limits: Limits) -> Limits:
    cpu_s = _number(row, "cpu_s", limits.cpu_s)
    memory_mib = int(_number(row, "memory_mib", limits.memory_mib))
    if cpu_s <= 0 or memory_mib < 1:
        raise BadLine("cpu_s must be above 0 and memory_mib at least 1")
    return dataclasses.replace(limits, cpu_s=cpu_s, memory_mib=memory_mib)


def _object(line: bytes | None) -> dict[str, Any]:
    if line is None:
        raise BadLine(f"longer than {_MAX_LINE_BYTES} bytes")
    try:
        row = json.loads(line, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BadLine(f"not JSON: {str(error)[:100]}") from error
    if not isinstance(row, dict):
        raise BadLine("not a JSON object")
    return row


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _text(row: dict[str, Any], field: str) -> str:
    if not isinstance(row.get(field), str):
        raise BadLine(f"{field} is missing or not a string")
    return row[field]


def _number(row: dict[str, Any], field: str, default: float) -> float:
    value = row.get(field, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e6:
        raise BadLine(f"{field} must be a number from 0 to a million")
    return float(value)


def _is_case(case: Any) -> bool:
    return isinstance(case, list) and len(case) == 2 and all(isinstance(t, str) for t in case)


# ----------------------------------------------------------------------------------------- files


def _read_problems(name: str) -> dict[str, _Problem]:
    """Tests by task_id, of a file or of a set that the project knows by name.

    A file need not hold whole problems: rows of task_id and tests are enough.
    """
    # These load TensorFlow Datasets: only when asked for.
    from prm_jax.problems import (
        BUILT_IN,
        ProblemsError,
        data_folder,
        load_problems,
        read_problems,
    )

    if name in BUILT_IN:
        folder = data_folder(name, Path(_DATA_FOLDER))
        sets = load_problems(ProblemsConfig(name=name), folder, Limits())
        found = [*sets.train, *sets.validation, *(p for ps in sets.held_out.values() for p in ps)]
        return {problem.task_id: _Problem(problem.tests) for problem in found}
    if Path(name).is_file() and not _is_published(Path(name)):
        return _read_tests(name)
    try:
        splits = read_problems(name, Path(_DATA_FOLDER)).splits.values()
    except ProblemsError as error:
        raise BadLine(str(error)) from error
    return {
        problem.task_id: _Problem(
            problem.tests, problem.limits if problem.limits != Limits() else None
        )
        for problems in splits
        for problem in problems
    }


def _is_published(path: Path) -> bool:
    """Whether a file is in a form whose rows are not what `_tests` reads."""
    from prm_jax.problems import ProblemsError, formats, rows

    if path.name.endswith((".json", ".json.gz")):
        return True  # one array of whole problems
    try:
        first = next(rows.read_rows((path,)), None)
        return first is not None and formats.recognised(first).name not in _READ_HERE
    except ProblemsError:
        return False


def _read_tests(name: str) -> dict[str, _Problem]:
    problems = {}
    with _open(name) as file:
        for number, line in _lines(file):
            try:
                row = _object(line)
                limits = _limits(row, Limits()) if {"cpu_s", "memory_mib"} & row.keys() else None
                problems[str(row["task_id"])] = _Problem(_tests(row, {}), limits)
            except KeyError:
                raise BadLine(f"{name}, line {number}: task_id is missing") from None
            except BadLine as error:
                raise BadLine(f"{name}, line {number}: {error}") from error
    return problems


def _open(name: str) -> IO[bytes]:
    if name.endswith(".gz"):
        return gzip.open(name)  # type: ignore[return-value]
    return open(name, "rb")


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """(number, line) of every line; None for one that is too long."""
    number = 0
    while line := file.readline(_MAX_LINE_BYTES):
        number += 1
        whole = line.endswith(b"\n") or len(line) < _MAX_LINE_BYTES
        while not whole:
            rest = file.readline(_MAX_LINE_BYTES)
            whole = rest.endswith(b"\n") or not rest
            line = None
        yield number, line


def _at_least_0(text: str) -> int:
    return _checked(int(text), 0)


def _at_least_1(text: str) -> int:
    return _checked(int(text), 1)


def _checked(value: int, least: int) -> int:
    if value < least:
        raise argparse.ArgumentTypeError(f"{value} is not allowed: it must be at least {least}")
    return value


def _above_0(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is not allowed: it must be above 0")
    return value


if __name__ == "__main__":
    sys.exit(main())
