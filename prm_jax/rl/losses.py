"""The losses of policy, critic and PRM, each a mean over the masked tokens of the batch.

What the mask hides is replaced before any arithmetic, so that padding, NaN and infinities
included, reaches neither a loss nor its gradient. An empty mask gives 0. Everything is float32.
"""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Real, ScalarLike

Scalar = Float[Array, ""]


def masked_mean(
    x: Real[Array, "*shape"] | Bool[Array, "*shape"], mask: Bool[Array, "*shape"]
) -> Scalar:
    """The mean of x where mask is True, over all axes; 0 if it is True nowhere."""
    return _masked(x, mask).sum() / jnp.maximum(mask.sum(), 1)


def next_token_loss(logp: Float[Array, "B T"], mask: Bool[Array, "B T"]) -> Scalar:
    """Cross-entropy of the masked tokens, the mean of -logp[b,t], in nats."""
    return -masked_mean(logp, mask)


def ppo_policy_loss(
    logp: Float[Array, "B T"],
    old_logp: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    clip_low: ScalarLike,
    clip_high: ScalarLike,
) -> tuple[Scalar, dict[str, Scalar]]:
    """PPO's clipped surrogate, a mean over tokens.

    rho  = exp(logp - old_logp)
    loss = -mean min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A)

    Metrics: `policy/clip_fraction`, the share of tokens where the clip binds and the gradient is 0;
    `policy/approx_kl`, the mean of (rho - 1) - log rho, an estimate of KL(old || new) that is never
    negative; `policy/ratio_mean`.

    Source: Schulman et al., arXiv 1707.06347, equation 7; the two clips: DAPO, arXiv 2503.14476;
    the KL estimate: Schulman, "Approximating KL divergence" (k3).
    """
    log_ratio = _masked(logp, mask) - _masked(old_logp, mask)
    ratio = jnp.exp(log_ratio)
    advantages = _masked(advantages, mask)
    free = ratio * advantages
    clipped = jnp.clip(ratio, 1 - clip_low, 1 + clip_high) * advantages
    loss = -masked_mean(jnp.minimum(free, clipped), mask)
    metrics = {
        "policy/clip_fraction": masked_mean(clipped < free, mask),
        "policy/approx_kl": masked_mean(ratio - 1 - log_ratio, mask),
        "policy/ratio_mean": masked_mean(ratio, mask),
    }
    return loss, {name: lax.stop_gradient(value) for name, value in metrics.items()}


def sampler_weights(
    logp: Float[Array, "B T"],
    sampler_logp: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    cap: ScalarLike,
) -> Float[Array, "B T"]:
    """How much more likely the trainer makes each token than the sampler did, truncated.

    w = min(exp(logp - sampler_logp), cap), 0 where masked; logp is of the same parameters. A
    sampler of another precision or kernel draws from a policy that is not quite the trainer's;
    the surrogate's terms times w are those of the trainer's policy again, up to the truncation,
    which bounds their variance.

    Source: Ionides, "Truncated importance sampling", 2008.
    """
    ratio = jnp.exp(_masked(logp, mask) - _masked(sampler_logp, mask))
    return _masked(jnp.minimum(ratio, cap), mask)


def ppo_value_loss(
    values: Float[Array, "B T"],
    old_values: Float[Array, "B T"],
    returns: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    value_clip: ScalarLike,
) -> tuple[Scalar, dict[str, Scalar]]:
    """The critic's squared error, clipped to a step of value_clip from the old values.

    clipped = clip(values, old_values - value_clip, old_values + value_clip)
    loss    = 0.5 mean max((values - returns)^2, (clipped - returns)^2)

    Metrics: `value/clip_fraction`, the share of tokens where the clip binds; `value/mean`;
    `value/return_mean`.

    Source: the clip of OpenAI Baselines' PPO; Huang et al., "The 37 implementation details of PPO".
    """
    values, old_values = _masked(values, mask), _masked(old_values, mask)
    returns = _masked(returns, mask)
    clipped = jnp.clip(values, old_values - value_clip, old_values + value_clip)
    free_error, clipped_error = jnp.square(values - returns), jnp.square(clipped - returns)
    loss = 0.5 * masked_mean(jnp.maximum(free_error, clipped_error), mask)
    metrics = {
        "value/clip_fraction": masked_mean(clipped_error > free_error, mask),
        "value/mean": masked_mean(values, mask),
        "value/return_mean": masked_mean(returns, mask),
    }
    return loss, {name: lax.stop_gradient(value) for name, value in metrics.items()}


def explained_variance(
    values: Float[Array, "B T"], returns: Float[Array, "B T"], mask: Bool[Array, "B T"]
) -> Scalar:
    """1 - Var(returns - values) / Var(returns) over the masked tokens; 0 where no return varies.

    1: the values are the returns up to a shift; 0: they say no more than a constant; below 0: less.
    """
    values, returns = _masked(values, mask), _masked(returns, mask)
    spread, unexplained = _variance(returns, mask), _variance(returns - values, mask)
    return jnp.where(spread > 0, 1 - unexplained / jnp.where(spread > 0, spread, 1.0), 0.0)


def prm_loss(
    scores: Float[Array, "B T"], labels: Real[Array, "B T"], weights: Float[Array, "B T"]
) -> Scalar:
    """Mean squared error on labelled prefixes, sum w_m (R(x, y<=m) - l_m)^2 / sum w_m.

    The weights w are 0 elsewhere; where all are 0, so is the loss. Source: arXiv 2410.17621,
    section 3.2, where all prefixes weigh the same.
    """
    error = jnp.square(_masked(scores, weights > 0) - _masked(labels, weights > 0))
    total = weights.sum()
    return (weights * error).sum() / jnp.where(total > 0, total, 1.0)


def recalibrate(
    scores: Float[Array, "B T"], returns: Float[Array, "B T"], mask: Bool[Array, "B T"]
) -> tuple[Scalar, Scalar]:
    """`(scale, shift)` that brings PRM scores to the scale of returns, to make a critic of a PRM.

    Least squares of returns on scores over the masked tokens:
    scale = max(Cov(scores, returns) / Var(scores), 0), shift = mean(returns) - scale mean(scores).

    The scale is never negative: a PRM that disagrees with the returns gives scale 0 rather than a
    critic that is it upside down. Scores that do not vary (to float32 precision) give scale 0 too,
    and then the shift is the mean return.

    Source: ours; that a critic started from a reward model is biased: VC-PPO, arXiv 2503.01491.
    """
    scores, returns = _masked(scores, mask), _masked(returns, mask)
    score_mean, return_mean = masked_mean(scores, mask), masked_mean(returns, mask)
    variance = _variance(scores, mask)
    covariance = masked_mean((scores - score_mean) * (returns - return_mean), mask)
    varies = variance > 1e-12 * jnp.square(score_mean)
    slope = covariance / jnp.where(varies, variance, 1.0)
    scale = jnp.where(varies, jnp.maximum(slope, 0.0), 0.0)
    return scale, return_mean - scale * score_mean


def _variance(x: Array, mask: Array) -> Array:
    return masked_mean(jnp.square(x - masked_mean(x, mask)), mask)


def _masked(x: Array, mask: Array) -> Array:
    return jnp.where(mask, x.astype(jnp.float32), 0.0)
