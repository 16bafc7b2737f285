"""Trained models in Hugging Face layout: a folder that transformers and servers load as it is.

A folder appears whole or not at all: it is written beside its place under another name first.
Tensors are fetched, adapters folded in and written one at a time.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from prm_jax.config import ModelConfig
from prm_jax.model.heads import PolicyModel, ScalarModel
from prm_jax.model.linear import KERNEL, A, B
from prm_jax.model.lora import is_adapter, merge_lora
from prm_jax.pretrained.errors import PretrainedError
from prm_jax.pretrained.gguf_vocabulary import gguf_tokenizer
from prm_jax.pretrained.huggingface import config_json, family_of, read_json
from prm_jax.pretrained.layout import Layout, layout_of
from prm_jax.pretrained.safetensors import DTYPES, write_safetensors

# What may lie beside a tokenizer.json and belongs to it.
_BESIDE = (
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "generation_config.json",
)  # fmt: skip
_DTYPES = {"float32": DTYPES["F32"], "bfloat16": DTYPES["BF16"]}


def save_policy(
    params: Any,
    model: PolicyModel,
    folder: Path,
    *,
    tokenizer_from: Path,
    card: str,
    dtype: Literal["float32", "bfloat16"] = "float32",
    tokens: Mapping[str, str] | None = None,
    beside: Mapping[str, Any] | None = None,
) -> None:
    """Writes a policy as `AutoModelForCausalLM` and `AutoTokenizer` read it.

    `tokenizer_from` is a tokenizer.json, a folder that holds one, or a .gguf file; what lies
    beside it (chat template, generation_config.json) goes along. `tokens` are texts of tokens that
    nothing beside it names, {"pad_token": "<pad>"}, and "eos_token" in any case: the one that the
    model learned to end with. `card` is the README.md; `beside` are further JSON files by name.
    Adapters are folded in. Raises PretrainedError if `folder` is not empty, or if the model belongs
    to no family that transformers has.
    """
    _save(params, model, folder, tokenizer_from, card, dtype, tokens or {}, beside or {})


def save_scalar(
    params: Any,
    model: ScalarModel,
    folder: Path,
    *,
    tokenizer_from: Path,
    card: str,
    dtype: Literal["float32", "bfloat16"] = "float32",
    tokens: Mapping[str, str] | None = None,
    beside: Mapping[str, Any] | None = None,
) -> None:
    """Writes a PRM or a critic as `AutoModelForTokenClassification` reads it, with one label.

    Its logit at a token is the score (or value) of the text up to and including that token. The
    rest is as for `save_policy`.
    """
    _save(params, model, folder, tokenizer_from, card, dtype, tokens or {}, beside or {})


def _save(
    params: Any,
    model: PolicyModel | ScalarModel,
    folder: Path,
    tokenizer_from: Path,
    card: str,
    dtype: Literal["float32", "bfloat16"],
    tokens: Mapping[str, str],
    beside: Mapping[str, Any],
) -> None:
    scalar = isinstance(model, ScalarModel)
    tokenizer, files = _tokenizer_files(tokenizer_from, tokens)
    rows = _vocab_rows(model.config, model.vocab_size, tokenizer)
    ids = _token_ids(tokenizer, files["tokenizer_config.json"])
    tokenizer_class = files["tokenizer_config.json"].get("tokenizer_class") or ""
    family, config = family_of(model.config, tokenizer_class)
    settings = config_json(config, family, vocab_size=rows, dtype=dtype, scalar=scalar, tokens=ids)
    generation = files.pop("generation_config.json", None)
    if not scalar:
        files["generation_config.json"] = _generation_config(generation, ids)
    with whole_folder(folder) as part:
        _write_json(part / "config.json", settings)
        _write_json(part / "tokenizer.json", tokenizer)
        for name, content in files.items():
            if isinstance(content, str):
                (part / name).write_text(content, encoding="utf-8")
            else:
                _write_json(part / name, content)
        for name, value in beside.items():
            _write_json(part / name, value)
        (part / "README.md").write_text(card, encoding="utf-8")
        _write_weights(part, _with_biases(params, config), config, rows, _DTYPES[dtype])


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder to write into, which takes the place of `folder` when the block ends well.

    Raises PretrainedError if `folder` is there and not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PretrainedError(f"--out = {str(folder)!r} is not an empty folder: choose another")
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    part = folder.absolute().with_name(f".{folder.name}.part-{os.getpid()}")
    part.mkdir()
    try:
        yield part
        for path in part.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        part.replace(folder)  # an empty folder gives way
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


# ------------------------------------------------------------------------------------ weights


def _with_biases(params: Any, config: ModelConfig) -> Any:
    """The parameters with biases of 0 in attention where `config` has some that they lack."""
    shapes = {
        "query_bias": (config.qkv_bias, (config.heads, config.head_dim)),
        "key_bias": (config.qkv_bias, (config.kv_heads, config.head_dim)),
        "value_bias": (config.qkv_bias, (config.kv_heads, config.head_dim)),
        "out_bias": (config.out_bias, (config.embed,)),
    }
    zeros = {name: np.zeros(shape, np.float32) for name, (has, shape) in shapes.items() if has}
    trunk = dict(params["trunk"])
    for i in range(config.layers):
        layer = trunk[f"layers_{i}"]
        trunk[f"layers_{i}"] = layer | {"attention": zeros | layer["attention"]}
    return params | {"trunk": trunk}


def _write_weights(
    folder: Path, params: Any, config: ModelConfig, rows: int, dtype: np.dtype
) -> None:
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): x
        for path, x in jax.tree_util.tree_leaves_with_path(params)
    }
    # Layer after layer, as readers of checkpoints like it; the numbers in the names count.
    kept = [path for path in leaves if not is_adapter(path)]
    layouts = sorted((layout_of(path) for path in kept), key=_order)
    shapes = {}
    for layout in layouts:
        sizes = layout.sizes(leaves[layout.path].shape)
        sizes |= {"vocab": rows} if "vocab" in sizes else {}
        shapes |= dict.fromkeys(layout.tensors, layout.stored_shape(sizes))

    def merged(path: str) -> Any:
        # One kernel at a time: all of them would be a second copy of the model.
        stem = path.removesuffix(KERNEL)
        names = [name for name in (path, stem + A, stem + B) if name in leaves]
        return merge_lora({name: leaves[name] for name in names}, config)[path]

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for layout in layouts:
            index = tuple(slice(rows) if axis == "vocab" else slice(None) for axis in layout.axes)
            value = np.asarray(jax.device_get(merged(layout.path)))[index]
            yield from zip(layout.tensors, layout.write(value), strict=True)

    write_safetensors(folder, shapes, dtype, tensors())


def _order(layout: Layout) -> tuple[bool, int, str]:
    _, _, rest = layout.path.partition("layers_")
    layer = rest.split("/")[0]
    return bool(layer), int(layer or 0), layout.tensors[0]


def _vocab_rows(config: ModelConfig, rows: int, tokenizer: Mapping[str, Any]) -> int:
    """How many rows of the vocabulary are written: those of the weights that the model began as.

    Rows that were added for a padding token that tokenizer.json does not have are cut off again.
    """
    return min(rows, max(config.vocab_size, 1 + max(_vocabulary(tokenizer).values())))


# ---------------------------------------------------------------------------------- tokenizer


def _tokenizer_files(
    source: Path, tokens: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """tokenizer.json, and the files beside it by name: JSON objects, and texts."""
    files: dict[str, Any] = {}
    if source.suffix == ".gguf":
        tokenizer, files["tokenizer_config.json"] = gguf_tokenizer(source)
    else:
        path = source / "tokenizer.json" if source.is_dir() else source
        tokenizer = read_json(path)
        for name in _BESIDE:
            beside = path.with_name(name)
            if beside.is_file():
                is_json = beside.suffix == ".json"
                files[name] = read_json(beside) if is_json else beside.read_text(encoding="utf-8")
    known = {name: text for name, text in tokens.items() if text in _vocabulary(tokenizer)}
    config = files.get("tokenizer_config.json") or {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    config = known | config
    if "eos_token" in known:
        config["eos_token"] = known["eos_token"]
    return tokenizer, files | {"tokenizer_config.json": config}


def _vocabulary(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    vocab = tokenizer["model"]["vocab"]
    if isinstance(vocab, list):  # Unigram: pairs of a token and its score
        vocab = {token: i for i, (token, _) in enumerate(vocab)}
    return vocab | {token["content"]: token["id"] for token in tokenizer["added_tokens"]}


def _token_ids(tokenizer: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, int]:
    """bos_token_id, eos_token_id and pad_token_id, where the tokenizer names the tokens."""
    vocabulary = _vocabulary(tokenizer)
    ids = {}
    for name in ("bos_token", "eos_token", "pad_token"):
        token = config.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if token in vocabulary:
            ids[f"{name}_id"] = vocabulary[token]
    return ids


def _generation_config(given: dict[str, Any] | None, ids: Mapping[str, int]) -> dict[str, Any]:
    """generation_config.json: the one that lay beside the tokenizer, ending with our EOS too."""
    eos, pad = ids.get("eos_token_id"), ids.get("pad_token_id")
    if given is not None:
        ends = given.get("eos_token_id", [])
        ends = ends if isinstance(ends, list) else [ends]
        return given if eos is None or eos in ends else given | {"eos_token_id": [eos, *ends]}
    settings: dict[str, Any] = {"do_sample": True, "temperature": 1.0, **ids}
    if pad is not None and pad != eos:
        # Training gave the padding token no probability; without this it would have some.
        settings["suppress_tokens"] = [pad]
    return settings


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
