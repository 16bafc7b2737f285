import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_jax.config import RopeConfig
from prm_jax.model.attention import Cache, cached_attention, causal_attention, rotate
from prm_jax.model.rope import rotary_angles


def attention_by_loops(query, key, value, valid):
    """softmax(q k / sqrt(head_dim)) v, one query of one head at a time, in float64."""
    batch, heads, s, head_dim = query.shape
    kv_heads, t = key.shape[1:3]
    out = np.zeros(query.shape)
    for b in range(batch):
        for h in range(heads):
            g = h // (heads // kv_heads)
            for i in range(s):
                seen = [j for j in range(t - s + i + 1) if valid[b, j]]
                if not seen:
                    continue
                scores = [float(query[b, h, i] @ key[b, g, j]) / math.sqrt(head_dim) for j in seen]
                weights = np.exp(np.array(scores) - max(scores))
                weights /= weights.sum()
                out[b, h, i] = sum(w * value[b, g, j] for w, j in zip(weights, seen, strict=True))
    return out


def arrays(rng, *shapes):
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    heads=st.sampled_from([(1, 1), (2, 2), (4, 2), (6, 1)]),
    t=st.integers(1, 6),
    spared=st.integers(0, 3),
    seed=st.integers(0, 1000),
)
def test_attention_is_what_loops_compute(heads, t, spared, seed):
    (heads, kv_heads), s = heads, max(1, t - spared)
    rng = np.random.default_rng(seed)
    query, key, value = arrays(rng, (2, heads, s, 4), (2, kv_heads, t, 4), (2, kv_heads, t, 4))
    valid = rng.random((2, t)) < 0.7
    out = causal_attention(*map(jnp.asarray, (query, key, value, valid)))
    expected = attention_by_loops(query, key, value, valid)
    # Queries that may see nothing are padding; all that is asked of them is to be finite.
    sees = np.array([[valid[b, : t - s + i + 1].any() for i in range(s)] for b in range(2)])
    rows = np.broadcast_to(sees[:, None, :, None], out.shape)
    np.testing.assert_allclose(np.asarray(out)[rows], expected[rows], atol=2e-6)
    assert np.isfinite(out).all()


@pytest.mark.parametrize(("heads", "kv_heads", "samples"), [(2, 2, 1), (4, 2, 3), (2, 1, 2)])
def test_cached_attention_equals_attention_over_prompt_and_completion(heads, kv_heads, samples):
    n, p, c, head_dim = 2, 5, 4, 8
    rng = np.random.default_rng(0)
    batch = n * samples
    read = rng.integers(0, c, batch)  # rows that began at different times
    prompt_key, prompt_value = arrays(rng, *[(n, kv_heads, p, head_dim)] * 2)
    keys, values = arrays(rng, *[(batch, kv_heads, c, head_dim)] * 2)
    query, key, value = arrays(
        rng, (batch, heads, 1, head_dim), *[(batch, kv_heads, 1, head_dim)] * 2
    )
    valid = np.array([[False, False, True, True, True], [False] * 4 + [True]])
    cache = Cache(
        prompt=((jnp.asarray(prompt_key), jnp.asarray(prompt_value)),),
        prompt_valid=jnp.asarray(valid),
        completion=((jnp.asarray(keys), jnp.asarray(values)),),
        length=jnp.asarray(read),
        limit=p + c,
    )
    out, (new_keys, new_values) = cached_attention(
        jnp.asarray(query), jnp.asarray(key), jnp.asarray(value), cache, 0
    )
    for row, t in enumerate(read):
        prompt = row // samples

        def whole(of_prompt, of_completion, new, row=row, t=t, prompt=prompt):
            parts = of_prompt[prompt], of_completion[row, :, :t], new[row]
            return np.concatenate(parts, axis=1)[None]

        all_valid = np.concatenate([valid[prompt], np.ones(t + 1, bool)])[None]
        expected = attention_by_loops(
            query[row][None],
            whole(prompt_key, keys, key),
            whole(prompt_value, values, value),
            all_valid,
        )
        np.testing.assert_allclose(out[row], expected[0], atol=2e-6)
        for old, new, written in ((keys, new_keys, key), (values, new_values, value)):
            np.testing.assert_array_equal(new[row, :, t], written[row, :, 0])
            np.testing.assert_array_equal(np.delete(new[row], t, 1), np.delete(old[row], t, 1))
    expected_positions = np.repeat([3, 1], samples) + read
    np.testing.assert_array_equal(cache.positions()[:, 0], expected_positions)


def test_rotation_turns_the_pair_i_and_i_plus_half_by_position_times_frequency():
    head_dim, theta = 6, 100.0
    positions = np.array([[0, 1, 7]])
    x = np.random.default_rng(0).normal(size=(1, 2, 3, head_dim)).astype(np.float32)
    cos, sin = rotary_angles(jnp.asarray(positions), 8, head_dim, RopeConfig(theta))
    turned = np.asarray(rotate(jnp.asarray(x), cos, sin))
    for t, position in enumerate(positions[0]):
        for i in range(head_dim // 2):
            turn = np.exp(1j * position * theta ** (-2 * i / head_dim))
            pair = (x[0, :, t, i] + 1j * x[0, :, t, i + head_dim // 2]) * turn
            np.testing.assert_allclose(turned[0, :, t, i], pair.real, atol=1e-5)
            np.testing.assert_allclose(turned[0, :, t, i + head_dim // 2], pair.imag, atol=1e-5)


def test_rotated_products_depend_on_the_distance_only():
    rng = np.random.default_rng(1)
    query, key = arrays(rng, (1, 1, 1, 8), (1, 1, 1, 8))

    def product(m, n):
        def at(x, position):
            return rotate(
                jnp.asarray(x), *rotary_angles(jnp.array([[position]]), 400, 8, RopeConfig())
            )

        return float(jnp.sum(at(query, m) * at(key, n)))

    assert product(9, 4) == pytest.approx(product(305, 300), abs=1e-4)
    assert product(9, 4) != pytest.approx(product(9, 5), abs=1e-2)


def test_angles_stay_exact_where_bfloat16_positions_would_not():
    cos, sin = rotary_angles(jnp.array([[256, 257]]), 300, 4, RopeConfig())
    assert cos.dtype == sin.dtype == jnp.float32
    assert float(sin[0, 0, 1, 0]) == pytest.approx(math.sin(257), abs=1e-4)
    x = jnp.ones((1, 1, 2, 4), jnp.bfloat16)
    assert rotate(x, cos, sin).dtype == jnp.bfloat16


def test_rows_of_padding_give_finite_gradients():
    shape = (1, 2, 3, 4)
    valid = jnp.zeros((1, 3), bool)

    def total(x):
        return causal_attention(x, x, x, valid).sum()

    assert np.isfinite(jax.grad(total)(jnp.ones(shape))).all()
