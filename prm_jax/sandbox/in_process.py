"""Test suites that need objects and program in one interpreter: unittest cases, pytest functions.

There a program can forge the verdict, for it can replace whatever judges it, so this is for people
who ask for it (`python -m prm_jax.judge --in-process`) and never for rewards. The jail holds all
the same. A suite becomes part of the program, and each of its tests a call that says "passed".
"""

import ast
from typing import TypeGuard

from prm_jax.sandbox.core import identifiers
from prm_jax.types import CallTests

_CASES = ("TestCase", "IsolatedAsyncioTestCase")

# Runs in the jail. What is asserted fails the test; any other exception is an error of the program.
_RUNNER = """
exec(compile({suite!r}, "<suite>", "exec"))
def run_test_of_suite(name):
    import unittest
    owner, _, method = name.rpartition(".")
    kind = globals().get(owner)
    try:
        if not owner:
            globals()[method]()
        elif issubclass(kind, unittest.TestCase):
            result = unittest.TestResult()
            unittest.TestSuite([kind(method)]).run(result)
            if result.errors:
                raise RuntimeError(result.errors[0][1][-400:])
            if result.failures or result.unexpectedSuccesses:
                return "failed"
        else:
            case = kind()
            getattr(case, "setup_method", lambda: None)()
            try:
                getattr(case, method)()
            finally:
                getattr(case, "teardown_method", lambda: None)()
    except AssertionError:
        return "failed"
    return "passed"
"""


class BadSuite(ValueError):
    """The suite cannot be run; says why."""


def as_calls(program: str, suite: str) -> tuple[str, CallTests]:
    """The program with the suite in it, and a call for each test; raises BadSuite.

    The suite sees the program's names, and may import them `from program`.
    """
    names = test_names(suite)
    if not names:
        raise BadSuite("no tests: define test functions, or test methods of a test class")
    statements = tuple(f"assert run_test_of_suite({name!r}) == 'passed'" for name in names)
    return program + "\n" + _RUNNER.format(suite=suite), CallTests(statements)


def test_names(suite: str) -> list[str]:
    """`test_x` and `Class.test_x` of every test, inherited ones too; raises BadSuite."""
    try:
        body = identifiers.parse(suite).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BadSuite(f"it cannot be read: {error}") from error
    classes = {node.name: node for node in body if isinstance(node, ast.ClassDef)}
    found = []
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _is_test(node):
            if isinstance(node, ast.AsyncFunctionDef) or node.args.args:
                raise BadSuite(f"{node.name} is async or takes arguments: no fixtures are offered")
            found.append(node.name)
        elif isinstance(node, ast.ClassDef):
            bases = _with_bases(node, classes)
            if node.name.startswith("Test") or any(name in _CASES for name in bases):
                found += [f"{node.name}.{method}" for method in _methods(bases, classes)]
    return found


def _with_bases(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> list[str]:
    """The class's name and those of all that it inherits from, as far as the suite says."""
    names = [node.name]
    for name in names:
        for base in classes[name].bases if name in classes else []:
            text = ast.unparse(base).rpartition(".")[2]
            if text not in names:
                names.append(text)
    return names


def _methods(names: list[str], classes: dict[str, ast.ClassDef]) -> list[str]:
    own = [item for name in names if name in classes for item in classes[name].body]
    return list(dict.fromkeys(item.name for item in own if _is_test(item)))


def _is_test(node: ast.stmt) -> TypeGuard[ast.FunctionDef | ast.AsyncFunctionDef]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return node.name.startswith("test")
    return False
