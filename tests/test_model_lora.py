"""Low-rank adapters: nothing at first, W + (alpha / rank) A B later, and nothing else trains."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax.config import MeshConfig, ModelConfig
from prm_jax.model.heads import PolicyModel, ScalarModel
from prm_jax.model.lora import (
    fresh_adapters,
    is_adapter,
    join,
    merge_lora,
    split_trainable,
    trainable,
)
from prm_jax.sharding import init_params, make_mesh

BASE = ModelConfig(
    layers=2, embed=16, heads=4, kv_heads=2, head_dim=8, mlp=24, qkv_bias=True,
    tied_embeddings=False,
)  # fmt: skip
LORA = dataclasses.replace(BASE, lora_rank=3, lora_alpha=6.0)
VOCAB, PAD = 30, 0
MODEL, PLAIN = PolicyModel(LORA, VOCAB, PAD), PolicyModel(BASE, VOCAB, PAD)
TOKENS = jnp.asarray([[3, 7, 9, 4, 1]])
VALID = TOKENS > 0


def named(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in leaves}


def one_device():
    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def fresh():
    return init_params(MODEL, one_device(), jax.random.key(0))


@pytest.fixture(scope="module")
def tuned(fresh):
    """Parameters after some training: no B is 0."""
    key = jax.random.key(1)
    return jax.tree.map_with_path(
        lambda path, x: (
            0.3 * jax.random.normal(jax.random.fold_in(key, len(str(path))), x.shape)
            if "_lora_b" in str(path)
            else x
        ),
        fresh,
    )


def logits(model, params):
    return np.asarray(jax.jit(model.apply)({"params": params}, TOKENS, VALID))


def test_every_linear_kernel_of_attention_and_mlp_has_adapters_of_the_rank(fresh):
    layer = named(fresh["trunk"]["layers_1"])
    shapes = {name: x.shape for name, x in layer.items() if is_adapter(name)}
    assert shapes == {
        "attention/query_lora_a": (16, 3), "attention/query_lora_b": (3, 4, 8),
        "attention/key_lora_a": (16, 3), "attention/key_lora_b": (3, 2, 8),
        "attention/value_lora_a": (16, 3), "attention/value_lora_b": (3, 2, 8),
        "attention/out_lora_a": (4, 8, 3), "attention/out_lora_b": (3, 16),
        "mlp/gate_up_lora_a": (16, 2, 3), "mlp/gate_up_lora_b": (2, 3, 24),
        "mlp/down_lora_a": (24, 3), "mlp/down_lora_b": (3, 16),
    }  # fmt: skip


def test_fresh_adapters_change_nothing(fresh):
    plain = merge_lora(fresh, LORA)
    shapes = named(init_params(PLAIN, one_device(), jax.random.key(0)))
    assert {n: x.shape for n, x in named(plain).items()} == {n: x.shape for n, x in shapes.items()}
    for name, value in named(plain).items():
        np.testing.assert_array_equal(value, named(fresh)[name])
    np.testing.assert_array_equal(logits(MODEL, fresh), logits(PLAIN, plain))


def test_merged_kernels_give_what_the_adapters_give(tuned, fresh):
    merged = merge_lora(tuned, LORA)
    assert not any(map(is_adapter, named(merged)))
    out = logits(PLAIN, merged)
    np.testing.assert_allclose(out, logits(MODEL, tuned), atol=2e-5)
    assert np.abs(out - logits(MODEL, fresh))[..., 1:].max() > 0.1
    assert merge_lora(merged, BASE) is merged


def test_a_merged_kernel_is_w_plus_alpha_over_rank_times_a_b(tuned):
    merged = merge_lora(tuned, LORA)["trunk"]["layers_0"]
    for part in (0, 1):
        mlp = {name: np.asarray(x) for name, x in tuned["trunk"]["layers_0"]["mlp"].items()}
        product = mlp["gate_up_lora_a"][:, part] @ mlp["gate_up_lora_b"][part]
        np.testing.assert_allclose(
            merged["mlp"]["gate_up_kernel"][:, part],
            mlp["gate_up_kernel"][:, part] + 2 * product,
            atol=1e-6,
        )
    attention = tuned["trunk"]["layers_0"]["attention"]
    product = np.einsum("nhr,rd->nhd", attention["out_lora_a"], attention["out_lora_b"])
    np.testing.assert_allclose(
        merged["attention"]["out_kernel"], attention["out_kernel"] + 2 * product, atol=1e-6
    )


def test_adapters_and_the_scalar_head_train_and_nothing_else(tuned):
    assert {n for n, t in named(trainable(tuned)).items() if t} == {
        name for name in named(tuned) if is_adapter(name)
    }
    scalar = tuned | {"head": {"kernel": jnp.zeros(16), "bias": jnp.float32(0)}}
    trains = named(trainable(scalar))
    assert trains["head/kernel"] and trains["head/bias"] and not trains["trunk/embedding"]
    assert all(jax.tree.leaves(trainable(merge_lora(tuned, LORA))))


def test_split_and_join_are_inverse(tuned):
    trained, frozen = split_trainable(tuned)
    assert named(trained).keys() | named(frozen).keys() == named(tuned).keys()
    assert not named(trained).keys() & named(frozen).keys()
    joined = join(trained, frozen)
    assert jax.tree.structure(joined) == jax.tree.structure(tuned)
    for name, value in named(joined).items():
        assert value is named(tuned)[name]


def test_gradients_of_adapters_follow_from_the_gradient_of_the_merged_kernel(tuned):
    """With W' = W + s A B: dA = s dW' B^T and dB = s A^T dW'."""
    weights = jax.random.normal(jax.random.key(2), (1, 5, VOCAB))

    def loss(model, params):
        out = model.apply({"params": params}, TOKENS, VALID)
        return (weights * out)[..., 1:].sum()

    trained, frozen = split_trainable(tuned)
    grads = jax.jit(jax.grad(lambda t: loss(MODEL, join(t, frozen))))(trained)
    of_merged = jax.jit(jax.grad(lambda p: loss(PLAIN, p)))(merge_lora(tuned, LORA))
    for part, name, inputs in (("attention", "query", 1), ("mlp", "down", 1)):
        mine = tuned["trunk"]["layers_0"][part]
        a = np.asarray(mine[f"{name}_lora_a"])
        b = np.asarray(mine[f"{name}_lora_b"]).reshape(3, -1)
        w = np.asarray(of_merged["trunk"]["layers_0"][part][f"{name}_kernel"])
        w = w.reshape(int(np.prod(w.shape[:inputs])), -1)
        found = grads["trunk"]["layers_0"][part]
        np.testing.assert_allclose(found[f"{name}_lora_a"], 2 * w @ b.T, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(
            np.asarray(found[f"{name}_lora_b"]).reshape(3, -1), 2 * a.T @ w, rtol=1e-3, atol=1e-3
        )


def test_no_gradient_of_a_frozen_kernel_is_computed(tuned):
    trained, frozen = split_trainable(tuned)

    def loss(trained):
        return MODEL.apply({"params": join(trained, frozen)}, TOKENS, VALID)[..., 1:].sum()

    def shapes(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                yield equation.outvars[0].aval.shape
            for inner in jax.tree.leaves(
                equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
            ):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from shapes(inner)

    made = {tuple(sorted(s)) for s in shapes(jax.make_jaxpr(jax.grad(loss))(trained).jaxpr)}
    assert (3, 24) in made  # of an adapter: the search sees gradients
    assert (16, 24) not in made and (2, 16, 24) not in made and (4, 8, 16) not in made


def test_adapters_alone_are_made_in_their_shardings(fresh):
    mesh = make_mesh(MeshConfig(1, 4, 2))
    adapters = named(fresh_adapters(MODEL, mesh, jax.random.key(0)))
    expected = {name: x for name, x in named(fresh).items() if is_adapter(name)}
    assert adapters.keys() == expected.keys()
    for name, value in adapters.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-6)
    a = adapters["trunk/layers_0/attention/query_lora_a"]
    assert a.sharding.shard_shape(a.shape) == (4, 3)


def test_scalar_models_have_adapters_too():
    params = init_params(ScalarModel(LORA, VOCAB), one_device(), jax.random.key(0))
    assert named(split_trainable(params)[0]).keys() >= {"head/kernel", "head/bias"}
