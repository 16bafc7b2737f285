"""The trainer's end of the sandbox: futures of verdicts, from a process that is never forked.

The broker is started by exec and spoken to over a socket pair by one sending lock and one reading
thread, so any thread of a process that runs JAX may submit programs. Identical work in flight or
judged before is done once; if the broker dies it is started again and the open work resubmitted.
"""

import collections
import dataclasses
import hashlib
import math
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Collection, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from prm_jax.sandbox.core import frames, linux, start_code
from prm_jax.sandbox.core.pool import base_interpreter
from prm_jax.sandbox.core.tiers import TIERS
from prm_jax.sandbox.memo import Memo
from prm_jax.types import CallTests, CheckTests, Limits, StdioTests, Tests, Verdict

_MAX_BROKERS = 3  # that may die under one piece of work
_MAX_STARTS = 10  # of a broker, in a row
_REMEMBERED = 1 << 16
_MOST_COUNT = 1 << 63  # what a limit may be; more than any kernel can say
_WAITING_PER_JOB = 64
_CLOSE_S = 5.0
_READ_BYTES = 1 << 16  # at once; larger buffers would be mapped and unmapped each time

Work = tuple[str, Tests, Limits]


class SandboxError(RuntimeError):
    """The sandbox could not judge a program; nothing is known about the program."""


class SandboxRefused(SandboxError):
    """The isolation on this host is weaker than the accepted tier; says what to change."""


@dataclasses.dataclass
class _Open:
    """Work that the broker has, and everybody who waits for it."""

    request: bytes
    key: bytes  # equal work has the same: verdicts outlive the programs, which may be large
    futures: list[Future[Verdict]]
    brokers: int = 1


class Sandbox:
    """Judges programs in isolation, several at once. Use it as a context manager.

    `jobs` is how many programs run at once, 0 for the cores that this process may use; `min_tier`
    is the weakest isolation that is accepted; `without` leaves layers off (namespaces, second_uid,
    user, landlock, seccomp, cgroup), which lowers the tier; `memo` is a file of verdicts that runs
    share, none by default and none in T4. Raises SandboxRefused.
    """

    def __init__(
        self,
        jobs: int = 0,
        min_tier: str = "T3",
        *,
        without: Collection[str] = (),
        memo: Path | None = None,
    ):
        if min_tier not in TIERS:
            raise ValueError(f"min_tier = {min_tier!r} is not allowed: it must be one of {TIERS}")
        if jobs < 0:
            raise ValueError(f"jobs = {jobs} is not allowed: it must be at least 0")
        if linux.MACHINE not in linux.SUPPORTED_MACHINES or not hasattr(os, "pidfd_open"):
            raise SandboxRefused(
                f"the sandbox needs Linux on one of {linux.SUPPORTED_MACHINES}, not "
                f"{sys.platform} on {linux.MACHINE}"
            )
        self.jobs = jobs or len(os.sched_getaffinity(0))
        self.tier = ""
        self._config: dict[str, Any] = {
            "jobs": self.jobs,
            "min_tier": min_tier,
            "without": sorted(without),
            "path": [p for p in sys.path if p],
        }
        self._lock = threading.Lock()  # of everything below
        self._open: dict[int, _Open] = {}
        self._by_key: dict[bytes, int] = {}
        self._judged: collections.OrderedDict[bytes, Verdict] = collections.OrderedDict()
        self._memo: Memo | None = None
        self._next_id = 1
        self._closed = False
        self._room = threading.BoundedSemaphore(self.jobs * _WAITING_PER_JOB)
        self._sending = threading.Lock()
        self._start()
        # In T4 a program can write what we can, and so a memo as well.
        if memo is not None and self.tier != "T4":
            self._memo = Memo(memo, isolation=f"{self.tier} {sorted(without)}")
        self._reader = threading.Thread(target=self._read, name="sandbox", daemon=True)
        self._reader.start()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, program: str, tests: Tests, limits: Limits | None = None) -> Future[Verdict]:
        """Judge a program; the future's result is the verdict, or it raises SandboxError.

        Waits while `64 x jobs` programs are ahead. Equal (program, tests, limits) are judged once,
        unless the verdict was a timeout. Raises ValueError for a field that cannot be used.
        """
        request = _request(program, tests, limits or Limits())
        future: Future[Verdict] = Future()
        future.set_running_or_notify_cancel()  # one waiter cannot cancel what others wait for
        key = hashlib.blake2b(request, digest_size=32).digest()
        if not self._join(key, future):
            self._room.acquire()
            number = self._register(request, key, future)
            if number is None:
                self._room.release()
            else:
                self._send(frames.numbered(number, request))
        return future

    def judge(self, works: Iterable[Work]) -> list[Verdict]:
        """Verdicts of (program, tests, limits) in their order; raises SandboxError."""
        futures = [self.submit(*work) for work in works]
        return [future.result() for future in futures]

    def close(self) -> None:
        """End every process of the sandbox; open work fails with SandboxError."""
        with self._lock:
            if self._memo is not None:
                self._memo.close()
            if self._closed:
                return
            self._closed = True
        self._shut()
        self._reader.join(_CLOSE_S)
        try:
            self._process.wait(_CLOSE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._socket.close()

    # ------------------------------------------------------------------------- bookkeeping

    def _join(self, key: bytes, future: Future[Verdict]) -> bool:
        """Answer from what is known or under way, if it is."""
        with self._lock:
            if number := self._by_key.get(key):
                self._open[number].futures.append(future)
                return True
            verdict = self._judged.get(key)
            if verdict is not None:
                self._judged.move_to_end(key)
            elif self._memo is not None and not self._closed:
                verdict = self._memo.get(key)
            if verdict is None:
                return False
        future.set_result(verdict)
        return True

    def _register(self, request: bytes, key: bytes, future: Future[Verdict]) -> int | None:
        """A number for new work; None if another thread has brought the same, or all is over."""
        if self._join(key, future):
            return None
        with self._lock:
            if self._closed:
                future.set_exception(SandboxError("the sandbox is closed"))
                return None
            number = self._next_id
            self._next_id += 1
            self._open[number] = _Open(request, key, [future])
            self._by_key[key] = number
            return number

    def _settle(self, number: int, verdict: Verdict | None, error: str = "") -> None:
        with self._lock:
            done = self._open.pop(number, None)
            if done is None:
                return
            self._by_key.pop(done.key, None)
            if verdict is not None and verdict.status != "timeout":
                self._judged[done.key] = verdict
                if self._memo is not None:
                    self._memo.put(done.key, verdict)
                if len(self._judged) > _REMEMBERED:
                    self._judged.popitem(last=False)
        self._room.release()
        for future in done.futures:
            if verdict is not None:
                future.set_result(verdict)
            else:
                future.set_exception(SandboxError(error))

    # -------------------------------------------------------------------------- the broker

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        try:
            process = subprocess.Popen(
                [base_interpreter(), "-I", "-S", "-B", "-c", start_code("start")],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
                cwd="/",
            )
        except OSError as error:
            raise SandboxError(f"the broker cannot be started: {error}") from error
        finally:
            theirs.close()
        self._process, self._socket = process, ours
        try:
            ours.sendall(frames.pack(self._config))
            hello = frames.read(ours.fileno(), 1 << 20)
        except OSError:
            hello = None
        if hello is None or "refused" in hello:
            ours.close()
            process.wait()
            if hello is None:
                raise SandboxError(f"the broker died at its start, status {process.returncode}")
            raise SandboxRefused(hello["refused"])
        self.tier = hello["tier"]
        self._config |= hello  # if this broker dies, the next one isolates as well as it did

    def _start_again(self) -> str:
        """Start another broker; returns why there is none."""
        trouble = ""
        for _ in range(_MAX_STARTS):
            try:
                self._start()
                return ""
            except SandboxError as error:
                trouble = str(error)
        return trouble

    def _send(self, data: bytes) -> None:
        with self._sending:
            try:
                self._socket.sendall(data)
            except OSError:
                pass  # the reading thread sees the end too, and sends all open work again

    def _shut(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def _read(self) -> None:
        """The reading thread: settle futures; when the broker dies, start another."""
        buffer = bytearray()
        while True:
            try:
                data = self._socket.recv(_READ_BYTES)
            except OSError:
                data = b""
            buffer += data
            bodies, used = frames.split(buffer)
            del buffer[:used]
            for body in bodies:
                message = frames.unpack(body)
                if "verdict" in message:
                    verdict = Verdict(tier=self.tier, **message["verdict"])
                    self._settle(message["id"], verdict)
                else:
                    self._settle(message["id"], None, message["error"])
            if not data:
                buffer.clear()
                if not self._restart():
                    return

    def _restart(self) -> bool:
        """Replace a broker that is gone; False if this is the end of the sandbox."""
        with self._lock:
            closed = self._closed
        trouble = "the sandbox was closed" if closed else ""
        if not closed:
            with self._sending:
                self._socket.close()
                self._process.wait()
                trouble = self._start_again()
        if trouble:
            with self._lock:
                self._closed = True
                numbers = list(self._open)
            for number in numbers:
                self._settle(number, None, trouble)
            return False
        with self._lock:
            again = list(self._open.items())
        for place, (number, item) in enumerate(again):
            item.brokers += place < self.jobs  # the oldest were under way, the others waited
            if item.brokers > _MAX_BROKERS:
                self._settle(number, None, f"the broker died {_MAX_BROKERS} times on this program")
            else:
                self._send(frames.numbered(number, item.request))
        return True


def _request(program: str, tests: Tests, limits: Limits) -> bytes:
    """All that a verdict hangs on, as JSON; raises ValueError for a field that cannot be used."""
    _text("program", program)
    match tests:
        case CallTests():
            kind = "calls"
            for i, statement in enumerate(_sequence("asserts", tests.asserts)):
                _text(f"asserts[{i}]", statement)
            _text("setup", tests.setup)
        case CheckTests():
            kind = "check"
            _text("code", tests.code)
            _text("entry_point", tests.entry_point)
        case StdioTests():
            kind = "stdio"
            for i, case in enumerate(_sequence("cases", tests.cases)):
                if len(_sequence(f"cases[{i}]", case)) != 2:
                    raise _unusable(f"cases[{i}]", case, "a pair (standard input, output)")
                _text(f"cases[{i}][0]", case[0])
                _text(f"cases[{i}][1]", case[1])
        case _:
            raise _unusable("tests", tests, "CallTests, CheckTests or StdioTests")
    if not isinstance(tests, CheckTests):
        _number("float_tolerance", tests.float_tolerance)
    if not _number("cpu_s", limits.cpu_s) > 0:
        raise _unusable("cpu_s", limits.cpu_s, "more than 0")
    _count("memory_mib", limits.memory_mib)
    _count("output_bytes", limits.output_bytes)
    return frames.dump(
        {
            "program": program,
            "tests": {"kind": kind, **vars(tests)},
            "limits": {
                "cpu_s": limits.cpu_s,
                "memory_bytes": limits.memory_mib << 20,
                "output_bytes": limits.output_bytes,
            },
        }
    )


def _unusable(field: str, value: object, mend: str) -> ValueError:
    return ValueError(f"{field} = {repr(value)[:100]} is not allowed: it must be {mend}")


def _text(field: str, value: object) -> None:
    if not isinstance(value, str):
        raise _unusable(field, value, "a str")


def _sequence(field: str, value: Any) -> tuple[Any, ...] | list[Any]:
    if not isinstance(value, tuple | list):
        raise _unusable(field, value, "a tuple")
    return value


def _number(field: str, value: Any) -> float:
    try:
        if isinstance(value, int | float) and math.isfinite(value) and value >= 0:
            return value
    except OverflowError:
        pass  # an int that is no float
    raise _unusable(field, value, "a finite number of at least 0")


def _count(field: str, value: Any) -> None:
    if not isinstance(value, int) or not 0 <= value < _MOST_COUNT:
        raise _unusable(field, value, f"an int from 0 to {_MOST_COUNT - 1}")
