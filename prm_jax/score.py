"""A PRM's score of every line of anyone's programs, as JSON Lines and as a coloured page.

    python -m prm_jax.score --model runs/tiny --programs FILE.jsonl --problems chains
    python -m prm_jax.score --model DIR --programs samples.jsonl --problems human_eval

docs/tools.md has the schemas. Nothing is executed.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

from prm_jax.config import ConfigError
from prm_jax.metrics import MetricsLog, say
from prm_jax.process import settle_process
from prm_jax.report import write_programs
from prm_jax.rl.lines import step_ends
from prm_jax.stages.chosen import ModelChoice, choose_config, open_run, open_scalar, read_split
from prm_jax.stages.prm import THRESHOLD, step_scores
from prm_jax.stages.programs import line_rows, read_programs
from prm_jax.stages.run import write_json_lines
from prm_jax.types import Limits


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Scores every line of programs with a PRM: near +1 it can still become right, near -1 not."""

    choice: Annotated[ModelChoice, tyro.conf.arg(name="")]
    programs: Path
    """Programs, one JSON object a line (docs/tools.md)."""
    problems: str = ""
    """Where each program's task_id is looked up: chains (of the run), human_eval, NAME:PATH or a
    file. Empty: every line has its own prompt."""
    out: Path = Path("runs/score")
    """Gets scores.jsonl and scores.html."""


def score(arguments: Arguments) -> list[dict[str, Any]]:
    """Rows of scores.jsonl, in the order of the programs."""
    config = choose_config(arguments.choice)
    sets = read_split(arguments.choice, config, arguments.problems, "", arguments.out, Limits())
    problems = {p.task_id: p for split in sets.held_out.values() for p in split}
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(MetricsLog(arguments.out))
        run = open_run(arguments.choice, config, sets, None, log)
        programs = read_programs(arguments.programs, problems, run, tests=False)
        stack.enter_context(jax.set_mesh(run.mesh))
        params, name = open_scalar(run, arguments.choice)
        say(f"{name}: {len(programs)} programs")
        lines = [run.lines(program.ids) for program in programs]
        ends = [step_ends(line)[0] for line in lines]
        scores = step_scores(
            run,
            params,
            [program.problem for program in programs],
            [(program.ids, end) for program, end in zip(programs, ends, strict=True)],
        )
    rows = []
    for program, line, found in zip(programs, lines, scores, strict=True):
        values = [float(value) for value in found]
        rows.append(
            {
                "id": program.id,
                "task_id": program.problem.task_id,
                "last": values[-1] if values else None,
                "mean": sum(values) / len(values) if values else None,
                "min": min(values, default=None),
                "first_error": next((i for i, v in enumerate(values) if v < THRESHOLD), None),
                "lines": line_rows(line, "score", values),
            }
        )
    write_json_lines(arguments.out / "scores.jsonl", rows)
    write_programs(
        arguments.out / "scores.html",
        title=f"Scores of {name}",
        programs=[
            row | {"prompt": run.prompts.text(p.problem)}
            for row, p in zip(rows, programs, strict=True)
        ],
        threshold=THRESHOLD,
    )
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    settle_process()
    arguments = tyro.cli(Arguments, args=argv, prog="python -m prm_jax.score")
    try:
        score(arguments)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    say(f"scores: {arguments.out / 'scores.jsonl'}; open {arguments.out / 'scores.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
