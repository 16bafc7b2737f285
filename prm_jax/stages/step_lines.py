"""A file of JSON lines that a stage adds to in every step, and a resumed stage goes on with."""

import json
import os
from pathlib import Path
from typing import TextIO

from prm_jax import hosts
from prm_jax.stages.run import whole_lines, write_atomically


class StepLines:
    """Appends to a file, from step `start` on; what a killed run wrote beyond that is forgotten.

    `step_field` names the field of a line that has its step. A context manager; of several hosts,
    the first has the file.
    """

    def __init__(self, path: Path, start: int, step_field: str = "step"):
        self._path = path
        self._file: TextIO | None = None
        if hosts.index():
            return
        kept = [line for line in self.lines() if json.loads(line)[step_field] < start]
        write_atomically(path, "".join(line + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")

    def add(self, line: str) -> None:
        if self._file is not None:
            self._file.write(line + "\n")

    def flush(self) -> None:
        """Before a checkpoint: a run that goes on from it needs all lines before it."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def lines(self) -> list[str]:
        """What is in the file, on the host that has it."""
        return whole_lines(self._path) if self._path.exists() else []

    def __enter__(self) -> "StepLines":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
