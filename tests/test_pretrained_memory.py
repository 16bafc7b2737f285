"""Import never holds the model twice: the largest memory of a process that does nothing else."""

import json
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import tiny_checkpoints

from prm_jax.pretrained.safetensors import write_safetensors

IMPORT = """
import resource, sys
import jax
import numpy as np
jax.config.update("jax_num_cpu_devices", 8)
from prm_jax.config import MeshConfig
from prm_jax.model.heads import PolicyModel
from prm_jax.pretrained import load_params, read_model_config
from prm_jax.sharding import make_mesh

folder, fsdp, tensor = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
mesh = make_mesh(MeshConfig(1, fsdp, tensor))
config = read_model_config(folder)
model = PolicyModel(config, config.vocab_size, 0)
jax.device_put(np.ones(8)).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
params = load_params(folder, model, mesh, dtype="bfloat16")
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(1024 * before, 1024 * after, sum(x.nbytes for x in jax.tree.leaves(params)))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("fsdp", "tensor"), [(8, 1), (2, 4)])
def test_importing_layers_of_a_7b_model_peaks_below_1_3_times_their_size(tmp_path, fsdp, tensor):
    # Two of Llama 2 7B's 32 layers and its vocabulary: 1.3 GB of bfloat16.
    config = tiny_checkpoints.CONFIGS["llama 2, full attention, untied"] | {
        "hidden_size": 4096, "intermediate_size": 11_008, "num_attention_heads": 32,
        "num_key_value_heads": 32, "head_dim": 128, "vocab_size": 32_000,
    }  # fmt: skip
    shapes = tiny_checkpoints.shapes(config)
    some = np.random.default_rng(0).normal(size=1 << 20).astype(ml_dtypes.bfloat16)
    tensors = ((name, np.resize(some, shape)) for name, shape in shapes.items())
    write_safetensors(tmp_path, shapes, some.dtype, tensors)
    (tmp_path / "config.json").write_text(json.dumps(config))
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", IMPORT, str(tmp_path), str(fsdp), str(tensor)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    (tmp_path / "model.safetensors").unlink()  # pytest would keep it
    assert done.returncode == 0, done.stderr
    before, after, size = map(int, done.stdout.split())
    assert size == 2 * sum(int(np.prod(shape)) for shape in shapes.values())
    # An idle process has its 180 MB also where the model is larger.
    assert after - before < 1.3 * size, f"{(after - before) / size:.2f} x"
