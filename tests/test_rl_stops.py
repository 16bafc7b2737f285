"""The automaton against a search of the joined bytes, token by token."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_jax.rl.stops import DONE, before_stop, stop_table

fixed = settings(derandomize=True, deadline=None, max_examples=200)
# Few letters, so that stop strings overlap themselves and each other, and straddle tokens.
words = st.text("ab\n", min_size=1, max_size=4).map(str.encode)
vocabularies = st.lists(st.text("ab\n", max_size=4).map(str.encode), min_size=3, max_size=6)
stop_strings = st.lists(words, max_size=4)


def is_over(text: bytes, strings: list[bytes]) -> bool:
    """By the definition: a stop string is complete, and its last byte is the response's own."""
    lead = b"" if b"\n" in strings else b"\n"
    return any(string in lead + text for string in strings)


def walk(table, tokens, state):
    for token in tokens:
        state = int(table.next_state[state, token])
    return state


@fixed
@given(stop_strings, vocabularies, st.lists(st.integers(0, 2), max_size=12), st.integers(0, 12))
def test_a_response_is_over_with_the_token_that_completes_a_stop_string(
    strings, pieces, tokens, kept
):
    table = stop_table(strings, pieces)
    assert table.next_state.dtype == np.int16
    assert table.next_state.shape == (len(table.next_by_byte), len(pieces))
    for n in range(len(tokens) + 1):
        said = [pieces[t] for t in tokens[:n]]
        over = is_over(b"".join(said), strings)
        # From the start, and from a prefix that is kept.
        assert (walk(table, tokens[:n], table.start()) == DONE) == over
        at = min(kept, n)
        state = table.start(said[:at])
        assert (walk(table, tokens[at:n], state) == DONE) == over


@fixed
@given(stop_strings, st.text("ab\n", max_size=12).map(str.encode))
def test_code_ends_where_the_first_complete_stop_string_begins(strings, text):
    first = next((n for n in range(len(text) + 1) if is_over(text[:n], strings)), None)
    stop = before_stop(text, strings)
    if first is None:
        assert stop == len(text)
        return
    lead = b"" if b"\n" in strings else b"\n"
    said = lead + text[:first]
    begin = min(len(said) - len(string) for string in strings if said.endswith(string))
    newline = said[begin : begin + 1] == b"\n"
    assert (lead + text)[:begin] + b"\n" * newline == lead + text[:stop] or stop == 0 == begin
    # What comes after it changes nothing: nor does a longer response.
    for n in range(first, len(text) + 1):
        assert before_stop(text[:n], strings) == stop


@pytest.mark.parametrize(
    ("text", "strings", "code"),
    [
        (b"x = 1\n```\nDone", [b"\n```"], b"x = 1\n"),
        (b"x = 1\r\n```", [b"\n```"], b"x = 1\r\n"),
        (b"```", [b"\n```"], b""),  # a fence that the response opens with
        (b"x = 1```", [b"\n```"], b"x = 1```"),
        (b"x = 1\n``", [b"\n```"], b"x = 1\n``"),  # not yet
        (b"x = 1 # END, END", [b"END"], b"x = 1 # "),
        (b"a\n\nclass", [b"\nclass", b"\n\n"], b"a\n"),  # the first to be complete
        (b"a\n\n\nb", [b"\n\n\n", b"\n\nb", b"\nb"], b"a\n"),
        (b"xyab", [b"ab", b"yab", b"b"], b"x"),  # the longest of those complete at once
        (b"\nab", [b"\n"], b"\n"),  # a newline alone must be the response's own
        (b"a\nb", [b"\n"], b"a\n"),
        (b"ab", [b"\n", b"\nab"], b"ab"),
        (b"ab", [], b"ab"),
        (b"", [b"a"], b""),
    ],
)
def test_what_comes_before_a_stop_string(text, strings, code):
    assert text[: before_stop(text, strings)] == code


def test_tokens_that_straddle_a_fence():
    pieces = [b"", b"x = 1", b"\n`", b"``", b"\n", b"`\n", b"```"]
    table = stop_table([b"\n```"], pieces)
    start = table.start()
    assert walk(table, [1, 2, 3], start) == DONE
    assert walk(table, [1, 2, 0, 3], start) == DONE  # a special token has no bytes
    assert walk(table, [1, 2, 5, 3], start) != DONE
    assert walk(table, [1, 2, 5, 6], start) == DONE
    assert walk(table, [6], start) == DONE and walk(table, [1, 6], start) != DONE
    assert (table.next_state[DONE] == DONE).all()


def test_a_prefix_may_end_within_a_stop_string_or_after_it():
    table = stop_table([b"\n```"], [b"```", b"x"])
    assert walk(table, [0], table.start([b"x = 1\n"])) == DONE
    assert walk(table, [0], table.start([b"x = 1"])) != DONE
    assert table.start([b"x", b"\n``", b"`"]) == DONE


def test_without_stop_strings_nothing_is_ever_over():
    table = stop_table([], [b"a", b"\n"])
    assert (table.next_state[table.start()] == table.start()).all() and table.start() != DONE


def test_stop_strings_without_a_meaning_are_refused():
    with pytest.raises(ValueError, match="must not be empty"):
        stop_table([b"a", b""], [b"a"])
    with pytest.raises(ValueError, match="of 1001 bytes in all are too long: 1000 are possible"):
        stop_table([b"a" * 501, b"b" * 500], [b"a"])
