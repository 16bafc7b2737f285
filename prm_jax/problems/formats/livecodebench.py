"""LiveCodeBench, code generation (Jain et al. 2024, arXiv 2403.07974): contest problems by date.

Fields: question_id, question_content, starter_code, difficulty, metadata (JSON: func_name),
public_test_cases and private_test_cases (JSON: input, output, testtype). The private cases are
mostly a pickled JSON text, packed by zlib and base64. A pickle may run any code when it is read,
so this one is read by a reader that accepts a text and nothing else.
"""

import base64
import binascii
import io
import pickle
import zlib
from typing import Any

from prm_jax.problems.formats import contest
from prm_jax.problems.rows import Row, loads
from prm_jax.types import Limits, Problem

STOP_STRINGS = contest.STOP_STRINGS
_LIMITS = Limits(cpu_s=6.0, memory_mib=1024)  # the published grader: 6 s a case, 4 GB
_TOLERANCE = 1e-9  # the published grader compares decimals by value, not by how they are written
_MAX_BYTES = 1 << 30  # of the cases of one problem, unpacked


def problem(row: Row) -> Problem | None:
    """A problem of LiveCodeBench with public and private cases; raises BadRow."""
    question, starter = row.text("question_content"), row.text("starter_code", "")
    cases = _cases(row, "public_test_cases", row.json("public_test_cases", "[]"))
    cases += _cases(row, "private_test_cases", _private(row))
    if not cases:
        return None
    metadata = row.json("metadata", "{}")
    name = metadata.get("func_name") if isinstance(metadata, dict) else None
    calls = any(kind == "functional" for _, _, kind in cases)
    if calls:
        target = contest.target(row, "metadata", name, in_class="class Solution" in starter)
        tests = contest.call_tests(target, [_call(row, g, e) for g, e, _ in cases])
    else:
        inputs, outputs = [g for g, _, _ in cases], [e for _, e, _ in cases]
        tests = contest.stdio_tests(row, "public_test_cases", inputs, outputs, _TOLERANCE)
    return Problem(
        task_id=row.name("question_id"),
        prompt=contest.prompt(question, starter, calls=calls),
        tests=tests,
        program_prefix=contest.FUNCTION_PREFIX if calls else "",
        instruction=contest.instruction(question, starter, calls=calls),
        difficulty=row.text("difficulty", ""),
        limits=_LIMITS,
    )


def split(row: Row) -> str:
    """All of LiveCodeBench is for testing."""
    return "test"


def unpickled_text(data: bytes) -> str:
    """The text that a pickle holds; raises UnpicklingError for one that holds anything else."""
    value = _TextReader(io.BytesIO(data)).load()
    if type(value) is not str:
        raise pickle.UnpicklingError(f"a {type(value).__name__} instead of a text")
    return value


class _TextReader(pickle.Unpickler):
    """Finds no class and no function, so that nothing can be made or called."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}")


def _private(row: Row) -> Any:
    """The private cases, as JSON or packed."""
    field = "private_test_cases"
    value = row.fields.get(field)
    if not isinstance(value, str) or value.lstrip()[:1] in ("", "["):
        return row.json(field, "[]") if value else []
    try:
        packed = zlib.decompressobj()
        data = packed.decompress(base64.b64decode(value, validate=True), _MAX_BYTES)
        if not packed.eof:
            raise ValueError(f"it is cut off, or unpacks to more than {_MAX_BYTES} bytes")
        return loads(unpickled_text(data))
    except (
        binascii.Error, zlib.error, pickle.UnpicklingError, ValueError, EOFError, LookupError,
        TypeError, AttributeError, RecursionError, MemoryError, OverflowError,
    ) as error:  # fmt: skip
        allowed = f"JSON, or its pickle packed by zlib and base64 ({error})"
        raise row.wrong(field, allowed) from error


def _cases(row: Row, field: str, cases: Any) -> list[tuple[str, str, str]]:
    """(input, output, testtype) of every case."""
    found = []
    for case in cases if isinstance(cases, list) else [cases]:
        match case:
            case {"input": str(given), "output": str(expected), **rest}:
                found.append((given, expected, str(rest.get("testtype", "stdin"))))
            case _:
                raise row.wrong(field, "a list of objects with texts input and output")
    return found


def _call(row: Row, given: str, expected: str) -> tuple[list[Any], list[Any]]:
    """Arguments, one a line, and the answers that count as right, from JSON."""
    try:
        arguments = [loads(line) for line in given.split("\n") if line.strip()]
        return arguments, contest.as_sequences(loads(expected))
    except (ValueError, RecursionError) as error:
        allowed = f"functional cases in JSON, an argument a line ({error})"
        raise row.wrong("public_test_cases", allowed) from error
