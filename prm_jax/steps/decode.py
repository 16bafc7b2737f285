"""Decoding with rows that never wait: a row that ends makes room for the next completion.

The program has a fixed number of rows and a queue of completions to sample, K of each prompt. Rows
that share a prompt lie side by side and share its keys and values; a group whose completions have
all ended takes the next prompt of the queue. What a completion draws depends on its place in the
queue alone, so the number of rows changes the cost and not the result.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from prm_jax.model.attention import Cache, KeyValue
from prm_jax.rl.stops import DONE
from prm_jax.sharding import constrain

REFILL_SHARE = 16  # prompts are taken from the queue once 1 / 16 of the groups are free

Read = Callable[[Array, Array, Cache], tuple[Array, tuple[KeyValue, ...]]]  # -> logits, entries
Choose = Callable[[Array, Array], tuple[Array, Array]]


class Queue(NamedTuple):
    """What is to be sampled: K completions of each of N prompts. D shards have N / D of them each.

    A prompt's keys and values are those of its `visible` columns; a row begins by reading `last`.
    """

    key_values: tuple[KeyValue, ...]  # [N, kv_heads, P, head_dim]
    visible: Bool[Array, "N P"]
    last: Int[Array, "N"]
    limit: Int[Array, "N"]  # of new tokens, at most C; 0: nothing is sampled
    stop_state: Int[Array, "N"] | None
    uniforms: Float[Array, "NK C"]


class Completions(NamedTuple):
    tokens: Int[Array, "NK C"]
    logp: Float[Array, "NK C"]
    length: Int[Array, "NK"]


class _Rows(NamedTuple):
    """D shards of G groups of W rows. Prompts and completions are numbered within their shard."""

    taken: Array  # [D] prompts of the queue that a group has taken
    prompt: tuple[KeyValue, ...]  # [D * G, kv_heads, P, head_dim]
    visible: Array  # [D * G, P]
    given: Array  # [D, G] the group's prompt
    started: Array  # [D, G] how many of its completions have begun
    job: Array  # [D, G, W] the row's completion
    alive: Array  # [D, G, W]
    age: Array  # [D, G, W] tokens chosen so far
    token: Array  # [D, G, W] to be read next
    state: Array | None  # [D, G, W] of the automaton of stop strings
    completion: tuple[KeyValue, ...]  # [D * G * W, kv_heads, C, head_dim]
    tokens: Array  # [D, NK / D, C]
    logp: Array
    length: Array  # [D, NK / D]


def decode(
    read: Read,
    choose: Choose,
    queue: Queue,
    *,
    samples: int,
    rows: int,
    positions: int,
    shards: int,
    pad_id: int,
    eos_ids: Sequence[int],
    table: Int[Array, "states V"] | None,
) -> Completions:
    """Samples the queue, with at most `rows` rows at once (at least one for each shard).

    `read(token [B, 1], alive [B, 1], cache)` gives the logits after the token and the cache's new
    entries, `choose(logits [B, V], uniform [B])` a token and its log-prob. A completion ends with a
    token of `eos_ids`, with one that brings its `stop_state` to DONE by `table`, or at its limit.
    All positions are below `positions`.
    """
    n = queue.last.shape[0] // shards
    capacity = queue.uniforms.shape[1]
    width = max(1, min(samples, rows // shards))
    groups = min(n, max(1, rows // (shards * width)))
    resident = groups == n
    rows_of = (shards, groups, width)

    def sharded(x: Array) -> Array:
        return x.reshape(shards, -1, *x.shape[1:])

    def of_prompt(x: Array, prompt: Array) -> Array:
        return jax.vmap(lambda x, i: x[i])(sharded(x), prompt)

    limit = queue.limit
    if queue.stop_state is not None:
        limit = jnp.where(queue.stop_state == DONE, 0, limit)
    asked = sharded(limit) > 0
    order = jnp.argsort(~asked, axis=1, stable=True)
    waiting = asked.sum(axis=1)
    uniforms = sharded(queue.uniforms)
    enough = max(1, shards * groups // REFILL_SHARE)

    def free(rows: _Rows) -> Array:
        return (rows.started >= samples) & ~rows.alive.any(axis=-1)

    def refill(rows: _Rows) -> _Rows:
        """Free groups take the next prompts."""
        place = rows.taken[:, None] + jnp.cumsum(free(rows), axis=1) - 1
        takes = free(rows) & (place < waiting[:, None])
        prompt = jnp.take_along_axis(order, jnp.where(takes, place, 0), axis=1)

        def copied(old: Array, new: Array) -> Array:
            chosen = of_prompt(new, prompt).reshape(old.shape)
            return jnp.where(takes.reshape(-1, *[1] * (old.ndim - 1)), chosen, old)

        return rows._replace(
            taken=rows.taken + takes.sum(axis=1),
            prompt=jax.tree.map(copied, rows.prompt, queue.key_values),
            visible=copied(rows.visible, queue.visible),
            given=jnp.where(takes, prompt, rows.given),
            started=jnp.where(takes, 0, rows.started),
        )

    def begin(rows: _Rows) -> _Rows:
        """Rows that have ended take their group's next completions."""
        number = rows.started[..., None] + jnp.cumsum(~rows.alive, axis=-1) - 1
        begins = ~rows.alive & (number < samples)

        def now(old: Array, new: Array) -> Array:
            return jnp.where(begins, of_prompt(new, rows.given)[..., None], old)

        return rows._replace(
            started=rows.started + begins.sum(axis=-1),
            job=jnp.where(begins, rows.given[..., None] * samples + number, rows.job),
            alive=rows.alive | begins,
            age=jnp.where(begins, 0, rows.age),
            token=now(rows.token, queue.last),
            state=jax.tree.map(now, rows.state, queue.stop_state),
        )

    def step(rows: _Rows) -> _Rows:
        rows = begin(rows)
        age, alive, job = (x.reshape(shards, -1) for x in (rows.age, rows.alive, rows.job))
        cache = Cache(rows.prompt, rows.visible, rows.completion, rows.age.reshape(-1), positions)
        logits, completion = read(rows.token.reshape(-1, 1), rows.alive.reshape(-1, 1), cache)
        uniform = jax.vmap(lambda u, job, age: u[job, age])(uniforms, job, age)
        token, logp = choose(logits, uniform.reshape(-1))
        token, logp = token.reshape(rows_of), logp.reshape(rows_of)

        def written(out: Array, values: Array) -> Array:
            place = jnp.where(alive, job, n * samples)  # beyond the end: not written
            return jax.vmap(lambda o, i, a, v: o.at[i, a].set(v, mode="drop"))(
                out, place, age, values.reshape(shards, -1)
            )

        goes_on = rows.alive & (rows.age + 1 < of_prompt(limit, rows.given)[..., None])
        for eos_id in eos_ids:
            goes_on &= token != eos_id
        state = rows.state
        if table is not None:
            state = table[state, token].astype(jnp.int32)
            goes_on &= state != DONE
        length = jax.vmap(lambda o, i, v: o.at[i].set(v, mode="drop"))(
            rows.length, jnp.where(alive, job, n * samples), age + 1
        )
        return rows._replace(
            alive=goes_on,
            age=rows.age + rows.alive,
            token=token,
            state=state,
            completion=completion,
            tokens=written(rows.tokens, token),
            logp=written(rows.logp, logp),
            length=length,
        )

    def busy(rows: _Rows) -> Array:
        return (rows.alive.any(axis=-1) | (rows.started < samples)).any()

    def needs_no_prompt(rows: _Rows) -> Array:
        wanted = jnp.minimum(free(rows).sum(axis=1), waiting - rows.taken)
        return busy(rows) & (wanted.sum() < enough)

    def serve(rows: _Rows) -> _Rows:
        return jax.lax.while_loop(needs_no_prompt, step, refill(rows))

    def empty(x: Array) -> Array:
        zeros = jnp.zeros((shards * groups * width, x.shape[1], capacity, x.shape[3]), x.dtype)
        return constrain(zeros, "batch", "kv_heads", "time", "head_dim")

    def first(x: Array) -> Array:
        return x if resident else sharded(x)[:, :groups].reshape(-1, *x.shape[1:])

    none = jnp.zeros(rows_of, jnp.int32)
    to_do = jnp.where(asked, 0, samples) if resident else jnp.full(rows_of[:2], samples)
    rows_now = _Rows(
        taken=waiting if resident else jnp.zeros_like(waiting),
        prompt=jax.tree.map(first, queue.key_values),
        visible=first(queue.visible),
        given=jnp.broadcast_to(jnp.arange(groups), rows_of[:2]),
        started=to_do,
        job=none,
        alive=none > 0,
        age=none,
        token=none,
        state=None if queue.stop_state is None else none,
        completion=jax.tree.map(empty, queue.key_values),
        tokens=jnp.full((shards, n * samples, capacity), pad_id, jnp.int32),
        logp=jnp.zeros((shards, n * samples, capacity), jnp.float32),
        length=jnp.zeros((shards, n * samples), jnp.int32),
    )
    if resident:
        rows_now = jax.lax.while_loop(busy, step, rows_now)
    else:
        waits = lambda rows: busy(rows) | (rows.taken < waiting).any()  # noqa: E731
        rows_now = jax.lax.while_loop(waits, serve, rows_now)
    return Completions(
        tokens=rows_now.tokens.reshape(-1, capacity),
        logp=rows_now.logp.reshape(-1, capacity),
        length=rows_now.length.reshape(-1),
    )
