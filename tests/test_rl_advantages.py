"""GAE against a NumPy loop and its two limits; whitening against its definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax.rl.advantages import (
    gae,
    group_advantages,
    length_adaptive_lambda,
    rewards_to_go,
    whiten,
)


def bits(*rows):
    return np.array([[c == "1" for c in row] for row in rows])


MASK = bits("00111100", "00011111", "00100000", "00000000", "01101011")


def random_inputs(seed):
    rng = np.random.default_rng(seed)
    rewards, values = rng.normal(size=(2, *MASK.shape)).astype(np.float32)
    return rewards, values


def gae_loop(rewards, values, mask, gamma, gae_lambda):
    """The definition, row by row: A_t is the sum over l of (gamma lambda)^l delta_{t+l}."""
    advantages = np.zeros(mask.shape)
    for b in range(mask.shape[0]):
        tokens = np.flatnonzero(mask[b])
        r, v = rewards[b, tokens].astype(float), np.append(values[b, tokens].astype(float), 0.0)
        delta = [r[t] + gamma * v[t + 1] - v[t] for t in range(len(tokens))]
        for t, token in enumerate(tokens):
            advantages[b, token] = sum(
                (gamma * gae_lambda) ** step * d for step, d in enumerate(delta[t:])
            )
    return advantages


def test_gae_by_hand():
    # gamma 0.5, lambda 0.5. Rewards 1, 2, 4; values 2, 4, 8.
    # delta_3 = 4 - 8 = -4; delta_2 = 2 + 4 - 4 = 2; delta_1 = 1 + 2 - 2 = 1
    # A_3 = -4; A_2 = 2 - 4 / 4 = 1; A_1 = 1 + 1 / 4 = 1.25
    advantages, returns = gae(
        jnp.array([[9.0, 1, 2, 4, 9]]), jnp.array([[9.0, 2, 4, 8, 9]]),
        jnp.array(bits("01110")), gamma=0.5, gae_lambda=0.5,
    )  # fmt: skip
    assert advantages.tolist() == [[0, 1.25, 1, -4, 0]]
    assert returns.tolist() == [[0, 3.25, 5, 4, 0]]


@pytest.mark.parametrize("gamma, gae_lambda", [(1, 1), (1, 0), (1, 0.95), (0.9, 0.8), (0, 0.5)])
def test_gae_matches_a_loop(gamma, gae_lambda):
    rewards, values = random_inputs(0)
    run = jax.jit(functools.partial(gae, gamma=gamma, gae_lambda=gae_lambda))
    advantages, returns = run(jnp.array(rewards), jnp.array(values), jnp.array(MASK))
    expected = gae_loop(rewards, values, MASK, gamma, gae_lambda)
    np.testing.assert_allclose(advantages, expected, atol=1e-5)
    np.testing.assert_allclose(returns, np.where(MASK, expected + values, 0), atol=1e-5)


def test_lambda_1_gives_monte_carlo_returns_minus_values():
    rewards, values = random_inputs(1)
    arrays = jnp.array(rewards), jnp.array(values), jnp.array(MASK)
    advantages, returns = gae(*arrays, gamma=0.9, gae_lambda=1.0)
    to_go = rewards_to_go(arrays[0], arrays[2], gamma=0.9)
    np.testing.assert_allclose(returns, to_go, atol=1e-5)
    np.testing.assert_allclose(advantages, np.where(MASK, to_go - values, 0), atol=1e-5)


def test_lambda_0_gives_td_errors():
    rewards, values = random_inputs(2)
    rewards, values, mask = rewards[:4], values[:4], MASK[:4]  # the rows without a gap
    advantages, _ = gae(
        jnp.array(rewards), jnp.array(values), jnp.array(mask), gamma=0.9, gae_lambda=0.0
    )
    next_values = np.zeros_like(values)
    next_values[:, :-1] = np.where(mask[:, 1:], values[:, 1:], 0)  # 0 after the last token
    td = np.where(mask, rewards + 0.9 * next_values - values, 0)
    np.testing.assert_allclose(advantages, td, atol=1e-5)


def test_perfect_values_leave_no_advantage():
    rewards, _ = random_inputs(3)
    values = rewards_to_go(jnp.array(rewards), jnp.array(MASK), gamma=0.9)
    advantages, returns = gae(
        jnp.array(rewards), values, jnp.array(MASK), gamma=0.9, gae_lambda=0.7
    )
    np.testing.assert_allclose(advantages, 0, atol=1e-5)
    np.testing.assert_allclose(returns, values, atol=1e-5)


def test_rewards_to_go_by_hand():
    # 4; 2 + 4 / 2 = 4; 1 + 4 / 2 = 3
    got = rewards_to_go(jnp.array([[9.0, 1, 2, 4, 9]]), jnp.array(bits("01110")), gamma=0.5)
    assert got.tolist() == [[0, 3, 4, 4, 0]]


def test_a_reward_reaches_every_token_before_it():
    rewards = jnp.array([[0.0, 0, 0, 1, 0]])
    assert rewards_to_go(rewards, jnp.array(bits("01110")), gamma=1.0).tolist() == [[0, 1, 1, 1, 0]]


def test_padding_is_never_read():
    rewards, values = random_inputs(4)
    clean = gae(jnp.array(rewards), jnp.array(values), jnp.array(MASK), gamma=0.9, gae_lambda=0.8)
    dirty = gae(
        jnp.array(np.where(MASK, rewards, np.nan)), jnp.array(np.where(MASK, values, np.inf)),
        jnp.array(MASK), gamma=0.9, gae_lambda=0.8,
    )  # fmt: skip
    for a, b in zip(clean, dirty, strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.asarray(a)[~MASK].any()


def test_where_the_padding_lies_does_not_matter():
    rewards, values = random_inputs(5)
    left, right = bits("000111"), bits("111000")
    run = functools.partial(gae, gamma=0.9, gae_lambda=0.8)
    for row in range(2):
        r, v = np.zeros((2, 1, 6), np.float32), np.zeros((2, 1, 6), np.float32)
        for i, mask in enumerate((left, right)):
            r[i][mask], v[i][mask] = rewards[row, :3], values[row, :3]
        a, _ = run(jnp.array(r[0]), jnp.array(v[0]), jnp.array(left))
        b, _ = run(jnp.array(r[1]), jnp.array(v[1]), jnp.array(right))
        np.testing.assert_allclose(np.asarray(a)[left], np.asarray(b)[right], atol=1e-6)


def test_integer_rewards_are_not_truncated():
    advantages, _ = gae(
        jnp.array([[0, 1]]), jnp.array([[0.25, 0.5]]), jnp.ones((1, 2), bool),
        gamma=0.5, gae_lambda=1,
    )  # fmt: skip
    # A_2 = 1 - 0.5; A_1 = 0 + 0.5 * 0.5 - 0.25 + 0.5 * 0.5
    assert advantages.tolist() == [[0.25, 0.5]]


def test_a_batch_of_one_is_a_row_of_a_larger_batch():
    rewards, values = random_inputs(6)
    arrays = jnp.array(rewards), jnp.array(values), jnp.array(MASK)
    whole, _ = gae(*arrays, gamma=0.9, gae_lambda=0.8)
    for b in range(len(MASK)):
        one, _ = gae(*(x[b : b + 1] for x in arrays), gamma=0.9, gae_lambda=0.8)
        np.testing.assert_allclose(one[0], whole[b], atol=1e-6)


# ------------------------------------------------------------------------------------ whitening


def test_whitened_tokens_have_mean_0_and_variance_1():
    x = np.where(MASK, random_inputs(7)[0] * 5 + 3, np.nan)
    white = np.asarray(jax.jit(whiten)(jnp.array(x), jnp.array(MASK)))
    np.testing.assert_allclose(white[MASK].mean(), 0, atol=1e-6)
    np.testing.assert_allclose(white[MASK].std(), 1, rtol=1e-5)
    np.testing.assert_allclose(white[MASK], (x[MASK] - x[MASK].mean()) / x[MASK].std(), atol=1e-5)
    assert not white[~MASK].any()


def test_whitening_does_not_see_scale_or_shift():
    x, mask = jnp.array(random_inputs(8)[0]), jnp.array(MASK)
    np.testing.assert_allclose(whiten(x, mask), whiten(7 * x - 2, mask), atol=1e-4)


@pytest.mark.parametrize("mask", ["0000010", "0000111", "0000000", "1111111"])
def test_whitening_a_constant_or_a_single_token_gives_0(mask):
    # Seven times 0.7 has a float32 mean of 0.7 - 6e-8: the rounding must not be blown up to 1.
    white = whiten(jnp.full((1, 7), 0.7), jnp.array(bits(mask)))
    np.testing.assert_allclose(white, 0, atol=1e-3)


# ------------------------------------------------------------------------- lambda of each response


def test_a_lambda_for_each_row_is_that_of_the_row_alone():
    rewards, values = random_inputs(8)
    lambdas = np.linspace(0, 1, len(MASK)).astype(np.float32)
    together = gae(
        jnp.array(rewards), jnp.array(values), jnp.array(MASK),
        gamma=0.9, gae_lambda=jnp.array(lambdas),
    )  # fmt: skip
    for b, gae_lambda in enumerate(lambdas):
        alone = gae_loop(rewards, values, MASK, 0.9, float(gae_lambda))[b]
        np.testing.assert_allclose(together[0][b], alone, atol=1e-5)


def test_length_adaptive_lambda_by_hand():
    # alpha 0.5: 1 - 1 / (0.5 n) for n = 8, 4, 3, 2, 1, 0 tokens.
    mask = bits("11111111", "01111000", "01100100", "00000011", "10000000", "00000000")
    found = length_adaptive_lambda(jnp.array(mask), 0.5)
    np.testing.assert_allclose(found, [0.75, 0.5, 1 / 3, 0, 0, 0], atol=1e-6)


# -------------------------------------------------------------------------------- without a critic


def test_group_advantages_with_outcomes_are_those_of_grpo():
    # Returns 1, 0, 0, 1 of the first prompt: mean 1/2, deviation 1/2. Second: 0, 0, 1, 0: mean 1/4,
    # variance 3/16. Every token has its response's advantage.
    mask = bits("0111", "0100", "0110", "0111", "0111", "0010", "0011", "0110")
    last = np.array([3, 1, 2, 3, 3, 2, 3, 2])
    outcome = np.array([1, 0, 0, 1, 0, 0, 1, 0], np.float32)
    rewards = np.zeros(mask.shape, np.float32)
    rewards[np.arange(8), last] = outcome
    found = group_advantages(jnp.array(rewards), jnp.array(mask), group_size=4, gamma=1.0)
    low, high = -0.25 / np.sqrt(3 / 16), 0.75 / np.sqrt(3 / 16)
    wanted = np.array([1, -1, -1, 1, low, low, high, low])
    np.testing.assert_allclose(found, np.where(mask, wanted[:, None], 0), atol=1e-5)


def group_loop(rewards, mask, size, gamma):
    advantages = np.zeros(mask.shape)
    for start in range(0, len(mask), size):
        rows = [b for b in range(start, start + size) if mask[b].any()]
        to_go = {}
        for b in rows:
            tokens = np.flatnonzero(mask[b])
            for i, t in enumerate(tokens):
                to_go[b, t] = sum(
                    gamma**step * float(rewards[b, u]) for step, u in enumerate(tokens[i:])
                )
        totals = [to_go[b, np.flatnonzero(mask[b])[0]] for b in rows]
        for (b, t), value in to_go.items():
            advantages[b, t] = (value - np.mean(totals)) / np.sqrt(np.var(totals) + 1e-8)
    return advantages


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("size", [2, 3, 6])
def test_group_advantages_match_a_loop(gamma, size):
    rng = np.random.default_rng(9)
    mask = rng.random((12, 8)) < 0.6
    mask[4] = False  # a row that pads the batch
    rewards = np.where(mask, rng.normal(size=mask.shape), np.nan).astype(np.float32)
    run = jax.jit(functools.partial(group_advantages, group_size=size, gamma=gamma))
    found = np.asarray(run(jnp.array(rewards), jnp.array(mask)))
    np.testing.assert_allclose(found, group_loop(rewards, mask, size, gamma), atol=1e-4)
    # Within a prompt, those of the first tokens sum to 0.
    first = mask & (np.cumsum(mask, axis=1) == 1)
    sums = np.where(first, found, 0).sum(axis=1).reshape(-1, size).sum(axis=1)
    np.testing.assert_allclose(sums, 0, atol=1e-4)


def test_group_advantages_do_not_know_the_scale_of_rewards_nor_other_groups():
    rng = np.random.default_rng(10)
    rewards, mask = rng.normal(size=(6, 5)).astype(np.float32), np.ones((6, 5), bool)
    run = functools.partial(group_advantages, mask=jnp.array(mask), group_size=3, gamma=1.0)
    found = run(jnp.array(rewards))
    np.testing.assert_allclose(run(jnp.array(0.01 * rewards)), found, rtol=1e-2)
    rewards[:, -1] += np.repeat([5.0, -3.0], 3)  # easy and hard prompts
    np.testing.assert_allclose(run(jnp.array(rewards))[:, 0], found[:, 0], atol=1e-4)


def test_a_group_of_one_mind_has_no_advantage():
    rewards = jnp.zeros((4, 3)).at[:2, -1].set(1.0)
    found = group_advantages(rewards, jnp.ones((4, 3), bool), group_size=2, gamma=1.0)
    assert not np.asarray(found).any()


def test_rows_that_are_no_whole_number_of_groups_are_refused():
    with pytest.raises(ValueError, match="group_size = 3 .* divide the 4 rows"):
        group_advantages(jnp.zeros((4, 2)), jnp.ones((4, 2), bool), group_size=3, gamma=1.0)
