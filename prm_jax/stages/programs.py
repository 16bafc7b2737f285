"""Programs that a person brings as JSON Lines, as responses to problems, for `label` and `score`.

A line has the `task_id` of a problem (or, where no tests are needed, a `prompt`) and one of
`response` (the text as a model wrote it), `program` (a whole program) or `completion` (what follows
the problem's own beginning of the program, as `samples.jsonl` has it).
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

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
    programs: list[Program] = []
    numbers = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}, line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ConfigError(f"{path}, line {number} must be an object, not {line[:40]!r}")
        try:
            problem = _problem(row, problems, tests)
            ids = _ids(row, problem, run)
        except ConfigError as error:
            raise ConfigError(f"{path}, line {number}: {error}") from error
        programs.append(Program(row.get("id", row.get("task_id", number)), problem, ids))
        numbers.append(number)
    if not programs:
        raise ConfigError(f"programs = {str(path)!r} is empty: it must hold a program a line")
    prompts = [len(run.prompt_ids(p.problem)) for p in programs]
    responses = [len(p.ids) for p in programs]
    for field, tokens in (("max_prompt_tokens", prompts), ("max_completion_tokens", responses)):
        limit = getattr(run.config, field)
        long = [n for n, t in zip(numbers, tokens, strict=True) if t > limit]
        if long:
            raise ConfigError(
                f"{path}, line {long[0]}: {field} = {limit} is not allowed: {len(long)} of the "
                f"programs need more; give --{field.replace('_', '-')} {max(tokens)}"
            )
    # Where there are tests, prefixes of the program are completed, up to max_completion_tokens.
    completed = [run.config.max_completion_tokens] * len(programs) if tests else responses
    total = [p + c for p, c in zip(prompts, completed, strict=True)]
    room = run.config.model.max_positions
    if 0 < room < max(total):
        long = [n for n, t in zip(numbers, total, strict=True) if t > room]
        left = room - max(prompts)
        mend = "leave them out"
        if tests and left >= max(responses):
            mend = f"give --max-completion-tokens {left}"
        raise ConfigError(
            f"{path}, line {long[0]}: model.max_positions = {room} is too few for {len(long)} of "
            f"the programs, which need up to {max(total)} tokens with their prompts; {mend}"
        )
    return programs


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no value of JSON")


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
    """The response in tokens, with an EOS where one fits."""
    style, plan = run.config.prompts.style, run.config.prompts.plan
    # A response says what it means only in the style that it was asked for in.
    same = row.get("style", style) == style and row.get("plan", plan) == plan
    if "response" in row and same:
        field, program = "response", None
        response = _text(row, "response")
    elif "program" in row:
        field, program = "program", _text(row, "program")
        response = run.prompts.response(problem, program)
    elif "completion" in row:
        field, program = "completion", _text(row, "completion")
        if "completion" in (style, row.get("style", "completion")):
            program = problem.program(program)  # in chat styles the code writes it all again
        response = run.prompts.response(problem, program)
    elif "response" in row:
        raise ConfigError(
            f"style = {row.get('style', style)!r} with plan = {row.get('plan', plan)} is not "
            f"allowed: prompts are in style {style!r} with plan = {plan}, in which the response is "
            f"read as something else; give --style {row.get('style', style)}, or program"
        )
    else:
        raise ConfigError("response, program and completion are missing: give one of them")
    try:
        response.encode()
    except UnicodeEncodeError as error:  # half a character, which JSON can hold
        raise ConfigError(f"{field} is no text: {error}") from error
    ids = tuple(run.tokenizer.encode(response))
    spelled = run.tokenizer.decode(ids)
    if spelled != response:
        at = next(i for i, (a, b) in enumerate(zip(response + "\0", spelled + "\1", strict=False))
                  if a != b)  # fmt: skip
        raise ConfigError(
            f"{field} has {response[at : at + 20]!r}, which the model's tokenizer cannot spell: it "
            "is a special token, or no text that it keeps"
        )
    if (
        program is not None
        and style == "completion"
        and not program.startswith(problem.program_prefix)
    ):
        raise ConfigError(
            f"{field} does not begin with the problem's program_prefix, which a completion "
            f"follows: {problem.program_prefix!r}; give what follows it as completion"
        )
    if program is not None and run.prompts.code(response.encode()) != _code(run, problem, program):
        raise ConfigError(
            f"{field} would be cut off: it holds one of {run.prompts.stops}, which end a response "
            f"in style {style!r}; give another --style, or the text as response"
        )
    fits = len(ids) < run.config.max_completion_tokens
    return (*ids, run.tokenizer.eos_id) if fits else ids


def _code(run: Run, problem: Problem, program: str) -> str:
    """What the code of a response that stands for `program` must be."""
    if run.config.prompts.style == "completion":
        return run.prompts.response(problem, program)
    return program if not program or program.endswith("\n") else program + "\n"


def _text(row: dict[str, Any], field: str) -> str:
    if not isinstance(row[field], str):
        raise ConfigError(f"{field} = {row[field]!r} must be a string")
    return row[field]


def line_rows(lines: Lines, name: str, values: Sequence[Any]) -> list[dict[str, Any]]:
    """Every line as text and kind, and under `name` the value of the step that ends with it.

    Lines that end no step of their own (blank ones, and lines that share their last token with the
    next one that is not blank) have None.
    """
    end_token, _ = step_ends(lines)
    said = np.flatnonzero(lines.kind != LineKind.BLANK)
    last = said[np.searchsorted(lines.end_token[said], end_token, side="right") - 1]
    of_line = dict(zip(last.tolist(), values, strict=True))
    return [
        {
            "text": text.decode("utf-8", errors="replace").rstrip("\n"),
            "kind": LineKind(kind).name.lower(),
            name: of_line.get(number),
        }
        for number, (text, kind) in enumerate(zip(lines.text, lines.kind, strict=True))
    ]
