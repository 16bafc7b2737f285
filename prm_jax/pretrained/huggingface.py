"""config.json of Hugging Face checkpoints, to ModelConfig and back.

Llama 2 and 3, Qwen2 (with 2.5) and Qwen3 are one transformer with different switches. What a file
asks for beyond these is refused by name rather than ignored: the logits would be slightly wrong.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prm_jax.config import ConfigError, ModelConfig, RopeConfig
from prm_jax.pretrained.errors import PretrainedError

FAMILIES = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}  # model_type: class prefix
HEADS = ("ForCausalLM", "ForTokenClassification")
SUPPORTED = ", ".join(f"{prefix}ForCausalLM" for prefix in FAMILIES.values())


def parse_config(settings: Mapping[str, Any], source: str, **ours: Any) -> ModelConfig:
    """The ModelConfig that a config.json describes; `ours` are fields that it does not decide.

    Raises PretrainedError, which begins with `source`, for what is not supported.
    """
    family = _family(settings, source)
    _refuse_features(settings, source)

    def number(name: str) -> int:
        value = settings.get(name)
        if not isinstance(value, int):
            raise PretrainedError(f"{source}: {name} = {value!r} must be a whole number")
        return value

    embed, heads = number("hidden_size"), number("num_attention_heads")
    attention_bias = bool(settings.get("attention_bias", False))
    try:
        fields: dict[str, Any] = dict(
            layers=number("num_hidden_layers"),
            embed=embed,
            heads=heads,
            kv_heads=settings.get("num_key_value_heads") or heads,
            head_dim=settings.get("head_dim") or (128 if family == "qwen3" else embed // heads),
            mlp=number("intermediate_size"),
            vocab_size=number("vocab_size"),
            max_positions=settings.get("max_position_embeddings") or 0,
            rope=_parse_rope(settings, source),
            norm_eps=float(settings.get("rms_norm_eps", 1e-6)),
            qkv_bias=family == "qwen2" or attention_bias,
            out_bias=family != "qwen2" and attention_bias,
            mlp_bias=family == "llama" and bool(settings.get("mlp_bias", False)),
            qk_norm=family == "qwen3",
            tied_embeddings=bool(settings.get("tie_word_embeddings", False)),
        )
        return ModelConfig(**fields | ours)
    except PretrainedError:
        raise
    except ConfigError as error:
        raise PretrainedError(f"{source}: {error}") from error


def _family(settings: Mapping[str, Any], source: str) -> str:
    names = settings.get("architectures") or []
    for family, prefix in FAMILIES.items():
        if any(name in [prefix + head for head in HEADS] for name in names):
            return family
    found = ", ".join(names) or f"model_type {settings.get('model_type')!r}"
    raise PretrainedError(f"{source}: {found} is not supported; supported are {SUPPORTED}")


def _refuse_features(settings: Mapping[str, Any], source: str) -> None:
    """Raises PretrainedError for a feature that would change the logits."""
    windowed = "sliding_attention" in (settings.get("layer_types") or []) or (
        settings.get("use_sliding_window")
        and settings.get("sliding_window")
        and settings.get("num_hidden_layers", 0) > settings.get("max_window_layers", 0)
    )
    if windowed:
        raise PretrainedError(
            f"{source}: sliding-window attention is not supported, only full attention; set "
            "use_sliding_window to false if your texts are shorter than the window "
            f"({settings.get('sliding_window')} tokens)"
        )
    activation = settings.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise PretrainedError(f"{source}: hidden_act = {activation!r} is not supported, only silu")
    if settings.get("quantization_config"):
        raise PretrainedError(
            f"{source}: quantization_config is not supported: bring the weights as they were "
            "before quantisation, or as GGUF"
        )


_SCALINGS = ("linear", "dynamic", "llama3", "yarn")


def _parse_rope(settings: Mapping[str, Any], source: str) -> RopeConfig:
    """From `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
    given = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    kind = given.get("rope_type") or given.get("type") or "default"
    partial = given.get("partial_rotary_factor", settings.get("partial_rotary_factor", 1.0))
    if partial not in (None, 1, 1.0):
        raise PretrainedError(
            f"{source}: partial_rotary_factor = {partial} is not supported, only 1"
        )
    fields: dict[str, Any] = {
        "theta": float(given.get("rope_theta") or settings.get("rope_theta") or 10_000.0)
    }
    if kind == "default":
        return RopeConfig(**fields)
    if kind not in _SCALINGS:
        raise PretrainedError(
            f"{source}: rope scaling {kind!r} is not supported; supported are "
            f"default, {', '.join(_SCALINGS)}"
        )
    longest = settings.get("max_position_embeddings") or 0
    original = given.get("original_max_position_embeddings") or longest
    if kind == "dynamic":
        original = longest
    factor = given.get("factor") or (longest / original if original else 0)
    if not factor:
        raise PretrainedError(
            f"{source}: rope scaling {kind!r} has no factor, and max_position_embeddings = "
            f"{longest} does not tell it: add factor"
        )
    fields |= {"scaling": kind, "factor": float(factor)}
    if kind != "linear":
        fields["original_positions"] = int(original)
    names = {
        "llama3": ("low_freq_factor", "high_freq_factor"),
        "yarn": ("beta_fast", "beta_slow", "attention_factor", "truncate"),
    }.get(kind, ())
    # JSON writes 1.0 as 1.
    fields |= {
        name: given[name] if name == "truncate" else float(given[name])
        for name in names
        if given.get(name) is not None
    }
    if kind == "yarn" and given.get("attention_factor") is None:
        if given.get("mscale") and given.get("mscale_all_dim"):
            over, under = (0.1 * given[m] * math.log(factor) + 1 for m in _MSCALES)
            fields["attention_factor"] = over / under
    return RopeConfig(**fields)


_MSCALES = ("mscale", "mscale_all_dim")  # DeepSeek's way to write yarn's factor


def family_of(config: ModelConfig, tokenizer_class: str) -> tuple[str, ModelConfig]:
    """The model_type that can hold a model, and the ModelConfig with the biases that it has there.

    Biases that the model lacks are zeros there. Qwen2 is for Qwen2's tokenizer only: transformers 5
    splits text in Qwen2's way for every such model, whatever tokenizer.json says. Raises
    PretrainedError for a combination that none of the families has.
    """
    if config.qk_norm and config.mlp_bias:
        raise PretrainedError(
            f"model.qk_norm = {config.qk_norm} and model.mlp_bias = {config.mlp_bias} are together "
            f"in none of {', '.join(FAMILIES.values())}: such a model cannot be exported"
        )
    of_qwen2 = config.qkv_bias and not (config.qk_norm or config.out_bias or config.mlp_bias)
    if of_qwen2 and tokenizer_class.startswith("Qwen2Tokenizer"):
        return "qwen2", config
    biased = config.qkv_bias or config.out_bias
    family = "qwen3" if config.qk_norm else "llama"
    return family, dataclasses.replace(config, qkv_bias=biased, out_bias=biased)


def config_json(
    config: ModelConfig,
    family: str,
    *,
    vocab_size: int,
    dtype: str,
    scalar: bool,
    tokens: Mapping[str, Any],
) -> dict[str, Any]:
    """The config.json of a model in its family; `tokens` are ids such as eos_token_id.

    Rotary positions and dtype are written as transformers 4 did, which 5 and other readers take
    too. `scalar` makes it a token classifier with one label, the score.
    """
    rope = config.rope
    settings: dict[str, Any] = {
        "architectures": [FAMILIES[family] + HEADS[scalar]],
        "model_type": family,
        "attention_dropout": 0.0,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.embed,
        "initializer_range": 0.02,
        "intermediate_size": config.mlp,
        "max_position_embeddings": config.max_positions,
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "num_key_value_heads": config.kv_heads,
        "rms_norm_eps": config.norm_eps,
        "rope_scaling": _rope_scaling(rope),
        "rope_theta": rope.theta,
        # The scalar models have no token head to tie.
        "tie_word_embeddings": config.tied_embeddings and not scalar,
        "torch_dtype": dtype,
        "use_cache": True,
        "vocab_size": vocab_size,
    }
    if family != "qwen2":
        settings["attention_bias"] = config.qkv_bias
    if family == "llama":
        settings["mlp_bias"] = config.mlp_bias
    else:
        settings |= {"use_sliding_window": False, "sliding_window": None}
    if scalar:
        settings |= {
            "id2label": {"0": "score"},
            "label2id": {"score": 0},
            "classifier_dropout": 0.0,
        }
    return settings | dict(tokens)


def _rope_scaling(rope: RopeConfig) -> dict[str, Any] | None:
    if rope.scaling == "none":
        return None
    fields: dict[str, Any] = {"rope_type": rope.scaling, "factor": rope.factor}
    if rope.scaling in ("llama3", "yarn"):
        fields["original_max_position_embeddings"] = rope.original_positions
    if rope.scaling == "llama3":
        fields |= {
            "low_freq_factor": rope.low_freq_factor,
            "high_freq_factor": rope.high_freq_factor,
        }
    if rope.scaling == "yarn":
        fields |= {
            "beta_fast": rope.beta_fast,
            "beta_slow": rope.beta_slow,
            "truncate": rope.truncate,
        }
        if rope.attention_factor:
            fields["attention_factor"] = rope.attention_factor
    return fields


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; raises PretrainedError if it is not there or not that."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PretrainedError(f"{path} is not there") from None
    except ValueError as error:
        raise PretrainedError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise PretrainedError(f"{path} must hold a JSON object")
    return value
