"""configs/smollm2_mbpp.py cut short: an open model on a published benchmark, every stage."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from smollm2 import smollm2_file

ROOT = Path(__file__).parents[1]
MBPP = Path(os.environ.get("PRM_JAX_MBPP", ROOT.parent / "shared" / "data" / "mbpp.jsonl"))
SHORTER = (
    "--sft.steps=1", "--ppo.steps=1", "--ppo.rollouts=4", "--ppo.minibatches=1",
    "--label.checkpoints=1", "--label.prompts=2", "--label.validation-prompts=1",
    "--label.samples-per-prefix=2", "--label.wave=2", "--prm.steps=1", "--prm.batch-size=4",
    "--sft.batch-size=4", "--evaluate.first=4", "--device-batch=4",
)  # fmt: skip


@pytest.mark.slow
def test_smollm2_goes_through_every_stage_on_mbpp(tmp_path):
    if not MBPP.is_file():
        pytest.skip(f"MBPP is not at {MBPP}: set PRM_JAX_MBPP to a copy of mbpp.jsonl")
    command = [
        sys.executable, "-m", "prm_jax.train", "--config", ROOT / "configs/smollm2_mbpp.py",
        "--workdir", tmp_path / "run", "--model.path", smollm2_file(tmp_path),
        "--problems.name", f"mbpp:{MBPP}", "--max-prompt-tokens=4096", *SHORTER,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert {name: arm["pass_at_1"]["n"] for name, arm in results["arms"].items()} == {
        "sft": 4, "rl": 4, "rl_prm": 4
    }  # fmt: skip
    rows = (tmp_path / "run/evaluate/sft.jsonl").read_text().splitlines()
    # It can write Python: most answers open with a function, as they were asked to.
    assert sum(json.loads(row)["completion"].startswith("def ") for row in rows) >= 2
    labels = (tmp_path / "run/label/labels.jsonl").read_text().splitlines()
    assert len(labels) == 3 and all(json.loads(row)["end_token"] for row in labels)
