"""Which rows of a batch this process holds and answers for, and arrays made of such rows.

A batch lies over the devices by its rows. With a `tensor` axis that spans processes, several of
them hold the same rows; then the first of these answers for them.
"""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from prm_jax.hosts.together import count, gather, index


def place(tree: Any, sharding: NamedSharding) -> Any:
    """Arrays that every process has whole, on the devices: each process brings its part."""
    if count() == 1:
        return jax.device_put(tree, sharding)

    def placed(x: Any) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda part: x[part])

    return jax.tree.map(placed, tree)


def held(array: Any) -> np.ndarray:
    """The rows of a batch on the devices that this process holds, in order."""
    if isinstance(array, np.ndarray) or count() == 1:
        return np.asarray(array)
    parts = {_start(shard.index[0]): shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])


def owned(sharding: NamedSharding, n: int) -> tuple[np.ndarray, np.ndarray]:
    """`(rows, mine)`: the numbers of the rows `held` of a batch of n, and for which to answer.

    Every row is some process's own, and no other's.
    """
    if count() == 1:
        return np.arange(n), np.ones(n, bool)
    owner = np.full(n, count())
    holds = np.zeros(n, bool)
    for device, (part,) in sharding.devices_indices_map((n,)).items():
        owner[part] = np.minimum(owner[part], device.process_index)
        holds[part] |= device.process_index == index()
    rows = np.flatnonzero(holds)
    return rows, owner[rows] == index()


def gather_rows(rows: np.ndarray, values: np.ndarray, n: int) -> np.ndarray:
    """An array of n rows, known to all, from each process's own rows and their values."""
    if count() == 1:
        return values
    found = np.zeros((n, *values.shape[1:]), values.dtype)
    for some, theirs in gather((rows, values)):
        found[some] = theirs
    return found


def place_rows(values: np.ndarray, n: int, sharding: NamedSharding) -> jax.Array:
    """The batch of n rows of which each process has those that it holds."""
    if count() == 1:
        return jax.device_put(values, sharding)
    return jax.make_array_from_process_local_data(sharding, values, (n, *values.shape[1:]))


def whole(array: Any) -> np.ndarray:
    """An array on the devices, known to all processes whole."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def _start(part: slice) -> int:
    return part.start or 0
