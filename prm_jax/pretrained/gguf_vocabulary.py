"""The tokenizer inside a GGUF file, as the two JSON files that Hugging Face keeps of one.

A GGUF names how text is split before merging (`tokenizer.ggml.pre`) but does not say it; the
splits of the byte-level tokenizers of Llama 3, Qwen2, GPT-2 and SmolLM are written out here.
"""

from pathlib import Path
from typing import Any

from prm_jax.pretrained.errors import PretrainedError
from prm_jax.pretrained.gguf import GGUFFile

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS_AND_NUMBERS = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _WORDS_AND_NUMBERS.replace("DIGITS", "{1,3}")
_QWEN2 = _WORDS_AND_NUMBERS.replace("DIGITS", "")
_SPLITS = {
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
}
_DIGITS = ("smollm", "starcoder", "refact")  # single digits, then GPT-2's split
_GPT2 = ("gpt-2", "gpt2")
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5  # token types


def gguf_tokenizer(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """tokenizer.json and tokenizer_config.json of a GGUF file, as dicts.

    The second has bos_token, eos_token, pad_token and unk_token where the file names them, the
    chat_template, and add_bos_token. Raises PretrainedError for tokenizers other than byte-level
    BPE with a known split.
    """
    file = GGUFFile(Path(path))
    kind = file.value("tokenizer.ggml.model")
    if kind != "gpt2":
        raise PretrainedError(
            f"{path}: its tokenizer is of kind {kind!r}, and only byte-level BPE ('gpt2') can be "
            "read from GGUF: name a tokenizer.json with tokenizer.path"
        )
    tokens: list[str] = file.value("tokenizer.ggml.tokens")
    types: list[int] = file.value("tokenizer.ggml.token_type") or [1] * len(tokens)
    pre = file.value("tokenizer.ggml.pre", "gpt-2")
    names = {
        name: file.value(f"tokenizer.ggml.{key}_token_id")
        for name, key in (
            ("bos_token", "bos"), ("eos_token", "eos"), ("pad_token", "padding"),
            ("unk_token", "unknown"),
        )
    }  # fmt: skip
    special = {name: tokens[i] for name, i in names.items() if i is not None}
    add_bos = bool(file.value("tokenizer.ggml.add_bos_token", False))
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": kind == _CONTROL,
            }
            for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
            if kind in (_CONTROL, _USER_DEFINED)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _pre_tokenizers(pre, str(path))},
        "post_processor": _prefixed(tokens[names["bos_token"]], names["bos_token"])
        if add_bos
        else None,
        "decoder": _byte_level(use_regex=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": _SPLITS.get(pre) == _LLAMA3,  # whole words first, as Llama 3 has it
            # Unused rows have names like [PAD151936], which are no text.
            "vocab": {
                token: i
                for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
                if kind != _UNUSED
            },
            "merges": [merge.split(" ") for merge in file.value("tokenizer.ggml.merges")],
        },
    }
    config: dict[str, Any] = {
        "tokenizer_class": (
            "Qwen2Tokenizer" if _SPLITS.get(pre) == _QWEN2 else "PreTrainedTokenizerFast"
        ),
        "clean_up_tokenization_spaces": False,
        "add_bos_token": add_bos,
        "model_max_length": file.value(f"{file.architecture}.context_length", 0),
        **special,
    }
    template = file.value("tokenizer.chat_template")
    return tokenizer, config | ({"chat_template": template} if template else {})


def _pre_tokenizers(pre: str, source: str) -> list[dict[str, Any]]:
    if pre in _SPLITS:
        return [
            {
                "type": "Split",
                "pattern": {"Regex": _SPLITS[pre]},
                "behavior": "Isolated",
                "invert": False,
            },
            _byte_level(use_regex=False),
        ]
    if pre in _DIGITS:
        return [{"type": "Digits", "individual_digits": True}, _byte_level(use_regex=True)]
    if pre in _GPT2:
        return [_byte_level(use_regex=True)]
    raise PretrainedError(
        f"{source}: how tokenizer.ggml.pre = {pre!r} splits text is not known here (known are "
        f"{', '.join((*_SPLITS, *_DIGITS, *_GPT2))}): name a tokenizer.json with tokenizer.path"
    )


def _byte_level(*, use_regex: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _prefixed(token: str, token_id: int) -> dict[str, Any]:
    """The post-processor that puts a token before every text."""

    def sequence(name: str) -> list[dict[str, Any]]:
        return [
            {"SpecialToken": {"id": token, "type_id": 0}},
            {"Sequence": {"id": name, "type_id": 0}},
        ]

    return {
        "type": "TemplateProcessing",
        "single": sequence("A"),
        "pair": [*sequence("A"), *sequence("B")],
        "special_tokens": {token: {"id": token, "ids": [token_id], "tokens": [token]}},
    }
