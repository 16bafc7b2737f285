"""A tokenizer from the folder of a model: its ends, its chat template, its unused ids."""

import json

import gguf
import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from prm_jax.tokenizer import Tokenizer, TokenizerError

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
SPECIAL = ["<|bos|>", "<|endoftext|>", "<|im_end|>", "<|pad|>"]  # ids 256 ... 259
BOS, ENDOFTEXT, IM_END, PAD = range(256, 260)
TOOL = 260  # an added token that is text


def write(folder, adds_bos=False, special=(*SPECIAL,), **files):
    """A model's folder; `files` are JSON by name, or text."""
    inner = tokenizers.Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(BYTES)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(list(special))
    inner.add_tokens([AddedToken("<tool_call>", normalized=False, special=False)])
    if adds_bos:
        inner.post_processor = processors.TemplateProcessing(
            single="<|bos|> $A", special_tokens=[("<|bos|>", BOS)]
        )
    folder.mkdir(exist_ok=True)
    inner.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        if name == "template":
            (folder / "chat_template.jinja").write_text(content)
        else:
            (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


# ------------------------------------------------------------------------------------------- ends


@pytest.mark.parametrize(
    ("files", "eos", "eos_ids"),
    [
        # Qwen2.5-Instruct: the configuration names the end of a turn, generation ends with both.
        (
            {"tokenizer_config": {"eos_token": "<|im_end|>"},
             "generation_config": {"eos_token_id": [IM_END, ENDOFTEXT]}},
            "", (IM_END, ENDOFTEXT),
        ),
        # Llama 3.1: what is written is the configuration's, though it is not the first of the list.
        (
            {"tokenizer_config": {"eos_token": {"content": "<|im_end|>"}},
             "generation_config": {"eos_token_id": [ENDOFTEXT, IM_END]}},
            "", (IM_END, ENDOFTEXT),
        ),
        ({"generation_config": {"eos_token_id": IM_END}}, "", (IM_END,)),
        ({"special_tokens_map": {"eos_token": "<|im_end|>"}}, "", (IM_END,)),
        (
            {"special_tokens_map": {"eos_token": "<|im_end|>"},
             "tokenizer_config": {"eos_token": "<|endoftext|>"}},
            "", (ENDOFTEXT,),
        ),
        ({}, "", (ENDOFTEXT,)),
        ({"tokenizer_config": {"eos_token": None}}, "", (ENDOFTEXT,)),
        # The one that the user names is written; what ends a generation still does.
        (
            {"tokenizer_config": {"eos_token": "<|endoftext|>"},
             "generation_config": {"eos_token_id": ENDOFTEXT}},
            "<|im_end|>", (IM_END, ENDOFTEXT),
        ),
        # A class's default (2) names a token of text here: it ends nothing.
        ({"generation_config": {"eos_token_id": 2}}, "", (ENDOFTEXT,)),
        ({"generation_config": {"eos_token_id": [2, 9999, IM_END]}}, "", (IM_END,)),
    ],
)  # fmt: skip
def test_every_file_that_says_what_ends_a_response(tmp_path, files, eos, eos_ids):
    tokenizer = Tokenizer.load(write(tmp_path, **files), eos)
    assert tokenizer.eos_ids == eos_ids and tokenizer.eos_id == eos_ids[0]
    assert tokenizer.pieces(eos_ids) == [b""] * len(eos_ids)
    assert tokenizer.pad_id == PAD


def test_pad_is_neither_an_end_nor_text(tmp_path):
    ends = {"generation_config": {"eos_token_id": [IM_END, ENDOFTEXT]}}
    special = ("<|bos|>", "<|endoftext|>", "<|im_end|>")
    for named in ("<|endoftext|>", "<|im_end|>", "!"):
        config = {"pad_token": named}
        folder = write(tmp_path, special=special, tokenizer_config=config, **ends)
        tokenizer = Tokenizer.load(folder)
        assert tokenizer.pad_id == 260 == tokenizer.vocab_size - 1  # one more id
        assert tokenizer.pieces(tokenizer.encode("!")) == [b"!"]
    (tmp_path / "generation_config.json").unlink()
    write(tmp_path, special=special, tokenizer_config={"pad_token": "<|im_end|>"})
    assert Tokenizer.load(tmp_path).pad_id == IM_END


def test_an_end_that_is_not_marked_special_has_no_bytes_either(tmp_path):
    folder = write(tmp_path, tokenizer_config={"eos_token": "<tool_call>"})
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.eos_ids == (TOOL,)
    assert tokenizer.decode(tokenizer.encode("a<tool_call>")) == "a"


def test_names_of_special_tokens_are_those_of_the_files(tmp_path):
    config = {"bos_token": "<|bos|>", "pad_token": {"content": "<|pad|>"}, "unk_token": None}
    tokenizer = Tokenizer.load(write(tmp_path, tokenizer_config=config))
    assert tokenizer.names == {
        "bos_token": "<|bos|>", "pad_token": "<|pad|>", "eos_token": "<|endoftext|>",
    }  # fmt: skip
    assert tokenizer.bos_id == BOS
    assert Tokenizer.load(write(tmp_path / "none")).bos_id is None


@pytest.mark.parametrize(
    ("post_processor", "config", "adds"),
    [
        (True, {"bos_token": "<|bos|>"}, True),  # Llama 3
        (False, {"bos_token": "<|bos|>", "add_bos_token": True}, True),  # Llama 2
        (True, {"bos_token": "<|bos|>", "add_bos_token": False}, False),
        (False, {"bos_token": "<|bos|>", "add_bos_token": None}, False),
        (False, {"bos_token": None, "add_bos_token": True}, False),
    ],
)
def test_whether_a_text_begins_with_bos(tmp_path, post_processor, config, adds):
    tokenizer = Tokenizer.load(write(tmp_path, adds_bos=post_processor, tokenizer_config=config))
    assert tokenizer.adds_bos is adds
    assert tokenizer.encode("a") == [BYTES.index("a")]  # encode itself adds nothing


# --------------------------------------------------------------------------------- chat templates


def test_where_the_chat_template_stands(tmp_path):
    def template(**files):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        return Tokenizer.load(write(folder, **files)).chat_template

    assert template() is None
    config = {"chat_template": "of the config"}
    assert template(tokenizer_config=config) == "of the config"
    assert template(tokenizer_config=config, chat_template={"chat_template": "json"}) == "json"
    assert template(tokenizer_config=config, template="\u00fc") == "\u00fc"
    several = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    assert template(tokenizer_config={"chat_template": several}) == "d"
    assert template(tokenizer_config={"chat_template": several[:1]}) is None


# ------------------------------------------------------------------------- tokens, used and unused


def test_tokens_that_only_the_configuration_adds(tmp_path):
    decoder = {
        "262": {"content": "<|file_sep|>", "special": True, "lstrip": False},
        "261": {"content": "<think>", "special": False, "normalized": False},
        "259": {"content": "<|pad|>", "special": True},
    }
    folder = write(tmp_path, tokenizer_config={"added_tokens_decoder": decoder})
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.encode("<think><|file_sep|>") == [261, 262]
    assert tokenizer.pieces([261, 262]) == [b"<think>", b""]


def test_tokens_that_only_added_tokens_json_adds(tmp_path):
    added = {"<|turn|>": 262, "<|pad|>": PAD, "<answer>": 261}
    names = {"eos_token": "<|turn|>"}
    tokenizer = Tokenizer.load(write(tmp_path, added_tokens=added, special_tokens_map=names))
    assert tokenizer.pieces(tokenizer.encode("<answer><|turn|>")) == [b"<answer>", b""]
    assert tokenizer.eos_ids == (262,)


def test_an_added_token_beyond_a_gap_is_refused(tmp_path):
    with pytest.raises(TokenizerError, match=r"'<x>' with id 300.*tokenizer\.json lacks"):
        Tokenizer.load(write(tmp_path, added_tokens={"<x>": 300}))


def test_rows_of_the_embedding_that_no_token_uses_have_no_bytes(tmp_path):
    tokenizer = Tokenizer.load(write(tmp_path, config={"vocab_size": 300}))
    assert tokenizer.vocab_size == 300
    assert tokenizer.pieces([261, 299]) == [b"", b""]
    # A PAD of its own takes the first of them.
    folder = write(tmp_path, special=SPECIAL[:2], config={"vocab_size": 300})
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.pad_id == 259 and tokenizer.vocab_size == 300
    assert Tokenizer.load(write(tmp_path, config={"vocab_size": 9})).vocab_size == 261


# -------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", ["tokenizer_config", "generation_config", "special_tokens_map"])
def test_broken_files_are_named(tmp_path, name):
    folder = write(tmp_path, **{name: []})
    with pytest.raises(TokenizerError, match=f"{name}.json is not a JSON object"):
        Tokenizer.load(folder)
    (folder / f"{name}.json").write_text("{")
    with pytest.raises(TokenizerError, match=f"{name}.json is not JSON"):
        Tokenizer.load(folder)


def test_a_folder_without_a_tokenizer_json_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json' is not a file"):
        Tokenizer.load(tmp_path)


# ------------------------------------------------------------------------------------------- GGUF


def test_a_gguf_file_has_its_tokenizer(tmp_path):
    merges = [("\u0120", "\u0120"), ("\u010a", "\u0120\u0120")]  # two spaces, and a newline first
    tokens = [*BYTES, *(left + right for left, right in merges), *SPECIAL[:3]]
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    control = [gguf.TokenType.CONTROL] * 3
    writer.add_token_types([gguf.TokenType.NORMAL] * (len(tokens) - 3) + control)
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(258)
    writer.add_eos_token_id(260)
    writer.add_add_bos_token(True)
    writer.add_chat_template("{{ messages[0].content }}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()

    tokenizer = Tokenizer.load(path)
    assert tokenizer.pieces(tokenizer.encode("x\n   y<|im_end|>")) == [
        b"x", b"\n", b"  ", b" ", b"y", b"",
    ]  # fmt: skip
    assert (tokenizer.bos_id, tokenizer.adds_bos, tokenizer.eos_ids) == (258, True, (260,))
    assert tokenizer.pad_id == 259 and tokenizer.vocab_size == 261
    assert tokenizer.chat_template == "{{ messages[0].content }}"
    assert tokenizer.names == {"bos_token": "<|bos|>", "eos_token": "<|im_end|>"}
