"""Splitting assert statements, so that a program computes values and never sees what is expected.

`assert f(2) == 4` becomes an expression for the child, `f(2)`, and a literal that stays here, 4.
Only statements whose outcome a program could not bring about without knowing the literal are
split. `assert abs(f(2) - 4) < 0.1` is not one: a program that replaces `abs` would pass. Such
statements run whole in a second child that holds no part of the program (see `tester`).
"""

import ast
import dataclasses
import math
import operator
from collections.abc import Set
from typing import Any

from prm_jax.sandbox.core import compare, values
from prm_jax.sandbox.core.identifiers import BUILTIN_NAMES, Names, parse

_TRANSPARENT = frozenset(
    "set frozenset sorted list tuple dict len str repr int float round sum min max bool type "
    "bytes complex reversed".split()
)
_EVALUATORS = frozenset("eval exec compile __import__ getattr".split())
_CHECKERS = frozenset("isclose allclose array_equal approx is_close close".split())
_PREDICATES = frozenset(
    name
    for kind in (str, bytes, list, tuple, dict, set, frozenset, int, float)
    for name in dir(kind)
)
_ORDERINGS = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
}  # fmt: skip
_MAX_LITERAL_BYTES = 1 << 24
_MAX_POWER_BITS = 1 << 20
_NODE_BYTES = 8  # of a node in a list


@dataclasses.dataclass(frozen=True)
class Literal:
    value: Any  # tagged JSON


@dataclasses.dataclass(frozen=True)
class Computed:
    index: int  # of an expression that the child evaluates


Operand = Literal | Computed


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A chain `a < b == c`: operands and, between them, the class names of its operators."""

    operands: tuple[Operand, ...]
    operators: tuple[type[ast.cmpop], ...]


@dataclasses.dataclass(frozen=True)
class Truth:
    operand: Operand
    negated: bool


Condition = tuple[Comparison | Truth, ...]  # all of them must hold


class NotSplit(Exception):
    """The statement cannot be decided from values alone."""


def split(statements: list[str], setup: str = "") -> tuple[list[ast.expr], list[Condition]]:
    """Expressions for the child, and for each statement the condition on their values.

    Raises NotSplit, and SyntaxError for what is not Python.
    """
    tests = []
    for statement in statements:
        body = parse(statement.strip()).body
        if len(body) != 1 or not isinstance(body[0], ast.Assert):
            raise NotSplit(statement)
        tests.append(body[0].test)
    return _split(tests, parse(setup))


def _split(tests: list[ast.expr], setup: ast.Module) -> tuple[list[ast.expr], list[Condition]]:
    names = Names.of(setup, *tests)
    own = Names.of(setup).bound | names.sources().keys()
    splitter = _Splitter(own, asks_builtins=names.free() <= own)
    conditions = [tuple(splitter.condition(test)) for test in tests]
    return splitter.expressions, conditions


def split_check(code: str, entry_point: str) -> tuple[list[ast.expr], list[Condition]]:
    """The same for code whose `check(candidate)` is nothing but asserts: one condition in all.

    Raises NotSplit, and SyntaxError for what is not Python.
    """
    body = parse(code).body
    others = [node for node in body if not isinstance(node, ast.FunctionDef)]
    functions = [node for node in body if isinstance(node, ast.FunctionDef)]
    plain = ast.Import | ast.ImportFrom | ast.Assign | ast.Expr
    if [f.name for f in functions] != ["check"] or not all(isinstance(n, plain) for n in others):
        raise NotSplit("more than a check")
    (check,) = functions
    if len(check.args.args) != 1:
        raise NotSplit("more than a candidate")
    candidate = _Candidate(check.args.args[0].arg, parse(entry_point, mode="eval").body)
    tests = []
    for node in check.body:
        match node:
            case ast.Assert(test=ast.Constant(value=value)) if value:
                continue
            case ast.Assert(test=test):
                tests.append(candidate.visit(test))
            case ast.Pass() | ast.Expr(value=ast.Constant()):
                continue
            case _:
                raise NotSplit(ast.unparse(node))
    if not tests:
        raise NotSplit("no asserts")
    expressions, conditions = _split(tests, ast.Module(others, []))
    return expressions, [tuple(part for condition in conditions for part in condition)]


class _Candidate(ast.NodeTransformer):
    """Puts the entry point where the check says `candidate`."""

    def __init__(self, name: str, entry_point: ast.expr):
        self._name = name
        self._entry_point = entry_point

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self._entry_point if node.id == self._name else node


def holds(condition: Condition, results: list[Any], tolerance: float = 0.0) -> bool:
    """Whether a condition holds for the values that came; raises Malformed."""
    try:
        return all(_holds(part, results, tolerance) for part in condition)
    except values.Malformed:
        raise
    except Exception as error:  # the values are hostile, and no verdict may hang on how
        raise values.Malformed(str(error)[:200]) from error


class _Splitter:
    def __init__(self, own: Set[str], asks_builtins: bool):
        self._asks_builtins = asks_builtins  # the tests name nothing else of the program
        self._left = _MAX_LITERAL_BYTES  # for all literals together
        self._own = own  # names that are not the program's: of the set-up, of modules
        self.expressions: list[ast.expr] = []

    def condition(self, test: ast.expr) -> list[Comparison | Truth]:
        if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
            return [part for value in test.values for part in self.condition(value)]
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            return [Truth(self._computed(test.operand), True)]
        if isinstance(test, ast.Compare):
            return [self._comparison(test)]
        return [Truth(self._computed(test), False)]

    def _comparison(self, test: ast.Compare) -> Comparison:
        sides = [test.left, *test.comparators]
        for op, right in zip(test.ops, test.comparators, strict=True):
            if isinstance(op, ast.Is | ast.IsNot):
                if not (isinstance(right, ast.Constant) and right.value in (None, True, False)):
                    raise NotSplit("identity of objects")
            elif isinstance(op, ast.In | ast.NotIn):
                if not isinstance(right, ast.List | ast.Tuple | ast.Set):
                    raise NotSplit("membership in something that is no literal")
        return Comparison(tuple(map(self._operand, sides)), tuple(type(op) for op in test.ops))

    def _operand(self, node: ast.expr) -> Operand:
        try:
            value = literal(node)
        except (ValueError, TypeError, ArithmeticError, AttributeError):
            return self._computed(node)
        encoder = values.Encoder(max(self._left, 0))
        encoded = encoder.encode(value)
        self._left -= encoder.spent + _NODE_BYTES * encoder.nodes
        return Literal(encoded)

    def _computed(self, node: ast.expr) -> Computed:
        if not self._direct(node):
            raise NotSplit(ast.unparse(node))
        self.expressions.append(node)
        return Computed(len(self.expressions) - 1)

    def _direct(self, node: ast.expr) -> bool:
        """Whether the node's value is the program's own answer, perhaps in another container."""
        match node:
            case ast.Name(id=name):
                return self._of_program(name)
            case ast.Call(func=ast.Name(id=name)) if self._of_program(name):
                return name not in _CHECKERS
            case ast.Call(func=ast.Name(id=name)) if name in BUILTIN_NAMES:
                if not any(map(self._of_program, Names.of(node).used)):
                    # perhaps the program has a function of this name
                    return self._asks_builtins and name not in _EVALUATORS
                keys = all(isinstance(k.value, ast.Lambda | ast.Constant) for k in node.keywords)
                return name in _TRANSPARENT and keys and self._container(node.args)
            case ast.Call(func=ast.Attribute(value=inner, attr=attribute)):
                if attribute in _PREDICATES and (node.args or node.keywords):
                    return False
                return not attribute.startswith("__") and self._direct(inner)
            case ast.Call(func=ast.Call() as inner):
                return self._direct(inner)
            case ast.Attribute(value=inner, attr=attribute):
                return not attribute.startswith("__") and self._direct(inner)
            case ast.Subscript(value=inner):
                return self._direct(inner)
            case ast.Tuple(elts=items) | ast.List(elts=items) | ast.Set(elts=items):
                return self._container(items)
        return False

    def _container(self, items: list[ast.expr]) -> bool:
        direct = [self._direct(item) for item in items]
        others = [item for item, yes in zip(items, direct, strict=True) if not yes]
        return any(direct) and all(isinstance(item, ast.Constant) for item in others)

    def _of_program(self, name: str) -> bool:
        return name not in BUILTIN_NAMES and name not in self._own


def literal(node: ast.expr) -> Any:
    """The value of an expression of constants, containers, arithmetic and `math` constants.

    Raises ValueError and others for any other expression; bounded in size.
    """
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Tuple(elts=items):
            return tuple(map(literal, items))
        case ast.List(elts=items):
            return list(map(literal, items))
        case ast.Set(elts=items):
            return set(map(literal, items))
        case ast.Dict(keys=keys, values=items):
            if any(key is None for key in keys):
                raise ValueError("unpacking")
            return {literal(k): literal(v) for k, v in zip(keys, items, strict=True) if k}
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            return _UNARY[type(op)](literal(operand))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _arithmetic(type(op), literal(left), literal(right))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _CONTAINERS:
            return _container(_CONTAINERS[name], [literal(arg) for arg in args])
        case ast.Attribute(value=ast.Name(id="math"), attr=attribute) if attribute in _CONSTANTS:
            return getattr(math, attribute)
    raise ValueError(f"no literal: {type(node).__name__}")


_CONSTANTS = ("pi", "e", "tau", "inf", "nan")
_CONTAINERS = {
    "set": set, "frozenset": frozenset, "list": list, "tuple": tuple, "dict": dict,
    "float": float, "complex": complex, "range": range, "bytes": bytes,
}  # fmt: skip
_UNARY = {ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Invert: operator.invert}
_BINARY = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}  # fmt: skip


def _container(kind: type, arguments: list[Any]) -> Any:
    """`list(range(10**10))` and `bytes(10**10)` are short to write."""
    if kind is bytes and any(isinstance(a, int) and a > values.MAX_NODES for a in arguments):
        raise ValueError("literal too large")
    if any(isinstance(a, range) and len(a) > values.MAX_NODES for a in arguments):
        raise ValueError("literal too large")
    return kind(*arguments)


def _arithmetic(op: type[ast.operator], left: Any, right: Any) -> Any:
    if isinstance(left, str | bytes) and op is ast.Mod:
        raise ValueError("formatting has no bound")
    if op is ast.Mult:
        sizes = [len(x) for x in (left, right) if hasattr(x, "__len__")]
        counts = [x for x in (left, right) if isinstance(x, int)]
        if sizes and max(sizes) * max(counts, default=0) > values.MAX_NODES:
            raise ValueError("literal too large")
    if op is ast.Pow and isinstance(left, int) and isinstance(right, int):
        if right > 0 and left.bit_length() * right > _MAX_POWER_BITS:
            raise ValueError("literal too large")
    return _BINARY[op](left, right)


def _holds(part: Comparison | Truth, results: list[Any], tolerance: float) -> bool:
    if isinstance(part, Truth):
        return compare.truth(_value(part.operand, results)) != part.negated
    data = [_value(operand, results) for operand in part.operands]
    return all(_compare(op, data[i], data[i + 1], tolerance) for i, op in enumerate(part.operators))


def _value(operand: Operand, results: list[Any]) -> Any:
    return operand.value if isinstance(operand, Literal) else results[operand.index]


def _compare(op: type[ast.cmpop], left: Any, right: Any, tolerance: float) -> bool:
    if op is ast.Eq:
        return compare.equal(left, right, tolerance)
    if op is ast.NotEq:
        return not compare.equal(left, right, tolerance)
    if op in (ast.Is, ast.IsNot):
        same = type(left) is type(right) and left == right
        return same == (op is ast.Is)
    if op in (ast.In, ast.NotIn):
        found = any(compare.equal(left, item, tolerance) for item in right[1:])
        return found == (op is ast.In)
    return compare.ordered(left, right, _ORDERINGS[op])
