"""Which training problems a PPO stage ever solved, and by how many different programs.

`STAGE/solved.jsonl` has a line for every step: the problems that were asked, and the task and a
digest of each program that passed.
"""

import json
import os
from pathlib import Path
from typing import TextIO

from prm_jax import hosts
from prm_jax.stages.run import write_atomically

FILE = "solved.jsonl"


class Exploration:
    """Writes the file, from step `start` on: what a run that was killed wrote beyond is forgotten.

    A context manager. Of several hosts, the first writes; all must ask for the counts.
    """

    def __init__(self, folder: Path, start: int):
        self._path = folder / FILE
        self._file: TextIO | None = None
        if hosts.index():
            return
        kept = [line for line in _lines(self._path) if json.loads(line)["step"] < start]
        write_atomically(self._path, "".join(line + "\n" for line in kept))
        self._file = self._path.open("a", encoding="utf-8")

    def add(self, step: int, asked: list[str], solved: list[tuple[str, str]]) -> None:
        """`asked` has the tasks of a rollout, `solved` (task, digest) of the programs that pass."""
        if self._file is not None:
            self._file.write(json.dumps({"step": step, "asked": asked, "solved": solved}) + "\n")

    def flush(self) -> None:
        """Before a checkpoint: a run that goes on from it needs all lines before it."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def __enter__(self) -> "Exploration":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def programs(self) -> int:
        """How many were asked for in the whole stage, once the file is closed."""
        return hosts.first(lambda: sum(len(json.loads(x)["asked"]) for x in _lines(self._path)))

    def counts(self, n_problems: int) -> dict[str, int]:
        """What came of the whole stage, once the file is closed; there are `n_problems`."""
        return hosts.first(lambda: self._counts(n_problems))

    def _counts(self, n_problems: int) -> dict[str, int]:
        steps = [json.loads(line) for line in _lines(self._path)]
        solutions = {tuple(one) for step in steps for one in step["solved"]}
        return {
            "problems": n_problems,
            "asked": len({task for step in steps for task in step["asked"]}),
            "solved": len({task for task, _ in solutions}),
            "distinct_solutions": len(solutions),
        }


def _lines(path: Path) -> list[str]:
    """Whole lines; one that a kill tore is left out."""
    return path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
