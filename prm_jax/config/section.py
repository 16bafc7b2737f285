"""What every section of the settings can do: refuse a value, naming field, value and mend."""

import dataclasses
import functools
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from typeguard import CollectionCheckStrategy, TypeCheckError, check_type


class ConfigError(ValueError):
    """A setting is out of range or contradicts another; names the field, the value, the mend."""


class Section:
    """What a config section is: a dataclass whose values are of their fields' types.

    `_require` and what is made of it are checks that name the field, its value and the mend.
    """

    section: ClassVar[str] = ""

    def __post_init__(self):
        for field, wanted in mistyped(self):
            self._require(field, False, wanted)

    def _require(self, field: str, condition: bool, allowed: str) -> None:
        if not condition:
            name = f"{self.section}.{field}" if self.section else field
            value = self
            for part in field.split("."):
                value = getattr(value, part)
            raise ConfigError(f"{name} = {value!r} is not allowed: it must be {allowed}")

    def _positive(self, *fields: str) -> None:
        for field in fields:
            self._require(field, getattr(self, field) > 0, "greater than 0")

    def _not_negative(self, *fields: str) -> None:
        for field in fields:
            self._require(field, getattr(self, field) >= 0, "at least 0")

    def _fraction(self, *fields: str) -> None:
        for field in fields:
            self._require(field, 0 <= getattr(self, field) <= 1, "between 0 and 1")


def mistyped(instance: Any) -> list[tuple[str, str]]:
    """The fields of a dataclass whose values are not of the type that is declared, and what each
    must be."""
    found = []
    for field, hint in _types(type(instance)):
        value = getattr(instance, field)
        try:
            check_type(value, hint, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
            fits = type(value) is not bool or hint not in (int, float)
        except TypeCheckError:
            fits = False
        if not fits:
            found.append((field, _said(hint)))
    return found


def _said(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    return f"of type {hint if get_args(hint) else hint.__name__}"


@functools.cache
def _types(section: type[Any]) -> list[tuple[str, Any]]:
    hints = get_type_hints(section)
    return [(field.name, hints[field.name]) for field in dataclasses.fields(section)]
