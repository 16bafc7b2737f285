"""PPO in three compiled programs: score a rollout, turn it into advantages, update.

The host calls `score` while the sandbox still runs the programs, then `experience` once the
outcomes are known, then `update`. Every array is on the `[B, T]` grid of types.py.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from prm_jax.model.heads import PolicyModel, ScalarModel
from prm_jax.model.lora import join
from prm_jax.model.score import prefix_scores, state_values, token_logps
from prm_jax.rl.advantages import (
    gae,
    group_advantages,
    length_adaptive_lambda,
    rewards_to_go,
    whiten,
)
from prm_jax.rl.dense import DenseForm
from prm_jax.rl.losses import (
    masked_mean,
    ppo_policy_loss,
    ppo_value_loss,
    recalibrate,
    sampler_weights,
)
from prm_jax.rl.rewards import kl_penalties, token_rewards
from prm_jax.sharding import batch_sharding, replicated
from prm_jax.steps.state import apply_gradients, gradients
from prm_jax.types import PPOBatch, Rollout, Samples, TrainState

Metrics = dict[str, jax.Array]


def make_score(
    policy: PolicyModel,
    scalar: ScalarModel,
    mesh: Mesh,
    *,
    prompt_tokens: int,
    temperature: float,
) -> Callable[[Any, Any, Any, Samples], tuple[jax.Array, jax.Array, jax.Array]]:
    """A jitted `(ref_params, critic_params, prm_params, samples) -> (ref_logp, values, scores)`.

    `prompt_tokens` is P, the columns of the grid that hold prompts.
    `critic_params` and `prm_params` may be None: then the values or the scores are zeros, and the
    forward pass is not compiled.
    All are `[B, T]` float32; log-probs are of the distribution at `temperature`, the sampler's.
    """
    rows = batch_sharding(mesh)

    def score(ref_params, critic_params, prm_params, samples: Samples):
        tokens, valid = samples.tokens, samples.valid
        ref_logp, _ = token_logps(
            policy,
            ref_params,
            tokens,
            valid,
            temperature=temperature,
            prompt_tokens=prompt_tokens,
        )
        if critic_params is None:
            values = jnp.zeros(tokens.shape, jnp.float32)
        else:
            values = state_values(scalar, critic_params, tokens, valid, prompt_tokens=prompt_tokens)
        if prm_params is None:
            scores = jnp.zeros(tokens.shape, jnp.float32)
        else:
            scores = prefix_scores(scalar, prm_params, tokens, valid, prompt_tokens=prompt_tokens)
        return ref_logp, values, scores

    return jax.jit(score, out_shardings=rows)


def make_experience(
    mesh: Mesh,
    *,
    lam_fail: float,
    lam_pass: float,
    kl_coef: float,
    gamma: float,
    gae_lambda: float,
    critic_lambda: float | None = None,
    lambda_alpha: float = 0.0,
    group_size: int = 0,
    form: DenseForm = "value",
    length_normalised: bool = True,
    tau: float = 0.1,
    error_threshold: float = 0.0,
) -> Callable[[Rollout], tuple[PPOBatch, Metrics]]:
    """A jitted `rollout -> (batch, metrics)`: rewards, GAE, advantages whitened over the rollout.

    lam_fail = lam_pass = 0 leaves the unit-test reward and the KL penalty alone; `form` and the
    three after it are `dense_rewards`'. `critic_lambda` is the lambda of the returns where it is
    not the advantages' (VC-PPO, arXiv 2503.01491); `lambda_alpha` > 0 makes the advantages' lambda
    depend on the length (`length_adaptive_lambda`).

    `group_size` > 0 takes `group_advantages` instead, without critic and whitening. Each token's
    KL penalty is then added to its own advantage as it is: normalised with the rewards it would
    grow to full size wherever all samples of a prompt fail. Its expected gradient is that of the KL
    at that token, GRPO's own regulariser.
    """
    rows = batch_sharding(mesh)

    def rewards_of(rollout: Rollout, kl_coef: float):
        return token_rewards(
            rollout.outcome,
            rollout.prm_scores,
            rollout.line_end,
            rollout.completion_mask,
            rollout.logp,
            rollout.ref_logp,
            lam_fail=lam_fail,
            lam_pass=lam_pass,
            kl_coef=kl_coef,
            form=form,
            length_normalised=length_normalised,
            tau=tau,
            error_threshold=error_threshold,
        )

    def group_estimates(rollout: Rollout, rewards: jax.Array):
        mask = rollout.completion_mask
        without_kl, _ = rewards_of(rollout, kl_coef=0.0)
        relative = group_advantages(without_kl, mask, group_size=group_size, gamma=gamma)
        penalties = kl_penalties(rollout.logp, rollout.ref_logp, mask, kl_coef)
        return relative + penalties, rewards_to_go(rewards, mask, gamma)

    def critic_estimates(rollout: Rollout, rewards: jax.Array):
        mask, values = rollout.completion_mask, rollout.values
        actor_lambda = length_adaptive_lambda(mask, lambda_alpha) if lambda_alpha else gae_lambda
        advantages, returns = gae(rewards, values, mask, gamma=gamma, gae_lambda=actor_lambda)
        if critic_lambda is not None:
            _, returns = gae(rewards, values, mask, gamma=gamma, gae_lambda=critic_lambda)
        return whiten(advantages, mask), returns

    def experience(rollout: Rollout):
        mask = rollout.completion_mask
        rewards, metrics = rewards_of(rollout, kl_coef)
        estimates = group_estimates if group_size else critic_estimates
        advantages, returns = estimates(rollout, rewards)
        batch = PPOBatch(
            tokens=rollout.tokens,
            valid=rollout.valid,
            completion_mask=mask,
            logp=rollout.logp,
            values=rollout.values,
            advantages=advantages,
            returns=returns,
        )
        sizes = {
            "rollout/length_tokens": mask.sum(axis=1).mean(dtype=jnp.float32),
            "rollout/lines": rollout.line_end.sum(axis=1).mean(dtype=jnp.float32),
        }
        return batch, metrics | sizes

    return jax.jit(experience, in_shardings=(rows,), out_shardings=(rows, replicated(mesh)))


def make_update(
    policy: PolicyModel,
    scalar: ScalarModel,
    policy_tx: optax.GradientTransformation,
    critic_tx: optax.GradientTransformation,
    mesh: Mesh,
    policy_shardings: TrainState,
    critic_shardings: TrainState | None,
    *,
    prompt_tokens: int,
    epochs: int,
    minibatches: int,
    temperature: float,
    clip_low: float,
    clip_high: float,
    value_clip: float,
    sampler_cap: float = 0.0,
    rows_at_once: int = 0,
) -> Callable[
    [TrainState, TrainState | None, Any, PPOBatch, jax.Array],
    tuple[TrainState, TrainState | None, Metrics],
]:
    """`make_policy_update` and `make_critic_update` of the same minibatches, one after the other.

    A function `(policy, critic, frozen, batch, key) -> (policy, critic, metrics)`; `frozen` is the
    pair of their parameters that do not train (model/lora.py). They are two programs, so that the
    activations of one model are gone before those of the other come. A critic of None, with
    shardings of None, is not trained and stays None. `rows_at_once` is that of `gradients`.
    """
    shared = {
        "prompt_tokens": prompt_tokens,
        "epochs": epochs,
        "minibatches": minibatches,
        "rows_at_once": rows_at_once,
    }
    update_policy = make_policy_update(
        policy,
        policy_tx,
        mesh,
        policy_shardings,
        temperature=temperature,
        clip_low=clip_low,
        clip_high=clip_high,
        sampler_cap=sampler_cap,
        **shared,
    )
    update_critic = None
    if critic_shardings is not None:
        update_critic = make_critic_update(
            scalar, critic_tx, mesh, critic_shardings, value_clip=value_clip, **shared
        )

    def update(
        policy_state: TrainState, critic_state: TrainState | None, frozen, batch: PPOBatch, key
    ):
        policy_state, metrics = update_policy(policy_state, frozen[0], batch, key)
        if critic_state is None or update_critic is None:
            return policy_state, None, metrics
        critic_state, value_metrics = update_critic(critic_state, frozen[1], batch, key)
        return policy_state, critic_state, metrics | value_metrics

    return update


def make_policy_update(
    policy: PolicyModel,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    shardings: TrainState,
    *,
    prompt_tokens: int,
    epochs: int,
    minibatches: int,
    temperature: float,
    clip_low: float,
    clip_high: float,
    sampler_cap: float = 0.0,
    rows_at_once: int = 0,
) -> Callable[[TrainState, Any, PPOBatch, jax.Array], tuple[TrainState, Metrics]]:
    """A jitted `(policy, frozen, batch, key) -> (policy, metrics)` that donates the policy.

    Each epoch shuffles the rollout and splits it into minibatches, one optimizer step each; the
    metrics are means over all of them. The new log-probs are taken at the sampler's temperature,
    since the ratio pi_new / pi_old compares two policies of one kind.

    `sampler_cap` > 0 takes the ratio to the policy as the trainer computes it before the first
    step (one more forward pass), and weighs each token by `sampler_weights`. The weights are not
    negative, so it is the same to multiply the advantages by them.
    """

    def logps(trained, frozen, batch: PPOBatch):
        return token_logps(
            policy,
            join(trained, frozen),
            batch.tokens,
            batch.valid,
            temperature=temperature,
            prompt_tokens=prompt_tokens,
        )

    def weighted(trained, frozen, batch: PPOBatch) -> tuple[PPOBatch, Metrics]:
        logp, _ = logps(trained, frozen, batch)
        weights = sampler_weights(logp, batch.logp, batch.completion_mask, sampler_cap)
        mean = masked_mean(weights, batch.completion_mask)
        batch = dataclasses.replace(batch, logp=logp, advantages=weights * batch.advantages)
        return batch, {"policy/sampler_weight": mean}

    def loss(trained, frozen, batch: PPOBatch):
        logp, entropy = logps(trained, frozen, batch)
        value, metrics = ppo_policy_loss(
            logp,
            batch.logp,
            batch.advantages,
            batch.completion_mask,
            clip_low=clip_low,
            clip_high=clip_high,
        )
        entropy = masked_mean(jax.lax.stop_gradient(entropy), batch.completion_mask)
        return value, metrics | {"policy/loss": value, "policy/entropy": entropy}

    def step(state: TrainState, frozen, batch: PPOBatch) -> tuple[TrainState, Metrics]:
        grads, metrics = gradients(
            loss, _completion, state.params, frozen, batch, mesh, rows_at_once
        )
        state, norm = apply_gradients(state, grads, tx)
        return state, metrics | {"policy/grad_norm": norm}

    def update(state: TrainState, frozen, batch: PPOBatch, key):
        weights: Metrics = {}
        if sampler_cap:
            batch, weights = weighted(state.params, frozen, batch)
        state, metrics = _minibatch_steps(
            step, state, frozen, batch, key, mesh, epochs, minibatches
        )
        return state, metrics | weights

    return _jit_update(update, mesh, shardings)


def make_critic_update(
    scalar: ScalarModel,
    critic_tx: optax.GradientTransformation,
    mesh: Mesh,
    critic_shardings: TrainState,
    *,
    prompt_tokens: int,
    epochs: int,
    minibatches: int,
    value_clip: float = math.inf,
    rows_at_once: int = 0,
) -> Callable[[TrainState, Any, PPOBatch, jax.Array], tuple[TrainState, Metrics]]:
    """A jitted `(critic, frozen, batch, key) -> (critic, metrics)` that donates the critic.

    By itself and without a clip, with returns of lambda 1 under a fixed policy, it brings a critic
    to what that policy earns before PPO begins.

    Source: VC-PPO, arXiv 2503.01491 (value pretraining).
    """
    loss = _value_loss(scalar, prompt_tokens=prompt_tokens, value_clip=value_clip)

    def step(state: TrainState, frozen, batch: PPOBatch) -> tuple[TrainState, Metrics]:
        grads, metrics = gradients(
            loss, _completion, state.params, frozen, batch, mesh, rows_at_once
        )
        state, norm = apply_gradients(state, grads, critic_tx)
        return state, metrics | {"value/grad_norm": norm}

    def update(state: TrainState, frozen, batch: PPOBatch, key):
        return _minibatch_steps(step, state, frozen, batch, key, mesh, epochs, minibatches)

    return _jit_update(update, mesh, critic_shardings)


def _completion(batch: PPOBatch) -> jax.Array:
    return batch.completion_mask


def _jit_update(update, mesh: Mesh, shardings: TrainState):
    return jax.jit(
        update,
        in_shardings=(shardings, None, batch_sharding(mesh), replicated(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )


def _minibatch_steps(
    step, state: TrainState, frozen, batch: PPOBatch, key, mesh: Mesh, epochs: int, minibatches: int
) -> tuple[TrainState, Metrics]:
    """`step` on each minibatch of each epoch in turn, and the means of its metrics."""
    rows = batch_sharding(mesh)

    def of_minibatch(state: TrainState, index: jax.Array):
        minibatch = jax.tree.map(lambda x: x[index], batch)
        return step(state, frozen, jax.lax.with_sharding_constraint(minibatch, rows))

    order = _minibatch_rows(key, batch.tokens.shape[0], epochs, minibatches)
    state, metrics = jax.lax.scan(of_minibatch, state, order)
    return state, jax.tree.map(jnp.mean, metrics)


def _value_loss(scalar: ScalarModel, *, prompt_tokens: int, value_clip: float):
    def value_loss(trained, frozen, batch: PPOBatch):
        values = state_values(
            scalar,
            join(trained, frozen),
            batch.tokens,
            batch.valid,
            prompt_tokens=prompt_tokens,
        )
        loss, metrics = ppo_value_loss(
            values, batch.values, batch.returns, batch.completion_mask, value_clip=value_clip
        )
        return loss, metrics | {"value/loss": loss}

    return value_loss


def _minibatch_rows(key: jax.Array, n_rows: int, epochs: int, minibatches: int) -> jax.Array:
    """The rows of each minibatch, `[epochs x minibatches, rows]`: every epoch has its own order."""
    return jnp.concatenate(
        [jax.random.permutation(k, n_rows) for k in jax.random.split(key, epochs)]
    ).reshape(epochs * minibatches, n_rows // minibatches)


def make_recalibration(
    scalar: ScalarModel, mesh: Mesh, *, gamma: float
) -> Callable[[Any, Rollout], tuple[jax.Array, jax.Array]]:
    """A jitted `(prm_params, rollout) -> (scale, shift)` that brings a PRM to the scale of returns.

    Least squares of the discounted outcome still to come, from each state of a completion, on the
    PRM's score read as a value there (ValueInit; paper section 3.3 leaves the scale open).
    """
    rows = batch_sharding(mesh)

    def recalibration(prm_params, rollout: Rollout):
        mask = rollout.completion_mask
        zeros = jnp.zeros_like(rollout.logp)
        rewards, _ = token_rewards(
            rollout.outcome, zeros, rollout.line_end, mask, zeros, zeros,
            lam_fail=0.0, lam_pass=0.0, kl_coef=0.0,
        )  # fmt: skip
        returns = rewards_to_go(rewards, mask, gamma=gamma)
        scores = state_values(scalar, prm_params, rollout.tokens, rollout.valid)
        return recalibrate(scores, returns, mask)

    return jax.jit(recalibration, in_shardings=(None, rows), out_shardings=replicated(mesh))
