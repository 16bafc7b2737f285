"""Many completions of prefixes of known responses, which are read once for all of their prefixes.

What a decoder-only model computes for a token depends on the tokens before it alone. So the keys
and values of a whole response serve every prefix of it: a binary search over its lines reads it
once, and each probe costs the tokens that are sampled.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int

from prm_jax import hosts
from prm_jax.model.attention import KeyValue
from prm_jax.model.heads import PolicyModel
from prm_jax.rl.stops import StopTable
from prm_jax.sharding import abstract_params, batch_sharding, batch_shards, constrain, replicated
from prm_jax.steps.decode import Completions, Queue
from prm_jax.steps.sample import Choice, complete, of_vocabulary, read_prompts


@dataclasses.dataclass(frozen=True)
class Asked:
    """A prefix to complete: prompt and kept tokens, and what its place is to be read with.

    `numbers` name the event: the same numbers, and the same seed, draw the same completions in
    whatever company. `whole` begins with the prefix, or with all of it but its end.
    """

    place: int  # in 0 .. PrefixCompleter.places
    prefix: Sequence[int]
    whole: Sequence[int]
    budget: int  # new tokens, at most completion_tokens
    numbers: tuple[int, int, int]
    stop_state: int = 0


class PrefixCompleter:
    """Samples `samples` completions of each prefix asked for, at most `rows` rows at once.

    It holds the keys and values of `places` responses of at most `width` tokens with their prompts.
    With what is sampled no text reaches position `positions`.
    A place is read again when it is asked about tokens that it does not hold.
    """

    def __init__(
        self,
        model: PolicyModel,
        mesh: Mesh,
        key: jax.Array,
        *,
        places: int,
        width: int,
        positions: int,
        completion_tokens: int,
        samples: int,
        rows: int,
        choice: Choice,
        eos_ids: Sequence[int],
        stops: StopTable | None = None,
    ):
        programs = prefix_programs(
            model, mesh, places=places, width=width, positions=positions,
            completion_tokens=completion_tokens, samples=samples, rows=rows, choice=choice,
            eos_ids=eos_ids,
        )  # fmt: skip
        self.places, self._at_once = programs.places, programs.at_once
        self._empty, self._read, self._sample = programs.empty, programs.read, programs.sample
        self._mesh, self._key, self._width, self._pad = mesh, key, width, model.pad_id
        self._table = None
        if stops is not None and stops.strings:
            self._table = hosts.place(of_vocabulary(stops, model.vocab_size), replicated(mesh))
        self.forget()

    def forget(self) -> None:
        """Gives up what was read, and its memory, until the next `use`."""
        self._params: Any = None
        self._key_values: Any = None
        self._held: list[tuple[int, ...]] = [()] * self.places

    def use(self, params: Any) -> None:
        """The policy that completes from here on; what another one read is forgotten."""
        self.forget()
        self._params = params
        with jax.set_mesh(self._mesh):
            self._key_values = self._empty()

    def complete(self, asked: Sequence[Asked]) -> list[list[tuple[int, ...]]]:
        """The new tokens of each completion, an EOS included, for each prefix asked for.

        Raises ValueError for a place asked for twice or a text that is too long.
        """
        return [[ids for ids, _ in rows] for rows in self.complete_with_logps(asked)]

    def complete_with_logps(
        self, asked: Sequence[Asked]
    ) -> list[list[tuple[tuple[int, ...], np.ndarray]]]:
        """`complete`, and the log-prob of each new token under what it was drawn from."""
        places = [a.place for a in asked]
        if len(set(places)) < len(places):
            raise ValueError(f"places = {places} is not allowed: one prefix for each place")
        known, last, budget, stop_state = (np.zeros(self.places, np.int32) for _ in range(4))
        numbers = np.zeros((self.places, 3), np.uint32)
        for a in asked:
            known[a.place], last[a.place] = len(a.prefix) - 1, a.prefix[-1]
            budget[a.place], stop_state[a.place] = a.budget, a.stop_state
            numbers[a.place] = a.numbers
        rows = (known, last, budget, numbers, None if self._table is None else stop_state)
        known, last, budget, numbers, stop_state = hosts.place(rows, batch_sharding(self._mesh))
        with jax.set_mesh(self._mesh):
            self._read_missing(asked)
            found = self._sample(
                self._params, self._key_values, known, last, budget, self._key, numbers,
                stop_state, self._table,
            )  # fmt: skip
        return self._rows(found, places)

    def _read_missing(self, asked: Sequence[Asked]) -> None:
        missing: dict[int, tuple[int, ...]] = {}
        for a in asked:
            before = tuple(a.prefix[:-1])
            if self._held[a.place][: len(before)] != before:
                whole = tuple(a.whole)
                missing[a.place] = whole if whole[: len(before)] == before else before
        shards = batch_shards(self._mesh)
        held, at_once = self.places // shards, self._at_once // shards  # by each of them
        todo: list[list[int]] = [[] for _ in range(shards)]
        for place in sorted(missing, key=lambda place: len(missing[place])):
            todo[place // held].append(place)
        for start in range(0, max(map(len, todo)), at_once):
            places = np.full((shards, at_once), held, np.int32)  # beyond the last: not written
            tokens = np.full((shards, at_once, self._width), self._pad, np.int32)
            lengths = np.zeros((shards, at_once), np.int32)
            for shard, queue in enumerate(todo):
                for row, place in enumerate(queue[start : start + at_once]):
                    text = missing[place]
                    if len(text) > self._width:
                        raise ValueError(f"{len(text)} tokens are more than width = {self._width}")
                    places[shard, row], lengths[shard, row] = place % held, len(text)
                    tokens[shard, row, : len(text)] = text
                    self._held[place] = text
            valid = np.arange(self._width) < lengths[..., None]
            rows = (x.reshape(-1, *x.shape[2:]) for x in (places, tokens, valid))
            rows = hosts.place(tuple(rows), batch_sharding(self._mesh))
            self._key_values = self._read(self._params, self._key_values, *rows)

    def _rows(
        self, found: Completions, places: list[int]
    ) -> list[list[tuple[tuple[int, ...], np.ndarray]]]:
        tokens, length, logp = (hosts.whole(x) for x in (found.tokens, found.length, found.logp))
        samples = len(length) // self.places
        rows = [range(place * samples, (place + 1) * samples) for place in places]
        return [
            [(tuple(tokens[i, : length[i]].tolist()), logp[i, : length[i]]) for i in row]
            for row in rows
        ]


class PrefixPrograms(NamedTuple):
    """What a PrefixCompleter runs, jitted, for `places` responses of which it reads `at_once`."""

    places: int
    at_once: int
    empty: Any  # () -> bank of keys and values
    read: Any  # (params, bank, places [N] of each shard, tokens, valid [N, P]) -> bank
    sample: Any  # (params, bank, known, last, budget [N], key, numbers [N, 3], stop state, table)


def prefix_programs(
    model: PolicyModel,
    mesh: Mesh,
    *,
    places: int,
    width: int,
    positions: int,
    completion_tokens: int,
    samples: int,
    rows: int,
    choice: Choice,
    eos_ids: Sequence[int],
) -> PrefixPrograms:
    """The programs for at least so many places, a multiple of the devices on data x fsdp."""
    shards = batch_shards(mesh)
    places = -(-places // shards) * shards
    over, everywhere = batch_sharding(mesh), replicated(mesh)
    shardings = jax.tree.map(lambda x: x.sharding, abstract_params(model, mesh))

    def sample(params, key_values, known, last, budget, key, numbers, stop_state, table):
        def draws(numbers: Array) -> Array:
            of_prefix = functools.reduce(jax.random.fold_in, numbers, key)
            return jax.random.uniform(of_prefix, (samples, completion_tokens))

        queue = Queue(
            key_values,
            visible=jnp.arange(width) < known[:, None],
            last=last,
            limit=jnp.minimum(budget, completion_tokens),
            stop_state=stop_state,
            uniforms=jax.vmap(draws)(numbers).reshape(-1, completion_tokens),
        )
        return complete(
            model, params, queue, table,
            samples=samples, rows=rows, positions=positions, shards=shards, choice=choice,
            eos_ids=eos_ids,
        )  # fmt: skip

    return PrefixPrograms(
        places=places,
        at_once=-(-max(1, places // 4) // shards) * shards,
        empty=jax.jit(functools.partial(_empty, model, places, width)),
        read=jax.jit(
            functools.partial(_read, model, mesh),
            in_shardings=(shardings, None, over, over, over),
            donate_argnums=1,
        ),
        sample=jax.jit(
            sample,
            in_shardings=(shardings, None, over, over, over, None, over, over, everywhere),
            out_shardings=over,
        ),
    )


def _empty(model: PolicyModel, places: int, width: int) -> tuple[KeyValue, ...]:
    c = model.config
    zeros = jnp.zeros((places, c.kv_heads, width, c.head_dim), c.dtype)
    zeros = constrain(zeros, "batch", "kv_heads", "time", "head_dim")
    return ((zeros, zeros),) * c.layers


def _read(
    model: PolicyModel,
    mesh: Mesh,
    params: Any,
    key_values: tuple[KeyValue, ...],
    places: Int[Array, "N"],
    tokens: Int[Array, "N P"],
    valid: Bool[Array, "N P"],
) -> tuple[KeyValue, ...]:
    """The bank of keys and values with those of the tokens at their places.

    Rows and places are numbered within their shard: nothing but parameters moves between devices.
    """
    new = read_prompts(model, params, tokens, valid, mesh)
    shards = batch_shards(mesh)

    def sharded(x: Array) -> Array:
        return x.reshape(shards, -1, *x.shape[1:])

    def placed(bank: Array, values: Array) -> Array:
        write = jax.vmap(lambda bank, i, values: bank.at[i].set(values, mode="drop"))
        new = write(sharded(bank), sharded(places), sharded(values)).reshape(bank.shape)
        return constrain(new, "batch", "kv_heads", "time", "head_dim")

    return jax.tree.map(placed, key_values, new)
