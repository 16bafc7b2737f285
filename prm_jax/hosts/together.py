"""How the processes of a run find each other, and how a value of one becomes known to all."""

import glob
import os
import pickle
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from prm_jax.config import ConfigError

T = TypeVar("T")

SETTINGS = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"
_LOOK_UP_S = 5.0
_HEARTBEAT_S = 100  # JAX's own; `watch` is quicker, and says more


def join() -> None:
    """Joins the other processes of this run, where there are any; before JAX starts.

    On a Cloud TPU slice of several hosts they find each other. Elsewhere each process needs the
    environment variables of SETTINGS. Raises ConfigError for settings that are incomplete.
    """
    given = {name: os.environ.get(name, "") for name in SETTINGS}
    if any(given.values()):
        address, n, number = given.values()
        if not all(given.values()):
            missing = next(name for name, value in given.items() if not value)
            raise ConfigError(
                f"{missing} is not set, though others are: several processes need all of "
                f"{', '.join(SETTINGS)}, and one needs none"
            )
        if not (n.isdecimal() and number.isdecimal() and int(number) < int(n)):
            raise ConfigError(
                f"JAX_PROCESS_ID = {number!r} and JAX_NUM_PROCESSES = {n!r} are not allowed: "
                "processes are numbered from 0"
            )
        if _platforms() == "cpu":
            # Programs that run at once would mix up their collectives.
            jax.config.update("jax_cpu_enable_async_dispatch", False)
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
        _initialize(coordinator_address=address, num_processes=int(n), process_id=int(number))
    elif _on_many_tpu_hosts():
        _initialize()


def _platforms() -> str:
    return jax.config.jax_platforms or ""  # type: ignore[attr-defined]


def _initialize(**given: Any) -> None:
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=_HEARTBEAT_S, **given)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"the other hosts cannot be reached: {error}; the same command must be started on all "
            "of them within five minutes"
        ) from error


def _on_many_tpu_hosts() -> bool:
    """Whether this machine is one of several of a Cloud TPU slice, or of several slices."""
    names = os.environ.get("TPU_WORKER_HOSTNAMES", "")  # on GKE
    slices = os.environ.get("MEGASCALE_NUM_SLICES", "")
    if "," in names or slices not in ("", "0", "1"):
        return True
    if "tpu" not in (_platforms() or "tpu") or not glob.glob("/dev/accel*") + glob.glob(
        "/dev/vfio/[0-9]*"
    ):
        return False
    request = urllib.request.Request(
        _METADATA + "worker-network-endpoints", headers={"Metadata-Flavor": "Google"}
    )
    try:
        with urllib.request.urlopen(request, timeout=_LOOK_UP_S) as answer:
            return b"," in answer.read()
    except (urllib.error.URLError, TimeoutError):
        return False


def index() -> int:
    """The number of this process; 0 is the one that writes."""
    return jax.process_index() if jax.distributed.is_initialized() else 0


def count() -> int:
    """How many processes take part."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def first(value: Callable[[], T]) -> T:
    """`value()` as process 0 has it, known to all; the others do not call it."""
    if count() == 1:
        return value()
    found = value() if index() == 0 else None
    text = pickle.dumps(found) if index() == 0 else b""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    return pickle.loads(multihost_utils.broadcast_one_to_all(_padded(text, size)).tobytes())


def in_turn(value: Callable[[], T]) -> T:
    """`value()` of this process; that of process 0 comes before those of the others."""
    found = [value()] if index() == 0 else []
    first(lambda: None)
    return found[0] if found else value()


def gather(value: T) -> list[T]:
    """The values of all processes, in their order, known to all."""
    if count() == 1:
        return [value]
    text = pickle.dumps(value)
    sizes = multihost_utils.process_allgather(np.int32(len(text)))
    texts = multihost_utils.process_allgather(_padded(text, int(sizes.max())))
    return [pickle.loads(row.tobytes()) for row in texts]


def _padded(text: bytes, size: int) -> np.ndarray:
    """The bytes in an array of a power of two, so that there are few shapes to compile for."""
    padded = np.zeros(1 << max(10, (size - 1).bit_length()), np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    return padded
