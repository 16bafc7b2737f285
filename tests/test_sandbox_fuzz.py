"""Whatever a program writes on its pipes, the trusted side forms a verdict, in bounded time.

Here the child is left out: made-up reports and responses go to the code that reads them in the
broker and in the tester, which must neither stumble nor pass what is not the expected value.
"""

import json
import os
import struct
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_jax.sandbox.core import frames, tester, verdicts
from prm_jax.sandbox.core.verdicts import Limits, Outcome

LIMITS = Limits(1.0, 1 << 28, 1 << 20)
PROFILE = settings(max_examples=150, deadline=None, derandomize=True)

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 3),
    st.floats(),
    st.text(max_size=3),
    st.sampled_from(["v", "x", "end", "load", "pass", "fail", "gone", "h", "passed", "timeout"]),
    st.sampled_from("l t s d q g i f c u b F D r T e m a o".split()),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5), st.dictionaries(st.text(max_size=2), inner, max_size=2)
    ),
    max_leaves=12,
)
FRAME = st.one_of(
    JSON,
    st.tuples(st.sampled_from(["v", "x"]), st.integers(0, 2), JSON).map(list),
    st.tuples(st.just("x"), st.integers(0, 2), JSON, JSON).map(list),
    st.tuples(st.just("load"), JSON, JSON).map(list),
)


def written(messages: list, tail: bytes = b"") -> bytes:
    return b"".join(frames.pack(message) for message in messages) + tail


def outcome(report: bytes, **fields) -> Outcome:
    base = {"exit_code": 0, "signal": 0, "cpu_s": 0.1, "wall_s": 0.1}
    return Outcome(**{**base, "frames": verdicts.parse_frames(report), **fields})


def verdict(tests: dict, outcomes: list[Outcome]) -> dict:
    """What the broker says to these outcomes."""
    steps = verdicts.judge("x = 1", {"setup": "", "float_tolerance": 0.0, **tests}, LIMITS)
    next(steps)
    with pytest.raises(StopIteration) as stop:
        steps.send(outcomes)
    return stop.value.value


def is_verdict(found: dict) -> bool:
    found["message"].encode()  # fits in a file
    known = ("passed", "failed", "error", "timeout", "memory", "forbidden")
    return found["status"] in known and found["tests_passed"] <= found["tests_total"]


UNKNOWN = 'an unlikely "value"'  # no made-up report has it
CALLS = {"kind": "calls", "asserts": [f"assert f({i}) == {UNKNOWN!r}" for i in range(2)]}
MIXED = {
    "kind": "calls",
    "asserts": ["assert f(0)", "assert not f(1)", "assert f(2) < 3", f"assert f(3) == {UNKNOWN!r}"],
}
CHECK = {"kind": "check", "entry_point": "f", "code": "def check(c):\n    assert abs(c(1)) < 2"}


@PROFILE
@given(st.lists(FRAME, max_size=6), st.binary(max_size=12), st.sampled_from([CALLS, MIXED]))
def test_no_report_passes_without_the_values(messages, tail, tests):
    found = verdict(tests, [outcome(written(messages, tail))])
    assert is_verdict(found)
    assert found["status"] != "passed"


@PROFILE
@given(st.binary(max_size=300), st.floats(0.0, 1.0))
def test_no_bytes_break_the_broker(data, tolerance):
    found = verdict(
        {**CALLS, "float_tolerance": tolerance}, [outcome(data, exit_code=None, signal=9)]
    )
    assert is_verdict(found) and found["status"] != "passed"


@PROFILE
@given(st.lists(FRAME, max_size=4), st.lists(FRAME, max_size=4))
def test_no_frames_of_a_program_count_as_those_of_its_tester(ours, theirs):
    theirs = [m for m in theirs if not (isinstance(m, list) and m[:1] == ["pass"])]
    found = verdict(CHECK, [outcome(written(ours)), outcome(written(theirs))])
    assert is_verdict(found) and found["status"] != "passed"


FLOODS = {
    "empty frames": bytes(2 << 20),
    "one long frame": struct.pack("<I", 2 << 20) + b"[" * (2 << 20),
    "empty lists": written([["v", 0, ["l", *[[]] * 500_000]]]),
    "frames that are values": written([["v", i, i] for i in range(100_000)]),
    "nested dicts": written([["v", 0, 1]]) + written([json.loads('{"a":' * 500 + "1" + "}" * 500)]),
    "digits": struct.pack("<I", 1 << 20) + b"9" * (1 << 20),
}


@pytest.mark.parametrize("report", FLOODS.values(), ids=FLOODS.keys())
def test_floods_cost_little(report):
    start = time.process_time()
    found = verdict(CALLS, [outcome(report)])
    assert is_verdict(found) and found["status"] != "passed"
    assert time.process_time() - start < 5.0


RESPONSE = st.one_of(
    JSON,
    st.tuples(st.just("v"), JSON, st.lists(st.lists(JSON, max_size=3), max_size=2)).map(list),
    st.tuples(st.just("v"), st.tuples(st.just("h"), JSON, JSON).map(list), st.just([])).map(list),
    st.tuples(st.just("x"), JSON, JSON, JSON, JSON).map(list),
)


@settings(PROFILE, max_examples=60)
@given(st.lists(RESPONSE, max_size=5), st.binary(max_size=8))
def test_no_response_makes_test_code_pass(responses, tail):
    """The tester asks a program that answers anything, for a value that it cannot know."""
    to_program, from_program, report = os.pipe(), os.pipe(), os.pipe()
    job = {
        "tests": [f"a = [1]\nassert f(a, b={{}}) == {UNKNOWN!r}"],
        "names": {"f": "f", "math": ["math", ""]},
        "stop_at_first": True,
        "output_bytes": 1 << 16,
    }
    os.write(from_program[1], written(responses, tail))
    os.close(from_program[1])
    reader = threading.Thread(target=lambda: os.read(to_program[0], 1 << 16))
    reader.start()
    try:
        tester.run(job, to_program[1], from_program[0], report[1])
    finally:
        for fd in (to_program[1], from_program[0], report[1]):
            os.close(fd)
    said = verdicts.parse_frames(os.read(report[0], 1 << 16))
    reader.join()
    os.close(to_program[0])
    os.close(report[0])
    assert len(said) >= 1 and all(message[0] in ("fail", "gone") for message in said)
