"""GGUF files that are written here as llama.cpp's converter writes them, read back."""

import dataclasses
import json
import sys

import gguf
import jax
import numpy as np
import pytest
import tiny_checkpoints
import tokenizers
from tiny_checkpoints import CONFIGS, VOCAB

from prm_jax.config import MeshConfig
from prm_jax.model.heads import PolicyModel
from prm_jax.pretrained import (
    PretrainedError,
    gguf_tokenizer,
    load_params,
    read_model_config,
    save_policy,
)
from prm_jax.sharding import make_mesh
from prm_jax.tokenizer import Tokenizer

NAMES = {  # llama.cpp's names, written down here once more
    "model.embed_tokens.": "token_embd.", "model.norm.": "output_norm.", "lm_head.": "output.",
    "model.layers.": "blk.", "input_layernorm.": "attn_norm.",
    "post_attention_layernorm.": "ffn_norm.", "self_attn.q_proj.": "attn_q.",
    "self_attn.k_proj.": "attn_k.", "self_attn.v_proj.": "attn_v.",
    "self_attn.o_proj.": "attn_output.", "self_attn.q_norm.": "attn_q_norm.",
    "self_attn.k_norm.": "attn_k_norm.", "mlp.gate_proj.": "ffn_gate.",
    "mlp.up_proj.": "ffn_up.", "mlp.down_proj.": "ffn_down.",
}  # fmt: skip
CASES = {
    "llama": CONFIGS["llama 2, full attention, untied"],
    "llama, grouped, with biases": CONFIGS["llama, biases everywhere"],
    "qwen2": CONFIGS["qwen2, one key head, tied"],
    "qwen2, yarn": CONFIGS["qwen2, untied, yarn"],
    "qwen3": CONFIGS["qwen3, tied"],
}


def one_device():
    return make_mesh(MeshConfig(), jax.devices()[:1])


def interleaved(rows, heads):
    """Rows of queries or keys as llama.cpp turns them: row j of a half beside row j of the other.

    One row at a time, as its converter moves them.
    """
    head_dim = len(rows) // heads
    out = np.empty_like(rows)
    for h in range(heads):
        for j in range(head_dim // 2):
            out[h * head_dim + 2 * j] = rows[h * head_dim + j]
            out[h * head_dim + 2 * j + 1] = rows[h * head_dim + head_dim // 2 + j]
    return out


def write_gguf(path, config, *, quantised=None, extra=(), **metadata):
    """A GGUF file of a tiny checkpoint; `extra` are tensors, `metadata` overrides values."""
    family = config["model_type"]
    writer = gguf.GGUFWriter(path, metadata.pop("architecture", family))
    values = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config["head_dim"],
    }
    for name, value in values.items():
        writer.add_uint32(f"{family}.{name}", value)
    writer.add_float32(f"{family}.attention.layer_norm_rms_epsilon", config["rms_norm_eps"])
    writer.add_float32(f"{family}.rope.freq_base", config["rope_theta"])
    for name, value in metadata.items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}
        add[type(value)](f"{family}.{name.replace('__', '.')}", value)
    for name, weight in tiny_checkpoints.tensors(config).items():
        if family == "llama" and (".q_proj." in name or ".k_proj." in name):
            is_query = ".q_proj." in name
            heads = "num_attention_heads" if is_query else "num_key_value_heads"
            weight = interleaved(weight, config[heads])
        for old, new in NAMES.items():
            name = name.replace(old, new)
        kind = None
        if quantised is not None and weight.ndim == 2 and weight.shape[1] % 32 == 0:
            weight, kind = gguf.quantize(weight, quantised), quantised
        writer.add_tensor(name, weight, raw_dtype=kind)
    for name, weight in extra:
        writer.add_tensor(name, weight)
    return writer


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("name", CASES)
def test_a_gguf_file_reads_as_the_folder_that_it_was_made_from(tmp_path, name):
    config = CASES[name]
    folder = tiny_checkpoints.write(tmp_path / "folder", config)
    path = tmp_path / "model.gguf"
    scaling = {}
    if name == "qwen2, yarn":
        scaling = {
            "rope__scaling__type": "yarn",
            "rope__scaling__factor": 4.0,
            "rope__scaling__original_context_length": 16,
        }
    finish(write_gguf(path, config, **scaling))
    expected = read_model_config(folder)
    assert dataclasses.replace(read_model_config(path), path=str(folder)) == expected
    model = PolicyModel(expected, VOCAB, 0)
    a, b = load_params(folder, model, one_device()), load_params(path, model, one_device())
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1"])
def test_quantised_tensors_are_near_the_exact_ones(tmp_path, kind):
    config = CASES["llama"] | {"hidden_size": 32, "num_attention_heads": 4, "head_dim": 8}
    path = tmp_path / "model.gguf"
    finish(write_gguf(path, config, quantised=gguf.GGMLQuantizationType[kind]))
    model = PolicyModel(read_model_config(path), VOCAB, 0)
    params = load_params(path, model, one_device())
    exact = tiny_checkpoints.tensors(config)["model.embed_tokens.weight"]
    step = 1 / 127 / 2 if kind == "Q8_0" else 1 / 15
    error = np.abs(params["trunk"]["embedding"] - exact).max()
    assert 0 < error < step


def test_llama_3_scaling_is_known_by_its_factors(tmp_path):
    # Of Llama 3.1: 64 pairs, base 5e5; three of them between the two bounds, from its own formula.
    frequencies = 5e5 ** (-np.arange(64) / 64)
    waves = 2 * np.pi / frequencies
    smooth = (8192 / waves - 1) / 3
    factors = np.where(waves < 2048, 1, np.where(waves > 8192, 8, 1 / ((1 - smooth) / 8 + smooth)))
    factors = factors.astype(np.float32)
    config = CASES["llama"] | {"head_dim": 128, "rope_theta": 5e5}
    path = tmp_path / "model.gguf"
    finish(write_gguf(path, config, extra=[("rope_freqs.weight", factors)]))
    rope = read_model_config(path).rope
    assert (rope.scaling, rope.factor, rope.original_positions) == ("llama3", 8.0, 8192)
    finish(write_gguf(path, config, extra=[("rope_freqs.weight", factors + 1)]))
    with pytest.raises(PretrainedError, match="rope_freqs are not those of Llama 3"):
        read_model_config(path)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"architecture": "gemma"}, "architecture 'gemma' is not supported; supported are llama"),
        ({"expert_count": 8}, "llama.expert_count is set"),
        ({"attention__sliding_window": 64}, "llama.attention.sliding_window is set"),
        ({"rope__scaling__type": "longrope"}, "rope scaling 'longrope'"),
        ({"rope__dimension_count": 2}, "rotary positions on 2 of 4"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(tmp_path, metadata, words):
    path = tmp_path / "model.gguf"
    finish(write_gguf(path, CASES["llama"], **metadata))
    with pytest.raises(PretrainedError) as error:
        read_model_config(path)
    assert words in str(error.value)


def test_tensors_that_no_model_here_has_are_named(tmp_path):
    path = tmp_path / "model.gguf"
    odd = [("blk.0.attn_gate.weight", np.zeros((2, 2), np.float32))]
    finish(write_gguf(path, CASES["qwen3"], extra=odd))
    model = PolicyModel(read_model_config(path), VOCAB, 0)
    with pytest.raises(PretrainedError, match=r"blk\.0\.attn_gate\.weight is not in the model"):
        load_params(path, model, one_device())


def test_files_that_are_no_gguf_and_a_missing_package_are_named(tmp_path, monkeypatch):
    path = tmp_path / "model.gguf"
    with pytest.raises(PretrainedError, match="is not a file"):
        read_model_config(path)
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(PretrainedError, match="is not a GGUF file"):
        read_model_config(path)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(PretrainedError, match=r"pip install prm_jax\[gguf\]"):
        read_model_config(path)


# ------------------------------------------------------------------------------------ tokenizer

CODE = "def f(x):\n\treturn  12345 + x's # \u00fc\U0001f600\r\n\n    if  x:  pass"


def write_with_tokenizer(path, pre, model="gpt2", add_bos=False):
    """A GGUF file with a byte-level BPE of its own; returns the tokenizer that it was made from."""
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<bos>", "<end>"],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(["return x + 12345\n    return 1234 if x else 12\n"] * 3, trainer)
    spec = json.loads(inner.to_str())
    tokens = sorted(spec["model"]["vocab"], key=spec["model"]["vocab"].get)
    config = CASES["llama"] | {"vocab_size": len(tokens) + 2}
    writer = write_gguf(path, config)
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([*tokens, "<tool>", "[PAD1]"])
    writer.add_token_types([3, 3, *[1] * (len(tokens) - 2), 4, 5])
    writer.add_token_merges([" ".join(pair) for pair in spec["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(add_bos)
    writer.add_chat_template("{{ messages }}")
    finish(writer)
    return inner


def test_the_tokenizer_in_a_file_is_the_one_that_it_was_made_from(tmp_path):
    inner = write_with_tokenizer(tmp_path / "model.gguf", "gpt-2")
    spec, config = gguf_tokenizer(tmp_path / "model.gguf")
    read = tokenizers.Tokenizer.from_str(json.dumps(spec))
    assert read.encode(CODE).ids == inner.encode(CODE).ids
    assert read.decode(read.encode(CODE).ids) == CODE
    assert config["bos_token"] == "<bos>" and config["eos_token"] == "<end>"
    assert config["chat_template"] == "{{ messages }}"
    # Control tokens and those that the user defined are whole, unused rows are no tokens.
    assert read.encode("<end><tool>").tokens == ["<end>", "<tool>"]
    assert read.token_to_id("[PAD1]") is None
    assert read.decode(read.encode("<end><tool>").ids, skip_special_tokens=True) == "<tool>"


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        # Worked by hand from the splits: GPT-2 joins all digits, Qwen2 none, Llama 3 three at most.
        ("gpt-2", ["if", " x", "==", "12345", ":\n\n", "   ", " y", "'s"]),
        ("smollm", ["if", " x", "==", "1", "2", "3", "4", "5", ":\n\n", "   ", " y", "'s"]),
        ("qwen2", ["if", " x", "==", "1", "2", "3", "4", "5", ":\n\n", "   ", " y", "'s"]),
        ("llama-bpe", ["if", " x", "==", "123", "45", ":\n\n", "   ", " y", "'s"]),
    ],
)
def test_text_is_split_as_the_name_in_the_file_says(tmp_path, pre, pieces):
    write_with_tokenizer(tmp_path / "model.gguf", pre)
    spec, _ = gguf_tokenizer(tmp_path / "model.gguf")
    split = tokenizers.Tokenizer.from_str(json.dumps(spec)).pre_tokenizer
    text = "if x==12345:\n\n    y's"
    found = [text[a:b] for _, (a, b) in split.pre_tokenize_str(text)]
    if pre in ("gpt-2", "smollm"):  # a newline is a space like others there
        pieces = [
            p for piece in pieces for p in ([":", "\n\n   "] if piece == ":\n\n" else [piece])
        ]
        pieces.remove("   ")
    assert found == pieces


def test_bos_is_added_where_the_file_says_so(tmp_path):
    write_with_tokenizer(tmp_path / "model.gguf", "gpt-2", add_bos=True)
    spec, config = gguf_tokenizer(tmp_path / "model.gguf")
    read = tokenizers.Tokenizer.from_str(json.dumps(spec))
    assert read.encode("x").tokens == ["<bos>", "x"]
    assert read.encode("x", add_special_tokens=False).tokens == ["x"]
    assert config["add_bos_token"] is True


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pre": "viking"}, "tokenizer.ggml.pre = 'viking'"),
        ({"pre": "gpt-2", "model": "llama"}, "its tokenizer is of kind 'llama'"),
    ],
)
def test_tokenizers_that_are_not_known_are_refused(tmp_path, options, words):
    write_with_tokenizer(tmp_path / "model.gguf", **options)
    with pytest.raises(PretrainedError) as error:
        gguf_tokenizer(tmp_path / "model.gguf")
    assert words in str(error.value)


def test_an_export_of_weights_from_gguf_has_its_tokenizer_and_template(tmp_path):
    path = tmp_path / "model.gguf"
    write_with_tokenizer(path, "gpt-2")
    config = read_model_config(path)
    model = PolicyModel(config, config.vocab_size, 0)
    params = load_params(path, model, one_device())
    save_policy(params, model, tmp_path / "out", tokenizer_from=path, card="")
    again = load_params(tmp_path / "out", model, one_device())
    for x, y in zip(*map(jax.tree.leaves, (params, again)), strict=True):
        np.testing.assert_array_equal(x, y)
    exported = Tokenizer.load(tmp_path / "out")
    assert exported.chat_template == "{{ messages }}"
    assert exported.encode(CODE) == Tokenizer.load(path).encode(CODE)
