"""Lines against a byte-by-byte owner table and Python's own tokenizer."""

import io
import token
import tokenize

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_jax.rl.lines import line_end_mask, split_lines, step_ends
from prm_jax.types import LineKind

BLANK, CODE, COMMENT = LineKind.BLANK, LineKind.CODE, LineKind.COMMENT
fixed = settings(derandomize=True, deadline=None, max_examples=150)

# What breaks line splitters: every kind of quote, escape, line break and blank, bytes of an emoji.
FRAGMENTS = [
    b"\n", b"\r\n", b"\r", b"\f", b"\t", b" ", b"\\", b"#", b"'", b'"', b"'''", b'"""', b"x", b"=",
    b"(", b"\x00", b"\x0b", b"\xf0\x9f", b"\x90\x8d", b"r'", b"\\\n", b"\\\r\n", b"# c\n", b"x\n",
]  # fmt: skip
texts = st.lists(st.sampled_from(FRAGMENTS), max_size=30).map(b"".join)
broken_pieces = st.lists(
    st.lists(st.sampled_from(FRAGMENTS), max_size=4).map(b"".join), max_size=12
)


def kinds(text: bytes) -> list[int]:
    return split_lines([text]).kind.tolist()


# ------------------------------------------------------------------------------------ end tokens


def test_one_token_per_line_and_an_eos():
    lines = split_lines([b"a = 1\n", b"return a", b""])
    assert lines.text == (b"a = 1\n", b"return a")
    assert lines.end_token.tolist() == [0, 2]  # the last line has no newline: it ends in the EOS
    assert line_end_mask(lines, 5).tolist() == [True, False, True, False, False]


def test_last_line_of_a_truncated_response_ends_in_its_last_token():
    lines = split_lines([b"a = 1\n", b"retu", b"rn"])
    assert lines.end_token.tolist() == [0, 2]
    assert lines.n_lines == 2


def test_eos_after_a_newline_ends_no_line():
    lines = split_lines([b"a = 1", b"\n", b""])
    assert lines.end_token.tolist() == [1]


@pytest.mark.parametrize("pieces", [[], [b""], [b"", b""]])
def test_no_text_has_no_lines(pieces):
    lines = split_lines(pieces)
    assert lines.n_lines == 0
    end_token, kind = step_ends(lines)
    assert len(end_token) == len(kind) == 0
    assert not line_end_mask(lines, 3).any()


def test_a_token_that_ends_two_lines_and_starts_a_third():
    # token 0: "a", token 1: "=1\nb=2\nc", token 2: "=3\n": lines 1 and 2 end in token 1.
    lines = split_lines([b"a", b"=1\nb=2\nc", b"=3\n"])
    assert lines.text == (b"a=1\n", b"b=2\n", b"c=3\n")
    assert lines.end_token.tolist() == [1, 1, 2]
    assert step_ends(lines)[0].tolist() == [1, 2]


def test_a_straddler_that_is_the_truncated_end():
    lines = split_lines([b"a=1", b"\nb"])
    assert lines.end_token.tolist() == [1, 1]
    assert line_end_mask(lines, 2).tolist() == [False, True]


def test_empty_pieces_never_end_a_line_with_a_newline():
    lines = split_lines([b"", b"a\n", b"", b"", b"b\n", b""])
    assert lines.end_token.tolist() == [1, 4]


def test_only_a_newline_byte_ends_a_line():
    lines = split_lines([b"a\r\n", b"b\rc\f", b"\xe2\x80\xa8d\n", b"\x0b\x1c\n"])
    assert lines.text == (b"a\r\n", b"b\rc\f\xe2\x80\xa8d\n", b"\x0b\x1c\n")
    assert lines.end_token.tolist() == [0, 2, 3]


def test_crlf_split_over_two_tokens():
    assert split_lines([b"a\r", b"\nb\r", b"\n"]).end_token.tolist() == [1, 2]


def test_emoji_split_over_tokens():
    snake = "🐍".encode()
    lines = split_lines([b"s = '", snake[:1], snake[1:3], snake[3:] + b"'\n", b"x", b""])
    assert lines.text[0].decode() == "s = '🐍'\n"
    assert lines.end_token.tolist() == [3, 5]


@fixed
@given(broken_pieces, st.booleans())
def test_end_tokens_match_the_owner_of_every_last_byte(pieces, eos):
    pieces = [*pieces, b""] if eos else pieces
    owner = [token for token, piece in enumerate(pieces) for _ in piece]
    text = b"".join(pieces)
    expected = [owner[i] for i in range(len(text)) if text[i : i + 1] == b"\n"]
    if text and not text.endswith(b"\n"):
        expected.append(len(pieces) - 1)
    lines = split_lines(pieces)
    assert lines.end_token.tolist() == expected
    assert b"".join(lines.text) == text
    assert len(lines.kind) == lines.n_lines == len(expected)


# ----------------------------------------------------------------------------------------- spans


def test_a_fenced_block_in_prose():
    pieces = [b"Sure:\n", b"```python", b"\n", b"x = 1", b"\n# c\n", b"```", b"\nDone.", b""]
    lines = split_lines(pieces, (16, 26))
    assert lines.text == (b"x = 1\n", b"# c\n")
    assert lines.end_token.tolist() == [4, 4]
    assert lines.end_byte.tolist() == [22, 26]
    assert lines.kind.tolist() == [CODE, COMMENT]


def test_a_last_line_without_a_newline_ends_in_the_spans_last_byte_or_with_the_response():
    pieces = [b"x", b" = 1", b"", b"STOP", b""]
    assert split_lines(pieces, (0, 5)).end_token.tolist() == [1]
    assert split_lines(pieces, (0, 9)).end_token.tolist() == [4]
    assert split_lines(pieces, (1, 9)).end_token.tolist() == [4]
    assert split_lines([b"x = 1\n```"], (0, 6)).end_token.tolist() == [0]


def test_an_open_quote_before_the_span_says_nothing_about_it():
    assert split_lines([b"don't '''\n# c\n'''"], (10, 14)).kind.tolist() == [COMMENT]


@pytest.mark.parametrize("at", [0, 3, 5])
def test_an_empty_span_has_no_lines(at):
    lines = split_lines([b"ab\n", b"cd"], (at, at))
    assert lines.n_lines == len(lines.end_byte) == 0


@pytest.mark.parametrize("span", [(-1, 1), (2, 1), (0, 4)])
def test_a_span_outside_the_text_is_refused(span):
    with pytest.raises(ValueError, match="must lie in the response's 3 bytes"):
        split_lines([b"ab", b"c"], span)


@fixed
@given(broken_pieces, st.data())
def test_the_lines_of_a_span_are_those_of_its_text_alone(pieces, data):
    owner = [token for token, piece in enumerate(pieces) for _ in piece]
    whole = b"".join(pieces)
    stop = data.draw(st.integers(0, len(whole)))
    start = data.draw(st.integers(0, stop))
    lines, alone = split_lines(pieces, (start, stop)), split_lines([whole[start:stop]])
    assert lines.text == alone.text and lines.kind.tolist() == alone.kind.tolist()
    assert (lines.end_byte - start).tolist() == alone.end_byte.tolist()
    assert alone.end_byte.tolist() == np.cumsum([len(line) for line in alone.text]).tolist()
    for text, end_byte, end_token in zip(lines.text, lines.end_byte, lines.end_token, strict=True):
        if text.endswith(b"\n") or stop < len(whole):
            assert end_token == owner[end_byte - 1]
        else:
            assert end_token == len(pieces) - 1
    if (start, stop) == (0, len(whole)):
        assert lines.end_token.tolist() == split_lines(pieces).end_token.tolist()


# ----------------------------------------------------------------------------------------- kinds


@pytest.mark.parametrize(
    "text, expected",
    [
        (b"# c\n", [COMMENT]),
        (b"x = 1  # c\n", [CODE]),
        (b"  \t# c", [COMMENT]),
        (b"\f# c\n\f\n \t\r\n", [COMMENT, BLANK, BLANK]),
        (b"# c\r\nx\r\n", [COMMENT, CODE]),
        (b"\x0b\n\xc2\xa0\n\x00\n", [CODE, CODE, CODE]),  # Python takes none of these for a blank
        (b"s = '''\n# text\n\n'''  # c\n# c\n", [CODE, CODE, BLANK, CODE, COMMENT]),
        (b's = """a\n\'\'\'\n# text\n"""\n# c\n', [CODE, CODE, CODE, CODE, COMMENT]),
        (b"s = '''\\'''\n# text\n'''\n# c\n", [CODE, CODE, CODE, COMMENT]),
        (b"s = '#'\n# c\n", [CODE, COMMENT]),
        (b"s = 'it\\'s # text'\n# c\n", [CODE, COMMENT]),
        (b"s = ''\n# c\n", [CODE, COMMENT]),
        (b"s = 'ab\\\n# text'\n# c\n", [CODE, CODE, COMMENT]),
        (b"s = 'ab\\\r\n# text'\n# c\n", [CODE, CODE, COMMENT]),
        (b"x = 1 + \\\n# c\n# c\n", [CODE, CODE, COMMENT]),
        (b"x = 1 + \\\r\n# c\n# c\n", [CODE, CODE, COMMENT]),
        (b"x = 1 + \\\n\n# c\n", [CODE, BLANK, COMMENT]),
        (b"# c \\\n# c\n", [COMMENT, COMMENT]),  # a comment cannot be continued
        (b"f(\n# c\n1)\n", [CODE, COMMENT, CODE]),
        (b"don't\n# c\n", [CODE, COMMENT]),  # an open quote ends with its line
        (b"'''\n# c\n", [CODE, CODE]),  # an open triple quote does not
        (b"'''\\", [CODE]),
        (b"# c\rx = 1\n", [CODE]),  # Python ends a comment at a lone \r: what follows runs
        (b"# c\r# d\n", [COMMENT]),
        (b"# '''\nx\n", [COMMENT, CODE]),
        (b"\\\n# c\n", [CODE, CODE]),
    ],
)
def test_kinds(text, expected):
    assert kinds(text) == expected


STATEMENTS = [
    "x = 1\n", "# note\n", "\n", "   \n", "    # indented note\n", "x = 2  # why\n",
    "s = '''\n# text\n\n'''\n", 's = """#\n\'\'\'\n"""  # why\n', "s = '# text'\n", "s = \"'#\"\n",
    "y = (1 +\n# inside\n  2)\n", "z = 1 + \\\n  2\n", "t = 'a\\\n# text'\n", "r = r'\\'  # raw'\n",
    "u = b'\\\\'  # bytes\n", "if x:\n    # body\n    pass\n",
]  # fmt: skip


@fixed
@given(st.lists(st.sampled_from(STATEMENTS), max_size=8).map("".join))
def test_kinds_of_programs_match_pythons_tokenizer(program):
    comment, code = set(), set()
    for item in tokenize.generate_tokens(io.StringIO(program).readline):
        rows = range(item.start[0], item.end[0] + 1)
        if item.type == token.COMMENT:
            comment.update(rows)
        elif item.type not in (
            token.NL, token.NEWLINE, token.INDENT, token.DEDENT, token.ENDMARKER,
        ):  # fmt: skip
            code.update(rows)
    expected = [
        BLANK if not line.strip() else COMMENT if row in comment - code else CODE
        for row, line in enumerate(program.splitlines(), start=1)
    ]
    assert kinds(program.encode()) == expected


@fixed
@given(texts)
def test_the_kind_of_a_line_depends_on_no_later_line(text):
    lines = split_lines([text])
    for n in range(lines.n_lines):
        assert kinds(b"".join(lines.text[: n + 1])) == lines.kind[: n + 1].tolist()


@fixed
@given(broken_pieces)
def test_kinds_do_not_depend_on_the_tokens(pieces):
    assert split_lines(pieces).kind.tolist() == kinds(b"".join(pieces))


# ----------------------------------------------------------------------------------------- steps


def test_blank_lines_are_no_steps():
    end_token, kind = step_ends(split_lines([b"a\n", b"\n", b"  \n", b"# c\n", b""]))
    assert end_token.tolist() == [0, 3]
    assert kind.tolist() == [CODE, COMMENT]


@pytest.mark.parametrize(
    "piece, kind",
    [
        (b"# c\nx\n", CODE),
        (b"x\n# c\n", CODE),
        (b"# c\n# d\n", COMMENT),
        (b"\n# c\n\n", COMMENT),
        (b"\n\nx\n", CODE),
    ],
)
def test_lines_that_end_in_one_token_are_one_step(piece, kind):
    end_token, kinds_ = step_ends(split_lines([b"y\n", piece]))
    assert end_token.tolist() == [0, 1]
    assert kinds_.tolist() == [CODE, kind]


@fixed
@given(broken_pieces, st.integers(0, 3))
def test_the_mask_marks_each_step_once(pieces, padding):
    lines = split_lines(pieces)
    end_token, kind = step_ends(lines)
    mask = line_end_mask(lines, len(pieces) + padding)
    assert np.flatnonzero(mask).tolist() == end_token.tolist()
    assert set(end_token.tolist()) == {
        t for t, k in zip(lines.end_token.tolist(), lines.kind, strict=True) if k != BLANK
    }
    assert BLANK not in kind


def test_a_mask_too_short_for_its_lines_is_refused():
    with pytest.raises(ValueError, match="n_tokens = 1 is too small: a line ends in token 1"):
        line_end_mask(split_lines([b"a", b"\n"]), 1)


# ------------------------------------------------------------------------------------- the plan


def test_a_plan_is_the_first_line_and_one_step_whatever_its_lines():
    pieces = [b"<plan>\n", b"sort\n# then\n", b"</plan>\n", b"x = 1\n", b"return x", b""]
    text = b"".join(pieces)
    start = text.index(b"x")
    lines = split_lines(pieces, (start, len(text)), (0, start))
    assert lines.text == (text[:start], b"x = 1\n", b"return x")
    assert lines.kind.tolist() == [LineKind.PLAN, CODE, CODE]
    assert lines.end_token.tolist() == [2, 3, 5] and lines.end_byte[0] == start
    ends, kind = step_ends(lines)
    assert ends.tolist() == [2, 3, 5] and kind.tolist() == [LineKind.PLAN, CODE, CODE]
    assert line_end_mask(lines, 6).tolist() == [False, False, True, True, False, True]
    assert line_end_mask(lines, 6, plan=False).tolist() == [False, False, False, True, False, True]
    without = split_lines(pieces, (start, len(text)))
    for name in ("end_token", "kind", "end_byte"):
        assert getattr(without, name).tolist() == getattr(lines, name)[1:].tolist()


@pytest.mark.parametrize("last", [b"sort", b"sort\n", b"</plan>\n"])
def test_a_plan_that_nothing_follows_ends_in_the_last_token(last):
    n = 7 + len(last)
    lines = split_lines([b"<plan>\n", last, b""], (n, n), (0, n))
    assert lines.end_token.tolist() == [2] and lines.kind.tolist() == [LineKind.PLAN]


def test_a_plan_that_ends_with_the_first_line_in_one_token_is_a_step_of_code():
    lines = split_lines([b"<plan>\n</plan>\nx\n", b"y\n"], (15, 19), (0, 15))
    assert lines.end_token.tolist() == [0, 0, 1]
    assert step_ends(lines)[1].tolist() == [CODE, CODE]


@pytest.mark.parametrize("plan", [(0, 4), (2, 1), (-1, 2)])
def test_a_plan_must_stand_before_the_code(plan):
    with pytest.raises(ValueError, match="before the code, at 3"):
        split_lines([b"abcdef"], (3, 6), plan)
