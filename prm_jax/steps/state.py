"""Train states: parameters, optimizer state and step counter of one model, made sharded."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from prm_jax import sharding
from prm_jax.model.heads import ScalarModel
from prm_jax.steps import columns
from prm_jax.types import TrainState


def adamw_cosine(
    *,
    steps: int,
    learning_rate: float,
    warmup_steps: int,
    weight_decay: float,
    max_grad_norm: float,
    moments: str = "float32",
) -> optax.GradientTransformation:
    """AdamW behind a global-norm clip; the rate rises linearly and falls on a cosine to a tenth.

    First moments are kept in the dtype `moments`.
    """
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=learning_rate,
        warmup_steps=min(warmup_steps, steps - 1),
        decay_steps=steps,
        end_value=0.1 * learning_rate,
    )
    return optax.chain(
        optax.clip_by_global_norm(max_grad_norm),
        optax.adamw(schedule, b2=0.98, weight_decay=weight_decay, mu_dtype=moments),
    )


def adam(
    *,
    learning_rate: float,
    max_grad_norm: float,
    steps: int = 1,
    final_share: float = 1.0,
    moments: str = "float32",
) -> optax.GradientTransformation:
    """Adam behind a global-norm clip, at a rate that falls on a line to a `final_share` of it.

    First moments are kept in the dtype `moments`. Second ones are float32 whatever it is: of a
    bfloat16 number a step changes (1 - b2) = 0.001, below half of its last place, so it would stand
    still.
    """
    schedule = optax.linear_schedule(learning_rate, final_share * learning_rate, steps)
    return optax.chain(
        optax.clip_by_global_norm(max_grad_norm), optax.adam(schedule, mu_dtype=moments)
    )


def new_state(params: Any, tx: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """A state at step 0 that owns copies of `params`: the caller's buffers are never donated."""
    return jax.jit(
        lambda p: TrainState(step=jnp.int32(0), params=p, opt_state=tx.init(p)),
        out_shardings=state_shardings(params, tx, mesh),
    )(jax.tree.map(jnp.copy, params))


def abstract_state(params: Any, tx: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """What `new_state` would make of parameters of these shapes and shardings, without any."""
    state = jax.eval_shape(lambda p: TrainState(jnp.int32(0), p, tx.init(p)), params)
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        state,
        state_shardings(params, tx, mesh),
    )


def state_shardings(params: Any, tx: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The shardings of a train state: moments lie as their parameters, scalars on every device."""
    return TrainState(
        step=sharding.replicated(mesh),  # type: ignore[arg-type]
        params=jax.tree.map(lambda x: x.sharding, params),
        opt_state=sharding.optimizer_shardings(tx, params, mesh),
    )


def scalar_params(scalar: ScalarModel, trunk: Any, mesh: Mesh) -> Any:
    """Parameters of a critic or a PRM: `trunk` itself, and a fresh head, which is 0 everywhere."""
    like = sharding.abstract_params(scalar, mesh)["head"]
    head = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding), like)
    return {"trunk": trunk, "head": head}


def apply_gradients(
    state: TrainState, grads: Any, tx: optax.GradientTransformation
) -> tuple[TrainState, jax.Array]:
    """The state after one optimizer step, and the global norm of the gradients before the clip."""
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, opt_state), optax.tree.norm(grads)


Loss = Callable[[Any, Any, Any], tuple[jax.Array, dict[str, jax.Array]]]


def gradients(
    loss: Loss,
    counted: Callable[[Any], jax.Array],
    trained: Any,
    frozen: Any,
    batch: Any,
    mesh: Mesh,
    rows_at_once: int = 0,
    prompt_tokens: int | None = None,
) -> tuple[Any, dict[str, jax.Array]]:
    """Gradients of `loss(trained, frozen, batch)`, a mean over tokens that `counted` weighs.

    The weights `counted(batch)` are a mask, or counts: 0, or at least 1.

    With `rows_at_once` > 0 each device takes at most that many of its rows at a time
    (`sharding.count_parts`), for as many more passes over the parameters. Each part weighs as its
    share of them, so that the sum is the gradient of the whole batch to rounding; so are the
    metrics that are means over tokens.

    With `prompt_tokens` the parts are of like length and cut to it (columns.py): all arrays of the
    batch are `[B, T]`, and what is counted lies behind so many columns of prompts.
    """
    gradient = functools.partial(jax.grad(loss, has_aux=True), trained, frozen)
    n = sharding.count_parts(counted(batch).shape[0], mesh, rows_at_once)
    if n == 1:
        return gradient(batch)
    if prompt_tokens is not None:
        order = columns.by_length(counted(batch), mesh, n)
        batch = jax.tree.map(lambda x: x[order], batch)
    total = jnp.maximum(counted(batch).sum(), 1)

    def add(sums: Any, part: Any) -> tuple[Any, None]:
        filled = counted(part)
        if prompt_tokens is None:
            found = gradient(part)
        else:
            widths = columns.widths(prompt_tokens, filled.shape[1])
            found = columns.cut(gradient, part, filled, widths)
        share = filled.sum() / total
        return jax.tree.map(lambda a, b: a + share * b, sums, found), None

    batches = jax.tree.map(lambda x: sharding.parted_rows(x, n, mesh), batch)
    first = jax.tree.map(lambda x: x[0], batches)
    like = jax.eval_shape(gradient, first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    return jax.lax.scan(add, zeros, batches)[0]
