"""A journal of finished units of work: what a killed stage need not do again.

One JSON line a unit, written whole and synced before the unit counts as done. A last line that a
kill tore is dropped on opening, so a unit is either there or done again.
"""

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from prm_jax.config import ConfigError


class Journal:
    """Finished units by key, in a JSONL file that one process has open; a context manager.

    Raises ConfigError if another process has it open, and for a file that no kill leaves.
    """

    def __init__(self, path: Path):
        self._units: dict[str, Any] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        try:
            self._lock(path)
            self._file.truncate(self._read(path))
        except BaseException:
            self._file.close()
            raise

    def _lock(self, path: Path) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{path} is in use by another process: wait for it, or choose another folder"
            ) from None

    def _read(self, path: Path) -> int:
        """Reads all units, and returns how many bytes of the file are good."""
        self._file.seek(0)
        good_bytes = 0
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                unit = json.loads(line)
                self._units[unit["key"]] = unit["value"]
            except (ValueError, TypeError, KeyError):
                raise ConfigError(
                    f"{path}, line {number} is damaged: remove that line, or the file, and what it "
                    "holds is done again"
                ) from None
            good_bytes += len(line)
        return good_bytes

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
        self.put_all({key: value})

    def put_all(self, units: Mapping[str, Any]) -> None:
        """Records units as finished, for the price of one."""
        for key, value in units.items():
            self._file.write(json.dumps({"key": key, "value": value}).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._units.update(units)
