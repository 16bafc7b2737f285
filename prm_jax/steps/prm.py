"""The process reward model: one compiled step of regression on line labels, and its scores."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from prm_jax.model.heads import ScalarModel
from prm_jax.model.lora import join
from prm_jax.model.score import prefix_scores
from prm_jax.rl.losses import prm_loss
from prm_jax.sharding import batch_sharding, replicated
from prm_jax.steps.state import apply_gradients, gradients
from prm_jax.types import LabelBatch, TrainState

PRMStep = Callable[[TrainState, Any, LabelBatch], tuple[TrainState, dict[str, jax.Array]]]


def make_prm_step(
    model: ScalarModel,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    shardings: TrainState,
    rows_at_once: int = 0,
) -> PRMStep:
    """A jitted `(state, frozen, batch) -> (state, metrics)` that donates the state.

    `state.params` and `frozen` are the two halves of the parameters (model/lora.py);
    `rows_at_once` is that of `gradients`.

    The loss is the weighted mean over labelled prefixes of (R(x, y<=m) - l_m)^2 (paper, section
    3.2; rl/labels.prm_targets has the weights).
    """

    def loss(trained, frozen, batch: LabelBatch):
        scores = prefix_scores(model, join(trained, frozen), batch.tokens, batch.valid)
        value = prm_loss(scores, batch.labels, batch.weights)
        return value, {"prm/loss": value}

    def step(state: TrainState, frozen, batch: LabelBatch):
        grads, metrics = gradients(
            loss, lambda batch: batch.weights, state.params, frozen, batch, mesh, rows_at_once
        )
        state, grad_norm = apply_gradients(state, grads, tx)
        return state, metrics | {"prm/grad_norm": grad_norm}

    return jax.jit(
        step,
        in_shardings=(shardings, None, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )


@functools.cache
def make_prefix_scores(model: ScalarModel, mesh: Mesh) -> Callable[[Any, Any, Any], jax.Array]:
    """A jitted `(params, tokens [B,T], valid [B,T]) -> scores [B,T]`, which all hosts have.

    The same for the same model and mesh: PRM and critics are asked many times, compiled once.
    """
    rows = batch_sharding(mesh)
    return jax.jit(
        lambda params, tokens, valid: prefix_scores(model, params, tokens, valid),
        in_shardings=(None, rows, rows),
        out_shardings=replicated(mesh),
    )
