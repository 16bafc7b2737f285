"""Open models in, trained models out: Hugging Face checkpoints and GGUF files."""

from prm_jax.pretrained.errors import PretrainedError
from prm_jax.pretrained.gguf_vocabulary import gguf_tokenizer
from prm_jax.pretrained.load import check_weights, load_params, read_model_config
from prm_jax.pretrained.save import save_policy, save_scalar

__all__ = [
    "PretrainedError",
    "check_weights",
    "gguf_tokenizer",
    "load_params",
    "read_model_config",
    "save_policy",
    "save_scalar",
]
