"""What large models need changes no number: recomputed and scanned layers, the kernel of TPUs, a
vocabulary and an embedding that no device holds whole, and parameters in the layers' precision."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from prm_jax.config import MeshConfig, ModelConfig
from prm_jax.model import score
from prm_jax.model.attention import causal_attention
from prm_jax.model.flash import flash_attention, on_tpu
from prm_jax.model.heads import PolicyModel, ScalarModel
from prm_jax.model.linear import as_computed
from prm_jax.model.score import prefix_scores, token_logps
from prm_jax.model.transformer import embed
from prm_jax.sharding import abstract_params, init_params, make_mesh

CONFIG = ModelConfig(
    layers=3, embed=16, heads=2, kv_heads=2, head_dim=8, mlp=24, qkv_bias=True, lora_rank=2
)
VOCAB, PAD, T = 48, 0, 9
ONE = make_mesh(MeshConfig(), jax.devices()[:1])


def policy(**settings) -> PolicyModel:
    return PolicyModel(dataclasses.replace(CONFIG, **settings), VOCAB, PAD)


def batch(rows: int = 4):
    rng = np.random.default_rng(0)
    valid = np.arange(T) >= rng.integers(0, 3, rows)[:, None]
    tokens = np.where(valid, rng.integers(1, VOCAB, (rows, T)), PAD)
    return jnp.asarray(tokens, jnp.int32), jnp.asarray(valid)


@pytest.fixture(scope="module")
def params():
    params = init_params(policy(), ONE, jax.random.key(0))
    noise = jax.tree.map(lambda x: jax.random.normal(jax.random.key(1), x.shape), params)
    return jax.tree.map(lambda x, e: x + 0.1 * e, params, noise)  # adapters too: they start at 0


def loss_and_gradient(model: PolicyModel, params, prompt_tokens: int = 0):
    tokens, valid = batch()

    def loss(params):
        logp, entropy = token_logps(
            model, params, tokens, valid, temperature=1.0, prompt_tokens=prompt_tokens
        )
        return (logp * jnp.cos(tokens) + entropy).sum()

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize("prompt_tokens", [0, 4])  # the last layer stands in the loop, or apart
@pytest.mark.parametrize(
    "changed",
    [{"remat": "full"}, {"scan_layers": True}, {"remat": "full", "scan_layers": True}],
    ids=str,
)
def test_recomputed_and_scanned_layers_have_the_same_loss_and_gradients(
    params, changed, prompt_tokens
):
    expected = loss_and_gradient(policy(), params, prompt_tokens)
    got = loss_and_gradient(policy(**changed), params, prompt_tokens)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


def test_layers_keep_their_parameters_apart_when_they_are_scanned():
    plain, scanned = (abstract_params(policy(scan_layers=on), ONE) for on in (False, True))
    assert plain == scanned and "layers_2" in scanned["trunk"]


def residuals_bytes(model: PolicyModel, params) -> int:
    """What a gradient keeps from its forward pass, beside the parameters."""
    tokens, valid = batch(16)

    def read(params):
        return token_logps(model, params, tokens, valid, temperature=1.0)[0].sum()

    kept = jax.eval_shape(lambda p: jax.vjp(read, p)[1], params)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(kept))


def test_recomputed_layers_keep_little_for_the_backward_pass(params):
    own = sum(x.nbytes for x in jax.tree.leaves(params))
    all_kept = residuals_bytes(policy(), params) - own
    assert residuals_bytes(policy(remat="full"), params) - own < all_kept / 2


def test_a_scanned_trunk_is_traced_once(params):
    def products(model):
        read = jax.jit(lambda p: token_logps(model, p, *batch(), temperature=1.0))
        return read.lower(params).as_text().count("dot_general")

    assert products(policy(scan_layers=True)) < products(policy()) / 2


# --------------------------------------------------------------------------- attention


@settings(max_examples=4, deadline=None, derandomize=True)
@given(
    heads=st.sampled_from([(2, 2), (4, 2), (3, 1)]),
    t=st.sampled_from([5, 130]),
    spared=st.sampled_from([0, 3]),
    seed=st.integers(0, 100),
)
def test_the_kernel_of_tpus_computes_causal_attention_and_its_gradient(heads, t, spared, seed):
    (heads, kv_heads), s, head_dim = heads, t - spared, 64
    rng = np.random.default_rng(seed)
    query = jnp.asarray(rng.normal(size=(2, heads, s, head_dim)), jnp.float32)
    key, value = (
        jnp.asarray(rng.normal(size=(2, kv_heads, t, head_dim)), jnp.float32) for _ in "kv"
    )
    valid = (np.arange(t) >= rng.integers(0, 3, 2)[:, None]) & (np.arange(t) < t - 1)
    read = jnp.asarray(valid[:, None, t - s :, None])  # padding queries say nothing

    def outputs(attention, **settings):
        def weighted(query, key, value):
            out = attention(query, key, value, jnp.asarray(valid), **settings)
            out = jnp.where(read, out, 0.0)
            return (out * jnp.sin(jnp.arange(head_dim))).sum(), out

        return jax.value_and_grad(weighted, argnums=(0, 1, 2), has_aux=True)(query, key, value)

    with jax.default_matmul_precision("highest"):
        expected = outputs(causal_attention)
        got = outputs(flash_attention, interpret=True)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-4)


def test_the_kernel_runs_on_each_device_for_its_own_rows_and_heads():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    rng = np.random.default_rng(0)
    query, key, value = (jnp.asarray(rng.normal(size=(4, n, 6, 8)), jnp.float32) for n in (4, 2, 2))
    valid = jnp.ones((4, 6), bool)
    expected = causal_attention(query, key, value, valid)
    with jax.set_mesh(mesh):
        got = jax.jit(lambda *x: flash_attention(*x, interpret=True))(query, key, value, valid)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert got.sharding.shard_shape(got.shape) == (1, 2, 6, 8)


def test_programs_for_a_cpu_do_not_take_the_kernel():
    with jax.set_mesh(ONE):
        assert jax.jit(lambda x: x + on_tpu())(0) == 0


# ----------------------------------------------------------------- parameters and vocabulary


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["policy", "scalar"])
def test_parameters_in_the_layers_precision_give_the_same_bits(kind, tied):
    config = dataclasses.replace(CONFIG, dtype="bfloat16", tied_embeddings=tied)
    tokens, valid = batch()
    if kind == "policy":
        model = PolicyModel(config, VOCAB, PAD)

        def read(params):
            return token_logps(model, params, tokens, valid, temperature=1.0)[0]
    else:
        model = ScalarModel(config, VOCAB)

        def read(params):
            return prefix_scores(model, params, tokens, valid)

    params = jax.tree.map(lambda x: x + 0.01, init_params(model, ONE, jax.random.key(0)))
    low = as_computed(params, config)
    np.testing.assert_array_equal(read(params), read(low))
    n_bytes, low_bytes = (sum(x.nbytes for x in jax.tree.leaves(tree)) for tree in (params, low))
    assert low_bytes < 0.55 * n_bytes


def test_tokens_are_looked_up_where_the_columns_of_the_embedding_are(params):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    tokens, _ = batch()
    whole = params["trunk"]["embedding"]
    table = jax.device_put(whole, NamedSharding(mesh, P("tensor", "fsdp")))
    with jax.set_mesh(mesh):
        looked_up = jax.jit(embed)
        got = looked_up(table, tokens)
        text = looked_up.lower(table, tokens).compile().as_text()
    np.testing.assert_array_equal(got, whole[tokens])
    gathered = re.findall(r"f32\[([\d,]+)\][^ ]* all-gather\(", text)
    assert not [shape for shape in gathered if shape.startswith(str(VOCAB))]


def test_a_vocabulary_in_pieces_is_the_same_on_a_mesh(monkeypatch, params):
    tokens, valid = batch(8)
    model = policy(tied_embeddings=False)
    whole = init_params(model, ONE, jax.random.key(0))

    def total(params):
        logp, entropy = token_logps(model, params, tokens, valid, temperature=0.7)
        return (logp * jnp.cos(tokens) + entropy).sum()

    expected = jax.jit(jax.value_and_grad(total))(whole)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    shardings = jax.tree.map(lambda x: x.sharding, abstract_params(model, mesh))
    # A third of the columns of each shard of the vocabulary, for the rows of one device.
    monkeypatch.setattr(score, "LOGITS_PER_DEVICE", 8 * T * VOCAB // 8 // 3)
    with jax.set_mesh(mesh):
        got = jax.jit(jax.value_and_grad(lambda p: total(p)))(jax.device_put(whole, shardings))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-4)
