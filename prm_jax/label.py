"""Line labels by execution for anyone's programs, with any model to complete them.

    python -m prm_jax.label --model runs/tiny --programs FILE.jsonl --problems chains
    python -m prm_jax.label --model DIR --programs samples.jsonl --problems human_eval --k 20

Each program is judged; in each that fails, the first line that no completion can save is searched
(paper, section 3.1). docs/tools.md has the schemas. The same command again goes on where it
stopped.
"""

import contextlib
import dataclasses
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import tyro

from prm_jax.config import ConfigError, LabelConfig
from prm_jax.metrics import MetricsLog, Progress, say
from prm_jax.process import settle_process, verdicts_file
from prm_jax.rl.labels import response_class
from prm_jax.sandbox import Sandbox, SandboxError, SandboxRefused
from prm_jax.sharding import ShardingError
from prm_jax.stages.attempts import Attempt, Memo
from prm_jax.stages.chosen import (
    Judging,
    ModelChoice,
    choose_config,
    find_policy,
    fingerprint,
    journal_name,
    name_of,
    open_run,
    out_folder,
    read_policy,
    read_split,
)
from prm_jax.stages.journal import Journal
from prm_jax.stages.programs import Program, line_rows, read_programs
from prm_jax.stages.run import Run, write_json_lines
from prm_jax.stages.search import Response, Searcher, make_response
from prm_jax.types import Verdict


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(ModelChoice):
    """Labels the lines of programs: +1 while a completion of the lines so far passes, -1 after.

    Comments have label 0, blank lines none. `passes` of `samples` completions passed at the
    prefixes that were probed.
    """

    programs: Path
    """Programs, one JSON object a line (docs/tools.md)."""
    problems: str
    """Where each program's task_id is looked up: chains (of the run), human_eval, NAME:PATH or a
    file."""
    k: int = 8
    """K: completions per probed prefix; the paper has 20."""
    wave: int = 2
    """Completions sampled at a time: a prefix is settled by the first wave with a pass."""
    settle: float = 0.0
    """Give a prefix up before its K-th completion once the chance that one of the rest passes is
    below this; 0: always K."""
    temperature: float = 1.0
    """Of the completions."""
    search: Literal["cheapest", "binary", "dense"] = "cheapest"
    """Probe at the least expected cost, by binary search (paper), or every prefix."""
    out: Path | None = None
    """Gets labels.jsonl, and what a killed call goes on from; the default is
    runs/label/MODEL-PROGRAMS-DIGEST, the digest over all that decides the labels."""
    seed: int = 0
    """Of the completions."""
    judging: Judging = Judging()


def label(arguments: Arguments) -> tuple[list[dict[str, Any]], Path]:
    """Rows of labels.jsonl, in the order of the programs, and its folder."""
    if arguments.k < 1 or arguments.wave < 1:
        raise ConfigError(
            f"k = {arguments.k} with wave = {arguments.wave} is not allowed: both must be above 0"
        )
    wave = min(arguments.wave, arguments.k)
    if arguments.k % wave:
        raise ConfigError(
            f"k = {arguments.k} is not allowed with wave = {wave}: it must be a multiple of it"
        )
    settings = LabelConfig(
        samples_per_prefix=arguments.k,
        wave=wave,
        settle=arguments.settle,
        temperature=arguments.temperature,
        search=arguments.search,
    )
    config = dataclasses.replace(
        choose_config(arguments, arguments.judging), seed=arguments.seed, label=settings
    )
    out = out_folder(arguments.out, "label", arguments, str(arguments.programs), ())
    sets = read_split(arguments, config, arguments.problems, "", out)
    problems = {p.task_id: p for split in sets.held_out.values() for p in split}
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(MetricsLog(stack.enter_context(tempfile.TemporaryDirectory())))
        run = open_run(arguments, config, sets, None, log)
        programs = read_programs(arguments.programs, problems, run, tests=True)
        found = find_policy(run, arguments)
        sandbox = stack.enter_context(
            Sandbox(config.sandbox.jobs, config.sandbox.min_tier, memo=verdicts_file())
        )
        run = dataclasses.replace(run, sandbox=sandbox)
        stack.enter_context(jax.set_mesh(run.mesh))
        params = read_policy(run, found)
        say(f"{name_of(arguments, found)} completes the prefixes of {len(programs)} programs")
        verdicts = judge(run, programs)
        responses = [
            make_response(run, program.problem, "train", 0, Attempt(program.ids, v.status, True, 0))
            for program, v in zip(programs, verdicts, strict=True)
        ]
        # What decides the numbers is in the name: another call never reads this journal.
        about = journal_name(run, fingerprint(params), [program.problem for program in programs])
        with Journal(out / f"journal-{about}.jsonl") as journal:
            failing = [response for response in responses if not response.passed]
            searcher = Searcher(run, Memo(), failing)
            searcher.run(params, 0, failing, journal)
    cost = searcher.spent
    rows = [
        label_row(run, program, response, verdict)
        for program, response, verdict in zip(programs, responses, verdicts, strict=True)
    ]
    write_json_lines(out / "labels.jsonl", rows)
    classes = Counter(row["class"] for row in rows)
    say(
        f"{', '.join(f'{n} {name}' for name, n in sorted(classes.items()))}; {cost.probes} probes, "
        f"{cost.completions} completions, {cost.executions} executions"
    )
    return rows, out


def judge(run: Run, programs: Sequence[Program]) -> list[Verdict]:
    """The verdict on each program as it is."""
    futures = [run.judge(p.problem, run.program(p.problem, p.ids)) for p in programs]
    verdicts = []
    with Progress(len(futures), "label: programs as they are", "programs") as progress:
        for future in futures:
            verdicts.append(future.result())
            progress.update(1)
    return verdicts


def label_row(run: Run, program: Program, response: Response, verdict: Verdict) -> dict[str, Any]:
    """A line of labels.jsonl."""
    found = response.labels(neutral_comments=run.config.label.neutral_comments)
    steps = [
        {"label": label, "passes": passes, "samples": samples}
        for label, passes, samples in zip(found.labels, found.passes, found.samples, strict=True)
    ]
    nothing = {"label": None, "passes": None, "samples": None}
    lines = [
        row | (row.pop("step") or nothing)
        for row in line_rows(run.lines(program.ids), "step", steps)
    ]
    return {
        "id": program.id,
        "task_id": program.problem.task_id,
        "status": verdict.status,
        "passed": verdict.passed,
        "class": response_class(response.passed, response.m_star).name.lower(),
        "first_error": next((i for i, line in enumerate(lines) if line["label"] == -1), None),
        "lines": lines,
    }


def main(argv: Sequence[str] | None = None) -> int:
    settle_process()
    arguments = tyro.cli(
        Arguments, args=argv, prog="python -m prm_jax.label", config=(tyro.conf.OmitArgPrefixes,)
    )
    try:
        _, out = label(arguments)
    except (ConfigError, SandboxRefused, ShardingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except SandboxError as error:
        print(f"error: {error}\nrun the same command again to go on", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the last batch", file=sys.stderr)
        return 130
    say(f"labels: {out / 'labels.jsonl'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
