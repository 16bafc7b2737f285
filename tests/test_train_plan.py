"""A run whose responses open with a plan: its label and reward, and what it decides."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prm_jax.config import Config, ConfigError, DenseConfig, PromptsConfig

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("planned") / "run"
    done = subprocess.run(
        [
            sys.executable, "-m", "prm_jax.train", "--config", str(ROOT / "tests/micro.py"),
            "--workdir", str(workdir), "--prompts.plan", "--max-completion-tokens", "48",
            "--dense.form", "plan", "--prm.repairs",
        ],
        env=os.environ | {"JAX_PLATFORMS": "cpu"}, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return workdir


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_plans_are_written_labelled_and_measured(planned):
    labels = rows(planned / "label/labels.jsonl")
    with_plan = [row for row in labels if row["kinds"][:1] == ["plan"]]
    assert len(with_plan) > 0.8 * len(labels)  # as SFT taught it
    failing = [row for row in with_plan if not row["passed"]]
    said = {row["labels"][0] for row in failing}
    assert said == {1, -1}  # some plans can be saved, and some not
    for row in failing:
        assert "plan" not in row["kinds"][1:]
        assert row["class"] == ("wrong" if row["labels"][0] == -1 else "revised")
    found = json.loads((planned / "results.json").read_text())
    for arm in found["arms"].values():
        plans = arm["plans"]
        assert plans["problems"] == 8 and plans["within_plans"] >= 0
        assert plans["plan_share"] is None or plans["plan_share"] <= 1
    scored = rows(planned / "evaluate/scored.jsonl")
    assert any(line["kind"] == "plan" for row in scored for line in row["lines"])
    assert "plan" in (planned / "report.html").read_text()


def test_repairs_pass_and_keep_what_could_be_saved(planned):
    labels = [row for row in rows(planned / "label/labels.jsonl") if row["split"] == "train"]
    repairs = rows(planned / "label/repairs.jsonl")
    saved = [row for row in labels if not row["passed"] and row["class"] == "revised"]
    assert len(repairs) == len(saved) > 0
    for row, repair in zip(saved, repairs, strict=True):
        assert repair["task_id"] == row["task_id"] and repair["passed"]
        assert set(repair["labels"]) <= {0, 1} and not any(repair["samples"])
        last = max(i for i, label in enumerate(row["labels"]) if label == 1)
        kept = row["end_token"][last] + 1
        assert repair["ids"][:kept] == row["ids"][:kept]
    prm = json.loads((planned / "prm/done.json").read_text())
    assert prm["responses"] == len(labels) + len(repairs)


def test_lines_relative_to_a_plan_need_plans():
    with pytest.raises(ConfigError, match="dense.form = 'plan' is not allowed without"):
        Config(dense=DenseConfig(form="plan"))
    with pytest.raises(ConfigError, match="true with dense.form = 'plan'"):
        DenseConfig(form="plan", plan=False)
    Config(dense=DenseConfig(form="plan"), prompts=PromptsConfig(plan=True))
