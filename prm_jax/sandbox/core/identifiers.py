"""Names in test code: which of them the program must bring, and which are well known."""

import ast
import builtins
import dataclasses
import sys
import warnings
from collections.abc import Iterator
from typing import Any

BUILTIN_NAMES = frozenset(dir(builtins))
_MODULES = {name: name for name in sys.stdlib_module_names} | {"np": "numpy", "numpy": "numpy"}
# Names that tests use as if they were built in, for the program imports them. A program that puts
# something of its own in their place could make `f(2) == Fraction(1, 2)` true.
_WELL_KNOWN = {
    "Counter": "collections", "OrderedDict": "collections", "defaultdict": "collections",
    "deque": "collections", "namedtuple": "collections", "Decimal": "decimal",
    "Fraction": "fractions", "isclose": "math", "date": "datetime", "timedelta": "datetime",
}  # fmt: skip


def parse(code: str, mode: str = "exec") -> Any:
    """`ast.parse` without what Python has to say about escapes such as "\\w"."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(code, mode=mode)


@dataclasses.dataclass(frozen=True)
class Names:
    """Names in code: used; assigned, imported, defined or parameters anywhere; called."""

    used: frozenset[str]
    bound: frozenset[str]
    called: frozenset[str]

    @classmethod
    def of(cls, *trees: ast.AST) -> "Names":
        used, bound, called = set[str](), set[str](), set[str]()
        for node in nodes(*trees):
            match node:
                case ast.Name(id=name, ctx=ctx):
                    used.add(name)
                    if not isinstance(ctx, ast.Load):
                        bound.add(name)
                case ast.Call(func=ast.Name(id=name)):
                    called.add(name)
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                    bound.add(name)
                case ast.ClassDef(name=name) | ast.ExceptHandler(name=str(name)):
                    bound.add(name)
                case ast.arg(arg=name):
                    bound.add(name)
                case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                    bound.update((a.asname or a.name).split(".")[0] for a in aliases)
        return cls(frozenset(used), frozenset(bound), frozenset(called))

    def free(self) -> frozenset[str]:
        return self.used - self.bound - BUILTIN_NAMES

    def sources(self) -> dict[str, tuple[str, str]]:
        """See `sources`."""
        names, called = self.free(), self.called
        found = {n: (_MODULES[n], "") for n in names if n in _MODULES and n not in called}
        if "datetime" in names and "datetime" in called:
            found["datetime"] = ("datetime", "datetime")
        if any(n not in found and n not in _WELL_KNOWN for n in names):
            found |= {n: (_WELL_KNOWN[n], n) for n in names if n in _WELL_KNOWN}
        return found


def nodes(*trees: ast.AST) -> Iterator[ast.AST]:
    """All nodes of the trees, in no order; `ast.walk` takes three times as long."""
    left = list(trees)
    while left:
        node = left.pop()
        yield node
        for field in node._fields:
            value = getattr(node, field, None)
            if isinstance(value, list):
                left += [item for item in value if isinstance(item, ast.AST)]
            elif isinstance(value, ast.AST) and value._fields:
                left.append(value)


def free_names(code: str) -> list[str]:
    """Names that test code uses and does not bind: functions of the program, modules."""
    return sorted(Names.of(parse(code)).free())


def sources(code: str) -> dict[str, tuple[str, str]]:
    """The free names of test code that are no business of the program: (module, attribute).

    The attribute is "" for a module. A name that is called is no module. Where the tests name
    nothing else, they ask the program for what is well known.
    """
    return Names.of(parse(code)).sources()
