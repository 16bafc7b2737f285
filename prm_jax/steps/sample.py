"""Sampling: prompts are read once, then K completions of each grow token by token.

One compiled program. Each row draws one uniform number per token and looks it up in the cumulative
distribution; the log-probs returned are of the distribution that was drawn from, so at top_p = 1
and top_k = 0 they are what `token_logps` gives at the same temperature.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from prm_jax import hosts
from prm_jax.model.attention import Cache, KeyValue
from prm_jax.model.heads import PolicyModel
from prm_jax.model.linear import for_decoding
from prm_jax.rl.stops import StopTable
from prm_jax.sharding import (
    abstract_params,
    batch_sharding,
    batch_shards,
    constrain,
    map_rows,
    replicated,
)
from prm_jax.steps.decode import Completions, Queue, decode
from prm_jax.types import Samples

READ_TOKENS = 1 << 13  # of prompts that a device reads at once
BLOCK = 1 << 10  # of a vocabulary, within which a token is looked up

Sampler = Callable[..., Samples]  # its arguments are those of make_sampler's program


def make_sampler(
    model: PolicyModel,
    mesh: Mesh,
    *,
    completion_tokens: int,
    samples_per_prompt: int,
    rows: int | None = None,
    temperature: float,
    top_p: float = 1.0,
    top_k: int = 0,
    eos_ids: Sequence[int],
    stops: StopTable | None = None,
) -> Sampler:
    """A jitted `(params, tokens [N,P], valid [N,P], budget [N] int32, key) -> Samples [N*K, P+C]`.

    Prompts are left-padded. The K samples of a prompt are adjacent rows. A row ends with a token of
    `eos_ids` or with the token that completes a stop string, both of which count as chosen, or
    after `budget` new tokens (at most C = completion_tokens); PAD follows, and is never chosen.
    temperature = 0 is greedy, with log-prob 0. The same key repeats bit for bit.

    With `stops` the sampler takes one more argument, `stop_state [N] int32`: `stops.start` of the
    part of the response that a prompt ends with, by default of none.

    N must be a multiple of the devices on data x fsdp.
    """
    if completion_tokens < 1 or samples_per_prompt < 1:
        raise ValueError(
            f"completion_tokens = {completion_tokens} and samples_per_prompt = "
            f"{samples_per_prompt} are not allowed: both must be at least 1"
        )
    if model.pad_id in eos_ids:
        raise ValueError(f"eos_ids = {tuple(eos_ids)} has PAD, which is never chosen: leave it out")
    _check_choice(temperature, top_p, top_k)
    table = None
    if stops is not None and stops.strings:
        table = hosts.place(of_vocabulary(stops, model.vocab_size), replicated(mesh))
    jitted = sampling_program(
        model,
        mesh,
        completion_tokens=completion_tokens,
        samples_per_prompt=samples_per_prompt,
        rows=rows,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        eos_ids=eos_ids,
    )

    def under_mesh(
        params: Any, tokens: Any, valid: Any, budget: Any, key: jax.Array, stop_state: Any = None
    ) -> Samples:
        if tokens.shape[0] % batch_shards(mesh):
            raise ValueError(
                f"{tokens.shape[0]} prompts do not divide over the {batch_shards(mesh)} devices of "
                "mesh axes data x fsdp: pad them with prompts of budget 0"
            )
        if stops is None and stop_state is not None:
            raise ValueError("stop_state is not allowed: this sampler was made without stops")
        if table is None:
            stop_state = None
        elif stop_state is None:
            assert stops is not None
            stop_state = np.full(tokens.shape[0], stops.start(), np.int32)
        tokens, valid, budget, stop_state = hosts.place(
            (tokens, valid, budget, stop_state), batch_sharding(mesh)
        )
        with jax.set_mesh(mesh):
            return jitted(params, tokens, valid, budget, key, stop_state, table)

    return under_mesh


def sampling_program(
    model: PolicyModel,
    mesh: Mesh,
    *,
    completion_tokens: int,
    samples_per_prompt: int,
    rows: int | None = None,
    temperature: float,
    top_p: float = 1.0,
    top_k: int = 0,
    eos_ids: Sequence[int],
) -> Any:
    """What `make_sampler` runs: jitted, `(params, tokens, valid, budget, key, stop_state, table)`.

    Without stop strings the last two are None.
    """

    choice = Choice(temperature, top_p, top_k)

    def sample(
        params: Any, tokens: Array, valid: Array, budget: Array, key: Array, stop_state: Any,
        table: Any,
    ) -> Samples:  # fmt: skip
        n, p = tokens.shape
        shards = batch_shards(mesh)
        queue = Queue(
            read_prompts(model, params, tokens, valid, mesh),
            visible=valid & (jnp.arange(p) < p - 1),
            last=tokens[:, -1],
            limit=jnp.minimum(budget, completion_tokens),
            stop_state=stop_state,
            # Rows first: a row's draws are then the same in a larger batch.
            uniforms=jax.random.uniform(key, (n * samples_per_prompt, completion_tokens)),
        )
        completions = complete(
            model, params, queue, table,
            samples=samples_per_prompt,
            rows=rows or n * samples_per_prompt,
            positions=p + completion_tokens,
            shards=shards,
            choice=choice,
            eos_ids=eos_ids,
        )  # fmt: skip
        mask = jnp.arange(completion_tokens) < completions.length[:, None]
        before = ((0, 0), (p, 0))

        def repeat(x: Array) -> Array:
            return jnp.repeat(x, samples_per_prompt, axis=0)

        return Samples(
            tokens=jnp.concatenate([repeat(tokens), completions.tokens], axis=1),
            valid=jnp.concatenate([repeat(valid), mask], axis=1),
            completion_mask=jnp.pad(mask, before),
            logp=jnp.pad(completions.logp, before),
        )

    shardings = jax.tree.map(lambda x: x.sharding, abstract_params(model, mesh))
    over_rows, everywhere = batch_sharding(mesh), replicated(mesh)
    return jax.jit(
        sample,
        in_shardings=(
            shardings,
            over_rows,
            over_rows,
            over_rows,
            everywhere,
            over_rows,
            everywhere,
        ),
        out_shardings=over_rows,
    )


def read_prompts(
    model: PolicyModel,
    params: Any,
    tokens: Int[Array, "N P"],
    valid: Bool[Array, "N P"],
    mesh: Mesh,
) -> tuple[KeyValue, ...]:
    """Keys and values of prompts, a few prompts at a time if they are long.

    Attention over all of them at once would need N x heads x P x P numbers.
    """
    p = tokens.shape[1]

    def read(part: tuple[Array, Array]) -> tuple[KeyValue, ...]:
        # The hidden states are of no use here: the last layer computes no more than one.
        tokens, valid = (constrain(x, "batch", "time") for x in part)
        apply: Any = functools.partial(model.apply, {"params": params})
        return tuple(apply(tokens, valid, first=p - 1, method="hidden")[1])

    found = map_rows(read, (tokens, valid), mesh, max(1, READ_TOKENS // p))
    return jax.tree.map(lambda x: constrain(x, "batch", "kv_heads", "time", "head_dim"), found)


class Choice(NamedTuple):
    """How a token is chosen; see `choose`."""

    temperature: float
    top_p: float = 1.0
    top_k: int = 0


def complete(
    model: PolicyModel,
    params: Any,
    queue: Queue,
    table: Any,
    *,
    samples: int,
    rows: int,
    positions: int,
    shards: int,
    choice: Choice,
    eos_ids: Sequence[int],
) -> Completions:
    """`decode` with the policy; traced within a program."""
    head = model.apply({"params": params}, method="head_for_decoding")
    apply: Any = functools.partial(model.apply, {"params": for_decoding(params, model.config)})

    def read(token: Array, alive: Array, cache: Cache) -> tuple[Array, Any]:
        hidden, entries = apply(token, alive, cache, method="hidden")
        return apply(hidden, head, method="logits")[:, 0], entries

    return decode(
        read,
        functools.partial(choose, **choice._asdict()),
        queue,
        samples=samples,
        rows=rows,
        positions=positions,
        shards=shards,
        pad_id=model.pad_id,
        eos_ids=eos_ids,
        table=table,
    )


def of_vocabulary(stops: StopTable, vocab_size: int) -> np.ndarray:
    """`next_state` for all ids of the model; those beyond the tokenizer's have no bytes.

    Raises ValueError if the tokenizer has more tokens than the model.
    """
    n_states, n_tokens = stops.next_state.shape
    if n_tokens > vocab_size:
        raise ValueError(
            f"stops has {n_tokens} tokens, but the model's vocabulary is {vocab_size}: make it "
            "with the tokenizer of the model"
        )
    same = np.arange(n_states, dtype=np.int16)[:, None]
    return np.hstack([stops.next_state, np.repeat(same, vocab_size - n_tokens, axis=1)])


def choose(
    logits: Float[Array, "B V"],
    uniform: Float[Array, "B"],
    *,
    temperature: float,
    top_p: float = 1.0,
    top_k: int = 0,
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
    """One token per row by inverse CDF, and its log-prob under the distribution it came from.

    That is softmax(logits / temperature), kept to the `top_k` likeliest tokens (0: all) and then to
    the fewest likeliest that hold `top_p` of its mass (never none), and renormalised.
    temperature = 0 takes the likeliest token. `uniform` is in [0, 1).
    """
    _check_choice(temperature, top_p, top_k)
    if temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32), jnp.zeros(logits.shape[:1])
    logits = logits / temperature
    order = None
    if top_p < 1 or 0 < top_k < logits.shape[-1]:
        k = min(top_k, logits.shape[-1]) if top_k else logits.shape[-1]
        logits, order = jax.lax.top_k(logits, k)
        probs = jax.nn.softmax(logits, axis=-1)
        mass_before = jnp.cumsum(probs, axis=-1) - probs
        keep = (mass_before < top_p) | (jnp.arange(k) == 0)
        logits = jnp.where(keep, logits, -jnp.inf)
    weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    if (vocab := weights.shape[-1]) <= BLOCK:
        index, _ = _inverse_cdf(weights, uniform)
    else:  # first the block, then the token in it: a cumulative sum over all is slow on TPUs
        blocks = jnp.pad(weights, ((0, 0), (0, -vocab % BLOCK))).reshape(len(weights), -1, BLOCK)
        block, uniform = _inverse_cdf(blocks.sum(axis=-1), uniform)
        within = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
        index = block * BLOCK + _inverse_cdf(within, uniform)[0]
    logp = jnp.log(jnp.take_along_axis(weights, index[:, None], axis=-1)[:, 0])
    logp -= jnp.log(weights.sum(axis=-1))
    if order is not None:
        index = jnp.take_along_axis(order, index[:, None], axis=-1)[:, 0]
    return index, logp


def _inverse_cdf(
    weights: Float[Array, "B N"], uniform: Float[Array, "B"]
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
    """Where the cumulative sum passes `uniform` of the total, and how far into that place it is.

    The second is a uniform number once more.
    """
    cdf = jnp.cumsum(weights, axis=-1)
    share = uniform[:, None] * cdf[:, -1:]
    # A parallel sum may rise by a rounding error at a place of weight 0, and the share may round up
    # to the total: so only places with weight count, at worst the last of them.
    n = weights.shape[-1]
    places = jnp.arange(n, dtype=jnp.int32)
    index = jnp.minimum(
        jnp.where((weights > 0) & (cdf > share), places, n).min(axis=-1),
        jnp.where(weights > 0, places, 0).max(axis=-1),
    )
    weight, end = (jnp.take_along_axis(x, index[:, None], axis=-1) for x in (weights, cdf))
    # Of a place that has hardly any weight, rounding leaves nothing to be told.
    return index, jnp.clip(1 - (end - share) / weight, 0, 1)[:, 0]


def _check_choice(temperature: float, top_p: float, top_k: int) -> None:
    if not temperature >= 0:
        raise ValueError(
            f"temperature = {temperature} is not allowed: it must be greater than 0, or exactly 0 "
            "for greedy choice"
        )
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p = {top_p} is not allowed: it must be above 0 and at most 1")
    if top_k < 0:
        raise ValueError(f"top_k = {top_k} is not allowed: it must be at least 0 (0 keeps all)")
