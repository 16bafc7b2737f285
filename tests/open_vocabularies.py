"""tokenizer.json of Qwen2.5 and Llama 3, from the vocabularies that the package quicktok carries.

The package holds the bytes of every token by rank; a byte-level BPE in Hugging Face's format also
wants the merges, which follow from them: of two neighbours, those merge first that make the token
of the lowest rank.
"""

import functools
from pathlib import Path

import quicktok
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from prm_jax.tokenizer import Tokenizer

# As both models publish them; they differ in how many digits one piece may hold.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DIGITS = {"qwen3": r"\p{N}", "llama3": r"\p{N}{1,3}"}


@functools.cache
def reference(name: str) -> "quicktok.Tokenizer":
    """The package's own tokenizer: another implementation."""
    return quicktok.get_encoding(name)


def load(name: str, folder: Path) -> Tokenizer:
    """Our tokenizer over the same vocabulary."""
    tokens = [token for token in reference(name).token_byte_values() if token]
    ranks = {token: reference(name).encode_single_token(token) for token in tokens}
    merges = [
        (rank, ranks[token[:n]], ranks[token[n:]], token[:n], token[n:])
        for token, rank in ranks.items()
        for n in range(1, len(token))
        if token[:n] in ranks and token[n:] in ranks
    ]
    spelling = dict(zip(range(256), alphabet(), strict=True))

    def spell(token: bytes) -> str:
        return "".join(spelling[byte] for byte in token)

    inner = tokenizers.Tokenizer(
        models.BPE(
            vocab={spell(token): rank for token, rank in ranks.items()},
            merges=[(spell(left), spell(right)) for *_, left, right in sorted(merges)],
            ignore_merges=name == "llama3",
        )
    )
    if name == "qwen3":
        inner.normalizer = normalizers.NFC()
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT.format(digits=DIGITS[name])), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    added = sorted(reference(name).special_tokens_set, key=reference(name).encode_single_token)
    inner.add_special_tokens(added)
    path = folder / f"{name}.json"
    inner.save(str(path))
    return Tokenizer.load(path)


def alphabet() -> list[str]:
    """The characters that spell the bytes 0 ... 255: themselves if they print, or else the next."""
    characters = set(pre_tokenizers.ByteLevel.alphabet())
    others = iter(sorted(c for c in characters if ord(c) > 255))
    return [chr(byte) if chr(byte) in characters else next(others) for byte in range(256)]
