"""Rewards of a rollout, token by token: the outcome, the dense line rewards and the KL penalty.

Everything is on the `[B, T]` grid, and a reward is only ever written on a token of the completion.
The dense reward is bounded so that no PRM, however wrong, ranks a failing program above a passing
one; `process_reward_bounds` states the bound.

Source: arXiv 2410.17621, section 3.3.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Real, ScalarLike


class RewardBounds(NamedTuple):
    """Range of outcome + dense reward of a whole response, for failing and for passing ones."""

    fail_low: float
    fail_high: float
    pass_low: float
    pass_high: float


def process_reward_bounds(*, lam_fail: float, lam_pass: float) -> RewardBounds:
    """The range of a response's undiscounted reward without KL, for outcomes 0 and 1.

    sum_m lam * clip(R_m, -1, 1) / M lies in [-lam, lam], so failing responses earn within
    [-lam_fail, lam_fail] and passing ones within [1 - lam_pass, 1 + lam_pass]. No failing response
    outranks a passing one iff fail_high < pass_low, that is lam_fail + lam_pass < 1.
    """
    return RewardBounds(-lam_fail, lam_fail, 1 - lam_pass, 1 + lam_pass)


def token_rewards(
    outcome: Real[Array, "B"],
    prm_scores: Real[Array, "B T"],
    line_end: Bool[Array, "B T"],
    completion_mask: Bool[Array, "B T"],
    logp: Float[Array, "B T"],
    ref_logp: Float[Array, "B T"],
    *,
    lam_fail: ScalarLike,
    lam_pass: ScalarLike,
    kl_coef: ScalarLike,
) -> tuple[Float[Array, "B T"], dict[str, Float[Array, ""]]]:
    """The reward of every completion token, float32, 0 elsewhere.

    r[b,t] = outcome[b] at the last completion token
           + lam[b] clip(prm_scores[b,t], -1, 1) / M[b] at step ends
           - kl_coef (logp[b,t] - ref_logp[b,t]) at every completion token

    lam is lam_pass where the outcome is at least 1 (all tests pass) and lam_fail elsewhere; M
    counts the step ends inside the completion. The KL penalty is charged here and nowhere else.

    The last token is the EOS, also if it is the first one, or the last token before the cut. A row
    without completion tokens has no action to reward: its rewards are 0, it does not enter the
    metrics' means (such rows pad a batch), and `reward/unplaced` is the sum of |outcome| over
    such rows: 0 unless a reward found no token. Scores of +-inf clip to +-1. A NaN that is read
    (a score at a step end, a log-prob of the completion) stays a NaN, so that the check of
    metrics meets it; NaNs elsewhere are not read.

    Metrics: per-response means of the three sums and of their total, and `reward/unplaced`.
    """
    outcome = outcome.astype(jnp.float32)  # what is added to an integer would be truncated
    mask = completion_mask
    n_after = jnp.cumsum(mask[:, ::-1], axis=1)[:, ::-1]  # completion tokens from here on
    last = mask & (n_after == 1)
    step = mask & line_end

    n_steps = jnp.maximum(step.sum(axis=1, keepdims=True), 1)
    lam = jnp.where(outcome >= 1, lam_pass, lam_fail).astype(jnp.float32)
    log_ratio = ref_logp.astype(jnp.float32) - logp.astype(jnp.float32)
    scores = jnp.clip(prm_scores.astype(jnp.float32), -1, 1)

    parts = {
        "reward/outcome": jnp.where(last, outcome[:, None], 0.0),
        "reward/line": jnp.where(step, lam[:, None] * scores / n_steps, 0.0),
        "reward/kl": jnp.where(mask, kl_coef * log_ratio, 0.0),
    }
    rewards = parts["reward/outcome"] + parts["reward/line"] + parts["reward/kl"]

    placed = mask.any(axis=1)
    n_rows = jnp.maximum(placed.sum(), 1)
    metrics = {name: part.sum() / n_rows for name, part in parts.items()}
    metrics["reward/total"] = rewards.sum() / n_rows
    metrics["reward/unplaced"] = jnp.where(placed, 0.0, jnp.abs(outcome)).sum()
    return rewards, metrics
