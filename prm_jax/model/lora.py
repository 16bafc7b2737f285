"""Which parameters low-rank adapters (LoRA, arXiv 2106.09685) leave to train, and how they end.

The adapters themselves are in linear.py. Here a tree of parameters is taken apart into what trains
and what is frozen, and the adapters are folded into their kernels for export.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from prm_jax.config import ModelConfig
from prm_jax.model.linear import KERNEL, A, B
from prm_jax.sharding import abstract_params, batch_shards


def is_adapter(path: str) -> bool:
    """Whether a parameter of this path ("trunk/layers_0/...") is an adapter's."""
    return path.endswith((A, B))


def trainable(params: Any) -> Any:
    """The tree of bools that says which parameters training changes.

    With adapters in the tree: these and the head of a scalar model. Without: all.
    """
    paths = jax.tree.map_with_path(lambda path, _: _name(path), params)
    adapted = any(is_adapter(path) for path in jax.tree.leaves(paths))
    return jax.tree.map(
        lambda path: not adapted or is_adapter(path) or path.startswith("head/"), paths
    )


def split_trainable(params: Any) -> tuple[Any, Any]:
    """The parameters that training changes, and those that it does not; `join` is the inverse.

    Each is a tree of dicts that lacks the other's leaves: gradients and optimizer state of the
    first have its structure, and only it need be kept in checkpoints.
    """
    return _pick(params, trainable(params), True), _pick(params, trainable(params), False)


def join(trained: Any, frozen: Any) -> Any:
    """The tree that `split_trainable` took apart."""
    both = dict(frozen)
    for key, value in trained.items():
        both[key] = join(value, frozen[key]) if isinstance(frozen.get(key), dict) else value
    return both


def merge_lora(params: Any, config: ModelConfig) -> Any:
    """W + (alpha / rank) A B in place of W, A and B: parameters of the model with lora_rank = 0.

    The sum is float32; without adapters `params` are returned as they are.
    """
    if not config.lora_rank:
        return params
    scale = config.lora_alpha / config.lora_rank
    merged = {}
    for name, value in params.items():
        if isinstance(value, dict):
            merged[name] = merge_lora(value, config)
        elif name.endswith(KERNEL) and (stem := name.removesuffix(KERNEL)) + A in params:
            a, b = (params[stem + suffix].astype(jnp.float32) for suffix in (A, B))
            joined = a.ndim + b.ndim - 2 - value.ndim  # axes that A and B share beside the rank
            product = jnp.einsum("dcr,crf->dcf", a, b) if joined else jnp.tensordot(a, b, 1)
            merged[name] = (value.astype(jnp.float32) + scale * product).astype(value.dtype)
        elif not is_adapter(name):
            merged[name] = value
    return merged


def fresh_adapters(model: nn.Module, mesh: Mesh, key: jax.Array) -> Any:
    """The adapters of a model as they start, in their shardings, and nothing else of it."""
    tokens = jnp.zeros((batch_shards(mesh), 1), jnp.int32)

    def init(key: jax.Array) -> Any:
        params = nn.meta.unbox(model.init(key, tokens, tokens == 0)["params"])
        return _pick(params, _adapters(params), True)

    like = abstract_params(model, mesh)
    shardings = jax.tree.map(lambda x: x.sharding, _pick(like, _adapters(like), True))
    with jax.set_mesh(mesh):
        return jax.jit(init, out_shardings=shardings)(key)


def _adapters(params: Any) -> Any:
    return jax.tree.map_with_path(lambda path, _: is_adapter(_name(path)), params)


def _pick(params: Any, chosen: Any, value: bool) -> Any:
    """The leaves of `params` where `chosen` is `value`, in dicts that lack the others."""
    picked = {}
    for key, child in params.items():
        if not isinstance(child, dict):
            if chosen[key] == value:
                picked[key] = child
        elif rest := _pick(child, chosen[key], value):
            picked[key] = rest
    return picked


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
