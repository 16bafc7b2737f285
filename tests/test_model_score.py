import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax.config import MeshConfig, ModelConfig
from prm_jax.model import score
from prm_jax.model.heads import PolicyModel, ScalarModel
from prm_jax.model.score import prefix_scores, state_values, token_logps
from prm_jax.sharding import init_params, make_mesh

CONFIG = ModelConfig(layers=2, embed=16, heads=2, kv_heads=1, head_dim=8, mlp=24)
VOCAB, PAD, P, T = 40, 0, 5, 11
POLICY = PolicyModel(CONFIG, VOCAB, PAD)
SCALAR = ScalarModel(CONFIG, VOCAB)
LOGITS, SCALARS = jax.jit(POLICY.apply), jax.jit(SCALAR.apply)


def logps(params, *args, **kwargs):
    return jax.jit(functools.partial(token_logps, POLICY, **kwargs))(params, *args)


def read(function, params, *args, **kwargs):
    return jax.jit(functools.partial(function, SCALAR, **kwargs))(params, *args)


@pytest.fixture(scope="module")
def params():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    params = init_params(POLICY, mesh, jax.random.key(0))
    return jax.tree.map(lambda x: 3 * x, params)  # far from uniform


@pytest.fixture(scope="module")
def scalar_params(params):
    kernel = jax.random.normal(jax.random.key(1), (CONFIG.embed,))
    return {"trunk": params["trunk"], "head": {"kernel": kernel, "bias": jnp.float32(0.3)}}


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    valid = np.zeros((3, T), bool)
    for row, (start, stop) in enumerate([(0, T), (3, T), (2, 8)]):
        valid[row, start:stop] = True
    tokens = np.where(valid, rng.integers(1, VOCAB, (3, T)), PAD)
    return jnp.asarray(tokens, jnp.int32), jnp.asarray(valid)


@pytest.mark.parametrize("temperature", [1.0, 0.3, 2.0])
def test_logps_and_entropy_follow_from_the_logits_of_the_column_before(params, batch, temperature):
    tokens, valid = batch
    logp, entropy = map(np.asarray, logps(params, tokens, valid, temperature=temperature))
    logits = np.asarray(LOGITS({"params": params}, tokens, valid), np.float64)
    tokens, valid = np.asarray(tokens), np.asarray(valid)
    for b in range(3):
        for t in range(T):
            if t == 0 or not (valid[b, t] and valid[b, t - 1]):
                assert logp[b, t] == entropy[b, t] == 0
                continue
            scaled = np.delete(logits[b, t - 1], PAD) / temperature
            log_probs = scaled - np.log(np.exp(scaled).sum())
            assert logp[b, t] == pytest.approx(log_probs[tokens[b, t] - 1], abs=1e-4)
            expected = -(np.exp(log_probs) * log_probs).sum()
            assert entropy[b, t] == pytest.approx(expected, abs=1e-4)


def test_log_probs_of_all_tokens_but_pad_sum_to_one(params):
    prompt = jnp.array([[3, 7, 9]])
    tokens = jnp.concatenate(
        [jnp.repeat(prompt, VOCAB, 0), jnp.arange(VOCAB, dtype=jnp.int32)[:, None]], axis=1
    )
    logp, _ = logps(params, tokens, jnp.ones_like(tokens, bool), temperature=0.7)
    assert float(jnp.exp(logp[1:, 3]).sum()) == pytest.approx(1, abs=1e-5)
    assert float(logp[PAD, 3]) < -1e29


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_without_a_distribution_is_refused(params, batch, temperature):
    with pytest.raises(ValueError, match="temperature"):
        token_logps(POLICY, params, *batch, temperature=temperature)


def test_values_are_read_before_the_token_and_scores_after_it(scalar_params, batch):
    tokens, valid = batch
    scalars = np.asarray(SCALARS({"params": scalar_params}, tokens, valid))
    values = np.asarray(read(state_values, scalar_params, tokens, valid))
    scores = np.asarray(read(prefix_scores, scalar_params, tokens, valid))
    valid = np.asarray(valid)
    both = valid[:, 1:] & valid[:, :-1]
    np.testing.assert_allclose(values[:, 1:][both], scalars[:, :-1][both], rtol=1e-5)
    assert (values[:, 1:][~both] == 0).all() and (values[:, 0] == 0).all()
    np.testing.assert_allclose(scores[valid], scalars[valid], rtol=1e-5)
    assert (scores[~valid] == 0).all()


def test_values_and_logps_of_a_token_do_not_see_later_tokens(scalar_params, params):
    tokens = jnp.arange(1, 7)[None]
    valid = jnp.ones((1, 6), bool)

    def depends(read, params):
        def of_embedding(embedding):
            trunk = params["trunk"] | {"embedding": embedding}
            return read(params | {"trunk": trunk})[0]

        jacobian = jax.jit(jax.jacrev(of_embedding))(params["trunk"]["embedding"])
        return np.abs(jacobian[:, 1:7]).max(axis=2) > 0

    values = depends(lambda p: state_values(SCALAR, p, tokens, valid), scalar_params)
    scores = depends(lambda p: prefix_scores(SCALAR, p, tokens, valid), scalar_params)
    before, upto = np.tril(np.ones((6, 6), bool), -1), np.tril(np.ones((6, 6), bool))
    np.testing.assert_array_equal(values, before)
    np.testing.assert_array_equal(scores, upto)


def test_sparing_the_prompt_changes_nothing_after_it(params, scalar_params, batch):
    tokens, valid = batch
    after = np.arange(T) >= P
    whole = logps(params, tokens, valid, temperature=0.8)
    spared = logps(params, tokens, valid, temperature=0.8, prompt_tokens=P)
    pairs = list(zip(whole, spared, strict=True))
    for function in (state_values, prefix_scores):
        args = (function, scalar_params, tokens, valid)
        pairs.append((read(*args), read(*args, prompt_tokens=P)))
    for full, part in pairs:
        np.testing.assert_allclose(part, np.where(after, full, 0), atol=1e-5)


def shapes_of(jaxpr):
    """Shapes of all values in a jaxpr, those of its inner jaxprs included."""
    for equation in jaxpr.eqns:
        yield from (v.aval.shape for v in equation.outvars)
        for inner in jax.tree.leaves(
            equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from shapes_of(inner)


@pytest.mark.parametrize("columns", [1, 4, 7])
def test_chunks_change_neither_results_nor_gradients_and_bound_the_logits(
    monkeypatch, params, batch, columns
):
    tokens, valid = batch
    weights = jax.random.normal(jax.random.key(2), (2, 3, T))

    def total(params):
        logp, entropy = token_logps(POLICY, params, tokens, valid, temperature=0.8)
        return (weights[0] * logp + weights[1] * entropy).sum()

    value, grads = jax.jit(jax.value_and_grad(total))(params)
    whole = set(shapes_of(jax.make_jaxpr(jax.grad(total))(params).jaxpr))
    assert (3, T, VOCAB) in whole
    monkeypatch.setattr(score, "LOGITS_PER_DEVICE", 3 * columns * VOCAB)
    chunked_value, chunked_grads = jax.jit(lambda p: jax.value_and_grad(total)(p))(params)
    assert float(chunked_value) == pytest.approx(float(value), rel=1e-5)
    for chunked, exact in zip(*map(jax.tree.leaves, (chunked_grads, grads)), strict=True):
        np.testing.assert_allclose(chunked, exact, rtol=1e-4, atol=1e-3)  # entries up to 300
    shapes = list(shapes_of(jax.make_jaxpr(jax.grad(total))(params).jaxpr))
    assert (3, T, VOCAB) not in shapes
    pieces = [
        np.prod(shape)
        for shape in shapes
        if shape[:3] == (3, T, 1) and shape[3:] not in ((), (CONFIG.mlp,))
    ]
    assert pieces and max(pieces) <= 3 * columns * VOCAB
