"""Which system calls a program may make, as two BPF filters put together by hand.

The zygote installs `zygote_filter` once: a list of what is allowed, everything else fails with
EPERM. Each child adds `child_filter`, which takes away what only a zygote needs (fork above all)
and looks at arguments: signals go to the program itself, limits are its own, file descriptors get
no owner to signal. Threads are allowed, for contest programs start one to have a large stack.
"""

import errno
import resource
import signal
from collections.abc import Mapping

from prm_jax.sandbox.core import linux

# name: (x86-64, aarch64), None where the architecture has no such call
_ALLOWED = {
    # files that are open already, and opening what Landlock and the mounts leave
    "read": (0, 63), "write": (1, 64), "open": (2, None), "close": (3, 57), "stat": (4, None),
    "fstat": (5, 80), "lstat": (6, None), "poll": (7, None), "lseek": (8, 62),
    "pread64": (17, 67), "pwrite64": (18, 68), "readv": (19, 65), "writev": (20, 66),
    "access": (21, None), "pipe": (22, None), "select": (23, None), "dup": (32, 23),
    "dup2": (33, None), "dup3": (292, 24), "pipe2": (293, 59), "preadv": (295, 69),
    "pwritev": (296, 70), "fcntl": (72, 25), "ioctl": (16, 29), "fsync": (74, 82),
    "fdatasync": (75, 83), "getdents": (78, None), "getdents64": (217, 61), "getcwd": (79, 17),
    "readlink": (89, None), "readlinkat": (267, 78), "openat": (257, 56),
    "newfstatat": (262, 79), "faccessat": (269, 48), "faccessat2": (439, 439),
    "statx": (332, 291), "statfs": (137, 43), "fstatfs": (138, 44), "close_range": (436, 436),
    "pselect6": (270, 72), "ppoll": (271, 73), "epoll_create": (213, None),
    "epoll_create1": (291, 20), "epoll_wait": (232, None), "epoll_ctl": (233, 21),
    "epoll_pwait": (281, 22), "epoll_pwait2": (441, 441), "eventfd": (284, None),
    "eventfd2": (290, 19), "timerfd_create": (283, 85), "timerfd_settime": (286, 86),
    "timerfd_gettime": (287, 87),
    # memory and threads
    "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214),
    "mremap": (25, 216), "msync": (26, 227), "madvise": (28, 233), "clone": (56, 220),
    "futex": (202, 98), "set_robust_list": (273, 99), "get_robust_list": (274, 100),
    "rseq": (334, 293), "membarrier": (324, 283), "set_tid_address": (218, 96),
    "sched_yield": (24, 124), "sched_getaffinity": (204, 123), "sched_getparam": (143, 121),
    "sched_getscheduler": (145, 120), "sched_get_priority_max": (146, 125),
    "sched_get_priority_min": (147, 126), "getpriority": (140, 141), "getcpu": (309, 168),
    # signals and time
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "rt_sigpending": (127, 136), "rt_sigtimedwait": (128, 137), "rt_sigsuspend": (130, 133),
    "sigaltstack": (131, 132), "pause": (34, None), "kill": (62, 129), "tgkill": (234, 131),
    "nanosleep": (35, 101), "clock_nanosleep": (230, 115), "getitimer": (36, 102),
    "alarm": (37, None), "setitimer": (38, 103), "gettimeofday": (96, 169), "times": (100, 153),
    "time": (201, None), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "restart_syscall": (219, 128),
    # what a process may know of itself
    "getpid": (39, 172), "gettid": (186, 178), "getppid": (110, 173), "getuid": (102, 174),
    "getgid": (104, 176), "geteuid": (107, 175), "getegid": (108, 177), "getgroups": (115, 158),
    "getresuid": (118, 148), "getresgid": (120, 150), "getpgrp": (111, None),
    "getpgid": (121, 155), "getsid": (124, 156), "uname": (63, 160), "sysinfo": (99, 179),
    "getrlimit": (97, 163), "setrlimit": (160, 164), "prlimit64": (302, 261),
    "getrusage": (98, 165), "getrandom": (318, 278),
    # a pair of connected sockets wakes asyncio's loop; no other socket can be made
    "socketpair": (53, 199), "sendto": (44, 206), "recvfrom": (45, 207), "shutdown": (48, 210),
    "getsockname": (51, 204), "getpeername": (52, 205),
    "getsockopt": (55, 209),
    "wait4": (61, 260), "waitid": (247, 95), "prctl": (157, 167), "exit": (60, 93),
    "exit_group": (231, 94),
}  # fmt: skip

# allowed to the zygote, taken away from the child
_ZYGOTE_ONLY = {
    "recvmsg": (47, 212), "sendmsg": (46, 211), "pidfd_open": (434, 434), "capset": (126, 91),
    "setresuid": (117, 147), "setresgid": (119, 149), "setgroups": (116, 159),
    "fork": (57, None), "vfork": (58, None), "seccomp": (317, 277),
}  # fmt: skip

# glibc asks for these first and falls back to older ones when the kernel has none
_UNKNOWN = {"clone3": (435, 435), "openat2": (437, 437)}

_FCNTL_COMMANDS = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032, 1034)  # no owner, no signal
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # isatty, size, FIONREAD/NBIO/CLEX
_SEND_FLAGS = (0, 0x40, 0x4000, 0x4040)  # MSG_DONTWAIT, MSG_NOSIGNAL
_PRCTLS = (15, 16, 0x53564D41)  # the name of a thread, the name of a mapping
# A program that dies by SIGKILL was killed from outside, and one that stops would only waste time.
_SIGNALS_DENIED = (
    signal.SIGKILL, signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU
)  # fmt: skip

_CLONE_THREAD = 0x00010000
_AF_UNIX, _SOCK_STREAM = 1, 1
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000

_LOAD, _JEQ, _JGE, _JSET, _AND, _RET = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_DENY = 0x00050000 | errno.EPERM
_ABSENT = 0x00050000 | errno.ENOSYS
_NR, _ARCH, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data

ANY_PID = 0x7FED5EC0  # stands for a pid that is not known yet; no pid is as large

Instructions = list[tuple[int, int, int, int]]


def _numbers(table: Mapping[str, tuple[int, int | None]]) -> list[int]:
    column = linux.SUPPORTED_MACHINES.index(linux.MACHINE)
    return sorted(n for row in table.values() if (n := row[column]) is not None)


def _number(name: str) -> int | None:
    row = _ALLOWED.get(name) or _ZYGOTE_ONLY[name]
    return row[linux.SUPPORTED_MACHINES.index(linux.MACHINE)]


def _prologue() -> Instructions:
    code = [
        (_LOAD, 0, 0, _ARCH),
        (_JEQ, 1, 0, _AUDIT_ARCH[linux.MACHINE]),
        (_RET, 0, 0, _KILL),  # a 32-bit call has other numbers
        (_LOAD, 0, 0, _NR),
    ]
    if linux.MACHINE == "x86_64":
        code += [(_JGE, 0, 1, _X32), (_RET, 0, 0, _DENY)]
    return code


def _returns(numbers: list[int], action: int) -> Instructions:
    return [step for n in numbers for step in ((_JEQ, 0, 1, n), (_RET, 0, 0, action))]


def zygote_filter() -> linux.SeccompFilter:
    allowed = sorted(_numbers(_ALLOWED) + _numbers(_ZYGOTE_ONLY))
    code = _prologue() + _returns(_numbers(_UNKNOWN), _ABSENT) + _returns(allowed, _ALLOW)
    return linux.SeccompFilter(code + [(_RET, 0, 0, _DENY)])


def _low(argument: int) -> tuple[int, int, int, int]:
    return (_LOAD, 0, 0, _ARGUMENTS + 8 * argument)


def _high(argument: int) -> tuple[int, int, int, int]:
    return (_LOAD, 0, 0, _ARGUMENTS + 8 * argument + 4)


def _one_of(argument: int, values: tuple[int, ...], otherwise: int) -> Instructions:
    """Go on if the argument's low word is one of the values, else return `otherwise`."""
    jumps = [(_JEQ, len(values) - i, 0, value) for i, value in enumerate(values)]
    return [_low(argument), *jumps, (_RET, 0, 0, otherwise)]


def _none_of(argument: int, values: tuple[int, ...], otherwise: int) -> Instructions:
    """Return `otherwise` if the argument's low word is one of the values, else go on."""
    last = len(values) - 1
    jumps = [(_JEQ, last - i, 0 if i < last else 1, value) for i, value in enumerate(values)]
    return [_low(argument), *jumps, (_RET, 0, 0, otherwise)]


def _null(argument: int) -> Instructions:
    """Go on if the argument is zero, a pointer to nothing."""
    return [
        _low(argument), (_JEQ, 1, 0, 0), (_RET, 0, 0, _DENY),
        _high(argument), (_JEQ, 1, 0, 0), (_RET, 0, 0, _DENY),
    ]  # fmt: skip


def child_filter(pid: int) -> linux.SeccompFilter:
    """What is left to a program whose process has this pid, in the namespace that it sees."""
    done = [(_RET, 0, 0, _ALLOW)]
    is_thread = [_low(0), (_JSET, 1, 0, _CLONE_THREAD), (_RET, 0, 0, _DENY)]
    to_itself = _one_of(0, (pid,), _DENY)
    own_signal = to_itself + _none_of(1, _SIGNALS_DENIED, _DENY)
    thread_signal = to_itself + _none_of(2, _SIGNALS_DENIED, _DENY)
    # A hard limit of CPU time lets a program die by SIGKILL, which stands for a failure of ours.
    null_limit = _null(2)
    of_itself = _one_of(0, (0, pid), _DENY) + [
        _low(1), (_JEQ, 0, len(null_limit), resource.RLIMIT_CPU), *null_limit
    ]  # fmt: skip
    own_limit = _none_of(0, (resource.RLIMIT_CPU,), _DENY)
    plain_send = _one_of(3, _SEND_FLAGS, _DENY) + _null(4)
    pair = _one_of(0, (_AF_UNIX,), _DENY) + [
        _low(1), (_AND, 0, 0, 0xF), (_JEQ, 1, 0, _SOCK_STREAM), (_RET, 0, 0, _DENY),
    ]  # fmt: skip
    checks = {
        "clone": is_thread,
        "kill": own_signal,
        "tgkill": thread_signal,
        "prlimit64": of_itself,
        "setrlimit": own_limit,
        "fcntl": _one_of(1, _FCNTL_COMMANDS, _DENY),
        "ioctl": _one_of(1, _IOCTLS, _DENY),
        "prctl": _one_of(0, _PRCTLS, _DENY),
        "sendto": plain_send,
        "socketpair": pair,
    }
    code = _prologue() + _returns(_numbers(_ZYGOTE_ONLY), _DENY)
    for name, check in checks.items():
        number = _number(name)
        if number is not None:
            block = check + done
            code += [(_JEQ, 0, len(block), number), *block]
    return linux.SeccompFilter(code + done)
