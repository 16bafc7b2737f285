"""The plan with the TPU's own compiler, on the machines that libtpu is made for."""

import json
from pathlib import Path

import pytest

from prm_jax.plan.__main__ import main

pytest.importorskip("libtpu")

CONFIG = """\
from prm_jax.config import Config, DenseConfig, ModelConfig, PPOConfig

MODEL = ModelConfig(
    path="not-here", layers=3, embed=256, heads=2, kv_heads=2, head_dim=128, mlp=512,
    vocab_size=1024, dtype="bfloat16", remat="full", scan_layers=True,
)


def get_config():
    return Config(
        max_prompt_tokens=8, max_completion_tokens=248, model=MODEL,
        ppo=PPOConfig(rollouts=16, minibatches=2, advantage="group", samples_per_prompt=2),
        dense=DenseConfig(enabled=False), value_init=False,
    )
"""


def test_only_gradients_travel_between_slices(tmp_path: Path):
    (tmp_path / "config.py").write_text(CONFIG)
    result = tmp_path / "plan.json"
    argv = ["--config", tmp_path / "config.py", "--topology", "v5e-4", "--slices", "2"]
    argv += ["--mesh.data", "2", "--mesh.fsdp", "4", "--stage", "sft"]
    assert main([*map(str, argv), "--json", str(result)]) == 0
    (step,) = json.loads(result.read_text())["programs"]
    n_params = 1024 * 256 + 3 * (4 * 256 * 256 + 3 * 256 * 512)
    assert abs(step["argument_bytes"] / (12 * n_params / 4) - 1) < 0.05
    # A chip's part of the gradients, in float32 or bfloat16; little else.
    assert 0.4 < step["bytes_moved"]["between slices"] / (4 * n_params / 4) < 1.2
    assert step["bytes_moved"]["fsdp"] > 0 and "data" not in step["bytes_moved"]


def test_a_small_model_is_planned_for_eight_chips(tmp_path: Path):
    (tmp_path / "config.py").write_text(CONFIG)
    result = tmp_path / "plan.json"
    argv = ["--config", tmp_path / "config.py", "--topology", "v5e-8", "--stage", "ppo"]
    assert main([*map(str, argv), "--json", str(result)]) == 0
    rows = {row["name"]: row for row in json.loads(result.read_text())["programs"]}
    update = rows["ppo/policy_update"]
    # float32 parameters and two moments, over eight chips.
    n_params = 1024 * 256 + 3 * (4 * 256 * 256 + 3 * 256 * 512)
    assert abs(update["argument_bytes"] / (12 * n_params / 8) - 1) < 0.05
    assert update["fits"] and update["temp_bytes"] > 0
    # Two minibatches, each with layers forward, again and backward: 8 operations for each
    # weight of a layer and token, 6 for each of the head.
    layers, head = n_params - 1024 * 256, 1024 * 256
    products = 16 * 256 * (8 * layers + 6 * head)
    assert products <= update["floor_s"] * 8 * 197e12 < 1.3 * products
    assert update["modelled_s"] > 0.5 * update["floor_s"]
    # Parameters are gathered forward and backward in bfloat16, and gradients scattered.
    least = 2 * 2 * (2 * 2 * layers) * 7 / 8
    assert least < update["bytes_moved"]["fsdp"] < 4 * least
    assert rows["ppo/sample"]["unbounded_loops"] > 0
    # While decoding, parameters stay where they are: gathered for each of 248 tokens, as they are
    # once for the prompts, they alone would be eight times this.
    gathered = 2 * (layers + head) * 7 / 8
    assert rows["ppo/sample"]["bytes_moved"]["fsdp"] < 248 * gathered / 8
