"""Lines of code in the tokens of Qwen, of Llama 3, of the split of GPT-2 and of our own tokenizer.

The reference decodes token by token with another implementation, walks the bytes in plain Python,
and asks Python's own tokenizer which lines hold code.
"""

import io
import json
import token
import tokenize
import unicodedata
from pathlib import Path

import open_vocabularies
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from prm_jax.config import PromptsConfig
from prm_jax.prompts import Prompts
from prm_jax.rl.lines import line_end_mask, split_lines, step_ends
from prm_jax.rl.stops import DONE
from prm_jax.tokenizer import Tokenizer
from prm_jax.types import LineKind

fixed = settings(derandomize=True, deadline=None, max_examples=60)
BLANK, CODE, COMMENT = LineKind.BLANK, LineKind.CODE, LineKind.COMMENT
KINDS = {".": BLANK, "c": CODE, "#": COMMENT}
OPEN = ["qwen3", "llama3"]  # with another implementation
NAMES = [*OPEN, "gpt2", "own"]

# Programs and the kinds of their lines: blank, code, comment.
PROGRAMS = {
    "crlf": ("def f(x):\r\n    # add\r\n\r\n    return x + 1\r\n", "c#.c"),
    "crlf and lf": ("a = 1\r\nb = 2\n\r\n# c\r\n\nc = 3", "cc.#.c"),
    "carriage returns": ("a = 1\r# no comment line\rb = 2\n", "c"),
    "tabs": ("def f():\n\tif x:\n\t\t# deep\n\t\treturn\t1\t\n\t\n", "cc#c."),
    "form feeds": ("\f\nx = 1\n\f# page\n\fy = 2\n", ".c#c"),
    "blank lines": ("\n\n\nx = 1\n\n\n\n  \n\ny = 2\n\n\n", "...c.....c.."),
    "long blanks": ("x = 1\n" + " " * 300 + "\n" + "\n" * 20 + "y\n", "c" + "." * 21 + "c"),
    "strings": ('s = """a\n# text\n\n  \'\'\'\n"""  # why\n# c\n', "cc.cc#"),
    "raw strings": ("r = r'\\'  # raw'\nb'#'\nf'{x!r:>{n}}#'\n", "ccc"),
    "continuations": ("x = 1 + \\\n    2 \\\n\n# c\nassert x, \\\n  '# text'\n", "cc.#cc"),
    "strings continued": ("t = 'a\\\n# text'\n# c\n", "cc#"),
    "brackets": ("x = [\n    # one\n    1,  # 1\n\n    2]\n# end\n", "c#c.c#"),
    "comments": ("#!/bin/python\n# -*- x -*-\nx = 1  # after\n#\n    #\n#: '''\n", "##c###"),
    "no final newline": ("x = 1\ny = 2", "cc"),
    "a final comment": ("x = 1\n  # c", "c#"),
    "blanks at the end": ("x = 1\n    ", "c."),
    "emoji": ("s = '\U0001f40d\U0001f468\u200d\U0001f469'\n# \U0001f600\n\u00e9 = s\n", "c#c"),
    "wide blanks": ("s = '\u3000\u2028\u2029\x85'\n# \u00a0\n\u4f60\u597d = 1\n", "c#c"),
    "punctuation and newlines": ("f(\n)\n\n\n{}[0];\n)):\n\n", "cc..cc."),
    "digits": ("x = 1234567\n8901\n\n2\n", "cc.c"),
    "nothing": ("", ""),
    "open quotes": ("don't\n# c\n'''\n# text\n", "c#cc"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tokenizers")


@pytest.fixture(scope="module")
def all_of_them(folder) -> dict[str, Tokenizer]:
    found = {name: open_vocabularies.load(name, folder) for name in OPEN}
    programs = [program for program, _ in PROGRAMS.values()]
    found["gpt2"] = gpt2(3 * programs, folder / "gpt2.json")
    found["own"] = Tokenizer.train(programs, 400, folder / "own.json")
    for tokenizer in found.values():
        tokenizer.chat_template = "{{ messages[0].content }}"
    return found


def gpt2(programs: list[str], path: Path) -> Tokenizer:
    """With the split of GPT-2 and SmolLM2, a newline goes with the next line's indentation."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet,
        show_progress=False,
    )  # fmt: skip
    inner.train_from_iterator(programs, trainer)
    inner.save(str(path))
    return Tokenizer.load(path)


@pytest.fixture(scope="module")
def closing_fences(all_of_them):
    return {name: tokenizer.stop_table(["\n```"]) for name, tokenizer in all_of_them.items()}


@pytest.fixture(scope="module")
def spelled(all_of_them, folder) -> dict[str, dict[int, str]]:
    """The tokens of the tokenizers trained here as their files spell them."""
    found = {}
    for name in set(NAMES) - set(OPEN):
        model = json.loads((folder / f"{name}.json").read_text())["model"]
        found[name] = {i: text for text, i in model["vocab"].items()}
    return found


@pytest.fixture(scope="module")
def decoded(spelled):
    """The bytes of tokens, one by one: of the open vocabularies by the other implementation."""
    alphabet = open_vocabularies.alphabet()

    def decode(name: str, ids: list[int]) -> list[bytes]:
        if name not in OPEN:
            return [bytes(alphabet.index(c) for c in spelled[name][i]) for i in ids]
        return [open_vocabularies.reference(name).decode_single_token_bytes(i) for i in ids]

    return decode


def walked(pieces: list[bytes]) -> tuple[list[bytes], list[int], list[int]]:
    """Lines, the tokens that end them and where they end, one byte after the other."""
    lines, ends, stops, line, at = [], [], [], b"", 0
    for number, piece in enumerate(pieces):
        for byte in piece:
            line += bytes([byte])
            at += 1
            if byte == 10:
                lines, ends, stops, line = [*lines, line], [*ends, number], [*stops, at], b""
    if line:
        lines, ends, stops = [*lines, line], [*ends, len(pieces) - 1], [*stops, at]
    return lines, ends, stops


def text_for(name: str, text: str) -> str:
    """The text as a tokenizer reads it: Qwen's composes characters."""
    return unicodedata.normalize("NFC", text) if name == "qwen3" else text


def check(decoded, name: str, tokenizer: Tokenizer, text: str, eos: bool) -> list[int]:
    """Compares everything about lines with the reference; returns their kinds."""
    ids = tokenizer.encode(text)
    pieces = decoded(name, ids)
    assert b"".join(pieces) == text_for(name, text).encode()
    if name in OPEN:
        assert ids == list(open_vocabularies.reference(name).encode_ordinary(text))
    if eos:
        ids, pieces = [*ids, tokenizer.eos_id], [*pieces, b""]
    assert tokenizer.pieces(ids) == pieces
    lines = split_lines(tokenizer.pieces(ids))
    texts, ends, stops = walked(pieces)
    assert list(lines.text) == texts
    assert lines.end_token.tolist() == ends
    assert lines.end_byte.tolist() == stops
    for stop in stops:
        prefix = tokenizer.prefix_ids(ids, stop)
        assert b"".join(tokenizer.pieces(prefix)) == b"".join(pieces)[:stop]
    wanted = {
        end for end, kind in zip(ends, lines.kind.tolist(), strict=True) if kind != LineKind.BLANK
    }
    mask = line_end_mask(lines, len(ids))
    assert {n for n, here in enumerate(mask) if here} == wanted == set(step_ends(lines)[0].tolist())
    return lines.kind.tolist()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("eos", [False, True], ids=["cut", "eos"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_lines_of_adversarial_code(all_of_them, decoded, name, eos, program):
    text, kinds = PROGRAMS[program]
    found = check(decoded, name, all_of_them[name], text, eos)
    assert found == [KINDS[kind] for kind in kinds]


def test_tokens_straddle_lines(all_of_them):
    """What makes the cases above hard: tokens of several lines, or of the end of one and more."""
    for name in NAMES[:3]:
        pieces = [
            piece
            for program, _ in PROGRAMS.values()
            for piece in all_of_them[name].pieces(all_of_them[name].encode(program))
        ]
        assert any(piece.count(b"\n") > 1 for piece in pieces)
        if name == "gpt2":
            assert any(piece.startswith(b"\n") and piece.endswith(b" ") for piece in pieces)
        else:
            assert any(b"\n" in piece and piece.strip() for piece in pieces)
        assert any(not piece.isascii() and len(piece) < 4 for piece in pieces)


STATEMENTS = [
    "x = 1\n", "# note\n", "\n", "   \n", "    # indented note\n", "x = 2  # why\n", "\t# tab\n",
    "s = '''\n# text\n\n'''\n", 's = """#\n\'\'\'\n"""  # why\n', "s = '# text'\n", "s = \"'#\"\n",
    "y = (1 +\n# inside\n  2)\n", "z = 1 + \\\n  2\n", "t = 'a\\\n# text'\n", "r = r'\\'  # raw'\n",
    "if x:\n    # body\n    pass\n", "e = '\U0001f600'  # \U0001f600\n", "f(\n)\n", "\f# page\n",
    "x = {\n\n'a': [1,\n# c\n2]}\n", "def f():\n\n\n    return 1\n\n\n",
]  # fmt: skip


def kinds_by_python(program: str) -> list[LineKind]:
    comment, code = set(), set()
    for item in tokenize.generate_tokens(io.StringIO(program).readline):
        rows = range(item.start[0], item.end[0] + 1)
        if item.type == token.COMMENT:
            comment.update(rows)
        elif item.type not in (
            token.NL, token.NEWLINE, token.INDENT, token.DEDENT, token.ENDMARKER,
        ):  # fmt: skip
            code.update(rows)
    return [
        BLANK if not line.strip() else COMMENT if row in comment - code else CODE
        for row, line in enumerate(program.removesuffix("\n").split("\n"), start=1)
        if program
    ]


@fixed
@given(
    st.sampled_from(NAMES), st.lists(st.sampled_from(STATEMENTS), max_size=8).map("".join),
    st.booleans(), st.booleans(),
)  # fmt: skip
def test_lines_of_programs_are_what_python_reads(all_of_them, decoded, name, program, crlf, eos):
    expected = kinds_by_python(program)
    text = program.replace("\n", "\r\n") if crlf else program
    kinds = check(decoded, name, all_of_them[name], text, eos)
    assert kinds == expected


FRAGMENTS = [
    "\n", "\r\n", "\n\n", "\r", "\f", "\t", "    ", "\\", "#", "'", '"""', "x", " = 12345", "):",
    "\U0001f40d", "\u200d", "e\u0301", "\u4f60", "\x00", "`", "```", "\n```", "()\n\n\n", "'''",
]  # fmt: skip
texts = st.lists(st.sampled_from(FRAGMENTS), max_size=16).map("".join)


@fixed
@given(st.sampled_from(NAMES), texts, st.booleans())
def test_lines_of_any_text(all_of_them, decoded, name, text, eos):
    check(decoded, name, all_of_them[name], text, eos)


@fixed
@given(st.sampled_from(NAMES), st.lists(st.sampled_from(FRAGMENTS), max_size=16))
def test_a_closing_fence_is_found_in_whatever_tokens_it_is_written(
    all_of_them, closing_fences, name, parts
):
    """Parts encoded apart are the tokens that a policy may well choose."""
    tokenizer = all_of_them[name]
    table = closing_fences[name]
    state, said = table.start(), b"\n"
    for part in parts:
        for i in tokenizer.encode(part):
            state = int(table.next_state[state, i])
            said += tokenizer.pieces([i])[0]
            assert (state == DONE) == (b"\n```" in said)


@fixed
@given(st.sampled_from(NAMES), texts)
def test_the_code_of_an_opened_fence_ends_with_its_last_line(all_of_them, name, text):
    tokenizer = all_of_them[name]
    ids = [*tokenizer.encode(text.replace("`", "") + "\n```"), tokenizer.eos_id]
    pieces = tokenizer.pieces(ids)
    prompts = Prompts(PromptsConfig(style="chat_fence"), tokenizer)
    lines = split_lines(pieces, prompts.code_span(b"".join(pieces)))
    code = text_for(name, text.replace("`", "") + "\n").encode()
    assert b"".join(lines.text) == code
    texts_, ends, _ = walked(pieces)
    assert lines.end_token.tolist() == ends[: lines.n_lines]
    assert list(lines.text) == texts_[: lines.n_lines]
