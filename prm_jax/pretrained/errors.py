"""The one error of this room."""

from prm_jax.config import ConfigError


class PretrainedError(ConfigError):
    """Weights cannot be read or written; names the file, what is wrong with it, and the mend."""
