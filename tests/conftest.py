"""Tests check every annotated shape and dtype (jaxtyping with beartype, on import), and run on
eight CPU devices, so that a mesh of one and a mesh of eight can be compared in one process."""

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["PRM_JAX_VERDICTS"] = ""  # every test judges for itself
# What one test compiled, others need not, nor the commands that they run. Each worker has a folder
# of its own, since JAX does not write these files in one step.
os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="prm_jax-tests-compiled-")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax
from jaxtyping import install_import_hook

atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
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
