"""What every section of the settings can do: refuse a value, naming field, value and mend."""

from typing import ClassVar


class ConfigError(ValueError):
    """A setting is out of range or contradicts another; names the field, the value, the mend."""


class Section:
    """Gives a config section `_require`: a check that names the field, its value and the mend."""

    section: ClassVar[str] = ""

    def _require(self, field: str, condition: bool, allowed: str) -> None:
        if not condition:
            name = f"{self.section}.{field}" if self.section else field
            value = self
            for part in field.split("."):
                value = getattr(value, part)
            raise ConfigError(f"{name} = {value!r} is not allowed: it must be {allowed}")

    def _one_of(self, field: str, *allowed: str) -> None:
        self._require(field, getattr(self, field) in allowed, f"one of {', '.join(allowed)}")

    def _positive(self, *fields: str) -> None:
        for field in fields:
            self._require(field, getattr(self, field) > 0, "greater than 0")

    def _not_negative(self, *fields: str) -> None:
        for field in fields:
            self._require(field, getattr(self, field) >= 0, "at least 0")

    def _fraction(self, *fields: str) -> None:
        for field in fields:
            self._require(field, 0 <= getattr(self, field) <= 1, "between 0 and 1")
