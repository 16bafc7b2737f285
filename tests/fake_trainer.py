"""Stands for `python -m prm_jax.train`: leaves the files of each stage and trains nothing.

FAKE_FAIL names stages that fail ("rl:1" with seed 1), FAKE_HANG such that never end, FAKE_LOG a
file to which each stage that is made adds a line.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# Of 4 problems with 2 samples each: how many pass, by seed.
PASSES = {"sft": [1, 2, 1], "rl": [4, 4, 3], "rl_prm": [6, 7, 5]}


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("config", "workdir", "stages"):
        parser.add_argument(f"--{name}")
    arguments = parser.parse_args()
    # As load_config would, without the seconds that importing JAX takes.
    text = Path(arguments.config).with_name("run.json").read_text()
    config = json.loads(text, object_hook=lambda fields: SimpleNamespace(**fields))
    workdir = Path(arguments.workdir)
    for stage in arguments.stages.split(","):
        if (workdir / stage / "done.json").exists() and stage != "evaluate":
            continue
        with open(os.environ["FAKE_LOG"], "a") as log:
            log.write(f"{workdir.name} {stage}\n")
        event = f"{stage}:{config.seed}"
        if event in os.environ.get("FAKE_FAIL", "").split():
            sys.exit(f"NaN in {event}")
        if event in os.environ.get("FAKE_HANG", "").split():
            (workdir / "hangs").touch()
            time.sleep(60)
        (workdir / stage / "policy").mkdir(parents=True, exist_ok=True)
        (workdir / stage / "policy/params").write_text(f"{stage} of seed {config.seed}")
        if stage == "evaluate":
            evaluate(config, workdir)
        summary = {"programs_generated": config.ppo.steps * config.ppo.rollouts}
        if stage == "label":
            summary = {"cost": {"responses": 10, "completions": 70, "executions": 30}}
        if stage in ("sft", "prm", "evaluate"):
            summary = {}
        if stage == "sft":
            (workdir / "problems").mkdir(exist_ok=True)
            (workdir / "problems/data").write_text("problems")
            (workdir / "tokenizer.json").write_text("tokenizer")
        (workdir / stage / "done.json").write_text(json.dumps(summary))


def evaluate(config: Any, workdir: Path) -> None:
    assert (workdir / "tokenizer.json").exists() and (workdir / "problems/data").exists()
    journal = workdir / "evaluate/journal.jsonl"
    known = {}
    if journal.exists():
        lines = journal.read_text().splitlines()
        known = {line["key"]: line["value"] for line in map(json.loads, lines)}
    samples = config.evaluate.samples
    arms = {}
    for arm in PASSES:
        if not (workdir / arm / "done.json").exists():
            continue
        if f"{arm}/0" not in known:
            with journal.open("a") as file:
                file.write(json.dumps({"key": f"{arm}/0", "value": workdir.name}) + "\n")
        looks = f"{arm}/respond/0"  # at what a PRM says of this policy
        if (workdir / "prm/done.json").exists() and looks not in known:
            with journal.open("a") as file:
                file.write(json.dumps({"key": looks, "value": workdir.name}) + "\n")
        right = PASSES[arm][config.seed % 3] * samples // 2
        if config.problems.held_out == "final":
            right -= 1
        passed = [i < right for i in range(4 * samples)]
        rows = [{"task_id": f"test/{i // samples}", "passed": p} for i, p in enumerate(passed)]
        longer = [{"task_id": "test_long/0", "passed": True}] * samples
        text = "".join(json.dumps(row) + "\n" for row in rows + longer)
        (workdir / f"evaluate/{arm}.jsonl").write_text(text)
        rate = {"value": sum(passed) / len(passed), "low": 0.0, "high": 1.0, "n": 4}
        arms[arm] = {
            "pass_at_1": rate,
            "by_horizon": {"3": rate, "10": rate},
            "samples": samples,
            "temperature": config.evaluate.temperature,
            "evaluated_by": known.get(f"{arm}/0", workdir.name),
        }
    results = {"arms": arms, "versions": {"python": "3"}}
    if (workdir / "label/done.json").exists():
        results["label_cost"] = {"completions_per_label": 1.5}
        results["labels"] = {"oracle_first_error_exact": 0.75}
    learned = "rl_prm" in arms and config.dense.prm_updates > 0
    if learned or (workdir / "prm/done.json").exists():
        results["prm"] = {"by_step_of_rl_prm": {}}
    (workdir / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
