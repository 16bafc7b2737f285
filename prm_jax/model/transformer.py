"""The trunk: a decoder-only transformer of the family of Llama, Qwen2 and Qwen3, in Flax Linen.

RMSNorm before each half of a layer, rotary positions, grouped-query attention, SwiGLU. Parameters
are float32, computation is in `ModelConfig.dtype`, and statistics of norms, softmax and rotary
angles are float32. Every parameter names its axes for prm_jax/sharding.py.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from prm_jax.config import ModelConfig
from prm_jax.model.attention import (
    Cache,
    KeyValue,
    cached_attention,
    causal_attention,
    rotate,
)
from prm_jax.model.flash import flash_attention, on_tpu
from prm_jax.model.linear import as_computed, kernel_init, linear, named_axes
from prm_jax.model.rope import rotary_angles
from prm_jax.sharding import constrain, splits

# Hidden states between layers. Whole texts: each device has its rows, and gathers parameters.
# New tokens of a cache: along fsdp each has its columns for all rows, and parameters stay in place.
ROWS = ("batch", "time", "embed")
COLUMNS = ("data_batch", "time", "embed_shard")


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * scale over the last axis (arXiv 1910.07467)."""

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        init = named_axes(nn.initializers.ones, "norm")
        scale = self.param("scale", init, (x.shape[-1],))
        x32 = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        return (x32 * inverse * scale).astype(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions; output for the columns from `first` on."""

    config: ModelConfig
    layer: int

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        valid: Bool[Array, "B T"],
        rotation: tuple[Array, Array],
        cache: Cache | None,
        first: int,
    ) -> tuple[Float[Array, "B S D"], KeyValue]:
        c = self.config
        cos, sin = rotation

        def project(name: str, x: Array, heads: int, axis: str) -> Array:
            shape, axes = (c.embed, heads, c.head_dim), ("embed", axis, "head_dim")
            y = linear(self, c, name, x, "btd,dnh->bnth", shape, axes)
            if c.qkv_bias:
                init = named_axes(nn.initializers.zeros, axis, "head_dim")
                bias = self.param(f"{name}_bias", init, (heads, c.head_dim))
                y += bias.astype(x.dtype)[:, None, :]
            return constrain(y, "batch", axis, "time", "head_dim")

        query = project("query", x[:, first:], c.heads, "heads")
        key = project("key", x, c.kv_heads, "kv_heads")
        value = project("value", x, c.kv_heads, "kv_heads")
        if c.qk_norm:
            query = RMSNorm(c.norm_eps, name="query_norm")(query)
            key = RMSNorm(c.norm_eps, name="key_norm")(key)
        query = rotate(query, cos[:, :, first:], sin[:, :, first:])
        key = rotate(key, cos, sin)
        if cache is None:
            attention = flash_attention if on_tpu() else causal_attention
            out, key_value = attention(query, key, value, valid), (key, value)
        else:
            out, key_value = cached_attention(query, key, value, cache, self.layer)
            out = constrain(out, "data_batch", "heads", "time", "head_dim")
        shape, axes = (c.heads, c.head_dim, c.embed), ("heads", "head_dim", "embed")
        y = linear(self, c, "out", out, "bnth,nhd->btd", shape, axes, 1 / (2 * c.layers))
        if c.out_bias:
            bias = self.param("out_bias", named_axes(nn.initializers.zeros, "embed"), (c.embed,))
            y += bias.astype(x.dtype)
        return y, key_value


class MLP(nn.Module):
    """SwiGLU: (silu(x gate) * (x up)) down (arXiv 2002.05202)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], decodes: bool) -> Float[Array, "B T D"]:
        c = self.config
        of_hidden = ("batch", "time", "mlp")
        if decodes:
            spread = splits("mlp_shard", c.mlp)
            x = constrain(x, "data_batch", "time", "embed" if spread else "embed_shard")
            of_hidden = ("data_batch", "time", "mlp_shard" if spread else "mlp")
        # Gate and up in one product; stacked and not joined, so that mlp splits evenly over tensor.
        shape, axes = (c.embed, 2, c.mlp), ("embed", None, "mlp")
        both = linear(self, c, "gate_up", x, "btd,dcf->btcf", shape, axes)
        if c.mlp_bias:
            init = named_axes(nn.initializers.zeros, None, "mlp")
            both += self.param("gate_up_bias", init, (2, c.mlp)).astype(x.dtype)
        hidden = nn.silu(both[:, :, 0]) * both[:, :, 1]
        hidden = constrain(hidden, *of_hidden)
        shape, axes = (c.mlp, c.embed), ("mlp", "embed")
        y = linear(self, c, "down", hidden, "btf,fd->btd", shape, axes, 1 / (2 * c.layers))
        if c.mlp_bias:
            bias = self.param("down_bias", named_axes(nn.initializers.zeros, "embed"), (c.embed,))
            y += bias.astype(x.dtype)
        return y


class Layer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), for the columns from `first` on."""

    config: ModelConfig
    layer: int

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        valid: Bool[Array, "B T"],
        rotation: tuple[Array, Array],
        cache: Cache | None,
        first: int,
    ) -> tuple[Float[Array, "B S D"], KeyValue]:
        c = self.config
        attention = Attention(c, self.layer, name="attention")
        normed = RMSNorm(c.norm_eps, name="attention_norm")(x)
        out, key_value = attention(normed, valid, rotation, cache, first)
        layout = ROWS if cache is None else COLUMNS
        x = constrain(x[:, first:] + out, *layout)
        normed = RMSNorm(c.norm_eps, name="mlp_norm")(x)
        x += MLP(c, name="mlp")(normed, cache is not None)
        return constrain(x, *layout), key_value


class Transformer(nn.Module):
    """Tokens to final hidden states; both heads and all three models stand on this trunk."""

    config: ModelConfig
    vocab_size: int

    def setup(self):
        c = self.config
        init = named_axes(kernel_init(c.embed), "vocab", "embed")
        self.embedding: Any = self.param("embedding", init, (self.vocab_size, c.embed))
        self.layers: Any = [Layer(c, i) for i in range(c.layers)]
        self.final_norm: Any = RMSNorm(c.norm_eps)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        valid: Bool[Array, "B T"],
        cache: Cache | None = None,
        first: int = 0,
    ) -> tuple[Float[Array, "B S D"], tuple[KeyValue, ...]]:
        """Hidden states of the columns from `first` on, and keys and values of each layer.

        Without a cache: tokens may be padded on either side, position 0 is the first valid one,
        and the last layer spares the columns before `first`. With a cache: one new token for each
        completion; the entries returned are the cache's, with the token written at `cache.length`.
        """
        c = self.config
        if cache is None:
            positions = jnp.maximum(jnp.cumsum(valid, axis=1, dtype=jnp.int32) - 1, 0)
            limit = tokens.shape[1]
        else:
            positions, limit = cache.positions(), cache.limit
        rotation = rotary_angles(positions, limit, c.head_dim, c.rope)
        x = embed(self.embedding.astype(c.dtype), tokens, ROWS if cache is None else COLUMNS)
        key_values = []
        scanned = 0
        if cache is None and not self.is_initializing():
            # The last layer stands apart where it spares columns.
            scanned = c.layers - (first > 0) if c.scan_layers else 0
            if scanned:
                x, key_values = self._scan(x, valid, rotation, scanned)
        for i, layer in enumerate(self.layers[scanned:], scanned):
            last = i == c.layers - 1
            x, key_value = self._layer(layer, x, valid, rotation, cache, first if last else 0)
            key_values.append(key_value)
        return self.final_norm(x), tuple(key_values)

    def _layer(self, layer, x, valid, rotation, cache, first):
        """One layer; with remat = "full" its backward pass computes it again from its input."""
        if self.config.remat == "none" or cache is not None or self.is_initializing():
            return layer(x, valid, rotation, cache, first)

        def apply(params, x, valid, rotation):
            return layer.clone(parent=None).apply(
                {"params": params}, x, valid, rotation, None, first
            )

        return jax.checkpoint(apply)(layer.variables["params"], x, valid, rotation)

    def _scan(self, x, valid, rotation, n: int):
        """The first n layers as one loop over their parameters, stacked: compiled once.

        The stack is of the parameters as the layers compute with them, so it costs their size in
        `dtype` on each device, and once more for its gradient.
        """
        layer = self.layers[0].clone(parent=None)
        params = [as_computed(layer.variables["params"], self.config) for layer in self.layers[:n]]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)

        def step(x, params):
            return layer.apply({"params": params}, x, valid, rotation, None, 0)

        if self.config.remat == "full":
            # Inside of a loop nothing can undo the recomputation, and barriers would only cost.
            step = jax.checkpoint(step, prevent_cse=False)
        x, (keys, values) = jax.lax.scan(step, x, stacked)
        return x, [(keys[i], values[i]) for i in range(n)]


def embed(
    table: Float[Array, "V D"], tokens: Int[Array, "B T"], layout: tuple[str, ...] = ROWS
) -> Float[Array, "B T D"]:
    """The rows of the tokens, in this layout.

    Each device looks up its columns of D for the tokens of all, which then change places: gathering
    the table instead would take V x D on each device, 1 GiB with a vocabulary of 150k.
    """
    tokens = constrain(tokens, "data_batch", "time")
    return constrain(constrain(jnp.take(table, tokens, axis=0), *COLUMNS), *layout)
