"""The tables of a study beyond pass@1: labels, PRM, training, the PRM on a policy as it moves."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from prm_jax.study.intervals import Spread
from prm_jax.study.tables import ArmRow


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def decimal(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


@dataclasses.dataclass(frozen=True)
class _Column:
    field: str
    title: str
    show: Callable[[float | None], str] = decimal


@dataclasses.dataclass(frozen=True)
class DetailRow:
    name: str
    values: tuple[float | None, ...]  # means
    shown: tuple[str, ...]  # the means with their intervals, as text


@dataclasses.dataclass(frozen=True)
class Detail:
    """A table with a row for an arm, or for a checkpoint of it.

    Means over the seeds whose lines have the number, which older ones may not, and half of their
    intervals by seeds.
    """

    title: str
    caption: str
    columns: tuple[str, ...]
    rows: list[DetailRow]


_LABELS = (
    _Column("exact", "first error as the oracle"),
    _Column("lines", "lines as the oracle"),
    _Column("non_monotone", "not monotone"),
    _Column("binary_agrees", "binary search agrees"),
    _Column("completions", "completions per label"),
    _Column("sampled_tokens", "tokens", count),
    _Column("executions", "executions"),
)
_PRM = (
    _Column("exact", "first error exact"),
    _Column("exact_by_oracle", "by the oracle"),
    _Column("localised", "told that it fails"),
    _Column("localised_by_oracle", "by the oracle"),
    _Column("too_early", "too early"),
    _Column("too_late", "too late"),
    _Column("f1", "first-error F1"),
    _Column("auc", "AUC in problem"),
    _Column("ece", "ECE"),
    _Column("pass_rate", "pass, %", percent),
    _Column("lowest", "best of 8 by lowest score, %", percent),
    _Column("last", "by last score, %", percent),
    _Column("any_of_n", "any of 8, %", percent),
    _Column("as_critic", "as the first critic: correlation"),
)
_TRAINING = (
    _Column("solved", "problems asked and ever solved, %", percent),
    _Column("solutions", "different solutions", count),
    _Column("plan_share", "of the variance of success by plans, %", percent),
    _Column("critic_correlation", "critic: correlation with outcomes"),
    _Column("critic_rmse", "its error"),
    _Column("critic_rmse_of_mean", "error of the mean"),
)
_DRIFT = (
    _Column("pass_rate", "pass, %", percent),
    _Column("lowest", "best of 8 by lowest score, %", percent),
    _Column("last", "by last score, %", percent),
    _Column("any_of_n", "any of 8, %", percent),
    _Column("auc_passed", "AUC of passing"),
    _Column("passing", "mean score, passing"),
    _Column("failing", "failing"),
    _Column("exact_by_oracle", "first error exact by the oracle"),
    _Column("auc_by_oracle", "AUC in problem by the oracle"),
)


def details(arms: Sequence[ArmRow]) -> list[Detail]:
    """The tables that have rows, with the columns that have numbers."""
    found = [
        _detail(
            "labels",
            "Labels of failing responses held against the oracle and a search of every prefix, and "
            "what a label took.",
            _LABELS,
            [(arm.name, arm.labels) for arm in arms if arm.labels],
        ),
        _detail(
            "PRM",
            "The PRM held against labels of validation responses, as a judge of whole programs, "
            "and as the critic that PPO begins with (docs/results.md).",
            _PRM,
            [(arm.name, arm.prm) for arm in arms if arm.prm],
        ),
        _detail(
            "training",
            "What the rollouts of training solved, what the policy's plans decide, and the last "
            "critic against completions from the same prefixes (docs/results.md).",
            _TRAINING,
            [(arm.name, arm.training) for arm in arms if arm.training],
        ),
        _detail(
            "PRM on the policy, by step",
            "Responses of each checkpoint of the arm's policy to validation problems, eight to a "
            "problem, and what the PRM says of them.",
            _DRIFT,
            [
                (f"{arm.name}, {step}", arm.drift[step])
                for arm in arms
                for step in sorted(arm.drift, key=int)
            ],
        ),
    ]
    return [detail for detail in found if detail.rows]


def _detail(
    title: str,
    caption: str,
    columns: Sequence[_Column],
    rows: Sequence[tuple[str, Mapping[str, Spread]]],
) -> Detail:
    columns = [c for c in columns if any(c.field in values for _, values in rows)]
    return Detail(
        title,
        f"{caption} Means over the seeds that have it, ± half of their interval by seeds.",
        tuple(column.title for column in columns),
        [
            DetailRow(
                name,
                tuple(s.mean if (s := values.get(c.field)) else None for c in columns),
                tuple(_shown(values.get(column.field), column.show) for column in columns),
            )
            for name, values in rows
        ],
    )


def _shown(value: Spread | None, show: Callable[[float | None], str]) -> str:
    if value is None or value.half is None:
        return show(None if value is None else value.mean)
    return f"{show(value.mean)} ± {show(value.half)}"
