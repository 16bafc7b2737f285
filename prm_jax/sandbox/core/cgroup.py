"""Memory and process bounds by control group, version 1 or 2: root's third belt, tier T0 only."""

import os

_ROOT = "/sys/fs/cgroup"
_PREFIX = "prm_jax-"
_MAX_PROCESSES = 128


class Group:
    """A control group for one zygote and its children. Raises OSError where it cannot be made."""

    def __init__(self, name: str):
        full = f"{_PREFIX}{os.getpid()}-{name}"
        self._folders: list[str] = []
        self._events = ""
        self._limit = ""
        self._limit_bytes = 0
        if os.path.exists(f"{_ROOT}/cgroup.controllers"):
            _write(f"{_ROOT}/cgroup.subtree_control", "+memory +pids")
            folder = self._make(f"{_ROOT}/{full}")
            self._limit, self._events = f"{folder}/memory.max", f"{folder}/memory.events"
            _write(f"{folder}/pids.max", str(_MAX_PROCESSES))
        else:
            memory, pids = self._make(f"{_ROOT}/memory/{full}"), self._make(f"{_ROOT}/pids/{full}")
            self._limit = f"{memory}/memory.limit_in_bytes"
            self._events = f"{memory}/memory.oom_control"
            _write(f"{pids}/pids.max", str(_MAX_PROCESSES))

    def _make(self, folder: str) -> str:
        os.mkdir(folder)
        self._folders.append(folder)
        return folder

    def add(self, pid: int) -> None:
        for folder in self._folders:
            _write(f"{folder}/cgroup.procs", str(pid))

    def limit(self, size: int) -> None:
        """Bound the memory of the whole group."""
        if size != self._limit_bytes:
            _write(self._limit, str(size))
            self._limit_bytes = size

    def kills(self) -> int:
        """How many processes of the group the kernel has killed for its memory."""
        with open(self._events) as file:
            counts = dict(line.split()[:2] for line in file if len(line.split()) > 1)
        return int(counts.get("oom_kill", 0))

    def remove(self) -> bool:
        """Remove the group; False while processes are left in it."""
        for folder in list(self._folders):
            try:
                os.rmdir(folder)
            except FileNotFoundError:
                pass
            except OSError:
                return False
            self._folders.remove(folder)
        return True


def sweep() -> None:
    """Remove the groups of brokers that are gone."""
    for parent in (_ROOT, f"{_ROOT}/memory", f"{_ROOT}/pids"):
        try:
            names = [n for n in os.listdir(parent) if n.startswith(_PREFIX)]
        except OSError:
            continue
        for name in names:
            if not os.path.exists(f"/proc/{name[len(_PREFIX) :].split('-')[0]}"):
                try:
                    os.rmdir(f"{parent}/{name}")
                except OSError:
                    pass


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
