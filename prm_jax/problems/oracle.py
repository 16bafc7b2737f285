"""Where a solution of a built-in problem goes wrong, read off its text without running it.

A diagnostic for reports and tests, never a label: the method itself learns about lines from
executions alone. The oracle knows the steps, follows which list every variable holds, and accepts
any names and any order of words that Python reads as the right expression.
"""

import ast
import dataclasses
import functools
import warnings
from collections.abc import Sequence

from prm_jax.problems.branches import oracle as branches
from prm_jax.problems.branches.generator import Function
from prm_jax.problems.chains.generator import Chain
from prm_jax.problems.chains.operations import Step

Asked = Chain | Function

# A program that assigns to one of these breaks the expressions that call it.
_CALLED = frozenset({"abs", "enumerate", "max", "min", "sorted"})


@dataclasses.dataclass(frozen=True)
class _Statement:
    kind: str  # "pass", "assign", "return" or "other"
    target: str = ""
    value: str = ""  # canonical text of the expression
    names: frozenset[str] = frozenset()  # read by the expression


def first_error(asked: Asked, completion: str) -> int | None:
    """The index of the first wrong line of a completion, None if it solves the problem.

    `asked` is what the problem asks for (`ProblemSets.asked[task_id]`).
    """
    if isinstance(asked, Chain):
        return _first_error(asked, completion)
    return branches.first_error(asked, completion)


def _first_error(chain: Chain, completion: str) -> int | None:
    """The first wrong line of a chain's completion.

    Lines are those that newline bytes end. A line is wrong if Python cannot read it, if the list
    that it computes is none of the chain's, or if it returns another than the last. A completion
    that ends without `return` is wrong in its last line. A wrong line whose list the result does
    not depend on is forgiven: the program passes.
    """
    lines = completion.split("\n")
    if len(lines) > 1 and lines[-1] == "":
        lines.pop()
    # done[x] = k: variable x holds the list after k steps; wrong lists are not held at all.
    done = {chain.names[0]: 0}
    first_wrong: int | None = None
    solved = returned = False
    indent = None
    for i, line in enumerate(lines):
        text = line.strip(" \t\r\f")
        if not text or text.startswith("#"):
            continue
        statement = _statement(text)
        margin = line[: len(line) - len(line.lstrip(" \t"))]
        indent = margin if indent is None else indent
        if statement.kind == "other" or not margin or margin != indent:
            return i if first_wrong is None else first_wrong
        if returned or statement.kind == "pass":
            continue
        held = _steps_done(statement, done, chain.steps)
        if statement.kind == "return":
            returned = True
            solved = held == len(chain.steps)
            wrong = not solved
        else:
            done.pop(statement.target, None)
            if held is not None:
                done[statement.target] = held
            wrong = held is None
        if wrong and first_wrong is None:
            first_wrong = i
    if solved:
        return None
    return len(lines) - 1 if first_wrong is None else first_wrong


def _steps_done(statement: _Statement, done: dict[str, int], steps: Sequence[Step]) -> int | None:
    """How many steps lead to the expression's list; None if it is none of the chain's lists."""
    for name in statement.names & done.keys():
        k = done[name]
        if statement.value == _canonical(name):
            return k
        if k < len(steps) and statement.value == _canonical(steps[k].expression(name)):
            return k + 1
    return None


@functools.lru_cache(maxsize=1 << 14)
def _canonical(expression: str) -> str:
    return ast.dump(ast.parse(expression, mode="eval").body)


@functools.lru_cache(maxsize=1 << 16)
def _statement(text: str) -> _Statement:
    """What one line says, by the parser alone."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the parser warns of odd literals
            body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return _Statement("other")
    match body:
        case [ast.Pass()]:
            return _Statement("pass")
        case [ast.Assign(targets=[ast.Name(id=target)], value=value)] if target not in _CALLED:
            return _read("assign", target, value)
        case [ast.Return(value=ast.expr() as value)]:
            return _read("return", "", value)
    return _Statement("other")


def _read(kind: str, target: str, value: ast.expr) -> _Statement:
    nodes = list(ast.walk(value))
    if any(isinstance(n, ast.Yield | ast.YieldFrom | ast.Await | ast.NamedExpr) for n in nodes):
        return _Statement("other")  # these change what the other lines mean
    names = frozenset(n.id for n in nodes if isinstance(n, ast.Name))
    return _Statement(kind, target, ast.dump(value), names)
