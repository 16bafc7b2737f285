"""What is read from the models, on the grid: each `[B, T]` entry is about the token in its column.

Log-probs, entropies and values come from the hidden state one column to the left; that shift is
made in `_from_states_before` and nowhere else.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from prm_jax.model.heads import PolicyModel, ScalarModel
from prm_jax.sharding import batch_shards

LOGITS_PER_DEVICE = 1 << 25  # float32 logits that exist at once: 128 MiB on each device


def token_logps(
    model: PolicyModel,
    params: Any,
    tokens: Int[Array, "B T"],
    valid: Bool[Array, "B T"],
    *,
    temperature: float,
    prompt_tokens: int = 0,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """log pi(token | tokens before it) at a temperature, and the entropy of that choice in nats.

    pi = softmax(logits / temperature). Both are 0 where the token or the one before it is padding,
    and in the first `prompt_tokens` columns, whose logits are then not computed. Differentiable.
    """
    if temperature <= 0:
        raise ValueError(f"temperature = {temperature} is not allowed: it must be greater than 0")

    apply: Any = functools.partial(model.apply, {"params": params})

    def logps(hidden: Array, targets: Array) -> tuple[Array, Array]:
        logits = apply(hidden, method="logits")
        if temperature != 1.0:
            logits = logits / temperature
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        top = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
        weights = jnp.exp(logits - top)
        total = weights.sum(axis=-1)
        log_total = jnp.log(total) + top[..., 0]
        mean = (weights * logits).sum(axis=-1) / total
        return chosen - log_total, log_total - mean

    def read(first: int) -> tuple[Array, Array]:
        hidden, _ = apply(tokens, valid, first=first, method="hidden")
        hidden, targets = hidden[:, :-1], tokens[:, first + 1 :]
        return _in_chunks(logps, hidden, targets, model.vocab_size)

    return _from_states_before(read, valid, prompt_tokens)


def state_values(
    model: ScalarModel,
    params: Any,
    tokens: Int[Array, "B T"],
    valid: Bool[Array, "B T"],
    *,
    prompt_tokens: int = 0,
) -> Float[Array, "B T"]:
    """V(the tokens before this one), 0 where `token_logps` is 0."""

    apply: Any = functools.partial(model.apply, {"params": params}, tokens, valid)
    return _from_states_before(lambda first: apply(first)[:, :-1], valid, prompt_tokens)


def prefix_scores(
    model: ScalarModel,
    params: Any,
    tokens: Int[Array, "B T"],
    valid: Bool[Array, "B T"],
    *,
    prompt_tokens: int = 0,
) -> Float[Array, "B T"]:
    """R(the tokens up to and including this one), 0 on padding and in the first columns."""
    scalars: Any = model.apply({"params": params}, tokens, valid, prompt_tokens)
    scalars = jnp.pad(scalars, ((0, 0), (prompt_tokens, 0)))
    return jnp.where(valid, scalars, 0.0)


def _from_states_before(read: Callable[[int], Any], valid: Array, prompt_tokens: int) -> Any:
    """Lays out what was read from state t-1 in column t, 0 where there is no such state.

    `read(first)` gives `[B, T - first - 1]`: from the states of columns first ... T-2.
    """
    first = max(prompt_tokens, 1) - 1
    mask = valid & jnp.pad(valid, ((0, 0), (1, 0)))[:, :-1]
    return jax.tree.map(
        lambda x: jnp.where(mask, jnp.pad(x, ((0, 0), (first + 1, 0))), 0.0), read(first)
    )


def _in_chunks(
    function: Callable[[Array, Array], Any],
    hidden: Float[Array, "B T D"],
    targets: Int[Array, "B T"],
    vocab_size: int,
) -> Any:
    """`function(hidden, targets)`, in pieces of T that keep the logits below LOGITS_PER_DEVICE.

    More than one piece: each is recomputed in the backward pass, so no `[B, T, V]` ever exists.
    """
    batch, length, embed = hidden.shape
    mesh = jax.sharding.get_abstract_mesh()
    devices = batch_shards(mesh) * (1 if mesh.empty else mesh.shape["tensor"])
    chunk = max(1, LOGITS_PER_DEVICE * devices // (batch * vocab_size))
    if chunk >= length:
        return function(hidden, targets)
    n = -(-length // chunk)
    chunk = -(-length // n)  # equal pieces pad the least
    padding = n * chunk - length
    hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0)))
    targets = jnp.pad(targets, ((0, 0), (0, padding)))
    hidden = hidden.reshape(batch, n, chunk, embed).swapaxes(0, 1)
    targets = targets.reshape(batch, n, chunk).swapaxes(0, 1)
    out = jax.lax.map(lambda piece: jax.checkpoint(function)(*piece), (hidden, targets))
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(batch, n * chunk)[:, :length], out)
