"""Gradients of a few rows at a time add up to those of the batch, on one device and on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prm_jax.config import MeshConfig, ModelConfig
from prm_jax.model.heads import ScalarModel
from prm_jax.rl.losses import prm_loss
from prm_jax.sharding import batch_sharding, count_parts, init_params, make_mesh
from prm_jax.steps.prm import make_prm_step
from prm_jax.steps.state import gradients, new_state
from prm_jax.types import LabelBatch

ONE = make_mesh(MeshConfig(), jax.devices()[:1])
EIGHT = make_mesh(MeshConfig(data=2, fsdp=4))
ROWS, T = 32, 6


def labels() -> LabelBatch:
    """Rows with none to all of their tokens labelled, and unlike: parts weigh differently."""
    rng = np.random.default_rng(0)
    mask = rng.random((ROWS, T)) < np.linspace(0, 1, ROWS)[:, None]
    return LabelBatch(
        tokens=jnp.asarray(rng.integers(1, 16, (ROWS, T)), jnp.int32),
        valid=jnp.ones((ROWS, T), bool),
        weights=jnp.asarray(mask * rng.integers(1, 5, mask.shape), jnp.float32),
        labels=jnp.asarray(rng.normal(size=(ROWS, T)), jnp.float32),
    )


def squared_error(params, frozen, batch):
    value = prm_loss(params["a"] * batch.tokens + params["b"] + frozen, batch.labels, batch.weights)
    return value, {"loss": value}


@pytest.mark.parametrize(("mesh", "rows"), [(ONE, 1), (ONE, 8), (ONE, 3), (EIGHT, 1), (EIGHT, 2)])
def test_parts_weigh_as_their_tokens(mesh, rows):
    params = {"a": jnp.float32(0.3), "b": jnp.float32(-0.2)}
    batch = jax.device_put(labels(), batch_sharding(mesh))

    def of(rows_at_once):
        with jax.set_mesh(mesh):
            return jax.jit(
                lambda p, b: gradients(
                    squared_error, lambda b: b.weights, p, 0.1, b, mesh, rows_at_once
                )
            )(params, batch)

    for whole, parts in zip(*map(jax.tree.leaves, (of(0), of(rows))), strict=True):
        np.testing.assert_allclose(parts, whole, rtol=1e-5)


def test_rows_stay_on_their_device():
    batch = jax.device_put(labels(), batch_sharding(EIGHT))
    with jax.set_mesh(EIGHT):
        text = (
            jax.jit(
                lambda p, b: gradients(squared_error, lambda b: b.weights, p, 0.1, b, EIGHT, 1)[0]
            )
            .lower({"a": jnp.float32(1), "b": jnp.float32(1)}, batch)
            .compile()
            .as_text()
        )
    assert (
        "all-to-all" not in text and "all-gather" not in text and "collective-permute" not in text
    )


@pytest.mark.parametrize(
    ("rows", "mesh", "at_once", "parts"),
    [(32, ONE, 0, 1), (32, ONE, 32, 1), (32, ONE, 99, 1), (32, ONE, 8, 4), (32, ONE, 3, 16),
     (32, EIGHT, 3, 2), (7, ONE, 2, 7)],
)  # fmt: skip
def test_a_part_has_the_most_rows_that_divide_a_devices(rows, mesh, at_once, parts):
    assert count_parts(rows, mesh, at_once) == parts


def test_a_step_of_the_prm_is_the_same_and_keeps_less():
    config = ModelConfig(layers=1, embed=16, heads=2, kv_heads=2, head_dim=8, mlp=64)
    model = ScalarModel(config, 16)
    tx = optax.sgd(0.1)
    batch = labels()
    found, temporaries = [], []
    for rows in (0, 2):
        state = new_state(init_params(model, ONE, jax.random.key(0)), tx, ONE)
        step = make_prm_step(model, tx, ONE, jax.tree.map(lambda x: x.sharding, state), rows)
        with jax.set_mesh(ONE):
            compiled = step.lower(state, {}, batch).compile()  # type: ignore[attr-defined]
            temporaries.append(compiled.memory_analysis().temp_size_in_bytes)
            state, metrics = step(state, {}, batch)
        found.append((state.params, metrics))
    for whole, parts in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-6)
    assert temporaries[1] < temporaries[0] / 2
