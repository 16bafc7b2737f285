"""Rewards by hand, the bound that protects the outcome, and the faults that others have had."""

import functools

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_jax.rl.losses import ppo_policy_loss
from prm_jax.rl.rewards import (
    partial_credit,
    partial_credit_gap,
    process_reward_bounds,
    token_rewards,
)
from prm_jax.types import Verdict

B, T = 3, 6
run_jitted = jax.jit(token_rewards)


def grid(rows, dtype=jnp.float32):
    return jnp.array(rows, dtype=dtype)


def bits(*rows):
    return jnp.array([[c == "1" for c in row] for row in rows])


def rewards_of(outcome, scores, line_end, mask, logp=None, ref_logp=None, **scalars):
    zeros = jnp.zeros(mask.shape)
    settings_ = {"lam_fail": 0.25, "lam_pass": 0.025, "kl_coef": 0.0} | scalars
    return run_jitted(
        outcome,
        scores,
        line_end,
        mask,
        zeros if logp is None else logp,
        zeros if ref_logp is None else ref_logp,
        **settings_,
    )


def test_all_three_terms_by_hand():
    # Row 0 fails: two steps, each 0.25 * R / 2; scores 0.8 and -4, which clips to -1.
    # Row 1 passes: one step, 0.025 * 0.4 / 1; the outcome 1 lies on its last token.
    # KL at 0.5: row 0 has logp - ref = 0.2 at its first token, so -0.1 there.
    mask = bits("011110", "011000")
    rewards, metrics = rewards_of(
        grid([0, 1]),
        grid([[9, 9, 0.8, 9, -4, 9], [9, 9, 0.4, 9, 9, 9]]),
        bits("001010", "001000"),
        mask,
        grid([[7, -1, -1, -1, -1, 7], [7, -2, -2, 7, 7, 7]]),
        grid([[8, -1.2, -1, -1, -1, 8], [8, -2, -2, 8, 8, 8]]),
        kl_coef=0.5,
    )
    expected = [[0, -0.1, 0.1, 0, -0.125, 0], [0, 0, 1.01, 0, 0, 0]]
    np.testing.assert_allclose(rewards, expected, atol=1e-7)
    by_hand = {
        "reward/outcome": 0.5,
        "reward/line": (0.1 - 0.125 + 0.01) / 2,
        "reward/kl": -0.1 / 2,
        "reward/total": (1.01 - 0.125) / 2,
        "reward/unplaced": 0.0,
    }
    assert metrics.keys() == by_hand.keys()
    for name, value in by_hand.items():
        np.testing.assert_allclose(metrics[name], value, atol=1e-7, err_msg=name)


def test_it_is_the_same_with_and_without_jit():
    rng = np.random.default_rng(0)
    arrays = (
        grid(rng.integers(2, size=B)),
        grid(rng.normal(size=(B, T))),
        jnp.array(rng.random((B, T)) < 0.5),
        bits("011110", "000001", "111111"),
        grid(rng.normal(size=(B, T))),
        grid(rng.normal(size=(B, T))),
    )
    # Compiled, the weights are traced, so that a schedule of them needs no new compilation.
    eager = token_rewards(*arrays, lam_fail=0.25, lam_pass=0.025, kl_coef=0.1)
    jitted = run_jitted(*arrays, lam_fail=0.25, lam_pass=0.025, kl_coef=0.1)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), jitted, eager)


# -------------------------------------------------------------------- faults that others have had


def test_integer_rewards_are_not_truncated():
    mask = bits("0111")
    rewards, _ = token_rewards(
        jnp.array([0], dtype=jnp.int32),
        jnp.array([[0, 1, 1, -1]], dtype=jnp.int32),
        mask,
        mask,
        jnp.zeros((1, 4), jnp.bfloat16),
        jnp.zeros((1, 4), jnp.bfloat16),
        lam_fail=0.3,
        lam_pass=0,
        kl_coef=0,
    )
    assert rewards.dtype == jnp.float32
    np.testing.assert_allclose(rewards, [[0, 0.1, 0.1, -0.1]], atol=1e-7)


def test_fractional_outcomes_are_kept():
    # Partial credit is no pass: its line rewards have the weight of a failing response.
    mask = bits("11")
    for dtype, atol in ((jnp.float32, 1e-7), (jnp.bfloat16, 4e-3)):
        rewards, metrics = rewards_of(grid([0.99], dtype), grid([[1, 1]]), bits("10"), mask)
        np.testing.assert_allclose(rewards, [[0.25, 0.99]], atol=atol)
        assert all(x.dtype == jnp.float32 for x in (rewards, *metrics.values()))


def test_no_reward_is_written_on_a_masked_token():
    # Everything that is masked asks for a reward: line ends, NaN scores, infinite log-ratios.
    mask = bits("001100", "000000", "111111")
    junk = jnp.where(mask, 0.5, jnp.nan)
    rewards, metrics = rewards_of(
        grid([1, 0, 1]), junk, jnp.ones_like(mask), mask, junk, jnp.where(mask, 0.5, jnp.inf),
        kl_coef=0.1,
    )  # fmt: skip
    assert (np.asarray(rewards)[~np.asarray(mask)] == 0).all()
    assert np.isfinite(rewards).all() and all(np.isfinite(m) for m in metrics.values())
    # ... and what belongs to the row has not been lost with it: 1 + 0.025 * 0.5.
    np.testing.assert_allclose(rewards.sum(axis=1), [1.0125, 0, 1.0125], atol=1e-6)


def test_line_ends_outside_the_completion_do_not_count_as_lines():
    # Two line ends in the prompt: were they counted, the reward would be 0.25 / 3.
    rewards, _ = rewards_of(grid([0]), jnp.ones((1, 4)), bits("1110"), bits("0011"))
    np.testing.assert_allclose(rewards, [[0, 0, 0.25, 0]], atol=1e-7)


def test_kl_is_charged_exactly_once():
    rng = np.random.default_rng(1)
    logp, ref_logp = grid(rng.normal(size=(B, T))), grid(rng.normal(size=(B, T)))
    mask = bits("011110", "000001", "111111")
    rewards, metrics = rewards_of(
        jnp.zeros(B), jnp.zeros((B, T)), mask, mask, logp, ref_logp, kl_coef=0.3
    )
    expected = -0.3 * np.where(mask, logp - ref_logp, 0)
    np.testing.assert_allclose(rewards, expected, atol=1e-6)
    np.testing.assert_allclose(metrics["reward/kl"], expected.sum() / B, rtol=1e-5)
    # The policy's loss knows no reference: without advantages it has no gradient at all.
    gradient = jax.grad(
        lambda x: ppo_policy_loss(x, logp, jnp.zeros((B, T)), mask, clip_low=0.2, clip_high=0.2)[0]
    )(logp + 0.1)
    assert not gradient.any()


def test_eos_at_the_first_token_holds_the_outcome():
    rewards, metrics = rewards_of(grid([1]), jnp.zeros((1, 4)), bits("0000"), bits("0100"))
    assert rewards.tolist() == [[0, 1, 0, 0]]
    assert metrics["reward/outcome"] == 1


def test_the_outcome_lies_on_the_last_token_when_nothing_is_padded():
    rewards, _ = rewards_of(grid([1]), jnp.zeros((1, 3)), bits("000"), bits("011"))
    assert rewards.tolist() == [[0, 0, 1]]


def test_a_batch_of_one_is_a_row_of_a_larger_batch():
    rng = np.random.default_rng(2)
    scores, logp = grid(rng.normal(size=(B, T))), grid(rng.normal(size=(B, T)))
    mask = bits("011110", "000001", "111111")
    outcome = grid([0, 1, 0])
    whole, _ = rewards_of(outcome, scores, mask, mask, logp, kl_coef=0.1)
    for b in range(B):
        one, _ = rewards_of(
            outcome[b : b + 1], scores[b : b + 1], mask[b : b + 1], mask[b : b + 1],
            logp[b : b + 1], kl_coef=0.1,
        )  # fmt: skip
        np.testing.assert_allclose(one[0], whole[b], atol=1e-7)


def test_a_reward_that_found_no_token_is_counted():
    outcome, mask = grid([1, 0, -0.5]), bits("0110", "0000", "0000")
    rewards, metrics = rewards_of(outcome, jnp.zeros((3, 4)), mask, mask)
    assert not rewards[1:].any()
    assert metrics["reward/unplaced"] == 0.5
    assert metrics["reward/outcome"] == 1  # rows without tokens do not thin the means


def test_a_batch_without_any_token_is_finite():
    rewards, metrics = rewards_of(grid([0]), jnp.zeros((1, 2)), bits("11"), bits("00"))
    assert not rewards.any()
    assert all(value == 0 for value in metrics.values())


def test_a_nan_score_at_a_line_end_is_not_hidden():
    mask = bits("11")
    rewards, metrics = rewards_of(grid([0]), grid([[jnp.nan, 0]]), bits("10"), mask)
    assert np.isnan(rewards[0, 0]) and rewards[0, 1] == 0
    assert np.isnan(metrics["reward/line"]) and metrics["reward/outcome"] == 0


# ------------------------------------------------------------------------------------ the bound


@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    scores=hnp.arrays(np.float32, (B, T), elements=st.floats(width=32, allow_nan=False)),
    line_end=hnp.arrays(bool, (B, T)),
    length=hnp.arrays(np.int32, B, elements=st.integers(1, T)),
    lam_fail=st.floats(0, 0.999),
    share=st.floats(0, 1),
)
def test_no_failing_response_outranks_a_passing_one(scores, line_end, length, lam_fail, share):
    lam_pass = (0.999 - lam_fail) * share
    mask = np.arange(T) < length[:, None]
    totals = {}
    for outcome in (0.0, 1.0):
        rewards, _ = run_jitted(
            jnp.full(B, outcome), jnp.array(scores), jnp.array(line_end), jnp.array(mask),
            jnp.zeros((B, T)), jnp.zeros((B, T)),
            lam_fail=lam_fail, lam_pass=lam_pass, kl_coef=0.0,
        )  # fmt: skip
        totals[outcome] = np.asarray(rewards).sum(axis=1, dtype=np.float64)
    assert totals[0.0].max() < totals[1.0].min()
    bounds = process_reward_bounds(lam_fail=lam_fail, lam_pass=lam_pass)
    assert bounds.fail_high < bounds.pass_low
    assert (totals[0.0] >= bounds.fail_low - 1e-6).all()
    assert (totals[0.0] <= bounds.fail_high + 1e-6).all()
    assert (totals[1.0] >= bounds.pass_low - 1e-6).all()
    assert (totals[1.0] <= bounds.pass_high + 1e-6).all()


def test_the_bound_is_tight():
    mask = bits("1111", "1111")
    extreme = jnp.array([[jnp.inf] * 4, [-jnp.inf] * 4])
    rewards, _ = rewards_of(grid([0, 1]), extreme, mask, mask, lam_fail=0.6, lam_pass=0.5)
    bounds = process_reward_bounds(lam_fail=0.6, lam_pass=0.5)
    failing, passing = rewards.sum(axis=1)
    np.testing.assert_allclose(failing, bounds.fail_high, atol=1e-6)
    np.testing.assert_allclose(passing, bounds.pass_low, atol=1e-6)
    assert failing > passing  # weights of 1 and more together do let a failing program win


@pytest.mark.parametrize("n_lines", [1, 2, 5])
def test_more_lines_of_the_same_score_earn_nothing(n_lines):
    line_end = jnp.arange(T)[None] < n_lines
    rewards, _ = rewards_of(grid([0]), jnp.full((1, T), 0.5), line_end, jnp.ones((1, T), bool))
    np.testing.assert_allclose(rewards.sum(), 0.25 * 0.5, rtol=1e-6)


# --------------------------------------------------------------------------------- partial credit


@pytest.mark.parametrize(
    ("verdict", "outcome"),
    [
        (Verdict("passed", 4, 4), 1.0),
        (Verdict("failed", 3, 4), 0.675),  # -0.3 + 1.3 * 3 / 4
        (Verdict("failed", 2, 4), 0.35),
        (Verdict("failed", 0, 4), -0.3),
        (Verdict("failed", 0, 0), -0.3),
        (Verdict("error", 0, 4, message="ZeroDivisionError: division by zero (line 2)"), -0.6),
        (Verdict("error", 3, 4, message="ValueError: SyntaxError (line 2)"), -0.6),
        (Verdict("error", 0, 4, message="SyntaxError: '(' was never closed (line 2)"), -1.0),
        (Verdict("error", 0, 4, message="IndentationError: unexpected indent"), -1.0),
        (Verdict("error", 0, 4, message="TabError: inconsistent use of tabs"), -1.0),
        (Verdict("timeout", 2, 4), -0.6),
        (Verdict("memory", 2, 4), -0.6),
        (Verdict("forbidden", 0, 4), -0.6),
    ],
)
def test_the_table_of_partial_credit(verdict, outcome):
    assert partial_credit(verdict) == pytest.approx(outcome)


@pytest.mark.parametrize("n_tests", [1, 2, 6, 100])
def test_partial_credit_never_outranks_a_pass_and_the_gap_is_what_is_between(n_tests):
    verdicts = [Verdict("failed", n, n_tests) for n in range(n_tests)]
    verdicts += [Verdict("error", n_tests - 1, n_tests), Verdict("timeout", n_tests, n_tests)]
    best = max(partial_credit(verdict) for verdict in verdicts)
    assert 1 - best == pytest.approx(partial_credit_gap(n_tests))
    # Dense weights below the gap keep the order, whatever the PRM says.
    lam = 0.499 * partial_credit_gap(n_tests)
    mask = bits("1111", "1111")
    scores = jnp.array([[jnp.inf] * 4, [-jnp.inf] * 4])
    rewards, _ = rewards_of(grid([best, 1]), scores, mask, mask, lam_fail=lam, lam_pass=lam)
    failing, passing = rewards.sum(axis=1)
    assert failing < passing
