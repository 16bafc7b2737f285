"""Programs whose verdicts are known: a zygote is used only while it gets all of them right."""

from typing import Any

_LIMITS = {"cpu_s": 5.0, "memory_bytes": 256 << 20, "output_bytes": 1 << 16}
_ASSERTS = ["assert f(0) == 0", "assert f(3) == 9", "assert f(-4) == 16"]

_RIGHT = "def f(x):\n    return x * x\n"
_WRONG = "def f(x):\n    return x + x\n"
_FORGED = """
class Anything:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
def f(x): return Anything()
"""
_PROBE = """
import os, socket
def holes():
    found = []
    for path in ("/etc/passwd", "/etc/hostname", "/proc/1/environ"):
        try:
            open(path, "rb").read()
            found.append(path)
        except OSError: pass
    try:
        if os.fork() == 0: os._exit(0)
        found.append("fork")
    except OSError: pass
    try:
        socket.socket()
        found.append("socket")
    except OSError: pass
    return found
"""


def self_tests(layers: frozenset[str]) -> list[tuple[dict[str, Any], str]]:
    """(request, the status that it must get), for a zygote with these layers."""
    tests = [
        (_request(_RIGHT, _ASSERTS), "passed"),
        (_request(_WRONG, _ASSERTS), "failed"),
        (_request(_FORGED, _ASSERTS), "failed"),
    ]
    if {"landlock", "seccomp"} <= layers:
        tests.append((_request(_PROBE, ["assert holes() == []"]), "passed"))
    return tests


def _request(program: str, statements: list[str]) -> dict[str, Any]:
    tests = {"kind": "calls", "asserts": statements, "setup": "", "float_tolerance": 0.0}
    return {"program": program, "tests": tests, "limits": _LIMITS}
