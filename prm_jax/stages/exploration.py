"""Which training problems a PPO stage ever solved, and by how many different programs.

`STAGE/solved.jsonl` has a line for every step: the problems that were asked, and the task and a
digest of each program that passed.
"""

import json
from pathlib import Path

from prm_jax import hosts
from prm_jax.stages.step_lines import StepLines

FILE = "solved.jsonl"


class Exploration:
    """Writes the file, from step `start` on.

    A context manager. Of several hosts, the first writes; all must ask for the counts.
    """

    def __init__(self, folder: Path, start: int):
        self._file = StepLines(folder / FILE, start)

    def add(self, step: int, asked: list[str], solved: list[tuple[str, str]]) -> None:
        """`asked` has the tasks of a rollout, `solved` (task, digest) of the programs that pass."""
        self._file.add(json.dumps({"step": step, "asked": asked, "solved": solved}))

    def flush(self) -> None:
        """Before a checkpoint: a run that goes on from it needs all lines before it."""
        self._file.flush()

    def __enter__(self) -> "Exploration":
        return self

    def __exit__(self, *unused: object) -> None:
        self._file.__exit__(*unused)

    def programs(self) -> int:
        """How many were asked for in the whole stage, once the file is closed."""
        return hosts.first(lambda: sum(len(json.loads(x)["asked"]) for x in self._file.lines()))

    def counts(self, n_problems: int) -> dict[str, int]:
        """What came of the whole stage, once the file is closed; there are `n_problems`."""
        return hosts.first(lambda: self._counts(n_problems))

    def _counts(self, n_problems: int) -> dict[str, int]:
        steps = [json.loads(line) for line in self._file.lines()]
        solutions = {tuple(one) for step in steps for one in step["solved"]}
        return {
            "problems": n_problems,
            "asked": len({task for step in steps for task in step["asked"]}),
            "solved": len({task for task, _ in solutions}),
            "distinct_solutions": len(solutions),
        }
