"""Values as tagged JSON: what crosses between a program, the test code and the broker.

None, booleans, floats, small integers and strings are themselves; everything else is a list that
opens with a tag. Nothing here can run code on decoding: no pickle, no classes of the sender.
Subclasses are reduced to their base value, so an `__eq__` that lies stays where it was made.

    ["l", ...] list          ["t", ...] tuple         ["s", ...] set or frozenset
    ["d", k, v, ...] dict    ["q", ...] deque         ["g", ...] iterator (check code only)
    ["i", hex] integer       ["f", text] inf, nan     ["c", re, im] complex
    ["u", hex] string with surrogates                 ["b", hex] bytes or bytearray
    ["F", n, d] Fraction     ["D", text] Decimal      ["r", a, b, c] range
    ["T", name] built-in type                         ["e", name] Ellipsis, NotImplemented
    ["m", kind, text] date, time, datetime; ["m", "timedelta", days, s, us]
    ["a", dtype, shape, hex] NumPy array              ["o", name] anything else
"""

import builtins
import datetime
import math
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

MAX_NODES = 200_000
MAX_DEPTH = 200  # a frame nests as deep as its value
_SMALL = 10**15  # integers below this are the same in every JSON implementation
_MAX_DIGITS = 5000  # of Decimals and Fractions, whose arithmetic takes quadratic time
_MAX_ZEROS = 400  # of a Decimal, beyond its digits: as many as floats have


class TooLarge(ValueError):
    """A value has more nodes, levels or characters than may cross."""


class Malformed(ValueError):
    """What came is not a value in this format."""


class Encoder:
    """Encodes one value; `other` says what becomes of objects that are no values."""

    def __init__(
        self,
        max_bytes: int,
        *,
        iterators: bool = False,
        other: Callable[[Any], Any] | None = None,
    ):
        self._nodes = MAX_NODES
        self._bytes = self._max_bytes = max_bytes
        self._iterators = iterators
        self._other = other or (lambda value: ["o", type_name(value)])

    @property
    def spent(self) -> int:
        """Bytes of the texts and numbers that have been encoded."""
        return self._max_bytes - self._bytes

    @property
    def nodes(self) -> int:
        """How many values have been encoded, those within others included."""
        return MAX_NODES - self._nodes

    def encode(self, value: Any, depth: int = 0) -> Any:
        """The value as tagged JSON; raises TooLarge."""
        self._nodes -= 1
        if self._nodes < 0 or depth > MAX_DEPTH:
            raise TooLarge("the value has too many elements or levels")
        kind = type(value)
        if value is None or kind is bool:
            return value
        if kind is int:
            return value if -_SMALL < value < _SMALL else self._long(value)
        if kind is str:
            return self._text(value)
        if kind is float:
            return value if math.isfinite(value) else ["f", repr(value)]
        if kind is list:
            return self._items("l", value, depth)
        if kind is tuple:
            return self._items("t", value, depth)
        for base in kind.__mro__:
            encoder = _BY_TYPE.get(base)
            if encoder is not None:
                return encoder(self, value, depth)
        return self._rest(value, kind, depth)

    def _spend(self, size: int) -> None:
        self._bytes -= size
        if self._bytes < 0:
            raise TooLarge("the value is too large")

    def _long(self, value: int) -> Any:
        self._spend(value.bit_length() // 4)
        return ["i", format(value, "x")]

    def _text(self, value: str) -> Any:
        self._spend(len(value))
        if value.isascii():
            return value
        try:
            self._spend(len(value.encode()))
            return value
        except UnicodeEncodeError:
            return ["u", value.encode("utf-8", "surrogatepass").hex()]

    def _items(self, tag: str, items: Iterable[Any], depth: int) -> Any:
        encode, deeper = self.encode, depth + 1
        return [tag, *[encode(item, deeper) for item in items]]

    def _pairs(self, value: Any, depth: int) -> Any:
        flat = [x for pair in dict.items(value) for x in pair]
        return self._items("d", flat, depth)

    def _raw(self, value: bytes | bytearray) -> Any:
        self._spend(2 * len(value))
        return ["b", bytes(value).hex()]

    def _decimal(self, value: Decimal) -> Any:
        text = Decimal.__str__(value)
        self._spend(len(text))
        return ["D", text]

    def _rest(self, value: Any, kind: type, depth: int) -> Any:
        if self._iterators and issubclass(kind, (Iterator, *_VIEWS)):
            return self._items("g", value, depth)
        if kind.__module__ == "numpy" and "numpy" in sys.modules:
            encoded = self._numpy(value, depth)
            if encoded is not None:
                return encoded
        if isinstance(value, type) and getattr(builtins, value.__name__, None) is value:
            return ["T", value.__name__]
        return self._other(value)

    def _numpy(self, value: Any, depth: int) -> Any:
        numpy = sys.modules["numpy"]
        if isinstance(value, numpy.generic):
            item = value.item()
            return None if isinstance(item, numpy.generic) else self.encode(item, depth)
        if isinstance(value, numpy.ndarray) and value.dtype.kind in "biufcSU":
            self._spend(2 * value.nbytes)
            return ["a", value.dtype.str, list(value.shape), value.tobytes().hex()]
        return None


_VIEWS = (type({}.keys()), type({}.values()), type({}.items()), map, zip, filter)

_BY_TYPE: dict[type, Callable[[Encoder, Any, int], Any]] = {
    bool: lambda e, v, d: bool(v),
    int: lambda e, v, d: e.encode(int.__add__(v, 0), d),
    float: lambda e, v, d: e.encode(float.__pos__(v), d),
    str: lambda e, v, d: e._text(str.__str__(v)),
    list: lambda e, v, d: e._items("l", list.__iter__(v), d),
    tuple: lambda e, v, d: e._items("t", tuple.__iter__(v), d),
    set: lambda e, v, d: e._items("s", set.__iter__(v), d),
    frozenset: lambda e, v, d: e._items("s", frozenset.__iter__(v), d),
    dict: lambda e, v, d: e._pairs(v, d),
    bytes: lambda e, v, d: e._raw(v),
    bytearray: lambda e, v, d: e._raw(v),
    complex: lambda e, v, d: ["c", repr(v.real), repr(v.imag)],
    deque: lambda e, v, d: e._items("q", deque.__iter__(v), d),
    Fraction: lambda e, v, d: ["F", e.encode(v.numerator, d), e.encode(v.denominator, d)],
    Decimal: lambda e, v, d: e._decimal(v),
    range: lambda e, v, d: e._items("r", (v.start, v.stop, v.step), d),
    datetime.datetime: lambda e, v, d: ["m", "datetime", v.isoformat()],
    datetime.date: lambda e, v, d: ["m", "date", v.isoformat()],
    datetime.time: lambda e, v, d: ["m", "time", v.isoformat()],
    datetime.timedelta: lambda e, v, d: ["m", "timedelta", v.days, v.seconds, v.microseconds],
    type(...): lambda e, v, d: ["e", "Ellipsis"],
    type(NotImplemented): lambda e, v, d: ["e", "NotImplemented"],
}


def type_name(value: Any) -> str:
    """The name of a value's type, whatever the type claims, at most 80 characters."""
    return str(type.__dict__["__name__"].__get__(type(value)))[:80]


def decode(data: Any, other: Callable[[list[Any]], Any] | None = None) -> Any:
    """The Python value of tagged JSON. Only where hostile hash values may cost time.

    `other` turns tags that are no values (opaque objects) into something; without it they raise
    Malformed, as does everything else that is not in the format.
    """
    try:
        return _decode(data, other, 0)
    except Malformed:
        raise
    except (ValueError, TypeError, IndexError, ArithmeticError, KeyError) as error:
        raise Malformed(str(error)[:200]) from error


def integer(data: Any) -> int:
    """An integer, plain or in hexadecimal."""
    if type(data) is int:
        return data
    if type(data) is list and len(data) == 2 and data[0] == "i" and type(data[1]) is str:
        return int(data[1], 16)
    raise Malformed("not an integer")


def decimal(text: Any) -> Decimal:
    """A Decimal whose exact value has few digits; raises Malformed for a vast exponent."""
    if type(text) is not str:
        raise Malformed("not a Decimal")
    if len(text) > _MAX_DIGITS:
        raise Malformed("too many digits")
    value = Decimal(text)
    if value.is_finite() and abs(value.adjusted()) > len(text) + _MAX_ZEROS:
        raise Malformed("exponent out of range")
    return value


def fraction(numerator: Any, denominator: Any) -> Fraction:
    """A Fraction of integers that are not too long; raises Malformed."""
    parts = integer(numerator), integer(denominator)
    if max(part.bit_length() for part in parts) > 4 * _MAX_DIGITS:
        raise Malformed("too many digits")
    return Fraction(*parts)


def _decode(data: Any, other: Callable[[list[Any]], Any] | None, depth: int) -> Any:
    if data is None or type(data) in (bool, int, float, str):
        return data
    if type(data) is not list or not data or type(data[0]) is not str or depth > MAX_DEPTH:
        raise Malformed("not a value")
    tag, rest = data[0], data[1:]
    if tag in _COLLECTIONS:
        return _COLLECTIONS[tag]([_decode(item, other, depth + 1) for item in rest])
    if tag == "d":
        flat = [_decode(item, other, depth + 1) for item in rest]
        return dict(zip(flat[::2], flat[1::2], strict=True))
    simple = _SIMPLE.get(tag)
    if simple is not None:
        return simple(*rest)
    if other is None:
        raise Malformed(f"unknown tag {tag[:20]!r}")
    return other(data)


def _moment(kind: str, *parts: Any) -> Any:
    if kind == "timedelta":
        return datetime.timedelta(*parts)
    kinds = {"datetime": datetime.datetime, "date": datetime.date, "time": datetime.time}
    return kinds[kind].fromisoformat(*parts)


def _array(dtype: str, shape: list[int], data: str) -> Any:
    import numpy

    kind = numpy.dtype(dtype)
    if kind.kind not in "biufcSU":
        raise Malformed("not an array of numbers or text")
    return numpy.frombuffer(bytes.fromhex(data), dtype=kind).reshape(shape).copy()


_COLLECTIONS: dict[str, Callable[[list[Any]], Any]] = {
    "l": list, "t": tuple, "s": set, "q": deque, "g": iter, "r": lambda items: range(*items),
}  # fmt: skip
_SIMPLE: dict[str, Callable[..., Any]] = {
    "i": lambda text: int(text, 16),
    "f": float,
    "c": lambda re, im: complex(float(re), float(im)),
    "u": lambda text: bytes.fromhex(text).decode("utf-8", "surrogatepass"),
    "b": bytes.fromhex,
    "F": fraction,
    "D": decimal,
    "T": lambda name: _builtin_type(name),
    "e": {"Ellipsis": ..., "NotImplemented": NotImplemented}.__getitem__,
    "m": _moment,
    "a": _array,
}


def _builtin_type(name: str) -> type:
    kind = getattr(builtins, name, None)
    if not isinstance(kind, type):
        raise Malformed("not a built-in type")
    return kind
