"""The broker: takes jobs from the trainer, hands them to zygotes, forms the verdicts.

It is a process of its own, started by exec, with one thread and one event loop. It holds the
expected values; whatever it reads from a child is data to be checked. A failure of the sandbox
itself is tried again elsewhere, three times in all, and then reported as such: never a verdict.
"""

import collections
import dataclasses
import os
import selectors
import socket
import time
from typing import Any

from prm_jax.sandbox.core import cgroup, frames, pool, verdicts
from prm_jax.sandbox.core.pool import Infrastructure, Run, Setting, Zygote
from prm_jax.sandbox.core.selftest import self_tests
from prm_jax.sandbox.core.verdicts import BadTests, Limits, Spec, Steps

_MAX_TRIES = 3
_MAX_JOBS_PER_ZYGOTE = 10_000
_RETEST_S = 300.0
_READ_BYTES = 1 << 16  # at once; larger buffers would be mapped and unmapped each time
_MAX_START_FAILURES, _START_FAILURES_S = 10, 10.0


@dataclasses.dataclass
class Job:
    """A program and its tests, or (with `zygote` set) one self-test of that zygote."""

    id: int
    request: dict[str, Any]
    tries: int = 0
    zygote: Zygote | None = None
    expected: str = ""
    steps: Steps | None = None
    wanted: list[Spec] = dataclasses.field(default_factory=list)
    runs: list[tuple[Zygote, Run]] = dataclasses.field(default_factory=list)


class Broker:
    def __init__(self, client: socket.socket, jobs: int, setting: Setting):
        self._client = client
        self._slots = jobs
        self._setting = setting
        self._selector = selectors.DefaultSelector()
        self._incoming = bytearray()
        self._outgoing = bytearray()
        self._waiting: collections.deque[Job] = collections.deque()  # not begun
        self._starting: collections.deque[Job] = collections.deque()  # begun, want zygotes
        self._running = 0
        self._zygotes: list[Zygote] = []
        self._owner: dict[Zygote, Job] = {}
        self._groups: list[cgroup.Group] = []
        self._slot = 0
        # when zygotes failed to start since the last one that did, without and with NumPy
        self._failures: dict[bool, list[float]] = {False: [], True: []}
        client.setblocking(False)
        self._client_events = selectors.EVENT_READ
        self._selector.register(client, self._client_events, None)

    def adopt(self, zygote: Zygote) -> None:
        """Take over a zygote that has passed its self-test."""
        self._zygotes.append(zygote)
        self._selector.register(zygote.socket, selectors.EVENT_READ, zygote)

    def serve(self) -> None:
        """Work until the client closes its end."""
        while True:
            events = self._selector.select(self._timeout())
            for key, mask in events:
                if key.data is None:
                    if mask & selectors.EVENT_READ and not self._receive():
                        return
                    if mask & selectors.EVENT_WRITE:
                        self._flush()
                elif isinstance(key.data, Zygote):
                    self._on_zygote(key.data)
                else:
                    zygote, run = key.data
                    self._on_output(zygote, run, key.fd)
            self._check_clocks()
            self._schedule()
            pool.reap()

    def close(self) -> None:
        """End all zygotes, and with them all programs."""
        for zygote in list(self._zygotes):
            self._drop(zygote)
        deadline = time.monotonic() + 2.0
        while self._groups and time.monotonic() < deadline:
            self._sweep_groups()
            pool.reap()
            time.sleep(0.005)

    # ------------------------------------------------------------------------------- the client

    def _receive(self) -> bool:
        try:
            data = self._client.recv(_READ_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._incoming += data
        bodies, used = frames.split(self._incoming)
        del self._incoming[:used]
        for body in bodies:
            self._waiting.append(Job(*frames.unpack(body)))
        return bool(data)

    def _send(self, message: dict[str, Any]) -> None:
        self._outgoing += frames.pack(message)
        self._flush()

    def _flush(self) -> None:
        try:
            sent = self._client.send(self._outgoing)
        except BlockingIOError:
            sent = 0
        except OSError:
            sent = len(self._outgoing)  # the client is gone; reading will say so
        del self._outgoing[:sent]
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._outgoing else 0)
        if wanted != self._client_events:
            self._client_events = wanted
            self._selector.modify(self._client, wanted, None)

    # ----------------------------------------------------------------------------------- jobs

    def _schedule(self) -> None:
        for zygote in list(self._zygotes):
            if self._is_idle(zygote) and time.monotonic() - zygote.checked > _RETEST_S:
                self._test(zygote)
        while self._waiting and self._running < self._slots:
            job = self._waiting.popleft()
            self._running += 1
            self._begin(job)
        lacking = {False: 0, True: 0}  # zygotes that jobs wait for, without and with NumPy
        for _ in range(len(self._starting)):
            job = self._starting.popleft()
            if not self._acquire(job, lacking):
                self._starting.append(job)

    def _begin(self, job: Job) -> None:
        request = job.request
        job.tries += 1
        try:
            limits = Limits(**request["limits"])
            job.steps = verdicts.judge(request["program"], request["tests"], limits)
            job.wanted = next(job.steps)
        except BadTests as error:
            self._finish(job, {"id": job.id, "error": str(error)})
        except Exception as error:  # what one job asks for must not end the others
            if job.zygote:
                self._lost(job.zygote, _stumble(error))
            else:
                self._finish(job, {"id": job.id, "error": _stumble(error)})
        else:
            self._starting.append(job)

    def _acquire(self, job: Job, lacking: dict[bool, int]) -> bool:
        """Start the children that the job wants, if there are zygotes for all of them."""
        numpy = self._numpy(job)
        if job.zygote:
            found = [job.zygote]
        else:
            idle = [z for z in self._zygotes if z.numpy == numpy and self._is_idle(z)]
            found = idle[: len(job.wanted)]
        if len(found) < len(job.wanted):
            mine = [z for z in self._zygotes if z.numpy == numpy]
            coming = sum(not z.checked for z in mine)
            lacking[numpy] += len(job.wanted) - len(found)
            if lacking[numpy] > coming and len(mine) < 2 * self._slots:
                self._spawn(numpy)
            return False
        self._start_children(job, found)
        return True

    def _is_idle(self, zygote: Zygote) -> bool:
        return bool(zygote.checked) and zygote.run is None and zygote not in self._owner

    def _start_children(self, job: Job, zygotes: list[Zygote]) -> None:
        """Fork a child on each zygote; two children get a pair of pipes between them."""
        joined: list[list[int]] = [[] for _ in zygotes]
        job.runs = [(z, Run(spec)) for z, spec in zip(zygotes, job.wanted, strict=True)]
        for zygote in zygotes:
            self._owner[zygote] = job
        try:
            if len(zygotes) == 2:
                for reader, writer in ((0, 1), (1, 0)):  # of requests, of responses
                    ends = os.pipe()
                    joined[reader].append(ends[0])
                    joined[writer].append(ends[1])
            for (zygote, run), fds in zip(job.runs, joined, strict=True):
                try:
                    zygote.start(run, fds)
                finally:
                    fds.clear()
        except Exception as error:  # what one job asks for must not end the others
            for fd in [fd for fds in joined for fd in fds]:
                os.close(fd)
            self._fail(job, str(error) if isinstance(error, Infrastructure) else _stumble(error))

    def _on_output(self, zygote: Zygote, run: Run, fd: int) -> None:
        if fd in run.fds() and not run.read(fd):
            self._selector.unregister(fd)

    def _on_zygote(self, zygote: Zygote) -> None:
        if zygote not in self._zygotes:
            return
        run, was_ready = zygote.run, zygote.ready
        was_announced = run is not None and run.pidfd >= 0
        try:
            zygote.receive()
        except Infrastructure as error:
            job = self._owner.get(zygote)
            if job:
                self._fail(job, str(error))
            self._lost(zygote, str(error))
            return
        if zygote.ready and not was_ready:
            self._test(zygote)
        if run and run.pidfd >= 0 and not was_announced:
            # until then the pipes hold what it writes; most children have ended by then
            for fd in run.fds():
                self._selector.register(fd, selectors.EVENT_READ, (zygote, run))
        if run and run.outcome:
            self._release(run)
            job = self._owner[zygote]
            if all(r.outcome for _, r in job.runs):
                self._advance(job)
            elif run.spec.mode == "tester" and not run.outcome.left_alone:
                job.runs[0][1].stop("done")  # nobody asks the program any more

    def _advance(self, job: Job) -> None:
        """All children of this step have ended: give their outcomes to the job."""
        outcomes = [run.outcome for _, run in job.runs if run.outcome]
        zygotes = self._disown(job)
        try:
            assert job.steps is not None
            job.wanted = job.steps.send(outcomes)
        except StopIteration as stop:
            if job.zygote:
                self._tested(job, stop.value)
            else:
                self._finish(job, {"id": job.id, "verdict": stop.value})
        except Exception as error:  # a fault of ours that a program has found must not stop us
            self._fail(job, _stumble(error))
        else:
            self._starting.append(job)
        for zygote in zygotes:
            if zygote.jobs >= _MAX_JOBS_PER_ZYGOTE and self._is_idle(zygote):
                self._drop(zygote)

    def _fail(self, job: Job, reason: str) -> None:
        """The sandbox failed under this job: replace its zygotes, try again or give up."""
        for zygote in self._disown(job):
            self._drop(zygote)
        if job.zygote:
            return
        if job.tries < _MAX_TRIES:
            self._begin(job)
        else:
            text = f"the sandbox failed {job.tries} times on this program; last: {reason}"
            self._finish(job, {"id": job.id, "error": text})

    def _disown(self, job: Job) -> list[Zygote]:
        zygotes = [zygote for zygote, _ in job.runs]
        for zygote, run in job.runs:
            self._owner.pop(zygote, None)
            self._release(run)
        job.runs = []
        return zygotes

    def _release(self, run: Run) -> None:
        for fd in run.fds():
            try:
                self._selector.unregister(fd)
            except KeyError:
                pass
        run.close()

    def _finish(self, job: Job, message: dict[str, Any]) -> None:
        self._running -= 1
        self._send(message)

    # -------------------------------------------------------------------------------- zygotes

    def _spawn(self, numpy: bool) -> None:
        self._slot += 1
        try:
            zygote = Zygote(self._setting, numpy, self._slot)
        except (OSError, Infrastructure) as error:
            self._count_failure(numpy, str(error))
            return
        if zygote.group:
            self._groups.append(zygote.group)
        self.adopt(zygote)

    def _test(self, zygote: Zygote) -> None:
        """Have it judge programs whose verdicts are known before it is used (again)."""
        zygote.checked = 0.0
        tests = self_tests(zygote.layers)
        job = Job(0, tests[0][0], zygote=zygote, expected=tests[0][1])
        self._begin(job)

    def _tested(self, job: Job, verdict: dict[str, Any]) -> None:
        zygote = job.zygote
        assert zygote is not None
        if verdict["status"] != job.expected:
            text = f"self-test: {verdict['status']} instead of {job.expected}: {verdict['message']}"
            self._lost(zygote, text)
            return
        tests = self_tests(zygote.layers)
        following = tests.index((job.request, job.expected)) + 1
        if following == len(tests):
            zygote.checked = time.monotonic()
            self._failures[zygote.numpy].clear()
        else:
            request, expected = tests[following]
            self._begin(Job(0, request, zygote=zygote, expected=expected))

    def _lost(self, zygote: Zygote, reason: str) -> None:
        if not zygote.checked:
            self._count_failure(zygote.numpy, reason)
        self._drop(zygote)

    def _count_failure(self, numpy: bool, reason: str) -> None:
        """Give up the jobs that wait for zygotes which do not start."""
        self._failures[numpy].append(time.monotonic())
        since_s = time.monotonic() - self._failures[numpy][0]
        if len(self._failures[numpy]) < _MAX_START_FAILURES or since_s < _START_FAILURES_S:
            return
        text = f"zygotes{' with NumPy' if numpy else ''} cannot be started: {reason}"
        for job in [j for j in self._starting if not j.zygote and self._numpy(j) == numpy]:
            self._starting.remove(job)
            self._finish(job, {"id": job.id, "error": text})

    def _numpy(self, job: Job) -> bool:
        return job.wanted[0].numpy and bool(self._setting.numpy_folders)

    def _drop(self, zygote: Zygote) -> None:
        if zygote in self._zygotes:
            self._zygotes.remove(zygote)
            self._selector.unregister(zygote.socket)
            zygote.end()
        self._sweep_groups()

    def _sweep_groups(self) -> None:
        used = {z.group for z in self._zygotes}
        self._groups = [g for g in self._groups if g in used or not g.remove()]

    # ---------------------------------------------------------------------------------- clocks

    def _timeout(self) -> float:
        checks = [z.run.next_check for z in self._zygotes if z.run]
        now = time.monotonic()
        return min(max(min(checks, default=now + 5.0) - now, 0.0), 5.0)

    def _check_clocks(self) -> None:
        now = time.monotonic()
        for zygote in self._zygotes:
            if zygote.run and zygote.run.next_check <= now:
                zygote.run.check(now)


def _stumble(error: Exception) -> str:
    return f"the broker stumbled: {type(error).__name__}: {error}"
