"""A PRM's score of every line of anyone's programs, as JSON Lines and as a coloured page.

    python -m prm_jax.score --model runs/tiny --programs FILE.jsonl --problems chains
    python -m prm_jax.score --model DIR --programs samples.jsonl --problems human_eval

docs/tools.md has the schemas. Nothing is executed.
"""

import contextlib
import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import tyro

from prm_jax.config import ConfigError
from prm_jax.metrics import MetricsLog, say
from prm_jax.process import settle_process
from prm_jax.report import write_programs
from prm_jax.rl.lines import Lines, step_ends
from prm_jax.sharding import ShardingError
from prm_jax.stages.chosen import (
    ModelChoice,
    choose_config,
    find_scalar,
    name_of,
    open_run,
    out_folder,
    read_scalar,
    read_split,
)
from prm_jax.stages.prm import step_scores, threshold_of
from prm_jax.stages.programs import Program, line_rows, read_programs
from prm_jax.stages.run import write_json_lines


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(ModelChoice):
    """Scores every line of programs with a PRM: near +1 it can still become right, near -1 not."""

    programs: Path
    """Programs, one JSON object a line (docs/tools.md)."""
    problems: str = ""
    """Where each program's task_id is looked up: chains (of the run), human_eval, NAME:PATH or a
    file. Empty: every line has its own prompt."""
    threshold: float | None = None
    """The first line that scores below it is named as the first error. The default is 0, halfway
    between the labels; for the PRM of a run that learned rates or counts halfway between no pass
    and one of K completions."""
    out: Path | None = None
    """Gets scores.jsonl and scores.html; the default is runs/score/MODEL-PROGRAMS-DIGEST, the
    digest over all of these settings."""


def score(arguments: Arguments) -> tuple[list[dict[str, Any]], Path]:
    """Rows of scores.jsonl, in the order of the programs, and its folder."""
    config = choose_config(arguments)
    out = out_folder(arguments.out, "score", arguments, str(arguments.programs), ())
    sets = read_split(arguments, config, arguments.problems, "", out)
    problems = {p.task_id: p for split in sets.held_out.values() for p in split}
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(MetricsLog(stack.enter_context(tempfile.TemporaryDirectory())))
        run = open_run(arguments, config, sets, None, log)
        programs = read_programs(arguments.programs, problems, run, tests=False)
        found = find_scalar(run, arguments)
        stack.enter_context(jax.set_mesh(run.mesh))
        params, name = read_scalar(run, found), name_of(arguments, found)
        say(f"{name}: {len(programs)} programs")
        lines = [run.lines(program.ids) for program in programs]
        ends = [step_ends(line)[0] for line in lines]
        scores = step_scores(
            run,
            params,
            [program.problem for program in programs],
            [(program.ids, end) for program, end in zip(programs, ends, strict=True)],
        )
    threshold = threshold_of(run) if arguments.threshold is None else arguments.threshold
    rows = [
        score_row(program, line, [float(value) for value in values], threshold)
        for program, line, values in zip(programs, lines, scores, strict=True)
    ]
    write_json_lines(out / "scores.jsonl", rows)
    write_programs(
        out / "scores.html",
        title=f"Scores of {name}",
        programs=[
            row | {"prompt": run.prompts.text(p.problem)}
            for row, p in zip(rows, programs, strict=True)
        ],
        threshold=threshold,
    )
    return rows, out


def score_row(
    program: Program, lines: Lines, values: Sequence[float], threshold: float
) -> dict[str, Any]:
    """A line of scores.jsonl."""
    rows = line_rows(lines, "score", values)
    wrong = [
        i
        for i, row in enumerate(rows)
        if row["kind"] in ("code", "plan") and row["score"] is not None
        if row["score"] < threshold
    ]
    return {
        "id": program.id,
        "task_id": program.problem.task_id,
        "last": values[-1] if values else None,
        "mean": sum(values) / len(values) if values else None,
        "min": min(values, default=None),
        "first_error": wrong[0] if wrong else None,
        "lines": rows,
    }


def main(argv: Sequence[str] | None = None) -> int:
    settle_process()
    arguments = tyro.cli(
        Arguments, args=argv, prog="python -m prm_jax.score", config=(tyro.conf.OmitArgPrefixes,)
    )
    try:
        _, out = score(arguments)
    except (ConfigError, ShardingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    say(f"scores: {out / 'scores.jsonl'}; open {out / 'scores.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
