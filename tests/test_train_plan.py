"""A run whose responses open with a plan: its label and reward, and what it decides."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from characters import Characters, Completions

from prm_jax.config import (
    Config,
    ConfigError,
    DenseConfig,
    MeshConfig,
    PRMConfig,
    PromptsConfig,
    SFTConfig,
)
from prm_jax.sharding import make_mesh
from prm_jax.stages.opening import check_fit
from prm_jax.types import CallTests, Problem

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("planned") / "run"
    done = subprocess.run(
        [
            sys.executable, "-m", "prm_jax.train", "--config", str(ROOT / "tests/micro.py"),
            "--workdir", str(workdir), "--prompts.plan", "--max-completion-tokens", "48",
            "--dense.form", "plan", "--prm.loss-on", "all", "--prm.repairs",
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
        assert plans["problems"] == 8 and 0 < plans["pass_rate"] < 1
        parts = [plans[f"{part}_plans"] for part in ("between", "within")]
        assert plans["plan_share"] == pytest.approx(parts[0] / sum(parts))
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
    planned = PromptsConfig(plan=True)
    with pytest.raises(ConfigError, match="prm.loss_on = 'first_error' is not allowed with dense"):
        Config(dense=DenseConfig(form="plan"), prompts=planned)
    Config(dense=DenseConfig(form="plan"), prompts=planned, prm=PRMConfig(loss_on="all"))
    Config(dense=DenseConfig(form="plan", source="oracle"), prompts=planned)


def test_sft_needs_plans_to_imitate_and_a_model_that_follows_instructions_does_not():
    problem = Problem("p", "def f():\n", CallTests(("assert f() == 1",)), solution="    return 1")
    tokenizer = Characters()
    for sft, plan in ((1, ""), (1, "one"), (0, "")):
        config = Config(
            prompts=PromptsConfig(plan=True), sft=SFTConfig(steps=sft), max_completion_tokens=60
        )
        some = [dataclasses.replace(problem, plan=plan)]
        run = SimpleNamespace(
            config=config,
            mesh=make_mesh(MeshConfig(), jax.devices()[:1]),
            tokenizer=tokenizer,
            prompts=Completions(),
            prompt_ids=lambda problem: tokenizer.encode(problem.prompt),
            problems=SimpleNamespace(
                sft=some, train=some, validation=some, held_out={"test": some}, asked={}
            ),
        )
        if sft and not plan:
            with pytest.raises(ConfigError, match="the solution of p has no plan for SFT"):
                check_fit(run)  # type: ignore[arg-type]
        else:
            check_fit(run)  # type: ignore[arg-type]
