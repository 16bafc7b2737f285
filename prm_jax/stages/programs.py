"""Programs that a person brings as JSON Lines, as responses to problems, for `label` and `score`.

A line has the `task_id` of a problem (or, where no tests are needed, a `prompt`) and one of
`response` (the text as a model wrote it), `program` (a whole program) or `completion` (what follows
the problem's own beginning of the program, as `samples.jsonl` has it).
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prm_jax.config import ConfigError
from prm_jax.rl.lines import Lines, step_ends
from prm_jax.stages.run import Run
from prm_jax.types import CallTests, LineKind, Problem


@dataclasses.dataclass(frozen=True)
class Program:
    """One program of the file, as the tokens of a response."""

    id: Any
    problem: Problem
    ids: tuple[int, ...]


def read_programs(
    path: Path, problems: Mapping[str, Problem], run: Run, *, tests: bool
) -> list[Program]:
    """The programs of a file; `tests` says whether each must belong to a known problem.

    Raises ConfigError that names the file, the line, the field and the mend.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"programs = {str(path)!r} cannot be read: {error}") from error
    programs = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{path}, line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ConfigError(f"{path}, line {number} must be an object, not {line[:40]!r}")
        try:
            problem = _problem(row, problems, tests)
            ids = _ids(row, problem, run)
        except ConfigError as error:
            raise ConfigError(f"{path}, line {number}: {error}") from error
        programs.append(Program(row.get("id", row.get("task_id", number)), problem, ids))
    if not programs:
        raise ConfigError(f"programs = {str(path)!r} is empty: it must hold a program a line")
    return programs


def _problem(row: dict[str, Any], problems: Mapping[str, Problem], tests: bool) -> Problem:
    if "task_id" in row and str(row["task_id"]) in problems:
        return problems[str(row["task_id"])]
    if not tests and "prompt" in row:
        prompt = _text(row, "prompt")
        return Problem(str(row.get("task_id", "")), prompt, CallTests(()), instruction=prompt)
    if "task_id" in row:
        raise ConfigError(f"task_id = {row['task_id']!r} is not among the {len(problems)} problems")
    wanted = "task_id" if tests else "task_id or prompt"
    raise ConfigError(f"{wanted} is missing: it says which problem the program answers")


def _ids(row: dict[str, Any], problem: Problem, run: Run) -> tuple[int, ...]:
    if "response" in row:
        response = _text(row, "response")
    elif "program" in row:
        response = run.prompts.response(problem, _text(row, "program"))
    elif "completion" in row:
        program = problem.program(_text(row, "completion"))
        response = run.prompts.response(problem, program)
    else:
        raise ConfigError("response, program and completion are missing: give one of them")
    ids = (*run.tokenizer.encode(response), run.tokenizer.eos_id)
    if len(ids) > run.config.max_completion_tokens:
        raise ConfigError(
            f"max_completion_tokens = {run.config.max_completion_tokens} is not allowed: this "
            f"program needs {len(ids)}"
        )
    return ids


def _text(row: dict[str, Any], field: str) -> str:
    if not isinstance(row[field], str):
        raise ConfigError(f"{field} = {row[field]!r} must be a string")
    return row[field]


def line_rows(lines: Lines, name: str, values: Sequence[Any]) -> list[dict[str, Any]]:
    """Every line as text and kind, and under `name` the value of the step that ends with it.

    Lines that end no step of their own (blank ones, and lines that share their last token with the
    next) have None.
    """
    end_token, _ = step_ends(lines)
    last = np.searchsorted(lines.end_token, end_token, side="right") - 1
    of_line = dict(zip(last.tolist(), values, strict=True))
    return [
        {
            "text": text.decode("utf-8", errors="replace").rstrip("\n"),
            "kind": LineKind(kind).name.lower(),
            name: of_line.get(number),
        }
        for number, (text, kind) in enumerate(zip(lines.text, lines.kind, strict=True))
    ]
