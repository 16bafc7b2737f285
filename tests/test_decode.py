"""The queue of completions: against a loop over them, and by what it costs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_jax.steps.decode import Queue, decode

PAD, EOS, C, P = 0, 1, 6, 3


def token_of(prompt, age):
    return 2 + (prompt + 3 * age) % 5


def read(token, alive, cache):
    """Stands for a model: says what prompt a row reads, how old it is, and what it remembers.

    What it writes is the row's age; so the sum over the columns that count as the row's own is
    known.
    """
    rows = cache.length.shape[0]
    prompt = jnp.repeat(cache.prompt[0][0][:, 0, 0, 0], rows // cache.prompt_valid.shape[0])
    keys, values = cache.completion[0]
    written = (cache.length + 1.0)[:, None, None, None]
    keys = jax.vmap(functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=1))(
        keys, written, cache.length
    )
    remembered = jnp.where(cache.completion_valid(), keys[:, 0, :, 0], 0).sum(axis=1)
    seen = cache.prompt_valid.sum(axis=1).repeat(rows // cache.prompt_valid.shape[0])
    read = jnp.stack([prompt, cache.length, remembered, seen, token[:, 0]], axis=1)
    return read, ((keys, values),)


def choose(logits, job, lengths):
    """The token of a prompt at an age; EOS where the length of the job says so."""
    prompt, age, remembered, seen, before = logits.T
    job = job.astype(jnp.int32)
    begins = before == 100 + prompt
    follows = before == token_of(prompt, age - 1)
    right = jnp.where(age == 0, begins, follows) & (seen == 1 + prompt % P)
    token = jnp.where(age + 1 == lengths[job], EOS, token_of(prompt, age))
    return token.astype(jnp.int32), jnp.where(right, remembered, -1.0)


@functools.partial(jax.jit, static_argnames=("samples", "rows", "shards", "count"))
def run(lengths, limit, *, samples, rows, shards=1, count=None):
    n = limit.shape[0]
    number = jnp.arange(n, dtype=jnp.float32)[:, None, None, None]
    stamped = jnp.broadcast_to(number, (n, 1, P, 1))

    def counted(*args):
        if count is not None:
            jax.debug.callback(lambda: count.append(1))
        return read(*args)

    jobs = jnp.broadcast_to(jnp.arange(n * samples, dtype=jnp.float32)[:, None], (n * samples, C))
    return decode(
        counted,
        functools.partial(choose, lengths=lengths),
        Queue(
            key_values=((stamped, stamped),),
            visible=jnp.arange(P) < 1 + jnp.arange(n)[:, None] % P,
            last=100 + jnp.arange(n),
            limit=limit,
            stop_state=None,
            uniforms=jobs,
        ),
        samples=samples,
        rows=rows,
        positions=P + C,
        shards=shards,
        pad_id=PAD,
        eos_ids=(EOS,),
        table=None,
    )


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    n=st.sampled_from([2, 6]),
    samples=st.sampled_from([1, 3]),
    rows=st.sampled_from([1, 2, 4, 7, 99]),
    shards=st.sampled_from([1, 2]),
)
def test_every_completion_is_what_a_loop_over_them_gives(seed, n, samples, rows, shards):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, C + 3, n * samples)
    limit = rng.integers(0, C + 1, n)
    found = run(lengths, limit.astype(np.int32), samples=samples, rows=rows, shards=shards)
    for job, length in enumerate(lengths):
        prompt = job // samples
        stays = min(length, limit[prompt])
        tokens = [token_of(prompt, age) for age in range(stays)]
        if stays == length:
            tokens[-1] = EOS
        assert found.length[job] == stays
        np.testing.assert_array_equal(found.tokens[job], tokens + [PAD] * (C - stays))
        memory = [(age + 1) * (age + 2) / 2 for age in range(stays)]
        np.testing.assert_array_equal(found.logp[job], memory + [0] * (C - stays))


class Count(list):
    __hash__ = object.__hash__


@pytest.mark.parametrize(("samples", "rows"), [(1, 4), (1, 32), (2, 16)])
def test_rows_are_busy_until_the_queue_is_empty(samples, rows):
    n = 96 // samples
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, C + 1, n).repeat(samples)  # rows of a group end together
    count = Count()
    found = run(lengths, np.full(n, C, np.int32), samples=samples, rows=rows, count=count)
    jax.block_until_ready(found)
    jax.effects_barrier()
    groups = rows // samples
    waits = max(1, groups // 16) - 1  # groups that are left free until they are that many
    assert len(count) <= lengths.sum() / (rows - waits * samples) + C
    assert len(count) >= lengths.sum() / rows
