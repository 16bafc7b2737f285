"""The tables of a study, from the kept records alone.

Every table is a mean over seeds; `intervals.py` says how its intervals are made. An arm is compared
with the baseline seed by seed and problem by problem, over the seeds that both have.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from prm_jax.study.arms import Study
from prm_jax.study.intervals import Estimate, estimate
from prm_jax.study.records import FINISHED, finished, lines_of
from prm_jax.study.runs import StudyRun

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class ArmRow:
    """What is known of one arm on one set."""

    name: str
    about: str
    by_seed: dict[int, float]  # pass@1
    pass_at_1: Estimate | None  # None where no seed is finished
    difference: Estimate | None  # to the baseline; None for itself and without common seeds
    greedy: float | None
    long: float | None
    by_horizon: dict[str, float]
    programs: dict[str, float]  # means over seeds
    cpu_s: float | None  # of the last attempts, shared stages left out
    prm: dict[str, float]
    training: dict[str, float]  # what the policy's rollouts solved, and what its plans decide


@dataclasses.dataclass(frozen=True)
class Step:
    """Whether one arm is better than the one before it in the order that was expected."""

    lower: str
    upper: str
    difference: Estimate | None

    @property
    def holds(self) -> bool | None:
        """Beyond two standard errors; None where fewer than two seeds are paired."""
        if self.difference is None or self.difference.standard_error is None:
            return None
        return self.difference.value > 2 * self.difference.standard_error


@dataclasses.dataclass(frozen=True)
class SetTable:
    """All arms on one set of problems."""

    name: str
    arms: list[ArmRow]
    ordering: list[Step]

    @property
    def horizons(self) -> list[str]:
        return sorted({h for arm in self.arms for h in arm.by_horizon}, key=int)

    @property
    def seeds(self) -> list[int]:
        return sorted({seed for arm in self.arms for seed in arm.by_seed})


def set_tables(study: Study, runs: Sequence[StudyRun], records: Sequence[Record]) -> list[SetTable]:
    """A table for each set of problems on which some of these runs are finished."""
    tables = []
    for name in dict.fromkeys(run.set_name for run in runs):
        there = [run for run in runs if run.set_name == name]
        tables.append(_set_table(study, there, records))
    return [table for table in tables if table is not None]


def _set_table(
    study: Study, runs: Sequence[StudyRun], records: Sequence[Record]
) -> SetTable | None:
    """The table of runs on one set; None if none of them is finished."""
    found = finished(study, runs, records)
    lines = {(run.arm.name, run.seed): found[run.name] for run in runs if run.name in found}
    if not lines:
        return None
    by_arm = {
        arm.name: {seed: lines[arm.name, seed] for seed in study.seeds if (arm.name, seed) in lines}
        for arm in study.arms
    }
    here = {run.arm.name for run in runs}
    return SetTable(
        name=runs[0].set_name,
        arms=[_row(study, arm.name, arm.about, by_arm) for arm in study.arms if arm.name in here],
        ordering=[
            Step(low, high, _paired(study, by_arm[high], by_arm[low]))
            for low, high in zip(study.ordering, study.ordering[1:], strict=False)
            if {low, high} <= here
        ],
    )


def bad_lines(study: Study, runs: Sequence[StudyRun], records: Sequence[Record]) -> list[Record]:
    """Lines of these runs that failed or were cut short, finished later or not."""
    lines = lines_of(study, runs, records)
    return [r for run in runs for r in lines[run.name] if r["status"] != FINISHED]


def _row(study: Study, name: str, about: str, by_arm: dict[str, dict[int, Record]]) -> ArmRow:
    found = by_arm[name]
    base = by_arm[study.baseline]
    records = list(found.values())
    return ArmRow(
        name=name,
        about=about,
        by_seed={seed: record["pass_at_1"] for seed, record in found.items()},
        pass_at_1=estimate(_rates(records), confidence=study.confidence) if found else None,
        difference=None if name == study.baseline else _paired(study, found, base),
        greedy=_mean([r.get("pass_at_1_greedy") for r in records]),
        long=_mean([r.get("long") for r in records]),
        by_horizon=_means([r["by_horizon"] for r in records]),
        programs=_means([r["programs"] for r in records]),
        cpu_s=_mean([r["cpu_s"] for r in records]),
        prm=_means([_judged(r) for r in records]),
        training=_means([_trained(r) for r in records]),
    )


def _judged(record: Record) -> dict[str, float]:
    """What is said of labels and PRM, where the arm has them."""
    prm = record.get("prm", {})
    error = prm.get("first_error", {})
    found = {
        "labels_exact": record.get("labels", {}).get("oracle_first_error_exact"),
        "exact": error.get("exact"),
        "exact_by_oracle": prm.get("by_oracle", {}).get("first_error", {}).get("exact"),
        "too_early": error.get("too_early"),
        "too_late": error.get("too_late"),
        "f1": error.get("f1"),
        "auc": prm.get("auc_within_problem"),
        "ece": prm.get("ece"),
        "completions_per_label": record.get("label_cost", {}).get("completions_per_label"),
    }
    return {name: value for name, value in found.items() if value is not None}


def _trained(record: Record) -> dict[str, float]:
    """What the rollouts of the measured stage solved, and what the policy's plans decide."""
    found = {}
    if (explored := record.get("exploration")) is not None:
        found["solved"] = explored["solved"] / max(explored["asked"], 1)
        found["solutions"] = explored["distinct_solutions"]
    share = record.get("plans", {}).get("plan_share")
    return found if share is None else found | {"plan_share": share}


def _paired(study: Study, ours: dict[int, Record], theirs: dict[int, Record]) -> Estimate | None:
    """Our rates less theirs, over the seeds that both have; None if the problems differ."""
    seeds = [seed for seed in ours if seed in theirs]
    problems = [records[s]["config"]["problems"] for s in seeds for records in (ours, theirs)]
    if not seeds or any(other != problems[0] for other in problems):
        return None
    a, b = (_rates([records[seed] for seed in seeds]) for records in (ours, theirs))
    return estimate(a - b, confidence=study.confidence)


def _rates(records: Sequence[Record]) -> np.ndarray:
    """[S, N]: the share of samples that pass, of each problem."""
    return np.array([np.array(r["passes"]) / r["samples"] for r in records], np.float64)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _means(tables: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each entry over the tables that have it."""
    names = dict.fromkeys(name for table in tables for name in table)
    return {n: math.fsum(v) / len(v) for n in names if (v := [t[n] for t in tables if n in t])}


# ----------------------------------------------------------------------------------------- Markdown


def markdown(study: Study, tables: Sequence[SetTable], bad: Sequence[Record]) -> str:
    """The tables as Markdown."""
    level = f"{100 * study.confidence:g} %"
    parts = [f"# Study {study.name}", study.about] if study.about else [f"# Study {study.name}"]
    parts.append(
        f"Seeds redraw {'the whole pipeline' if study.redraw == 'all' else 'RL only'}. Means over "
        f"seeds of pass@1 in %; n is seeds × problems. *By seeds*: {level} interval by Student's t "
        f"over seeds. *Seeds and problems*: {level} percentiles of a bootstrap that resamples "
        f"both. Differences to `{study.baseline}` are paired by seed and problem."
    )
    for table in tables:
        parts.append(f"## {table.name}")
        parts.append(
            _table(
                ("arm", "n", "pass@1", "by seeds", "seeds and problems", "greedy", "longer",
                 f"less {study.baseline}", "by seeds", "programs", "executed", "CPU-s"),
                [_cells(arm) for arm in table.arms],
            )
        )  # fmt: skip
        if table.ordering:
            parts.append("Expected order, beyond two standard errors over seeds:")
            parts.append("\n".join(f"- {_said(step)}" for step in table.ordering))
        parts.append(
            _table(
                ("arm", *(f"{h} lines" for h in table.horizons)),
                [
                    (arm.name, *(_percent(arm.by_horizon.get(h)) for h in table.horizons))
                    for arm in table.arms
                ],
            )
        )
        parts.append(
            _table(
                ("arm", *(f"seed {seed}" for seed in table.seeds)),
                [
                    (arm.name, *(_percent(arm.by_seed.get(seed)) for seed in table.seeds))
                    for arm in table.arms
                ],
            )
        )
        judged = [arm for arm in table.arms if arm.prm]
        if judged:
            parts.append(
                _table(
                    ("labels and PRM", *PRM_COLUMNS.values()),
                    [
                        (arm.name, *(_decimal(arm.prm.get(name)) for name in PRM_COLUMNS))
                        for arm in judged
                    ],
                )
            )
        trained = [arm for arm in table.arms if arm.training]
        if trained:
            parts.append(
                _table(
                    ("training", *TRAINING_COLUMNS.values()),
                    [
                        (
                            arm.name,
                            _percent(arm.training.get("solved")),
                            _count(arm.training.get("solutions")),
                            _percent(arm.training.get("plan_share")),
                        )
                        for arm in trained
                    ],
                )
            )
    if bad:
        parts.append("## Runs that failed or were cut short")
        parts.append("\n".join(f"- `{r['run']}`: {r['status']}, {r['error']}" for r in bad))
    return "\n\n".join(parts) + "\n"


PRM_COLUMNS = {
    "labels_exact": "labels: first error as the oracle",
    "exact": "PRM: exact",
    "exact_by_oracle": "exact by the oracle",
    "too_early": "too early",
    "too_late": "too late",
    "f1": "first-error F1",
    "auc": "AUC in problem",
    "ece": "ECE",
    "completions_per_label": "completions per label",
}


TRAINING_COLUMNS = {
    "solved": "problems asked and ever solved, %",
    "solutions": "different solutions",
    "plan_share": "of the variance of success by plans, %",
}


def _cells(arm: ArmRow) -> tuple[str, ...]:
    e, d = arm.pass_at_1, arm.difference
    if e is None:
        return (arm.name, "0", *["–"] * 10)
    return (
        arm.name,
        f"{e.seeds} × {e.problems}",
        _percent(e.value),
        _interval(e.low, e.high),
        _interval(e.bootstrap_low, e.bootstrap_high),
        _percent(arm.greedy),
        _percent(arm.long),
        "–" if d is None else f"{100 * d.value:+.1f}",
        "–" if d is None else _interval(d.low, d.high, sign="+"),
        f"{arm.programs['generated']:,.0f}",
        f"{arm.programs['executed']:,.0f}",
        "–" if arm.cpu_s is None else f"{arm.cpu_s:,.0f}",
    )


def _said(step: Step) -> str:
    names = f"`{step.lower}` < `{step.upper}`"
    if step.difference is None or step.holds is None:
        return f"{names}: not known, fewer than two seeds have both"
    d = step.difference
    assert d.standard_error is not None
    error = f"standard error {100 * d.standard_error:.1f}"
    return f"{names}: {'yes' if step.holds else 'no'}, {100 * d.value:+.1f} points, {error}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _decimal(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _interval(low: float | None, high: float | None, sign: str = "") -> str:
    if low is None or high is None:
        return "–"
    return f"{100 * low:{sign}.1f} to {100 * high:{sign}.1f}"
