"""What a run says about itself while it runs: `metrics.jsonl`, TensorBoard events, progress.

A stage logs a dict of scalars per step. The values may still be on the device: they are fetched
one call late, so that logging never waits for the step that was just dispatched. A stage that
resumes from a checkpoint first rewinds the log to that step, so that a run which was killed leaves
the same metrics as one which never was.
"""

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2, summary_pb2
from tqdm import tqdm

from prm_jax.profiling import Profiler

FILE = "metrics.jsonl"
# Protocol buffers make their classes on import, where type checkers don't see them.
_EVENT: Any = event_pb2
_SUMMARY: Any = summary_pb2
_RESERVED = ("stage", "step", "time_s")


class NonFiniteMetric(ArithmeticError):
    """A metric is NaN or infinite; the message names stage, step and metric."""


class MetricsLog:
    """Appends to `workdir/metrics.jsonl` and `workdir/tensorboard/<stage>`; a context manager.

    Of several processes only the first writes; all of them check the values.
    """

    def __init__(self, workdir: Path | str, profiler: Profiler | None = None):
        self._profiler = profiler
        self.path = Path(workdir) / FILE
        self._writes = jax.process_index() == 0
        self._pending: tuple[str, int, float, dict[str, Any]] | None = None
        self._purge: dict[str, int] = {}  # stage -> first step that TensorBoard shall forget
        self._boards: dict[str, _Board] = {}
        self._file = None
        if self._writes:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _drop_torn_line(self.path)
            self._file = self.path.open("a", encoding="utf-8")

    def log(self, stage: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Takes the scalars of one step, on host or device, and writes those of the last call.

        Raises NonFiniteMetric, one call late, if a value is NaN or infinite; its line is written
        first. Raises ValueError for a value that is not a scalar or a reserved name.
        """
        for name, value in metrics.items():
            if name in _RESERVED:
                raise ValueError(f"metric {name!r} of {stage} is not allowed: choose another name")
            if np.ndim(value) != 0:
                raise ValueError(
                    f"metric {name!r} of {stage} has shape {np.shape(value)}: log its mean instead"
                )
            if isinstance(value, jax.Array):
                value.copy_to_host_async()
        previous = self._pending
        self._pending = (stage, step, time.time(), dict(metrics))
        if previous is not None:
            self._write(*previous)
        if self._profiler is not None:
            self._profiler.after_step(stage)

    def flush(self) -> None:
        """Brings all that was logged to the disk, TensorBoard's events included.

        To be called before a checkpoint is saved: a run that resumes from it does not log the
        steps before it again.
        """
        previous, self._pending = self._pending, None
        try:
            if previous is not None:
                self._write(*previous)
        finally:
            if self._file is not None:
                os.fsync(self._file.fileno())
            for board in self._boards.values():
                board.flush()

    def rewind(self, stage: str, step: int) -> None:
        """Forgets what `stage` logged at `step` and later, because these steps will run again."""
        self.flush()
        if self._profiler is not None:
            self._profiler.stop()  # of the stage before
        self._purge[stage] = step
        if (board := self._boards.pop(stage, None)) is not None:
            board.close()
        if self._file is None:
            return
        kept = [
            line
            for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            if not _is_at_or_after(json.loads(line), stage, step)
        ]
        self._file.close()
        new = self.path.with_name(FILE + ".new")
        new.write_text("".join(kept), encoding="utf-8")
        os.replace(new, self.path)
        self._file = self.path.open("a", encoding="utf-8")

    def close(self) -> None:
        """Writes what is pending and closes the files."""
        try:
            self.flush()
        finally:
            if self._profiler is not None:
                self._profiler.stop()
            for board in self._boards.values():
                board.close()
            self._boards.clear()
            if self._file is not None:
                self._file.close()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            self.close()
        except NonFiniteMetric:
            if kind is None:  # never hide the error that ended the run behind this one
                raise

    def _write(self, stage: str, step: int, time_s: float, metrics: dict[str, Any]) -> None:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if self._file is not None:
            line = {"stage": stage, "step": step, "time_s": round(time_s, 3), **values}
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            self._board(stage).write(step, time_s, values)
        for name, value in values.items():
            if not math.isfinite(value):
                raise NonFiniteMetric(f"{stage} step {step}: {name} is {value}")

    def _board(self, stage: str) -> "_Board":
        if stage not in self._boards:
            directory = self.path.parent / "tensorboard" / stage
            self._boards[stage] = _Board(directory, purge_step=self._purge.pop(stage, None))
        return self._boards[stage]


class _Board:
    """A new TensorBoard event file in `directory`.

    Written in the caller's thread: tensorboardX's SummaryWriter hands events to a thread of its
    own, and its `flush` leaves those that the thread has not taken yet.
    """

    FLUSH_EVERY_S = 30.0  # for who looks on while the run is on

    def __init__(self, directory: Path, purge_step: int | None):
        directory.mkdir(parents=True, exist_ok=True)
        # The default name has a resolution of one second: a quick restart would overwrite.
        self._events = EventsWriter(str(directory / "events"), f".{time.time_ns()}")
        self._flushed_s = -math.inf
        if purge_step is not None:  # TensorBoard forgets what it was told of this step and later
            session = _EVENT.SessionLog(status=_EVENT.SessionLog.START)
            self._events.write_event(
                _EVENT.Event(wall_time=time.time(), step=purge_step, session_log=session)
            )

    def write(self, step: int, time_s: float, values: Mapping[str, float]) -> None:
        summary = _SUMMARY.Summary()
        for name, value in values.items():
            summary.value.add(tag=name, simple_value=value)
        self._events.write_event(_EVENT.Event(wall_time=time_s, step=step, summary=summary))
        if time.monotonic() - self._flushed_s >= self.FLUSH_EVERY_S:
            self.flush()

    def flush(self) -> None:
        self._events.flush()
        self._flushed_s = time.monotonic()

    def close(self) -> None:
        self._events.close()


def read_metrics(workdir: Path | str) -> list[dict[str, Any]]:
    """All lines of `workdir/metrics.jsonl` in order; [] if there is none.

    A torn last line (the run was killed, or is writing it now) is left out.
    """
    path = Path(workdir) / FILE
    if not path.exists():
        return []
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


def _is_at_or_after(line: dict[str, Any], stage: str, step: int) -> bool:
    return line["stage"] == stage and line["step"] >= step


def _drop_torn_line(path: Path) -> None:
    if not path.exists():
        return
    whole = path.read_bytes().rfind(b"\n") + 1
    if whole != path.stat().st_size:
        os.truncate(path, whole)


class Progress:
    """Progress of one loop with its rate and the time left; a context manager.

    A bar on a terminal; otherwise plain lines on standard error, every ten seconds and at the end:
    `rl 12/40, 3.1 steps/s, 9 s left, reward/outcome 0.41`.

    Args:
        total: units of work, `initial` included.
        description: what is done, usually the name of the stage.
        unit: plural noun of what is counted.
        initial: units that an earlier run has done; they don't count for the rate.
    """

    LINE_EVERY_S = 10.0
    REDRAW_EVERY_S = 0.5

    def __init__(self, total: int, description: str, unit: str = "steps", *, initial: int = 0):
        self.total, self.description, self.unit = total, description, unit
        self.done = self._initial = initial
        self._silent = jax.process_index() != 0
        self._start_s = self._last_s = time.monotonic()
        self._last_done: int | None = initial
        self._shown: dict[str, Any] = {}
        self._bar = None
        if not self._silent and sys.stderr.isatty():
            self._bar = tqdm(
                total=total, desc=description, unit=f" {unit}", initial=initial, file=sys.stderr,
                dynamic_ncols=True,
            )  # fmt: skip

    def update(self, n: int = 1, **shown: Any) -> None:
        """Counts `n` more units; `shown` are scalars to show beside them.

        Names with a slash are given as `**{"reward/outcome": value}`. Values on the device are
        fetched only when they are drawn.
        """
        self.done += n
        self._shown = shown or self._shown
        if self._silent:
            return
        now_s = time.monotonic()
        finished = self.done >= self.total
        if self._bar is not None:
            if finished or now_s - self._last_s >= self.REDRAW_EVERY_S:
                self._bar.set_postfix_str(self._shown_text(), refresh=False)
                self._last_s = now_s
            self._bar.update(n)
        elif finished or now_s - self._last_s >= self.LINE_EVERY_S:
            self._print(now_s)

    def close(self) -> None:
        """Ends the bar, or prints a last line where the loop ended early."""
        if self._bar is not None:
            self._bar.close()
        elif not self._silent and self.done != self._last_done:
            self._print(time.monotonic())

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close()

    def _shown_text(self) -> str:
        return ", ".join(f"{name} {float(value):.3g}" for name, value in self._shown.items())

    def _print(self, now_s: float) -> None:
        rate = (self.done - self._initial) / max(now_s - self._start_s, 1e-9)
        parts = [f"{self.description} {self.done}/{self.total}", f"{rate:.3g} {self.unit}/s"]
        if self.done < self.total:
            left_s = (self.total - self.done) / rate if rate > 0 else math.inf
            parts.append(f"{duration(left_s)} left")
        else:
            parts.append(duration(now_s - self._start_s))
        if self._shown:
            parts.append(self._shown_text())
        print(", ".join(parts), file=sys.stderr, flush=True)
        self._last_s, self._last_done = now_s, self.done


def duration(seconds: float) -> str:
    """A duration for people, in two units at most: `9 s`, `3 min 20 s`, `1 h 4 min`."""
    if not math.isfinite(seconds):
        return "unknown time"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def say(text: str) -> None:
    """A line for people, on standard error as the progress lines are."""
    if jax.process_index() == 0:
        print(text, file=sys.stderr, flush=True)
