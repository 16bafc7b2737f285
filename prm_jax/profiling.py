"""A trace of a few steps of each stage, for TensorBoard's profile page or ui.perfetto.dev."""

from pathlib import Path

import jax

SKIPPED = 2  # steps of a stage that compile, or wait for what compiles


class Profiler:
    """Traces `steps` steps of every stage that logs its steps, into `folder/STAGE`."""

    def __init__(self, folder: Path, steps: int):
        self._folder = folder
        self._steps = steps
        self._seen: dict[str, int] = {}
        self._tracing: str | None = None

    def after_step(self, stage: str) -> None:
        """To be called when a step of a stage was dispatched."""
        seen = self._seen[stage] = self._seen.get(stage, 0) + 1
        if seen == SKIPPED and self._steps:
            jax.profiler.start_trace(self._folder / stage)
            self._tracing = stage
        elif seen == SKIPPED + self._steps and self._tracing:
            self.stop()

    def stop(self) -> None:
        """Ends the trace of a stage that had fewer steps, if one is under way."""
        if self._tracing is not None:
            self._tracing = None
            jax.profiler.stop_trace()
