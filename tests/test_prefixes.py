"""Completions of prefixes: against a loop that reads every prefix anew, token by token."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax.config import MeshConfig, ModelConfig
from prm_jax.model.heads import PolicyModel
from prm_jax.rl.stops import stop_table
from prm_jax.sharding import init_params, make_mesh
from prm_jax.steps.prefixes import Asked, PrefixCompleter
from prm_jax.steps.sample import Choice, choose

CONFIG = ModelConfig(layers=2, embed=16, heads=2, kv_heads=2, head_dim=8, mlp=24)
VOCAB, PAD, EOS, WIDTH, C, K = 24, 0, 3, 12, 6, 3
POLICY = PolicyModel(CONFIG, VOCAB, PAD)
MESHES = {"one": (MeshConfig(), 1), "mixed": (MeshConfig(data=2, fsdp=2, tensor=2), 8)}
RESPONSES = [
    tuple(int(t) for t in np.random.default_rng(i).integers(4, VOCAB, 5 + i)) for i in range(7)
]


@functools.cache
def mesh(name="one"):
    config, n = MESHES[name]
    return make_mesh(config, jax.devices()[:n])


@functools.cache
def params(scale=3, name="one"):
    return jax.tree.map(lambda x: scale * x, init_params(POLICY, mesh(name), jax.random.key(0)))


def completer(name="one", **settings):
    made = PrefixCompleter(
        POLICY,
        mesh(name),
        jax.random.key(5),
        **({
            "places": 8, "width": WIDTH, "positions": WIDTH + C, "completion_tokens": C,
            "samples": K, "rows": 8,
            "choice": Choice(1.0), "eos_ids": (EOS,),
        } | settings),
    )  # fmt: skip
    made.use(params(name=name))
    return made


def asked(place, response, kept, budget=C, numbers=None, **fields):
    whole = RESPONSES[response]
    numbers = numbers or (1, response, kept)
    return Asked(place, whole[:kept], whole, budget, numbers, **fields)


def by_a_loop(one: Asked, params=None, temperature=1.0):
    """The prefix and what was chosen are read from the beginning for every token."""
    model = params if params is not None else globals()["params"]()
    logits = jax.jit(lambda tokens: POLICY.apply({"params": model}, tokens, tokens > 0))
    key = functools.reduce(jax.random.fold_in, one.numbers, jax.random.key(5))
    rows = []
    for uniforms in jax.random.uniform(key, (K, C)):
        new: list[int] = []
        while len(new) < min(one.budget, C) and EOS not in new:
            tokens = np.zeros((1, WIDTH + C), np.int32)
            said = (*one.prefix, *new)
            tokens[0, : len(said)] = said
            after = logits(tokens)[:, len(said) - 1]
            token, _ = choose(after, uniforms[len(new)][None], temperature=temperature)
            new.append(int(token[0]))
        rows.append(tuple(new))
    return rows


PROBES = [
    asked(0, 0, 2), asked(3, 1, 6), asked(1, 2, 1), asked(7, 3, 5, budget=2), asked(6, 4, 9),
    asked(2, 5, 3, budget=0), asked(5, 6, 11),
]  # fmt: skip


def test_each_completion_is_what_reading_everything_anew_gives():
    found = completer().complete(PROBES)
    assert found == [by_a_loop(one) for one in PROBES]
    lengths = {len(row) for rows in found for row in rows}
    assert len(lengths) > 3  # some end early


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_neither_company_nor_place_nor_the_number_of_rows_changes_what_is_drawn(rows):
    whole = completer().complete(PROBES)
    other = completer(rows=rows)
    parts = []
    for n, one in enumerate(PROBES):
        moved = Asked(n % 2, one.prefix, one.whole, one.budget, one.numbers)
        parts += other.complete([moved])
    assert parts == whole
    assert other.complete(PROBES[::-1]) == whole[::-1]


def test_what_is_computed_for_a_prefix_is_the_same_to_the_last_bit_in_any_company(monkeypatch):
    """Else a verdict that comes later, or a kill, could change what is drawn."""
    found = []
    for before, others, place in (([], [], 0), (PROBES, PROBES[:5], 7), (PROBES[3:], PROBES, 4)):
        made = completer()
        sample, logps = made._sample, []
        monkeypatch.setattr(
            made, "_sample", lambda *a, s=sample, seen=logps: seen.append(s(*a)) or seen[-1]
        )
        if before:
            made.complete(before)
        probe = asked(place, 3, 5)
        made.complete([*(one for one in others if one.place != place), probe])
        here = slice(place * K, place * K + K)
        found.append([np.asarray(x[here]) for x in logps[-1]])
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(one, two)


def test_other_numbers_draw_other_completions():
    made = completer()
    one, other = (made.complete([asked(0, 3, 4, numbers=(1, 2, n))])[0] for n in (3, 4))
    assert one != other


def test_a_response_is_read_once_for_all_its_prefixes(monkeypatch):
    made = completer()
    read, reads = made._read, []
    monkeypatch.setattr(made, "_read", lambda *args: reads.append(args) or read(*args))
    for kept in (4, 2, 3, 6, 5):
        one = asked(2, 1, kept)
        assert made.complete([one]) == [by_a_loop(one)]
    assert len(reads) == 1
    # A cut within a token spells the end of the prefix anew.
    for tail in ((20,), (20, 21)):
        one = Asked(2, (*RESPONSES[1][:3], *tail), RESPONSES[1], C, (9, 9, 9))
        assert made.complete([one]) == [by_a_loop(one)]
    assert len(reads) == 2  # one other token is read as the last one is; two are not
    one = asked(2, 4, 3)  # another response takes the place
    assert made.complete([one]) == [by_a_loop(one)]
    assert len(reads) == 3


def test_what_another_policy_read_is_forgotten():
    made = completer()
    made.complete(PROBES)
    made.use(params(scale=2))
    assert made.complete(PROBES[:2]) == [by_a_loop(one, params(scale=2)) for one in PROBES[:2]]


def test_eight_devices_complete_as_one_does():
    assert completer("mixed", rows=16).complete(PROBES) == completer().complete(PROBES)


def test_a_stop_string_that_begins_in_the_prefix_ends_the_row():
    pieces = [b"", *(b"ab"[i % 2 :][:1] for i in range(VOCAB - 1))]
    stops = stop_table([b"aba"], pieces)
    probes = [
        asked(n, 3, 4 + n, stop_state=stops.start([pieces[t] for t in RESPONSES[3][: 4 + n]]))
        for n in range(3)
    ]
    found = completer(stops=stops).complete(probes)
    free = completer().complete(probes)
    for one, rows, unstopped in zip(probes, found, free, strict=True):
        begun = b"".join(pieces[t] for t in one.prefix)
        for row, other in zip(rows, unstopped, strict=True):
            said, wanted = begun, []
            for token in other if b"aba" not in begun else ():
                wanted.append(token)
                said += pieces[token]
                if b"aba" in said:
                    break
            assert row == tuple(wanted)


def test_places_and_widths_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="one prefix for each place"):
        completer().complete([asked(1, 0, 2), asked(1, 1, 2)])
    long = tuple(range(4, 4 + WIDTH + 1))
    with pytest.raises(ValueError, match="13 tokens are more than width = 12"):
        completer().complete([Asked(0, long[:3], long, C, (0, 0, 0))])


def test_nothing_new_is_compiled_after_the_first_call():
    made = completer()
    made.complete(PROBES)
    compiled = []

    def listen(event, duration, **_):
        if "backend_compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    made.complete(PROBES[:3])
    made.complete([asked(4, 6, 2)])
    assert not compiled
    jax.jit(lambda x: x + jnp.float32(17))(jnp.arange(29.0))
    assert compiled
