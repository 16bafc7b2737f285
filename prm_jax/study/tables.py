"""The tables of a study, from the kept records alone.

Every table is a mean over seeds; `intervals.py` says how its intervals are made. An arm is compared
with the baseline seed by seed and problem by problem, over the seeds that both have.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prm_jax.study.arms import POLICIES, Arm, Study
from prm_jax.study.intervals import Estimate, estimate
from prm_jax.study.records import FINISHED, finished, lines_of
from prm_jax.study.runs import StudyRun

Record = dict[str, Any]
BySeed = dict[str, dict[int, float]]  # numbers by name, each of the seeds that have it


@dataclasses.dataclass(frozen=True)
class ArmRow:
    """What is known of one arm on one set."""

    name: str
    about: str
    measure: str  # the stage that counts
    by_seed: dict[int, float]  # pass@1
    finished: int  # seeds
    pass_at_1: Estimate | None  # None where no seed is finished, or the arm has no policy
    differences: dict[str, Estimate | None]
    """To each arm of `Study.compared_with`; None for itself and without common seeds."""
    greedy: float | None
    long: float | None
    by_horizon: dict[str, float]
    programs: dict[str, float]  # means over seeds
    cpu_s: float | None  # of all attempts, as far as they are known, shared stages left out
    labels: BySeed  # what they cost, and how right they are
    prm: BySeed
    by_completions: BySeed  # the PRM against many completions of each prefix
    training: BySeed  # what the rollouts solved, what plans decide, the critic's error
    of_baseline: dict[str, BySeed]  # the PRM on the baseline's checkpoints, by step
    drift: dict[str, BySeed]  # the PRM on the policy's checkpoints, by step


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
        arms=[_row(study, arm, by_arm) for arm in study.arms if arm.name in here],
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


def _row(study: Study, arm: Arm, by_arm: dict[str, dict[int, Record]]) -> ArmRow:
    found = by_arm[arm.name]
    judged = found if arm.measure in POLICIES else {}
    records = list(found.values())
    return ArmRow(
        name=arm.name,
        about=arm.about,
        measure=arm.measure,
        by_seed={seed: record["pass_at_1"] for seed, record in judged.items()},
        finished=len(found),
        pass_at_1=estimate(_rates([*judged.values()]), confidence=study.confidence)
        if judged
        else None,
        differences={
            other: None if arm.name == other else _paired(study, judged, by_arm[other])
            for other in study.compared_with
        },
        greedy=_mean([r.get("pass_at_1_greedy") for r in records]),
        long=_mean([r.get("long") for r in records]),
        by_horizon=_means([r["by_horizon"] for r in judged.values()]),
        programs=_means([r["programs"] for r in records]),
        cpu_s=_mean([r.get("cpu_s_all_attempts") or r["cpu_s"] for r in records]),
        labels=_by_seed({seed: _labelled(r) for seed, r in found.items()}),
        prm=_by_seed({seed: _judged(r) for seed, r in found.items()}),
        by_completions=_by_seed({seed: _by_completions(r) for seed, r in found.items()}),
        training=_by_seed({seed: _trained(r) for seed, r in found.items()}),
        of_baseline={step: _by_seed(some) for step, some in _of_baseline(found).items()},
        drift={step: _by_seed(some) for step, some in _drift(found).items()},
    )


def _labelled(record: Record) -> dict[str, float | None]:
    """What labels took, and how they compare with the oracle and with a search of every prefix."""
    labels, cost = record.get("labels", {}), record.get("label_cost", {})
    n = max(cost.get("labels", 0), 1)
    per_label = {
        name: cost[name] / n
        for name in ("completions", "sampled_tokens", "executions", "seconds")
        if name in cost
    }
    return {
        "exact": labels.get("oracle_first_error_exact"),
        "lines": labels.get("oracle_line_agreement"),
        "non_monotone": labels.get("dense_search", {}).get("non_monotone"),
        "binary_agrees": labels.get("dense_search", {}).get("binary_agrees"),
        **per_label,
    }


def _judged(record: Record) -> dict[str, float | None]:
    """What is said of the PRM by itself, where the arm has one."""
    prm = record.get("prm", {})
    reranking = prm.get("reranking", {})
    best = reranking.get("best_of_n", {})
    return _first_errors(prm) | {
        "ece": prm.get("ece"),
        "pass_rate": reranking.get("pass_rate"),
        "lowest": best.get("lowest"),
        "last": best.get("last"),
        "any_of_n": reranking.get("any_of_n"),
        "as_critic": prm.get("as_critic", {}).get("correlation"),
        **{
            f"{name}_{style}": said.get(name)
            for style, said in prm.get("style", {}).items()
            for name in ("accused", "mean_change")
        },
    }


def _by_completions(record: Record) -> dict[str, float | None]:
    """The PRM against many completions, where the run had the policies that it takes."""
    found = record.get("prm", {}).get("by_completions", {})
    return {name: found.get(name) for name in ("saved", "ece", "correlation")}


def _trained(record: Record) -> dict[str, float | None]:
    """What the rollouts solved, what the policy's plans decide, and how good the critic is."""
    found = {}
    if (explored := record.get("exploration")) is not None:
        found["solved"] = explored["solved"] / max(explored["asked"], 1)
        found["solutions"] = explored["distinct_solutions"]
    critic = record.get("critic", {})
    return found | {
        "plan_share": record.get("plans", {}).get("plan_share"),
        "critic_correlation": critic.get("correlation"),
        "critic_rmse": critic.get("rmse"),
        "critic_rmse_of_mean": critic.get("rmse_of_mean"),
    }


def _of_baseline(records: dict[int, Record]) -> dict[str, dict[int, dict[str, float | None]]]:
    """How the PRM finds first errors of responses of the baseline's checkpoints, by step and
    seed."""
    by_step: dict[str, dict[int, dict[str, float | None]]] = {}
    for seed, record in records.items():
        for step, found in record.get("prm", {}).get("by_checkpoint", {}).items():
            by_step.setdefault(step, {})[seed] = _first_errors(found)
    return by_step


def _first_errors(quality: Record) -> dict[str, float | None]:
    """What a PRM's quality says of first errors, by labels and by the oracle."""
    found: dict[str, float | None] = {}
    for by, held in (("", quality), ("_by_oracle", quality.get("by_oracle", {}))):
        error = held.get("first_error", {})
        for name in ("exact", "localised", "too_early", "too_late", "f1"):
            found[f"{name}{by}"] = error.get(name)
        found[f"auc{by}"] = held.get("auc_within_problem")
    return found


def _drift(records: dict[int, Record]) -> dict[str, dict[int, dict[str, float | None]]]:
    """What the PRM says of the policy's checkpoints, by step and seed."""
    by_step: dict[str, dict[int, dict[str, float | None]]] = {}
    for seed, record in records.items():
        for step, found in record.get("prm", {}).get("by_step_of_rl_prm", {}).items():
            oracle = found.get("by_oracle", {})
            values = {
                "pass_rate": found["pass_rate"],
                "lowest": found["best_of_n"]["lowest"],
                "last": found["best_of_n"]["last"],
                "any_of_n": found["any_of_n"],
                "auc_passed": found["auc_passed"],
                "passing": found["mean_score"]["passing"],
                "failing": found["mean_score"]["failing"],
                "exact_by_oracle": oracle.get("first_error", {}).get("exact"),
                "auc_by_oracle": oracle.get("auc_within_problem"),
            }
            by_step.setdefault(step, {})[seed] = values
    return by_step


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
    columns = _by_seed(dict(enumerate(tables))).items()
    return {name: math.fsum(some.values()) / len(some) for name, some in columns}


def _by_seed(tables: Mapping[int, Mapping[str, float | None]]) -> BySeed:
    """The numbers that the seeds' tables have under each name; a None is none."""
    found: BySeed = {}
    for seed, table in tables.items():
        for name, value in table.items():
            if value is not None:
                found.setdefault(name, {})[seed] = value
    return found
