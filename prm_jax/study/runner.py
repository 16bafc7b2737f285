"""Starts the runs of a study, several at once, and writes down what came of each.

A run is one process of `prm_jax.train` with a process group and cores of its own. It starts as
soon as no other run is at work on a stage that it could take over. A run that fails is recorded
and the others go on; the same study again tries it once more, and goes on with what was cut short.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prm_jax.config import to_json
from prm_jax.metrics import duration, say
from prm_jax.stages.run import write_atomically
from prm_jax.study.arms import POLICIES, Study, with_settings
from prm_jax.study.records import (
    ABANDONED,
    FAILED,
    FINISHED,
    add_record,
    described,
    finished,
    outcome,
    read_records,
)
from prm_jax.study.runs import StudyRun
from prm_jax.study.sharing import (
    finished_stages,
    is_done,
    stages_to_do,
    take_evaluations,
    take_stages,
)

TRAIN = (sys.executable, "-m", "prm_jax.train")
GREEDY = {"evaluate.temperature": 0.0, "evaluate.samples": 1, "evaluate.inspect": 0}
STOP_S = 20.0  # that a run has to end itself when the study is interrupted
# The config file of a run: its settings lie beside it.
CONFIG_FILE = '''"""The settings of one run of a study."""

from pathlib import Path

from prm_jax.config_file import read_config


def get_config():
    return read_config(Path(__file__).with_name("run.json"))
'''


class Runner:
    """The runs of one study and the machine that they run on."""

    def __init__(
        self,
        study: Study,
        runs: Sequence[StudyRun],
        *,
        records: Path,
        workdirs: Path,
        jobs: int,
        command: Sequence[str] = TRAIN,
        others: Sequence[StudyRun] = (),
        poll_s: float = 0.5,
    ):
        """`others` are runs that lend the stages that they have finished."""
        self._study = study
        self._runs = runs
        self._others = others
        self._records = records
        self._workdirs = workdirs
        self._command = command
        self._poll_s = poll_s
        self._cores = core_sets(sorted(os.sched_getaffinity(0)), jobs)
        self._running: list[_Child] = []
        self._failed: dict[str, str] = {}  # stage keys that could not be made: by which run
        self._told: set[str] = set()  # runs that were said to be busy

    def run(self) -> bool:
        """Runs what is not finished; whether all runs are finished in the end."""
        self._waiting = waiting = self._to_do()
        say(f"{self._study.name}: {len(self._runs)} runs, {len(waiting)} of them to do, "
            f"{len(self._cores)} at once")  # fmt: skip
        for run in waiting:
            self._record_cut_short(run)
        good = True
        try:
            while waiting or self._running:
                for child in list(self._running):
                    if child.ended():
                        good &= self._after(child)
                for run in list(waiting):
                    if len(self._running) == len(self._cores):
                        break
                    if not self._may_start(run):
                        continue
                    waiting.remove(run)
                    if (reason := self._impossible(run)) is not None:
                        good = False
                        self._record(run, FAILED, error=reason)
                    else:
                        self._start(run)
                time.sleep(self._poll_s)
        finally:
            if self._running:
                say(f"stopping: {len(self._running)} runs write down what they have")
            for child in self._running:
                child.interrupt()
            for child in self._running:
                child.stop()
                self._record(child.run, ABANDONED, child=child, error="the study was interrupted")
        return good

    # ------------------------------------------------------------------------------ scheduling

    def _there(self) -> dict[str, Path]:
        """Where each stage that is finished lies, by its key."""
        return finished_stages([*self._runs, *self._others], self._workdirs)

    def _to_do(self) -> list[StudyRun]:
        """Runs without a line, and those whose stages they need though their workdirs are gone."""
        done = finished(self._study, self._runs, read_records(self._records))
        to_do = {run.name for run in self._runs if run.name not in done}
        # Makers are listed after those that need them only with redraw = "rl": go round again.
        for _ in self._runs:
            for run in [run for run in self._runs if run.name in to_do]:
                for key in self._not_its_own(run):
                    makers = [r for r in self._runs if key in {r.keys[s] for s in r.made}]
                    if not to_do & {maker.name for maker in makers}:
                        to_do.add(makers[0].name)
        return [run for run in self._runs if run.name in to_do]

    def _not_its_own(self, run: StudyRun) -> list[str]:
        """Keys of the stages that nobody has finished and that only other runs can make."""
        own = {run.keys[stage] for stage in run.made}
        return [key for key in self._lacking(run) if key not in own]

    def _lacking(self, run: StudyRun) -> list[str]:
        """Keys of the stages that nobody has finished."""
        there = self._there()
        own = self._workdirs / run.name
        return [
            run.keys[stage]
            for stage in run.stages
            if run.keys[stage] not in there and not is_done(own, stage)
        ]

    def _may_start(self, run: StudyRun) -> bool:
        lacking = self._lacking(run)
        if any(key in self._failed for key in lacking):
            return True  # to be recorded as failed
        if any(key in child.makes for child in self._running for key in lacking):
            return False
        return not self._not_its_own(run) and not self._is_busy(run)

    def _impossible(self, run: StudyRun) -> str | None:
        for key in self._lacking(run):
            if key in self._failed:
                stage = next(s for s in run.stages if run.keys[s] == key)
                return f"stage {stage!r} could not be made by {self._failed[key]}"
        return None

    def _is_busy(self, run: StudyRun) -> bool:
        """Whether a process that an earlier study left behind is still at work on this run."""
        lock = self._workdirs / run.name / "lock"
        if not lock.exists():
            return False
        with lock.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return False
            except BlockingIOError:
                if run.name not in self._told:
                    self._told.add(run.name)
                    say(f"{run.name}: waiting for the process that is still at work on it")
                return True

    # ------------------------------------------------------------------------------- processes

    def _start(self, run: StudyRun) -> None:
        workdir = self._workdirs / run.name
        workdir.mkdir(parents=True, exist_ok=True)
        there = self._there()
        taken = take_stages(run, workdir, there)
        others = [other for other in (*self._runs, *self._others) if other.name != run.name]
        take_evaluations(run, workdir, others)
        kept = _read(workdir)
        kept["shared"] = kept.get("shared", {}) | taken
        kept["attempts"] = [*kept.get("attempts", []), {"begun_s": time.time()}]
        _write(workdir, kept)
        used = {child.cores for child in self._running}
        cores = next(c for c in self._cores if c not in used)
        say(f"{run.name}: begins" + (f", with {', '.join(taken)} of others" if taken else ""))
        child = _Child(run, workdir, cores, self._command)
        child.start(run.config, workdir, stages_to_do(run, workdir))
        self._running.append(child)

    def _after(self, child: "_Child") -> bool:
        """What follows on a process that ended: the next one of its run, or a line."""
        run = child.run
        twice = self._study.greedy and run.arm.measure in POLICIES
        if child.exit_code == 0 and twice and not child.greedy:
            workdir = child.workdir / "greedy"
            judged = (run.keys[stage] for stage in ("sft", run.arm.measure))
            take_stages(run, workdir, dict.fromkeys(judged, child.workdir))
            child.greedy = True
            child.start(with_settings(run.config, GREEDY), workdir, [])
            return True
        self._running.remove(child)
        if child.exit_code == 0:
            try:
                found = outcome(run, child.workdir)
                if child.greedy:
                    greedy = outcome(run, child.workdir / "greedy")
                    found["pass_at_1_greedy"] = greedy["pass_at_1"]
                self._record(run, FINISHED, child=child, found=found)
                return True
            except (OSError, ValueError, KeyError) as error:
                message = f"its files are not those of a finished run: {error!r}"
        else:
            message = child.last_words()
        for key in self._lacking(run)[:1]:
            self._failed[key] = run.name
        self._record(run, FAILED, child=child, error=message)
        return False

    # --------------------------------------------------------------------------------- records

    def _record(
        self,
        run: StudyRun,
        status: str,
        *,
        child: "_Child | None" = None,
        error: str | None = None,
        found: dict[str, Any] | None = None,
    ) -> None:
        line = described(self._study, run) | {"status": status, "error": error}
        line["machine"] = machine()
        if child is not None:
            kept = _read(child.workdir)
            kept["attempts"][-1] |= {"ended_s": time.time(), "cpu_s": child.cpu_s}
            _write(child.workdir, kept)
            spent = [attempt.get("cpu_s") for attempt in kept["attempts"]]
            made = [s for s in run.stages if is_done(child.workdir, s) and s not in kept["shared"]]
            line |= {
                "exit_code": child.exit_code,
                "attempts": len(spent),
                "cpu_s": round(child.cpu_s, 2),
                "cpu_s_all_attempts": None if None in spent else round(sum(spent), 2),
                "wall_s": round(time.time() - kept["attempts"][-1]["begun_s"], 1),
                "made": made,
                "shared": kept["shared"],
            }
        found = found or {}
        add_record(self._records, line | found)
        about = f" in {duration(line['wall_s'])}" if child is not None else ""
        passing = found.get("pass_at_1")
        result = "" if passing is None else f", pass@1 {100 * passing:.1f} %"
        say(f"{run.name}: {status}{about}{result}" + (f": {error}" if error else ""))

    def _record_cut_short(self, run: StudyRun) -> None:
        """Writes the line of an attempt that a kill of the study left without one."""
        workdir = self._workdirs / run.name
        kept = _read(workdir)
        if kept.get("attempts") and "ended_s" not in kept["attempts"][-1]:
            kept["attempts"][-1] |= {"ended_s": None, "cpu_s": None}
            _write(workdir, kept)
            add_record(
                self._records,
                described(self._study, run)
                | {"status": ABANDONED, "error": "the study was killed", "cpu_s": None}
                | {"attempts": len(kept["attempts"]), "shared": kept["shared"]},
            )


@dataclasses.dataclass
class _Child:
    """The processes of one run, one after the other."""

    run: StudyRun
    workdir: Path
    cores: tuple[int, ...]
    command: Sequence[str]
    greedy: bool = False
    exit_code: int | None = None
    cpu_s: float = 0.0  # of the processes that ended, those that they started included
    makes: frozenset[str] = frozenset()

    def start(self, config: Any, workdir: Path, stages: list[str]) -> None:
        write_atomically(workdir / "run.json", to_json(config))
        write_atomically(workdir / "run.py", CONFIG_FILE)
        self.makes = frozenset(self.run.keys[stage] for stage in stages)
        self.exit_code = None
        self._log = workdir / "train.log"
        arguments = ["--config", str(workdir / "run.py"), "--workdir", str(workdir)]
        arguments += ["--stages", ",".join([*stages, "evaluate"])]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self.command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        # At once, long before it starts threads: these and all its processes stay on the cores.
        with contextlib.suppress(OSError):
            os.sched_setaffinity(self._process.pid, self.cores)

    def ended(self, flags: int = os.WNOHANG) -> bool:
        """Whether the process has ended; then its exit code and CPU time are known."""
        if self.exit_code is not None:
            return True
        pid, status, usage = os.wait4(self._process.pid, flags)
        if pid == 0:
            return False
        self.exit_code = self._process.returncode = os.waitstatus_to_exitcode(status)
        self.cpu_s += usage.ru_utime + usage.ru_stime
        return True

    def interrupt(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGINT)

    def stop(self) -> None:
        """Waits for the process to end, and ends its group if it does not."""
        by = time.monotonic() + STOP_S
        while not self.ended() and time.monotonic() < by:
            time.sleep(0.05)
        if self.exit_code is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self.ended(0)

    def last_words(self) -> str:
        """How it ended and the last lines that it wrote."""
        text = self._log.read_bytes()[-4000:].decode("utf-8", errors="replace")
        lines = [line for line in text.splitlines() if line.strip()][-5:]
        return f"exit code {self.exit_code}: " + " | ".join(lines)


def machine() -> dict[str, Any]:
    """The processor, as far as the system tells, and how many cores the study has of it."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return {"processor": name, "cores": len(os.sched_getaffinity(0))}


def core_sets(cores: Sequence[int], jobs: int) -> list[tuple[int, ...]]:
    """The cores of each run: all of them dealt out evenly; at most one run a core."""
    jobs = max(1, min(jobs or len(cores), len(cores)))
    return [tuple(cores[i::jobs]) for i in range(jobs)]


@contextlib.contextmanager
def stopping_on_sigterm() -> Iterator[None]:
    """Lets SIGTERM end a study as Ctrl-C does: with a line for every run that was going on."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _read(workdir: Path) -> dict[str, Any]:
    path = workdir / "study.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"shared": {}}


def _write(workdir: Path, kept: dict[str, Any]) -> None:
    write_atomically(workdir / "study.json", json.dumps(kept, indent=2))
