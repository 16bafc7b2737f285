"""GGUF files (llama.cpp's format) through the `gguf` package: settings, tensors and tokenizer.

Quantised tensors are dequantised a few rows at a time. Files of the Llama architecture keep the
rows of queries and keys in the order in which llama.cpp rotates pairs, (0, 1), (2, 3), ...; they
are put back into the order of halves that the model here uses.
"""

from pathlib import Path
from typing import Any

import numpy as np

from prm_jax.config import ConfigError, ModelConfig, RopeConfig
from prm_jax.model.rope import rotary_frequencies
from prm_jax.pretrained.errors import PretrainedError
from prm_jax.pretrained.layout import TABLE, layout_of

ARCHITECTURES = ("llama", "qwen2", "qwen3")


class GGUFFile:
    """The metadata and the tensors of a GGUF file, the tensors by their Hugging Face names."""

    def __init__(self, path: Path):
        """Reads the metadata only; raises PretrainedError for a file that is not supported."""
        try:
            import gguf
        except ImportError:
            raise PretrainedError(
                f"{path} is a GGUF file, which needs the gguf package: pip install prm_jax[gguf]"
            ) from None
        if not path.is_file():
            raise PretrainedError(f"model.path = {str(path)!r} is not a file")
        try:
            self._reader = gguf.GGUFReader(path)
        except (ValueError, IndexError, OverflowError) as error:
            raise PretrainedError(f"{path} is not a GGUF file: {error}") from error
        self._gguf = gguf
        self.path = path
        architecture = self.value("general.architecture")
        if architecture not in ARCHITECTURES:
            raise PretrainedError(
                f"{path}: GGUF architecture {architecture!r} is not supported; supported are "
                f"{', '.join(ARCHITECTURES)}"
            )
        self.architecture: str = architecture
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self._theirs = self._names()
        self.shapes = {
            ours: tuple(int(n) for n in reversed(self._tensors[theirs].shape))
            for ours, theirs in self._theirs.items()
        }

    def value(self, key: str, default: Any = None) -> Any:
        """A metadata value, or the default."""
        field = self._reader.get_field(key)
        return default if field is None else field.contents()

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop` of a tensor, dequantised to float32.

        Rows of queries and keys must come in whole heads.
        """
        tensor = self._tensors[self._theirs[name]]
        quantised = tensor.data[start:stop]
        # Frees the pages of the file as it goes: a copy, not a view of the mapped file.
        rows = np.array(self._gguf.dequantize(quantised, tensor.tensor_type), np.float32)
        rows = rows.reshape(stop - start, *self.shapes[name][1:])
        if self.architecture == "llama" and (".q_proj." in name or ".k_proj." in name):
            half = self._config_numbers()["head_dim"] // 2
            pairs = rows.reshape(-1, half, 2, *rows.shape[1:])
            rows = pairs.swapaxes(1, 2).reshape(rows.shape)
        return rows

    def config(self, **ours: Any) -> ModelConfig:
        """The ModelConfig that the metadata describe; `ours` are fields that they do not decide."""
        for key in ("attention.sliding_window", "expert_count"):
            if self.value(f"{self.architecture}.{key}", 0):
                raise PretrainedError(
                    f"{self.path}: {self.architecture}.{key} is set, which is not supported: only "
                    "dense models with full attention are"
                )
        first = "model.layers.0."
        numbers = self._config_numbers()
        fields: dict[str, Any] = numbers | dict(
            vocab_size=self.shapes["model.embed_tokens.weight"][0],
            qkv_bias=first + "self_attn.q_proj.bias" in self.shapes,
            out_bias=first + "self_attn.o_proj.bias" in self.shapes,
            mlp_bias=first + "mlp.down_proj.bias" in self.shapes,
            qk_norm=first + "self_attn.q_norm.weight" in self.shapes,
            tied_embeddings="lm_head.weight" not in self.shapes,
        )
        try:
            fields["rope"] = self._rope(numbers["head_dim"])
            return ModelConfig(**fields | ours)
        except PretrainedError:
            raise
        except ConfigError as error:
            raise PretrainedError(f"{self.path}: {error}") from error

    def _config_numbers(self) -> dict[str, Any]:
        def number(key: str, default: Any = None) -> Any:
            value = self.value(f"{self.architecture}.{key}", default)
            if value is None:
                raise PretrainedError(f"{self.path} lacks {self.architecture}.{key}")
            return value

        embed, heads = number("embedding_length"), number("attention.head_count")
        return dict(
            layers=number("block_count"),
            embed=embed,
            heads=heads,
            kv_heads=number("attention.head_count_kv", heads),
            head_dim=number("attention.key_length", embed // heads),
            mlp=number("feed_forward_length"),
            max_positions=number("context_length", 0),
            norm_eps=_shortest(number("attention.layer_norm_rms_epsilon")),
        )

    def _rope(self, head_dim: int) -> RopeConfig:
        prefix = f"{self.architecture}.rope."
        turned = self.value(prefix + "dimension_count", head_dim)
        if turned != head_dim:
            raise PretrainedError(
                f"{self.path}: rotary positions on {turned} of {head_dim} dimensions are not "
                "supported, only on all"
            )
        theta = _shortest(self.value(prefix + "freq_base", 10_000.0))
        if "rope_freqs.weight" in self._tensors:
            return self._llama3_rope(theta, head_dim)
        kind = self.value(prefix + "scaling.type", "none")
        if kind == "none":
            return RopeConfig(theta=theta)
        factor = _shortest(self.value(prefix + "scaling.factor", 1.0))
        if kind == "linear":
            return RopeConfig(theta=theta, scaling="linear", factor=factor)
        if kind != "yarn":
            raise PretrainedError(
                f"{self.path}: rope scaling {kind!r} is not supported; supported are none, "
                "linear, yarn and Llama 3's"
            )
        original = self.value(prefix + "scaling.original_context_length")
        if original is None:
            original = self.value(f"{self.architecture}.context_length", 0)
        return RopeConfig(
            theta=theta, scaling="yarn", factor=factor, original_positions=int(original)
        )

    def _llama3_rope(self, theta: float, head_dim: int) -> RopeConfig:
        """Llama 3's scaling, which GGUF keeps as the factor of each frequency and not by name."""
        tensor = self._tensors["rope_freqs.weight"]
        factors = np.array(self._gguf.dequantize(tensor.data, tensor.tensor_type)).reshape(-1)
        plain = rotary_frequencies(RopeConfig(theta=theta), head_dim)
        rope = RopeConfig(
            theta=theta,
            scaling="llama3",
            factor=_shortest(factors.max()),
            original_positions=8192,  # of every Llama 3 that was published
        )
        if not np.allclose(plain / rotary_frequencies(rope, head_dim), factors, rtol=1e-4):
            raise PretrainedError(
                f"{self.path}: its rope_freqs are not those of Llama 3.1 to 3.3, and no other "
                "scaling is stored that way: bring the weights in Hugging Face layout"
            )
        return rope

    def _names(self) -> dict[str, str]:
        """Hugging Face names of the tensors, and the file's; unknown ones keep theirs."""
        theirs: dict[str, str] = {}
        layers = self.value(f"{self.architecture}.block_count", 0)
        for row in TABLE:
            for i in range(layers if "{i}" in row.path else 1):
                layout = layout_of(row.path.replace("{i}", str(i)))
                for ours, gguf_name in zip(layout.tensors, layout.gguf, strict=True):
                    if gguf_name in self._tensors:
                        theirs[ours] = gguf_name
        # The factors of the frequencies are read by `config`.
        unknown = self._tensors.keys() - set(theirs.values()) - {"rope_freqs.weight"}
        return theirs | {name: name for name in unknown}


def _shortest(value: Any) -> float:
    """The decimal number that was meant by a float32: 1e-05 and not 9.99999974738e-06."""
    return float(str(np.float32(value)))
