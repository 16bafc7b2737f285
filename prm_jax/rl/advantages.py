"""Advantages and returns on the `[B, T]` grid.

`mask` is True at the tokens that the policy chose. All others are skipped, padding on both sides
as well as a gap inside, and come out as 0, whatever they hold, NaN included. An episode ends with
its last token: the state after it is worth 0. Everything is float32.
"""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Real, ScalarLike


def gae(
    rewards: Real[Array, "B T"],
    values: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    gamma: ScalarLike,
    gae_lambda: ScalarLike,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Generalised advantage estimates and the returns that go with them, `(advantages, returns)`.

    delta_t = r_t + gamma V_{t+1} - V_t
    A_t     = delta_t + gamma gae_lambda A_{t+1}
    returns = A_t + V_t

    values[b,t] = V(state before token t) and V = 0 after the last token. gae_lambda = 1 gives
    Monte-Carlo returns minus values, 0 gives the TD errors. Advantages are not whitened.

    Source: Schulman et al., arXiv 1506.02438, equation 16.
    """
    rewards, values = _masked(rewards, mask), _masked(values, mask)

    def backward(carry, column):
        next_advantage, next_value = carry
        reward, value, here = column
        delta = reward + gamma * next_value - value
        advantage = delta + gamma * gae_lambda * next_advantage
        carry = jnp.where(here, advantage, next_advantage), jnp.where(here, value, next_value)
        return carry, jnp.where(here, advantage, 0.0)

    zeros = jnp.zeros_like(rewards[:, 0])
    columns = (rewards.T, values.T, mask.T)
    _, advantages = lax.scan(backward, (zeros, zeros), columns, reverse=True)
    return advantages.T, advantages.T + values


def rewards_to_go(
    rewards: Real[Array, "B T"], mask: Bool[Array, "B T"], gamma: ScalarLike
) -> Float[Array, "B T"]:
    """Discounted Monte-Carlo returns, G_t = r_t + gamma G_{t+1}; G = 0 after the last token."""
    no_values = jnp.zeros(rewards.shape, jnp.float32)
    return gae(rewards, no_values, mask, gamma=gamma, gae_lambda=1.0)[0]


def whiten(x: Float[Array, "B T"], mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
    """(x - mean) / sqrt(variance + 1e-8), both over the masked tokens of the whole batch.

    The variance is the biased one, so that a single token gives 0; so does a constant input.
    """
    x = _masked(x, mask)
    n = jnp.maximum(mask.sum(), 1)
    centred = _masked(x - x.sum() / n, mask)
    return centred * lax.rsqrt(jnp.square(centred).sum() / n + 1e-8)


def _masked(x: Array, mask: Array) -> Array:
    return jnp.where(mask, x.astype(jnp.float32), 0.0)
