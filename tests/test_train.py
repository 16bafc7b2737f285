"""The program that a person starts: one run, killed and not killed, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import tokenizers

from prm_jax import train
from prm_jax.config import ConfigError

ROOT = Path(__file__).parents[1]
MICRO = ROOT / "tests/micro.py"


def command(workdir: Path, *overrides: str) -> list[str]:
    python = [sys.executable, "-m", "prm_jax.train", "--config", str(MICRO)]
    return [*python, "--workdir", str(workdir), "--evaluate.inspect=4", *overrides]


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """One compilation cache for all runs of this file; one device, as on a laptop."""
    cache = tmp_path_factory.mktemp("compiled")
    return os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PLATFORMS": "cpu"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, environment) -> Path:
    """The workdir of a run that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    done = subprocess.run(
        command(workdir), env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return workdir


def results(workdir: Path) -> dict:
    found = json.loads((workdir / "results.json").read_text())
    del found["label_cost"]["seconds"]
    return found


def metrics(workdir: Path) -> list[dict]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if not name.startswith("time")}
        for line in lines
    ]


def arrays(checkpoint: Path) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, read by tensorstore itself."""
    kvstore = {"driver": "ocdbt", "base": f"file://{checkpoint / 'default'}/"}
    keys = tensorstore.KvStore.open(kvstore).result().list().result()
    names = sorted({key.decode().rsplit("/", 1)[0] for key in keys if key.endswith(b".zarray")})
    return {
        name: np.asarray(
            tensorstore.open({"driver": "zarr", "kvstore": kvstore, "path": name}).result()
        )
        for name in names
    }


KILL_WHEN = (
    "sft/state/200", "rl/state/2", "label/journal.jsonl", "prm/state/4", "rl_prm/state/1",
    "evaluate/rl_prm.jsonl",  # what follows holds PRM and critics against the policies
)  # fmt: skip


def test_a_run_killed_at_any_moment_ends_with_the_same_numbers(whole, tmp_path, environment):
    workdir = tmp_path / "killed"
    for sign in KILL_WHEN:
        process = subprocess.Popen(
            command(workdir), env=environment, cwd=ROOT, stderr=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 300
        while not (workdir / sign).exists():
            assert process.poll() is None, process.stderr.read()[-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stderr.close()
    done = subprocess.run(
        command(workdir), env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "sft: finished before" in done.stderr
    assert results(workdir) == results(whole)
    assert metrics(workdir) == metrics(whole)
    for kind in ("sft/policy/500", "rl/policy/4", "prm/model/12", "rl_prm/policy/4"):
        ours, theirs = arrays(workdir / kind), arrays(whole / kind)
        assert ours.keys() == theirs.keys() and len(ours) > 5
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=f"{kind} {name}")


def test_results_hold_what_the_documentation_says(whole):
    found = results(whole)
    assert set(found["arms"]) == {"sft", "rl", "rl_prm"}
    for arm in found["arms"].values():
        rate = arm["pass_at_1"]
        assert 0 <= rate["low"] <= rate["value"] <= rate["high"] <= 1 and rate["n"] == 8
        assert sum(row["n"] for row in arm["by_horizon"].values()) == 8
        assert set(arm["test_long"]["by_horizon"]) == {"4"}
        if "exploration" in arm:
            explored = arm["exploration"]
            assert 0 < explored["solved"] <= explored["asked"] <= explored["problems"] == 24
            assert explored["solved"] <= explored["distinct_solutions"]
    for name in ("exploration", "critic"):
        assert [arm for arm in found["arms"] if name in found["arms"][arm]] == ["rl", "rl_prm"]
    assert found["arms"]["rl"]["critic"]["prefixes"] == 4
    assert found["prm"]["by_step_of_rl_prm"].keys() == {"2", "4"}
    assert all(row["responses"] == 32 for row in found["prm"]["by_step_of_rl_prm"].values())
    assert found["prm"]["as_critic"]["prefixes"] == 4
    assert found["prm"]["reranking"]["responses_per_problem"] == 8
    cost = json.loads((whole / "results.json").read_text())["label_cost"]
    assert cost["responses"] == 48 and cost["executions"] <= cost["completions"]
    assert cost["completions"] % 2 == 0  # whole waves
    assert 0 < cost["failing"] < 48 and cost["probes"] > 20  # the run does meet every case


def test_candidates_are_the_best_checkpoints_many_to_each_validation_prompt(whole):
    rows, labels = (
        [json.loads(line) for line in (whole / f"label/{name}.jsonl").read_text().splitlines()]
        for name in ("candidates", "labels")
    )
    asked = list(dict.fromkeys(r["task_id"] for r in labels if r["split"] == "validation"))
    assert [row["task_id"] for row in rows] == [task for task in asked for _ in range(8)]
    assert len({tuple(row["ids"]) for row in rows}) > len(asked)
    assert all(row["end_token"][-1] < len(row["ids"]) for row in rows if row["end_token"])
    passed = Counter(r["checkpoint"] for r in labels if r["split"] == "train" and r["passed"])
    journal = [
        json.loads(line)["key"] for line in (whole / "label/journal.jsonl").read_text().splitlines()
    ]
    (best,) = {key.split("/")[1] for key in journal if key.startswith("candidates/")}
    assert int(best) == max((2, 4), key=lambda step: passed[step])  # the first of equals
    found = results(whole)["prm"]["reranking"]
    assert found["pass_rate"] == sum(row["passed"] for row in rows) / len(rows)


def test_labels_keep_their_counts_and_are_monotone(whole):
    rows = [json.loads(line) for line in (whole / "label/labels.jsonl").read_text().splitlines()]
    probed = 0
    for row in rows:
        assert len(row["labels"]) == len(row["kinds"]) == len(row["passes"]) == len(row["samples"])
        signs = [label for label in row["labels"] if label]
        assert signs == sorted(signs, reverse=True)  # +1, then -1
        if row["passed"]:
            assert set(signs) <= {1} and not any(row["samples"])
        for label, passes, samples, kind in zip(
            row["labels"], row["passes"], row["samples"], row["kinds"], strict=True
        ):
            assert passes <= samples <= 4
            if samples and kind == "code":
                probed += 1
                assert (label == 1) == (passes > 0)
        if not row["passed"] and row["labels"]:
            probes = sum(samples > 0 for samples in row["samples"])
            assert probes <= np.ceil(np.log2(len(row["labels"]) + 1))
    assert probed > 0


def test_the_workdir_holds_config_versions_curves_and_report(whole):
    assert json.loads((whole / "config.json").read_text())["seed"] == 0
    assert json.loads((whole / "versions.json").read_text())["jax"]
    assert list((whole / "tensorboard").rglob("events*"))
    assert "<html" in (whole / "report.html").read_text()[:200]
    assert (whole / "evaluate/scored.jsonl").exists()


def test_running_again_repeats_nothing(whole, environment):
    before = (whole / "metrics.jsonl").read_text()
    done = subprocess.run(
        command(whole, "--stages", "sft,rl,label,prm,rl_prm"),
        env=environment, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stderr.count("finished before") == 5
    assert (whole / "metrics.jsonl").read_text() == before


# ---------------------------------------------------------------------------------- refusals


def test_other_settings_in_a_used_workdir_are_refused_by_name(whole, capsys):
    argv = command(whole, "--ppo.clip-low=0.1")[3:]
    assert train.main(argv) == 2
    assert "ppo.clip_low: 0.2 -> 0.1" in capsys.readouterr().err


def test_settings_may_change_until_a_stage_has_read_them(tmp_path):
    workdir = tmp_path / "run"
    config = train.parse(["--config", str(MICRO)]).config

    def opens(*overrides: str) -> bool:
        changed = train.parse(["--config", str(MICRO), *overrides]).config
        try:
            train.open_workdir(workdir, changed)
        except ConfigError:
            return False
        return True

    train.open_workdir(workdir, config)
    assert opens("--max-prompt-tokens=50") and opens()  # nothing has begun
    (workdir / "sft").mkdir()
    assert not opens("--max-prompt-tokens=50") and not opens("--sft.steps=3")
    assert opens("--ppo.steps=8") and opens()
    (workdir / "rl").mkdir()
    assert not opens("--ppo.steps=8") and not opens("--label.checkpoints=1")
    assert opens("--dense.lam-fail=0.1", "--no-value-init") and opens()
    (workdir / "evaluate").mkdir()
    assert not opens("--dense.lam-fail=0.1") and not opens("--no-value-init")
    assert opens("--mesh.data=2", "--mesh.fsdp=4", "--sandbox.jobs=1")  # decide no number
    assert not opens("--sandbox.cpu-s=1")


def test_what_only_the_data_can_tell_is_refused_and_the_workdir_can_be_used_again(tmp_path, capsys):
    workdir = tmp_path / "run"
    assert train.main(command(workdir, "--max-prompt-tokens=5")[3:]) == 2
    said = capsys.readouterr().err
    assert "max_prompt_tokens = 5" in said and "--max-prompt-tokens " in said
    assert train.main(command(workdir, "--max-completion-tokens=6")[3:]) == 2
    assert "max_completion_tokens = 6" in capsys.readouterr().err
    assert train.main(command(workdir, "--tokenizer.path=nowhere.json")[3:]) == 2
    assert "tokenizer.path = 'nowhere.json'" in capsys.readouterr().err
    assert train.main(command(tmp_path / "empty", "--stages", "report")[3:]) == 2
    assert "error: " in capsys.readouterr().err


def test_a_tokenizer_that_cannot_spell_programs_is_refused(tmp_path, capsys):
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"x": 0, "</s>": 1}, unk_token="x"))
    words.add_special_tokens(["</s>"])
    words.decoder = tokenizers.decoders.ByteLevel()
    words.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
    words.save(str(tmp_path / "tokenizer.json"))
    argv = command(tmp_path / "run", f"--tokenizer.path={tmp_path / 'tokenizer.json'}")[3:]
    assert train.main(argv) == 2
    assert "cannot spell the solution of" in capsys.readouterr().err


def test_an_interrupt_says_how_to_go_on(monkeypatch, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "run_stages", interrupted)
    assert train.main(["--config", str(MICRO)]) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_a_workdir_that_cannot_be_made_and_a_config_of_another_kind_are_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert train.main(command(tmp_path / "file/run")[3:]) == 2
    assert "cannot be made" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{}")
    assert train.main(["--config", str(tmp_path / "config.json")]) == 2
    assert "must be a .py file" in capsys.readouterr().err


def test_a_workdir_in_use_is_refused(tmp_path, capsys):
    with train.locked(tmp_path / "run"):
        assert train.main(command(tmp_path / "run")[3:]) == 2
    assert "in use by another process" in capsys.readouterr().err


def test_a_stage_without_what_it_needs_is_refused_before_any_work(tmp_path, capsys):
    argv = command(tmp_path / "new", "--stages", "rl_prm")[3:]
    assert train.main(argv) == 2
    assert "'rl_prm' needs 'prm'" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_line_rewards_are_checked_where_they_are_paid(monkeypatch, tmp_path, capsys):
    """Under partial credit those of the default could outweigh a test; the baseline pays none."""
    ran = []
    monkeypatch.setattr(train, "_run_stage", lambda stage, run: ran.append(stage))
    for stages, code in (("sft,rl", 0), ("sft,rl,label,prm,rl_prm", 2)):
        argv = ["--stages", stages, "--ppo.outcome=partial"]
        assert train.main(command(tmp_path / f"{code}", *argv)[3:]) == code
    assert ran == ["sft", "rl"] and "dense.lam_fail" in capsys.readouterr().err


def test_bad_values_are_refused_by_name(tmp_path, capsys):
    for override, said in (
        ("--ppo.clip-low=-0.1", "ppo.clip_low"),
        ("--dense.lam-fail=0.9", "allow_rank_inversion"),
        ("--ppo.gamma=abc", "ppo.gamma"),
        ("--ppo.clip-lo=0.1", "ppo.clip-low"),
    ):
        argv = command(tmp_path / "new", override)[3:]
        try:
            code = train.main(argv)
        except SystemExit as exit_:  # the command-line parser's own refusals
            code = exit_.code
        captured = capsys.readouterr()
        assert code == 2
        text = captured.err + captured.out
        assert said in text or said.replace("_", "-") in text, text
    assert not (tmp_path / "new").exists()


def test_stages_run_in_order_and_unknown_ones_get_a_suggestion():
    assert train.parse_stages("report, sft") == ["sft", "report"]
    with pytest.raises(ConfigError, match="did you mean 'rl_prm'"):
        train.parse_stages("rlprm")


def test_overrides_win_over_the_config_file():
    arguments = train.parse(["--config", str(MICRO), "--ppo.clip-low=0.1", "--no-value-init"])
    assert arguments.config.ppo.clip_low == 0.1
    assert not arguments.config.value_init
    assert arguments.config.ppo.steps == 4
    assert arguments.workdir == Path("runs/micro")
