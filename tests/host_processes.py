"""Several processes on this machine in the place of several hosts, over the loopback."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
MICRO = ROOT / "tests/micro.py"
# Compiled in a third of the time; what is computed is the same on any number of processes.
FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
LOST_S = 6
TRAIN = f"""
import sys
from prm_jax import train
from prm_jax.hosts import watch
watch.LOST_S = {LOST_S}
sys.exit(train.main())
"""


class Hosts:
    """`n` processes of `devices` CPU devices each that run the same code; a context manager."""

    def __init__(self, n: int, devices: int, code: str, arguments: Sequence[str], logs: Path):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        logs.mkdir(parents=True, exist_ok=True)
        self._logs = [logs / f"host-{number}.log" for number in range(n)]
        self.processes: list[subprocess.Popen] = []
        for number, log in enumerate(self._logs):
            environment = os.environ | {
                "JAX_PLATFORMS": "cpu",
                "JAX_NUM_CPU_DEVICES": str(devices),
                "JAX_COMPILATION_CACHE_DIR": str(logs.parent / "compiled"),
                "XLA_FLAGS": FLAGS,
            }
            if n > 1:
                environment |= {
                    "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                    "JAX_NUM_PROCESSES": str(n),
                    "JAX_PROCESS_ID": str(number),
                }
            with log.open("w") as stderr:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, "-c", code, *arguments],
                        cwd=ROOT,
                        env=environment,
                        stderr=stderr,
                        start_new_session=True,
                    )  # fmt: skip
                )

    def __enter__(self) -> "Hosts":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()

    def log(self, number: int) -> str:
        return self._logs[number].read_text()

    def wait_for(self, path: Path, timeout_s: float = 200) -> None:
        """Returns when the run has left something there."""
        until_s = time.monotonic() + timeout_s
        while not path.exists():
            assert all(process.poll() is None for process in self.processes), self._said()
            assert time.monotonic() < until_s, self._said()
            time.sleep(0.02)

    def statuses(self, timeout_s: float = 300) -> list[int]:
        """How each process ends."""
        until_s = time.monotonic() + timeout_s
        for process in self.processes:
            process.wait(max(0.0, until_s - time.monotonic()))
        return [process.returncode for process in self.processes]

    def succeed(self) -> None:
        assert self.statuses() == [0] * len(self.processes), self._said()

    def _said(self) -> str:
        return "\n".join(f"host {n}:\n{self.log(n)[-3000:]}" for n in range(len(self._logs)))


def training(n: int, devices: int, workdir: Path, *overrides: str) -> Hosts:
    """A run of the micro config in `workdir` on n processes."""
    arguments = ["--config", str(MICRO), "--workdir", str(workdir), *overrides]
    return Hosts(n, devices, TRAIN, arguments, workdir.with_name(f"{workdir.name}-{n}-logs"))
