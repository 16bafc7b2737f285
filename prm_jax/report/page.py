"""Fills `page.html` with what a workdir holds and writes `report.html` beside it.

Programs are hostile text: the template escapes everything, characters that hide or reorder text
are shown as escapes, and a content security policy lets nothing run or load but the page's own.
"""

import base64
import hashlib
import json
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from prm_jax.metrics import duration, read_metrics
from prm_jax.report import figures

SCHEMA = 1
_HERE = Path(__file__).parent

# (metric, title, in percent), the most telling first: the first four that a run has are shown at
# once, the rest is folded away.
_CURVES = (
    ("reward/outcome", "Training programs that pass", True),
    ("reward/line", "Line reward per program", False),
    ("reward/kl", "KL term of the reward", False),
    ("rollout/lines", "Lines per program", False),
    ("rollout/length_tokens", "Tokens per program", False),
    ("policy/approx_kl", "KL of one update", False),
    ("policy/clip_fraction", "Tokens clipped", True),
    ("policy/entropy", "Entropy of the policy", False),
    ("value/loss", "Critic loss", False),
    ("value/explained_variance", "Critic: explained variance", False),
    ("sft/loss", "SFT loss", False),
    ("prm/loss", "PRM loss", False),
)
_CURVES_AT_ONCE = 4

# The only script of the page: the button that switches between light and dark.
_SCRIPT = """
document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  root.dataset.theme = (root.dataset.theme || system) === "dark" ? "light" : "dark";
});
"""


class ReportError(ValueError):
    """The workdir holds nothing to report, or results of another schema."""


def write_report(workdir: Path | str) -> Path:
    """Writes `workdir/report.html` from the files of the workdir and returns its path.

    Raises ReportError if the workdir holds neither results nor metrics, or other than schema 1.
    """
    workdir = Path(workdir)
    results = _read_json(workdir / "results.json")
    metrics = read_metrics(workdir)
    if results is None and not metrics:
        raise ReportError(
            f"--workdir = {str(workdir)!r} holds neither results.json nor metrics.jsonl; "
            f"run `python -m prm_jax.train --workdir {workdir}` first"
        )
    results = results or {}
    if results and results.get("schema") != SCHEMA:
        raise ReportError(
            f"{workdir / 'results.json'} has schema {results.get('schema')!r}, and this version "
            f"reads {SCHEMA}; run the evaluate stage again"
        )
    html = _page(
        results=results,
        metrics=metrics,
        programs=_read_lines(workdir / "evaluate" / "scored.jsonl"),
        config=_read_json(workdir / "config.json"),
    )
    path = workdir / "report.html"
    new = path.with_name("report.html.new")
    # Generated text may hold lone surrogates, which UTF-8 has no bytes for.
    new.write_bytes(html.encode("utf-8", errors="replace"))
    os.replace(new, path)
    return path


def _page(*, results: dict, metrics: list, programs: list, config: dict | None) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = {
        "percent": percent, "signed": signed, "decimal": decimal, "count": count,
        "duration": duration,
    }  # fmt: skip
    # JSON null: the quantity is not defined, such as an AUC without a single wrong line.
    environment.filters |= {name: _or_dash(function) for name, function in filters.items()}
    environment.filters["visible"] = visible
    arms = {arm: results["arms"][arm] for arm in figures.ARMS if arm in results.get("arms", {})}
    curves = [
        (title, svg)
        for name, title, in_percent in _CURVES
        if (svg := figures.curve(metrics, name, percent=in_percent)) is not None
    ]
    prm = results.get("prm", {})
    horizons = {arm: {**r.get("by_horizon", {}), **_longer(r)} for arm, r in arms.items()}
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    return environment.get_template("page.html").render(
        css=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup(_SCRIPT),
        script_digest=digest,
        results=results,
        arms=arms,
        names=figures.ARMS,
        curves=curves[:_CURVES_AT_ONCE],
        more_curves=curves[_CURVES_AT_ONCE:],
        stages=[s for s in ("sft", "rl", "prm", "rl_prm") if any(m["stage"] == s for m in metrics)],
        intervals=figures.intervals(arms) if arms else None,
        by_horizon=figures.by_horizon(arms) if any(horizons.values()) else None,
        horizons=horizons,
        all_horizons=sorted({h for table in horizons.values() for h in table}, key=int),
        long_horizons={h for r in arms.values() for h in _longer(r)},
        ks=sorted({k for r in arms.values() for k in r.get("pass_at_k", {})}, key=int),
        long_ks=sorted({k for r in arms.values() for k in _long(r).get("pass_at_k", {})}, key=int),
        long=_long,
        prm=prm,
        calibration=figures.calibration(prm["calibration"]) if prm.get("calibration") else None,
        programs=[_with_marks(program, prm) for program in programs],
        config=None if config is None else json.dumps(config, indent=2, ensure_ascii=False),
    )


def percent(fraction: float, digits: int = 1) -> str:
    """A fraction as percent, without the sign: 0.683 -> `68.3`."""
    return f"{100 * fraction:.{digits}f}"


def decimal(number: float, digits: int = 2) -> str:
    """A number without sign: 1.6524 -> `1.65`."""
    return f"{number:.{digits}f}"


def count(number: int) -> str:
    """An integer in groups of three: 46012 -> `46 012`, with no-break spaces."""
    return f"{number:,}".replace(",", "\N{NO-BREAK SPACE}")


def signed(number: float, digits: int = 2) -> str:
    """A number with its sign, set as people set it: `+0.83`, `−0.41`; what rounds to 0 has none."""
    text = f"{number:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def visible(text: str) -> str:
    """`text` with every character that hides, reorders or breaks text shown as its escape.

    Control, format (bidirectional overrides, zero-width joiners), surrogate and private characters;
    newline and tab stay.
    """
    return "".join(
        c if c in "\n\t" or unicodedata.category(c)[0] != "C" else ascii(c)[1:-1] for c in text
    )


def _or_dash(function: Callable[..., str]) -> Callable[..., str]:
    return lambda value, *arguments: "–" if value is None else function(value, *arguments)


def _long(arm: dict[str, Any]) -> dict[str, Any]:
    return arm.get("test_long", {})


def _longer(arm: dict[str, Any]) -> dict[str, Any]:
    return _long(arm).get("by_horizon", {})


def _with_marks(program: dict[str, Any], prm: dict[str, Any]) -> dict[str, Any]:
    """Adds `suspect`: the first line of code whose score is below the PRM's threshold."""
    threshold = prm.get("first_error", {}).get("threshold")
    suspects = [
        index
        for index, line in enumerate(program["lines"])
        if threshold is not None and line["kind"] == "code" and line["score"] is not None
        if line["score"] < threshold
    ]
    return {**program, "suspect": suspects[0] if suspects else None}


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _read_lines(path: Path) -> list[Any]:
    if not path.exists():
        return []
    # Not splitlines(): JSON may hold U+2028 and its like, which end no line here.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
