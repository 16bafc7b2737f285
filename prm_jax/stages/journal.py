"""A journal of finished units of work: what a killed stage need not do again.

One JSON line a unit, written whole and synced before the unit counts as done. A last line that a
kill tore is dropped on opening, so a unit is either there or done again. Of several hosts, the
first has the file, and all know what is in it.
"""

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from prm_jax import hosts
from prm_jax.config import ConfigError


class Journal:
    """Finished units by key, in a JSONL file that one process has open; a context manager.

    Raises ConfigError if another process has it open, and for a file that no kill leaves.
    """

    def __init__(self, path: Path):
        self._file: BinaryIO | None = None
        self._units: dict[str, Any] = hosts.first(lambda: self._open(path))

    def _open(self, path: Path) -> dict[str, Any]:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
        try:
            self._lock(file, path)
            units, good_bytes = self._read(file, path)
            file.truncate(good_bytes)
        except BaseException:
            file.close()
            raise
        self._file = file
        return units

    def _lock(self, file: BinaryIO, path: Path) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{path} is in use by another process: wait for it, or choose another folder"
            ) from None

    def _read(self, file: BinaryIO, path: Path) -> tuple[dict[str, Any], int]:
        """All units, and how many bytes of the file are good."""
        file.seek(0)
        units: dict[str, Any] = {}
        good_bytes = 0
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                unit = json.loads(line)
                units[unit["key"]] = unit["value"]
            except (ValueError, TypeError, KeyError):
                raise ConfigError(
                    f"{path}, line {number} is damaged: remove that line, or the file, and what it "
                    "holds is done again"
                ) from None
            good_bytes += len(line)
        return units, good_bytes

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()

    def get(self, key: str) -> Any | None:
        """The value of a finished unit, or None."""
        return self._units.get(key)

    def put(self, key: str, value: Any) -> None:
        """Records a unit as finished; it survives a kill from here on."""
        self.put_all({key: value})

    def put_all(self, units: Mapping[str, Any]) -> None:
        """Records units as finished, for the price of one.

        Raises hosts.Stopped if the run is asked to stop: here nothing is lost.
        """
        self._units.update(units)
        if self._file is not None:
            for key, value in units.items():
                self._file.write(json.dumps({"key": key, "value": value}).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        hosts.check_stop()
