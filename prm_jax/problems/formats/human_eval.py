"""HumanEval (Chen et al. 2021, arXiv 2107.03374): complete a function from its docstring.

Fields: task_id, prompt, entry_point, canonical_solution, test. Test code may call what the prompt
defines beside the entry point; a program could replace that, so it becomes part of the test code.
"""

import ast

from prm_jax.problems.formats import words
from prm_jax.problems.rows import Row
from prm_jax.sandbox.core import identifiers
from prm_jax.types import CheckTests, Problem

# Section 2.1 of the paper stops at these, so that a completion is one function body.
STOP_STRINGS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
_DEEP = 80  # columns that no head of a function is indented by


def problem(row: Row) -> Problem:
    """A problem of HumanEval; raises BadRow."""
    prompt = row.text("prompt")
    solution = row.text("canonical_solution")
    entry_point = row.text("entry_point")
    return Problem(
        task_id=row.name("task_id"),
        prompt=prompt,
        tests=CheckTests(with_helpers(row.text("test"), prompt, entry_point), entry_point),
        solution=solution,
        program_prefix=prompt,
        instruction=instruction(prompt),
        horizon=words.horizon(solution),
    )


def split(row: Row) -> str:
    """All of HumanEval is for testing."""
    return "test"


def instruction(prompt: str) -> str:
    """The request for the whole function of a prompt, for a chat model."""
    return words.function_instruction(
        f"Complete this Python function so that it does what its docstring says.\n\n"
        f"{words.fenced(prompt)}"
    )


def with_helpers(test: str, prefix: str, entry_point: str) -> str:
    """Test code, with the functions of the program's prefix that it calls before it.

    Left to the program, they would be its to replace (docs/sandbox.md). Test code that calls none
    stays as it is, and so does test code that has them already.
    """
    try:
        body = _parse(prefix).body
        called = set(identifiers.free_names(test)) - {entry_point}
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return test  # the sandbox says what is wrong with it
    rest = [node for node in body if getattr(node, "name", None) != entry_point]
    helpers = [node for node in rest if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    if not any(node.name in called for node in helpers):
        return test
    return "".join(ast.unparse(node) + "\n" for node in rest) + test


def _parse(prefix: str) -> ast.Module:
    """The statements of a prefix, which may end with the head of a function."""
    try:
        return identifiers.parse(prefix)
    except SyntaxError:
        return identifiers.parse(f"{prefix.rstrip()}\n{' ' * _DEEP}pass\n")
