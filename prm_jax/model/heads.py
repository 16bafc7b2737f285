"""The two models: a policy (trunk and token logits) and a scalar model (trunk and one number).

Critic and PRM are both `ScalarModel`. `params["trunk"]` has one structure in both models, so a PRM
starts from the SFT policy, and a critic from a PRM, by copying that subtree.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from prm_jax.config import ModelConfig
from prm_jax.model.attention import MASKED, Cache, KeyValue
from prm_jax.model.linear import kernel_init, named_axes
from prm_jax.model.transformer import Transformer
from prm_jax.sharding import constrain, splits


class PolicyModel(nn.Module):
    """The policy pi(token | tokens before it); PAD has probability 0, also in training."""

    config: ModelConfig
    vocab_size: int
    pad_id: int

    def setup(self):
        self.trunk = Transformer(self.config, self.vocab_size)
        if not self.config.tied_embeddings:
            init = named_axes(kernel_init(self.config.embed), "embed", "vocab")
            self.head: Any = self.param("head", init, (self.config.embed, self.vocab_size))

    def __call__(
        self, tokens: Int[Array, "B T"], valid: Bool[Array, "B T"]
    ) -> Float[Array, "B T V"]:
        """Logits of the token after each token."""
        return self.logits(self.hidden(tokens, valid)[0])

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        valid: Bool[Array, "B T"],
        cache: Cache | None = None,
        first: int = 0,
    ) -> tuple[Float[Array, "B S D"], tuple[KeyValue, ...]]:
        """The trunk's hidden states and keys and values; see `Transformer`."""
        return self.trunk(tokens, valid, cache, first)

    def logits(
        self, hidden: Float[Array, "B S D"], head: Float[Array, "D V"] | None = None
    ) -> Float[Array, "B S V"]:
        """float32 logits of the token after each hidden state.

        `head` is the `head_for_decoding`, in a loop over new tokens.
        """
        kernel = self.head_kernel() if head is None else head
        if spread := head is not None and splits("vocab_shard", self.vocab_size):
            hidden = constrain(hidden, "data_batch", "time", "embed")
        kernel = kernel.astype(hidden.dtype)
        logits = jnp.einsum("bsd,dv->bsv", hidden, kernel, preferred_element_type=jnp.float32)
        if spread:  # these numbers change places, where the kernel's would be more
            logits = constrain(logits, "data_batch", "time", "vocab_shard")
        logits = constrain(logits, "batch", "time", "vocab")
        return jnp.where(jnp.arange(self.vocab_size) == self.pad_id, MASKED, logits)

    def head_kernel(self) -> Float[Array, "D V"]:
        """What a hidden state is multiplied by for the logits."""
        return self.trunk.embedding.T if self.config.tied_embeddings else self.head

    def head_for_decoding(self) -> Float[Array, "D V"]:
        """`head_kernel` as a loop over new tokens reads it; see `for_decoding`."""
        kernel = self.head_kernel().astype(self.config.dtype)
        spread = splits("vocab_shard", self.vocab_size)
        return constrain(kernel, "embed", "vocab_shard") if spread else kernel


class ScalarModel(nn.Module):
    """One number per token from the trunk's hidden state: the critic's value or the PRM's score."""

    config: ModelConfig
    vocab_size: int

    def setup(self):
        self.trunk = Transformer(self.config, self.vocab_size)
        self.head = ScalarHead(self.config.embed)

    def __call__(
        self, tokens: Int[Array, "B T"], valid: Bool[Array, "B T"], first: int = 0
    ) -> Float[Array, "B S"]:
        """The scalar of each token from column `first` on, float32."""
        hidden, _ = self.trunk(tokens, valid, first=first)
        return self.head(hidden)


class ScalarHead(nn.Module):
    """hidden . kernel + bias; both start at 0, so that a fresh critic predicts 0 everywhere."""

    embed: int

    @nn.compact
    def __call__(self, hidden: Float[Array, "B S D"]) -> Float[Array, "B S"]:
        init = named_axes(nn.initializers.zeros, "embed")
        kernel = self.param("kernel", init, (self.embed,))
        bias = self.param("bias", named_axes(nn.initializers.zeros), ())
        # A sum over a few thousand products is no place for bfloat16, and costs nothing here.
        return hidden.astype(jnp.float32) @ kernel + bias
