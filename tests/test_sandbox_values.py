"""Values cross as tagged JSON; equality of what comes back is Python's, whatever is sent."""

import datetime
import json
import math
import time
import tracemalloc
from collections import Counter, OrderedDict, deque, namedtuple
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_jax.sandbox.core import compare, frames, values

settings.register_profile("sandbox", max_examples=80, deadline=None, derandomize=True)
settings.load_profile("sandbox")

NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.integers(),
    st.booleans(),
    st.floats(allow_nan=False),
    st.fractions(),
    st.complex_numbers(allow_nan=False, allow_infinity=False),
)
SCALARS = st.one_of(NUMBERS, st.none(), st.text(), st.binary(), st.just(...))
KEYS = st.one_of(NUMBERS, st.text(max_size=3), st.none())
VALUES = st.recursive(
    st.one_of(SCALARS, st.sets(KEYS, max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=3).map(tuple),
        st.lists(inner, max_size=3).map(deque),
        st.dictionaries(KEYS, inner, max_size=3),
    ),
    max_leaves=12,
)
JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-5, 5),
        st.floats(),
        st.text(max_size=3),
        st.sampled_from("l t s d q g i f c u b F D r T e m a o h".split()),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=2), inner, max_size=2)
    ),
    max_leaves=12,
)


def sent(value):
    """The value as it arrives: through JSON text."""
    encoded = values.Encoder(1 << 20).encode(value)
    return json.loads(json.dumps(encoded))


@given(VALUES)
def test_a_value_comes_back_as_it_was(value):
    back = values.decode(sent(value))
    assert back == value
    assert compare.equal(sent(value), sent(back))


@given(VALUES, VALUES)
def test_equality_is_pythons(a, b):
    assert compare.equal(sent(a), sent(b)) == (a == b)


@given(st.lists(KEYS, max_size=4), st.lists(KEYS, max_size=4))
def test_equality_of_collections_is_pythons(a, b):
    for kind in (list, tuple, set, frozenset, Counter, dict.fromkeys):
        assert compare.equal(sent(kind(a)), sent(kind(b))) == (kind(a) == kind(b))


@given(VALUES)
def test_truth_is_pythons(value):
    assert compare.truth(sent(value)) == bool(value)


Point = namedtuple("Point", "x y")
EQUAL = [
    (True, 1),
    (1, 1.0),
    (0.0, -0.0),
    (2**70, float(2**70)),
    (Decimal("0.5"), 0.5),
    (Fraction(1, 2), 0.5),
    (Point(1, 2), (1, 2)),
    (Counter("aab"), {"a": 2, "b": 1}),
    (OrderedDict(a=1), {"a": 1}),
    ({1, 2}, frozenset([2.0, 1])),
    (bytearray(b"x"), b"x"),
    (range(0), range(5, 5)),
    (range(0, 5, 3), range(0, 4, 3)),
    (range(3, 0, -2), range(3, -1, -2)),
    (range(2, 3), range(2, 9, 7)),
    (7**20000, 7**20000),
    ("a\ud800b", "a\ud800b"),
    (np.float64(1.5), 1.5),
    (np.int64(3), 3),
    (datetime.date(2020, 1, 2), datetime.date(2020, 1, 2)),
]
DIFFERENT = [
    (math.nan, math.nan),
    (1, "1"),
    ([1], (1,)),
    (b"a", "a"),
    (0, None),
    (False, None),
    (10**20, float(10**20) + 2**20),
    (0.1 + 0.2, 0.3),
    (deque([1]), [1]),
    ("\ud83d\ude00", "\U0001f600"),  # two surrogates are not the character they would encode
    (range(2), [0, 1]),
    (range(0, 6, 3), range(0, 7, 3)),
    (range(3, 0, -1), range(3)),
    ({1: 2}, {1: 3}),
]


@pytest.mark.parametrize("a, b", EQUAL, ids=lambda value: type(value).__name__)
def test_equal(a, b):
    assert a == b or isinstance(a, np.generic)
    assert compare.equal(sent(a), sent(b))
    assert compare.equal(sent([a]), sent([b]), tolerance=1e-9)


@pytest.mark.parametrize("a, b", DIFFERENT, ids=lambda value: type(value).__name__)
def test_different(a, b):
    assert not compare.equal(sent(a), sent(b))


class Liar(int):
    def __eq__(self, other):
        return True

    __hash__ = int.__hash__


class Opaque:
    def __eq__(self, other):
        return True


def test_what_lies_about_equality_is_sent_without_its_lie():
    assert sent(Liar(7)) == 7
    assert not compare.equal(sent([Liar(7)]), sent([8]))
    assert not compare.equal(sent(Opaque()), sent(Opaque()))


def test_tolerance():
    assert compare.equal(sent([1.0, {"a": 2}]), sent([1.0 + 1e-9, {"a": 2.0}]), 1e-6)
    assert not compare.equal(sent([1.0]), sent([1.1]), 1e-6)
    assert compare.equal(sent({0.1 + 0.2, 5}), sent({0.3, 5}), 1e-6)
    assert not compare.equal(sent({0.5}), sent({"a"}), 1e-6)
    assert not compare.equal(sent(3), sent(4), 0.5), "integers are exact whatever the tolerance"


@pytest.mark.parametrize(
    "actual, expected, tolerance, same",
    [
        ("1 2\n", "1 2", 0, True),
        ("1 2  \n\n", "1 2\n", 0, True),
        (" 1", "1", 0, False),
        ("1\n\n2", "1\n2", 0, False),
        ("0.3333333 a", "0.3333334 a", 1e-6, True),
        ("0.3333333 a", "0.3333334 b", 1e-6, False),
        ("nan", "1", 1e-6, False),
        ("6\0\0", "6", 0, False),
        ("a\r\nb", "a\nb", 0, True),
    ],
)
def test_lines(actual, expected, tolerance, same):
    assert compare.lines_equal(actual, expected, tolerance) == same


# ------------------------------------------------------------------------------- hostile input


@given(JSON, JSON)
def test_any_json_is_compared_or_malformed(a, b):
    for tolerance in (0.0, 1e-6):
        try:
            assert compare.equal(a, b, tolerance) in (True, False)
        except values.Malformed:
            pass


@given(JSON)
def test_any_json_is_decoded_or_malformed(data):
    try:
        values.decode(data, lambda tagged: None)
    except values.Malformed:
        pass


@given(st.binary(max_size=200))
def test_any_bytes_are_frames_or_bad(data):
    bodies, used = frames.split(data)
    assert used <= len(data)
    assert sum(4 + len(body) for body in bodies) == used
    for body in bodies:
        try:
            frames.unpack(body)
        except frames.BadFrame:
            pass


HOSTILE = {
    "depth": b"[" * 200_000,
    "digits": b"9" * 100_000,
    "float digits": b"0." + b"1" * 1_000_000,
    "nan": b"NaN",
    "not utf-8": b"\xff\xfe",
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_frames_cost_little(body):
    start = time.process_time()
    try:
        frames.unpack(body)
    except frames.BadFrame:
        pass
    assert time.process_time() - start < 1.0


COSTLY = {
    "colliding integers": ["s", *[["i", f"{i * ((1 << 61) - 1):x}"] for i in range(1, 30_000)]],
    "long fraction": ["F", ["i", "f" * 900_000], ["i", "e" * 900_000]],
    "long decimal": ["D", "9" * 1_000_000],
    "vast decimal": ["D", "1e999999999"],
    "long integer": ["i", "f" * 1_000_000],
    "short decimals of many digits": ["l", *[["D", "1e4999"]] * 30_000],
    "short floats of many digits": ["l", *[1e308] * 100_000],
    "vast range": ["r", 0, ["i", "f" * 100], 1],
    "many empty lists": ["l", *[["l"]] * 200_000],
}


@pytest.mark.parametrize("data", COSTLY.values(), ids=COSTLY.keys())
def test_hostile_values_cost_little(data):
    start = time.process_time()
    compare_all(data)
    assert time.process_time() - start < 4.0
    tracemalloc.start()
    try:
        compare_all(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 150 << 20


def compare_all(data):
    for other, tolerance in ((["s", 1], 0.0), (0.5, 1e-6)):
        try:
            assert not compare.equal(data, other, tolerance)
        except values.Malformed:
            pass


def test_values_that_are_too_large_are_refused():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    shared: list = [0]
    for _ in range(60):
        shared = [shared, shared]
    for value in (deep, shared, "x" * (1 << 21), list(range(300_000)), 1 << (1 << 24)):
        with pytest.raises(values.TooLarge):
            values.Encoder(1 << 20).encode(value)
