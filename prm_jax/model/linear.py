"""Linear maps of the transformer, and the low-rank adapters (LoRA, arXiv 2106.09685) beside them.

With `ModelConfig.lora_rank` a kernel W is frozen and acts as W + (alpha / rank) A B, where A and B
are small parameters beside it in the tree. They are applied to the activations, so that training
them needs no gradient of W; for export they are folded into it.
"""

import math
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from prm_jax.config import ModelConfig
from prm_jax.sharding import constrain, splits

KERNEL, A, B = "_kernel", "_lora_a", "_lora_b"


def as_computed(params: Any, config: ModelConfig) -> Any:
    """`params` in the precision that the layers compute with: the same outputs, in half the bytes.

    Kernels, biases, adapters, embedding and token head become `dtype`, to which every forward pass
    converts them anyway; scales of norms and the scalar head stay float32.
    """
    if config.dtype == "float32":
        return params

    def computed(path: Any, x: jax.Array) -> jax.Array:
        name = path[-1].key
        converted = name.endswith((KERNEL, "_bias", A, B)) or name in ("embedding", "head")
        return x.astype(config.dtype) if converted else x

    return jax.tree.map_with_path(computed, params)


def for_decoding(params: Any, config: ModelConfig) -> Any:
    """`params` as a loop over new tokens reads them: `as_computed`, and kernels of MLPs re-laid.

    Their mlp axis lies over the devices of fsdp as well, in place of embed: a product then needs
    the hidden states of all rows, a few numbers for each, and not the kernel of all devices. Where
    mlp does not divide so, kernels stay as they are, and so do adapters.
    """
    params = as_computed(params, config)
    if not splits("mlp_shard", config.mlp):
        return params
    names = {
        "gate_up" + KERNEL: (None, None, "mlp_shard"),
        "gate_up_bias": (None, "mlp_shard"),
        "down" + KERNEL: ("mlp_shard", None),
    }

    def laid(path: Any, x: jax.Array) -> jax.Array:
        name = path[-1].key
        return constrain(x, *names[name]) if name in names else x

    return jax.tree.map_with_path(laid, params)


def kernel_init(fan_in: int, scale: float = 1.0) -> jax.nn.initializers.Initializer:
    """Normal with variance scale / fan_in, so that a product keeps the size of its input."""
    return nn.initializers.normal((scale / fan_in) ** 0.5)


def named_axes(init: jax.nn.initializers.Initializer, *names: str | None) -> Any:
    """`init` for a parameter whose axes have these names in prm_jax/sharding.py."""
    return nn.with_logical_partitioning(init, names)


def linear(
    module: nn.Module,
    config: ModelConfig,
    name: str,
    x: Array,
    equation: str,
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    scale: float = 1.0,
) -> Array:
    """x W by an einsum, plus (alpha / rank) (x A) B where there are adapters.

    W is the parameter `<name>_kernel` of this shape and these axis names, its variance
    scale / fan_in. An axis without a name joins kernels with adapters of their own (gate and up).
    A starts normal and B at 0: fresh adapters change nothing.
    """
    of_x, of_kernel, of_y = re.split(",|->", equation)
    size = dict(zip(of_kernel, shape, strict=True)) | {"r": config.lora_rank}
    axis = dict(zip(of_kernel, axes, strict=True)) | {"r": "lora"}
    summed = [i for i in of_kernel if i not in of_y]
    fan_in = math.prod(size[i] for i in summed)
    init = named_axes(kernel_init(fan_in, scale), *axes)
    kernel = module.param(name + KERNEL, init, shape)
    y = jnp.einsum(equation, x, kernel.astype(x.dtype))
    if not config.lora_rank:
        return y
    joined = [i for i in of_kernel if axis[i] is None]
    of_a = [*summed, *joined, "r"]
    of_b = [*joined, "r", *(i for i in of_kernel if i not in summed + joined)]
    of_low = [*(i for i in of_x if i not in summed), *joined, "r"]

    def adapter(suffix: str, init: Any, indices: list[str]) -> Array:
        init = named_axes(init, *(axis[i] for i in indices))
        return module.param(name + suffix, init, tuple(size[i] for i in indices)).astype(x.dtype)

    a = adapter(A, kernel_init(fan_in), of_a)
    b = adapter(B, nn.initializers.zeros, of_b)
    low = jnp.einsum(f"{of_x},{''.join(of_a)}->{''.join(of_low)}", x, a)
    up = jnp.einsum(f"{''.join(of_low)},{''.join(of_b)}->{of_y}", low, b)
    return y + config.lora_alpha / config.lora_rank * up
