r"""Where a response ends because it has said one of its stop strings.

A stop string is bytes, but the policy writes tokens, and a stop string may begin in the middle of
one token and end in the middle of another. So the sampler follows an automaton over bytes
(Aho-Corasick) that takes a whole token at a time, and the host cuts the response's bytes where the
stop string begins. Both read the text before a response as ending in a newline: "\n```" then also
finds a fence that a response opens with.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

DONE = 0  # the state after a complete stop string; no token leads out of it
_ROOT = 1  # nothing of any stop string
MOST_BYTES = 1_000  # of all stop strings: a state each, and 300 KB a state for 150k tokens


@dataclasses.dataclass(frozen=True, eq=False)
class StopTable:
    """The automaton of some stop strings over the tokens of a vocabulary, S states."""

    strings: tuple[bytes, ...]
    next_state: Int[np.ndarray, "S V"]  # int16; the state after each token
    next_by_byte: Int[np.ndarray, "S 256"]

    def start(self, prefix_pieces: Sequence[bytes] = ()) -> int:
        """The state after the tokens of a response that are kept; without any, at its start."""
        state = _ROOT
        for byte in _before(self.strings) + b"".join(prefix_pieces):
            state = int(self.next_by_byte[state, byte])
        return state


def stop_table(strings: Sequence[bytes], pieces: Sequence[bytes]) -> StopTable:
    """The automaton of `strings` over tokens that stand for `pieces`.

    A state is the longest end of the text so far that a stop string begins with (Aho and Corasick,
    1975), or DONE. Raises ValueError for an empty string or for more than MOST_BYTES of them.
    """
    if b"" in strings:
        raise ValueError("stop strings must not be empty")
    if (n_bytes := sum(len(string) for string in strings)) > MOST_BYTES:
        raise ValueError(
            f"stop strings of {n_bytes} bytes in all are too long: {MOST_BYTES} are possible"
        )
    next_by_byte = _byte_table(strings)
    # Byte by byte through all tokens and states at once; the longest tokens first, so that those
    # that still have bytes are a slice.
    lengths = np.array([len(piece) for piece in pieces], np.int64)
    order = np.argsort(-lengths, kind="stable")
    state = np.repeat(np.arange(len(next_by_byte), dtype=np.int16)[:, None], len(pieces), axis=1)
    for n in range(int(lengths.max(initial=0))):
        longer = order[: int((lengths > n).sum())]
        byte = np.array([pieces[i][n] for i in longer], np.int64)
        state[:, longer] = next_by_byte[state[:, longer], byte]
    return StopTable(tuple(strings), state, next_by_byte)


def before_stop(text: bytes, strings: Sequence[bytes]) -> int:
    r"""How many bytes of a response come before its stop string; all, if it has none.

    The stop string is the first one to be complete, and the longest of those. A newline that it
    begins with ends the line before it, so it still counts.
    """
    before = _before(strings)
    shown = before + text
    found = [
        (begin + len(string), begin) for string in strings if (begin := shown.find(string)) >= 0
    ]
    if not found:
        return len(text)
    _, begin = min(found)
    return begin - len(before) + shown.startswith(b"\n", begin)


def _before(strings: Sequence[bytes]) -> bytes:
    # A newline that is a stop string by itself must be the response's own.
    return b"" if b"\n" in strings else b"\n"


def _byte_table(strings: Sequence[bytes]) -> np.ndarray:
    """The state after each byte, `[S, 256]`."""
    ends = tuple(strings)
    begins = {string[:n] for string in strings for n in range(len(string))} | {b""}
    begins = {begin for begin in begins if not any(string in begin for string in strings)}
    states = {begin: _ROOT + i for i, begin in enumerate(sorted(begins, key=lambda b: (len(b), b)))}
    table = np.full((_ROOT + len(states), 256), _ROOT, np.int16)
    table[DONE] = DONE
    for begin, state in states.items():
        for byte in {byte for string in strings for byte in string}:
            text = begin + bytes([byte])
            rest = (text[i:] for i in range(len(text) + 1))
            table[state, byte] = (
                DONE if text.endswith(ends) else states[next(r for r in rest if r in states)]
            )
    return table
