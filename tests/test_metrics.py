"""Metrics: nothing is lost or doubled by a kill, bad numbers are named, progress is plain text."""

import io
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from prm_jax import metrics
from prm_jax.metrics import MetricsLog, NonFiniteMetric, Progress, read_metrics

ROOT = Path(__file__).parents[1]


def without_time(lines):
    return [{k: v for k, v in line.items() if k != "time_s"} for line in lines]


def events(directory):
    """TensorBoard records, read by hand: length, crc of the length, payload, crc of the payload."""
    found = []
    for path in sorted(directory.iterdir(), key=lambda p: int(p.name.rsplit(".", 1)[1])):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            assert int.from_bytes(data[8:12], "little") == masked_crc32c(data[:8])
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[12 + length + 4 :]
    return found


def run(workdir, steps, *, resume_at=None):
    with MetricsLog(workdir) as log:
        if resume_at is not None:
            log.rewind("rl", resume_at)
        for step in steps:
            log.log("rl", step, {"reward/outcome": jnp.float32(step / 8), "time/step_s": 0.5})


def test_lines_hold_what_was_logged(tmp_path):
    before = time.time()
    run(tmp_path, range(3))
    lines = read_metrics(tmp_path)
    assert without_time(lines) == [
        {"stage": "rl", "step": step, "reward/outcome": step / 8, "time/step_s": 0.5}
        for step in range(3)
    ]
    assert all(before - 1 <= line["time_s"] <= time.time() + 1 for line in lines)


def test_values_are_fetched_one_call_late(tmp_path, monkeypatch):
    fetched = []
    device_get = jax.device_get
    monkeypatch.setattr(
        metrics.jax, "device_get", lambda tree: fetched.append(tree) or device_get(tree)
    )
    with MetricsLog(tmp_path) as log:
        log.log("sft", 0, {"sft/loss": jnp.float32(2.0)})
        assert not fetched and read_metrics(tmp_path) == []
        log.log("sft", 1, {"sft/loss": jnp.float32(1.0)})
        assert len(fetched) == 1
        assert [line["step"] for line in read_metrics(tmp_path)] == [0]
        log.flush()
        assert [line["step"] for line in read_metrics(tmp_path)] == [0, 1]
        log.flush()  # nothing twice
        assert len(read_metrics(tmp_path)) == 2


def test_a_killed_run_resumes_to_the_same_lines(tmp_path):
    run(tmp_path / "whole", range(8))

    broken = tmp_path / "broken"
    run(broken, range(6))  # killed after step 5, in the middle of the line of step 6
    with (broken / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "rl", "step": 6, "rew')
    assert [line["step"] for line in read_metrics(broken)] == list(range(6))
    run(broken, range(4, 8), resume_at=4)  # the last checkpoint was at step 4

    assert without_time(read_metrics(broken)) == without_time(read_metrics(tmp_path / "whole"))


DIES = """
import os, signal, sys
from prm_jax.metrics import MetricsLog

log = MetricsLog(sys.argv[1])
for step in range(8):
    log.log("rl", step, {"reward/outcome": step / 8, "reward/kl": -1.0})
log.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_flushed_survives_a_kill(tmp_path):
    dead = subprocess.run([sys.executable, "-c", DIES, str(tmp_path)], cwd=ROOT)
    assert dead.returncode == -signal.SIGKILL
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(8))
    scalars = [
        (event.step, {value.tag: value.simple_value for value in event.summary.value})
        for event in events(tmp_path / "tensorboard" / "rl")
        if event.HasField("summary")
    ]
    assert scalars == [(n, {"reward/outcome": n / 8, "reward/kl": -1.0}) for n in range(8)]


def test_a_bad_number_is_on_the_disk_when_flush_names_it(tmp_path):
    log = MetricsLog(tmp_path)
    log.log("prm", 0, {"prm/loss": 1.0})
    log.log("prm", 1, {"prm/loss": math.inf})
    with pytest.raises(NonFiniteMetric):
        log.flush()
    values = [event.summary.value for event in events(tmp_path / "tensorboard" / "prm")]
    assert [value[0].simple_value for value in values if value] == [1.0, math.inf]
    log.close()


def test_a_torn_line_is_dropped_without_rewind(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"stage": "sft", "step": 0, "time_s": 1.0}\n{"sta')
    run(tmp_path, [0])
    assert [line["stage"] for line in read_metrics(tmp_path)] == ["sft", "rl"]


def test_a_file_of_nothing_but_a_torn_line_becomes_empty(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"stage": "sft"')
    MetricsLog(tmp_path).close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_line_torn_in_the_middle_is_an_error(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"sta\n{"stage": "sft", "step": 0, "time_s": 1.0}\n')
    with pytest.raises(json.JSONDecodeError):
        read_metrics(tmp_path)


def test_rewind_leaves_other_stages_and_earlier_steps(tmp_path):
    with MetricsLog(tmp_path) as log:
        for stage in ("sft", "rl"):
            for step in range(4):
                log.log(stage, step, {"loss": 1.0})
        log.rewind("rl", 1)  # the pending line of step 3 goes too
    kept = [(line["stage"], line["step"]) for line in read_metrics(tmp_path)]
    assert kept == [("sft", step) for step in range(4)] + [("rl", 0)]


def test_tensorboard_holds_the_values_and_is_told_of_a_rewind(tmp_path):
    run(tmp_path, range(4))
    run(tmp_path, range(2, 4), resume_at=2)
    found = events(tmp_path / "tensorboard" / "rl")
    values = [
        (event.step, value.tag, value.simple_value)
        for event in found
        for value in event.summary.value
    ]
    assert [(s, v) for s, tag, v in values if tag == "reward/outcome"] == [
        (step, step / 8) for step in (0, 1, 2, 3, 2, 3)
    ]
    # A session that starts at step 2 makes TensorBoard forget the steps from 2 on before it.
    assert [event.step for event in found if event.session_log.status == 1] == [2]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_bad_number_is_named_after_its_line_is_written(tmp_path, value):
    log = MetricsLog(tmp_path)
    log.log("rl_prm", 7, {"value/loss": 1.0, "policy/approx_kl": jnp.float32(value)})
    with pytest.raises(NonFiniteMetric, match="rl_prm step 7: policy/approx_kl is -?(nan|inf)"):
        log.log("rl_prm", 8, {"value/loss": 1.0})
    log.close()
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [7, 8]
    assert not math.isfinite(lines[0]["policy/approx_kl"])


def test_a_bad_number_in_the_last_step_is_named_on_exit(tmp_path):
    with pytest.raises(NonFiniteMetric, match="prm step 3: prm/loss"):
        with MetricsLog(tmp_path) as log:
            log.log("prm", 3, {"prm/loss": math.nan})


def test_a_bad_number_does_not_hide_the_error_that_ended_the_run(tmp_path):
    with pytest.raises(KeyError, match="the cause"):
        with MetricsLog(tmp_path) as log:
            log.log("prm", 3, {"prm/loss": math.nan})
            raise KeyError("the cause")
    assert [line["step"] for line in read_metrics(tmp_path)] == [3]


def test_what_is_no_scalar_is_refused(tmp_path):
    with MetricsLog(tmp_path) as log:
        with pytest.raises(ValueError, match=r"'prm/loss' of prm has shape \(2,\)"):
            log.log("prm", 0, {"prm/loss": jnp.zeros(2)})
        with pytest.raises(ValueError, match="'step' of prm is not allowed"):
            log.log("prm", 0, {"step": 1.0})
    assert read_metrics(tmp_path) == []


def test_no_file_no_metrics(tmp_path):
    assert read_metrics(tmp_path) == []


# -------------------------------------------------------------------------------------- progress


class Clock:
    def __init__(self, monkeypatch):
        self.now_s = 100.0
        monkeypatch.setattr(metrics.time, "monotonic", lambda: self.now_s)


def test_progress_lines(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    with Progress(40, "rl") as progress:
        for step in range(40):
            clock.now_s += 4.0
            progress.update(**{"reward/outcome": jnp.float32(step / 100)})
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    # A step takes 4 s, so every third step is the first one 10 s after the line before.
    assert len(lines) == 14
    assert lines[0] == "rl 3/40, 0.25 steps/s, 2 min 28 s left, reward/outcome 0.02"
    assert lines[-2] == "rl 39/40, 0.25 steps/s, 4 s left, reward/outcome 0.38"
    assert lines[-1] == "rl 40/40, 0.25 steps/s, 2 min 40 s, reward/outcome 0.39"
    assert "\r" not in err and "\x1b" not in err


def test_progress_of_resumed_work_counts_only_its_own_rate(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    with Progress(100, "label", "programs", initial=60) as progress:
        clock.now_s += 10.0
        progress.update(20)
    # 20 in 10 s, so 20 more take 10 s.
    assert capsys.readouterr().err == "label 80/100, 2 programs/s, 10 s left\n"


def test_progress_that_ends_early_says_where(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        with Progress(10, "sft") as progress:
            clock.now_s += 1.0
            progress.update(2)
            raise KeyboardInterrupt
    assert capsys.readouterr().err == "sft 2/10, 2 steps/s, 4 s left\n"


def test_progress_with_nothing_to_do_is_silent(capsys):
    with Progress(5, "sft", initial=5):
        pass
    assert capsys.readouterr() == ("", "")


def test_progress_on_a_terminal_is_a_bar(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(4, "rl", initial=1) as progress:
        for _ in range(3):
            progress.update(loss=0.25)
    assert "\r" in terminal.getvalue()
    last = terminal.getvalue().split("\r")[-1]
    assert "rl: 100%" in last and "4/4" in last and "loss 0.25" in last


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0.0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (3840.0, "1 h 4 min"),
        (math.inf, "unknown time"),
    ],
)
def test_duration(seconds, text):
    assert metrics.duration(seconds) == text
