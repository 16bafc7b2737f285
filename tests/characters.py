"""A tokenizer made by hand, for tests of what happens to known tokens."""

import itertools
from collections.abc import Iterable, Sequence

from prm_jax.types import Problem


class Characters:
    """One token a character of ASCII; a newline is one token with the character before it.

    So the token that ends a line tells which line it ends, and a token after one that holds a
    newline may hold another.
    """

    pad_id, eos_id = 0, 1
    eos_ids = (1,)

    def __init__(self):
        singles = [bytes([code]) for code in (10, *range(32, 127))]
        self._table = [b"", b"", *singles, *(single + b"\n" for single in singles)]
        self._ids = {piece: i for i, piece in enumerate(self._table) if piece}
        self.vocab_size = len(self._table)

    def encode(self, text: str) -> list[int]:
        rest, ids = text.encode(), []
        while rest:
            size = 2 if rest[1:2] == b"\n" else 1
            ids.append(self._ids[rest[:size]])
            rest = rest[size:]
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def response(self, text: str) -> tuple[int, ...]:
        """The tokens of a response that ends with EOS."""
        return (*self.encode(text), self.eos_id)

    def prefix_ids(self, ids, n_bytes: int) -> list[int]:
        """The tokens of the first bytes, which must end with a token."""
        stops = list(itertools.accumulate(len(piece) for piece in self.pieces(ids)))
        return list(ids[: stops.index(n_bytes) + 1])

    def pieces(self, ids: Iterable[int]) -> list[bytes]:
        return [self._table[i] for i in ids]

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join(self.pieces(ids)).decode()


class Completions:
    """Prompts and responses of completion style in `Characters`, without stop strings."""

    stops = ()

    def ids(self, problem: Problem) -> list[int]:
        return Characters().encode(problem.prompt)

    def solution(self, problem: Problem) -> str:
        return problem.solution

    def keeps_solution(self, problem: Problem) -> bool:
        return True

    def code_span(self, response: bytes) -> tuple[int, int]:
        return 0, len(response)

    def plan_span(self, response: bytes) -> tuple[int, int]:
        return 0, 0

    def program(self, problem: Problem, response: bytes) -> str:
        return problem.program(response.decode())
