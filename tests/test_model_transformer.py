import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax.config import ModelConfig, RopeConfig
from prm_jax.model.attention import Cache
from prm_jax.model.heads import PolicyModel, ScalarModel
from prm_jax.model.transformer import RMSNorm

TINY = ModelConfig(
    layers=2, embed=16, heads=4, kv_heads=2, head_dim=6, mlp=24, rope=RopeConfig(theta=50.0)
)
FAMILIES = {
    "llama": dataclasses.replace(TINY, tied_embeddings=False),
    "llama with biases": dataclasses.replace(TINY, qkv_bias=True, out_bias=True, mlp_bias=True),
    "qwen2": dataclasses.replace(TINY, qkv_bias=True),
    "qwen3": dataclasses.replace(TINY, qk_norm=True, kv_heads=1),
}
VOCAB, PAD = 30, 0


@functools.cache
def new(model_class, config, **kwargs):
    """A model with parameters that are all random: a zero bias or a scale of 1 hides mistakes."""
    model = model_class(config, VOCAB, **kwargs)
    tokens = jnp.ones((1, 1), jnp.int32)
    boxes = jax.eval_shape(model.init, jax.random.key(0), tokens, tokens > 0)
    rng = np.random.default_rng(1)

    def random(path, shape):
        mean = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0
        return jnp.asarray(rng.normal(mean, 0.25, shape.shape), jnp.float32)

    return model, jax.tree.map_with_path(random, nn.meta.unbox(boxes)["params"])


def policy(config):
    return new(PolicyModel, config, pad_id=PAD)


def apply(model, params, *args, **kwargs):
    return jax.jit(functools.partial(model.apply, **kwargs))({"params": params}, *args)


def hidden(model, params, tokens, valid, **kwargs):
    return apply(model, params, tokens, valid, method="hidden", **kwargs)[0]


def norm_by_hand(x, scale, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale


def logits_by_hand(p, c, tokens):
    """The whole forward pass of one unpadded sequence, in float64, position by position."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), p)
    trunk = p["trunk"]
    x = trunk["embedding"][tokens]
    half = c.head_dim // 2
    turn = np.exp(1j * np.arange(len(tokens))[:, None] * c.rope.theta ** (-np.arange(half) / half))

    def turned(y):  # [T, head_dim]
        z = (y[:, :half] + 1j * y[:, half:]) * turn
        return np.concatenate([z.real, z.imag], axis=1)

    for i in range(c.layers):
        layer = trunk[f"layers_{i}"]
        a = layer["attention"]
        y = norm_by_hand(x, layer["attention_norm"]["scale"], c.norm_eps)
        out = np.zeros_like(x)
        for h in range(c.heads):
            g = h // (c.heads // c.kv_heads)
            q, k, v = (
                y @ a[f"{name}_kernel"][:, j] + (a[f"{name}_bias"][j] if c.qkv_bias else 0)
                for name, j in (("query", h), ("key", g), ("value", g))
            )
            if c.qk_norm:
                q = norm_by_hand(q, a["query_norm"]["scale"], c.norm_eps)
                k = norm_by_hand(k, a["key_norm"]["scale"], c.norm_eps)
            q, k = turned(q), turned(k)
            for t in range(len(tokens)):
                weights = np.exp(k[: t + 1] @ q[t] / np.sqrt(c.head_dim))
                out[t] += (weights / weights.sum()) @ v[: t + 1] @ a["out_kernel"][h]
        x = x + out + (a["out_bias"] if c.out_bias else 0)
        y = norm_by_hand(x, layer["mlp_norm"]["scale"], c.norm_eps)
        mlp = layer["mlp"]
        gate, up = y @ np.moveaxis(mlp["gate_up_kernel"], 1, 0)
        if c.mlp_bias:
            gate, up = gate + mlp["gate_up_bias"][0], up + mlp["gate_up_bias"][1]
        x = x + (gate / (1 + np.exp(-gate)) * up) @ mlp["down_kernel"]
        x = x + (mlp["down_bias"] if c.mlp_bias else 0)
    x = norm_by_hand(x, trunk["final_norm"]["scale"], c.norm_eps)
    return x @ (trunk["embedding"].T if c.tied_embeddings else p["head"])


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_logits_are_what_the_equations_give(config):
    model, params = policy(config)
    tokens = np.random.default_rng(2).integers(1, VOCAB, 7)
    logits = apply(model, params, jnp.asarray(tokens)[None], jnp.ones((1, 7), bool))
    expected = logits_by_hand(params, config, tokens)
    np.testing.assert_allclose(logits[0, :, 1:], expected[:, 1:], atol=3e-5)
    assert (np.asarray(logits[..., PAD]) < -1e29).all()


def test_rms_norm_rounds_to_bfloat16_once_at_the_end():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(1, 8, 64)), jnp.bfloat16)
    scale = rng.normal(size=64).astype(np.float32)
    out = RMSNorm(1e-6).apply({"params": {"scale": scale}}, x)
    assert out.dtype == jnp.bfloat16
    exact = norm_by_hand(np.asarray(x, np.float64), scale, 1e-6)
    # All but ties; with statistics in bfloat16 about half of the entries differ.
    assert (out == jnp.asarray(exact, jnp.bfloat16)).mean() > 0.99


def test_the_hidden_state_depends_on_its_own_and_earlier_tokens_only():
    model, params = policy(TINY)
    n = 6
    tokens = jnp.arange(1, n + 1)[None]  # each position has a row of the embedding for itself

    def of_embedding(embedding):
        trunk = params["trunk"] | {"embedding": embedding}
        return hidden(model, params | {"trunk": trunk}, tokens, jnp.ones((1, n), bool))[0]

    jacobian = jax.jit(jax.jacrev(of_embedding))(params["trunk"]["embedding"])  # [T, D, V, D]
    depends = np.abs(jacobian[:, :, 1 : n + 1]).max(axis=(1, 3)) > 0
    np.testing.assert_array_equal(depends, np.tril(np.ones((n, n), bool)))


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_padding_on_either_side_changes_nothing(config):
    model, params = policy(config)
    rng = np.random.default_rng(3)
    tokens = rng.integers(1, VOCAB, (2, 5))
    plain = hidden(model, params, jnp.asarray(tokens), jnp.ones((2, 5), bool))
    junk = rng.integers(0, VOCAB, (2, 9))
    junk[:, 3:8] = tokens
    valid = np.zeros((2, 9), bool)
    valid[:, 3:8] = True
    padded = hidden(model, params, jnp.asarray(junk), jnp.asarray(valid))
    np.testing.assert_allclose(padded[:, 3:8], plain, atol=1e-5)
    assert np.isfinite(padded).all()


def test_a_row_of_padding_alone_is_finite_and_so_is_its_gradient():
    model, params = policy(TINY)
    tokens, valid = jnp.zeros((2, 4), jnp.int32), jnp.array([[False] * 4, [True] * 4])

    def total(params):
        return hidden(model, params, tokens, valid).sum()

    value, grads = jax.jit(jax.value_and_grad(total))(params)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_columns_before_first_are_spared_and_the_others_equal():
    model, params = policy(FAMILIES["qwen3"])
    rng = np.random.default_rng(4)
    tokens = jnp.asarray(rng.integers(1, VOCAB, (2, 7)))
    valid = jnp.arange(7) >= jnp.array([[0], [3]])
    whole = hidden(model, params, tokens, valid)
    spared = hidden(model, params, tokens, valid, first=4)
    np.testing.assert_allclose(spared, whole[:, 4:], atol=1e-5)


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_decoding_through_the_cache_equals_the_full_forward_pass(config):
    model, params = policy(config)
    n, p, c, samples = 2, 5, 4, 3
    rng = np.random.default_rng(5)
    prompt = jnp.asarray(rng.integers(1, VOCAB, (n, p)))
    valid = jnp.arange(p) >= jnp.array([[0], [3]])
    completion = jnp.asarray(rng.integers(1, VOCAB, (n * samples, c)))
    _, read = apply(model, params, prompt, valid, method="hidden")
    empty = jnp.zeros((n * samples, config.kv_heads, c, config.head_dim))
    written = ((empty, empty),) * config.layers

    @jax.jit
    def decode(written, token, t):
        cache = Cache(read, valid, written, jnp.full(n * samples, t), p + c)
        return model.apply({"params": params}, token, token > 0, cache, method="hidden")

    steps = []
    for t in range(c):
        step, written = decode(written, completion[:, t : t + 1], jnp.int32(t))
        steps.append(step)
    tokens = jnp.concatenate([jnp.repeat(prompt, samples, 0), completion], axis=1)
    all_valid = jnp.concatenate([jnp.repeat(valid, samples, 0), completion > 0], axis=1)
    whole = hidden(model, params, tokens, all_valid)
    np.testing.assert_allclose(jnp.concatenate(steps, axis=1), whole[:, p:], atol=1e-5)


def test_bfloat16_computes_near_float32_and_returns_float32_logits():
    model, params = policy(TINY)
    half = PolicyModel(dataclasses.replace(TINY, dtype="bfloat16"), VOCAB, PAD)
    tokens = jnp.arange(1, 9)[None]
    valid = jnp.ones((1, 8), bool)
    assert hidden(half, params, tokens, valid).dtype == jnp.bfloat16
    low, high = (apply(m, params, tokens, valid) for m in (half, model))
    assert low.dtype == jnp.float32
    difference = np.abs(low - high)[..., 1:].max()
    assert 0 < difference < 0.03 * np.abs(high)[..., 1:].max()


def test_policy_and_scalar_model_share_the_structure_of_the_trunk():
    model, params = policy(FAMILIES["qwen2"])
    scalar, scalar_params = new(ScalarModel, FAMILIES["qwen2"])
    assert jax.tree.structure(params["trunk"]) == jax.tree.structure(scalar_params["trunk"])
    tokens, valid = jnp.arange(1, 5)[None], jnp.ones((1, 4), bool)
    head = {"kernel": jnp.arange(16.0), "bias": jnp.float32(2)}
    moved = apply(scalar, {"trunk": params["trunk"], "head": head}, tokens, valid)
    expected = hidden(model, params, tokens, valid) @ jnp.arange(16.0) + 2
    np.testing.assert_allclose(moved, expected, rtol=1e-5)


def test_a_fresh_scalar_model_predicts_zero_but_learns():
    model = ScalarModel(TINY, VOCAB)
    tokens, valid = jnp.arange(1, 5)[None], jnp.ones((1, 4), bool)
    params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), tokens, valid)["params"])
    np.testing.assert_array_equal(apply(model, params, tokens, valid), 0)
    grads = jax.jit(jax.grad(lambda p: apply(model, p, tokens, valid).sum()))(params)
    assert np.abs(grads["head"]["kernel"]).max() > 0


def test_fresh_logits_are_small_and_parameters_float32():
    model = PolicyModel(ModelConfig(dtype="bfloat16"), 400, PAD)
    tokens = jax.random.randint(jax.random.key(1), (4, 32), 1, 400)
    init = jax.jit(model.init_with_output)
    logits, variables = init(jax.random.key(0), tokens, tokens > 0)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    loss = -jax.nn.log_softmax(logits)[:, :-1]
    loss = jnp.take_along_axis(loss, tokens[:, 1:, None], axis=-1).mean()
    assert float(loss) == pytest.approx(np.log(399), rel=0.15)
