"""The options of the PPO steps: other lambdas, a critic that is warmed up, and no critic at all."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_steps import (
    CLIPS,
    EIGHT,
    NOTHING,
    ONE,
    POLICY,
    SCALAR,
    TEMPERATURE,
    B,
    P,
    assert_close,
    critic_and_prm,
    policy_params,
    rollout_of,
    sampled,
    scored,
    shardings,
)

from prm_jax.rl.advantages import group_advantages, length_adaptive_lambda
from prm_jax.steps.experience import make_experience, make_score
from prm_jax.steps.ppo import make_critic_update, make_update
from prm_jax.steps.state import adam, new_state

PLAIN = dict(lam_fail=0.0, lam_pass=0.0, kl_coef=0.0, gamma=1.0)


@functools.cache
def rollout(mesh=ONE):
    samples, (ref_logp, values, scores) = sampled(mesh), scored(mesh)
    return rollout_of(samples, ref_logp=ref_logp - 0.1, values=values, prm_scores=scores)


def columns(mask):
    """The completion tokens as NumPy sees them, and how many each row has."""
    mask = np.asarray(mask)
    return mask, mask.sum(axis=1)


# ------------------------------------------------------------------------------------ the lambdas


def test_the_critic_may_have_a_lambda_of_its_own():
    both, _ = make_experience(ONE, gae_lambda=0.5, **PLAIN)(rollout())
    apart, _ = make_experience(ONE, gae_lambda=0.5, critic_lambda=1.0, **PLAIN)(rollout())
    np.testing.assert_array_equal(np.asarray(apart.advantages), np.asarray(both.advantages))
    mask, _ = columns(both.completion_mask)
    outcome = np.asarray(rollout().outcome)
    # Lambda 1 and gamma 1: each token's return is the outcome.
    np.testing.assert_allclose(apart.returns, np.where(mask, outcome[:, None], 0), atol=1e-5)
    assert np.abs(np.asarray(both.returns - apart.returns))[mask].mean() > 0.05


def test_the_actors_lambda_may_follow_the_length():
    alpha = 0.4
    adaptive, _ = make_experience(ONE, gae_lambda=0.3, lambda_alpha=alpha, **PLAIN)(rollout())
    mask, length = columns(rollout().completion_mask)
    lambdas = np.asarray(length_adaptive_lambda(rollout().completion_mask, alpha))
    assert lambdas.min() == 0 and lambdas.max() == pytest.approx(1 - 1 / (alpha * length.max()))
    values, outcome = np.asarray(rollout().values, np.float64), np.asarray(rollout().outcome)
    returns = np.zeros(mask.shape)
    for b in range(B):  # returns are advantages + values, and are not whitened
        tokens = np.flatnonzero(mask[b])
        v = np.append(values[b, tokens], 0.0)
        r = np.zeros(len(tokens))
        r[-1] = outcome[b]
        advantage = 0.0
        for t in reversed(range(len(tokens))):
            advantage = r[t] + v[t + 1] - v[t] + lambdas[b] * advantage
            returns[b, tokens[t]] = advantage + v[t]
    np.testing.assert_allclose(adaptive.returns, returns, atol=1e-5)


# -------------------------------------------------------------------------------- without a critic

GROUP = dict(lam_fail=0.3, lam_pass=0.2, kl_coef=0.1, gamma=1.0, gae_lambda=1.0, group_size=4)


def test_group_advantages_are_relative_within_a_prompt_and_pay_the_kl_apart():
    batch, metrics = make_experience(ONE, **GROUP)(rollout())
    mask, _ = columns(batch.completion_mask)
    no_kl, _ = make_experience(ONE, **GROUP | dict(kl_coef=0.0))(rollout())
    penalty = -0.1 * (np.asarray(rollout().logp) - np.asarray(rollout().ref_logp))
    np.testing.assert_allclose(
        np.asarray(batch.advantages - no_kl.advantages)[mask], penalty[mask], atol=1e-5
    )
    first = mask & (np.cumsum(mask, axis=1) == 1)
    of_first = np.where(first, np.asarray(no_kl.advantages), 0).sum(axis=1).reshape(-1, 4)
    np.testing.assert_allclose(of_first.sum(axis=1), 0, atol=1e-4)
    np.testing.assert_allclose(of_first.std(axis=1), 1, atol=1e-3)
    # The returns without the KL penalty are what is made relative.
    wanted = group_advantages(
        jnp.diff(no_kl.returns, axis=1, append=0) * -1.0 * mask, batch.completion_mask,
        group_size=4, gamma=1.0,
    )  # fmt: skip
    np.testing.assert_allclose(no_kl.advantages, wanted, atol=1e-3)
    assert float(metrics["reward/kl"]) < 0


def test_without_a_critic_values_are_zeros_and_the_policy_alone_is_updated():
    samples = sampled(ONE)
    score = make_score(POLICY, SCALAR, ONE, prompt_tokens=P, temperature=TEMPERATURE)
    _, values, scores = score(policy_params(ONE), None, critic_and_prm(ONE)[1], samples)
    assert not np.asarray(values).any() and np.asarray(scores).any()

    tx = optax.sgd(0.1)
    policy = new_state(policy_params(ONE), tx, ONE)
    critic = new_state(critic_and_prm(ONE)[0], tx, ONE)
    batch, _ = make_experience(ONE, **GROUP)(rollout())
    settings = dict(prompt_tokens=P, temperature=TEMPERATURE, epochs=2, minibatches=2, **CLIPS)
    make = functools.partial(make_update, POLICY, SCALAR, tx, tx, ONE)
    alone = make(shardings(policy), None, **settings)
    with_critic = make(shardings(policy), shardings(critic), **settings)
    policy_alone, none, metrics = alone(
        new_state(policy_params(ONE), tx, ONE), None, NOTHING, batch, jax.random.key(0)
    )
    policy, _, more = with_critic(policy, critic, NOTHING, batch, jax.random.key(0))
    assert none is None
    assert_close(policy_alone.params, policy.params, 1e-6)
    assert {name.split("/")[0] for name in metrics} == {"policy"}
    assert {name.split("/")[0] for name in more} == {"policy", "value"}


# ------------------------------------------------------------------------------- critic warm-up


@functools.cache
def warmed_up(mesh):
    tx = adam(learning_rate=2e-2, max_grad_norm=1.0)
    critic = new_state(critic_and_prm(mesh)[0], tx, mesh)
    update = make_critic_update(
        SCALAR, tx, mesh, shardings(critic), prompt_tokens=P, epochs=2, minibatches=2
    )
    batch, _ = make_experience(mesh, gae_lambda=1.0, **PLAIN)(rollout(mesh))
    errors = []
    with jax.set_mesh(mesh):
        for step in range(12):
            critic, metrics = update(critic, {}, batch, jax.random.key(step))
            errors.append(float(metrics["value/loss"]))
    return critic, errors, metrics


def test_a_critic_warms_up_to_the_returns_of_the_fixed_policy():
    critic, errors, metrics = warmed_up(ONE)
    assert int(critic.step) == 12 * 4
    # Values move by far more than value_clip would have let them: nothing is clipped.
    assert errors[-1] < 0.25 * errors[0]
    assert float(metrics["value/clip_fraction"]) == 0
    assert {name.split("/")[0] for name in metrics} == {"value"}


def test_a_warm_up_is_the_same_on_one_device_and_on_eight():
    one, eight = warmed_up(ONE), warmed_up(EIGHT)
    np.testing.assert_allclose(one[1][:3], eight[1][:3], rtol=1e-3)


def test_group_advantages_are_the_same_on_one_device_and_on_eight():
    one, _ = make_experience(ONE, **GROUP)(rollout(ONE))
    with jax.set_mesh(EIGHT):
        eight, _ = make_experience(EIGHT, **GROUP)(rollout(EIGHT))
    assert_close(one.advantages, eight.advantages, 1e-3)


# ------------------------------------------------------------------------------ sampler mismatch


def test_a_sampler_of_another_policy_is_weighed_up_to_the_cap():
    tx = optax.sgd(0.1)
    batch, _ = make_experience(ONE, gae_lambda=1.0, **PLAIN)(rollout())

    def update(batch, cap):
        policy = new_state(policy_params(ONE), tx, ONE)
        run = make_update(
            POLICY, SCALAR, tx, tx, ONE, shardings(policy), None, prompt_tokens=P,
            temperature=TEMPERATURE, epochs=1, minibatches=1, sampler_cap=cap, **CLIPS,
        )  # fmt: skip
        policy, _, metrics = run(policy, None, ({}, {}), batch, jax.random.key(0))
        return policy, metrics

    plain, _ = update(batch, 0.0)
    same, metrics = update(batch, 1.5)
    assert_close(plain.params, same.params, 1e-5)  # the sampler was right: all weights are 1
    np.testing.assert_allclose(float(metrics["policy/sampler_weight"]), 1.0, atol=1e-4)

    # A sampler that thought its tokens half as likely: weights of 2, cut to 1.5, and the ratio is
    # to the trainer's own policy, so that nothing is clipped.
    half = dataclasses.replace(batch, logp=batch.logp - jnp.log(2.0))
    cut, metrics = update(half, 1.5)
    np.testing.assert_allclose(float(metrics["policy/sampler_weight"]), 1.5, rtol=1e-5)
    np.testing.assert_allclose(float(metrics["policy/ratio_mean"]), 1.0, atol=1e-5)
    before = policy_params(ONE)
    for start, a, b in zip(*map(jax.tree.leaves, (before, plain.params, cut.params)), strict=True):
        step = np.asarray(a) - np.asarray(start)
        np.testing.assert_allclose(np.asarray(b) - np.asarray(start), 1.5 * step, atol=1e-5)
