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

from prm_jax.model.attention import MASKED
from prm_jax.model.heads import PolicyModel, ScalarModel
from prm_jax.sharding import batch_shards, constrain, constrain_as_parameter

LOGITS_PER_DEVICE = 1 << 25  # float32 logits that exist at once: 128 MiB on each device
LANES = 128  # of a TPU's vector: pieces of the vocabulary are whole ones


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

    def read(first: int) -> tuple[Array, Array]:
        hidden, _ = apply(tokens, valid, first=first, method="hidden")
        # The last state says nothing of a token; an odd number of states would cost a TPU more.
        targets = jnp.pad(tokens[:, first + 1 :], ((0, 0), (0, 1)))
        logp, entropy = _logps(model, apply, hidden, targets, temperature)
        return logp[:, :-1], entropy[:, :-1]

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


def _logps(
    model: PolicyModel,
    apply: Any,
    hidden: Float[Array, "B S D"],
    targets: Int[Array, "B S"],
    temperature: float,
) -> tuple[Float[Array, "B S"], Float[Array, "B S"]]:
    """Log-probs of the targets and entropies, from no more than LOGITS_PER_DEVICE logits at once.

    Where all would be more, the vocabulary is read in pieces, and softmax sums are carried from
    piece to piece (arXiv 1805.02867). Each piece of the head is gathered by itself and computed
    again in the backward pass: neither logits nor the head's gradient ever exist as a whole.
    """
    shards, devices = _tensor_and_all_devices()
    rows = hidden.shape[0] * hidden.shape[1]
    columns = max(1, LOGITS_PER_DEVICE * devices // rows)  # of the vocabulary, at once
    if columns >= model.vocab_size:
        logits = apply(hidden, method="logits") / temperature
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        top = jax.lax.stop_gradient(logits.max(axis=-1))
        weights = jnp.exp(logits - top[..., None])
        return _from_sums(chosen, top, weights.sum(axis=-1), (weights * logits).sum(axis=-1))

    def add(sums: Any, piece: tuple[Array, Array]) -> tuple[Any, None]:
        chosen, top, total, weighted = sums
        kernel, ids = piece
        logits = _product(wide, kernel)
        logits = constrain(logits, "batch", "time", "vocab", None) / temperature
        logits = jnp.where((ids < model.vocab_size) & (ids != model.pad_id), logits, MASKED)
        new_top = jnp.maximum(top, jax.lax.stop_gradient(logits.max(axis=(-2, -1))))
        weights = jnp.exp(logits - new_top[..., None, None])
        shrunk = jnp.exp(top - new_top)
        total = total * shrunk + weights.sum(axis=(-2, -1))
        weighted = weighted * shrunk + (weights * logits).sum(axis=(-2, -1))
        here = ids == targets[..., None, None]
        return (
            chosen + jnp.where(here, logits, 0.0).sum(axis=(-2, -1)),
            new_top,
            total,
            weighted,
        ), None

    # float32, so that the gradient of the hidden states is summed over the pieces in float32.
    wide = hidden.astype(jnp.float32)
    kernel = apply(method="head_kernel").astype(hidden.dtype)
    zeros = jnp.zeros(targets.shape, jnp.float32)
    sums, _ = jax.lax.scan(
        jax.checkpoint(add, prevent_cse=False),
        (zeros, zeros + MASKED, zeros, zeros),
        _vocabulary_pieces(kernel, max(1, columns // shards), shards),
    )
    return _from_sums(*sums)


@jax.custom_vjp
def _product(
    hidden: Float[Array, "B S D"], kernel: Float[Array, "D k w"]
) -> Float[Array, "B S k w"]:
    """float32 logits of float32 states; all products are of numbers in the kernel's precision.

    So are those of the gradient, which JAX would take in float32: twice the bytes for a TPU, whose
    products are of bfloat16 either way.
    """
    return _product_forward(hidden, kernel)[0]


def _product_forward(hidden: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    low = hidden.astype(kernel.dtype)
    logits = jnp.einsum("bsd,dkw->bskw", low, kernel, preferred_element_type=jnp.float32)
    return logits, (low, kernel)


def _product_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    low, kernel = saved
    # Made once: else XLA:TPU computes it again within both products, for each of their tiles.
    gradient = jax.lax.optimization_barrier(gradient.astype(kernel.dtype))
    of_hidden = jnp.einsum("bskw,dkw->bsd", gradient, kernel, preferred_element_type=jnp.float32)
    return of_hidden, jnp.einsum("bsd,bskw->dkw", low, gradient)


_product.defvjp(_product_forward, _product_backward)


def _from_sums(chosen, top, total, weighted) -> tuple[Array, Array]:
    """Log-prob and entropy from a chosen logit, the largest, and sums of e^(logit - largest)."""
    log_total = jnp.log(total) + top
    return chosen - log_total, log_total - weighted / total


def _vocabulary_pieces(
    kernel: Float[Array, "D V"], width: int, shards: int
) -> tuple[Float[Array, "n D shards w"], Int[Array, "n shards w"]]:
    """The head in pieces of at most `width` columns of each shard of V, and their token ids.

    Columns that fill up the last piece are zeros, with ids of V and more.
    """
    embed, vocab = kernel.shape
    whole = LANES if width > LANES else 1
    n = -(-vocab // (shards * (width - width % whole)))
    width = -(-vocab // (shards * n))  # equal pieces fill up the least
    width += -width % whole
    filled = ((0, 0), (0, 0), (0, n * width - vocab // shards))
    kernel = jnp.pad(kernel.reshape(embed, shards, vocab // shards), filled)
    ids = jnp.arange(vocab, dtype=jnp.int32).reshape(1, shards, vocab // shards)
    ids = jnp.pad(ids, filled, constant_values=vocab).reshape(shards, n, width)
    pieces = kernel.reshape(embed, shards, n, width).transpose(2, 0, 1, 3)
    return constrain_as_parameter(pieces, None, "embed", "vocab", None), ids.swapaxes(0, 1)


def _tensor_and_all_devices() -> tuple[int, int]:
    mesh = jax.sharding.get_abstract_mesh()
    shards = 1 if mesh.empty else mesh.shape["tensor"]
    return shards, shards * batch_shards(mesh)
