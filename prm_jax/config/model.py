"""Settings of the transformer and of the devices that it is spread over."""

import dataclasses
from typing import ClassVar, Literal

from prm_jax.config.section import ConfigError, Section


@dataclasses.dataclass(frozen=True)
class RopeConfig(Section):
    """Rotary positions, and how a model stretched them to contexts longer than it was trained on.

    The fields below `scaling` say nothing where their kind is not chosen (model/rope.py has the
    equations).
    """

    section: ClassVar[str] = "model.rope"

    theta: float = 10_000.0
    """Base of the frequencies."""
    scaling: Literal["none", "linear", "dynamic", "llama3", "yarn"] = "none"
    """How frequencies are stretched; `dynamic` changes nothing up to `original_positions`."""
    factor: float = 1.0
    """How many times longer the context became."""
    original_positions: int = 0
    """Context before it was stretched (dynamic, llama3, yarn)."""
    low_freq_factor: float = 1.0
    """llama3: waves longer than original_positions / this are stretched in full."""
    high_freq_factor: float = 4.0
    """llama3: waves shorter than original_positions / this are left alone."""
    beta_fast: float = 32.0
    """yarn: frequencies that turn more often than this within the context are left alone."""
    beta_slow: float = 1.0
    """yarn: frequencies that turn less often than this are stretched in full."""
    attention_factor: float = 0.0
    """yarn: queries and keys are scaled by it; 0 takes 0.1 ln(factor) + 1."""
    truncate: bool = True
    """yarn: the two bounds are rounded to whole frequencies."""

    def __post_init__(self):
        super().__post_init__()
        self._positive("theta", "low_freq_factor", "beta_fast", "beta_slow")
        self._require("factor", self.factor >= 1, "at least 1")
        self._not_negative("original_positions", "attention_factor")
        self._require(
            "high_freq_factor",
            self.high_freq_factor > self.low_freq_factor,
            f"greater than model.rope.low_freq_factor = {self.low_freq_factor}",
        )
        self._require(
            "original_positions",
            self.original_positions > 0 or self.scaling in ("none", "linear"),
            f"greater than 0 with model.rope.scaling = {self.scaling!r}",
        )


@dataclasses.dataclass(frozen=True)
class ModelConfig(Section):
    """A decoder-only transformer: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

    Qwen2/2.5 is qkv_bias=True; Qwen3 is qk_norm=True; Llama is neither.
    """

    section: ClassVar[str] = "model"

    path: str = ""
    """Folder in Hugging Face layout or GGUF file that the weights come from; empty: fresh ones."""
    layers: int = 3
    """Transformer blocks."""
    embed: int = 64
    """Width of the residual stream."""
    heads: int = 2
    """Query heads."""
    kv_heads: int = 2
    """Heads of keys and values, each shared by heads / kv_heads query heads."""
    head_dim: int = 32
    """Width of a head; even."""
    mlp: int = 192
    """Inner width of the SwiGLU."""
    vocab_size: int = 0
    """Rows of the embedding; never fewer than the tokenizer has. 0 takes the tokenizer's."""
    max_positions: int = 0
    """Tokens of context that the weights were made for; 0: not known."""
    rope: RopeConfig = RopeConfig()
    norm_eps: float = 1e-6
    """Added under the root of RMSNorm."""
    qkv_bias: bool = False
    """Biases on queries, keys and values (Qwen2)."""
    out_bias: bool = False
    """Bias on the output of attention (Llama and Qwen3 with attention_bias)."""
    mlp_bias: bool = False
    """Biases in the SwiGLU (Llama with mlp_bias)."""
    qk_norm: bool = False
    """RMSNorm on queries and keys (Qwen3)."""
    tied_embeddings: bool = True
    """The output head is the embedding, transposed."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations; parameters are float32."""
    moments: Literal["float32", "bfloat16"] = "float32"
    """Of Adam's first moments; a training state takes a sixth less memory with bfloat16. Second
    moments stay float32: theirs change by less in a step than bfloat16 can tell."""
    remat: Literal["none", "full"] = "none"
    """full: gradients keep each layer's input only, and compute the layer again; a third more
    arithmetic for a fraction of the memory."""
    scan_layers: bool = False
    """Layers become one loop: a deep model compiles in a fraction of the time, and takes one more
    copy of its parameters in `dtype` while it computes."""
    lora_rank: int = 0
    """Rank of the adapters beside each frozen kernel (LoRA, arXiv 2106.09685); 0: full training."""
    lora_alpha: float = 16.0
    """Adapters are scaled by lora_alpha / lora_rank."""

    def __post_init__(self):
        super().__post_init__()
        self._positive("layers", "embed", "heads", "kv_heads", "head_dim", "mlp", "lora_alpha")
        self._not_negative("vocab_size", "max_positions", "lora_rank")
        self._require("norm_eps", self.norm_eps > 0, "greater than 0")
        self._require("head_dim", self.head_dim % 2 == 0, "even (rotary positions turn pairs)")
        self._require("kv_heads", self.heads % self.kv_heads == 0, f"a divisor of {self.heads=}")


@dataclasses.dataclass(frozen=True)
class MeshConfig(Section):
    """Devices per axis; -1 on one axis takes all that are left."""

    section: ClassVar[str] = "mesh"

    data: int = 1
    """Copies of the model that split the batch."""
    fsdp: int = -1
    """Splits the batch and the parameters."""
    tensor: int = 1
    """Splits heads, MLP and vocabulary."""
    rows_at_once: int = 8
    """Responses that a device takes at a time when it trains, at most; the gradients of the others
    are added to theirs. Fewer take less memory and more passes over the parameters, and those of
    PPO, also as they are scored, are taken by length and not padded to the longest. 0 takes all."""

    def __post_init__(self):
        super().__post_init__()
        axes = {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}
        for name, size in axes.items():
            self._require(name, size >= 1 or size == -1, "at least 1, or -1 for all that are left")
        self._not_negative("rows_at_once")
        if list(axes.values()).count(-1) > 1:
            raise ConfigError(f"mesh = {axes} is not allowed: at most one axis may be -1")
