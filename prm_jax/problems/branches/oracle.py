"""Where a solution of a function with branches goes wrong, read off its text.

A diagnostic for reports and tests, never a label. Lines are held against the asked ones one by
one, by what they say: names may differ, and so may spellings that always compute the same, such as
`s = v + s` for `s += v` or `v >= 4` for `v > 3`. No program is run: expressions of a few harmless
operators are evaluated on a grid of totals and items.
"""

import ast
import functools
import itertools
import operator
import warnings
from collections.abc import Mapping
from typing import Any

from prm_jax.problems.branches.generator import Function
from prm_jax.problems.branches.statements import STATEMENTS, Line

# A program that assigns to one of these breaks the expressions that call it.
_FUNCTIONS = {"abs": abs, "len": len, "max": max, "min": min, "range": range, "reversed": reversed}
_ITEMS = (-9, -8, -5, -4, -3, -2, -1, *range(13), 15, 16, 20, 24)
_TOTALS = (-61, -10, -5, -4, -3, -2, -1, *range(13), 15, 16, 20, 60)
_LISTS = ([], [4], [7, 7], [1, -2, 3, 5, 8, 13, -6], [2, 0, 9, -1, 6, 6, 3, 11])
_NUMBERS = (0, 1, 2, 3, 7, 10)
_LARGEST = 1 << 40
_LONGEST = 1000

_Say = tuple[str, Any]  # what a line says: its kind, and the tree of its expression


def first_error(function: Function, completion: str) -> int | None:
    """The index of the first wrong line of a completion, None if it is the function asked for.

    Lines are those that newline bytes end; blank lines, comments and harmless `pass` lines are
    right. A line is wrong if Python cannot read it there, or if it is not the next of the lines
    asked for; a completion that ends too early is wrong in its last line. A program that reaches
    the same results by other lines, or by the same in another order, is wrong by this reading.
    """
    lines = completion.split("\n")
    if len(lines) > 1 and lines[-1] == "":
        lines.pop()
    names: dict[str, str] = {"a": "a"}  # the name in the text -> its role: a, s or v
    margins: list[str] = []  # of the blocks that are open
    opens = False  # the line before opens a block
    k = 0
    for i, text in enumerate(lines):
        stripped = text.strip(" \t\r\f")
        if not stripped or stripped.startswith("#"):
            continue
        margin = text[: len(text) - len(text.lstrip(" \t"))]
        if not _enter(margins, margin, opens):
            return i
        kind, said = _statement(stripped)
        opens = kind in ("loop", "if", "else")
        if k == len(function.lines):
            if kind == "other" or opens or len(margins) != 1:
                return i
            continue  # behind the return: never reached
        line = function.lines[k]
        if kind == "pass":
            before_else = STATEMENTS[line.statement].kind == "else"
            if len(margins) < line.depth + before_else:
                return i  # it closes a block that has to go on
            continue
        if len(margins) != line.depth or not _is_asked(function, k, (kind, said), names):
            return i
        k += 1
    return None if k == len(function.lines) and not opens else len(lines) - 1


def _enter(margins: list[str], margin: str, opens: bool) -> bool:
    """Brings the open blocks to this margin; whether Python would accept it."""
    if opens or not margins:
        before = margins[-1] if margins else ""
        if len(margin) <= len(before) or not margin.startswith(before):
            return False
        margins.append(margin)
        return True
    if margin not in margins:
        return False
    del margins[margins.index(margin) + 1 :]
    return True


def _is_asked(function: Function, k: int, says: _Say, names: dict[str, str]) -> bool:
    """Whether a line says what line k of the function does; learns the names that it gives."""
    kind, said = says
    line = function.lines[k]
    wanted_kind, wanted = _statement(line.code())
    if kind != wanted_kind:
        return False
    match kind:
        case "set":
            target, value = said
            if k == 0:
                if target in names or target in _FUNCTIONS:
                    return False
                names[target] = "s"
            return names.get(target) == "s" and _same(function, k, line, value, wanted[1], names)
        case "loop":
            target, iterable = said
            if names.get(target) == "s" or target in _FUNCTIONS:
                return False
            right = _same(function, k, line, iterable, wanted[1], names)
            names[target] = "v"
            return right
        case "if" | "return":
            return _same(function, k, line, said, wanted, names)
    return True  # else, break, continue


def _same(
    function: Function, k: int, line: Line, said: ast.expr, wanted: ast.expr, names: dict[str, str]
) -> bool:
    """Whether two expressions have the same value, or truth, wherever line k can be reached."""
    in_loop = line.depth > 1 and k < _behind_loop(function)
    roles = "as" if k == 1 else "sv" if in_loop else "s" if k else ""
    known = tuple(sorted((name, role) for name, role in names.items() if role in roles))
    truth = STATEMENTS[line.statement].kind == "if"
    return _equal(ast.dump(said), _Tree(said), _Tree(wanted), known, function.takes_list, truth)


def _behind_loop(function: Function) -> int:
    """The first line after the loop."""
    return next(k for k, line in enumerate(function.lines) if k > 1 and line.depth == 1)


class _Tree:
    """An expression that is equal to others of the same text, so that answers can be kept."""

    def __init__(self, tree: ast.expr):
        self.tree = tree
        self.text = ast.dump(tree)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Tree) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)


@functools.lru_cache(maxsize=1 << 16)
def _equal(
    text: str, said: _Tree, wanted: _Tree, names: tuple, takes_list: bool, truth: bool
) -> bool:
    roles = [role for _, role in names]
    values = {"s": _TOTALS, "v": _ITEMS, "a": _LISTS if takes_list else _NUMBERS}
    used = [role for role in "asv" if role in roles]
    for point in itertools.product(*(values[role] for role in used)):
        at = dict(zip(used, point, strict=True))
        right = _value(wanted.tree, at)
        try:
            found = _value(said.tree, {name: at[role] for name, role in names})
        except (ArithmeticError, LookupError, TypeError, ValueError):
            return False
        if truth:
            right, found = bool(right), bool(found)
        elif isinstance(right, range | list):
            if not isinstance(found, range | list | reversed | type(reversed(range(0)))):
                return False
            right, found = list(right), list(found)
        if found != right:
            return False
    return True


# ---------------------------------------------------------------------- reading and evaluating


@functools.lru_cache(maxsize=1 << 16)
def _statement(text: str) -> _Say:
    """What one line says, by the parser alone; kind `other` is what no function here has."""
    if text == "else:":
        return "else", None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the parser warns of odd literals
            try:
                body = ast.parse(text).body
            except SyntaxError:
                body = ast.parse(text + " pass").body  # a line that opens a block
                if len(body) != 1 or not isinstance(body[0], ast.For | ast.If):
                    return "other", None
            else:
                if len(body) != 1 or isinstance(body[0], ast.For | ast.If):
                    return "other", None  # two statements on one line
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "other", None
    match body:
        case [ast.Pass()]:
            return "pass", None
        case [ast.Break()]:
            return "break", None
        case [ast.Continue()]:
            return "continue", None
        case [ast.Return(value=ast.expr() as value)]:
            return "return", value
        case [ast.If(test=test)]:
            return "if", test
        case [ast.For(target=ast.Name(id=target), iter=iterable)]:
            return "loop", (target, iterable)
        case [ast.Assign(targets=[ast.Name(id=target)], value=value)]:
            return "set", (target, value)
        case [ast.AugAssign(target=ast.Name(id=target), op=op, value=value)]:
            return "set", (target, ast.BinOp(ast.Name(target, ast.Load()), op, value))
    return "other", None


_OPERATORS = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Eq: operator.eq,
    ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge, ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Not: operator.not_,
}  # fmt: skip


def _value(node: ast.expr, at: Mapping[str, Any]) -> Any:
    """The value of an expression over small numbers and lists.

    Raises ValueError for what such expressions never need, and what Python raises for the rest.
    """
    match node:
        case ast.Constant(value=int() as value):
            return _small(value)
        case ast.Name(id=name) if name in at:
            return at[name]
        case ast.UnaryOp(op=op, operand=operand):
            value = _value(operand, at)
            if not isinstance(op, ast.Not):
                _small(value)
            return _OPERATORS[type(op)](value)
        case ast.BinOp(left=left, op=op, right=right):
            return _small(_OPERATORS[type(op)](_small(_value(left, at)), _small(_value(right, at))))
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            values = [_value(part, at) for part in (left, *comparators)]
            pairs = zip(ops, values, values[1:], strict=False)
            return all(_OPERATORS[type(op)](_small(a), _small(b)) for op, a, b in pairs)
        case ast.BoolOp(op=op, values=parts):
            results = (_value(part, at) for part in parts)
            if isinstance(op, ast.And):
                return functools.reduce(lambda a, b: a and b, results)
            return functools.reduce(lambda a, b: a or b, results)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return _value(body if _value(test, at) else orelse, at)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
            if name in at or name not in _FUNCTIONS:
                raise ValueError(name)
            found = _FUNCTIONS[name](*(_value(argument, at) for argument in arguments))
            if isinstance(found, range) and len(found) > _LONGEST:
                raise ValueError("too long")
            return found
        case ast.Subscript(value=value, slice=ast.Slice(lower=lower, upper=upper, step=step)):
            ends = [None if part is None else _value(part, at) for part in (lower, upper, step)]
            whole = _value(value, at)
            if not isinstance(whole, range | list):
                raise ValueError("no list")
            return whole[slice(*ends)]
    raise ValueError(type(node).__name__)


def _small(value: Any) -> int:
    if not isinstance(value, int) or abs(value) > _LARGEST:
        raise ValueError("not a small number")
    return value
