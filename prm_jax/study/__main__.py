"""Runs a study, or draws its page again: `python -m prm_jax.study --study studies/quick.py`."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from prm_jax.config import ConfigError
from prm_jax.metrics import say
from prm_jax.report.study import write_study
from prm_jax.study.arms import Arm, Study, load_study
from prm_jax.study.details import details
from prm_jax.study.markdown import markdown
from prm_jax.study.records import finished, lines_of, read_records
from prm_jax.study.runner import TRAIN, Runner, stopping_on_sigterm
from prm_jax.study.runs import StudyRun, study_runs
from prm_jax.study.tables import bad_lines, set_tables


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Compares arms over seeds: every arm with every seed is a run of prm_jax.train.

    The same command goes on where it stopped. Lines of what came of each run are added to
    OUT/runs.jsonl; OUT/NAME.html and OUT/NAME.md are made from these lines.
    """

    study: Path
    """A Python file that defines get_study()."""
    jobs: int = 0
    """Runs at once, each on its share of the cores; 0: one for each core."""
    out: Path = Path("results")
    """Where the lines and the page go."""
    workdirs: Path = Path("runs")
    """Where the workdirs of the runs go, below a folder named by the study."""
    arms: str = ""
    """Only these arms, separated by commas, and the arms that they share stages with."""
    seeds: tuple[int, ...] = ()
    """Other seeds than those of the study."""
    redraw: Literal["all", "rl"] | None = None
    """What a seed draws anew: all of the pipeline, or RL only; otherwise as the study says."""
    final: bool = False
    """Judge the policies on the final problems, once all runs of the study are finished."""
    report_only: Annotated[bool, tyro.conf.arg(name="report-only")] = False
    """Only draw the page and the tables again, from the kept lines."""


def main(argv: Sequence[str] | None = None, command: Sequence[str] = TRAIN) -> int:
    arguments = tyro.cli(
        Arguments,
        args=sys.argv[1:] if argv is None else list(argv),
        prog="python -m prm_jax.study",
        config=(tyro.conf.OmitArgPrefixes,),
    )
    try:
        return _run(arguments, command)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on", file=sys.stderr)
        return 130


def _run(arguments: Arguments, command: Sequence[str]) -> int:
    loaded = load_study(arguments.study)
    study = _chosen(loaded, arguments)
    records = arguments.out / "runs.jsonl"
    runs = study_runs(study)
    good = True
    try:
        if not arguments.report_only:
            chosen = runs
            if arguments.final:
                chosen = study_runs(study, final=True)
                check_final(study, runs, chosen, read_records(records))
            runner = Runner(
                study,
                chosen,
                records=records,
                workdirs=arguments.workdirs / study.name,
                jobs=arguments.jobs,
                command=command,
                # Arms that are not asked for lend what they have; so does, to a final run, the run
                # that made its stages.
                others=study_runs(_with_lenders(study, loaded.arms)),
            )
            with stopping_on_sigterm():
                good = runner.run()
    finally:
        if records.exists():
            write_page(study, arguments.out)
    return 0 if good else 1


def _chosen(study: Study, arguments: Arguments) -> Study:
    """The study with what the command line changes of it."""
    changes: dict = {}
    if arguments.seeds:
        changes["seeds"] = arguments.seeds
    if arguments.redraw:
        changes["redraw"] = arguments.redraw
    if arguments.arms:
        names = {name.strip() for name in arguments.arms.split(",")}
        known = [arm.name for arm in study.arms]
        if unknown := sorted(names - set(known)):
            raise ConfigError(f"--arms: {unknown[0]!r} is no arm of {study.name}: {known}")
        names.add(study.baseline)
        for arm in reversed(study.arms):
            if arm.name in names and arm.shares:
                names.add(arm.shares)
        changes["arms"] = tuple(arm for arm in study.arms if arm.name in names)
        changes["ordering"] = tuple(name for name in study.ordering if name in names)
        changes["priced"] = tuple(name for name in study.priced if name in names)
    return dataclasses.replace(study, **changes)


def _with_lenders(study: Study, arms: Sequence[Arm]) -> Study:
    """The study with all of these arms that have a seed of it."""
    able = {arm.name for arm in arms if not arm.seeds or set(arm.seeds) & set(study.seeds)}
    kept = tuple(arm for arm in arms if arm.name in able and (arm.shares or arm.name) in able)
    return dataclasses.replace(study, arms=kept)


def check_final(
    study: Study, runs: Sequence[StudyRun], final: Sequence[StudyRun], records: Sequence[dict]
) -> None:
    """Raises ConfigError unless the study is finished and its final problems were not looked at.

    A look that was cut short goes on; with other settings there is no second look.
    """
    done = finished(study, runs, records)
    if missing := [run.name for run in runs if run.name not in done]:
        raise ConfigError(
            f"--final: {len(missing)} runs of {study.name} are not finished, {missing[0]} for one; "
            "finish the study on the development problems first"
        )
    ours = {id(line) for lines in lines_of(study, final, records).values() for line in lines}
    sets = {run.set_name for run in final}
    looked = [
        r["run"]
        for r in records
        if r["study"] == study.name and r["set"] in sets and id(r) not in ours
    ]
    if looked:
        raise ConfigError(
            f"--final: the final problems were looked at before, by {looked[0]}: a second look "
            "with other settings would make them development problems; draw others "
            "(problems.chains.seed) and run the study anew"
        )


def write_page(study: Study, out: Path) -> None:
    """Writes OUT/NAME.html and OUT/NAME.md from OUT/runs.jsonl alone."""
    records = read_records(out / "runs.jsonl")
    sets = [study_runs(study)]
    if any(r["study"] == study.name and r["set"].endswith("/final") for r in records):
        sets.append(study_runs(study, final=True))
    tables = [table for runs in sets for table in set_tables(study, runs, records)]
    bad = bad_lines(study, [run for runs in sets for run in runs], records)
    more = [details(table.arms, confidence=study.confidence) for table in tables]
    (out / f"{study.name}.md").write_text(markdown(study, tables, more, bad), encoding="utf-8")
    page = write_study(
        out / f"{study.name}.html",
        study=study,
        tables=tables,
        details=more,
        bad=bad,
    )
    say(f"{study.name}: open {page}")


if __name__ == "__main__":
    sys.exit(main())
