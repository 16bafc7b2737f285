"""Rotation and grouped-query attention as pure functions, with and without a cache.

Heads come before time everywhere, `[B, heads, T, head_dim]`, so that the keys of one head lie
together. Masked scores are a large finite number and not -inf: a row that may see nothing, which is
padding, then averages over everything instead of becoming NaN.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from prm_jax.model.flash import on_tpu

MASKED = -1e30


def rotate(
    x: Float[Array, "B heads T head_dim"],
    cos: Float[Array, "B 1 T half"],
    sin: Float[Array, "B 1 T half"],
) -> Float[Array, "B heads T head_dim"]:
    """Turns the pairs (x_i, x_{i + head_dim / 2}), the pairing of Llama's and Qwen's weights."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def causal_attention(
    query: Float[Array, "B heads S head_dim"],
    key: Float[Array, "B kv_heads T head_dim"],
    value: Float[Array, "B kv_heads T head_dim"],
    valid: Bool[Array, "B T"],
) -> Float[Array, "B heads S head_dim"]:
    """softmax(q k / sqrt(head_dim)) v over the valid tokens at or before the query's.

    The queries are those of the last S of the T tokens; each key head serves heads / kv_heads
    query heads (arXiv 2305.13245). Scores and softmax are float32.
    """
    batch, heads, s, head_dim = query.shape
    kv_heads, t = key.shape[1:3]
    grouped = query.reshape(batch, kv_heads, heads // kv_heads, s, head_dim)
    scores = jnp.einsum(
        "bkgsh,bkth->bkgst", grouped * head_dim**-0.5, key, preferred_element_type=jnp.float32
    )
    causal = jnp.arange(t) <= jnp.arange(t - s, t)[:, None]
    mask = causal & valid[:, None, None, None, :]
    weights = jax.nn.softmax(jnp.where(mask, scores, MASKED), axis=-1)
    out = jnp.einsum("bkgst,bkth->bkgsh", weights.astype(value.dtype), value)
    return out.reshape(batch, heads, s, head_dim)


# Of prompts or of completions, so rows and time are not B and T.
KeyValue = tuple[Float[Array, "_ kv_heads _ head_dim"], Float[Array, "_ kv_heads _ head_dim"]]


@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of what was read: N prompts, and B = N x K completions that follow them.

    The K completions of a prompt are adjacent rows and share its keys and values. Each row writes
    its next token into the column after its last, so what it computes does not depend on when the
    others began. One entry per layer: a tuple of arrays is updated in place in a loop, where one
    stacked array would be copied.
    """

    prompt: tuple[KeyValue, ...]  # [N, kv_heads, P, head_dim]
    prompt_valid: Bool[Array, "N P"]
    completion: tuple[KeyValue, ...]  # [B, kv_heads, C, head_dim]
    length: Int[Array, "B"]  # tokens of each completion read so far, less than C
    limit: int  # all positions are below it

    def positions(self) -> Int[Array, "B 1"]:
        """Of the token that is read next, one for each completion."""
        samples = self.length.shape[0] // self.prompt_valid.shape[0]
        prompt_tokens = self.prompt_valid.sum(axis=1, dtype=jnp.int32)
        return (jnp.repeat(prompt_tokens, samples) + self.length)[:, None]

    def completion_valid(self) -> Bool[Array, "B C"]:
        """Which columns hold a row's own tokens, the next one included."""
        columns = jnp.arange(self.completion[0][0].shape[2])
        return columns <= self.length[:, None]


def _written(
    entries: Float[Array, "B kv_heads C head_dim"],
    new: Float[Array, "B kv_heads 1 head_dim"],
    column: Int[Array, "B"],
) -> Float[Array, "B kv_heads C head_dim"]:
    """The entries with each row's new one in its column."""
    if on_tpu():  # one pass over memory, where a scatter would go from row to row
        here = jnp.arange(entries.shape[2]) == column[:, None]
        return jnp.where(here[:, None, :, None], new, entries)
    write = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=1)
    return jax.vmap(write)(entries, new, column)


def cached_attention(
    query: Float[Array, "B heads 1 head_dim"],
    key: Float[Array, "B kv_heads 1 head_dim"],
    value: Float[Array, "B kv_heads 1 head_dim"],
    cache: Cache,
    layer: int,
) -> tuple[Float[Array, "B heads 1 head_dim"], KeyValue]:
    """The output of `causal_attention` for one new token per completion, and its cache entry."""
    prompt_key, prompt_value = cache.prompt[layer]
    keys, values = cache.completion[layer]
    keys, values = _written(keys, key, cache.length), _written(values, value, cache.length)

    batch, heads, _, head_dim = query.shape
    n, kv_heads, p, _ = prompt_key.shape
    samples, groups = batch // n, heads // kv_heads
    query = query * head_dim**-0.5
    # Keys of the prompt meet the queries of all its samples in one product.
    to_prompt = jnp.einsum(
        "nskgh,nkph->nskgp",
        query.reshape(n, samples, kv_heads, groups, head_dim),
        prompt_key,
        preferred_element_type=jnp.float32,
    )
    to_prompt = jnp.where(cache.prompt_valid[:, None, None, None, :], to_prompt, MASKED)
    to_completion = jnp.einsum(
        "bkgh,bkch->bkgc",
        query.reshape(batch, kv_heads, groups, head_dim),
        keys,
        preferred_element_type=jnp.float32,
    )
    read = cache.completion_valid()[:, None, None, :]
    to_completion = jnp.where(read, to_completion, MASKED)
    scores = jnp.concatenate(
        [to_prompt.reshape(batch, kv_heads, groups, p), to_completion], axis=-1
    )
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    out = jnp.einsum(
        "nskgp,nkph->nskgh",
        weights[..., :p].reshape(n, samples, kv_heads, groups, p),
        prompt_value,
    ).reshape(batch, kv_heads, groups, head_dim)
    out += jnp.einsum("bkgc,bkch->bkgh", weights[..., p:], values)
    return out.reshape(batch, heads, 1, head_dim), (keys, values)
