"""Values as Python source, for test code that is made from JSON."""

import math
from typing import Any

_DIGITS = 4_000  # that Python writes and reads without being asked twice


def literal(value: Any) -> str:
    """Source of a value that is equal to it, infinities, NaN and integers of any length included.

    >>> literal([1.5, float("inf"), (True,), {"a": None}])
    "[1.5, float('inf'), (True,), {'a': None}]"
    """
    match value:
        case float() if not math.isfinite(value):
            return f"float('{value}')"
        case int() if not isinstance(value, bool) and value.bit_length() > 3 * _DIGITS:
            high, low = divmod(abs(value), 10**_DIGITS)
            return f"{'-' * (value < 0)}({literal(high)} * 10**{_DIGITS} + {low})"
        case list():
            return f"[{_joined(value)}]"
        case tuple():
            return f"({_joined(value)}{',' if len(value) == 1 else ''})"
        case set() if value:
            return f"{{{_joined(value)}}}"
        case dict():
            items = (f"{literal(k)}: {literal(v)}" for k, v in value.items())
            return f"{{{', '.join(items)}}}"
    return repr(value)


def _joined(values: Any) -> str:
    return ", ".join(map(literal, values))
