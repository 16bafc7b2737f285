"""Rotary positions (RoPE, arXiv 2104.09864) and the ways in which models stretched them.

Each pair of a head's entries turns by position times its frequency. A model whose context was made
longer after training turns its slow pairs more slowly; which ones, and by how much, is its scaling.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from prm_jax.config import RopeConfig


def rotary_angles(
    positions: Int[Array, "B T"], limit: int, head_dim: int, rope: RopeConfig
) -> tuple[Float[Array, "B 1 T half"], Float[Array, "B 1 T half"]]:
    """Cosine and sine of position * frequency, times the scaling's factor, float32.

    Positions are below `limit`. float32 because bfloat16 rounds position 257 to 256, and sin(257)
    is far from sin(256). Raises ValueError for dynamic scaling beyond its original context.
    """
    if rope.scaling == "dynamic" and limit > rope.original_positions:
        raise ValueError(
            f"{limit} tokens are too many for model.rope.scaling = 'dynamic', which is the plain "
            f"rotary positions up to model.rope.original_positions = {rope.original_positions}: "
            "shorten prompts or completions, or choose yarn"
        )
    angles = jnp.arange(limit, dtype=jnp.float32)[:, None] * jnp.asarray(
        rotary_frequencies(rope, head_dim), jnp.float32
    )
    scale = attention_factor(rope)
    # Looked up: computed per token, XLA would fuse the cosines into each of their uses and
    # compute them again there, a tenth of a gradient at the tiny size.
    cos, sin = (scale * jnp.cos(angles))[positions], (scale * jnp.sin(angles))[positions]
    return cos[:, None], sin[:, None]


def rotary_frequencies(rope: RopeConfig, head_dim: int) -> Float[np.ndarray, " half"]:
    """Radians per position of each pair: f_i = theta^(-2i / head_dim), then scaled, float64.

    - linear: f / factor (arXiv 2306.15595).
    - dynamic: f itself up to `original_positions`.
    - llama3: f where its wavelength is short, f / factor where it is long, and between them
      (1 - s) f / factor + s f with s = (original / wavelength - low) / (high - low)
      (Llama 3.1, arXiv 2407.21783, and its published code).
    - yarn: f where it turns more than beta_fast times within `original_positions`, f / factor
      where less than beta_slow, linear in i between the two bounds (arXiv 2309.00071, section 3.2).
    """
    plain = rope.theta ** (-np.arange(0, head_dim, 2) / head_dim)
    if rope.scaling in ("none", "dynamic"):
        return plain
    stretched = plain / rope.factor
    if rope.scaling == "linear":
        return stretched
    if rope.scaling == "llama3":
        turns = rope.original_positions * plain / (2 * math.pi)
        low, high = rope.low_freq_factor, rope.high_freq_factor
        keep = np.clip((turns - low) / (high - low), 0, 1)
    else:
        bounds = [_pair_with_turns(rope, head_dim, n) for n in (rope.beta_fast, rope.beta_slow)]
        if rope.truncate:
            bounds = [math.floor(bounds[0]), math.ceil(bounds[1])]
        first, last = max(bounds[0], 0), min(bounds[1], head_dim - 1)
        width = max(last - first, 0.001)  # both bounds in one place: a step
        keep = 1 - np.clip((np.arange(head_dim // 2) - first) / width, 0, 1)
    return keep * plain + (1 - keep) * stretched


def attention_factor(rope: RopeConfig) -> float:
    """What queries and keys are multiplied by: yarn's 0.1 ln(factor) + 1, or 1."""
    if rope.scaling != "yarn":
        return 1.0
    return rope.attention_factor or 0.1 * math.log(rope.factor) + 1.0


def _pair_with_turns(rope: RopeConfig, head_dim: int, turns: float) -> float:
    """The (fractional) pair that turns so many times within the original context."""
    wavelength = rope.original_positions / (turns * 2 * math.pi)
    return head_dim * math.log(wavelength) / (2 * math.log(rope.theta))
