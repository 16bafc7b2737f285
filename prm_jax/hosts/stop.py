"""A run that is asked to stop (SIGTERM: a spot slice is taken away, say) stops at a checkpoint.

All processes stop at the same place of the program, though only one of them may have been told.
"""

import contextlib
import functools
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from prm_jax.hosts.together import count

_told = threading.Event()  # this process was
_asked: list[jax.Array] = []  # how many processes had been told at the last place


class Stopped(Exception):
    """The run was asked to stop, and the same command goes on from here."""


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Within it, SIGTERM is a request that `stop_asked` answers; only in the main thread."""

    def tell(signal_number: int, frame: FrameType | None) -> None:
        _told.set()

    _told.clear()
    _asked.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, tell)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def stop_asked() -> bool:
    """Whether to stop here; all processes ask at the same places, and get the same answer.

    Of several processes, each learns at one place what had been told to any of them at the place
    before: the devices add it up meanwhile, and no host waits.
    """
    if count() == 1:
        return _told.is_set()
    rows, add = _sum_over_hosts()
    mine = np.full((1,), _told.is_set(), np.int32)
    now = add(jax.make_array_from_process_local_data(rows, mine, (count(),)))
    before = _asked.pop() if _asked else None
    _asked.append(now)
    return before is not None and int(before) > 0


@functools.cache
def _sum_over_hosts() -> tuple[NamedSharding, Callable[[jax.Array], jax.Array]]:
    """How a number of each process lies on the devices, and their sum, known to all."""
    devices = np.array(jax.devices()).reshape(count(), -1)
    mesh = Mesh(devices, ("hosts", "devices"))
    add = jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def under_mesh(x: jax.Array) -> jax.Array:
        with jax.set_mesh(mesh):
            return add(x)

    return NamedSharding(mesh, PartitionSpec("hosts")), under_mesh


def check_stop() -> None:
    """Raises Stopped at a place where nothing need be saved."""
    if stop_asked():
        raise Stopped
