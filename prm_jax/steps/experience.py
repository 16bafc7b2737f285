"""From a rollout to advantages: score it, reward it, and fit a PRM to its scale of returns.

The host calls `score` while the sandbox still runs the programs, and `experience` once the outcomes
are known. Every array is on the `[B, T]` grid of types.py.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from prm_jax.model.heads import PolicyModel, ScalarModel
from prm_jax.model.score import prefix_scores, state_values, token_logps
from prm_jax.rl.advantages import (
    gae,
    group_advantages,
    length_adaptive_lambda,
    rewards_to_go,
    whiten,
)
from prm_jax.rl.dense import DenseForm
from prm_jax.rl.losses import explained_variance, recalibrate
from prm_jax.rl.rewards import kl_penalties, token_rewards
from prm_jax.sharding import batch_sharding, count_parts, map_rows, replicated
from prm_jax.steps import columns
from prm_jax.types import PPOBatch, Rollout, Samples

Metrics = dict[str, jax.Array]


def make_score(
    policy: PolicyModel,
    scalar: ScalarModel,
    mesh: Mesh,
    *,
    prompt_tokens: int,
    temperature: float,
    rows_at_once: int = 0,
) -> Callable[[Any, Any, Any, Samples], tuple[jax.Array, jax.Array, jax.Array]]:
    """A jitted `(ref_params, critic_params, prm_params, samples) -> (ref_logp, values, scores)`.

    `prompt_tokens` is P, the columns of the grid that hold prompts.
    `critic_params` and `prm_params` may be None: then the values or the scores are zeros, and the
    forward pass is not compiled.
    `rows_at_once` > 0 bounds the rows that each device reads at a time; those of like length are
    read together, and cut to it (columns.py).
    All are `[B, T]` float32; log-probs are of the distribution at `temperature`, the sampler's.
    """
    rows = batch_sharding(mesh)

    def score(ref_params, critic_params, prm_params, samples: Samples):
        def of_rows(part: tuple[jax.Array, jax.Array]):
            tokens, valid = part
            ref_logp, _ = token_logps(
                policy,
                ref_params,
                tokens,
                valid,
                temperature=temperature,
                prompt_tokens=prompt_tokens,
            )
            values = scores = jnp.zeros(tokens.shape, jnp.float32)
            read = {"prompt_tokens": prompt_tokens}
            if critic_params is not None:
                values = state_values(scalar, critic_params, tokens, valid, **read)
            if prm_params is not None:
                scores = prefix_scores(scalar, prm_params, tokens, valid, **read)
            return ref_logp, values, scores

        batch = samples.tokens, samples.valid
        n_rows, n_columns = samples.tokens.shape
        n = count_parts(n_rows, mesh, rows_at_once)
        if n == 1:
            return of_rows(batch)
        widths = columns.widths(prompt_tokens, n_columns)

        def of_part(part: tuple[jax.Array, jax.Array]):
            return columns.cut(padded, part, part[1], widths)

        def padded(part: tuple[jax.Array, jax.Array]):
            missing = n_columns - part[0].shape[1]
            return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, missing))), of_rows(part))

        order = columns.by_length(samples.completion_mask, mesh, n)
        batch = jax.tree.map(lambda x: x[order], batch)
        found = map_rows(of_part, batch, mesh, rows_at_once)
        return jax.tree.map(lambda x: x[jnp.argsort(order)], found)

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

    Among the metrics is how much of the returns the critic explains before it learns from them.

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
        if not group_size:
            metrics["value/explained_variance"] = explained_variance(rollout.values, returns, mask)
        n_rows = jnp.maximum(mask.any(axis=1).sum(), 1)  # others pad the batch
        sizes = {
            "rollout/length_tokens": mask.sum(dtype=jnp.float32) / n_rows,
            "rollout/lines": (mask & rollout.line_end).sum(dtype=jnp.float32) / n_rows,
        }
        return batch, metrics | sizes

    return jax.jit(experience, in_shardings=(rows,), out_shardings=(rows, replicated(mesh)))


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
