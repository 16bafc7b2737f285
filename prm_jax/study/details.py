"""The tables of a study beyond pass@1: labels, PRM, training, the PRM on a policy as it moves."""

import dataclasses
from collections.abc import Callable, Sequence

from prm_jax.stages.inspection import COMPLETIONS, RESPONSES
from prm_jax.stages.labelled import CANDIDATES
from prm_jax.study.intervals import SeedMean, seed_mean
from prm_jax.study.tables import ArmRow, BySeed


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def decimal(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def thousandths(value: float | None) -> str:
    return "–" if value is None else f"{1000 * value:.1f}"


@dataclasses.dataclass(frozen=True)
class _Column:
    field: str
    title: str
    show: Callable[[float | None], str] = decimal
    paired: bool = True  # whether a difference between arms says anything
    signed: bool = False  # it is a difference


@dataclasses.dataclass(frozen=True)
class DetailRow:
    name: str
    values: tuple[float | None, ...]  # means
    shown: tuple[str, ...]  # the means with their intervals, as text


@dataclasses.dataclass(frozen=True)
class Detail:
    """A table with a row for an arm, or for a checkpoint of it.

    Means over the seeds whose lines have the number, which older ones may not, and half of their
    intervals by seeds. The first column says how many seeds there are at most.
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
    _Column("sampled_tokens", "tokens per label", count),
    _Column("executions", "executions per label"),
    # The first arm executes what those after it find executed.
    _Column("seconds", "milliseconds per label", thousandths, paired=False),
)
_FIRST_ERROR = (
    ("exact", "exact"),
    ("localised", "exact, given that it fails"),
    ("too_early", "too early"),
    ("too_late", "too late"),
    ("f1", "F1"),
    ("auc", "AUC in problem"),
)
_RERANKING = (
    _Column("pass_rate", "pass, %", percent, paired=False),  # the same for all
    _Column("lowest", f"best of {CANDIDATES} by lowest score, %", percent),
    _Column("last", f"best of {CANDIDATES} by last score, %", percent),
    _Column("any_of_n", f"any of {CANDIDATES}, %", percent, paired=False),
)
# An arm with labels of its own has them on the validation responses too, so that what is held
# against labels cannot be compared between arms.
_PRM_BY_LABELS = (
    *(_Column(name, title, paired=False) for name, title in _FIRST_ERROR),
    _Column("ece", "ECE", paired=False),
)
_PRM = (
    *(_Column(f"{name}_by_oracle", title) for name, title in _FIRST_ERROR),
    *_RERANKING,
    _Column("as_critic", "as the first critic: correlation"),
)
_COMPLETED = (
    _Column("saved", "prefixes that one of the labels' K saves"),
    _Column("ece", "ECE"),
    _Column("correlation", "correlation with the share that passes"),
)
_STYLE = (
    _Column("accused_as_written", "accused as written, %", percent),
    *(
        _Column(f"{name}_{style}", f"{said}{of}", show)
        for style, said in (
            ("commented", "comments"),
            ("with_dead_code", "dead code"),
            ("renamed", "other variables"),
            ("wrapped", "try block"),
        )
        for name, of, show in (("accused", ", %", percent), ("mean_change", ": change", decimal))
    ),
)
_OF_BASELINE = (
    *(_Column(name, title) for name, title in _FIRST_ERROR),
    *(_Column(f"{name}_by_oracle", f"{title} by the oracle") for name, title in _FIRST_ERROR),
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
    _Column("lowest", f"best of {RESPONSES} by lowest score, %", percent),
    _Column("last", f"best of {RESPONSES} by last score, %", percent),
    _Column("any_of_n", f"any of {RESPONSES}, %", percent),
    _Column("auc_passed", "AUC of passing"),
    _Column("passing", "mean score, passing"),
    _Column("failing", "failing"),
    _Column("exact_by_oracle", "first error exact by the oracle"),
    _Column("auc_by_oracle", "AUC in problem by the oracle"),
)


def details(arms: Sequence[ArmRow], *, confidence: float) -> list[Detail]:
    """The tables that have rows, with the columns that have numbers.

    Those of labels and PRM name arms that share them once, and come with the differences to their
    first arm, seed by seed: how hard a seed is cancels out.
    """
    prms = _distinct([(arm.name, arm.prm) for arm in arms if arm.prm])
    found = []
    for title, caption, columns, rows in (
        (
            "labels",
            "Labels of failing responses held against the oracle and a search of every prefix, and "
            "what a label took; arms that share labels are named once. Milliseconds are of the "
            "clock, with compiling and validation responses; the arm that executes a program first "
            "pays for it, and those after it find its verdict.",
            _LABELS,
            _distinct([(arm.name, arm.labels) for arm in arms if arm.labels]),
        ),
        (
            "PRM by labels",
            "First errors of validation responses as the PRM finds them, held against labels by "
            "execution, which differ between arms that label in their own way (docs/results.md).",
            _PRM_BY_LABELS,
            prms,
        ),
        (
            "PRM",
            "The same against the oracle's labels; and the PRM as a judge of whole programs, and "
            "as the critic that PPO begins with.",
            _PRM,
            prms,
        ),
    ):
        found.append(_detail(title, caption, columns, rows, confidence))
        if len(rows) > 1:
            (reference, first), *others = rows
            pairs = [(name, _less(values, first)) for name, values in others]
            signed = [dataclasses.replace(c, signed=True) for c in columns if c.paired]
            if signed:
                caption = "The same, paired by seed."
                title = f"{title}, less `{reference}`"
                found.append(_detail(title, caption, signed, pairs, confidence))
    found += [
        _detail(
            "PRM by completions",
            "The PRM's scores of prefixes of responses by the baseline's checkpoints, against "
            f"{COMPLETIONS} completions of each by the policy that it ends with (docs/results.md).",
            _COMPLETED,
            _distinct([(arm.name, arm.by_completions) for arm in arms if arm.by_completions]),
            confidence,
        ),
        _detail(
            "PRM on right programs",
            "Reference solutions of validation problems: how many the PRM accuses of an error, as "
            "they are written and in another style, and the change of their lines' mean score.",
            _STYLE,
            [row for row in prms if any(name.startswith("accused") for name in row[1])],
            confidence,
        ),
        _detail(
            "PRM on the baseline, by step",
            "First errors of validation responses of each of the baseline's checkpoints, by labels "
            "and by the oracle.",
            _OF_BASELINE,
            [
                (f"{name}, {step}", arm.of_baseline[step])
                for name in [name for name, _ in prms]
                for arm in arms
                if arm.name == name
                for step in sorted(arm.of_baseline, key=int)
            ],
            confidence,
        ),
        _detail(
            "training",
            "What the rollouts of training solved, what the policy's plans decide, and the last "
            "critic against completions from the same prefixes (docs/results.md).",
            _TRAINING,
            [(arm.name, arm.training) for arm in arms if arm.training],
            confidence,
        ),
        _detail(
            "PRM on the policy, by step",
            "Responses of each checkpoint of the arm's policy to validation problems, several to "
            "a problem, and what the PRM says of them.",
            _DRIFT,
            [
                (f"{arm.name}, {step}", arm.drift[step])
                for arm in arms
                for step in sorted(arm.drift, key=int)
            ],
            confidence,
        ),
    ]
    return [detail for detail in found if detail.rows]


def _distinct(rows: Sequence[tuple[str, BySeed]]) -> list[tuple[str, BySeed]]:
    """Without the rows all of whose numbers an earlier one has: what they share was made once."""
    kept: list[tuple[str, BySeed]] = []
    for name, values in rows:
        if not any(_within(values, earlier) for _, earlier in kept):
            kept.append((name, values))
    return kept


def _within(values: BySeed, earlier: BySeed) -> bool:
    return all(some.items() <= earlier.get(name, {}).items() for name, some in values.items())


def _less(ours: BySeed, theirs: BySeed) -> BySeed:
    """Our numbers less theirs, of the seeds that both have."""
    found = {
        name: {
            seed: value - theirs[name][seed] for seed, value in some.items() if seed in theirs[name]
        }
        for name, some in ours.items()
        if name in theirs
    }
    return {name: some for name, some in found.items() if some}


def _detail(
    title: str,
    caption: str,
    columns: Sequence[_Column],
    rows: Sequence[tuple[str, BySeed]],
    confidence: float,
) -> Detail:
    columns = [c for c in columns if any(c.field in values for _, values in rows)]
    means = [
        (
            name,
            max(len(values.get(column.field, {})) for column in columns),
            {f: seed_mean([*some.values()], confidence=confidence) for f, some in values.items()},
        )
        for name, values in (rows if columns else ())
    ]
    return Detail(
        title,
        f"{caption} Means over the seeds that have it, ± half of their interval by seeds.",
        ("seeds", *(column.title for column in columns)),
        [
            DetailRow(
                name,
                (n, *(s.mean if (s := values.get(c.field)) else None for c in columns)),
                (f"{n}", *(_shown(values.get(column.field), column) for column in columns)),
            )
            for name, n, values in means
        ],
    )


def _shown(value: SeedMean | None, column: _Column) -> str:
    if value is None:
        return column.show(None)
    sign = "+" if column.signed and value.mean >= 0 else ""
    mean = f"{sign}{column.show(value.mean)}"
    return mean if value.half is None else f"{mean} ± {column.show(value.half)}"
