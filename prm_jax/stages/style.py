"""How style moves the PRM: right programs, and the same programs written in another style.

A score that falls for added comments, or rises for a try block around everything, is one that a
policy can be misled by. Reference solutions of validation problems are rewritten; what no longer
passes its tests is left out.
"""

import ast
import dataclasses
import io
import re
import tokenize
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from prm_jax.rl.lines import step_ends
from prm_jax.stages.attempts import Judge, Memo, Start
from prm_jax.stages.run import Run
from prm_jax.types import LineKind, Problem

PROBLEMS = 64  # at most
COMMENT, DEAD = "# as asked", "unused = 0"
TRY, EXCEPT, RAISE = "try:", "except Exception:", "raise"
_ADDED = {COMMENT, DEAD, TRY, EXCEPT, RAISE}
_INDENT = re.compile(r"[ \t]*")


def commented(problem: Problem) -> str:
    """The solution with a comment before each line."""
    return _before_each_line(problem, COMMENT)


def with_dead_code(problem: Problem) -> str:
    """The solution with an assignment that nobody reads before each line."""
    return _before_each_line(problem, DEAD)


def wrapped(problem: Problem) -> str:
    """The solution inside a try block that raises again whatever it catches."""
    lines = problem.solution.rstrip("\n").split("\n")
    indent = _indent(next(line for line in lines if line.strip()))
    inner = [line and f"    {line}" for line in lines]
    ends = [f"{indent}{EXCEPT}", f"{indent}    {RAISE}"]
    return "\n".join([f"{indent}{TRY}", *inner, *ends])


def renamed(problem: Problem) -> str:
    """The solution with other names for its variables; as it is, if they cannot be told."""
    prefix, program = problem.program_prefix, problem.program(problem.solution)
    try:
        tree = ast.parse(program)
        tokens = list(tokenize.generate_tokens(io.StringIO(program).readline))
    except (SyntaxError, ValueError, MemoryError, RecursionError, tokenize.TokenError):
        return problem.solution
    nodes = list(ast.walk(tree))
    own = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    own -= {n.arg for n in nodes if isinstance(n, ast.arg)}
    starts = np.cumsum([0, *(len(line) for line in program.splitlines(keepends=True))])
    text = list(program)
    for token in tokens:
        if token.type == tokenize.NAME and token.string in own:
            at = int(starts[token.start[0] - 1]) + token.start[1]
            rest = [""] * (len(token.string) - 1)  # so that places stay what they are
            text[at : at + len(token.string)] = [f"{token.string}_", *rest]
    return "".join(text[len(prefix) :])


REWRITES: tuple[Callable[[Problem], str], ...] = (commented, with_dead_code, renamed, wrapped)


def style_probes(run: Run, score: Callable[..., list[np.ndarray]], threshold: float) -> dict:
    """What the PRM says of right programs, as they are written and in each other style.

    `score(problems, responses)` gives the scores of the steps of (ids, end_token) responses. For
    each style: `n` programs that still pass; the share `accused`, with a step below `threshold`,
    comments left out; `mean_score` of the lines that were there before, and by how much it differs
    from that of the same programs as they were written (`mean_change`).
    """
    # A style may make a solution longer than a response; one that is longer by itself would make
    # all rows as wide.
    room = run.config.max_completion_tokens
    problems = [
        p
        for p in run.problems.validation
        if p.solution.strip() and len(_response(run, p, p.solution)) <= room
    ][:PROBLEMS]
    found: dict[str, Any] = {}
    written: list[float] = []
    for rewrite in (None, *REWRITES):
        texts = [p.solution if rewrite is None else rewrite(p) for p in problems]
        responses = [_response(run, p, text) for p, text in zip(problems, texts, strict=True)]
        passes = _passes(run, problems, responses)
        rows = _scored(run, score, problems, responses)
        means = [scores[~added].mean() if (~added).any() else np.nan for scores, added in rows]
        written = written or means
        kept = [i for i, passed in enumerate(passes) if passed and not np.isnan(means[i])]
        found["as_written" if rewrite is None else rewrite.__name__] = {
            "n": len(kept),
            "accused": _mean([bool((rows[i][0] < threshold).any()) for i in kept]),
            "mean_score": _mean([means[i] for i in kept]),
            "mean_change": _mean([means[i] - written[i] for i in kept]),
        }
    return found


def _response(run: Run, problem: Problem, text: str) -> tuple[int, ...]:
    """The response whose code is `text`, as SFT would imitate it."""
    response = run.prompts.solution(dataclasses.replace(problem, solution=text))
    return (*run.tokenizer.encode(response), run.tokenizer.eos_id)


def _scored(
    run: Run,
    score: Callable[..., list[np.ndarray]],
    problems: Sequence[Problem],
    texts: Sequence[tuple[int, ...]],
) -> list[tuple[np.ndarray, np.ndarray]]:
    """`(score, whether the rewrite added it)` of each step of code."""
    responses, added, code = [], [], []
    for ids in texts:
        lines = run.lines(ids)
        ends, kinds = step_ends(lines)
        by_token = {
            int(token): line.decode("utf-8", errors="replace").strip() in _ADDED
            for token, line, kind in zip(lines.end_token, lines.text, lines.kind, strict=True)
            if kind != LineKind.BLANK
        }
        responses.append((ids, ends))
        code.append(kinds == LineKind.CODE)
        added.append(np.array([by_token[int(token)] for token in ends], bool))
    scores = score(list(problems), responses) if responses else []
    return [(s[c], a[c]) for s, c, a in zip(scores, code, added, strict=True)]


def _passes(
    run: Run, problems: Sequence[Problem], responses: Sequence[tuple[int, ...]]
) -> list[bool]:
    judge = Judge(run, Memo())
    judging = [
        judge.submit(Start(problem), ids) for problem, ids in zip(problems, responses, strict=True)
    ]
    return [judge.result(one).passed for one in judging]


def _before_each_line(problem: Problem, text: str) -> str:
    lines = []
    for line in problem.solution.split("\n"):
        if line.strip():
            lines.append(_indent(line) + text)
        lines.append(line)
    return "\n".join(lines)


def _indent(line: str) -> str:
    found = _INDENT.match(line)
    assert found is not None
    return found[0]


def _mean(values: Sequence[float] | np.ndarray) -> float | None:
    return float(np.mean(values)) if len(values) else None
