import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from prm_jax.config import MeshConfig, ModelConfig
from prm_jax.model.heads import PolicyModel
from prm_jax.model.score import token_logps
from prm_jax.rl.stops import stop_table
from prm_jax.sharding import init_params, make_mesh
from prm_jax.steps.sample import BLOCK, choose, make_sampler

CONFIG = ModelConfig(layers=1, embed=16, heads=2, kv_heads=1, head_dim=8, mlp=24)
VOCAB, PAD, P, C = 24, 0, 6, 5
NEVER = VOCAB  # an EOS that no row can choose
POLICY = PolicyModel(CONFIG, VOCAB, PAD)
FULL = np.full(3, C, np.int32)


@functools.cache
def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:1])


@functools.cache
def params():
    # Three times a fresh policy is far from uniform.
    return jax.tree.map(lambda x: 3 * x, init_params(POLICY, mesh(), jax.random.key(0)))


@functools.cache
def sampler(**settings):
    defaults = {
        "completion_tokens": C, "samples_per_prompt": 1, "temperature": 1.0, "eos_ids": (NEVER,),
    }  # fmt: skip
    return make_sampler(POLICY, mesh(), **(defaults | settings))


@functools.cache
def prompts():
    valid = np.arange(P) >= np.array([[0], [2], [5]])
    tokens = np.random.default_rng(0).integers(1, VOCAB, (3, P))
    return np.where(valid, tokens, PAD).astype(np.int32), valid


def sample(key=1, budget=FULL, **settings):
    samples = sampler(**settings)(params(), *prompts(), budget, jax.random.key(key))
    return jax.tree.map(np.asarray, samples)


@functools.cache
def logits_after_prompts():
    apply = jax.jit(POLICY.apply)
    return np.asarray(apply({"params": params()}, *prompts())[:, -1])


# ------------------------------------------------------------------------------ choosing a token


def distribution(logits, temperature, top_p, top_k):
    """By the definition: sort, keep, renormalise; one row, float64."""
    logits = np.asarray(logits, np.float64) / temperature
    probs = np.exp(logits - logits.max())
    probs /= probs.sum()
    order = np.argsort(-probs, kind="stable")
    if top_k:
        probs[order[top_k:]] = 0
        probs /= probs.sum()
    if top_p < 1:
        kept = 1 + int((np.cumsum(probs[order]) < top_p).sum())
        probs[order[kept:]] = 0
        probs /= probs.sum()
    return probs


PLAIN_CHOICE = jax.jit(functools.partial(choose, temperature=1.0))
CASES = [(1.0, 1.0, 0), (0.5, 1.0, 0), (2.0, 1.0, 3), (1.0, 0.7, 0), (1.3, 0.8, 5), (1.0, 1.0, 99)]


@pytest.mark.parametrize("block", [BLOCK, 3])
@pytest.mark.parametrize(("temperature", "top_p", "top_k"), CASES)
def test_choices_are_as_frequent_as_their_probabilities(
    temperature, top_p, top_k, block, monkeypatch
):
    monkeypatch.setattr("prm_jax.steps.sample.BLOCK", block)
    logits = jnp.array([2.0, -1.0, 0.5, 1.9, -3.0, 0.0, 1.0, -1e30])
    n = 20_000
    uniform = jax.random.uniform(jax.random.key(3), (n,))
    token, logp = jax.jit(
        functools.partial(choose, temperature=temperature, top_p=top_p, top_k=top_k)
    )(jnp.tile(logits, (n, 1)), uniform)
    probs = distribution(logits, temperature, top_p, top_k)
    counts = np.bincount(token, minlength=8)
    assert (counts[probs == 0] == 0).all()
    assert chisquare(counts[probs > 0], n * probs[probs > 0]).pvalue > 0.001
    np.testing.assert_allclose(logp, np.log(probs[np.asarray(token)]), atol=1e-5)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    vocab=st.sampled_from([1, 7, 700, BLOCK + 1, 3 * BLOCK]),
    uniform=st.sampled_from([0.0, 1e-30, 0.5, 1 - 2**-24, 1.0]),  # 1: as if rounded up
    allowed=st.floats(0, 1),
    spread=st.sampled_from([0.0, 1.0, 60.0]),
)
def test_a_token_of_probability_zero_is_never_chosen(seed, vocab, uniform, allowed, spread):
    rng = np.random.default_rng(seed)
    logits = (spread * rng.normal(size=vocab)).astype(np.float32)
    forbidden = rng.random(vocab) > allowed
    forbidden[rng.integers(vocab)] = False
    logits[forbidden] = -1e30
    token, logp = PLAIN_CHOICE(logits[None], np.array([uniform], np.float32))
    assert not forbidden[int(token[0])]
    assert -200 < float(logp[0]) <= 1e-6


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), spread=st.sampled_from([0.0, 2.0, 9.0]))
def test_a_token_of_a_large_vocabulary_is_where_the_cumulative_sum_passes(seed, spread):
    rng = np.random.default_rng(seed)
    logits = (spread * rng.normal(size=(40, 5 * BLOCK - 3))).astype(np.float32)
    uniform = rng.random(40, dtype=np.float32)
    token, logp = (np.asarray(x) for x in PLAIN_CHOICE(logits, uniform))
    probs = np.exp(logits.astype(np.float64))
    probs /= probs.sum(axis=-1, keepdims=True)
    cdf, rows = probs.cumsum(axis=-1), np.arange(40)
    # The uniform lies within what the token adds to the sum, but for float32's rounding.
    assert (uniform < cdf[rows, token] + 1e-5).all()
    assert (uniform > cdf[rows, token] - probs[rows, token] - 1e-5).all()
    np.testing.assert_allclose(logp, np.log(probs[rows, token]), atol=1e-4)


@pytest.mark.parametrize("block", [BLOCK, 1])
def test_a_cumulative_sum_that_rises_at_a_forbidden_token_does_not_choose_it(block, monkeypatch):
    """A sum in parallel may round up between two tokens though the second has no weight."""
    monkeypatch.setattr("prm_jax.steps.sample.BLOCK", block)
    exact = jnp.cumsum

    def rounded(weights, axis):
        return exact(weights, axis=axis) + 1e-6 * (weights == 0)

    monkeypatch.setattr(jnp, "cumsum", rounded)
    logits = jnp.array([[0.0, -1e30, 0.0, 0.0]])
    token, _ = choose(logits, jnp.array([1 / 3], jnp.float32), temperature=1.0)
    assert int(token[0]) == 2


@pytest.mark.parametrize("uniform", [0.0, 0.6, 1 - 2**-24])
@pytest.mark.parametrize("restriction", [{"top_p": 1e-9}, {"top_k": 1}])
def test_the_tightest_restriction_keeps_the_likeliest_token(uniform, restriction):
    logits = jnp.array([[0.0, 3.0, 3.5, 1.0]])
    token, logp = choose(logits, jnp.array([uniform]), temperature=1.0, **restriction)
    assert int(token[0]) == 2 and float(logp[0]) == pytest.approx(0, abs=1e-6)


def test_without_restrictions_nothing_is_sorted():
    logits, uniform = jnp.zeros((2, 9)), jnp.zeros(2)

    def program(**settings):
        return str(
            jax.make_jaxpr(functools.partial(choose, temperature=1.0, **settings))(logits, uniform)
        )

    assert " top_k[" not in program() and " sort[" not in program()
    assert " top_k[" in program(top_p=0.9) and " top_k[" in program(top_k=3)


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"completion_tokens": 0}, "completion_tokens"),
        ({"samples_per_prompt": 0}, "samples_per_prompt"),
    ],
)
def test_settings_without_a_meaning_are_refused_by_name(setting, name):
    with pytest.raises(ValueError, match=name):
        sampler(**setting)


# -------------------------------------------------------------------------------------- sampling


def test_the_grid_holds_prompt_completion_and_padding():
    free = sample(samples_per_prompt=4).tokens[:, P:]
    eos = int(free[5, 1])
    s = sample(samples_per_prompt=4, eos_ids=(eos,))
    tokens, valid = prompts()
    np.testing.assert_array_equal(s.tokens[:, :P], np.repeat(tokens, 4, axis=0))
    np.testing.assert_array_equal(s.valid[:, :P], np.repeat(valid, 4, axis=0))
    assert not s.completion_mask[:, :P].any()
    np.testing.assert_array_equal(s.valid[:, P:], s.completion_mask[:, P:])
    for row in range(12):
        completion = s.tokens[row, P:]
        ends = np.flatnonzero(completion == eos)
        length = ends[0] + 1 if len(ends) else C
        np.testing.assert_array_equal(s.completion_mask[row, P:], np.arange(C) < length)
        assert (completion[length:] == PAD).all() and (completion[:length] != PAD).all()
    np.testing.assert_array_equal(s.logp != 0, s.completion_mask)
    assert s.completion_mask[5].sum() == (1 if free[5, 0] == eos else 2)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_those_of_the_trainers_path(temperature):
    s = sample(temperature=temperature, samples_per_prompt=4)
    logp, _ = jax.jit(functools.partial(token_logps, POLICY, temperature=temperature))(
        params(), s.tokens, s.valid
    )
    np.testing.assert_allclose(np.where(s.completion_mask, logp, 0), s.logp, atol=1e-5)


def test_restricted_log_probs_are_of_the_renormalised_distribution():
    restricted = {"temperature": 1.5, "top_p": 0.6, "top_k": 4}
    s = sample(samples_per_prompt=4, **restricted)
    logits = jax.jit(POLICY.apply)({"params": params()}, s.tokens, s.valid)
    for row in range(12):
        for t in range(P, P + C):
            probs = distribution(logits[row, t - 1], **restricted)
            assert s.logp[row, t] == pytest.approx(np.log(probs[s.tokens[row, t]]), abs=1e-4)


def test_first_tokens_are_as_frequent_as_the_model_says():
    k = 2048
    s = sample(samples_per_prompt=k, completion_tokens=1)
    for prompt in range(3):
        probs = distribution(logits_after_prompts()[prompt], 1.0, 1.0, 0)
        counts = np.bincount(s.tokens[prompt * k : (prompt + 1) * k, P], minlength=VOCAB)
        assert counts[PAD] == 0
        common = k * probs >= 5
        observed, expected = counts[common], k * probs[common]
        rest = k - observed.sum(), k - expected.sum()
        if rest[1] > 1:
            observed, expected = np.append(observed, rest[0]), np.append(expected, rest[1])
        expected *= observed.sum() / expected.sum()
        assert chisquare(observed, expected).pvalue > 0.001


def test_noise_differs_between_calls_and_rows_and_repeats_with_the_key():
    hot = {"samples_per_prompt": 4, "temperature": 6.0}
    one, again, other = sample(1, **hot), sample(1, **hot), sample(2, **hot)
    jax.tree.map(np.testing.assert_array_equal, one, again)
    assert (one.tokens != other.tokens).any(axis=1).all()
    for prompt in range(3):
        assert len({tuple(row) for row in one.tokens[4 * prompt : 4 * prompt + 4]}) == 4


def test_greedy_is_asked_for_by_temperature_zero_and_by_nothing_else():
    greedy, again = sample(1, temperature=0.0), sample(2, temperature=0.0)
    np.testing.assert_array_equal(greedy.tokens, again.tokens)
    assert (greedy.logp == 0).all() and greedy.completion_mask[:, P:].all()
    logits = jax.jit(POLICY.apply)({"params": params()}, greedy.tokens, greedy.valid)
    np.testing.assert_array_equal(greedy.tokens[:, P:], logits[:, P - 1 : -1].argmax(-1))
    cold = sample(1, temperature=0.01)
    np.testing.assert_array_equal(cold.tokens, greedy.tokens)
    for unrestricted in ({}, {"top_p": 0.99}, {"top_k": VOCAB}):
        tokens = [sample(key, temperature=6.0, **unrestricted).tokens for key in range(3)]
        assert len({t.tobytes() for t in tokens}) == 3


def test_eos_as_the_first_token_ends_the_row_with_that_token_alone():
    eos = int(sample(7).tokens[1, P])
    s = sample(7, eos_ids=(eos,))
    assert s.completion_mask[1].sum() == 1 and s.completion_mask[1, P]
    assert s.tokens[1, P] == eos and (s.tokens[1, P + 1 :] == PAD).all()
    assert s.logp[1, P] == sample(7).logp[1, P] < 0 and (s.logp[1, P + 1 :] == 0).all()


def test_any_of_several_ends_ends_a_row():
    free = sample(7, samples_per_prompt=4).tokens[:, P:]
    ends = (int(free[1, 0]), int(free[5, 2]))
    s = sample(7, samples_per_prompt=4, eos_ids=ends)
    for row in range(12):
        found = np.flatnonzero(np.isin(free[row], ends))
        length = found[0] + 1 if len(found) else C
        assert s.completion_mask[row].sum() == length
        np.testing.assert_array_equal(s.tokens[row, P : P + length], free[row, :length])


def test_budget_bounds_the_new_tokens_of_each_prompt():
    budget = np.array([0, 2, 99], np.int32)
    s, free = sample(budget=budget, samples_per_prompt=4), sample(samples_per_prompt=4)
    np.testing.assert_array_equal(s.completion_mask.sum(axis=1), np.repeat([0, 2, C], 4))
    np.testing.assert_array_equal(
        s.tokens[:, P:], np.where(s.completion_mask, free.tokens, PAD)[:, P:]
    )


def test_nothing_is_sampled_where_no_row_may():
    s = sample(budget=np.zeros(3, np.int32))
    assert not s.completion_mask.any() and (s.logp == 0).all()


def test_a_batch_of_one_with_one_token():
    tokens, valid = prompts()
    one = sampler(completion_tokens=1)
    s = one(params(), tokens[1:2], valid[1:2], np.array([1], np.int32), jax.random.key(0))
    assert s.tokens.shape == (1, P + 1) and s.completion_mask.sum() == 1
    assert s.tokens[0, P] != PAD


def test_samples_that_share_a_prefill_equal_samples_that_do_not():
    shared = sample(samples_per_prompt=4)
    tokens, valid = (np.repeat(x, 4, axis=0) for x in prompts())
    alone = sampler()(params(), tokens, valid, np.repeat(FULL, 4), jax.random.key(1))
    np.testing.assert_array_equal(shared.tokens, alone.tokens)
    np.testing.assert_allclose(shared.logp, alone.logp, atol=1e-5)


def test_pad_is_never_chosen_though_its_logit_be_the_largest():
    trunk = params()["trunk"]
    embedding = trunk["embedding"]
    best = jax.jit(functools.partial(POLICY.apply, method="hidden"))
    hidden = best({"params": params()}, *prompts())[0][0, -1]
    loud = params() | {"trunk": trunk | {"embedding": embedding.at[PAD].set(10 * hidden)}}
    s = sampler()(loud, *prompts(), FULL, jax.random.key(0))
    assert (np.asarray(s.tokens[:, P:]) != PAD).all()
    logp, _ = jax.jit(functools.partial(token_logps, POLICY, temperature=1.0))(
        loud, s.tokens, s.valid
    )
    np.testing.assert_allclose(np.where(s.completion_mask, logp, 0), s.logp, atol=1e-5)


def test_a_prompt_of_padding_alone_does_no_harm():
    tokens, valid = prompts()
    empty = np.zeros_like(valid)
    s = sampler()(params(), tokens, empty, FULL, jax.random.key(0))
    assert np.isfinite(s.logp).all() and (np.asarray(s.tokens[:, P:]) != PAD).all()


# ------------------------------------------------------------------------------------ stop strings

LONG = 24


@functools.cache
def stopping(seed):
    """A sampler over random pieces of few letters, its pieces and its stop strings.

    The vocabulary of the model has one token more than the pieces, as if its embedding were padded.
    """
    rng = np.random.default_rng(seed)
    pieces = [b"", *(bytes(rng.choice([*b"ab\n"], rng.integers(4))) for _ in range(VOCAB - 2))]
    # Three strings of three bytes: one program serves all seeds whose automata are of one size.
    strings = [bytes(rng.choice([*b"ab\n"], 3)) for _ in range(3)]
    stops = stop_table(strings, pieces)
    return sampler(completion_tokens=LONG, stops=stops, samples_per_prompt=4), pieces, stops


def said_until_over(tokens, pieces, strings, prefix=b""):
    """How many tokens are chosen, choice by choice, in the joined bytes."""
    said = b"\n" + prefix
    for n, token in enumerate(tokens, start=1):
        said += pieces[token] if token < len(pieces) else b""
        if any(string in said for string in strings):
            return n
    return len(tokens)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("prefixes", [None, [b"", b"ab\na", b"bb\nab"]])
def test_a_row_ends_with_the_token_that_completes_a_stop_string(seed, prefixes):
    run, pieces, stops = stopping(seed)
    budget = np.array([LONG, LONG, 7], np.int32)
    args = (params(), *prompts(), budget, jax.random.key(seed))
    state = None if prefixes is None else np.array([stops.start([p]) for p in prefixes], np.int32)
    s = jax.tree.map(np.asarray, run(*args, state))
    free = sampler(completion_tokens=LONG, samples_per_prompt=4)(*args)
    free = np.asarray(free.tokens)[:, P:]
    lengths = []
    for row in range(12):
        before = prefixes[row // 4] if prefixes else b""
        wanted = said_until_over(free[row], pieces, stops.strings, before)
        if any(string in b"\n" + before for string in stops.strings):
            wanted = 0  # it was over before
        lengths.append(min(wanted, budget[row // 4]))
        completion, mask = s.tokens[row, P:], s.completion_mask[row, P:]
        np.testing.assert_array_equal(mask, np.arange(LONG) < lengths[-1])
        np.testing.assert_array_equal(completion, np.where(mask, free[row], PAD))
    assert min(lengths[:8]) < LONG  # not only the budget ends rows
    np.testing.assert_array_equal(s.valid[:, P:], s.completion_mask[:, P:])
    np.testing.assert_array_equal(s.logp != 0, s.completion_mask)


def test_an_end_and_a_stop_string_both_end_rows():
    _, pieces, stops = stopping(0)
    free = sampler(completion_tokens=LONG)(params(), *prompts(), 9 * FULL, jax.random.key(3))
    free = np.asarray(free.tokens)[:, P:]
    eos = int(free[0, 1])
    run = sampler(completion_tokens=LONG, eos_ids=(eos,), stops=stops)
    s = run(params(), *prompts(), 9 * FULL, jax.random.key(3))
    for row in range(3):
        ends = [n for n, token in enumerate(free[row], 1) if token == eos] or [LONG]
        wanted = min(said_until_over(free[row], pieces, stops.strings), ends[0])
        assert np.asarray(s.completion_mask)[row].sum() == wanted


def test_without_stop_strings_the_program_is_the_same(monkeypatch):
    """A table of none costs nothing: it is not even an argument."""
    empty = stop_table([], [b""] * VOCAB)
    run = sampler(stops=empty)
    args = (params(), *prompts(), FULL, jax.random.key(1))
    state = np.full(3, empty.start(), np.int32)
    plain = sampler()(*args)
    for s in (run(*args), run(*args, state)):
        jax.tree.map(np.testing.assert_array_equal, s, plain)

    class Lowered(Exception):
        pass

    def lower(jitted):
        def stop(*args):
            raise Lowered(jitted.lower(*args).as_text())

        return stop

    def program(**settings):
        make = {"completion_tokens": C, "samples_per_prompt": 1, "temperature": 1.0}
        with monkeypatch.context() as patch:
            patch.setattr(jax, "jit", lambda *a, jit=jax.jit, **kwargs: lower(jit(*a, **kwargs)))
            run = make_sampler(POLICY, mesh(), eos_ids=(), **make, **settings)
        with pytest.raises(Lowered) as lowered:
            run(*args)
        return str(lowered.value)

    assert program(stops=empty) == program() != program(stops=stopping(0)[2])


def test_stops_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="eos_ids = .3, 0. has PAD"):
        sampler(eos_ids=(3, PAD))
    with pytest.raises(ValueError, match="stops has 25 tokens, but the model's vocabulary is 24"):
        sampler(stops=stop_table([b"a"], [b"a"] * (VOCAB + 1)))
    with pytest.raises(ValueError, match="stop_state is not allowed"):
        sampler()(params(), *prompts(), FULL, jax.random.key(0), np.zeros(3, np.int32))


# ------------------------------------------------------------------------------------- the program


def test_other_params_and_keys_compile_nothing_new():
    sample(1)
    compiled = []

    def listen(event, duration, **_):
        if "backend_compile" in event:
            compiled.append(event)

    other = jax.tree.map(lambda x: x * 0.5, params())
    keys = [jax.random.key(i) for i in range(3)]
    jax.monitoring.register_event_duration_secs_listener(listen)
    for key in keys:
        sampler()(other, *prompts(), FULL, key)
    assert not compiled
    sampler(completion_tokens=2)(other, *prompts(), FULL, keys[0])
    assert compiled  # the listener hears a new program


def test_bfloat16_log_probs_agree_with_the_trainers_path():
    half = PolicyModel(dataclasses.replace(CONFIG, dtype="bfloat16"), VOCAB, PAD)
    run = make_sampler(
        half, mesh(), completion_tokens=C, samples_per_prompt=2, temperature=1.0, eos_ids=(NEVER,)
    )
    s = run(params(), *prompts(), FULL, jax.random.key(0))
    logp, _ = jax.jit(functools.partial(token_logps, half, temperature=1.0))(
        params(), s.tokens, s.valid
    )
    assert s.logp.dtype == jnp.float32
    np.testing.assert_allclose(np.where(s.completion_mask, logp, 0), s.logp, atol=0.2)
