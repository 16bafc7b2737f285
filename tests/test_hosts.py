"""Several processes do what one does: the same numbers, written once; and none waits for ever."""

import dataclasses
import json
import shutil
import signal
import time
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from host_processes import LOST_S, MICRO, TRAIN, Hosts, training
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_jax import hosts
from prm_jax.checkpoint import Checkpoints
from prm_jax.config import ConfigError, MeshConfig
from prm_jax.hosts import rows as rows_module
from prm_jax.hosts import together
from prm_jax.sharding import batch_sharding, make_mesh, replicated
from prm_jax.stages import judging
from prm_jax.stages.journal import Journal
from prm_jax.types import CallTests, Problem, Verdict

SHORT = (
    "--sft.steps=250", "--sft.checkpoint-every=1000", "--model.layers=1", "--ppo.steps=3",
    "--ppo.checkpoint-every=1000", "--label.checkpoints=1", "--label.prompts=8",
    "--label.validation-prompts=4", "--prm.steps=4", "--evaluate.first=4", "--evaluate.samples=1",
    "--mesh.data=1", "--mesh.fsdp=-1",
    # Short problems: so little SFT solves some of them, however a machine's rounding samples.
    "--problems.chains.train-horizons", "1", "2",
)  # fmt: skip


def metrics(workdir: Path) -> list[dict]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("time")} for line in lines]


def results(workdir: Path) -> dict:
    found = json.loads((workdir / "results.json").read_text())
    del found["label_cost"]["seconds"]
    return found


def assert_same_numbers(ours: list[dict], theirs: list[dict]) -> None:
    """To float32 rounding; every step is logged once."""
    assert [(m["stage"], m["step"]) for m in ours] == [(m["stage"], m["step"]) for m in theirs]
    assert_close(ours, theirs)


def assert_close(ours, theirs) -> None:
    match ours:
        case dict():
            assert ours.keys() == theirs.keys()
            for name in ours:
                assert_close(ours[name], theirs[name])
        case list():
            for one, other in zip(ours, theirs, strict=True):
                assert_close(one, other)
        case float():
            assert ours == pytest.approx(theirs, rel=2e-5, abs=1e-6)
        case _:
            assert ours == theirs


def assert_same_run(ours: Path, theirs: Path) -> None:
    assert_same_numbers(metrics(ours), metrics(theirs))
    assert_close(results(ours), results(theirs))
    for file in ("label/labels.jsonl", "evaluate/sft.jsonl", "evaluate/rl_prm.jsonl"):
        assert (ours / file).read_text() == (theirs / file).read_text()
    rates = [m["rollout/pass_rate"] for m in metrics(theirs) if m["stage"] == "rl"]
    assert 0 < max(rates)  # or there is little to compare


def stopped_in_sft(n: int, devices: int, workdir: Path) -> int:
    """Starts a run, tells its last process to stop, and returns the step that it has come to."""
    with training(n, devices, workdir, *SHORT, "--stages=sft") as run:
        run.wait_for(workdir / "metrics.jsonl")
        while len(metrics(workdir)) < 5:
            assert run.processes[0].poll() is None
            time.sleep(0.02)
        run.processes[-1].send_signal(signal.SIGTERM)
        assert run.statuses() == [hosts.TEMPORARY] * n
        assert "the same command goes on" in run.log(0)
    (state,) = (workdir / "sft/state").iterdir()
    return int(state.name)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> tuple[Path, int]:
    """A run on one process that SIGTERM stopped in SFT, and the step that it had come to."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    return workdir, stopped_in_sft(1, 2, workdir)


@pytest.fixture(scope="module")
def trained(stopped) -> Path:
    """The workdir with SFT done, for any number of processes to go on from."""
    workdir, _ = stopped
    with training(1, 2, workdir, *SHORT, "--stages=sft") as run:
        run.succeed()
    return workdir


def test_one_process_stops_at_a_checkpoint_and_goes_on_from_there(stopped, trained):
    _, step = stopped
    assert 5 <= step < 250  # sft.checkpoint_every asked for none
    assert [m["step"] for m in metrics(trained)] == list(range(250))


def test_two_processes_stop_at_one_step_with_the_losses_of_one_process(trained, tmp_path):
    step = stopped_in_sft(2, 1, tmp_path / "two")  # only the second process is told
    assert 5 <= step < 250
    assert len(metrics(tmp_path / "two")) == step
    assert_same_numbers(metrics(tmp_path / "two"), metrics(trained)[:step])


def test_two_processes_go_on_from_one_and_end_with_its_numbers(trained, tmp_path):
    two, one = tmp_path / "two", tmp_path / "one"
    for workdir in (two, one):
        shutil.copytree(trained, workdir)
    more = (*SHORT, "--evaluate.inspect=4")
    with training(1, 2, one, *more) as alone, training(2, 1, two, *more) as both:
        both.succeed()
        alone.succeed()
        assert "sft: finished before" in both.log(0) and "finished" not in both.log(1)
    assert_same_run(two, one)


WAITING = f"""
import sys, time
from pathlib import Path
from prm_jax import hosts
from prm_jax.hosts import watch
watch.LOST_S = {LOST_S}
hosts.join()
with hosts.watched():
    while hosts.gather(1) == [1, 1]:
        Path(sys.argv[1]).touch()
        with hosts.deadline(1, "judging 8 programs"):
            time.sleep(60 if len(sys.argv) > 2 and hosts.index() == 1 else 0)
"""


def test_a_process_that_is_killed_ends_the_others(tmp_path):
    with Hosts(2, 1, WAITING, [str(tmp_path / "begun")], tmp_path / "logs") as run:
        run.wait_for(tmp_path / "begun")
        run.processes[1].send_signal(signal.SIGKILL)
        survivor, _ = run.statuses(LOST_S + 30)
        assert survivor == hosts.TEMPORARY
        assert f"host 1 of 2 has given no sign of life for {LOST_S} s" in run.log(0)


def test_a_process_that_takes_too_long_ends_all(tmp_path):
    with Hosts(2, 1, WAITING, [str(tmp_path / "begun"), "slow"], tmp_path / "logs") as run:
        assert run.statuses() == [1, 1]
        said = "host 1 of 2: judging 8 programs took longer than 1 s"
        assert said in run.log(1)
        assert said in run.log(0).split("host 1 of 2 ended the run:")[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("submit", "said"),
    [
        ("Future()", "host 1 of 2: judging 8 programs took longer than 2 s"),
        ("fail()", "error: the broker cannot be started"),
    ],
)
def test_a_sandbox_that_hangs_or_fails_ends_the_run_on_all_hosts(trained, tmp_path, submit, said):
    code = f"""
import os
from concurrent.futures import Future
from prm_jax.sandbox import Sandbox, SandboxError
def fail():
    raise SandboxError("the broker cannot be started")
if os.environ["JAX_PROCESS_ID"] == "1":
    Sandbox.submit = lambda *args: {submit}
{TRAIN}"""
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    arguments = ["--config", str(MICRO), "--workdir", str(workdir), *SHORT]
    arguments += ["--sandbox.deadline-s=2", "--stages=rl"]
    with Hosts(2, 1, code, arguments, tmp_path / "logs") as run:
        assert run.statuses() == [1, 1]
        assert said in run.log(1)
        assert said in run.log(0).split("host 1 of 2 ended the run:")[1]


@pytest.mark.slow
def test_four_processes_stopped_killed_and_others_end_with_the_numbers_of_one(trained, tmp_path):
    four, one = tmp_path / "four", tmp_path / "one"
    for workdir in (four, one):
        shutil.copytree(trained, workdir)
    with training(1, 4, one, *SHORT) as alone:
        alone.succeed()
    with training(4, 1, four, *SHORT) as run:
        run.wait_for(four / "rl/state")
        run.processes[2].send_signal(signal.SIGTERM)
        assert run.statuses() == [hosts.TEMPORARY] * 4
        (state,) = (four / "rl/state").iterdir()
        assert state.name == "2"  # told before the first step's end, known after the second
    with training(4, 1, four, *SHORT) as run:
        run.wait_for(four / "label/journal.jsonl")
        run.processes[0].send_signal(signal.SIGKILL)  # by which the others find each other
        assert all(run.statuses(LOST_S + 60))
    with training(4, 1, four, *SHORT, "--stages=rl,label,prm") as run:
        run.succeed()
    with training(2, 2, four, *SHORT, "--stages=rl_prm") as run:
        run.succeed()
    with training(1, 4, four, *SHORT) as run:
        run.succeed()
    assert_same_run(four, one)


# ---------------------------------------------------------------------- rows, values, checkpoints


def test_two_processes_share_rows_values_and_files(tmp_path):
    with Journal(tmp_path / "journal.jsonl") as journal:
        journal.put("before", "known to the first alone")
    code = "import sys; sys.path.insert(0, 'tests'); import host_rows; host_rows.main()"
    with Hosts(2, 2, code, [str(tmp_path)], tmp_path / "logs") as run:
        run.succeed()
        assert all("checked" in run.log(number) for number in range(2))
    assert (tmp_path / "text").read_text() == "host 0"
    with Journal(tmp_path / "journal.jsonl") as journal:
        assert journal.get("after") == 0
    # Saved by two processes on four devices, restored by this one on another mesh.
    mesh = make_mesh(MeshConfig(data=8, fsdp=1), jax.devices())
    like = {
        "rows": jax.ShapeDtypeStruct((8, 3), jnp.float32, sharding=batch_sharding(mesh)),
        "step": jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh)),
    }
    with Checkpoints(tmp_path / "arrays") as checkpoints:
        found = checkpoints.restore(3, like)
    assert {shard.data.shape for shard in found["rows"].addressable_shards} == {(1, 3)}
    np.testing.assert_array_equal(found["rows"], np.arange(24).reshape(8, 3))
    assert int(found["step"]) == 3


@settings(max_examples=30, deadline=None, database=None, derandomize=True)
@given(
    n_hosts=st.integers(2, 6), local=st.integers(1, 4), data=st.integers(1, 24), seed=st.integers(0)
)
def test_every_row_has_one_owner_among_those_who_hold_it(n_hosts, local, data, seed):
    n_devices, n = n_hosts * local, 24
    data = max(d for d in range(1, data + 1) if n_devices % d == 0 and n % d == 0)
    order = np.random.default_rng(seed).permutation(n_devices)  # devices in any order on the mesh
    per = n // data
    places = {
        Device(int(order[i]) // local, i): (slice(i % data * per, (i % data + 1) * per),)
        for i in range(n_devices)
    }
    sharding = SimpleNamespace(devices_indices_map=lambda shape: places)
    owners = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, "count", lambda: n_hosts)
        for me in range(n_hosts):
            patch.setattr(rows_module, "index", lambda me=me: me)
            held, mine = rows_module.owned(sharding, n)
            expected = {
                r for d, (p,) in places.items() if d.process_index == me for r in range(n)[p]
            }
            assert held.tolist() == sorted(expected)
            owners += held[mine].tolist()
    assert sorted(owners) == list(range(n))


@dataclasses.dataclass(frozen=True)
class Device:
    process_index: int
    number: int


def test_programs_are_shared_out_and_verdicts_known_to_all(monkeypatch):
    problem = Problem("p", "", CallTests(()))
    judged: dict[int, list[str]] = {0: [], 1: []}
    sandboxes = []
    for me in range(2):

        def judge(problem, program, me=me):
            judged[me].append(program)
            future: Future = Future()
            future.set_result(Verdict("passed" if program in "bd" else "failed", 0, 1))
            return future

        sandboxes.append(judging.SharedSandbox(judge, 5.0))
    monkeypatch.setattr(hosts, "count", lambda: 2)
    futures = []
    for me, sandbox in enumerate(sandboxes):
        monkeypatch.setattr(hosts, "index", lambda me=me: me)
        futures.append([sandbox.submit(problem, program) for program in "abcd"])
    assert judged == {0: ["a", "c"], 1: ["b", "d"]}
    theirs = [[(n, f.result()) for f, n in sandbox._here.items()] for sandbox in sandboxes]
    monkeypatch.setattr(hosts, "gather", lambda mine: theirs)
    for row in futures:
        assert [f.done() for f in row] == [False] * 4
        assert [f.result().status for f in row] == ["failed", "passed"] * 2
        assert [f.done() for f in row] == [True] * 4


# ---------------------------------------------------------------------------------------- alone


def test_a_process_alone_needs_nobody():
    assert (hosts.count(), hosts.index()) == (1, 0)
    assert hosts.gather("mine") == ["mine"] and hosts.first(lambda: 3) == 3
    assert not hosts.stop_asked()
    with hosts.watched(), hosts.deadline(0.0, "nothing"):
        pass
    assert hosts.end(3, "said") == 3


def test_sigterm_asks_to_stop_and_is_given_back_afterwards():
    before = signal.getsignal(signal.SIGTERM)
    with hosts.stoppable():
        hosts.check_stop()
        signal.raise_signal(signal.SIGTERM)
        assert hosts.stop_asked() and hosts.stop_asked()
        with pytest.raises(hosts.Stopped):
            hosts.check_stop()
    assert signal.getsignal(signal.SIGTERM) == before
    with hosts.stoppable():
        assert not hosts.stop_asked()


def test_settings_of_several_processes_that_cannot_be_are_refused(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    with pytest.raises(ConfigError, match="JAX_NUM_PROCESSES is not set"):
        together.join()
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    for number in ("2", "-1", "x"):
        monkeypatch.setenv("JAX_PROCESS_ID", number)
        with pytest.raises(ConfigError, match=f"JAX_PROCESS_ID = '{number}'"):
            together.join()


def test_hosts_of_a_slice_are_told_by_their_environment(monkeypatch):
    for name in ("TPU_WORKER_HOSTNAMES", "MEGASCALE_NUM_SLICES"):
        monkeypatch.delenv(name, raising=False)
    assert not together._on_many_tpu_hosts()
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "one")
    assert not together._on_many_tpu_hosts()
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "one,other")
    assert together._on_many_tpu_hosts()
    monkeypatch.delenv("TPU_WORKER_HOSTNAMES")
    monkeypatch.setenv("MEGASCALE_NUM_SLICES", "2")
    assert together._on_many_tpu_hosts()
