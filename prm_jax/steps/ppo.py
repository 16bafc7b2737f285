"""The PPO update: policy and critic, each by a compiled program of its own.

Their batches come from `experience`; every array is on the `[B, T]` grid of types.py.
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
from prm_jax.model.score import state_values, token_logps
from prm_jax.rl.losses import (
    masked_mean,
    ppo_policy_loss,
    ppo_value_loss,
    sampler_weights,
)
from prm_jax.sharding import batch_sharding, replicated
from prm_jax.steps.state import apply_gradients, gradients
from prm_jax.types import PPOBatch, TrainState

Metrics = dict[str, jax.Array]


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
            loss, _completion, state.params, frozen, batch, mesh, rows_at_once, prompt_tokens
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
            loss, _completion, state.params, frozen, batch, mesh, rows_at_once, prompt_tokens
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
