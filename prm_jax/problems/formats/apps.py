"""APPS (Hendrycks et al. 2021, arXiv 2105.09938) and TACO (Li et al. 2023, arXiv 2312.14852).

Fields: question, input_output (JSON: inputs, outputs, fn_name), starter_code, solutions (JSON),
difficulty; APPS has problem_id or id, TACO time_limit and memory_limit. Rows with fn_name are
calls, the others standard input. Rows without tests were published too: they are no problems.
"""

import re
from pathlib import Path
from typing import Any

from prm_jax.problems.formats import contest, words
from prm_jax.problems.rows import Row
from prm_jax.types import CallTests, Limits, Problem

STOP_STRINGS = contest.STOP_STRINGS
_LIMITS = Limits(cpu_s=4.0, memory_mib=1024)  # the published grader: 4 s a case, no memory limit
_TOLERANCE = 1e-5  # numpy.allclose in the published grader
_SECONDS = re.compile(r"(\d+(?:\.\d+)?)\s*sec")
_MEGABYTES = re.compile(r"(\d+(?:\.\d+)?)\s*megabyte")
_CLASS = "class Solution"  # LeetCode's
_EMPTY = ("", "{}", "[]")


def problem(row: Row) -> Problem | None:
    """A problem of APPS or TACO, None if it has no tests; raises BadRow."""
    question, starter = row.text("question"), row.text("starter_code", "")
    if row.fields.get("input_output") in (None, *_EMPTY):
        return None
    cases = row.json("input_output")
    inputs, outputs = _cases(row, cases)
    if not inputs:
        return None
    solutions = _solutions(row)
    name = cases.get("fn_name")
    if name:
        in_class = any(_CLASS in text for text in ([starter] if starter.strip() else solutions))
        tests = _call_tests(row, contest.target(row, "input_output", name, in_class), cases)
        solution = contest.reference((s for s in solutions if (_CLASS in s) == in_class), str(name))
        starter = starter.strip() or _head(str(name), in_class)
    else:
        tests = contest.stdio_tests(row, "input_output", inputs, outputs, _TOLERANCE)
        solution = contest.reference(solutions)
    calls = bool(name)
    return Problem(
        task_id=_task_id(row),
        prompt=contest.prompt(question, starter, calls=calls),
        tests=tests,
        solution=solution,
        program_prefix=contest.FUNCTION_PREFIX if calls else "",
        instruction=contest.instruction(question, starter, calls=calls),
        horizon=words.horizon(solution),
        difficulty=row.text("difficulty", ""),
        limits=_limits(row),
    )


def split(row: Row) -> str:
    """What the file's name says, as published: train or test."""
    return row.split or "test"


def _head(name: str, in_class: bool) -> str:
    """How a solution begins, where the row does not say it."""
    return f"{_CLASS}:\n    def {name}(self, ...):" if in_class else f"def {name}(...):"


def _task_id(row: Row) -> str:
    if row.has("problem_id") or row.has("id"):
        return f"apps/{split(row)}/{row.name('problem_id', 'id')}"
    return f"taco/{Path(row.file).name.split('.')[0]}/{row.number - 1}"


def _cases(row: Row, cases: Any) -> tuple[list[Any], list[Any]]:
    match cases:
        case {"inputs": list(inputs), "outputs": list(outputs)} if len(inputs) == len(outputs):
            return inputs, outputs
    raise row.wrong("input_output", "an object with lists inputs and outputs of equal length")


def _call_tests(row: Row, target: str, cases: dict[str, Any]) -> CallTests:
    """Equal as the published grader has it, with lists and tuples taken for each other.

    An output may be the answer, or a list that holds nothing but the answer.
    """
    calls = []
    for arguments, output in zip(cases["inputs"], cases["outputs"], strict=True):
        if not isinstance(arguments, list):
            raise row.wrong("input_output", f"calls with lists of arguments, not {arguments!r:.60}")
        answers = []
        wrapped = isinstance(output, list) and len(output) == 1
        for answer in [output, *(output if wrapped else ())]:
            answers += contest.as_sequences(_with_int_keys(answer))
            if isinstance(answer, list) and answer and all(isinstance(x, list) for x in answer):
                inner = [tuple(x) for x in answer]
                answers += contest.as_sequences(inner)
        calls.append(([_with_int_keys(x) for x in arguments], answers))
    return contest.call_tests(target, calls)


def _with_int_keys(value: Any) -> Any:
    """JSON has made texts of the integers that were keys."""
    if isinstance(value, dict) and value and all(re.fullmatch(r"-?\d+", key) for key in value):
        return {int(key): item for key, item in value.items()}
    return value


def _solutions(row: Row) -> list[str]:
    if row.fields.get("solutions") in (None, *_EMPTY):
        return []
    solutions = row.json("solutions")
    if not isinstance(solutions, list) or not all(isinstance(s, str) for s in solutions):
        raise row.wrong("solutions", "a JSON list of programs")
    return solutions


def _limits(row: Row) -> Limits:
    """TACO's own limits where it has them, in words: "2.0 seconds", "256.0 megabytes"."""
    seconds = _SECONDS.search(row.text("time_limit", ""))
    megabytes = _MEGABYTES.search(row.text("memory_limit", ""))
    return Limits(
        cpu_s=(float(seconds[1]) if seconds else 0.0) or _LIMITS.cpu_s,
        memory_mib=(round(float(megabytes[1])) if megabytes else 0) or _LIMITS.memory_mib,
    )
