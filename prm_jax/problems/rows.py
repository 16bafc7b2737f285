"""Rows of the files that problem sets come as, and the words for a row that is wrong.

A file is JSON Lines or one JSON array of objects, gzipped or not. Fields are read through `Row`,
whose errors name the file, the line, the field, its value and what it must be.
"""

import dataclasses
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prm_jax.config import ConfigError

_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
_SPLITS = {"train": "train", "val": "validation", "dev": "validation", "test": "test"}
_SPLIT_IN_NAME = re.compile(r"(?:^|[^a-z])(train|val|dev|test)(?:id|idation|ing)?(?![a-z])")
_MAX_DIGITS = 4_000  # that Python reads into an integer without being asked twice
_SHOWN = 80  # characters of a wrong value


class ProblemsError(ConfigError):
    """A problem set cannot be read; says which, and what to change."""


class BadRow(ProblemsError):
    """A row of a file is wrong; names file, line, field, value and mend."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One record of a file. `number` counts from 1; `split` is what the file's name says, or ""."""

    file: str
    number: int
    fields: Mapping[str, Any]
    split: str = ""

    def has(self, *names: str) -> bool:
        """Whether all these fields are there and not null."""
        return all(self.fields.get(name) is not None for name in names)

    def value(self, name: str, allowed: str) -> Any:
        """A field of any kind; raises BadRow where it is missing or null."""
        if not self.has(name):
            raise BadRow(f"{self.where}: {name} is missing: it must be {allowed}")
        return self.fields[name]

    def text(self, name: str, default: str | None = None) -> str:
        """A text; raises BadRow if it is another kind of value, or missing without a default."""
        if default is not None and not self.has(name):
            return default
        value = self.value(name, "a text")
        if not isinstance(value, str):
            raise self.wrong(name, "a text")
        return value

    def texts(self, name: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """A list of texts; raises BadRow as `text` does."""
        if default is not None and not self.has(name):
            return default
        value = self.value(name, "a list of texts")
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(name, "a list of texts")
        return tuple(value)

    def name(self, *names: str) -> str:
        """The first of these fields that is there, a text or a whole number, as text."""
        for name in names:
            if self.has(name):
                value = self.fields[name]
                if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
                    raise self.wrong(name, "a text or a whole number")
                return str(value)
        raise BadRow(f"{self.where}: {names[0]} is missing: it must be a name of its own")

    def number_above_0(self, name: str, default: float) -> float:
        """A number above 0 and below a million."""
        value = self.fields[name] if self.has(name) else default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
            raise self.wrong(name, "a number above 0 and below a million")
        return float(value)

    def whole(self, name: str, default: int, least: int = 0) -> int:
        """A whole number, at least `least` and below 2^40."""
        value = self.fields[name] if self.has(name) else default
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 1 << 40:
            raise self.wrong(name, f"a whole number, at least {least} and below 2^40")
        return value

    def json(self, name: str, default: str | None = None) -> Any:
        """What a field holds as JSON text, or the field itself where a tool has read it already."""
        value = self.fields.get(name)
        if value is None and default is not None:
            value = default
        if not isinstance(value, str):
            return self.value(name, "JSON text")
        try:
            return loads(value)
        except (ValueError, RecursionError) as error:
            raise self.wrong(name, f"JSON text ({error})") from error

    @property
    def where(self) -> str:
        return f"{self.file}, line {self.number}"

    def wrong(self, name: str, allowed: str) -> BadRow:
        """The error for a field whose value is not allowed."""
        value = repr(self.fields.get(name))
        shown = value if len(value) <= _SHOWN else f"{value[:_SHOWN]}..."
        return BadRow(f"{self.where}: {name} = {shown} is not allowed: it must be {allowed}")


def problem_files(path: Path) -> tuple[Path, ...]:
    """The file itself, or the JSON files of a folder by name; raises ProblemsError."""
    if path.is_file():
        return (path,)
    if not path.is_dir():
        raise ProblemsError(f"{path} does not exist: give the path of a file or a folder")
    files = sorted(p for p in path.iterdir() if p.is_file() and p.name.endswith(_SUFFIXES))
    if not files:
        raise ProblemsError(f"{path} holds no problem files: their names end in {_SUFFIXES}")
    return tuple(files)


def read_rows(
    files: Sequence[Path], read: Callable[[int], None] = lambda n_bytes: None
) -> Iterator[Row]:
    """All rows of the files in order; blank lines are skipped. Raises BadRow, ProblemsError.

    `read` is told of the bytes of the files as they are read.
    """
    for file in files:
        split = split_in_name(file)
        place = 0
        try:
            with file.open("rb") as raw, _unpacked(file, raw) as stream:
                for number, fields in _records(file, stream):
                    if not isinstance(fields, dict):
                        raise BadRow(f"{file}, line {number}: a record must be a JSON object")
                    read(raw.tell() - place)
                    place = raw.tell()
                    yield Row(str(file), number, fields, split)
        except (OSError, EOFError, zlib.error) as error:
            raise ProblemsError(f"{file} cannot be read: {error}") from error


def split_in_name(file: Path) -> str:
    """The split that a file's name speaks of: train, validation, test or nothing.

    >>> split_in_name(Path("apps/train.jsonl")), split_in_name(Path("test2.jsonl.gz"))
    ('train', 'test')
    """
    found = _SPLIT_IN_NAME.search(file.name.lower())
    return _SPLITS[found[1]] if found else ""


def loads(text: str | bytes) -> Any:
    """JSON with integers of any length, which contest sets have; raises ValueError."""
    return json.loads(text, parse_int=_integer)


def _integer(digits: str) -> int:
    if len(digits) <= _MAX_DIGITS:
        return int(digits)
    negative, digits = digits.startswith("-"), digits.lstrip("-")
    value = 0
    for start in range(0, len(digits), _MAX_DIGITS):
        part = digits[start : start + _MAX_DIGITS]
        value = value * 10 ** len(part) + int(part)
    return -value if negative else value


def _unpacked(file: Path, raw: io.BufferedReader) -> io.BufferedIOBase:
    return gzip.GzipFile(fileobj=raw) if file.name.endswith(".gz") else raw


def _records(file: Path, stream: io.BufferedIOBase) -> Iterator[tuple[int, Any]]:
    """(number, record) of JSON Lines; of one array, its items."""
    start = stream.read(1)
    while start.isspace():
        start = stream.read(1)
    stream.seek(0)
    if start == b"[":  # a record is an object, so this is the array of all of them
        try:
            yield from enumerate(loads(stream.read()), 1)
        except (ValueError, RecursionError) as error:
            raise ProblemsError(f"{file} is no JSON array: {str(error)[:100]}") from error
        return
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            record = loads(line)
        except (ValueError, RecursionError) as error:
            raise BadRow(f"{file}, line {number}: not JSON: {str(error)[:100]}") from error
        yield number, record
