"""The page of a study: all arms over all seeds, for `python -m prm_jax.study`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes

from prm_jax.report import figures
from prm_jax.report.templates import make_environment, read_css, write_page


def write_study(
    path: Path,
    *,
    study: Any,
    tables: Sequence[Any],
    details: Sequence[Sequence[Any]],
    bad: Sequence[Any],
) -> Path:
    """Writes one self-contained page and returns its path; beside it, its drawings as files.

    What prm_jax.study makes of its records: a Study, a SetTable for every set of problems, the
    Details of each of them, and the lines of runs that failed or were cut short.
    """
    drawings = []
    for table in tables:
        named = {"": seeds_and_interval(table), "-price": price(table, study.priced)}
        drawings.append({end: drawing for end, drawing in named.items() if drawing is not None})
        for end, drawing in drawings[-1].items():
            name = f"{path.stem}-{table.name.replace('/', '-')}{end}.svg"
            write_page(path.with_name(name), figures.standalone(drawing, read_css()))
    html = (
        make_environment()
        .get_template("study.html")
        .render(
            css=read_css(),
            study=study,
            tables=list(zip(tables, drawings, details, strict=True)),
            bad=bad,
        )
    )
    return write_page(path, html)


def seeds_and_interval(table: Any) -> Markup:
    """pass@1 of every arm: a small dot for each seed, the mean, and the interval by seeds."""
    rows = [arm for arm in table.arms if arm.pass_at_1 is not None]
    color = figures.COLORS["rl_prm"]
    said = []

    def draw(axes: Axes) -> None:
        for y, arm in enumerate(rows):
            e = arm.pass_at_1
            values = [100 * value for value in arm.by_seed.values()]
            axes.plot(values, [y] * len(values), ls="none", marker="|", ms=9, color=figures.MUTED)
            if e.low is not None:
                axes.plot([100 * e.low, 100 * e.high], [y, y], color=color, lw=2)
            axes.plot(
                100 * e.value, y, marker="D", ms=7, color=color, mew=1.2, ls="none",
                markeredgecolor=figures.SURFACE,
            )  # fmt: skip
            said.append(f"{arm.name} {100 * e.value:.1f} % of {e.seeds} seeds")
        axes.set_yticks(range(len(rows)), [arm.name for arm in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel("pass@1, %")
        axes.grid(False, axis="y")

    name = "seeds-" + table.name
    svg = figures.drawing(name, (560, 60 + 24 * len(rows)), draw)
    return figures.described(svg, f"pass@1 by arm: {'; '.join(said)}.")


def price(table: Any, arms: Sequence[str]) -> Markup | None:
    """pass@1 against all programs that an arm took, with the interval by seeds.

    Arms of stage `rl`, on unit tests alone, are one line, and those of `rl_prm` another. None with
    fewer than three arms, which are no line.
    """
    rows = [
        arm
        for arm in table.arms
        if arm.name in arms and arm.pass_at_1 is not None and arm.programs["generated"]
    ]
    if len(rows) < 3:
        return None
    rows.sort(key=lambda arm: arm.programs["generated"])
    said = []

    def draw(axes: Axes) -> None:
        for kind in ("rl", "rl_prm"):
            some = [arm for arm in rows if arm.measure == kind]
            x = [arm.programs["generated"] for arm in some]
            y = [100 * arm.pass_at_1.value for arm in some]
            color, marker = figures.COLORS[kind], figures.MARKERS[kind]
            style = {"color": color, "ls": figures.LINES[kind], "marker": marker, "ms": 6}
            axes.plot(x, y, lw=1.6, label=figures.ARMS[kind], **style)
            for arm, at, value in zip(some, x, y, strict=True):
                e = arm.pass_at_1
                if e.low is not None:
                    axes.plot([at, at], [100 * e.low, 100 * e.high], color=color, lw=1, alpha=0.6)
                axes.annotate(
                    arm.name, (at, value), xytext=(7, -12), textcoords="offset points", fontsize=10
                )
                said.append(f"{arm.name} {value:.1f} % for {at:,.0f} programs")
        axes.set_xscale("log")
        axes.legend(frameon=False, loc="best")
        axes.margins(x=0.18)
        axes.set_xlabel("programs generated, all in all")
        axes.set_ylabel("pass@1, %")

    svg = figures.drawing("price-" + table.name, (560, 320), draw)
    return figures.described(svg, f"pass@1 by programs generated: {'; '.join(said)}.")
