"""Fills `page.html` with what a workdir holds and writes `report.html` beside it."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from markupsafe import Markup

from prm_jax.metrics import read_metrics
from prm_jax.report.templates import make_environment, read_css, with_suspect, write_page

SCHEMA = 1

# (metric, title, in percent), the most telling first: the first four that a run has are shown at
# once, the rest is folded away.
_CURVES = (
    ("rollout/pass_rate", "Training programs that pass", True),
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
_SCORERS = {  # by dense.source: what RL + PRM is beside RL
    "prm": "with the process reward model",
    "oracle": "with line rewards of the exact oracle in the PRM's place",
    "labels": "with labels of its own failing responses in the PRM's place",
}
_LEARNING = "with a process reward model that learns on the way"

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
    return write_page(workdir / "report.html", html)


def _page(*, results: dict, metrics: list, programs: list, config: dict | None) -> str:
    environment = make_environment()
    # Matplotlib takes most of a second to load, which every start of a run would pay.
    from prm_jax.report import figures

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
        css=read_css(),
        script=Markup(_SCRIPT),
        script_digest=digest,
        results=results,
        arms=arms,
        names=figures.ARMS,
        scorer=_scorer((config or {}).get("dense") or {}),
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
        programs=[with_suspect(p, prm.get("first_error", {}).get("threshold")) for p in programs],
        config=None if config is None else json.dumps(config, indent=2, ensure_ascii=False),
    )


def _scorer(dense: dict[str, Any]) -> str:
    learns = dense.get("enabled", True) and dense.get("prm_updates", 0) > 0
    return _LEARNING if learns else _SCORERS[dense.get("source", "prm")]


def _long(arm: dict[str, Any]) -> dict[str, Any]:
    return arm.get("test_long", {})


def _longer(arm: dict[str, Any]) -> dict[str, Any]:
    return _long(arm).get("by_horizon", {})


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _read_lines(path: Path) -> list[Any]:
    if not path.exists():
        return []
    # Not splitlines(): JSON may hold U+2028 and its like, which end no line here.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
