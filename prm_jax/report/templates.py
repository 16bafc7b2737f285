"""What all pages share: the template environment, how numbers and programs are set, safe writing.

Programs are hostile text: the templates escape everything, characters that hide or reorder text are
shown as escapes, and a content security policy lets nothing run or load but the page's own.
"""

import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from prm_jax.metrics import duration

_HERE = Path(__file__).parent


def make_environment() -> jinja2.Environment:
    """The environment that the pages are rendered in."""
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
    return environment


def read_css() -> Markup:
    """The style sheet of the pages."""
    return Markup((_HERE / "page.css").read_text(encoding="utf-8"))


def write_page(path: Path, html: str) -> Path:
    """Writes a page whole or not at all, and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    # Generated text may hold lone surrogates, which UTF-8 has no bytes for.
    new.write_bytes(html.encode("utf-8", errors="replace"))
    os.replace(new, path)
    return path


def with_suspect(program: dict[str, Any], threshold: float | None) -> dict[str, Any]:
    """Adds `suspect`: the plan or first line of code with a score below the PRM's threshold."""
    suspects = [
        index
        for index, line in enumerate(program["lines"])
        if threshold is not None and line["kind"] in ("code", "plan") and line["score"] is not None
        if line["score"] < threshold
    ]
    return {**program, "suspect": suspects[0] if suspects else None}


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
