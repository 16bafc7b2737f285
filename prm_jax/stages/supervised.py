"""The loop that SFT and the PRM share: one optimizer step per batch, resumable at any moment."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from prm_jax import hosts
from prm_jax.checkpoint import Checkpoints
from prm_jax.config import ModelConfig, PRMConfig, SFTConfig
from prm_jax.metrics import Progress
from prm_jax.model.lora import join, split_trainable
from prm_jax.stages.run import Run
from prm_jax.steps.state import adamw_cosine, new_state
from prm_jax.types import TrainState

MakeStep = Callable[
    [optax.GradientTransformation, TrainState],
    Callable[[TrainState, Any, Any], tuple[TrainState, dict[str, jax.Array]]],
]


def optimizer(config: SFTConfig | PRMConfig, model: ModelConfig) -> optax.GradientTransformation:
    """The optimizer of a supervised stage."""
    return adamw_cosine(
        steps=max(config.steps, 1),
        learning_rate=config.learning_rate,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        moments=model.moments,
    )


def fit(
    run: Run,
    stage: str,
    kind: str,
    config: SFTConfig | PRMConfig,
    params: Any,
    make_step: MakeStep,
    batch_at: Callable[[int], Any],
) -> Any:
    """Trains from `params`, leaves what was trained in `<stage>/<kind>`, and returns all of them.

    `make_step(tx, shardings)` makes the compiled step; `batch_at(step)` is a batch that depends on
    nothing but its step, so that a resumed run goes on as if it had never stopped.
    """
    tx = optimizer(config, run.config.model)
    trained, frozen = split_trainable(params)
    state = new_state(trained, tx, run.mesh)
    del params, trained  # the state has copies of its own
    step_fn = make_step(tx, jax.tree.map(lambda x: x.sharding, state))
    with (
        Checkpoints(run.workdir / stage / "state", keep=1) as states,
        Checkpoints(run.workdir / stage / kind) as results,
    ):
        start = states.steps()[-1] if states.steps() else 0
        if start:
            state = states.restore(start, state)
        run.log.rewind(stage, start)
        with Progress(config.steps, stage, initial=start) as progress:
            for step in range(start, config.steps):
                state, metrics = step_fn(state, frozen, batch_at(step))
                run.log.log(stage, step, metrics)
                progress.update(1, **metrics)
                if step + 1 == config.steps:
                    break
                stop = hosts.stop_asked()
                if stop or (step + 1) % config.checkpoint_every == 0:
                    run.log.flush()
                    states.save(step + 1, state)
                if stop:
                    raise hosts.Stopped
        run.log.flush()
        results.save(config.steps, state.params)
    return join(state.params, frozen)
