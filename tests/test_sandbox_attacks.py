"""Hostile programs on every tier that this machine shows, as this user and as an ordinary one."""

import fcntl
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sandbox_attacks import attacks

from prm_jax.sandbox.core.pool import base_interpreter

NOBODY = 65534
SCRIPT = Path(__file__).parent / "sandbox_attacks.py"
IS_ROOT = os.geteuid() == 0
ESCAPES = [a["id"] for a in attacks() if a["category"] == "escape"]
# The rest is the same on every tier: the protocol and the limits.
ISOLATION = ESCAPES + ["ctl_correct", "ctl_wrong", "ctl_thread", "res_daemon", "res_disk"]

_WITHIN_REACH = """
import os, sys
from prm_jax.sandbox.core import linux
hidden, needed, command, user = {hidden!r}, {needed!r}, {command!r}, {user!r}
linux.unshare(linux.CLONE_NEWNS)
linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
for folder in hidden:
    inside = [(path, os.open(path, os.O_PATH)) for path in needed if path.startswith(folder + "/")]
    linux.mount("none", folder, "tmpfs", 0, "mode=755")
    for path, fd in inside:
        os.makedirs(path, exist_ok=True)
        linux.mount(f"/proc/self/fd/{{fd}}", path, None, linux.MS_BIND | linux.MS_REC)
        os.close(fd)
os.setgroups([])
os.setresgid(user, user, user)
os.setresuid(user, user, user)
os.chdir("/")
os.execve(command[0], command, os.environ)
"""


def closed_folders(path: str) -> list[str]:
    """Folders above a path that other users may not enter, the outermost first."""
    parents = reversed(Path(os.path.realpath(path)).parents)
    return [str(p) for p in parents if not p.stat().st_mode & stat.S_IXOTH][:1]


def command_within_reach(arguments: list[str], user: int) -> list[str]:
    """A command that runs Python as this user, where ordinary users can reach this Python.

    Where it is in a closed folder (as in root's home), the folder is covered, for that process
    alone, by one that holds what is needed of it.
    """
    paths = [p for p in sys.path if p and os.path.exists(p)]
    needed = sorted({sys.base_prefix, sys.prefix, str(SCRIPT.parents[1]), *paths})
    needed = [p for p in needed if not any(p.startswith(q + "/") for q in needed)]
    needed = [os.path.realpath(p) for p in needed]
    hidden = sorted({folder for path in needed for folder in closed_folders(path)})
    command = [base_interpreter(), *arguments]
    code = _WITHIN_REACH.format(hidden=hidden, needed=needed, command=command, user=user)
    return [sys.executable, "-c", code]


def judge(user: str, without: tuple[str, ...], ids: list[str] | None = None) -> dict[str, Any]:
    arguments = [str(SCRIPT), json.dumps({"without": without, "ids": ids})]
    command = [sys.executable, *arguments]
    if user != "this user":
        command = command_within_reach(arguments, {"nobody": NOBODY, "root": 0}[user])
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    with open(SCRIPT) as turn:  # one at a time: they share a port and look at the same folders
        fcntl.flock(turn, fcntl.LOCK_EX)
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        Path("/tmp/persist_mark").unlink(missing_ok=True)  # left by one, without its layers
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


USERS = ["this user"] + ["nobody"] * IS_ROOT


@pytest.mark.parametrize("user", USERS)
def test_every_attack_ends_as_it_must(user):
    report = judge(user, ())
    assert report["uid"] == (NOBODY if user == "nobody" else os.geteuid())
    assert report["wrong"] == {}
    assert report["harm"] == []
    assert report["gone"]
    assert set(report["statuses"]) == {a["id"] for a in attacks()}
    for attack in attacks():
        if attack.get("expected_status") == ["timeout"]:
            assert report["statuses"][attack["id"]] == "timeout", attack["id"]


LOWER = [("this user", ("namespaces",), {"T2", "T3"} if IS_ROOT else {"T3"})]
if IS_ROOT:
    LOWER += [
        ("this user", ("cgroup",), {"T1"}),
        ("this user", ("namespaces", "second_uid"), {"T3"}),
        ("nobody", ("namespaces",), {"T3"}),
        ("root", ("namespaces",), {"T2"}),
    ]


@pytest.mark.parametrize("user, without, tiers", LOWER)
def test_lower_tiers_hold_too(user, without, tiers):
    report = judge(user, without, ISOLATION)
    assert report["tier"] in tiers
    assert report["wrong"] == {}
    assert report["harm"] == []
    assert report["gone"]


# What gets through when a layer is left off: the attacks are seen to bite.
BITES = {
    ("seccomp",): {
        "esc_ptrace_traceme", "esc_memfd_exec", "esc_personality", "esc_userfaultfd", "esc_keyctl",
        "esc_netlink", "esc_sysv",
    },
    ("landlock", "namespaces", "second_uid"): {
        "esc_read_tests", "esc_write_tmp", "esc_persist_tmp", "esc_dev",
    },
    ("seccomp", "landlock", "namespaces", "second_uid"): {
        "esc_read_tests", "esc_write_tmp", "esc_net_loop", "esc_unix_path", "esc_exec",
        "esc_system", "esc_memfd_exec",
    },
}  # fmt: skip


@pytest.mark.parametrize("without", BITES)
def test_without_a_layer_named_attacks_succeed(without):
    # those that kill would end the test, and two leave files all over the host
    ids = [i for i in ESCAPES if not i.startswith("esc_kill")]
    ids = [i for i in ids if i not in ("esc_tmpfs", "esc_files")]
    report = judge(USERS[-1], without, ids)
    assert report["tier"] == "T4"
    assert BITES[without] <= set(report["wrong"])
