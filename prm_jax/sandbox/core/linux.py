"""System calls that Python's standard library does not wrap, through ctypes.

Numbers and structures are those of the kernel's user interface for x86-64 and aarch64; every
wrapper raises OSError with the kernel's errno.
"""

import ctypes
import functools
import os
import struct
from collections.abc import Callable
from typing import Any

MACHINE = os.uname().machine
SUPPORTED_MACHINES = ("x86_64", "aarch64")
_COLUMN = SUPPORTED_MACHINES.index(MACHINE) if MACHINE in SUPPORTED_MACHINES else 0

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2

MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 1, 2, 4, 8

PR_SET_PDEATHSIG, PR_GET_DUMPABLE, PR_SET_DUMPABLE, PR_SET_KEEPCAPS = 1, 3, 4, 8
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 22, 38
_SECCOMP_MODE_FILTER = 2

CAP_SETGID, CAP_SETUID = 6, 7

_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_LINUX_CAPABILITY_VERSION_3 = 0x20080522

# (x86-64, aarch64)
_NUMBERS = {
    "pivot_root": (155, 41),
    "capset": (126, 91),
    "mount_setattr": (442, 442),
    "landlock_create_ruleset": (444, 444),
    "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
}


def _check(result: int, what: str) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result


def syscall(name: str, *arguments) -> int:
    """Call by name with integers and ctypes objects; raises OSError."""
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _check(_libc.syscall(ctypes.c_long(_NUMBERS[name][_COLUMN]), *words), name)


def unshare(flags: int) -> None:
    _check(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    words = [None if w is None else os.fsencode(w) for w in (source, target, kind, data)]
    result = _libc.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3])
    _check(result, f"mount {kind or source} on {target}")


def umount(target: str, flags: int = MNT_DETACH) -> None:
    _check(_libc.umount2(os.fsencode(target), flags), f"umount {target}")


def pivot_root(new_root: str, put_old: str) -> None:
    syscall("pivot_root", os.fsencode(new_root), os.fsencode(put_old))


def mount_setattr(path: str, attributes: int, recursive: bool) -> None:
    """Add attributes (read-only, nosuid, ...) to a mount and keep the others; Linux 5.12."""
    attr = ctypes.create_string_buffer(struct.pack("=QQQQ", attributes, 0, 0, 0), 32)
    flags = _AT_RECURSIVE if recursive else 0
    syscall("mount_setattr", _AT_FDCWD, os.fsencode(path), flags, attr, 32)


class Calls:
    """C calls in a row, their arguments laid out, so that a forked child makes no objects for them.

    What the adding methods return is read when the calls are made.
    """

    def __init__(self) -> None:
        self._calls: list[tuple[Callable[[], int], str]] = []

    def make(self) -> None:
        """Make them all; raises OSError at the first that fails."""
        for call, what in self._calls:
            if call() < 0:
                _check(-1, what)

    def _add(self, what: str, function: Any, *arguments: Any) -> None:
        self._calls.append((functools.partial(function, *arguments), what))

    def close(self, fd: int) -> None:
        self._add("close", _libc.close, ctypes.c_int(fd))

    def setrlimit(self, kind: int) -> "ctypes.Array[ctypes.c_ulong]":
        """Returns the place of the soft and the hard limit."""
        limits = (ctypes.c_ulong * 2)()
        self._add(f"setrlimit({kind})", _libc.setrlimit, ctypes.c_int(kind), limits)
        return limits

    def change_user(self, uid: int) -> None:
        """To a user and a group of this number, for good."""
        number = ctypes.c_uint(uid)
        self._add("setresgid", _libc.setresgid, number, number, number)
        self._add("setresuid", _libc.setresuid, number, number, number)

    def prctl(self, option: int, value: Any = 0, pointer: Any = None) -> None:
        zero = ctypes.c_ulong(0)
        third = zero if pointer is None else pointer
        arguments = ctypes.c_int(option), ctypes.c_ulong(value), third, zero, zero
        self._add(f"prctl({option})", _libc.prctl, *arguments)

    def set_capabilities(self, *capabilities: int) -> None:
        """Keep these capabilities (permitted and effective) and drop all others."""
        low = sum(1 << c for c in capabilities)
        header = ctypes.create_string_buffer(struct.pack("=Ii", _LINUX_CAPABILITY_VERSION_3, 0), 8)
        sets = ctypes.create_string_buffer(struct.pack("=6I", low, low, 0, 0, 0, 0), 24)
        number = ctypes.c_long(_NUMBERS["capset"][_COLUMN])
        self._add("capset", _libc.syscall, number, header, sets)


def prctl(option: int, value: int = 0) -> None:
    calls = Calls()
    calls.prctl(option, value)
    calls.make()


def set_capabilities(*capabilities: int) -> None:
    calls = Calls()
    calls.set_capabilities(*capabilities)
    calls.make()


def sethostname(name: bytes) -> None:
    _check(_libc.sethostname(name, len(name)), "sethostname")


class SeccompFilter:
    """A compiled BPF program, ready to be installed in this thread."""

    def __init__(self, instructions: list[tuple[int, int, int, int]]):
        code = b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
        self._code = ctypes.create_string_buffer(code, len(code))
        padded = struct.pack("=HxxxxxxQ", len(instructions), ctypes.addressof(self._code))
        self._program = ctypes.create_string_buffer(padded, len(padded))
        self._calls = Calls()
        self._calls.prctl(PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, self._program)
        self._words = memoryview(self._code).cast("B").cast("I")

    def places(self, constant: int) -> list[int]:
        """Where this constant stands: arguments for `put`."""
        return [at for at in range(1, len(self._words), 2) if self._words[at] == constant]

    def put(self, places: list[int], constant: int) -> None:
        """Another constant in these places."""
        for at in places:
            self._words[at] = constant

    def install(self) -> None:
        """Filters stack and cannot be removed; needs no_new_privs. Raises OSError."""
        self._calls.make()
