"""Finished stages handed from one workdir to another, as hard links.

What a finished stage left is never written again, so workdirs can hold the same files. The journal
of an evaluation is copied in part: policies that two runs share are judged once.
"""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from prm_jax.study.arms import POLICIES
from prm_jax.study.runs import StudyRun

# What belongs to the first stage beside its folder.
WITH_SFT = ("problems", "tokenizer.json")


def is_done(workdir: Path, stage: str) -> bool:
    return (workdir / stage / "done.json").exists()


def finished_stages(runs: Iterable[StudyRun], workdirs: Path) -> dict[str, Path]:
    """The workdir in which a stage is finished, by the stage's key."""
    found: dict[str, Path] = {}
    for run in runs:
        workdir = workdirs / run.name
        for stage, key in run.keys.items():
            if key not in found and is_done(workdir, stage):
                found[key] = workdir
    return found


def stages_to_do(run: StudyRun, workdir: Path) -> list[str]:
    """The stages that are still to be made, or taken from another run.

    The baseline is not among them once there are labels from it: it would be evaluated again.
    """
    left = [stage for stage in run.stages if not is_done(workdir, stage)]
    from_labels = run.arm.measure != "rl" and is_done(workdir, "label")
    return [stage for stage in left if not (from_labels and stage == "rl")]


def take_stages(run: StudyRun, workdir: Path, finished: Mapping[str, Path]) -> dict[str, str]:
    """Links the stages that others have finished; the name of the run that each was taken from."""
    taken = {}
    # Last ones first: whoever has the labels needs no baseline.
    for stage in reversed(run.stages):
        if stage not in stages_to_do(run, workdir) or run.keys[stage] not in finished:
            continue
        source = finished[run.keys[stage]]
        if stage == "sft":
            for name in WITH_SFT:
                _take(source / name, workdir / name)
        _take(source / stage, workdir / stage)
        taken[stage] = source.name
    return taken


def _take(source: Path, target: Path) -> None:
    """Makes target the same as source, whole or not at all."""
    if not source.exists():
        return
    part = target.with_name(target.name + ".part")
    for old in (part, target):
        if old.is_dir():
            shutil.rmtree(old)
    part.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, part, copy_function=_link, symlinks=True)
    else:
        part.unlink(missing_ok=True)
        _link(source, part)
    part.replace(target)


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def take_evaluations(run: StudyRun, workdir: Path, others: Iterable[StudyRun]) -> None:
    """Copies what other runs journaled about policies that this run has too.

    One may have more of a policy than another: where a PRM was held against it, too.
    """
    journal = workdir / "evaluate/journal.jsonl"
    if journal.exists():
        return
    found: dict[str, bytes] = {}
    for other in others:
        source = workdir.parent / other.name
        if other.evaluation_key != run.evaluation_key or not is_done(source, "evaluate"):
            continue
        same = {
            arm
            for arm in POLICIES
            if arm in run.stages and other.keys.get(arm) == run.keys[arm] and is_done(source, arm)
        }
        with (source / "evaluate/journal.jsonl").open("rb") as file:
            for line in file:
                key = json.loads(line)["key"]
                if key.split("/")[0] in same:
                    found.setdefault(key, line)
    if found:
        journal.parent.mkdir(parents=True, exist_ok=True)
        part = journal.with_name(journal.name + ".part")
        part.write_bytes(b"".join(found.values()))
        part.replace(journal)
