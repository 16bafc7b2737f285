"""The hostile programs of tests/data, run against one sandbox, with canaries around.

`python tests/sandbox_attacks.py '{"without": [], "ids": null}'` judges them and prints a JSON
report; the tests start it as other users. What may be harmed lies in a folder of canary files, in
a canary process and on two listening sockets, and is looked at after every program has run.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from prm_jax.sandbox import Sandbox
from prm_jax.types import CallTests, CheckTests, Limits, StdioTests, Tests, Verdict

DATA = Path(__file__).parent / "data"
_PORT = 45671  # one of the programs tries it
_TRACES = ["/tmp/persist_mark", "/tmp/s", "/tmp/i0", "/tmp/x", "w_escape", "fill", "/tmp/fill"]
_TRACES += ["/dev/shm/fill", "/var/tmp/fill", os.path.expanduser("~/fill")]


def attacks() -> list[dict[str, Any]]:
    texts = [(DATA / name).read_text() for name in ("attacks.jsonl", "more_attacks.jsonl")]
    rows = [json.loads(line) for text in texts for line in text.splitlines()]
    machine = os.uname().machine  # system call numbers are those of one
    return [row for row in rows if row.get("machine", machine) == machine]


def work(attack: dict[str, Any], canary: str, repetition: int) -> tuple[str, Tests, Limits]:
    """The attack as work for the sandbox; equal work would be done only once."""
    program = attack["program"].replace("@CANARY@", canary).replace("@HOME@", str(Path.home()))
    program += f"\n# {repetition}"
    if attack["mode"] == "stdio":
        tests = StdioTests(tuple((stdin, stdout) for stdin, stdout in attack["cases"]))
    elif attack["mode"] == "check":
        tests = CheckTests(attack["test"], attack["entry"])
    else:
        tests = CallTests(tuple(attack["tests"]))
    return program, tests, Limits(cpu_s=0.5)


def as_expected(attack: dict[str, Any], verdict: Verdict) -> bool:
    """Whether the verdict is one of those that the attack's line allows."""
    match attack["expected_verdict"]:
        case "pass":
            return verdict.passed
        case "fail":
            return not verdict.passed
        case "contained":  # the probe said "blocked", or was ended for what it tried
            return verdict.passed or verdict.status in ("forbidden", "timeout", "memory")
        case _:
            return True


class Canaries:
    """Files, a process and sockets that no program may reach."""

    def __init__(self, folder: str):
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(600)"],
            stdout=subprocess.DEVNULL,  # or whoever reads ours would wait for it
            stderr=subprocess.DEVNULL,
        )
        files = {"tests.json": "the hidden tests", "victim": "alive", "pid": str(self.process.pid)}
        for name, text in files.items():
            Path(folder, name).write_text(text)
        self._unix = socket.socket(socket.AF_UNIX)
        self._unix.bind(f"{folder}/sock")
        self._unix.listen()
        self._tcp = socket.socket()
        self._tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._tcp.bind(("127.0.0.1", _PORT))
        self._tcp.listen()
        self._before = self._state()

    def harm(self) -> list[str]:
        """What is no longer as it was."""
        found = [p for p in _TRACES if os.path.exists(p)]
        if self._state() != self._before:
            found.append("canary files")
        if self.process.poll() is not None:
            found.append("canary process")
        for listener in (self._unix, self._tcp):
            listener.setblocking(False)
            try:
                listener.accept()
                found.append(f"connection to {listener.getsockname()}")
            except BlockingIOError:
                pass
        return found

    def close(self) -> None:
        self._unix.close()
        self._tcp.close()
        self.process.kill()
        self.process.wait()

    def _state(self) -> list[tuple[str, int, int, float]]:
        entries = sorted(os.scandir(self.folder), key=lambda e: e.name)
        stats = [(e.name, e.stat(follow_symlinks=False)) for e in entries]
        return [(name, s.st_mode, s.st_size, s.st_mtime) for name, s in stats]


def descendants(pid: int) -> list[int]:
    """Processes below this one."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = list(parents.get(pid, []))
    for child in found:
        found += parents.get(child, [])
    return found


def gone(pids: list[int], within_s: float = 5.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not any(os.path.exists(f"/proc/{pid}") for pid in pids):
            return True
        time.sleep(0.02)
    return False


def run(without: list[str], ids: list[str] | None) -> dict[str, Any]:
    """Judge the attacks and report what went wrong."""
    chosen = [a for a in attacks() if ids is None or a["id"] in ids]
    os.environ["PRM_SECRET"] = "a secret of the trainer"
    report: dict[str, Any] = {"uid": os.geteuid(), "wrong": {}, "statuses": {}}
    with tempfile.TemporaryDirectory(prefix="canary-") as folder:
        os.chmod(folder, 0o755)
        canaries = Canaries(folder)
        try:
            with Sandbox(min_tier="T4", without=without) as sandbox:
                report["tier"] = sandbox.tier
                futures = [
                    (attack, sandbox.submit(*work(attack, folder, i)))
                    for attack in chosen
                    for i in range(attack.get("repeat", 1))
                ]
                for attack, future in futures:
                    verdict = future.result()
                    report["statuses"][attack["id"]] = verdict.status
                    if not as_expected(attack, verdict):
                        report["wrong"][attack["id"]] = f"{verdict}"
                pids = descendants(os.getpid())
                pids.remove(canaries.process.pid)
            report["harm"] = canaries.harm()
            report["gone"] = gone(pids)
        finally:
            canaries.close()
    return report


if __name__ == "__main__":
    signal.alarm(300)
    print(json.dumps(run(**json.loads(sys.argv[1]))))
