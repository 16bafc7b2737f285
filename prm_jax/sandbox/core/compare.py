"""Comparing what a program returned with what was expected, without trusting what came.

A value (tagged JSON, see `values`) is reduced to one canonical string, such that two strings are
equal exactly when Python would call the values equal: True == 1 == 1.0, -0.0 == 0, NaN equals
nothing, a set has no order. Hostile sets and dicts are never rebuilt, so colliding hashes cost
nothing.
"""

import math
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

from prm_jax.sandbox.core import values
from prm_jax.sandbox.core.values import Malformed

_PLAIN = (int, str, bool, type(None))  # these need no canonical form among their own kind


class NeverEqual(Exception):
    """The value holds something that equals nothing: NaN, an iterator, an object."""


def equal(a: Any, b: Any, tolerance: float = 0.0) -> bool:
    """Python's `==` of two tagged values; numbers within the tolerance are equal too.

    The tolerance is absolute and relative, as in `math.isclose`. Raises Malformed.
    """
    try:
        if tolerance:
            return _close(a, b, tolerance)
        if type(a) is type(b) and type(a) in _PLAIN:
            return a == b
        return canonical(a) == canonical(b)
    except NeverEqual:
        return False
    except RecursionError as error:
        raise Malformed("too many levels") from error


def canonical(data: Any) -> str:
    """The value as a string that equal values share; raises NeverEqual, Malformed."""
    try:
        return _canonical(data, 0)
    except (Malformed, NeverEqual):
        raise
    except (ValueError, TypeError, IndexError, ArithmeticError, RecursionError) as error:
        raise Malformed(str(error)[:200]) from error


def truth(data: Any) -> bool:
    """Python's `bool()` of a tagged value. Objects that are no values are true, as by default."""
    number = _number(data)
    if number is not None:
        return bool(number)
    if data is None or type(data) is str:
        return bool(data)
    tag = data[0]
    if tag in ("l", "t", "s", "d", "q"):
        return len(data) > 1
    if tag in ("u", "b", "r", "m", "f", "D"):
        return bool(values.decode(data))
    if tag == "a":
        raise Malformed("an array is neither true nor false")
    return True


def ordered(a: Any, b: Any, less: Callable[[Any, Any], bool]) -> bool:
    """`less(a, b)` of two real numbers or two strings; raises Malformed for other pairs."""
    left, right = _comparable(a), _comparable(b)
    if isinstance(left, str) != isinstance(right, str):
        raise Malformed("these cannot be ordered")
    return less(left, right)


def _comparable(data: Any) -> Any:
    if type(data) is str or (type(data) is list and data[:1] == ["u"]):
        return values.decode(data)
    number = _number(data)
    if number is None or isinstance(number, complex):
        raise Malformed("this has no order")
    return number


def _number(data: Any) -> int | float | complex | Fraction | None:
    """The number that a tagged value stands for, or None."""
    if type(data) in (bool, int, float):
        return data
    if type(data) is not list or not data:
        return None
    if data[0] in ("i", "F", "D", "f", "c"):
        number = values.decode(data)
        if data[0] == "D":
            return Fraction(number) if number.is_finite() else float(number)
        return number
    return None


def _exact(number: int | float | complex | Fraction) -> str:
    if isinstance(number, complex):
        if number.imag:
            return f"c{_exact(number.real)},{_exact(number.imag)}"
        number = number.real
    if isinstance(number, float):
        if math.isnan(number):
            raise NeverEqual
        if math.isinf(number):
            return f"f{number}"
        if number:
            mantissa, exponent = math.frexp(number)
            return _power(int(mantissa * 2**53), exponent - 53)
    numerator, denominator = number.as_integer_ratio()
    if not numerator:
        return "n"
    if denominator & (denominator - 1):
        return f"q{numerator:x}/{denominator:x}"
    return _power(numerator, 1 - denominator.bit_length())


def _power(number: int, exponent: int) -> str:
    """An odd number and a power of two: short for every float, or 1e308 would take 256 digits."""
    zeros = (number & -number).bit_length() - 1
    return f"n{number >> zeros:x}p{exponent + zeros}"


def _canonical(data: Any, depth: int) -> str:
    number = _number(data)
    if number is not None:
        return _exact(number)
    if data is None:
        return "N"
    if type(data) is str:
        return f"s{len(data)}:{data}"
    if type(data) is not list or not data or depth > values.MAX_DEPTH:
        raise Malformed("not a value")
    tag, deeper = data[0], depth + 1
    if tag in ("l", "t", "q"):
        return f"{tag}({','.join([_canonical(item, deeper) for item in data[1:]])})"
    if tag == "s":
        return f"s({','.join(sorted({_canonical(item, deeper) for item in data[1:]}))})"
    if tag == "d":
        keys, items = data[1::2], data[2::2]
        pairs = {
            _canonical(key, deeper): _canonical(item, deeper)
            for key, item in zip(keys, items, strict=True)
        }
        return f"d({','.join(f'{key}={item}' for key, item in sorted(pairs.items()))})"
    if tag == "r":
        return _range(*[values.integer(item) for item in data[1:]])
    if tag == "u":
        return _canonical(values.decode(data), deeper)
    if tag == "b":
        return f"b{values.decode(data).hex()}"
    if tag in ("T", "e", "m"):
        return f"{tag}{values.decode(data)!r}"
    raise NeverEqual


def _range(start: int, stop: int, step: int) -> str:
    """Ranges are equal when they hold the same numbers."""
    count = max(0, -((start - stop) // step))
    first, by = (f"{start:x}" if count else ""), (f"{step:x}" if count > 1 else "")
    return f"r{count:x},{first},{by}"


def _close(a: Any, b: Any, tolerance: float) -> bool:
    left, right = _number(a), _number(b)
    if left is not None and right is not None:
        return _numbers_close(left, right, tolerance)
    if type(a) is list and type(b) is list and a and b and a[0] == b[0]:
        if len(a) != len(b):
            return False
        tag = a[0]
        if tag in ("l", "t", "q"):
            return all(_close(x, y, tolerance) for x, y in zip(a[1:], b[1:], strict=True))
        if tag == "d":
            return _dicts_close(a, b, tolerance)
        if tag == "s":
            return equal(a, b) or _number_sets_close(a[1:], b[1:], tolerance)
    return canonical(a) == canonical(b)


def _numbers_close(a: Any, b: Any, tolerance: float) -> bool:
    if isinstance(a, float) or isinstance(b, float):
        try:
            return math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)
        except (OverflowError, TypeError):
            return False
    return _exact(a) == _exact(b)


def _dicts_close(a: list[Any], b: list[Any], tolerance: float) -> bool:
    left, right = _by_key(a), _by_key(b)
    return left.keys() == right.keys() and all(
        _close(item, right[key], tolerance) for key, item in left.items()
    )


def _by_key(data: list[Any]) -> dict[str, Any]:
    pairs = zip(data[1::2], data[2::2], strict=True)
    return {canonical(key): item for key, item in pairs}


def _number_sets_close(a: Iterable[Any], b: Iterable[Any], tolerance: float) -> bool:
    try:
        left, right = sorted(map(_comparable, a)), sorted(map(_comparable, b))
    except (Malformed, TypeError):
        return False
    return all(
        not isinstance(x, str) and not isinstance(y, str) and _numbers_close(x, y, tolerance)
        for x, y in zip(left, right, strict=True)
    )


def lines_equal(actual: str, expected: str, tolerance: float = 0.0) -> bool:
    """Whether two outputs agree line by line, right-stripped, blank lines at the end aside.

    With a tolerance, lines that differ are compared token by token, as numbers where both are.
    """
    left, right = _lines(actual), _lines(expected)
    if len(left) != len(right):
        return False
    pairs = zip(left, right, strict=True)
    return all(x == y or (tolerance > 0 and _tokens_close(x, y, tolerance)) for x, y in pairs)


def _lines(text: str) -> list[str]:
    lines = [line.rstrip(" \t\r\f\v") for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _tokens_close(a: str, b: str, tolerance: float) -> bool:
    left, right = a.split(), b.split()
    if len(left) != len(right):
        return False
    for x, y in zip(left, right, strict=True):
        if x != y:
            try:
                close = math.isclose(float(x), float(y), rel_tol=tolerance, abs_tol=tolerance)
            except ValueError:
                return False
            if not close:
                return False
    return True
