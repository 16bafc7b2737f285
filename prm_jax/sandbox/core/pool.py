"""Zygotes as the broker sees them: started by exec, spoken to over a socket, watched by the clock.

A child's time is its own CPU time, read from the kernel's clock of that process; wall time is
only a backstop, and time that a child spent waiting for a core does not count towards it.
"""

import dataclasses
import fcntl
import json
import marshal
import os
import select
import signal
import socket
import sys
import time

from prm_jax.sandbox.core import cgroup, paths, start_code, tiers
from prm_jax.sandbox.core.verdicts import Outcome, Spec, parse_frames
from prm_jax.sandbox.core.zygote import ENDED, MODES, NO_MEMORY, REQUEST

_MESSAGE_BYTES = 1 << 16
_MSG_CMSG_CLOEXEC = 0x40000000
_WALL_FACTOR, _WALL_EXTRA_S = 10.0, 10.0
_LEAST_CHECK_S, _MOST_CHECK_S = 0.01, 0.5
_MIB = 1 << 20
_MOST_MEMORY_BYTES, _MOST_CPU_S = 1 << 60, 1e9  # what a limit can say, with room for additions
_ZYGOTE_SHARE_BYTES = 192 * _MIB  # of a cgroup's limit: the zygote and what a child shares with it
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8",
    "TZ": "UTC", "PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1",
    "LD_BIND_NOW": "1",  # or every child looks up the same symbols
    "MALLOC_ARENA_MAX": "2",  # each reserves 64 MiB of a program's address space
}  # fmt: skip

# A zygote has one thread and seeds for each child: what modules do after a fork would only cost.
_NO_FORK_HOOKS = "import os; os.register_at_fork = lambda **hooks: None"


class Infrastructure(Exception):
    """The sandbox itself failed; nothing is known about the program."""


class LayerMissing(Infrastructure):
    """A layer of isolation cannot be had, or does not hold."""


@dataclasses.dataclass
class Setting:
    """What all zygotes of a broker have in common."""

    attempt: tiers.Attempt
    interpreter: str
    numpy_folders: list[str]


class Run:
    """One child, from the request until its end."""

    def __init__(self, spec: Spec):
        self.spec = spec
        self.report_fd = -1
        self.stdout_fd = -1
        self.report = bytearray()
        self.stdout = bytearray()
        self.pidfd = -1
        self.pid = 0
        self.started = time.monotonic()
        self.next_check = float("inf")
        self.stopped_for = ""
        self.outcome: Outcome | None = None

    def fds(self) -> list[int]:
        return [fd for fd in (self.report_fd, self.stdout_fd) if fd >= 0]

    def read(self, fd: int) -> bool:
        """Take what is there; False at the end of the pipe or past the limit."""
        try:
            return self._take(fd)
        except BlockingIOError:
            return True

    def drain(self) -> None:
        """Take all that a child which has ended left in its pipes."""
        for fd in self.fds():
            try:
                while self._take(fd):
                    pass
            except BlockingIOError:
                pass

    def _take(self, fd: int) -> bool:
        data = os.read(fd, 1 << 16)
        buffer = self.stdout if fd == self.stdout_fd else self.report
        buffer += data
        limit = self.spec.limits.output_bytes
        if len(buffer) > (limit if fd == self.stdout_fd else 2 * limit + 65536):
            self.stop("output")
            return False
        return bool(data)

    def stop(self, reason: str) -> None:
        self.stopped_for = self.stopped_for or reason
        if self.pidfd >= 0:
            _kill(self.pidfd)

    def announce(self, pidfd: int) -> None:
        """The child takes longer than a moment: from now on its clock is watched."""
        self.pidfd = pidfd
        self.pid = _pid_of(pidfd)
        self.next_check = 0.0
        if self.stopped_for:
            _kill(pidfd)

    def check(self, now: float) -> None:
        """Stop the child if its time is up, and say when to look again."""
        self.next_check = now + _MOST_CHECK_S
        if self.pid <= 0:
            return  # it had ended before we could learn its pid
        try:
            cpu_s = time.clock_gettime((~self.pid << 3) | 2)  # the CPU clock of another process
        except OSError:
            return  # it has just ended
        if select.select([self.pidfd], [], [], 0)[0]:
            return  # it has ended, and the clock may have been that of another with its pid
        left = self.spec.limits.cpu_s - cpu_s
        if left <= 0 or _is_stopped(self.pid):
            self.stop("timeout")
        wall_limit = _WALL_FACTOR * self.spec.limits.cpu_s + _WALL_EXTRA_S
        if now - self.started > wall_limit:
            if now - self.started - _waited_s(self.pid) > wall_limit:
                self.stop("timeout")
        pause = left / (os.cpu_count() or 1)
        self.next_check = now + min(max(pause, _LEAST_CHECK_S), _MOST_CHECK_S)

    def close(self) -> None:
        for fd in [*self.fds(), self.pidfd]:
            if fd >= 0:
                os.close(fd)
        self.report_fd = self.stdout_fd = self.pidfd = -1


class Zygote:
    """A jailed interpreter that forks one child at a time."""

    def __init__(self, setting: Setting, numpy: bool, slot: int):
        self.numpy = numpy
        self.slot = slot
        self.layers = setting.attempt.layers
        self.run: Run | None = None
        self.jobs = 0
        self.checked = 0.0  # when it last passed its self-test
        self.ready = False
        self.group: cgroup.Group | None = None
        self.pidfd = -1
        self._kills = 0
        packages = setting.numpy_folders if numpy else []
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        flags = ["-s", "-S", "-P", "-B"]
        code = start_code("zygote", before=_NO_FORK_HOOKS)
        arguments = [setting.interpreter, *flags, "-c", code]
        null = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]
        self.starter = os.posix_spawn(
            setting.interpreter,
            arguments,
            _ENVIRONMENT,
            file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), 3), *null],
        )
        theirs.close()
        self.socket = ours
        if "cgroup" in self.layers:
            try:
                self.group = cgroup.Group(f"{self.starter}")
            except OSError as error:
                ours.close()
                raise LayerMissing(f"cgroup: {error}") from error
        config = {
            "layers": sorted(self.layers),
            "packages": packages,
            "paths": dataclasses.asdict(paths.readable_paths(packages)),
            "uid": tiers.high_uid(slot),
        }
        self.socket.send(json.dumps(config).encode())

    def receive(self) -> None:
        """Handle one message; raises Infrastructure when the zygote is gone."""
        try:
            message, fds, _, _ = socket.recv_fds(self.socket, _MESSAGE_BYTES, 1, _MSG_CMSG_CLOEXEC)
            self._handle(message, fds)
        except (
            OSError,
            IndexError,
        ) as error:  # a descriptor for which there was no room is left out
            raise Infrastructure(f"zygote lost: {error}") from error

    def _handle(self, message: bytes, fds: list[int]) -> None:
        if message == b"self":
            self.pidfd = fds[0]
            if self.group:
                self.group.add(_pid_of(self.pidfd))
            self.socket.send(b"go")
        elif message == b"ready":
            self.ready = True
        elif message.startswith(b"failed "):
            raise LayerMissing(message[7:].decode())
        elif message == b"started" and self.run:
            self.run.announce(fds[0])
        elif len(message) == ENDED.size and self.run:
            self._end(*ENDED.unpack(message))
        else:
            raise Infrastructure("a zygote is gone")

    def start(self, run: Run, more_fds: list[int]) -> None:
        """Fork a child for the run. `more_fds`, which join it to another, are closed here.

        Raises Infrastructure.
        """
        spec = run.spec
        self.run = run
        self.jobs += 1
        memory_bytes = min(spec.limits.memory_bytes, _MOST_MEMORY_BYTES)
        fds: list[int] = []  # in the order in which the zygote takes them
        try:
            job = marshal.dumps(spec.job)
            fds.append(_memory_file(job))
            if spec.mode == "stdio":
                fds.append(_memory_file(spec.stdin))
                run.stdout_fd, theirs = _pipe()
                fds.append(theirs)
            fds += more_fds
            more_fds.clear()
            run.report_fd, theirs = _pipe()
            fds.append(theirs)
            request = REQUEST.pack(
                MODES.index(spec.mode),
                min(spec.limits.cpu_s, _MOST_CPU_S),
                memory_bytes,
                len(job),
            )
            run.started = time.monotonic()
            if self.group:
                self.group.limit(memory_bytes + _ZYGOTE_SHARE_BYTES)
            socket.send_fds(self.socket, [request], fds)
        except OSError as error:
            raise Infrastructure(f"no child can be started: {error}") from error
        finally:
            for fd in [*fds, *more_fds]:
                os.close(fd)

    def _end(self, status: int, user_s: float, system_s: float, peak: int) -> None:
        run = self.run
        assert run is not None
        self.run = None
        run.drain()
        found = parse_frames(run.report)
        cpu_s = user_s + system_s
        by_signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        stopped_for = run.stopped_for
        if not stopped_for and cpu_s > run.spec.limits.cpu_s:
            stopped_for = "timeout"
        if by_signal == signal.SIGKILL and not stopped_for:
            kills = self.group.kills() if self.group else 0
            if kills > self._kills:
                self._kills = kills
                stopped_for = "memory"
            elif "seccomp" in self.layers:
                raise Infrastructure("a child was killed from outside")
        exit_code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        if found[:1] != [["ready"]]:
            if exit_code != NO_MEMORY:
                raise Infrastructure("a child could not be set up")
            stopped_for = "memory"
        run.outcome = Outcome(
            exit_code=exit_code,
            signal=by_signal,
            cpu_s=cpu_s,
            wall_s=time.monotonic() - run.started,
            frames=found[1:],
            stdout=bytes(run.stdout),
            stopped_for=stopped_for,
        )

    def end(self) -> None:
        """Kill it and all that it started."""
        if self.pidfd >= 0:
            _kill(self.pidfd)
            os.close(self.pidfd)
            self.pidfd = -1
        self.socket.close()
        if self.run:
            self.run.stop("done")
            self.run.close()
            self.run = None


def numpy_folders(search: list[str]) -> list[str]:
    """Where NumPy lives (its folder, and that of its libraries) on this module path."""
    for entry in search:
        folder = os.path.join(entry, "numpy")
        if os.path.isfile(os.path.join(folder, "__init__.py")):
            libraries = os.path.join(entry, "numpy.libs")
            return [folder] + ([libraries] if os.path.isdir(libraries) else [])
    return []


def base_interpreter() -> str:
    """The real file of this interpreter, outside any virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def reap() -> None:
    """Let go of processes that have ended; zygotes become the broker's own when they start."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _pipe() -> tuple[int, int]:
    ours, theirs = os.pipe()
    os.set_blocking(ours, False)
    return ours, theirs


def _memory_file(data: bytes) -> int:
    fd = os.memfd_create("job", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(data)
        at = 0
        while at < len(data):
            at += os.pwrite(fd, view[at:], at)
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _kill(pidfd: int) -> None:
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _pid_of(pidfd: int) -> int:
    with open(f"/proc/self/fdinfo/{pidfd}") as file:
        for line in file:
            if line.startswith("Pid:"):
                return int(line.split()[1])
    raise Infrastructure("this kernel does not tell the pid of a pidfd")


def _is_stopped(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in ("T", "t")
    except OSError:
        return False


def _waited_s(pid: int) -> float:
    """Seconds that the process's threads were ready to run and had no core."""
    waited = 0
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/schedstat") as file:
                waited = max(waited, int(file.read().split()[1]))
    except (OSError, IndexError, ValueError):
        pass
    return waited / 1e9
