"""Rows of like length together, cut to their columns: the same numbers for fewer of them."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prm_jax.config import MeshConfig, ModelConfig
from prm_jax.model.heads import PolicyModel, ScalarModel
from prm_jax.sharding import batch_sharding, init_params, make_mesh, parted_rows
from prm_jax.steps import columns
from prm_jax.steps.experience import make_score
from prm_jax.steps.ppo import make_update
from prm_jax.steps.state import new_state, scalar_params
from prm_jax.types import PPOBatch, Samples

ONE = make_mesh(MeshConfig(), jax.devices()[:1])
EIGHT = make_mesh(MeshConfig(data=2, fsdp=4))
VOCAB, PAD, P, C, ROWS = 32, 0, 8, 32, 32
MODEL = ModelConfig(layers=2, embed=16, heads=2, kv_heads=2, head_dim=8, mlp=32)
POLICY, SCALAR = PolicyModel(MODEL, VOCAB, PAD), ScalarModel(MODEL, VOCAB)


def test_widths_rise_from_half_the_room_to_all_of_it():
    assert columns.widths(48, 116) == (88, 96, 104, 116)
    assert columns.widths(64, 1088) == (576, 704, 832, 1088)
    assert columns.widths(4, 12) == (8, 12)  # no width twice, none beyond the grid
    assert columns.widths(4, 5) == (5,)


@pytest.mark.parametrize("last", [0, 1, 8, 9, 16, 17, 40])
def test_a_batch_is_cut_to_the_fewest_columns_that_hold_all_that_is_filled(last):
    filled = np.zeros((3, 40), bool)
    filled[1, :last] = True
    seen = jax.jit(lambda x, f: columns.cut(lambda b: jnp.int32(b.shape[1]), x, f, (8, 16, 40)))
    wanted = next(width for width in (8, 16, 40) if width >= last)
    assert int(seen(np.zeros((3, 40)), filled)) == wanted


@pytest.mark.parametrize(("mesh", "parts"), [(ONE, 4), (EIGHT, 2)])
def test_parts_hold_rows_of_like_length(mesh, parts):
    lengths = np.random.default_rng(0).permutation(ROWS)
    mask = np.arange(ROWS)[None, :] < lengths[:, None]
    order = columns.by_length(jnp.asarray(mask), mesh, parts)
    assert sorted(np.asarray(order).tolist()) == list(range(ROWS))
    with jax.set_mesh(mesh):
        parted = np.asarray(jax.jit(lambda x: parted_rows(x[order], parts, mesh))(lengths))
    assert (parted.max(axis=1)[:-1] < parted.min(axis=1)[1:]).all()


@functools.cache
def batch() -> PPOBatch:
    """Prompts and completions of many lengths, and numbers also where nothing may be read."""
    rng = np.random.default_rng(1)
    lengths = np.append(rng.integers(0, C // 2, ROWS - 2), [1, C])
    column = np.arange(P + C)[None, :]
    mask = (column >= P) & (column < P + lengths[:, None])
    prompts = (column < P) & (column >= rng.integers(0, P - 1, ROWS)[:, None])

    def numbers():
        return jnp.asarray(rng.normal(size=(ROWS, P + C)), jnp.float32)

    return PPOBatch(
        tokens=jnp.asarray(rng.integers(1, VOCAB, (ROWS, P + C)), jnp.int32),
        valid=jnp.asarray(mask | prompts),
        completion_mask=jnp.asarray(mask),
        logp=numbers() / 4 - 3,
        values=numbers(),
        advantages=numbers(),
        returns=numbers(),
    )


@functools.cache
def params(mesh):
    policy = init_params(POLICY, mesh, jax.random.key(0))
    scalar = scalar_params(SCALAR, policy["trunk"], mesh)
    head = {"kernel": jnp.linspace(-1, 1, MODEL.embed), "bias": jnp.float32(0.1)}
    where = jax.tree.map(lambda x: x.sharding, scalar["head"])
    return policy, scalar | {"head": jax.device_put(head, where)}


def updated(mesh, rows_at_once, minibatches=1):
    tx = optax.sgd(0.1)
    states = [new_state(p, tx, mesh) for p in params(mesh)]
    update: Any = make_update(
        POLICY, SCALAR, tx, tx, mesh,
        *(jax.tree.map(lambda x: x.sharding, state) for state in states),
        prompt_tokens=P, epochs=1, minibatches=minibatches, temperature=0.7, clip_low=0.2,
        clip_high=0.2, value_clip=0.2, rows_at_once=rows_at_once,
    )  # fmt: skip
    placed = jax.device_put(batch(), batch_sharding(mesh))
    with jax.set_mesh(mesh):
        policy, critic, metrics = update(*states, ({}, {}), placed, jax.random.key(3))
    return jax.device_get((policy.params, critic.params, metrics))


@functools.cache
def whole_update(minibatches):
    return updated(ONE, 0, minibatches)


@pytest.mark.parametrize(
    ("mesh", "rows_at_once", "minibatches"), [(ONE, 4, 1), (ONE, 4, 2), (EIGHT, 2, 1)]
)
def test_an_update_by_length_is_the_update(mesh, rows_at_once, minibatches):
    wanted = jax.tree.leaves(whole_update(minibatches))
    found = jax.tree.leaves(updated(mesh, rows_at_once, minibatches))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6)
    before = jax.tree.leaves(params(ONE))
    moved = jax.tree.leaves(whole_update(minibatches)[:2])
    assert all(np.abs(a - b).max() > 1e-4 for a, b in zip(moved[:3], before, strict=False))


@pytest.mark.parametrize(("mesh", "rows_at_once"), [(ONE, 4), (EIGHT, 2)])
def test_scores_by_length_are_the_scores_row_for_row(mesh, rows_at_once):
    def scored(mesh, rows_at_once):
        policy, scalar = params(mesh)
        names = [field.name for field in dataclasses.fields(Samples)]
        samples = Samples(**{name: getattr(batch(), name) for name in names})
        samples = jax.device_put(samples, batch_sharding(mesh))
        score = make_score(
            POLICY, SCALAR, mesh, prompt_tokens=P, temperature=0.7, rows_at_once=rows_at_once
        )
        with jax.set_mesh(mesh):
            return jax.device_get(score(policy, scalar, scalar, samples))

    for a, b in zip(scored(mesh, rows_at_once), scored(ONE, 0), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
        assert np.abs(b[batch().completion_mask]).min() > 0
