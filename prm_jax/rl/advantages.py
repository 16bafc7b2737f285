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
    gae_lambda: ScalarLike | Float[Array, "B"],
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Generalised advantage estimates and the returns that go with them, `(advantages, returns)`.

    delta_t = r_t + gamma V_{t+1} - V_t
    A_t     = delta_t + gamma gae_lambda A_{t+1}
    returns = A_t + V_t

    values[b,t] = V(state before token t) and V = 0 after the last token. gae_lambda = 1 gives
    Monte-Carlo returns minus values, 0 gives the TD errors; it may differ from row to row.
    Advantages are not whitened.

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


def length_adaptive_lambda(mask: Bool[Array, "B T"], alpha: ScalarLike) -> Float[Array, "B"]:
    """A lambda for each response that grows with its n tokens, max(1 - 1 / (alpha n), 0).

    The weights of GAE's n-step estimates then reach about as far as alpha of the response. A
    response of 1 / alpha tokens or fewer gets 0, the TD errors.

    Source: VAPO, arXiv 2504.05118, whose alpha is 0.05 for responses of thousands of tokens.
    """
    n_tokens = jnp.maximum(mask.sum(axis=1), 1)
    return jnp.maximum(1 - 1 / (alpha * n_tokens.astype(jnp.float32)), 0.0)


def group_advantages(
    rewards: Real[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    group_size: int,
    gamma: ScalarLike,
) -> Float[Array, "B T"]:
    """Advantages without a critic: rewards-to-go against the samples of the same prompt.

    A_t = (G_t - mean) / sqrt(variance + 1e-8)

    G_t = r_t + gamma G_{t+1}; mean and (biased) variance are those of the group's whole returns,
    G at the first token, over the rows that have tokens. A group is `group_size` adjacent rows, the
    samples of one prompt; the advantages of its first tokens sum to 0. With a reward at the last
    token only and gamma = 1 every token has the advantage of GRPO with outcomes; what a dense
    reward paid before token t has no part in A_t, as it has none in the policy gradient. Groups
    whose returns are all equal give 0; where all fail, dense rewards alone are brought to
    variance 1, however small their weight.

    Raises ValueError if the rows are no whole number of groups. Source: GRPO, arXiv 2402.03300,
    section 4.1.
    """
    if mask.shape[0] % group_size:
        raise ValueError(
            f"group_size = {group_size} is not allowed: it must divide the {mask.shape[0]} rows"
        )
    to_go = rewards_to_go(rewards, mask, gamma)
    first = mask & (jnp.cumsum(mask, axis=1) == 1)
    total = jnp.where(first, to_go, 0.0).sum(axis=1).reshape(-1, group_size)
    counts = mask.any(axis=1).reshape(-1, group_size)
    n = jnp.maximum(counts.sum(axis=1, keepdims=True), 1)
    mean = total.sum(axis=1, keepdims=True) / n
    centred = jnp.where(counts, total - mean, 0.0)
    scale = lax.rsqrt(jnp.square(centred).sum(axis=1, keepdims=True) / n + 1e-8)
    by_row = [jnp.repeat(x[:, 0], group_size)[:, None] for x in (mean, scale)]
    return _masked((to_go - by_row[0]) * by_row[1], mask)


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
