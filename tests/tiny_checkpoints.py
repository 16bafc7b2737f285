"""Tiny checkpoints in Hugging Face layout, their weights from a seed: one for each switch.

Shapes and names are written down here as Hugging Face's models have them, independently of
prm_jax/pretrained/layout.py.
"""

import json
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

VOCAB = 24
_SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": VOCAB,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
    "rope_theta": 500.0,
    "hidden_act": "silu",
}


def _config(prefix, **settings):
    names = {"architectures": [f"{prefix}ForCausalLM"], "model_type": prefix.lower()}
    return (
        _SHAPE
        | {"head_dim": 8, "num_key_value_heads": 2, "tie_word_embeddings": False}
        | (names | settings)
    )


_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
CONFIGS = {
    "llama 2, full attention, untied": _config("Llama", num_key_value_heads=4, head_dim=4),
    "llama 3, grouped, tied": _config(
        "Llama",
        tie_word_embeddings=True,
        rope_scaling={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 48,
        },
    ),
    "llama, biases everywhere": _config("Llama", attention_bias=True, mlp_bias=True),
    "llama, linear": _config("Llama", rope_scaling={"type": "linear", "factor": 3.0}),
    "llama, dynamic": _config("Llama", rope_scaling={"type": "dynamic", "factor": 2.0}),
    "qwen2, one key head, tied": _config("Qwen2", num_key_value_heads=1, tie_word_embeddings=True),
    "qwen2, untied, yarn": _config("Qwen2", rope_scaling=_YARN),
    "qwen3, tied": _config("Qwen3", tie_word_embeddings=True),
    "qwen3, biases, yarn with all fields": _config(
        "Qwen3",
        attention_bias=True,
        rope_scaling=_YARN
        | {"beta_fast": 4.0, "beta_slow": 0.5, "attention_factor": 1.3, "truncate": False},
    ),
}


def shapes(config):
    """Names and shapes of the tensors that transformers expects for a config."""
    d, f, h = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * h, config["num_key_value_heads"] * h
    family = config["model_type"]
    qkv_bias = family == "qwen2" or config.get("attention_bias")
    found = {"model.embed_tokens.weight": (config["vocab_size"], d), "model.norm.weight": (d,)}
    if config["architectures"][0].endswith("ForTokenClassification"):
        found |= {"score.weight": (1, d), "score.bias": (1,)}
    elif not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (config["vocab_size"], d)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        for name, rows in (("q", q), ("k", kv), ("v", kv)):
            found[f"{layer}self_attn.{name}_proj.weight"] = (rows, d)
            if qkv_bias:
                found[f"{layer}self_attn.{name}_proj.bias"] = (rows,)
            if family == "qwen3" and name != "v":
                found[f"{layer}self_attn.{name}_norm.weight"] = (h,)
        found[f"{layer}self_attn.o_proj.weight"] = (d, q)
        if config.get("attention_bias"):
            found[f"{layer}self_attn.o_proj.bias"] = (d,)
        for name, shape in (("gate", (f, d)), ("up", (f, d)), ("down", (d, f))):
            found[f"{layer}mlp.{name}_proj.weight"] = shape
            if config.get("mlp_bias"):
                found[f"{layer}mlp.{name}_proj.bias"] = shape[:1]
        found[f"{layer}input_layernorm.weight"] = (d,)
        found[f"{layer}post_attention_layernorm.weight"] = (d,)
    return found


def tensors(config):
    """Weights that depend on nothing but name and shape; none is 0, and no scale is 1."""

    def weight(name, shape):
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        x = rng.random(shape, np.float32) - 0.5
        return 1 + x if "norm" in name else x

    return {name: weight(name, shape) for name, shape in shapes(config).items()}


def write(folder: Path, config, weights=None, dtype=np.float32):
    """The folder of a checkpoint, without a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = tensors(config) if weights is None else weights
    dtype = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    cast = {name: np.ascontiguousarray(x, dtype) for name, x in weights.items()}
    save_file(cast, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def batch():
    """Two rows of tokens, of 9 and of 5, without padding: token 0 stands for it elsewhere."""
    rng = np.random.default_rng(0)
    return [rng.integers(1, VOCAB, n).tolist() for n in (9, 5)]
