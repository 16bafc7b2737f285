"""Responses of like length together, and no column that none of them fills.

The grid has room for the longest response that is allowed. Where a step takes a few rows at a time,
rows of like length are taken together, and each part is cut to one of a few widths: all of these
are compiled with the step, and which one runs is decided on the device.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int

from prm_jax.sharding import batch_shards

_SHARES = (4, 5, 6)  # eighths of the room for completions
_WHOLE = 8  # widths are multiples of it


def widths(prompt_tokens: int, columns: int) -> tuple[int, ...]:
    """How many columns of the grid a part may be cut to, rising; the last one keeps all."""
    room = columns - prompt_tokens
    found = {-(-(prompt_tokens + room * share // 8) // _WHOLE) * _WHOLE for share in _SHARES}
    return (*sorted(width for width in found if width < columns), columns)


def cut(
    function: Callable[[Any], Any], batch: Any, filled: Bool[Array, "B T"], widths: Sequence[int]
) -> Any:
    """`function(batch)` on the first columns alone: the fewest of `widths` with all that is filled.

    The arrays of `batch` are `[B, T]`. What the function returns must have the same shape at every
    width, and must not depend on what lies behind the last filled column.
    """

    def at(width: int) -> Callable[[Any], Any]:
        return lambda batch: function(jax.tree.map(lambda x: x[:, :width], batch))

    narrower = jnp.array(widths[:-1], jnp.int32)
    index = (narrower < _ends(filled).max()).sum()
    return jax.lax.switch(index, [at(width) for width in widths], batch)


def by_length(mask: Bool[Array, "B T"], mesh: Mesh, parts: int) -> Int[Array, "B"]:
    """An order of the rows by length, such that `sharding.parted_rows` parts it into like ones."""
    order = jnp.argsort(_ends(mask), stable=True)
    return order.reshape(parts, batch_shards(mesh), -1).swapaxes(0, 1).reshape(-1)


def _ends(mask: Bool[Array, "B T"]) -> Int[Array, "B"]:
    """How many columns each row needs: up to the last one that is filled."""
    return jnp.max(jnp.where(mask, jnp.arange(1, mask.shape[1] + 1), 0), axis=1)
