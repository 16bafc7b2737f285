"""A zygote: an interpreter that has imported what programs use, jailed itself, and forks.

One child per program (or per case) is forked for each request on the control socket. The zygote
never reads a job: it passes the file descriptors on, and what a program left in memory dies with
its child. It is process 1 of its own pid namespace where there is one, so its death ends all.
"""

import contextlib
import gc
import importlib
import json
import marshal
import os
import random
import resource
import select
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any

from prm_jax.sandbox.core import (
    candidate,
    child,
    frames,
    landlock,
    linux,
    namespaces,
    seccomp,
    tester,
)
from prm_jax.sandbox.core.entrance import Entrance
from prm_jax.sandbox.core.paths import Paths

# what programs of this kind import, loaded once instead of by every program
_PRELOADED = (
    "abc array bisect calendar cmath collections collections.abc contextlib copy datetime decimal "
    "enum fractions functools hashlib heapq inspect io itertools json math numbers operator "
    "pprint queue random re statistics string struct textwrap threading time traceback typing "
    "types unicodedata dataclasses locale encodings.idna encodings.latin_1"
).split()

MODES = ("calls", "stdio", "candidate", "tester")  # of children
REQUEST = struct.Struct("<BdQQ")  # place of the mode, CPU seconds, bytes of memory, of the job
ENDED = struct.Struct("<iddQ")  # wait status, user seconds, system seconds, peak bytes
_NO_ENTRY = 70  # exit status of a child that could not be set up
NO_MEMORY = 71  # of one whose limit is too low to begin
_POOL, _POOL_HEADER, _BYTES_OVERHEAD = 16384, 48, sys.getsizeof(b"")  # as CPython has them
_MOST_FILLING_BYTES = 1 << 16  # for each size, should a later version have them otherwise
_FILLING: list[bytes] = []
_NOWHERE = "/proc"  # where programs start that have no root of their own: nothing can be made there
_SHORT_MS = 25  # a child that ends within this is not announced
_LIMITS = (  # the same for every program; children inherit them
    (resource.RLIMIT_CORE, 0),
    (resource.RLIMIT_FSIZE, 0),
    (resource.RLIMIT_MEMLOCK, 0),
    (resource.RLIMIT_MSGQUEUE, 0),
    (resource.RLIMIT_NOFILE, 256),
)
_RUN = (child.run_calls, child.run_stdio, candidate.serve, tester.run)  # as in MODES
_READY = frames.pack(["ready"])
_FDS_BYTES = socket.CMSG_SPACE(8 * 4)


def main() -> None:
    """Started by exec with the control socket as file descriptor 3."""
    control = socket.SocketType(fileno=3)  # the plain one, without Python's own part
    config = json.loads(control.recv(1 << 20))
    try:
        serve = _prepare(control, config)
    except BaseException as error:
        control.send(f"failed {type(error).__name__}: {error}".encode())
        os._exit(1)
    serve()


def _prepare(control: socket.SocketType, config: dict[str, Any]) -> Callable[[], None]:
    """Import, enter the jail, forget the sandbox's own modules; returns the loop to run."""
    layers = set(config["layers"])
    os.environ.pop("LD_BIND_NOW", None)  # it has done its work when this process was started
    for name in _PRELOADED:
        importlib.import_module(name)
    _preload_packages(config["packages"])
    child.prepare_interpreter()
    _rehearse()
    os.umask(0o022)
    if "namespaces" in layers:
        with _named("namespaces"):
            namespaces.unshare(with_user="user" in layers)
        if os.fork():
            os._exit(0)  # process 1 of the namespace goes on; the broker adopts it
    _send_self(control)
    if not control.recv(16):
        os._exit(0)  # the broker is gone
    baseline = _memory_baseline()
    _jail(config, layers)
    for kind, value in _LIMITS:
        resource.setrlimit(kind, (value, value))
    for name in [n for n in sys.modules if n.split(".")[0] == "prm_jax"]:
        del sys.modules[name]
    random.seed(0)
    gc.collect()
    _FILLING.extend(_fill_pools())
    gc.freeze()
    gc.disable()
    control.send(b"ready")
    return lambda: _serve(control, layers, config, baseline)


def _rehearse() -> None:
    """Do once here what every child does: it then has fewer pages to copy, most of its time."""
    program = (
        "import math\nfrom typing import List\nclass A:\n    def __init__(self, x: int):\n"
        "        self.x = x\ndef f(x: int) -> List[int]:\n    total = {}\n"
        "    for i in range(x):\n        if i % 2 == 0:\n            total[i] = A(i).x + 1.5\n"
        "    return sorted((k, str(v)) for k, v in total.items())\n"
    )
    codes = [compile(text, "<test>", "eval") for text in ("f(9)", "g")]
    job = {"program": program, "setup": None, "expressions": codes, "output_bytes": 1 << 16}
    null, file, data = os.open(os.devnull, os.O_WRONLY), os.memfd_create("job"), marshal.dumps(job)
    os.write(file, data)
    for _ in range(20):  # until the interpreter has specialised the code
        child.run_calls(child.load_job(os.dup(file), len(data)), null)
    os.close(null)
    os.close(file)
    del sys.modules["program"]


def _fill_pools() -> Iterator[bytes]:
    """Objects that fill the gaps of Python's memory, so that children write to fewer pages.

    Python keeps objects of up to 512 bytes in pools, one size to a pool, and puts new ones into
    the gaps that importing has left all over them. Once a pool is new for each size, the objects
    of a child lie side by side.
    """
    for size in range(48, 513, 16):
        last, in_row = 0, 0
        for _ in range(_MOST_FILLING_BYTES // size):
            filling = bytes(size - _BYTES_OVERHEAD)
            yield filling
            at = id(filling)
            in_row = in_row + 1 if in_row and at == last + size else at % _POOL == _POOL_HEADER
            if in_row == 3:
                break  # the first objects of a pool: it is new
            last = at


@contextlib.contextmanager
def _named(layer: str) -> Iterator[None]:
    """Say in an OSError which layer it was."""
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno, f"{layer}: {error.strerror or error} {error.filename or ''}"
        ) from error


def _send_self(control: socket.SocketType) -> None:
    own = os.pidfd_open(os.getpid())
    _send_fd(control, b"self", own)
    os.close(own)


def _send_fd(control: socket.SocketType, message: bytes, fd: int) -> None:
    control.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", fd))])


def _preload_packages(folders: list[str]) -> None:
    """Import packages from where they are, without the rest of their site-packages."""
    for folder in folders:
        if not os.path.exists(os.path.join(folder, "__init__.py")):
            continue  # shared libraries of a package
        sys.path.append(os.path.dirname(folder))
        try:
            importlib.import_module(os.path.basename(folder))
        finally:
            sys.path.pop()


def _memory_baseline() -> tuple[int, int]:
    """Bytes of data and of address space that this interpreter has before any program."""
    with open("/proc/self/statm") as file:
        pages = file.read().split()
    page = resource.getpagesize()
    return int(pages[5]) * page, int(pages[0]) * page


def _jail(config: dict[str, Any], layers: set[str]) -> None:
    paths = Paths(**config["paths"])
    if "namespaces" in layers:
        with _named("namespaces"):
            namespaces.enter(paths)
    else:
        os.chdir(_NOWHERE)
    if "second_uid" in layers:
        with _named("second_uid"):
            linux.prctl(linux.PR_SET_KEEPCAPS, 1)
            os.setgroups([])
            _set_ids(config["uid"])
            linux.set_capabilities(linux.CAP_SETUID, linux.CAP_SETGID)
            os.listdir(paths.trees[0])  # another user must be able to import
    else:
        linux.set_capabilities()
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    if "landlock" in layers:
        with _named("landlock"):
            landlock.restrict(paths.readable, paths.listable, paths.devices)
    if "seccomp" in layers:
        with _named("seccomp"):
            seccomp.zygote_filter().install()


def _set_ids(uid: int) -> None:
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _serve(
    control: socket.SocketType, layers: set[str], config: dict[str, Any], baseline: tuple[int, int]
) -> None:
    entrance = Entrance(
        control.fileno(), layers, config["uid"] + 1 if "second_uid" in layers else 0, baseline
    )
    while True:
        message, passed, _, _ = control.recvmsg(REQUEST.size, _FDS_BYTES)
        if not message:
            os._exit(0)
        mode, cpu_s, memory_bytes, size = REQUEST.unpack(message)
        entrance.set_limits(cpu_s, memory_bytes)
        fds = memoryview(passed[0][2]).cast("i").tolist()
        pid = os.fork()
        if pid == 0:
            try:
                status = _run_child(mode, size, fds) if entrance.enter() else _NO_ENTRY
            except MemoryError:
                status = NO_MEMORY
            except BaseException:
                status = _NO_ENTRY
            os._exit(status)
        for fd in fds:
            os.close(fd)
        _wait(control, pid)


def _run_child(mode: int, size: int, fds: list[int]) -> int:
    job = child.load_job(fds.pop(0), size)
    gc.enable()
    if MODES[mode] == "stdio":
        for standard in (0, 1):
            fd = fds.pop(0)
            os.dup2(fd, standard)
            os.close(fd)
    os.write(fds[-1], _READY)  # from here on, what goes wrong is the program's doing
    return _RUN[mode](job, *fds)


def _wait(control: socket.SocketType, pid: int) -> None:
    """Announce a child that takes longer than a moment, and report how it ended."""
    pidfd = os.pidfd_open(pid)
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    poller.register(control, 0)  # only its hang-up
    ready = poller.poll(_SHORT_MS)
    if not ready:
        _send_fd(control, b"started", pidfd)
        ready = poller.poll()
    if any(fd == control.fileno() for fd, _ in ready):
        os._exit(0)
    os.close(pidfd)
    _, status, usage = os.wait4(pid, 0)
    control.send(ENDED.pack(status, usage.ru_utime, usage.ru_stime, usage.ru_maxrss * 1024))
