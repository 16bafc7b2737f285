"""PPO in three compiled programs: score a rollout, turn it into advantages, update.

The host calls `score` while the sandbox still runs the programs, then `experience` once the
outcomes are known, then `update`. Every array is on the `[B, T]` grid of types.py.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from prm_jax.model.heads import PolicyModel, ScalarModel
from prm_jax.model.score import prefix_scores, state_values, token_logps
from prm_jax.rl.advantages import gae, rewards_to_go, whiten
from prm_jax.rl.dense import DenseForm
from prm_jax.rl.losses import masked_mean, ppo_policy_loss, ppo_value_loss, recalibrate
from prm_jax.rl.rewards import token_rewards
from prm_jax.sharding import batch_sharding, replicated
from prm_jax.steps.state import apply_gradients
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
    `prm_params` may be None: then the scores are zeros and the PRM's forward pass is not compiled.
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
    form: DenseForm = "value",
    length_normalised: bool = True,
    tau: float = 0.1,
    error_threshold: float = 0.0,
) -> Callable[[Rollout], tuple[PPOBatch, Metrics]]:
    """A jitted `rollout -> (batch, metrics)`: rewards, GAE, advantages whitened over the rollout.

    lam_fail = lam_pass = 0 leaves the unit-test reward and the KL penalty alone; `form` and the
    three after it are `dense_rewards`'.
    """
    rows = batch_sharding(mesh)

    def experience(rollout: Rollout):
        mask = rollout.completion_mask
        rewards, metrics = token_rewards(
            rollout.outcome,
            rollout.prm_scores,
            rollout.line_end,
            mask,
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
        advantages, returns = gae(rewards, rollout.values, mask, gamma=gamma, gae_lambda=gae_lambda)
        batch = PPOBatch(
            tokens=rollout.tokens,
            valid=rollout.valid,
            completion_mask=mask,
            logp=rollout.logp,
            values=rollout.values,
            advantages=whiten(advantages, mask),
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
    critic_shardings: TrainState,
    *,
    prompt_tokens: int,
    epochs: int,
    minibatches: int,
    temperature: float,
    clip_low: float,
    clip_high: float,
    value_clip: float,
) -> Callable[
    [TrainState, TrainState, PPOBatch, jax.Array], tuple[TrainState, TrainState, Metrics]
]:
    """A jitted `(policy, critic, batch, key) -> (policy, critic, metrics)`; both are donated.

    Each epoch shuffles the rollout and splits it into minibatches, one optimizer step each; the
    metrics are means over all of them. The new log-probs are taken at the sampler's temperature,
    since the ratio pi_new / pi_old compares two policies of one kind.
    """
    rows = batch_sharding(mesh)

    def policy_loss(params, batch: PPOBatch):
        logp, entropy = token_logps(
            policy,
            params,
            batch.tokens,
            batch.valid,
            temperature=temperature,
            prompt_tokens=prompt_tokens,
        )
        loss, metrics = ppo_policy_loss(
            logp,
            batch.logp,
            batch.advantages,
            batch.completion_mask,
            clip_low=clip_low,
            clip_high=clip_high,
        )
        entropy = masked_mean(jax.lax.stop_gradient(entropy), batch.completion_mask)
        return loss, metrics | {"policy/loss": loss, "policy/entropy": entropy}

    def value_loss(params, batch: PPOBatch):
        values = state_values(
            scalar, params, batch.tokens, batch.valid, prompt_tokens=prompt_tokens
        )
        loss, metrics = ppo_value_loss(
            values, batch.values, batch.returns, batch.completion_mask, value_clip=value_clip
        )
        return loss, metrics | {"value/loss": loss}

    def minibatch_step(states, batch: PPOBatch):
        policy_state, critic_state = states
        batch = jax.lax.with_sharding_constraint(batch, rows)
        grads, policy_metrics = jax.grad(policy_loss, has_aux=True)(policy_state.params, batch)
        policy_state, policy_norm = apply_gradients(policy_state, grads, policy_tx)
        grads, value_metrics = jax.grad(value_loss, has_aux=True)(critic_state.params, batch)
        critic_state, value_norm = apply_gradients(critic_state, grads, critic_tx)
        norms = {"policy/grad_norm": policy_norm, "value/grad_norm": value_norm}
        return (policy_state, critic_state), policy_metrics | value_metrics | norms

    def update(policy_state: TrainState, critic_state: TrainState, batch: PPOBatch, key):
        n_rows = batch.tokens.shape[0]
        order = jnp.concatenate(
            [jax.random.permutation(k, n_rows) for k in jax.random.split(key, epochs)]
        ).reshape(epochs * minibatches, n_rows // minibatches)
        (policy_state, critic_state), metrics = jax.lax.scan(
            lambda states, index: minibatch_step(states, jax.tree.map(lambda x: x[index], batch)),
            (policy_state, critic_state),
            order,
        )
        return policy_state, critic_state, jax.tree.map(jnp.mean, metrics)

    return jax.jit(
        update,
        in_shardings=(policy_shardings, critic_shardings, rows, replicated(mesh)),
        out_shardings=(policy_shardings, critic_shardings, replicated(mesh)),
        donate_argnums=(0, 1),
    )


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
