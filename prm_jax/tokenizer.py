"""Text to token ids and back, exact to the byte, for any Hugging Face `tokenizer.json`.

The process reward model reads one score per line of a program, so the project must know which
bytes every token stands for, also where one token holds a newline and more. `pieces` gives them;
everything else here follows from it. Tokens are context-free: a tokenizer that would put a space
before a text (Llama 2) is told not to, so that pieces of a prefix and of what follows concatenate.
"""

import functools
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from prm_jax.rl.stops import StopTable, stop_table
from prm_jax.tokenizer_files import TokenizerError, TokenizerFiles, read_files

EOS, PAD = "<eos>", "<pad>"  # of the tokenizers that are trained here

# Tried in this order where neither the caller nor a tokenizer_config.json names the token.
_EOS_NAMES = (
    EOS, "<|endoftext|>", "<|end_of_text|>", "</s>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>",
    "[EOS]",
)  # fmt: skip
_PAD_NAMES = (
    PAD, "<|pad|>", "[PAD]", "<|finetune_right_pad_id|>", "<|reserved_special_token_0|>",
    "<|endoftext|>", "<|end_of_text|>",
)  # fmt: skip

# Pieces that no token crosses: a newline; a digit; the head of a statement (`    b =`, `return`),
# a label (`b:`), a comment sign; the name of a variable; and what lies between these. A name is a
# letter by itself (`f` and the loops' `v` and `i` are not): an expression then has the same tokens
# whatever it is about, and what is learned of it with one name holds for all (LABBOOK.md).
_NAME = r" ?\b[a-eghj-uw-z]\b"
_PIECES = (
    r"\n|[0-9]| *return\b:?| *[A-Za-z_]\w*(?: =|:)(?= )| *#|"
    rf"{_NAME}|[^\n0-9]+?(?=\n|[0-9]|{_NAME}|$)"
)


class Tokenizer:
    """A Hugging Face tokenizer with end tokens and exact bytes for every token.

    `eos_ids` are all tokens that end a response, and `eos_id`, the first of them, is the one that
    is written; `bos_id` is None where there is none, and `adds_bos` says whether a text by itself
    begins with it. `chat_template` (None: the model has no chats) is written with `names`, the
    texts of bos_token, eos_token, pad_token and unk_token. None of these tokens has bytes.
    """

    def __init__(self, files: TokenizerFiles, eos: str = ""):
        """Use `load` or `train`."""
        self._inner = inner = files.inner
        self._source = files.source
        self.vocab_size: int = max(inner.get_vocab(with_added_tokens=True).values()) + 1
        self._added = inner.get_added_tokens_decoder()
        self._table = self._make_table(files.kind)
        names = dict(files.names)
        self.eos_ids: tuple[int, ...] = self._find_eos(eos or names.get("eos_token"), files.end_ids)
        self.eos_id: int = self.eos_ids[0]
        self.names: Mapping[str, str] = {"eos_token": inner.id_to_token(self.eos_id) or ""} | names
        self.bos_id: int | None = inner.token_to_id(names.get("bos_token", ""))
        self.adds_bos: bool = self.bos_id is not None and (
            self.bos_id in inner.encode("").ids[:1] if files.add_bos is None else files.add_bos
        )
        self.pad_id: int = self._find_pad(names.get("pad_token"))
        self.chat_template: str | None = files.chat_template
        for i in (*self.eos_ids, self.bos_id, self.pad_id):
            if i is not None:
                self._table[i] = b""
        unused = files.embedding_rows - self.vocab_size
        self._table += [b""] * unused
        self.vocab_size += max(unused, 0)

    # ---------------------------------------------------------------------------- load and train

    @classmethod
    def load(cls, path: str | Path, eos: str = "") -> "Tokenizer":
        """Reads a tokenizer.json, a model's folder in Hugging Face layout, or a GGUF file.

        `eos` names the end token that is written; empty takes the one of tokenizer_config.json, or
        else of generation_config.json, or tries the usual names. All end tokens of
        generation_config.json end a response. Where the model's embedding has more rows than there
        are tokens (config.json), these are tokens without text. Raises FileNotFoundError, or
        TokenizerError for files that are no usable tokenizer or have no end token.
        """
        return cls(read_files(path), eos)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, path: str | Path) -> "Tokenizer":
        """Trains a byte-level BPE and saves it; the same texts give the same file.

        All 256 bytes are tokens, so any text can be encoded. Newlines and digits are tokens of
        their own. Raises ValueError if vocab_size has no room for bytes and special tokens.
        """
        if vocab_size < 258:
            raise ValueError(f"vocab_size = {vocab_size} must be at least 258: bytes and specials")
        inner = tokenizers.Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_PIECES), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )  # pyright: ignore[reportAttributeAccessIssue]
        inner.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[PAD, EOS],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        inner.train_from_iterator(texts, trainer)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            file.write(inner.to_str(pretty=True))
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, path)
        return cls.load(path)

    # ------------------------------------------------------------------------ encode and decode

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; nothing is added at its ends.

        The names of special tokens in the text (chat markers) become those tokens.
        """
        return self._inner.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts, in parallel."""
        return [e.ids for e in self._inner.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; special tokens are dropped, invalid UTF-8 becomes U+FFFD."""
        return b"".join(self.pieces(ids)).decode("utf-8", errors="replace")

    def pieces(self, ids: Iterable[int]) -> list[bytes]:
        """The bytes that each token stands for; b"" for special tokens.

        Joined they are the bytes of the text. Raises IndexError for ids outside the vocabulary.
        """
        table = self._table
        pieces = []
        for i in ids:
            if not 0 <= i < len(table):
                raise IndexError(f"token id {i} is outside the vocabulary of {len(table)}")
            pieces.append(table[i])
        return pieces

    def prefix_ids(self, ids: Sequence[int], n_bytes: int) -> list[int]:
        """Token ids of the first `n_bytes` bytes of a text, as `Lines.end_byte` counts them.

        A token that holds the last of them and more is replaced by tokens for exactly the bytes
        that are kept; special tokens after the last byte are left out. Raises ValueError if the
        text is not that long.
        """
        if n_bytes < 0:
            raise ValueError(f"n_bytes = {n_bytes} must be at least 0")
        left = n_bytes
        for t, piece in enumerate(self.pieces(ids)):
            if left == 0:
                return list(ids[:t])
            if len(piece) > left:
                return [*ids[:t], *self._encode_bytes(piece[:left])]
            left -= len(piece)
        if left:
            raise ValueError(f"n_bytes = {n_bytes}, but the text has only {n_bytes - left} bytes")
        return list(ids)

    def stop_table(self, strings: Sequence[str]) -> StopTable:
        """The automaton that finds these strings while tokens are sampled, also across tokens."""
        return stop_table([string.encode() for string in strings], self._table)

    # ---------------------------------------------------------------------------------- the rest

    def _make_table(self, kind: str) -> list[bytes]:
        """The bytes of every token id."""
        table = [b""] * self.vocab_size
        for token, i in self._inner.get_vocab(with_added_tokens=False).items():
            table[i] = _token_bytes(token, kind)
        for i, added in self._added.items():
            # Added tokens are found in the raw text, so they are not in the model's alphabet.
            table[i] = b"" if added.special else added.content.encode()
        return table

    @functools.cached_property
    def _ids_by_bytes(self) -> dict[bytes, int]:
        return {piece: i for i, piece in enumerate(self._table) if piece and i not in self._added}

    def _encode_bytes(self, text: bytes) -> list[int]:
        """Tokens that stand for exactly these bytes, as the tokenizer would choose if it can."""
        try:
            ids = self.encode(text.decode())
        except UnicodeDecodeError:
            ids = []
        if b"".join(self.pieces(ids)) == text:
            return ids
        # The tokenizer normalises, or the bytes are half a character: fewest tokens, by dynamic
        # programming over the end of the last token.
        best: list[list[int] | None] = [[]] + [None] * len(text)
        for end in range(1, len(text) + 1):
            for start in range(end):
                before, token = best[start], self._ids_by_bytes.get(text[start:end])
                if before is None or token is None:
                    continue
                if best[end] is None or len(before) + 1 < len(best[end] or ()):
                    best[end] = [*before, token]
        if (found := best[-1]) is None:
            raise TokenizerError(f"{self._source} has no tokens for the bytes {text!r}")
        return found

    def _find_eos(self, named: str | None, end_ids: Sequence[int]) -> tuple[int, ...]:
        # A generation_config.json that was saved with a class's defaults names tokens of text.
        ends = [i for i in end_ids if i in self._added]
        tried = [named] if named else [] if ends else list(_EOS_NAMES)
        found = [i for name in tried if (i := self._inner.token_to_id(name)) is not None][:1]
        if tried and not found:
            raise TokenizerError(
                f"{self._source} has no end-of-sequence token: tried {', '.join(tried)}; "
                "name it with tokenizer.eos"
            )
        return tuple(dict.fromkeys([*found, *ends]))

    def _find_pad(self, named: str | None) -> int:
        # The policy gives PAD no probability, so it must be neither an EOS nor text.
        for name in (named, *_PAD_NAMES):
            i = self._inner.token_to_id(name) if name else None
            if i in self._added and i not in self.eos_ids:
                return i
        self._table.append(b"")  # one more id, never text
        self.vocab_size += 1
        return self.vocab_size - 1


def _token_bytes(token: str, kind: str) -> bytes:
    if kind == "byte-level":
        alphabet = _byte_alphabet()
        if all(c in alphabet for c in token):
            return bytes(alphabet[c] for c in token)
        return token.encode()
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace("\u2581", " ").encode()


@functools.cache
def _byte_alphabet() -> dict[str, int]:
    """The printable character that byte-level tokenizers write for each byte (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + k): b for k, b in enumerate(others)}
