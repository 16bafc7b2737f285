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
from prm_jax.study.arms import POLICIES, Study, load_study, nearest
from prm_jax.study.details import details
from prm_jax.study.markdown import markdown
from prm_jax.study.records import add_look, finished, looked_at, read_records
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
    """Only these arms, separated by commas, the baseline, and the arms that they share stages
    with. The page shows all arms, whichever were run."""
    seeds: tuple[int, ...] = ()
    """Other seeds than those of the study."""
    redraw: Literal["all", "rl"] | None = None
    """What a seed draws anew: all of the pipeline, or the measured stage and the evaluation only;
    otherwise as the study says."""
    final: bool = False
    """Judge the policies of these arms on the final problems, once all runs of the study are
    finished. That is done once: other arms, or other settings, are refused afterwards."""
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
    if arguments.jobs < 0:
        raise ConfigError(f"--jobs = {arguments.jobs} is not allowed: it must be at least 0")
    loaded = load_study(arguments.study)
    redraw = arguments.redraw or loaded.redraw
    whole = dataclasses.replace(
        loaded, redraw=redraw, seeds=tuple(dict.fromkeys(loaded.seeds + arguments.seeds))
    )
    page = whole.name if redraw == loaded.redraw else f"{whole.name}-redraw-{redraw}"
    records = arguments.out / "runs.jsonl"
    if arguments.report_only:
        if not records.is_file():
            raise ConfigError(
                f"--report-only: {records} is not there; run the study, or name the folder of its "
                "lines by --out"
            )
        write_page(whole, arguments.out, page)
        return 0
    study = _chosen(dataclasses.replace(loaded, redraw=redraw), arguments)
    runs = study_runs(study)
    if arguments.final:
        runs = study_runs(study, final=True)
        begin_final(whole, runs, records)
    # Arms that are not asked for lend what they have; so does, to a final run, the run that made
    # its stages.
    lenders = study_runs(dataclasses.replace(whole, seeds=study.seeds))
    runner = Runner(
        study,
        runs,
        records=records,
        workdirs=arguments.workdirs / study.name,
        jobs=arguments.jobs,
        command=command,
        others=lenders,
    )
    try:
        with stopping_on_sigterm():
            good = runner.run()
    finally:
        if records.exists():
            write_page(whole, arguments.out, page)
    return 0 if good else 1


def _chosen(study: Study, arguments: Arguments) -> Study:
    """The study with those arms and seeds that the command line asks for."""
    changes: dict = {}
    if arguments.seeds:
        # With redraw = "rl" all seeds share what the study's first one made.
        first = study.seeds[:1] if study.redraw == "rl" else ()
        changes["seeds"] = tuple(dict.fromkeys(first + arguments.seeds))
    if arguments.arms:
        names = {name.strip() for name in arguments.arms.split(",")}
        known = [arm.name for arm in study.arms]
        if unknown := sorted(names - set(known)):
            raise ConfigError(
                f"--arms: {unknown[0]!r} is no arm of {study.name}; {nearest(unknown[0], known)}"
            )
        for arm in (study.arm(name) for name in sorted(names)):
            if arm.seeds and not set(arm.seeds) & set(changes.get("seeds", study.seeds)):
                raise ConfigError(
                    f"--seeds: {arm.name!r} has only the seeds {arm.seeds}, and none of "
                    f"{arguments.seeds}"
                )
        names.add(study.baseline)
        for arm in reversed(study.arms):
            if arm.name in names and arm.shares:
                names.add(arm.shares)
        changes["arms"] = tuple(arm for arm in study.arms if arm.name in names)
        changes["ordering"] = tuple(name for name in study.ordering if name in names)
        changes["also_less"] = tuple(name for name in study.also_less if name in names)
        changes["priced"] = tuple(name for name in study.priced if name in names)
    return dataclasses.replace(study, **changes)


def begin_final(study: Study, final: Sequence[StudyRun], path: Path) -> None:
    """Writes down, before the first look at the final problems, whose policies are judged by it.

    A look that was cut short goes on. Raises ConfigError where a run is not finished on the
    development problems (before the first look: any run of the study), or if there was a look that
    these runs were not part of, with these settings.
    """
    records = read_records(path)
    asked = [run for run in final if run.arm.measure in POLICIES]
    looked = looked_at(study, asked, records)
    runs = study_runs(study)
    if looked is not None:
        wanted = {(run.arm.name, run.seed) for run in asked}
        runs = [run for run in runs if (run.arm.name, run.seed) in wanted]
    done = finished(study, runs, records)
    if missing := [run.name for run in runs if run.name not in done]:
        raise ConfigError(
            f"--final: {len(missing)} runs of {study.name} are not finished, {missing[0]} for one; "
            "finish the study on the development problems first"
        )
    for run in asked:
        if looked is not None and run.name not in looked:
            raise ConfigError(
                f"--final: the final problems were looked at before, and {run.arm.name!r} with "
                f"seed {run.seed} was not among those judged by them, or had other settings: it "
                "would be chosen knowing what came out. Name by --arms and --seeds what was "
                "looked at, or draw other problems (problems.chains.seed) and run the study anew"
            )
    if looked is None:
        add_look(path, study, asked)


def write_page(study: Study, out: Path, name: str) -> None:
    """Writes OUT/NAME.html and OUT/NAME.md from OUT/runs.jsonl alone."""
    records = read_records(out / "runs.jsonl")
    sets = [study_runs(study)]
    if any(r["study"] == study.name and r["set"].endswith("/final") for r in records):
        sets.append(study_runs(study, final=True))
    tables = [table for runs in sets for table in set_tables(study, runs, records)]
    bad = bad_lines(study, [run for runs in sets for run in runs], records)
    more = [details(table.arms, confidence=study.confidence) for table in tables]
    (out / f"{name}.md").write_text(markdown(study, tables, more, bad), encoding="utf-8")
    page = write_study(
        out / f"{name}.html",
        study=study,
        tables=tables,
        details=more,
        bad=bad,
    )
    say(f"{study.name}: open {page}")


if __name__ == "__main__":
    sys.exit(main())
