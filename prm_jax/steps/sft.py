"""Supervised fine-tuning: one compiled step that imitates solutions."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from prm_jax.model.heads import PolicyModel
from prm_jax.model.lora import join
from prm_jax.model.score import token_logps
from prm_jax.rl.losses import next_token_loss
from prm_jax.sharding import batch_sharding, replicated
from prm_jax.steps.state import apply_gradients, gradients
from prm_jax.types import TokenBatch, TrainState

SFTStep = Callable[[TrainState, Any, TokenBatch], tuple[TrainState, dict[str, jax.Array]]]


def make_sft_step(
    model: PolicyModel,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    shardings: TrainState,
    rows_at_once: int = 0,
) -> SFTStep:
    """A jitted `(state, frozen, batch) -> (state, metrics)` that donates the state.

    `state.params` and `frozen` are the two halves of the parameters (model/lora.py);
    `rows_at_once` is that of `gradients`.

    The loss is the mean over masked tokens of -log pi(token | tokens before it).
    """

    def loss(trained, frozen, batch: TokenBatch):
        logp, _ = token_logps(
            model, join(trained, frozen), batch.tokens, batch.valid, temperature=1.0
        )
        value = next_token_loss(logp, batch.mask)
        return value, {"sft/loss": value}

    def step(state: TrainState, frozen, batch: TokenBatch):
        grads, metrics = gradients(
            loss, lambda batch: batch.mask, state.params, frozen, batch, mesh, rows_at_once
        )
        state, grad_norm = apply_gradients(state, grads, tx)
        return state, metrics | {"sft/grad_norm": grad_norm}

    return jax.jit(
        step,
        in_shardings=(shardings, None, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
