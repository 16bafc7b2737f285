"""Which token ends which line, and what kind of line it is.

A response is scored, rewarded and labelled at line ends, but the policy writes tokens, and one
token may hold a newline and more: the end of a line and the start of the next, or several whole
lines. This module is the only place that knows how the two meet. It works on the exact bytes of
each token, so that it is right for every tokenizer, and on any text, so that a broken program has
lines too.
"""

import dataclasses
import re
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from prm_jax.types import LineKind

# What a program is made of, as far as telling comments from code needs it. Reads from left to right
# and never looks behind a finished line, so the kind of a line depends on no later line. Some
# alternative matches at every byte. A string that is not closed runs to the end of its line, or of
# the text if it is triple-quoted. A quote inside the braces of an f-string ends the string, as it
# did before Python 3.12.
_LEXEME = re.compile(
    rb"""
      (?P<comment> \#[^\r\n]* )
    | (?P<joined> \\(?:\r\n|\r|\n) )
    | (?P<code>
          '''(?:\\.?+|[^\\])*?(?:'''|\Z)
        | \"\"\"(?:\\.?+|[^\\])*?(?:\"\"\"|\Z)
        | '(?:\\\r\n|\\.|[^\\'\r\n])*+'?
        | \"(?:\\\r\n|\\.|[^\\\"\r\n])*+\"?
        | [^\x20\t\f\r\n'\"\#\\] [^\r\n'\"\#\\]*+
        | \\
      )
    | [\x20\t\f\r\n]++
    """,
    re.VERBOSE | re.DOTALL,
)
_BLANKS = b" \t\f\r\n"  # what Python skips; any other control byte breaks the program, so is code


@dataclasses.dataclass(frozen=True, eq=False)
class Lines:
    """The L lines of one response, in order."""

    end_token: Int[np.ndarray, "L"]  # the token that holds the line's last byte, see split_lines
    kind: Int[np.ndarray, "L"]  # LineKind
    text: tuple[bytes, ...]  # the line with its newline; those after a plan joined are the code
    end_byte: Int[np.ndarray, "L"]  # just past the line, in the response's bytes

    @property
    def n_lines(self) -> int:
        return len(self.text)


def split_lines(
    pieces: Sequence[bytes],
    span: tuple[int, int] | None = None,
    plan: tuple[int, int] = (0, 0),
) -> Lines:
    r"""The lines of a response, given the exact bytes of each of its tokens.

    Special tokens are b""; an EOS, if there is one, is the last piece. `span` is the part of the
    joined pieces that is code, `start` to `stop` in bytes (a fenced block in prose, or what stands
    before a stop string); None is all of it. Nothing outside the span has a say in its lines.
    `plan` is the part that is a plan, before the code: if it is not empty it is one line, the first
    one, of kind PLAN. If nothing follows it, it ends in the response's last token.

    A line ends with b"\n", and nothing else ends one: "\r\n" ends one line, "\r" and "\f" alone end
    none. A line ends in the token that holds its newline. Text after the last newline is a line
    too: it ends in the response's last token, which is the EOS unless the response was cut off, or,
    if the response goes on beyond the span, in the token that holds the span's last byte. No text
    has no lines: an EOS as the first token, or no token at all, gives L = 0, and so does nothing
    after the last newline.

    Kinds: BLANK has only blanks, wherever it stands. COMMENT has a comment and no code. CODE is
    the rest: lines inside a multi-line string (a "#" there is text), lines after a backslash, and a
    comment that a lone "\r" ends, since Python reads what follows it as code.

    Raises ValueError if the span does not lie in the text, or the plan not before it.
    """
    whole = b"".join(pieces)
    start, stop = (0, len(whole)) if span is None else span
    if not 0 <= start <= stop <= len(whole):
        raise ValueError(
            f"span = {(start, stop)} is not allowed: it must lie in the response's "
            f"{len(whole)} bytes, start before stop"
        )
    if not 0 <= plan[0] <= plan[1] <= (start if plan[1] else 0):
        raise ValueError(f"plan = {plan} is not allowed: it must end before the code, at {start}")
    text = whole[start:stop]
    stops = [match.end() for match in re.finditer(rb"\n", text)]
    if len(text) > (stops[-1] if stops else 0):
        stops.append(len(text))
    end_byte = start + np.array(stops, dtype=np.int64)
    # The first token whose bytes reach beyond the line's last byte; empty pieces never do.
    piece_stop = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
    end_token = np.searchsorted(piece_stop, end_byte - 1, side="right")
    if stops and stop == len(whole) and not text.endswith(b"\n"):
        end_token[-1] = len(pieces) - 1
    starts = [0, *stops[:-1]]
    lines = tuple(text[a:b] for a, b in zip(starts, stops, strict=False))
    kinds = _kinds(text, stops, lines)
    if plan[0] < plan[1]:
        ends = np.searchsorted(piece_stop, plan[1] - 1, side="right")
        if plan[1] == len(whole):
            ends = len(pieces) - 1
        end_token, end_byte = np.append(ends, end_token), np.append(plan[1], end_byte)
        lines, kinds = (whole[slice(*plan)], *lines), np.append(LineKind.PLAN, kinds)
    return Lines(end_token, kinds, lines, end_byte)


def _kinds(text: bytes, stops: list[int], lines: tuple[bytes, ...]) -> np.ndarray:
    has_code = np.zeros(len(lines), dtype=bool)
    for match in _LEXEME.finditer(text):
        if match.lastgroup in ("code", "joined"):
            first = bisect_right(stops, match.start())
            # A backslash makes code of its own line and of the one that goes on with it.
            end = match.end() if match.lastgroup == "joined" else match.end() - 1
            has_code[first : bisect_right(stops, end) + 1] = True
    kind = np.where(has_code, LineKind.CODE, LineKind.COMMENT)
    blank = np.array([not line.strip(_BLANKS) for line in lines], dtype=bool)
    return np.where(blank, LineKind.BLANK, kind)


def step_ends(lines: Lines) -> tuple[Int[np.ndarray, "M"], Int[np.ndarray, "M"]]:
    """The M steps of a response as `(end_token, kind)`: tokens in which a non-blank line ends.

    Lines that end in one token are one step, since nothing can be scored or sampled between them;
    it is CODE if any of them is, then PLAN. Tokens ascend strictly.
    """
    keep = lines.kind != LineKind.BLANK
    end_token, step = np.unique(lines.end_token[keep], return_inverse=True)
    kind = np.full(len(end_token), LineKind.COMMENT, np.int64)
    for wins in (LineKind.PLAN, LineKind.CODE):
        kind[step[lines.kind[keep] == wins]] = wins
    return end_token, kind


def line_end_mask(lines: Lines, n_tokens: int, *, plan: bool = True) -> Bool[np.ndarray, "T"]:
    """True at the tokens that end a step; n_tokens is the size of the mask, padding included.

    Without `plan` the end of a plan is left out. Raises ValueError if a line ends beyond n_tokens.
    """
    end_token, kind = step_ends(lines)
    if len(end_token) and end_token[-1] >= n_tokens:
        raise ValueError(
            f"n_tokens = {n_tokens} is too small: a line ends in token {end_token[-1]}; "
            "give the size of the grid that holds the whole response"
        )
    mask = np.zeros(n_tokens, dtype=bool)
    mask[end_token if plan else end_token[kind != LineKind.PLAN]] = True
    return mask
