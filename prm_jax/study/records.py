"""The lines of `results/runs.jsonl`: what came of each run of a study, good or bad.

Lines are only ever added: a run that failed and succeeded later has two. All tables and figures
are made from these lines, so they outlive the workdirs.
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from prm_jax.config import Config, ConfigError, to_json
from prm_jax.config_file import differences
from prm_jax.stages.run import deciding
from prm_jax.study.arms import POLICIES, Study
from prm_jax.study.runs import StudyRun

FINISHED, FAILED, ABANDONED = "finished", "failed", "abandoned"
LOOKED = "looked"  # no run: which policies a look at the final problems is for


def read_records(path: Path) -> list[dict[str, Any]]:
    """All whole lines; a last line that a kill tore is passed over.

    Raises ConfigError if any other line is not JSON or not of a run.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    found = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ConfigError(
                f"{path}, line {number} is not JSON: {error}; mend the line, or take it out"
            ) from error
        if not isinstance(record, dict) or not {"study", "set", "status"} <= record.keys():
            raise ConfigError(
                f"{path}, line {number} is no line of a run, which has study, set and status: take "
                "it out"
            )
        found.append(record)
    return found


def add_record(path: Path, record: dict[str, Any]) -> None:
    """Adds one line and syncs it; what a kill left of another line is cut off first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        file.seek(0)
        text = file.read()
        file.truncate(text.rfind(b"\n") + 1)
        file.write(json.dumps(record).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def lines_of(
    study: Study, runs: Iterable[StudyRun], records: Sequence[dict[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """The lines of each run, by its name.

    A line is a run's if arm, measured stage, seed and set agree and all settings do, those of the
    stages that were taken from another arm included. A setting that is newer than the line must be
    at its default; a line older than `measure` is of a policy.
    """
    default = deciding(json.loads(to_json(Config())))
    found: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        ours = described(study, run)
        same = ("study", "arm", "seed", "set", "before")
        policy = run.arm.measure in POLICIES
        found[run.name] = [
            line
            for line in records
            if all(line.get(name) == ours[name] for name in same)
            and (line["measure"] == run.arm.measure if "measure" in line else policy)
            and _agree(line["config"], ours["config"], default)
        ]
    return found


def finished(
    study: Study, runs: Iterable[StudyRun], records: Sequence[dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The last line of each run that says it was finished, by the run's name."""
    lines = lines_of(study, runs, records)
    good = {name: [r for r in some if r["status"] == FINISHED] for name, some in lines.items()}
    return {name: some[-1] for name, some in good.items() if some}


def add_look(path: Path, study: Study, runs: Sequence[StudyRun]) -> None:
    """Adds the line of a look at the final problems: which runs, and with which settings."""
    said = [described(study, run) for run in runs]
    line = {
        "study": study.name,
        "set": said[0]["set"],
        "status": LOOKED,
        "config": _final_config(study),
        "looked": [{name: one[name] for name in _IN_A_LOOK} for one in said],
    }
    add_record(path, line)


_IN_A_LOOK = ("arm", "seed", "settings", "before")


def _final_config(study: Study) -> dict[str, Any]:
    """What the settings of its runs on the final problems differ from."""
    config = deciding(json.loads(to_json(study.config)))
    config["problems"]["held_out"] = "final"
    return config


def looked_at(
    study: Study, runs: Sequence[StudyRun], records: Sequence[dict[str, Any]]
) -> set[str] | None:
    """Names of those of the runs that an earlier look at their problems was for; None without one.

    Lines of runs from before looks had lines of their own say as much of themselves.
    """
    default = deciding(json.loads(to_json(Config())))
    found: set[str] = set()
    any_look = False
    for run in runs:
        ours = described(study, run)
        for line in records:
            if any(line[name] != ours[name] for name in ("study", "set")):
                continue
            problems = line["config"]["problems"], ours["config"]["problems"]
            if not _agree(problems[0], problems[1], default["problems"]):
                continue
            any_look = True
            if line["status"] != LOOKED:
                same = all(line[name] == ours[name] for name in ("arm", "seed", "before"))
                if same and _agree(line["config"], ours["config"], default):
                    found.add(run.name)
            elif _agree(line["config"], _final_config(study), default):
                if {name: ours[name] for name in _IN_A_LOOK} in line["looked"]:
                    found.add(run.name)
    return found if any_look else None


def _agree(old: Any, new: Any, default: Any) -> bool:
    if isinstance(old, dict) and isinstance(new, dict):
        return old.keys() <= new.keys() and all(
            _agree(old[name], new[name], default[name])
            if name in old
            else new[name] == default[name]
            for name in new
        )
    return old == new


def described(study: Study, run: StudyRun) -> dict[str, Any]:
    """What a line says of a run, however it ends."""
    base = deciding(json.loads(to_json(study.config)))
    ours = deciding(json.loads(to_json(run.config)))
    before = deciding(json.loads(to_json(run.before)))
    before["problems"]["held_out"] = ours["problems"]["held_out"]  # no stage before reads it
    return {
        "study": study.name,
        "arm": run.arm.name,
        "measure": run.arm.measure,
        "seed": run.seed,
        "run": run.name,
        "config_digest": run.digest,
        "settings": differences(base | {"seed": run.seed}, ours),
        "before": differences(ours, before),
        "set": run.set_name,
        "config": ours,
    }


def outcome(run: StudyRun, workdir: Path) -> dict[str, Any]:
    """What a finished run measured, from the files that its stages left; pass@1 of a policy.

    Raises OSError, ValueError or KeyError if they are not what a finished run leaves.
    """
    results = json.loads((workdir / "results.json").read_text(encoding="utf-8"))
    found = {"programs": programs(run, workdir), "versions": results["versions"]}
    if run.arm.measure in POLICIES:
        arm = results["arms"][run.arm.measure]
        n, samples = arm["pass_at_1"]["n"], arm["samples"]
        rows = _json_lines(workdir / "evaluate" / f"{run.arm.measure}.jsonl")
        # The first set comes first, all samples of a problem together.
        passed = [int(row["passed"]) for row in rows[: n * samples]]
        found |= {
            "n": n,
            "samples": samples,
            "temperature": arm["temperature"],
            "pass_at_1": arm["pass_at_1"]["value"],
            "by_horizon": {h: e["value"] for h, e in arm["by_horizon"].items()},
            "passes": [sum(passed[i : i + samples]) for i in range(0, len(passed), samples)],
        }
        for name in ("exploration", "plans", "critic"):
            if name in arm:
                found[name] = arm[name]
        if "test_long" in arm:
            found["long"] = arm["test_long"]["pass_at_1"]["value"]
    # A workdir may hold labels that this run did not ask for; a PRM that learned in it is its own.
    learned = run.arm.measure == "rl_prm" and run.config.dense.prm_learns
    for name in ("label_cost", "labels", "prm"):
        if name in results and ("label" in run.stages or (name == "prm" and learned)):
            found[name] = results[name]
    return found


def programs(run: StudyRun, workdir: Path) -> dict[str, int]:
    """Programs that training this arm's policy takes, shared stages included.

    `policy`: rollouts of the measured stage. `baseline`: rollouts of the run that wrote the
    responses. `responses`, `completions`: sampled to label them. `generated` is their sum, and
    `executed` how many of them were run: a completion that was seen before is not.
    """
    done = {stage: _done(workdir, stage) for stage in run.stages}
    cost = done.get("label", {}).get("cost", {})
    labels = cost.get("responses", 0), cost.get("completions", 0)
    baseline = 0
    if run.arm.measure != "rl" and "rl" in run.stages:
        # The folder is not there where only what was made of it is shared; its size is known.
        baseline = run.baseline.steps * run.baseline.rollouts
        baseline = done["rl"].get("programs_generated", baseline)
    policy = done[run.arm.measure].get("programs_generated", 0)
    return {
        "policy": policy,
        "baseline": baseline,
        "responses": labels[0],
        "completions": labels[1],
        "generated": policy + baseline + sum(labels),
        "executed": policy + baseline + labels[0] + cost.get("executions", 0),
    }


def _done(workdir: Path, stage: str) -> dict[str, Any]:
    path = workdir / stage / "done.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
