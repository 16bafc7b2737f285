"""The seccomp filters, run by an interpreter of their own on both architectures."""

import errno
import resource
import signal
import struct

import pytest

from prm_jax.sandbox.core import linux, seccomp

ALLOW, KILL = 0x7FFF0000, 0x80000000
DENY, ABSENT = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
PID = 4711


def run(filter_: linux.SeccompFilter, nr: int, arguments=(), arch: int = 0) -> int:
    """What the kernel would return: classic BPF on struct seccomp_data."""
    words = list(arguments) + [0] * (6 - len(arguments))
    data = struct.pack("=iIQ6Q", nr, arch or ARCH[linux.MACHINE], 0, *words)
    code = list(struct.iter_unpack("=HBBI", filter_._code.raw))
    a, pc = 0, 0
    while True:
        op, jt, jf, k = code[pc]
        pc += 1
        match op:
            case 0x20:
                (a,) = struct.unpack_from("=I", data, k)
            case 0x15:
                pc += jt if a == k else jf
            case 0x35:
                pc += jt if a >= k else jf
            case 0x45:
                pc += jt if a & k else jf
            case 0x54:
                a &= k
            case 0x06:
                return k
            case _:
                raise AssertionError(f"unknown instruction {op:#x}")


@pytest.fixture(params=ARCH)
def machine(request, monkeypatch):
    monkeypatch.setattr(linux, "MACHINE", request.param)
    return request.param


def number(name: str) -> int | None:
    tables = {**seccomp._ALLOWED, **seccomp._ZYGOTE_ONLY, **seccomp._UNKNOWN}
    return tables[name][linux.SUPPORTED_MACHINES.index(linux.MACHINE)]


def test_the_zygote_may_do_what_is_listed_and_no_more(machine):
    filter_ = seccomp.zygote_filter()
    listed = {number(n) for n in {**seccomp._ALLOWED, **seccomp._ZYGOTE_ONLY}} - {None}
    unknown = {number(n) for n in seccomp._UNKNOWN}
    for nr in range(600):
        expected = ALLOW if nr in listed else ABSENT if nr in unknown else DENY
        assert run(filter_, nr) == expected, nr


def test_another_architecture_is_killed(machine):
    for filter_ in (seccomp.zygote_filter(), seccomp.child_filter(PID)):
        assert run(filter_, 1, arch=0x40000003) == KILL  # 32-bit x86


def test_x32_numbers_are_denied(monkeypatch):
    monkeypatch.setattr(linux, "MACHINE", "x86_64")
    assert run(seccomp.child_filter(PID), 0x40000000 | 39) == DENY


_KILL, _STOP, _TERM = int(signal.SIGKILL), int(signal.SIGSTOP), int(signal.SIGTERM)
_CPU = int(resource.RLIMIT_CPU)
THREAD = 0x00010000
CHILD = [
    ("clone", (THREAD | 0x100,), ALLOW),
    ("clone", (int(signal.SIGCHLD),), DENY),
    ("fork", (), DENY),
    ("vfork", (), DENY),
    ("kill", (PID, _TERM), ALLOW),
    ("kill", (PID, _KILL), DENY),
    ("kill", (PID, _STOP), DENY),
    ("kill", (1, _TERM), DENY),
    ("kill", (0, _TERM), DENY),
    ("kill", (0xFFFFFFFF, _TERM), DENY),
    ("tgkill", (PID, PID + 1, _TERM), ALLOW),
    ("tgkill", (PID, PID + 1, _KILL), DENY),
    ("tgkill", (1, 1, _TERM), DENY),
    ("prlimit64", (0, 7), ALLOW),
    ("prlimit64", (PID, 7), ALLOW),
    ("prlimit64", (1, 7), DENY),
    ("prlimit64", (0, _CPU, 0, 0x1000), ALLOW),  # to read
    ("prlimit64", (0, _CPU, 0x1000), DENY),  # to set: the program would die by SIGKILL
    ("prlimit64", (0, _CPU, 1 << 40), DENY),
    ("setrlimit", (_CPU, 0x1000), DENY),
    ("setrlimit", (7, 0x1000), ALLOW),
    ("fcntl", (3, 1), ALLOW),
    ("fcntl", (3, 8), DENY),  # F_SETOWN
    ("fcntl", (3, 10), DENY),  # F_SETSIG
    ("ioctl", (0, 0x5401), ALLOW),
    ("ioctl", (0, 0x5412), DENY),  # TIOCSTI
    ("prctl", (15,), ALLOW),
    ("prctl", (1, _KILL), DENY),  # PR_SET_PDEATHSIG
    ("sendto", (3, 0, 0, 0, 0), ALLOW),
    ("sendto", (3, 0, 0, 0x4000, 0), ALLOW),  # MSG_NOSIGNAL
    ("sendto", (3, 0, 0, 1, 0), DENY),  # MSG_OOB
    ("sendto", (3, 0, 0, 0, 0x1000), DENY),
    ("sendto", (3, 0, 0, 0, 1 << 40), DENY),
    ("socketpair", (1, 1), ALLOW),
    ("socketpair", (1, 0x80801), ALLOW),  # SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK
    ("socketpair", (1, 2), DENY),
    ("socketpair", (2, 1), DENY),
    ("sendmsg", (), DENY),
    ("setresuid", (0, 0, 0), DENY),
    ("capset", (), DENY),
    ("seccomp", (), DENY),
    ("pidfd_open", (1,), DENY),
    ("read", (), ALLOW),
    ("mmap", (), ALLOW),
]


@pytest.mark.parametrize("name, arguments, expected", CHILD)
def test_the_child(machine, name, arguments, expected):
    nr = number(name)
    if nr is not None:  # aarch64 has no fork or vfork to deny
        assert run(seccomp.child_filter(PID), nr, arguments) == expected


def test_a_prepared_filter_equals_one_made_for_the_pid(machine):
    prepared = seccomp.child_filter(seccomp.ANY_PID)
    places = prepared.places(seccomp.ANY_PID)
    assert places
    prepared.put(places, PID)
    assert prepared._code.raw == seccomp.child_filter(PID)._code.raw


def test_no_call_is_both_allowed_and_denied(machine):
    tables = [seccomp._ALLOWED, seccomp._ZYGOTE_ONLY, seccomp._UNKNOWN]
    numbers = [number(name) for table in tables for name in table]
    known = [n for n in numbers if n is not None]
    assert len(known) == len(set(known))
