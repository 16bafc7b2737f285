"""What the files of a model say about its tokenizer.

A model's folder (Hugging Face layout) spreads it over several files: the tokens and how to split a
text in tokenizer.json, which of them begin and end a text in tokenizer_config.json or
special_tokens_map.json, which end a generation in generation_config.json, and how a chat is written
in a template. A GGUF file has them all. This module reads either into one record.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

# What may lie beside a tokenizer.json and its tokenizer_config.json.
_BESIDE = ("special_tokens_map", "added_tokens", "generation_config", "chat_template", "config")


class TokenizerError(ValueError):
    """A tokenizer that cannot be used; says which and why."""


@dataclasses.dataclass(frozen=True)
class TokenizerFiles:
    """One tokenizer as its files describe it."""

    source: str  # the file, for messages
    inner: tokenizers.Tokenizer
    kind: str  # how tokens spell bytes: "byte-level" or "metaspace"
    names: Mapping[str, str]  # the texts of bos_token, eos_token, pad_token and unk_token
    end_ids: tuple[int, ...] = ()  # eos_token_id of generation_config.json
    chat_template: str | None = None
    add_bos: bool | None = None  # whether a text begins with BOS; None: as tokenizer.json does it
    embedding_rows: int = 0  # vocab_size of config.json: rows beyond the last token are no text


def read_files(path: str | Path) -> TokenizerFiles:
    """Reads a tokenizer.json, or the folder of a model, and what lies beside it; or a GGUF file.

    A token that a chat adds may stand in tokenizer_config.json or added_tokens.json alone; it is
    one of the tokens here. Raises FileNotFoundError, or TokenizerError for files that are no usable
    tokenizer.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"tokenizer.path = {str(path)!r} is not a file")
    if path.suffix == ".gguf":
        # Here, so that only those who read such a file need the package for it.
        from prm_jax.pretrained import gguf_tokenizer

        spec, config = gguf_tokenizer(path)
        beside: dict[str, dict[str, Any]] = dict.fromkeys(_BESIDE, {})
    else:
        spec, config = _spec(path), _json(path.with_name("tokenizer_config.json"))
        beside = {name: _json(path.with_name(f"{name}.json")) for name in _BESIDE}
    specials = beside["special_tokens_map"]
    try:
        missing = _missing_tokens(spec, config, beside["added_tokens"], specials)
        inner = _inner(spec, missing)
    except Exception as e:  # the library raises bare Exception
        raise TokenizerError(f"tokenizer.path = {str(path)!r} is not a tokenizer: {e}") from e
    for token in missing:
        if inner.token_to_id(token["content"]) != token["id"]:
            raise TokenizerError(
                f"{path.parent} has the token {token['content']!r} with id {token['id']}, which "
                f"{path.name} lacks: its ids would have a gap; save the tokenizer again"
            )
    add_bos = config.get("add_bos_token")
    rows = (beside["config"] or config).get("vocab_size")
    return TokenizerFiles(
        source=str(path),
        inner=inner,
        kind=_kind(spec, str(path)),
        names=_names(specials) | _names(config),
        end_ids=_end_ids(beside["generation_config"]),
        chat_template=_chat_template(path, beside["chat_template"] or config),
        add_bos=add_bos if isinstance(add_bos, bool) else None,
        embedding_rows=rows if isinstance(rows, int) else 0,
    )


def _spec(path: Path) -> dict[str, Any]:
    try:
        spec = json.loads(path.read_bytes())
    except ValueError as e:
        raise TokenizerError(f"tokenizer.path = {str(path)!r} is not a tokenizer: {e}") from e
    if not isinstance(spec, dict):
        raise TokenizerError(f"tokenizer.path = {str(path)!r} is not a tokenizer: it is no object")
    return spec


def _json(path: Path) -> dict[str, Any]:
    """An optional file; {} where it does not exist."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except ValueError as e:
        raise TokenizerError(f"{path} is not JSON: {e}") from e
    if not isinstance(found, dict):
        raise TokenizerError(f"{path} is not a JSON object")
    return found


def _names(config: Mapping[str, Any]) -> dict[str, str]:
    """The texts of the special tokens that the configuration names."""
    names = {}
    for key in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = config.get(key)
        if isinstance(value, dict):  # {"content": "</s>", "lstrip": false, ...}
            value = value.get("content")
        if isinstance(value, str) and value:
            names[key] = value
    return names


def _end_ids(generation: Mapping[str, Any]) -> tuple[int, ...]:
    value = generation.get("eos_token_id")
    return tuple(value) if isinstance(value, list) else () if value is None else (value,)


def _chat_template(path: Path, config: Mapping[str, Any]) -> str | None:
    """The default template: of its own file, or else of the configuration."""
    alone = path.with_name("chat_template.jinja")
    if alone.is_file():
        return alone.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        template = {item["name"]: item["template"] for item in template}.get("default")
    return template if isinstance(template, str) else None


def _missing_tokens(
    spec: Mapping[str, Any],
    config: Mapping[str, Any],
    added: Mapping[str, Any],
    specials: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Added tokens that tokenizer.json does not have, in order of their ids."""
    known = {token["content"] for token in spec.get("added_tokens", [])}
    special = set(_names(specials).values()) | set(_names(config).values())
    tokens = {
        text: {"id": i, "content": text, "special": text in special} for text, i in added.items()
    }
    for i, token in (config.get("added_tokens_decoder") or {}).items():
        tokens[token["content"]] = {**token, "id": int(i)}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    missing = [plain | token for text, token in tokens.items() if text not in known]
    return sorted(missing, key=lambda token: token["id"])


def _inner(spec: dict[str, Any], missing: list[dict[str, Any]]) -> tokenizers.Tokenizer:
    added = [*spec.get("added_tokens", []), *missing]
    spec = _without_prefix_space(spec) | {"added_tokens": added}
    inner = tokenizers.Tokenizer.from_str(json.dumps(spec))
    inner.no_truncation()
    inner.no_padding()
    return inner


def _parts(spec: Any) -> list[dict[str, Any]]:
    """The members of a sequence of normalizers, pre-tokenizers or decoders."""
    if not spec:
        return []
    for key in ("normalizers", "pretokenizers", "decoders"):
        if key in spec:
            return [part for member in spec[key] for part in _parts(member)]
    return [spec]


def _without_prefix_space(spec: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer without a space that it would put before every text.

    With it the first token of a text is ambiguous (" x" and "x" are one), which loses a column of
    the indentation of a program.
    """
    for part in (*_parts(spec.get("pre_tokenizer")), *_parts(spec.get("decoder"))):
        if part["type"] in ("Metaspace", "ByteLevel") and "add_prefix_space" in part:
            part["add_prefix_space"] = False
        if part["type"] == "Metaspace":
            part["prepend_scheme"] = "never"
    for part in _parts(spec.get("normalizer")):
        if part["type"] == "Prepend":
            part["prepend"] = ""
    return spec


def _kind(spec: dict[str, Any], source: str) -> str:
    decoder = {part["type"] for part in _parts(spec.get("decoder"))}
    if "ByteLevel" in decoder:
        return "byte-level"
    if decoder & {"Metaspace", "ByteFallback", "Replace"}:
        return "metaspace"
    raise TokenizerError(
        f"{source}: the bytes of its tokens are unknown (decoder {sorted(decoder) or 'none'}); "
        "byte-level, metaspace and byte-fallback tokenizers are understood"
    )
