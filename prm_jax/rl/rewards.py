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

from prm_jax.rl.dense import DenseForm, dense_rewards
from prm_jax.types import Verdict

# What RLTF's table gives to a failing program; a passing one has 1.
NO_PARSE, RUNTIME_ERROR, NO_TEST_PASSED = -1.0, -0.6, -0.3
_SYNTAX_ERRORS = ("SyntaxError", "IndentationError", "TabError")


def partial_credit(verdict: Verdict) -> float:
    """The outcome of a program with credit for the tests that it passed, in [-1, 1].

    1 if it passes; -0.3 + 1.3 tests_passed / tests_total if only answers are wrong; -0.6 if it
    raised an error or was stopped (time, memory, a forbidden call); -1 if it cannot be parsed.

    Source: RLTF, arXiv 2307.04349, its coarse-grained and adaptive feedback.
    """
    match verdict.status:
        case "passed":
            return 1.0
        case "failed":
            share = verdict.tests_passed / max(verdict.tests_total, 1)
            return NO_TEST_PASSED + (1 - NO_TEST_PASSED) * share
        case "error" if verdict.message.startswith(_SYNTAX_ERRORS):
            return NO_PARSE
    return RUNTIME_ERROR


def partial_credit_gap(tests_total: int) -> float:
    """What a passing program has before the best failing one, under `partial_credit`.

    1.3 / tests_total: the best failing program passes all tests but one. Dense weights with
    fail_high - pass_low + 1 below the gap (`process_reward_bounds`) rank no failing program above
    a passing one.
    """
    return (1 - NO_TEST_PASSED) / max(tests_total, 1)


class RewardBounds(NamedTuple):
    """Range of outcome + dense reward of a whole response, for failing and for passing ones."""

    fail_low: float
    fail_high: float
    pass_low: float
    pass_high: float


def process_reward_bounds(
    *,
    lam_fail: float,
    lam_pass: float,
    form: DenseForm = "value",
    length_normalised: bool = True,
    max_steps: int = 1,
) -> RewardBounds:
    """The range of a response's undiscounted reward without KL, for outcomes 0 and 1.

    The dense rewards of a response sum to lam times a number in [-1, 1] (most forms), in
    [0, 1] (good_prefix), or in [-max_steps, max_steps] (value, not normalised). So failing
    responses earn within [-lam_fail, lam_fail] and passing ones within [1 - lam_pass, 1 + lam_pass]
    in these forms. No failing response outranks a passing one iff fail_high < pass_low:
    lam_fail + lam_pass < 1 there, lam_fail < 1 with good_prefix, and max_steps (lam_fail +
    lam_pass) < 1 without the 1 / M. A discount widens no range of the dense rewards; it lowers the
    outcome, to no less than gamma^(tokens - 1).
    """
    high = 1.0 if length_normalised or form != "value" else float(max_steps)
    low = 0.0 if form == "good_prefix" else -high
    return RewardBounds(lam_fail * low, lam_fail * high, 1 + lam_pass * low, 1 + lam_pass * high)


def kl_penalties(
    logp: Float[Array, "B T"],
    ref_logp: Float[Array, "B T"],
    completion_mask: Bool[Array, "B T"],
    kl_coef: ScalarLike,
) -> Float[Array, "B T"]:
    """-kl_coef (logp[b,t] - ref_logp[b,t]) at every completion token, float32, 0 elsewhere."""
    log_ratio = ref_logp.astype(jnp.float32) - logp.astype(jnp.float32)
    return jnp.where(completion_mask, kl_coef * log_ratio, 0.0)


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
    form: DenseForm = "value",
    length_normalised: bool = True,
    tau: ScalarLike = 0.1,
    error_threshold: ScalarLike = 0.0,
) -> tuple[Float[Array, "B T"], dict[str, Float[Array, ""]]]:
    """The reward of every completion token, float32, 0 elsewhere.

    r[b,t] = outcome[b] at the last completion token
           + lam[b] clip(prm_scores[b,t], -1, 1) / M[b] at step ends, or another form
           - kl_coef (logp[b,t] - ref_logp[b,t]) at every completion token

    lam is lam_pass where the outcome is at least 1 (all tests pass) and lam_fail elsewhere, so one
    of them at 0 is a gate: the process counts in failing or in passing responses only. M counts
    the step ends inside the completion; the other forms are those of `dense_rewards`. The KL
    penalty is charged here and nowhere else.

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

    lam = jnp.where(outcome >= 1, lam_pass, lam_fail).astype(jnp.float32)
    line = dense_rewards(
        prm_scores,
        step,
        lam,
        form=form,
        length_normalised=length_normalised,
        tau=tau,
        error_threshold=error_threshold,
    )
    parts = {
        "reward/outcome": jnp.where(last, outcome[:, None], 0.0),
        "reward/line": line,
        "reward/kl": kl_penalties(logp, ref_logp, mask, kl_coef),
    }
    rewards = parts["reward/outcome"] + parts["reward/line"] + parts["reward/kl"]

    placed = mask.any(axis=1)
    n_rows = jnp.maximum(placed.sum(), 1)
    metrics = {name: part.sum() / n_rows for name, part in parts.items()}
    metrics["reward/total"] = rewards.sum() / n_rows
    metrics["reward/unplaced"] = jnp.where(placed, 0.0, jnp.abs(outcome)).sum()
    return rewards, metrics
