"""The tokenizer is exact to the byte, whatever its tokens look like."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from prm_jax.config import ChainsConfig, Config
from prm_jax.problems.chains import generator
from prm_jax.tokenizer import Tokenizer, TokenizerError

settings.register_profile("tokenizer", max_examples=60, deadline=None, derandomize=True)
settings.load_profile("tokenizer")

NASTY = [
    "a\r\nb\r\n",
    "\tif x:\n\t\treturn\x0c\n",
    "s = '\U0001f468\u200d\U0001f469\u200d\U0001f467 \u00e9 e\u0301'\n  # \u4f60\u597d\n",
    "\n\n\n",
    "",
    " ",
    "    x",
    "x = 1\n\n  y = 2\n\n\nz",
    "\x00\x1f\x7f",
    "no newline at the end",
    "\u2028 \u2581 \u0120",
]
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def save(inner: tokenizers.Tokenizer, path) -> str:
    inner.save(str(path))
    return str(path)


def sft_texts(pairs: int = 400) -> list[str]:
    config = ChainsConfig(sft_pairs=pairs)
    return [p.chain.prompt() + p.completion for p in generator.make_sft_pairs(config, [])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizers")


@pytest.fixture(scope="module")
def trained(folder) -> Tokenizer:
    return Tokenizer.train(sft_texts(4000), 704, folder / "trained.json")


def byte_level(folder, merges: list[tuple[str, str]], name: str) -> Tokenizer:
    """A byte-level BPE whose merges cross newlines; \u010a and \u0120 are newline and space."""
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for left, right in merges:
        vocab.setdefault(left + right, len(vocab))
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<|endoftext|>", "<|im_end|>"])
    inner.add_tokens([AddedToken("<think>", normalized=False, special=False)])
    return Tokenizer.load(save(inner, folder / f"{name}.json"))


@pytest.fixture(scope="module")
def straddling(folder) -> Tokenizer:
    """Tokens that hold newlines and more, also with halves of characters."""
    merges = [
        ("\u010a", "\u00f0"),  # a newline and the first byte of an emoji
        ("\u0123", "\u010a"),  # the last byte of U+0441, 81, and a newline
        ("\u0120", "\u0120"), ("\u010a", "\u0120\u0120"), ("\u010a\u0120\u0120", "x"),
        ("\u010a", "\u010a"), (")", "\u010a\u010a"), ("\u010a\u010a", "\u010a\u010a"),
    ]  # fmt: skip
    return byte_level(folder, merges, "straddling")


def sentencepiece(folder, style: str, name: str) -> Tokenizer:
    """A BPE with byte fallback, as Llama 2 ("normalizer") or as newer files write it."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    words += ["\u2581", *"abcdefnrtuxyz=[]():+", "\u2581\u2581", "\u2581\u2581\u2581\u2581"]
    words += ["re", "tu", "rn", "retu", "return", "\u2581x"]
    merges = [("\u2581", "\u2581"), ("\u2581\u2581", "\u2581\u2581"), ("r", "e"), ("t", "u"),
              ("r", "n"), ("re", "tu"), ("retu", "rn"), ("\u2581", "x")]  # fmt: skip
    vocab = {w: i for i, w in enumerate(words)}
    inner = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    if style == "normalizer":
        inner.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        )
        inner.decoder = decoders.Sequence(
            [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
             decoders.Strip(" ", 1, 0)]
        )  # fmt: skip
    else:
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=style, split=False)
        inner.decoder = decoders.Sequence(
            [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=style, split=False)]
        )
    inner.add_special_tokens(["<unk>", "<s>", "</s>"])
    return Tokenizer.load(save(inner, folder / f"{name}.json"))


@pytest.fixture(scope="module", params=["normalizer", "always", "first", "never"])
def metaspace(request, folder) -> Tokenizer:
    return sentencepiece(folder, request.param, f"metaspace-{request.param}")


@pytest.fixture(scope="module")
def every_tokenizer(folder, trained, straddling) -> list[Tokenizer]:
    return [trained, straddling, sentencepiece(folder, "always", "one-metaspace")]


# ------------------------------------------------------------------------------------ exact bytes


def check_exact(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert b"".join(tokenizer.pieces(ids)) == text.encode()
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("text", NASTY)
def test_pieces_join_to_the_text(trained, straddling, text):
    check_exact(trained, text)
    check_exact(straddling, text)


# U+2581 itself is a space to these tokenizers: what a text says with it cannot be told apart.
@pytest.mark.parametrize("text", [t for t in NASTY if "\u2581" not in t])
def test_pieces_of_metaspace_tokenizers_join_to_the_text(metaspace, text):
    check_exact(metaspace, text)


@given(texts)
@example("  \n  x\n\U0001f600")
def test_pieces_join_to_any_text(every_tokenizer, text):
    for tokenizer in every_tokenizer[:2]:
        check_exact(tokenizer, text)
    check_exact(every_tokenizer[2], text.replace("\u2581", " "))


@given(texts, texts)
def test_pieces_of_two_texts_concatenate(every_tokenizer, left, right):
    """A prefix and its completion, encoded apart, are the bytes of the whole."""
    for tokenizer in every_tokenizer:
        ids = tokenizer.encode(left) + tokenizer.encode(right)
        want = (left + right).replace("\u2581", " ") if tokenizer is every_tokenizer[2] else None
        assert tokenizer.decode(ids) == (want or left + right)


def test_an_indent_survives_a_tokenizer_that_would_put_a_space_before(metaspace):
    for text in ("    return x", " return x", "return x"):
        assert metaspace.decode(metaspace.encode(text)) == text


def test_the_library_itself_loses_that_indent(folder):
    """Why the space is switched off: the same file, used as it is, gives back fewer spaces."""
    sentencepiece(folder, "always", "as-it-is")
    inner = tokenizers.Tokenizer.from_file(str(folder / "as-it-is.json"))
    assert inner.decode(inner.encode("    return x").ids) in ("   return x", "return x")


def test_tokens_of_half_a_character_have_their_bytes(straddling):
    ids = straddling.encode("\U0001f600")
    assert straddling.pieces(ids) == [b"\xf0", b"\x9f", b"\x98", b"\x80"]
    assert straddling.decode(ids[:2]) == "\ufffd"
    assert straddling.decode(ids[2:] + straddling.encode("x")) == "\ufffd\ufffdx"


def test_special_tokens_have_no_bytes_and_other_added_tokens_do(straddling):
    ids = straddling.encode("a<think>\n<|im_end|>b<|endoftext|>")
    assert straddling.pieces(ids) == [b"a", b"<think>", b"\n", b"", b"b", b""]
    assert straddling.decode(ids) == "a<think>\nb"


def test_decoding_agrees_with_the_library(trained, folder):
    inner = tokenizers.Tokenizer.from_file(str(folder / "trained.json"))
    rng = np.random.default_rng(0)
    for text in sft_texts(20):
        assert trained.decode(trained.encode(text)) == inner.decode(inner.encode(text).ids)
    for _ in range(50):  # sequences that no text would give, with special tokens among them
        ids = rng.integers(0, trained.vocab_size, 20).tolist()
        assert trained.decode(ids) == inner.decode(ids, skip_special_tokens=True)


def test_an_id_outside_the_vocabulary_is_refused(trained):
    for i in (trained.vocab_size, -1):
        with pytest.raises(IndexError, match=f"{i} is outside"):
            trained.pieces([i])


# ------------------------------------------------------------------------------------- prefixes


def split_lines(text: bytes) -> list[bytes]:
    lines, start = [], 0
    for i in range(len(text)):
        if text[i : i + 1] == b"\n":
            lines.append(text[start : i + 1])
            start = i + 1
    return lines + ([text[start:]] if start < len(text) else [])


def cut(tokenizer: Tokenizer, ids: list[int], lines: int) -> list[int]:
    """The tokens of the first lines."""
    text = b"".join(tokenizer.pieces(ids))
    return tokenizer.prefix_ids(ids, len(b"".join(split_lines(text)[:lines])))


def check_prefixes(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    piece_stop = np.cumsum([len(piece) for piece in tokenizer.pieces(ids)], dtype=int)
    n_bytes = len(text.encode())
    for n in range(n_bytes + 1):
        prefix = tokenizer.prefix_ids(ids, n)
        assert b"".join(tokenizer.pieces(prefix)) == text.encode()[:n]
        # Only what is cut is encoded anew: the policy wrote the tokens before it.
        whole = int((piece_stop <= n).sum())
        assert prefix[:whole] == ids[:whole]
    with pytest.raises(ValueError, match=f"has only {n_bytes} bytes"):
        tokenizer.prefix_ids(ids, n_bytes + 1)


@pytest.mark.parametrize("text", [t for t in NASTY if "\u2581" not in t])
def test_prefixes_have_exactly_their_bytes(trained, straddling, metaspace, text):
    for tokenizer in (trained, straddling, metaspace):
        check_prefixes(tokenizer, text)


@given(
    st.lists(st.sampled_from(["\n", "  x", ")", "\n\n", " ", "\U0001f600", "\u0441", "y", "\r"]))
)
def test_prefixes_of_texts_made_of_straddling_tokens(straddling, parts):
    check_prefixes(straddling, "".join(parts))


def test_a_straddling_token_is_cut_after_its_newline(straddling):
    ids = straddling.encode("f()\n\n\n  x")
    assert straddling.pieces(ids) == [b"f", b"(", b")\n\n", b"\n  x"]
    assert straddling.pieces(cut(straddling, ids, 1)) == [b"f", b"(", b")", b"\n"]
    assert cut(straddling, ids, 2) == ids[:3]
    assert straddling.pieces(cut(straddling, ids, 3)) == [b"f", b"(", b")\n\n", b"\n"]
    assert cut(straddling, ids, 4) == ids


def test_a_cut_through_half_a_character_keeps_its_bytes(straddling):
    # "\u0441\n" ends in the token <81 0A>; "\n\U0001f600" begins with the token <0A F0>.
    ids = straddling.encode("\u0441\n\n\U0001f600")
    assert b"\x81\n" in straddling.pieces(ids) and b"\n\xf0" in straddling.pieces(ids)
    assert straddling.pieces(cut(straddling, ids, 2))[-1] == b"\n"
    assert straddling.decode(cut(straddling, ids, 2)) == "\u0441\n\n"


def test_bytes_that_are_no_text_are_put_together_from_tokens(folder):
    merges = [("\u0123", "\u010a"), ("\u0123\u010a", "x")]  # <81 0A>, <81 0A 78>
    tokenizer = byte_level(folder, merges, "half")
    ids = tokenizer.encode("\u0441\nx")
    assert tokenizer.pieces(ids) == [b"\xd1", b"\x81\nx"]
    assert tokenizer.pieces(cut(tokenizer, ids, 1)) == [b"\xd1", b"\x81\n"]


def test_an_end_token_is_no_part_of_a_prefix(trained):
    ids = [*trained.encode("a\nb"), trained.eos_id]
    assert trained.prefix_ids(ids, 3) == ids[:-1]
    assert trained.prefix_ids(ids, 0) == []
    between = [trained.eos_id, *ids, *ids]
    assert trained.prefix_ids(between, 3) == [trained.eos_id, *ids[:-1]]
    assert trained.prefix_ids(between, 4) == [trained.eos_id, *ids, ids[0]]
    with pytest.raises(ValueError, match="n_bytes = 4, but the text has only 3 bytes"):
        trained.prefix_ids(ids, 4)
    with pytest.raises(ValueError, match="n_bytes = -1"):
        trained.prefix_ids(ids, -1)


# ------------------------------------------------------------------------------------- training


def test_newlines_and_digits_are_tokens_of_their_own(trained):
    pieces = [trained.pieces([i])[0] for i in range(trained.vocab_size)]
    for piece in pieces:
        if b"\n" in piece or any(d in piece for d in b"0123456789"):
            assert len(piece) == 1


def test_an_expression_has_the_same_tokens_whatever_it_is_about(trained):
    """What a model learns of an expression with one variable then holds for all (LABBOOK.md)."""
    for template in ("[v + 3 for v in {}]", "{}[2:]", "sorted({})", "[4] + {}", "{}[::-1]"):
        around_the_name = set()
        for name in "abceghkz":
            ids = trained.encode(f"    h = {template.format(name)}")
            pieces = trained.pieces(ids)
            assert any(piece.strip() == name.encode() for piece in pieces)
            around_the_name.add(tuple(p for p in pieces if p.strip() not in (b"", name.encode())))
        assert len(around_the_name) == 1, template


def test_a_line_of_a_solution_takes_about_six_tokens(trained):
    """Length is what sampling and training cost; five and a name of its own."""
    problems = generator.make_problems(ChainsConfig(train=6, validation=1, test=30))
    chains = [problem.chain for split in problems.values() for problem in split]
    lines = sum(len(chain.steps) for chain in chains)
    solutions = [len(trained.encode(chain.solution())) + 1 for chain in chains]
    prompts = [len(trained.encode(chain.prompt())) for chain in chains]
    assert sum(solutions) / lines < 6.5 and sum(prompts) / lines < 5.0
    assert max(solutions) <= Config().max_completion_tokens and max(prompts) <= 64


def test_training_is_deterministic(folder, trained):
    texts = sft_texts(300)
    Tokenizer.train(texts, 400, folder / "a.json")
    Tokenizer.train(iter(texts), 400, folder / "b.json")
    code = (
        "import sys, json; from prm_jax.tokenizer import Tokenizer;"
        "Tokenizer.train(json.load(sys.stdin), 400, sys.argv[1])"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(folder / "c.json")],
        input=json.dumps(texts), text=True, check=True,
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false", "PYTHONHASHSEED": "5"},
    )  # fmt: skip
    a, b, c = ((folder / f"{name}.json").read_bytes() for name in "abc")
    assert a == b == c


def test_a_trained_tokenizer_reads_any_text_and_knows_its_ends(folder):
    tokenizer = Tokenizer.train(["ab\n"] * 9, 260, folder / "new" / "tiny.json")
    assert tokenizer.vocab_size <= 260
    assert tokenizer.eos_id != tokenizer.pad_id
    assert tokenizer.pieces([tokenizer.eos_id, tokenizer.pad_id]) == [b"", b""]
    for text in NASTY:
        check_exact(tokenizer, text)
    assert os.listdir(folder / "new") == ["tiny.json"]  # nothing half-written is left beside it
    with pytest.raises(ValueError, match="vocab_size = 257"):
        Tokenizer.train(["x"], 257, folder / "small.json")
    assert not (folder / "small.json").exists()


def test_settings_of_a_file_that_cut_or_pad_texts_are_ignored(trained, folder):
    inner = tokenizers.Tokenizer.from_file(str(folder / "trained.json"))
    inner.enable_truncation(3)
    inner.enable_padding(length=50)
    tokenizer = Tokenizer.load(save(inner, folder / "cutting.json"))
    text = "b: add 3\nc: add 4\n"
    assert tokenizer.encode(text) == trained.encode(text)


# ------------------------------------------------------------------------------- ends and refusals


def test_the_end_token_is_named_or_found(folder, straddling):
    path = folder / "straddling.json"
    assert straddling.eos_id == Tokenizer.load(path, "<|endoftext|>").eos_id
    named = Tokenizer.load(path, "<|im_end|>")
    assert named.eos_id == named.encode("<|im_end|>")[0]
    assert named.pad_id == straddling.eos_id != named.eos_id
    # There is no other to pad with, and the policy never chooses PAD: it gets an id of its own.
    assert straddling.pad_id == straddling.vocab_size - 1 == named.vocab_size
    assert straddling.pieces([straddling.pad_id]) == [b""]


def test_a_tokenizer_config_beside_the_file_names_the_ends(folder, straddling):
    model = folder / "model"
    model.mkdir()
    (folder / "straddling.json").rename(model / "tokenizer.json")
    config = {"eos_token": {"content": "<|im_end|>"}, "pad_token": "<|endoftext|>"}
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.load(model)
    assert tokenizer.eos_id == tokenizer.encode("<|im_end|>")[0]
    assert tokenizer.pad_id == tokenizer.encode("<|endoftext|>")[0]
    assert Tokenizer.load(model, "<|endoftext|>").eos_id == tokenizer.pad_id
    (model / "tokenizer_config.json").write_text("{")
    with pytest.raises(TokenizerError, match="tokenizer_config.json is not JSON"):
        Tokenizer.load(model)
    (model / "tokenizer_config.json").unlink()
    (model / "tokenizer.json").rename(folder / "straddling.json")


def test_what_cannot_be_used_is_refused_with_its_name(folder):
    with pytest.raises(FileNotFoundError, match="nowhere.json"):
        Tokenizer.load(folder / "nowhere.json")
    (folder / "corrupt.json").write_text('{"model": ')
    with pytest.raises(TokenizerError, match="corrupt.json' is not a tokenizer"):
        Tokenizer.load(folder / "corrupt.json")
    (folder / "other.json").write_text('{"model": {"type": "nothing"}}')
    with pytest.raises(TokenizerError, match="other.json' is not a tokenizer"):
        Tokenizer.load(folder / "other.json")
    (folder / "list.json").write_text("[]")
    with pytest.raises(TokenizerError, match="list.json' is not a tokenizer"):
        Tokenizer.load(folder / "list.json")

    inner = tokenizers.Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    inner.decoder = decoders.ByteLevel()
    with pytest.raises(TokenizerError, match=r"no end-of-sequence.*</s>.*tokenizer\.eos"):
        Tokenizer.load(save(inner, folder / "endless.json"))
    with pytest.raises(TokenizerError, match="tried <stop>"):
        Tokenizer.load(folder / "endless.json", "<stop>")

    inner = tokenizers.Tokenizer(models.WordPiece(vocab={"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    inner.decoder = decoders.WordPiece()
    inner.add_special_tokens(["</s>"])
    with pytest.raises(TokenizerError, match="WordPiece"):
        Tokenizer.load(save(inner, folder / "words.json"))
