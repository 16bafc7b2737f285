"""The drawings of the report, as inline SVG whose colours follow the theme of the page.

Matplotlib knows no CSS variables, so it draws in placeholder colours that are replaced in its
output. Text stays text: it takes the fonts of the page and can be searched and read aloud.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ARMS = {"sft": "SFT", "rl": "RL", "rl_prm": "RL + PRM"}

INK, MUTED, GRID, GOOD, SURFACE = "#0c0001", "#0c0002", "#0c0003", "#0c0004", "#0c0005"
COLORS = {"sft": "#0c0010", "rl": "#0c0011", "rl_prm": "#0c0012", "prm": "#0c0012"}
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--line",
    GOOD: "--good",
    SURFACE: "--surface",
    COLORS["sft"]: "--sft",
    COLORS["rl"]: "--rl",
    COLORS["rl_prm"]: "--rl-prm",
}
# Colour is never the only channel: every arm has its own line and marker too.
LINES = {"sft": ":", "rl": (0, (5, 2)), "rl_prm": "-", "prm": "-."}
MARKERS = {"sft": "s", "rl": "o", "rl_prm": "D"}

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 12,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.unicode_minus": True,
}
_MOST_POINTS = 300  # of one curve; longer ones are averaged in bins, or the page grows to megabytes

_SMOOTH_FROM = 20  # points of a curve; shorter ones are drawn as they are


def curve(metrics: Sequence[Mapping[str, Any]], name: str, *, percent: bool) -> Markup | None:
    """One metric over the steps of every stage that logged it; None if no stage did.

    The thin line is each step, the thick one is smoothed.
    """
    series = {}
    for stage in LINES:
        points = [(m["step"], m[name]) for m in metrics if m["stage"] == stage and name in m]
        if points:
            series[stage] = np.asarray(points, float) * ([1.0, 100.0] if percent else 1.0)
    if not series:
        return None
    said = []

    def draw(axes: Axes) -> None:
        for stage, points in series.items():
            steps, values = _binned(points).T
            smooth = _smoothed(values)
            style: dict[str, Any] = {"color": COLORS[stage], "linestyle": LINES[stage]}
            if len(values) < _SMOOTH_FROM:
                axes.plot(steps, values, lw=2, marker=MARKERS.get(stage, "D"), ms=4.5, **style)
            else:
                axes.plot(steps, values, lw=0.8, alpha=0.35, color=COLORS[stage])
                axes.plot(steps, smooth, lw=2.2, **style)
            label = ARMS.get(stage, stage.upper())
            said.append(f"{label} from {smooth[0]:.3g} to {smooth[-1]:.3g}")
        axes.set_xlabel("step")
        axes.margins(x=0.02)
        if percent:
            axes.set_ylabel("%")

    # The description is known once the curves are drawn.
    svg = drawing(f"curve-{name}", (400, 230), draw)
    return described(svg, f"{name} by step: {'; '.join(said)}.")


def intervals(arms: Mapping[str, Any]) -> Markup:
    """pass@1 of every arm with its interval, on the held-out and on the longer problems."""
    groups = [("held-out problems", {arm: r.get("pass_at_1") for arm, r in arms.items()})]
    longer = {arm: r.get("test_long", {}).get("pass_at_1") for arm, r in arms.items()}
    groups.append(("longer than any in training", longer))
    groups = [(title, {a: e for a, e in rows.items() if e}) for title, rows in groups]
    groups = [(title, rows) for title, rows in groups if rows]
    n_rows = sum(len(rows) + 1 for _, rows in groups)
    said = []

    def draw(axes: Axes) -> None:
        y = 0.0
        for title, rows in groups:
            axes.text(0, y, title, transform=axes.get_yaxis_transform(), va="center", color=MUTED)
            for arm in rows:
                y += 1
                value, low, high = (100 * rows[arm][key] for key in ("value", "low", "high"))
                said.append(f"{title}, {ARMS[arm]}: {value:.1f} % ({low:.1f} to {high:.1f})")
                _error_bar(axes, arm, x=value, y=y, low=low, high=high, across=True)
                axes.text(
                    1.02, y, f"{value:.1f}", transform=axes.get_yaxis_transform(), va="center"
                )
                axes.text(
                    -0.03, y, ARMS[arm], transform=axes.get_yaxis_transform(), va="center",
                    ha="right",
                )  # fmt: skip
            y += 1.2
        axes.set_ylim(y - 0.4, -0.7)
        axes.set_xlim(0, 100)
        axes.set_yticks([])
        axes.grid(False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("pass@1, %")

    svg = drawing("intervals", (360, 62 + 27 * n_rows), draw)
    return described(svg, f"pass@1 with intervals. {'; '.join(said)}.")


def by_horizon(arms: Mapping[str, Any]) -> Markup:
    """pass@1 by lines of the reference solution, with intervals; longer problems set apart."""
    within = sorted({int(h) for r in arms.values() for h in r.get("by_horizon", {})})
    beyond = sorted(
        {int(h) for r in arms.values() for h in r.get("test_long", {}).get("by_horizon", {})}
    )
    said = []

    def draw(axes: Axes) -> None:
        present = [arm for arm in ARMS if arm in arms]
        for i, arm in enumerate(present):
            shift = 0.14 * (i - (len(present) - 1) / 2)
            for found in (arms[arm], arms[arm].get("test_long", {})):
                table = found.get("by_horizon", {})
                points = [(int(h), 100 * table[h]["value"]) for h in sorted(table, key=int)]
                if not points:
                    continue
                axes.plot(
                    [h + shift for h, _ in points], [v for _, v in points], color=COLORS[arm],
                    linestyle=LINES[arm], lw=1.6, alpha=0.7,
                )  # fmt: skip
                for h, value in points:
                    low, high = (100 * table[str(h)][key] for key in ("low", "high"))
                    _error_bar(axes, arm, x=h + shift, y=value, low=low, high=high, across=False)
                    said.append(f"{ARMS[arm]} at {h} lines {value:.0f} %")
        if within and beyond:
            edge = (within[-1] + beyond[0]) / 2
            axes.axvline(edge, color=MUTED, lw=0.8, ls=(0, (2, 3)))
            axes.text(
                edge, 1.02, "longer than training →", transform=axes.get_xaxis_transform(),
                ha="right" if len(beyond) < 3 else "left", color=MUTED, size=11,
            )  # fmt: skip
        axes.set_xticks(sorted({*within, *beyond}))
        axes.set_ylim(0, 104)
        axes.set_xlabel("lines of the reference solution")
        axes.set_ylabel("pass@1, %")
        axes.grid(False, axis="x")

    svg = drawing("by-horizon", (420, 290), draw)
    return described(svg, f"pass@1 by horizon: {'; '.join(said)}.")


def calibration(bins: Sequence[Mapping[str, Any]]) -> Markup:
    """Share of prefixes that could be completed against the share predicted; area of a dot ~ count.

    Labels are -1 and +1 and the loss is squared, so a score s predicts a share of (1 + s) / 2.
    """
    filled = [b for b in bins if b["n"]]

    def draw(axes: Axes) -> None:
        axes.plot([0, 100], [0, 100], color=MUTED, lw=1, ls=(0, (4, 3)))
        x, y = [100 * b["mean_score"] for b in filled], [100 * b["success"] for b in filled]
        largest = max((b["n"] for b in filled), default=1)
        axes.plot(x, y, color=GOOD, lw=1.6)
        axes.scatter(
            x, y, s=[18 + 130 * b["n"] / largest for b in filled], color=GOOD, zorder=3,
            edgecolors=SURFACE, linewidths=1.2,
        )  # fmt: skip
        axes.set_xlim(-4, 104)
        axes.set_ylim(-4, 104)
        axes.set_xlabel("predicted by the score, %")
        axes.set_ylabel("could be completed, %")

    said = "; ".join(
        f"predicted {100 * b['mean_score']:.0f} %: {100 * b['success']:.0f} % of {b['n']}"
        for b in filled
    )
    return described(drawing("calibration", (400, 290), draw), f"Calibration. {said}.")


# ------------------------------------------------------------------------------------------ details


def _error_bar(axes, arm, *, x, y, low, high, across: bool) -> None:
    ends = ([low, high], [y, y]) if across else ([x, x], [low, high])
    axes.plot(*ends, color=COLORS[arm], lw=2, solid_capstyle="round")
    axes.plot(
        x, y, marker=MARKERS[arm], ms=7, color=COLORS[arm], markeredgecolor=SURFACE, mew=1.2,
        ls="none",
    )  # fmt: skip


def _binned(points: np.ndarray) -> np.ndarray:
    if len(points) <= _MOST_POINTS:
        return points
    return np.stack([part.mean(0) for part in np.array_split(points, _MOST_POINTS)])


def _smoothed(values: np.ndarray) -> np.ndarray:
    """At every point, the straight line that fits its neighbours best.

    A moving mean would bend the ends of a trend inwards, and they are what a reader looks at.
    """
    if len(values) < _SMOOTH_FROM:
        return values
    half = max(4, len(values) // 16)
    fitted = []
    for i in range(len(values)):
        window = np.arange(max(0, i - half), min(len(values), i + half + 1))
        x, y = window - window.mean(), values[window]
        fitted.append(y.mean() + (x @ y) / (x @ x) * (i - window.mean()))
    return np.array(fitted)


def drawing(name: str, size: tuple[float, float], draw) -> str:
    """What `draw(axes)` draws, as inline SVG; `name` tells drawings of one page apart."""
    width, height = size
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        draw(figure.add_subplot())
        out = io.StringIO()
        figure.savefig(
            out, format="svg", metadata=dict.fromkeys(["Date", "Creator", "Format", "Type"])
        )
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :].strip()  # without the XML prologue, which HTML has no place for
    svg = re.sub(r' (xmlns(:\w+)?|version)="[^"]*"', "", svg)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    # Several drawings share one page: their ids must differ.
    slug = re.sub(r"\W", "-", name)
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{slug}-", svg)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    return svg


def described(svg: str, description: str) -> Markup:
    """The drawing with words for those who do not see it."""
    label = escape(description)
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1))


def standalone(svg: str, css: str) -> str:
    """An inline drawing as a file of its own, in the light colours of the page's style sheet."""
    colors = dict(re.findall(r"(--[\w-]+): light-dark\((#\w+),", css))
    svg = re.sub(r"var\((--[\w-]+)\)", lambda found: colors[found[1]], str(svg))
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    background = f"background: {colors['--surface']}"
    return svg.replace("<svg", f'<svg {names} style="{background}"', 1) + "\n"
