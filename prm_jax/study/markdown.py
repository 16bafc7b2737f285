"""The tables of a study as Markdown."""

from collections.abc import Sequence

from prm_jax.study.arms import Study
from prm_jax.study.details import Detail, percent
from prm_jax.study.tables import ArmRow, Record, SetTable, Step


def markdown(
    study: Study,
    tables: Sequence[SetTable],
    details: Sequence[Sequence[Detail]],
    bad: Sequence[Record],
) -> str:
    """The tables as Markdown, each of `tables` with its details."""
    level = f"{100 * study.confidence:g} %"
    parts = [f"# Study {study.name}", study.about] if study.about else [f"# Study {study.name}"]
    redrawn = (
        "the whole pipeline"
        if study.redraw == "all"
        else "the measured stage and the evaluation only"
    )
    parts.append(
        f"Seeds redraw {redrawn}. Means over seeds of pass@1 in %; n is seeds × problems. "
        f"*By seeds*: {level} interval by Student's t "
        f"over seeds. *Seeds and problems*: {level} percentiles of a bootstrap that resamples "
        f"both. Differences to {_listed(study.compared_with)} are paired by seed and problem. "
        "CPU-s: of the run itself, with attempts that were cut short; who needs a shared stage "
        "first pays for it."
    )
    for table, more in zip(tables, details, strict=True):
        parts.append(f"## {table.name}")
        arms = [arm for arm in table.arms if arm.pass_at_1 is not None]
        parts.append(
            _table(
                ("arm", "n", "pass@1", "by seeds", "seeds and problems", "greedy", "longer",
                 *(title for o in study.compared_with for title in (f"less {o}", "by seeds")),
                 "programs", "executed", "CPU-s"),
                [_cells(arm) for arm in arms],
            )
        )  # fmt: skip
        if alone := [arm for arm in table.arms if arm.finished and arm.pass_at_1 is None]:
            costs = ", ".join(f"`{arm.name}` ({arm.cpu_s:.0f} CPU-s)" for arm in alone)
            parts.append(f"Judged by their labels or their PRM alone: {costs}.")
        if left := [f"`{arm.name}`" for arm in table.arms if not arm.finished]:
            parts.append(f"No run is finished of {', '.join(left)}.")
        if table.ordering:
            parts.append("Expected order, beyond two standard errors over seeds:")
            parts.append("\n".join(f"- {_said(step)}" for step in table.ordering))
        parts.append(
            _table(
                ("arm", *(f"{h} lines" for h in table.horizons)),
                [
                    (arm.name, *(percent(arm.by_horizon.get(h)) for h in table.horizons))
                    for arm in arms
                ],
            )
        )
        parts.append(
            _table(
                ("arm", *(f"seed {seed}" for seed in table.seeds)),
                [
                    (arm.name, *(percent(arm.by_seed.get(seed)) for seed in table.seeds))
                    for arm in arms
                ],
            )
        )
        for detail in more:
            rows = [(row.name, *row.shown) for row in detail.rows]
            parts.append(detail.caption)
            parts.append(_table((detail.title, *detail.columns), rows))
    if bad:
        parts.append("## Runs that failed or were cut short")
        parts.append("All of these that have a number above were finished later.")
        parts.append("\n".join(f"- `{r['run']}`: {r['status']}, {r['error']}" for r in bad))
    return "\n\n".join(parts) + "\n"


def _cells(arm: ArmRow) -> tuple[str, ...]:
    e = arm.pass_at_1
    assert e is not None
    differences = [
        text
        for d in arm.differences.values()
        for text in (
            ("–", "–")
            if d is None
            else (f"{100 * d.value:+.1f}", _interval(d.low, d.high, sign="+"))
        )
    ]
    return (
        arm.name,
        f"{e.seeds} × {e.problems}",
        percent(e.value),
        _interval(e.low, e.high),
        _interval(e.bootstrap_low, e.bootstrap_high),
        percent(arm.greedy),
        percent(arm.long),
        *differences,
        f"{arm.programs['generated']:,.0f}",
        f"{arm.programs['executed']:,.0f}",
        "–" if arm.cpu_s is None else f"{arm.cpu_s:,.0f}",
    )


def _listed(names: Sequence[str]) -> str:
    return " and to ".join(f"`{name}`" for name in names)


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


def _interval(low: float | None, high: float | None, sign: str = "") -> str:
    if low is None or high is None:
        return "–"
    return f"{100 * low:{sign}.1f} to {100 * high:{sign}.1f}"
