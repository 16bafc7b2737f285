"""A journal of finished units of work: what a killed stage need not do again.

One JSON line a unit, written whole and synced before the unit counts as done. A line that a kill
tore is dropped on opening, so a unit is either there or done again.
"""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any


class Journal:
    """Finished units by key, in a JSONL file; a context manager."""

    def __init__(self, path: Path):
        self._units: dict[str, Any] = {}
        good_bytes = 0
        if path.exists():
            with path.open("rb") as file:
                for line in file:
                    try:
                        unit = json.loads(line)
                    except ValueError:
                        break
                    if not line.endswith(b"\n"):
                        break
                    self._units[unit["key"]] = unit["value"]
                    good_bytes += len(line)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        self._file.truncate(good_bytes)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def get(self, key: str) -> Any | None:
        """The value of a finished unit, or None."""
        return self._units.get(key)

    def put(self, key: str, value: Any) -> None:
        """Records a unit as finished; it survives a kill from here on."""
        self._file.write(json.dumps({"key": key, "value": value}).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._units[key] = value
