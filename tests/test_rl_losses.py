"""Losses by hand, and their gradients against derivatives by hand and finite differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from prm_jax.rl.losses import (
    explained_variance,
    masked_mean,
    next_token_loss,
    ppo_policy_loss,
    ppo_value_loss,
    prm_loss,
    recalibrate,
    sampler_weights,
)

MASK = np.array([[c == "1" for c in row] for row in ("00111100", "00011111", "00100000")])
N = MASK.sum()


def random_grids(n, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    return [jnp.array(x, jnp.float32) for x in scale * rng.normal(size=(n, *MASK.shape))]


def row(*values):
    return jnp.array([values], jnp.float32)


policy_loss = functools.partial(ppo_policy_loss, clip_low=0.2, clip_high=0.3)


# ---------------------------------------------------------------------------------------- means


def test_masked_mean_is_the_mean_of_what_is_masked():
    (x,) = random_grids(1)
    np.testing.assert_allclose(masked_mean(x, jnp.array(MASK)), np.asarray(x)[MASK].mean(), 1e-6)
    assert masked_mean(jnp.array([1, 2]), jnp.array([True, True])) == 1.5  # integers too
    assert masked_mean(x, jnp.zeros(MASK.shape, bool)) == 0


def test_masked_mean_reads_no_padding_forward_or_backward():
    x = row(1.0, jnp.nan, 3.0)
    mask = jnp.array([[True, False, True]])
    value, gradient = jax.value_and_grad(masked_mean)(x, mask)
    assert value == 2
    assert gradient.tolist() == [[0.5, 0, 0.5]]


def test_next_token_loss_of_a_uniform_model_is_log_vocab():
    logp = jnp.full(MASK.shape, -np.log(1024))
    np.testing.assert_allclose(next_token_loss(logp, jnp.array(MASK)), np.log(1024), 1e-6)


# ---------------------------------------------------------------------------------------- policy


def test_policy_loss_by_hand():
    # ratios 0.5, 2, 0.5, 2, clipped to [0.8, 1.3], with advantages 1, 2, -1, -1:
    # min(0.5, 0.8) = 0.5; min(4, 2.6) = 2.6; min(-0.5, -0.8) = -0.8; min(-2, -1.3) = -2
    # loss = -(0.5 + 2.6 - 0.8 - 2) / 4 = -0.075; the clip binds at the second and the third
    logp = jnp.log(row(0.5, 2, 0.5, 2))
    mask = jnp.ones((1, 4), bool)
    loss, metrics = policy_loss(logp, row(0, 0, 0, 0), row(1, 2, -1, -1), mask)
    np.testing.assert_allclose(loss, -0.075, rtol=1e-5)
    np.testing.assert_allclose(metrics["policy/clip_fraction"], 0.5)
    np.testing.assert_allclose(metrics["policy/ratio_mean"], 1.25, rtol=1e-6)
    # k3: 0.5 - 1 + log 2 and 2 - 1 - log 2: their mean is 1/4
    np.testing.assert_allclose(metrics["policy/approx_kl"], 0.25, rtol=1e-5)


def test_clipped_ratios_have_no_gradient_on_the_proper_side():
    # The same ratios; d/dlogp of -rho A / 4 is -rho A / 4 where the clip does not bind.
    logp = jnp.log(row(0.5, 2, 0.5, 2))
    mask = jnp.ones((1, 4), bool)
    gradient = jax.grad(lambda x: policy_loss(x, row(0, 0, 0, 0), row(1, 1, -1, -1), mask)[0])(logp)
    np.testing.assert_allclose(gradient, [[-0.125, 0, 0, 0.5]], rtol=1e-6)


def test_at_ratio_1_the_gradient_is_the_policy_gradient():
    logp, advantages = random_grids(2)
    mask = jnp.array(MASK)
    (loss, metrics), gradient = jax.value_and_grad(policy_loss, has_aux=True)(
        logp, logp, advantages, mask
    )
    np.testing.assert_allclose(gradient, np.where(MASK, -advantages / N, 0), atol=1e-7)
    np.testing.assert_allclose(loss, -masked_mean(advantages, mask), atol=1e-6)
    assert metrics["policy/clip_fraction"] == metrics["policy/approx_kl"] == 0
    assert metrics["policy/ratio_mean"] == 1


def test_policy_gradient_matches_finite_differences():
    logp, advantages = random_grids(2, seed=1)
    (noise,) = random_grids(1, seed=2, scale=0.03)  # ratios well inside the clip: a smooth loss
    mask = jnp.array(MASK)
    check_grads(
        jax.jit(lambda x: policy_loss(x, logp, advantages, mask)[0]), (logp + noise,), order=1,
        modes=["rev"], atol=1e-2, rtol=1e-2,
    )  # fmt: skip


def test_policy_loss_is_a_mean_over_tokens_not_over_rows():
    # One token of advantage 1 in row 0, three of -1 in row 1: -(1 - 3) / 4; a mean of rows gives 0.
    mask = jnp.array([[True, False, False], [True, True, True]])
    zeros = jnp.zeros((2, 3))
    loss, _ = policy_loss(zeros, zeros, jnp.array([[1.0, 9, 9], [-1, -1, -1]]), mask)
    np.testing.assert_allclose(loss, 0.5)


def test_the_kl_estimate_is_near_the_kl():
    rng = np.random.default_rng(0)
    old, new = rng.dirichlet(np.ones(5), size=2)
    tokens = rng.choice(5, p=old, size=(1, 20_000))
    _, metrics = policy_loss(
        jnp.log(new)[tokens], jnp.log(old)[tokens], jnp.zeros(tokens.shape),
        jnp.ones(tokens.shape, bool),
    )  # fmt: skip
    exact = (old * np.log(old / new)).sum()
    np.testing.assert_allclose(metrics["policy/approx_kl"], exact, rtol=0.1)
    np.testing.assert_allclose(metrics["policy/ratio_mean"], 1, atol=0.05)  # E_old[new / old]


@pytest.mark.parametrize("junk", [jnp.nan, jnp.inf, -jnp.inf])
def test_padding_reaches_no_loss_and_no_gradient(junk):
    a, b, c, d = random_grids(4, seed=3)
    mask = jnp.array(MASK)
    losses = [
        lambda x, y, z, w: policy_loss(x, y, z, mask),
        lambda x, y, z, w: ppo_value_loss(x, y, z, mask, value_clip=0.2),
        lambda x, y, z, w: (prm_loss(x, w, mask.astype(jnp.float32)), {}),
        lambda x, y, z, w: (next_token_loss(x, mask), {}),
    ]
    dirty = [jnp.where(mask, x, junk) for x in (a, b, c, d)]
    for loss in losses:
        run = jax.jit(jax.value_and_grad(loss, has_aux=True))
        expected, got = run(a, b, c, d), run(*dirty)
        jax.tree.map(np.testing.assert_array_equal, got, expected)
        gradient = np.asarray(got[1])
        assert not gradient[~MASK].any() and gradient[MASK].any()


def test_a_batch_of_one_token():
    mask = jnp.array([[False, True, False]])
    zeros = jnp.zeros((1, 3))
    loss, _ = policy_loss(zeros, zeros, row(9, 2, 9), mask)
    assert loss == -2
    with jax.debug_nans(True):  # no 0 / 0 on the way either
        loss, _ = ppo_value_loss(zeros, zeros, row(9, 2, 9), mask, value_clip=0.5)
        assert explained_variance(zeros, row(9, 2, 9), mask) == 0  # one return does not vary
    assert loss == 2


def test_an_empty_mask_gives_0():
    grids = random_grids(3)
    mask = jnp.zeros(MASK.shape, bool)
    for loss, metrics in (
        policy_loss(*grids, mask),
        ppo_value_loss(*grids, mask, value_clip=0.2),
    ):
        assert loss == 0
        assert all(value == 0 for value in metrics.values())


# ---------------------------------------------------------------------------------------- critic


def test_value_loss_by_hand():
    # old values 0, clip 0.5. values 1, 1, 0.25; returns 2, 0, 1.
    # clipped values 0.5, 0.5, 0.25. errors: max(1, 2.25) = 2.25; max(1, 0.25) = 1; 0.5625
    # loss = 0.5 * (2.25 + 1 + 0.5625) / 3
    mask = jnp.ones((1, 3), bool)
    values, returns = row(1, 1, 0.25), row(2, 0, 1)
    run = jax.value_and_grad(
        lambda v: ppo_value_loss(v, row(0, 0, 0), returns, mask, value_clip=0.5), has_aux=True
    )
    (loss, metrics), gradient = run(values)
    np.testing.assert_allclose(loss, 0.5 * 3.8125 / 3, rtol=1e-6)
    np.testing.assert_allclose(metrics["value/clip_fraction"], 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(metrics["value/mean"], 0.75)
    np.testing.assert_allclose(metrics["value/return_mean"], 1.0)
    # Var(returns) = 2/3. Errors 1, -1, 0.75 with mean 0.25: Var = (0.5625 + 1.5625 + 0.25) / 3
    explained = explained_variance(values, returns, mask)
    np.testing.assert_allclose(explained, 1 - 2.375 / 2, rtol=1e-5)
    # No gradient where the clip binds; (value - return) / 3 elsewhere.
    np.testing.assert_allclose(gradient, [[0, 1 / 3, -0.25]], rtol=1e-6)


def test_a_wide_clip_leaves_half_the_squared_error():
    values, old_values, returns = random_grids(3, seed=4)
    loss, metrics = ppo_value_loss(values, old_values, returns, jnp.array(MASK), value_clip=1e6)
    error = (np.asarray(values) - np.asarray(returns))[MASK]
    np.testing.assert_allclose(loss, 0.5 * (error**2).mean(), rtol=1e-5)
    assert metrics["value/clip_fraction"] == 0


def test_value_gradient_matches_finite_differences():
    old_values, returns = random_grids(2, seed=5)
    (noise,) = random_grids(1, seed=6, scale=0.03)
    mask = jnp.array(MASK)
    check_grads(
        jax.jit(lambda v: ppo_value_loss(v, old_values, returns, mask, value_clip=0.5)[0]),
        (old_values + noise,), order=1, modes=["rev"], atol=1e-2, rtol=1e-2,
    )  # fmt: skip


def test_explained_variance_at_its_landmarks():
    returns, noise = random_grids(2, seed=7)
    mask = jnp.array(MASK)

    def explained(values):
        return explained_variance(values, returns, mask)

    np.testing.assert_allclose(explained(returns), 1, atol=1e-6)
    np.testing.assert_allclose(explained(returns + 3), 1, atol=1e-5)  # a shift explains as much
    np.testing.assert_allclose(explained(jnp.zeros(MASK.shape)), 0, atol=1e-6)
    np.testing.assert_allclose(explained(-returns), -3, rtol=1e-5)


# ------------------------------------------------------------------------------------------- PRM


def test_prm_loss_by_hand():
    # (0.5 - 1)^2, (0.5 - -1)^2, (0.5 - 0)^2: a neutral label is a target like the others
    scores, labels = jnp.full((1, 4), 0.5), jnp.array([[1, -1, 0, 7]])
    weights = jnp.array([[1.0, 1.0, 1.0, 0.0]])
    value, gradient = jax.value_and_grad(prm_loss)(scores, labels, weights)
    np.testing.assert_allclose(value, (0.25 + 2.25 + 0.25) / 3, rtol=1e-6)
    np.testing.assert_allclose(gradient, [[-1 / 3, 1, 1 / 3, 0]], rtol=1e-6)
    assert prm_loss(scores, labels, 0 * weights) == 0


def test_a_weighted_prm_loss_is_that_of_every_single_completion():
    """A score is drawn to each of K outcomes as it is to their mean, K times."""
    outcomes = [[1, 1, -1, 1], [-1, -1]]
    scores = jnp.array([0.3, -0.6])

    def singly(s):
        pairs = [(i, o) for i, row in enumerate(outcomes) for o in row]
        return prm_loss(
            jnp.stack([s[i] for i, _ in pairs])[None],
            jnp.array([[float(o) for _, o in pairs]]),
            jnp.ones((1, len(pairs))),
        )

    means = jnp.array([[np.mean(row) for row in outcomes]])
    weights = jnp.array([[float(len(row)) for row in outcomes]])
    together = jax.grad(lambda s: prm_loss(s[None], means, weights))(scores)
    np.testing.assert_allclose(together, jax.grad(singly)(scores), rtol=1e-6)


def test_recalibration_is_least_squares():
    scores, noise = random_grids(2, seed=8)
    returns = 0.4 * scores + 0.3 + 0.1 * noise
    scale, shift = jax.jit(recalibrate)(scores, returns, jnp.array(MASK))
    expected = np.polyfit(np.asarray(scores)[MASK], np.asarray(returns)[MASK], deg=1)
    np.testing.assert_allclose([scale, shift], expected, rtol=1e-4)


def test_recalibration_brings_labels_to_returns():
    # A perfect PRM on returns 0 and 1: scores -1 and 1, so value = 0.5 * score + 0.5.
    scale, shift = recalibrate(row(-1, 1, 1), row(0, 1, 1), jnp.ones((1, 3), bool))
    np.testing.assert_allclose([scale, shift], [0.5, 0.5], atol=1e-6)


def test_recalibration_never_turns_a_prm_upside_down():
    scale, shift = recalibrate(row(-1, 0, 1), row(1, 0.5, 0), jnp.ones((1, 3), bool))
    assert scale == 0
    np.testing.assert_allclose(shift, 0.5)


@pytest.mark.parametrize("score", [0.0, 0.1, -0.7, 1000.3])
def test_recalibrating_constant_scores_gives_the_mean_return(score):
    returns = random_grids(1, seed=9)[0]
    scale, shift = recalibrate(jnp.full(MASK.shape, score), returns, jnp.array(MASK))
    assert scale == 0
    np.testing.assert_allclose(shift, masked_mean(returns, jnp.array(MASK)))


def test_recalibrating_nothing_gives_0():
    scale, shift = recalibrate(*random_grids(2), jnp.zeros(MASK.shape, bool))
    assert scale == 0 and shift == 0


# ------------------------------------------------------------------------------- sampler mismatch


def test_sampler_weights_by_hand():
    # The trainer's odds over the sampler's: 2, 1/2, 8 (cut to 3); the masked one is not read.
    logp = row(*np.log([0.4, 0.2, 0.8]), jnp.nan)
    sampler_logp = row(*np.log([0.2, 0.4, 0.1]), jnp.inf)
    mask = jnp.array([[True, True, True, False]])
    weights = sampler_weights(logp, sampler_logp, mask, 3.0)
    np.testing.assert_allclose(weights, [[2, 0.5, 3, 0]], rtol=1e-6)


def test_weights_on_advantages_are_weights_on_the_surrogates_terms():
    new, sampler, advantages = random_grids(3, seed=11)
    old = new + 0.4 * random_grids(1, seed=12)[0]
    mask = jnp.array(MASK)
    weights = sampler_weights(old, sampler, mask, 2.0)
    assert 0 < float((weights[mask] == 2.0).mean()) < 1
    loss, _ = policy_loss(new, old, weights * advantages, mask)
    ratio = np.exp(np.asarray(new - old, np.float64))
    a = np.asarray(advantages, np.float64)
    terms = np.minimum(ratio * a, np.clip(ratio, 0.8, 1.3) * a)
    wanted = -(np.asarray(weights) * terms)[MASK].mean()
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)


def test_an_unbiased_weight_corrects_the_samplers_policy():
    """Two tokens, sampler .5 / .5, trainer .8 / .2: weighted means are those under the trainer."""
    sampler, trainer = np.log([[0.5, 0.5]]), np.log([[0.8, 0.2]])
    mask = jnp.ones((1, 2), bool)
    weights = sampler_weights(
        jnp.array(trainer, jnp.float32), jnp.array(sampler, jnp.float32), mask, 10.0
    )
    reward = np.array([3.0, -1.0])
    under_trainer = (0.5 * np.asarray(weights)[0] * reward).sum()
    np.testing.assert_allclose(under_trainer, 0.8 * 3 - 0.2, rtol=1e-6)
