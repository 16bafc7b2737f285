"""Landlock: this process and its children may read a list of paths and nothing else.

It works for any user, inside and outside namespaces, from Linux 5.13 where the security module is
switched on. Newer kernels add more: the network, abstract sockets, signals.
"""

import ctypes
import os
import struct

from prm_jax.sandbox.core import linux

WRITE_FILE = 1 << 1
READ_FILE = 1 << 2
READ_DIR = 1 << 3

_ABI_OF_RIGHT = ((13, 1), (14, 2), (15, 3), (16, 5))  # rights below 1 << n exist from that version
_NETWORK_BIND_AND_CONNECT = 3
_SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS = 3
_RULE_PATH_BENEATH = 1


def abi() -> int:
    """Version of the kernel's Landlock; raises OSError where there is none."""
    return linux.syscall("landlock_create_ruleset", None, 0, 1)


def restrict(readable: list[str], listable: list[str], devices: list[str]) -> None:
    """Deny this process all files but these, for ever.

    Folders of `readable` may be read with all that lies beneath, `listable` ones only be listed,
    `devices` may be read and written. Needs no_new_privs. Raises OSError.
    """
    version = abi()
    bits = max(n for n, since in _ABI_OF_RIGHT if version >= since)
    network = _NETWORK_BIND_AND_CONNECT if version >= 4 else 0
    scoped = _SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS if version >= 6 else 0
    size = 8 if version < 4 else 16 if version < 6 else 24
    packed = struct.pack("=QQQ", (1 << bits) - 1, network, scoped)[:size]
    attr = ctypes.create_string_buffer(packed, size)
    ruleset = linux.syscall("landlock_create_ruleset", attr, size, 0)
    try:
        for path in readable:
            _allow(ruleset, path, READ_FILE | READ_DIR if os.path.isdir(path) else READ_FILE)
        for path in listable:
            _allow(ruleset, path, READ_DIR)
        for path in devices:
            _allow(ruleset, path, READ_FILE | WRITE_FILE)
        linux.syscall("landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        return  # what cannot be opened needs no rule
    try:
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, fd), 12)
        linux.syscall("landlock_add_rule", ruleset, _RULE_PATH_BENEATH, rule, 0)
    finally:
        os.close(fd)
