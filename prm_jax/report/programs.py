"""A page of programs with the PRM's score of every line, for `python -m prm_jax.score`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prm_jax.report.templates import make_environment, read_css, with_suspect, write_page

SHOWN = 200  # programs on the page: more are slow to open and are not read


def write_programs(
    path: Path, *, title: str, programs: Sequence[dict[str, Any]], threshold: float
) -> Path:
    """Writes one self-contained page and returns its path.

    A program has `id`, `task_id`, `prompt`, `last`, `min` and its `lines` (`text`, `kind`,
    `score`), as rows of scores.jsonl do.
    """
    html = (
        make_environment()
        .get_template("programs.html")
        .render(
            css=read_css(),
            title=title,
            programs=programs,
            # What the true first error is, nobody knows here.
            shown=[with_suspect(p | {"first_error": None}, threshold) for p in programs[:SHOWN]],
            threshold=threshold,
        )
    )
    return write_page(path, html)
