"""MBPP and its sanitized part (Austin et al. 2021, arXiv 2108.07732): short tasks, three asserts.

Fields: task_id, text (sanitized: prompt), code, test_list, test_setup_code (sanitized:
test_imports). As in the paper the prompt shows the task and all its tests; it is written as a
docstring (InCoder, Fried et al. 2022, arXiv 2204.05999), which a base model continues with code,
rather than between [BEGIN] and [DONE], which a model has to be shown examples of first.
"""

from prm_jax.problems.formats import words
from prm_jax.problems.rows import Row
from prm_jax.types import CallTests, Problem

# A completion is whole functions, so `def` and `class` do not end it; a new docstring, tests or
# the end of a code block do.
STOP_STRINGS = ('\n"""', "\nassert", "\nprint", "\n```", "\n[DONE]")
# The paper's section 2.1: few-shot prompts, test, validation, train, by task_id.
_LAST = {"prompt": 10, "test": 510, "validation": 600, "train": 974}


def problem(row: Row) -> Problem:
    """A problem of MBPP; raises BadRow."""
    task = row.text("text") if row.has("text") else row.text("prompt")
    tests = row.texts("test_list")
    if not tests:
        raise row.wrong("test_list", "a list of asserts, not empty")
    solution = row.text("code").replace("\r\n", "\n").rstrip() + "\n"
    imports = "\n".join(row.texts("test_imports", ()))
    setup = row.text("test_setup_code", "")
    return Problem(
        task_id=row.name("task_id"),
        prompt=prompt(task, tests),
        tests=CallTests(tests, "\n".join(part for part in (imports, setup) if part)),
        solution=solution,
        instruction=instruction(task, tests),
        horizon=words.horizon(solution),
    )


def split(row: Row) -> str:
    """Splits by task_id: 1-10 prompt, 11-510 test, 511-600 validation, 601-974 train."""
    task_id = row.whole("task_id", 0, least=1)
    for name, last in _LAST.items():
        if task_id <= last:
            return name
    raise row.wrong("task_id", "at most 974")


def prompt(task: str, tests: tuple[str, ...]) -> str:
    """The docstring that a completion follows."""
    lines = "\n".join(tests)
    return f'"""\n{task.strip()}\n{lines}\n"""\n'


def instruction(task: str, tests: tuple[str, ...]) -> str:
    """The task and its tests in words, for a chat model."""
    lines = "\n".join(tests)
    return words.function_instruction(
        f"{task.strip()}\nThe code must pass these tests:\n\n{words.fenced(lines)}"
    )
