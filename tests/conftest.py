"""Tests check every annotated shape and dtype: jaxtyping with beartype, on import."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

# types.py is left out: its pytrees must also hold shardings and abstract shapes.
install_import_hook(
    [
        f"prm_jax.{room}"
        for room in ("rl", "model", "steps", "problems", "sharding", "tokenizer", "metrics")
    ],
    "beartype.beartype",
)
