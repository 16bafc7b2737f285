"""Tests check every annotated shape and dtype (jaxtyping with beartype, on import), and run on
eight CPU devices, so that a mesh of one and a mesh of eight can be compared in one process."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["PRM_JAX_VERDICTS"] = ""  # every test judges for itself

import jax
from jaxtyping import install_import_hook

jax.config.update("jax_num_cpu_devices", 8)

# types.py is left out: its pytrees must also hold shardings and abstract shapes.
install_import_hook(
    [
        f"prm_jax.{room}"
        for room in (
            "rl",
            "model",
            "steps",
            "problems",
            "sharding",
            "tokenizer",
            "tokenizer_files",
            "prompts",
            "metrics",
        )
    ],
    "beartype.beartype",
)
