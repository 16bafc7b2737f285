"""Dense rewards: how the PRM's scores at the line ends of a response become rewards there.

The paper pays each line its score over the number of lines. The other forms pay for progress, for
the worst line only, for the lines before the first error, or for lines relative to their plan. In
every form but one (scores that are not divided by the number of lines) the rewards of a whole
response stay within its weight, so that writing more lines earns nothing and the outcome keeps its
rank (`rewards.process_reward_bounds`).
"""

from typing import Literal, assert_never

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Real, ScalarLike

DenseForm = Literal["value", "progress", "min", "good_prefix", "plan"]


def dense_rewards(
    prm_scores: Real[Array, "B T"],
    step: Bool[Array, "B T"],
    lam: Float[Array, "B"],
    *,
    form: DenseForm = "value",
    length_normalised: bool = True,
    tau: ScalarLike = 0.1,
    error_threshold: ScalarLike = 0.0,
) -> Float[Array, "B T"]:
    """The reward at each step end, float32, 0 elsewhere; lam is the weight of each response.

    With R_m = clip(prm_scores, -1, 1) at the m-th of the M step ends that `step` marks:

    - value: lam R_m / M, or lam R_m if not `length_normalised` (arXiv 2410.17621, section 3.3; the
      1 / M is what keeps the policy from adding lines).
    - progress: lam (R_m - R_{m-1}) with R_0 = 0. It telescopes: a response earns lam R_M, whatever
      its lines. It is the shaping by potentials of Ng et al. (1999), at a discount of 1 and but for
      the last potential, which they take to be 0, and the progress of PAV (arXiv 2410.08146).
    - min: lam w_m R_m with w = softmax(-R / tau) over the steps: nearly all goes to the worst step,
      and a response earns about lam min R (PURE, arXiv 2504.15275).
    - good_prefix: lam at the last step before the first with R_m < error_threshold, 0 elsewhere, so
      that the return is lam up to there and 0 after. The PRM only says where the first error is; a
      response whose first step is one earns nothing (VPPO, arXiv 2601.18984: 0.5 in failing
      responses). Comments, trained to score 0, count as errors if they fall below the threshold.
    - plan: lam R_1 at the first step, the plan, and lam (R_m - R_1) / (M - 1) at each step after
      it, so that a line is held against what its plan was worth: lines of a hopeless plan earn
      nothing for being lost. A response earns lam times the mean of R_2 ... R_M, or lam R_1 if the
      plan is all there is.

    Scores of +-inf clip to +-1. A NaN at a step end stays a NaN; scores elsewhere are not read.
    """
    scores = jnp.clip(prm_scores.astype(jnp.float32), -1, 1)
    weight = lam[:, None]
    match form:
        case "value":
            n_steps = jnp.maximum(step.sum(axis=1, keepdims=True), 1) if length_normalised else 1
            reward = weight * scores / n_steps
        case "progress":
            reward = weight * (scores - _score_before(scores, step))
        case "min":
            reward = weight * _worst_step_weights(scores, step, tau) * scores
        case "good_prefix":
            reward = weight * _ends_good_prefix(scores, step, error_threshold)
            reward = jnp.where(jnp.isnan(scores), scores, reward)
        case "plan":
            n_after = jnp.cumsum(step, axis=1)
            first = step & (n_after == 1)
            plan = jnp.where(first, scores, 0.0).sum(axis=1, keepdims=True)
            n_lines = jnp.maximum(step.sum(axis=1, keepdims=True) - 1, 1)
            reward = weight * jnp.where(first, scores, (scores - plan) / n_lines)
        case _:
            assert_never(form)
    return jnp.where(step, reward, 0.0)


def _score_before(scores: Array, step: Array) -> Array:
    """The score at the last step end before each token; 0 where there is none."""
    columns = jnp.arange(step.shape[1])
    latest = lax.cummax(jnp.where(step, columns, -1), axis=1)
    before = jnp.pad(latest[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    found = jnp.take_along_axis(scores, jnp.maximum(before, 0), axis=1)
    return jnp.where(before >= 0, found, 0.0)


def _worst_step_weights(scores: Array, step: Array, tau: ScalarLike) -> Array:
    """softmax(-scores / tau) over the steps of each row; 0 elsewhere and in a row without steps."""
    # Subtracted before the division: a compiler that fuses the two otherwise leaves a rest of the
    # rounding of -scores / tau, and exp of it overflows where tau is small.
    lowest = jnp.where(step, scores, jnp.inf).min(axis=1, keepdims=True)
    raw = jnp.where(step, jnp.exp(jnp.where(step, lowest - scores, 0.0) / tau), 0.0)
    return raw / jnp.where(step.any(axis=1, keepdims=True), raw.sum(axis=1, keepdims=True), 1.0)


def _ends_good_prefix(scores: Array, step: Array, error_threshold: ScalarLike) -> Array:
    """1 at the last step before the first one that scores below the threshold."""
    errors = jnp.cumsum(step & (scores < error_threshold), axis=1)
    good = step & (errors == 0)
    n_after = jnp.cumsum(good[:, ::-1], axis=1)[:, ::-1]  # good steps from here on
    return (good & (n_after == 1)).astype(jnp.float32)
