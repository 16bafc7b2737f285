"""What a forked child does before its program runs: the last layers of the jail.

Most of a short program's time goes to pages that its process writes to first, and so has to copy;
counts of references are among what is written. Everything here is therefore laid out and tried
out in the zygote, once, and a child makes few objects and few kinds of calls.
"""

import os
import resource
import signal

from prm_jax.sandbox.core import linux, seccomp

_MIB = 1 << 20
_SLACK_AS = 256 * _MIB  # maps that hold no data: shared libraries, guard pages
_SLACK_REPORT = 16 * _MIB
_MAX_THREADS = 64
_TRIALS = 20  # until the interpreter has specialised the code


class Entrance:
    """Made in the zygote for all its children, which each pass it once.

    `control` is the zygote's socket; `baseline` is its own bytes of data and of address space;
    `uid` is the children's user, 0 for the zygote's own.
    """

    def __init__(self, control: int, layers: set[str], uid: int, baseline: tuple[int, int]):
        self._baseline = baseline
        self._calls = linux.Calls()
        self._calls.close(control)
        self._data = self._calls.setrlimit(resource.RLIMIT_DATA)
        self._space = self._calls.setrlimit(resource.RLIMIT_AS)
        self._cpu = self._calls.setrlimit(resource.RLIMIT_CPU)
        if layers & {"user", "second_uid"}:
            threads = self._calls.setrlimit(resource.RLIMIT_NPROC)
            threads[:] = [_MAX_THREADS, _MAX_THREADS]
        if uid:
            self._calls.change_user(uid)
            self._calls.set_capabilities()
            self._calls.prctl(linux.PR_SET_DUMPABLE, 0)
        # needed where no namespace ends with the zygote
        self._zygote = 0 if "namespaces" in layers else os.getpid()
        if self._zygote:  # after the change of user, which would clear it
            self._calls.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
        self._filter = seccomp.child_filter(seccomp.ANY_PID) if "seccomp" in layers else None
        self._places = self._filter.places(seccomp.ANY_PID) if self._filter else []
        self._try_out()

    def _try_out(self) -> None:
        harmless = linux.Calls()
        harmless.prctl(linux.PR_GET_DUMPABLE, 0)
        for _ in range(_TRIALS):
            harmless.make()
            if self._filter:
                self._filter.put(self._places, seccomp.ANY_PID)

    def set_limits(self, cpu_s: float, memory_bytes: int) -> None:
        """In the zygote, before the fork: what the next child may use."""
        data, space = self._baseline
        data, space = data + memory_bytes, space + memory_bytes + _SLACK_AS
        self._data[0], self._data[1] = data, data + _SLACK_REPORT
        self._space[0], self._space[1] = space, space + _SLACK_REPORT
        # the broker is exact; this holds if it is gone
        self._cpu[0] = self._cpu[1] = int(cpu_s) + 2

    def enter(self) -> bool:
        """In the child; False if the zygote is gone. Raises OSError."""
        self._calls.make()
        if self._zygote and os.getppid() != self._zygote:
            return False
        if self._filter:
            self._filter.put(self._places, os.getpid())
            self._filter.install()
        return True
