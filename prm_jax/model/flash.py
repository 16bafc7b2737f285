"""Causal attention on a TPU without its `[T, T]` scores: the splash kernel that JAX ships.

Elsewhere `causal_attention` computes the same numbers, except on padding: a query that is padding
averages over padding before it here, and over everything there. No valid token ever reads either.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Bool, Float

from prm_jax.sharding import ACTIVATION_RULES, partition_spec

LANES = 128  # time is padded to a multiple of it
BLOCKS = (1024, 512, 256, 128)  # of time; the larger, the fewer turns of the kernel


def on_tpu() -> bool:
    """Whether the program that is being traced will run on the TPUs of `jax.set_mesh`."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device is not None and device.device_kind.startswith("TPU")


def flash_attention(
    query: Float[Array, "B heads S head_dim"],
    key: Float[Array, "B kv_heads T head_dim"],
    value: Float[Array, "B kv_heads T head_dim"],
    valid: Bool[Array, "B T"],
    *,
    interpret: bool = False,
) -> Float[Array, "B heads S head_dim"]:
    """What `causal_attention` gives for the valid queries, on each device for its rows and heads.

    `interpret` runs the kernel's code on any device, slowly. Source: FlashAttention, arXiv
    2205.14135.
    """
    s, t = query.shape[2], key.shape[2]
    padding = -t % LANES
    time = (t - s, padding)  # the queries are the last S: a square mask needs those before them
    query = jnp.pad(query * query.shape[3] ** -0.5, ((0, 0), (0, 0), time, (0, 0)))
    key, value = (jnp.pad(x, ((0, 0), (0, 0), (0, padding), (0, 0))) for x in (key, value))
    segment = jnp.pad(valid, ((0, 0), (0, padding))).astype(jnp.int32)
    block = next(b for b in BLOCKS if (t + padding) % b == 0)

    def of_device(query: Array, key: Array, value: Array, segment: Array) -> Array:
        causal = splash.CausalMask((t + padding, t + padding))
        kernel = splash.make_splash_mha(
            splash.MultiHeadMask([causal] * query.shape[1]),
            block_sizes=splash.BlockSizes(
                block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block,
                block_q_dq=block, block_kv_dq=block,
            ),
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )  # fmt: skip

        def of_row(query: Array, key: Array, value: Array, segment: Array) -> Any:
            return kernel(query, key, value, splash.SegmentIds(segment, segment))

        return jax.vmap(of_row)(query, key, value, segment)

    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        of_device = _on_each_device(of_device, mesh, query, key, value, segment)
    return of_device(query, key, value, segment)[:, :, t - s : t]


def _on_each_device(function, mesh: AbstractMesh, *arrays: Array):
    """`function` of the rows and heads that each device holds: XLA cannot split a kernel."""

    def spec(*names: str | None, of: Array) -> PartitionSpec:
        return partition_spec(names, of.shape, ACTIVATION_RULES, mesh, f"attention {names}")

    query, key, value, segment = arrays
    heads = spec("batch", "heads", "time", "head_dim", of=query)
    kv_heads = [spec("batch", "kv_heads", "time", "head_dim", of=x) for x in (key, value)]
    rows = spec("batch", "time", of=segment)
    return jax.shard_map(
        function, mesh=mesh, in_specs=(heads, *kv_heads, rows), out_specs=heads, check_vma=False
    )
