"""Compiling test code in the broker, where that has a bound; the rest is for the child.

The broker has no limits of its own, and a few hundred characters can compile to hundreds of MiB.
"""

import ast
import marshal
import types
import warnings

from prm_jax.sandbox.core.identifiers import nodes, parse

_MAX_CODE_BYTES = 1 << 18  # of one piece of test code, compiled


def compiled(code: str | ast.expr, name: str) -> types.CodeType | str:
    """Statements or an expression, compiled; or as text where compiling has no good bound.

    Such code is for the child to compile, under the limits of the program. Raises SyntaxError,
    ValueError and others.
    """
    if isinstance(code, str):
        tree, mode = parse(code), "exec"
    else:
        tree, mode = ast.Expression(code), "eval"
    if not any(map(_multiplies, nodes(tree))):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what Python has to say about escapes
            made = compile(tree, name, mode)
        if len(marshal.dumps(made)) <= _MAX_CODE_BYTES:
            return made
    return code if isinstance(code, str) else ast.unparse(code)


def _multiplies(node: ast.AST) -> bool:
    """Whether compiling may make much of little: copies of a `finally`, sums of constants.

    The code of a `finally` is repeated for each way out of its `try`, once more per level where
    they are nested. Of constants, `"ab" * 2000` and `"ab" + "c"` become what they mean; numbers
    stay below 128 bits.
    """
    if isinstance(node, ast.Try | ast.TryStar):
        return bool(node.finalbody)
    if not isinstance(node, ast.BinOp):
        return False
    sides = node.left, node.right
    if any(isinstance(side, ast.Name | ast.Call | ast.Attribute) for side in sides):
        return False  # nothing is known before it runs
    return any(_is_sequence(side) for side in sides)


def _is_sequence(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str | bytes)
    return isinstance(node, ast.Tuple | ast.Subscript)
