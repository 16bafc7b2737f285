"""The scripts of launch/ in a made-up project: what is asked of gcloud and when, what reaches the
workers, what is brought back after a preemption, and what people are told still exists."""

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_project import LAUNCH, World

SCRIPTS = ("create.sh", "setup.sh", "run.sh", "recreate.sh", "status.sh", "delete.sh")
NASTY = [
    "a b",
    "it's",
    'say "x"',
    "$HOME",
    "`id`",
    "back\\slash",
    "",
    "*",
    "two\nlines",
    "é!",
    "&;|>",
]


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path / "a world's $HOME")
    yield world
    world.close()


DEMO = ("demo", "--zone", "us-west4-a")
BUCKET = ("--bucket", "gs://b/run")
READY = "ACTIVE//READY"
GONE = "SUSPENDED/SERVICE/PREEMPTED"
NEW_LIFE = {
    "queue": ["WAITING_FOR_RESOURCES//", "PROVISIONING//CREATING", READY],
    "training": [READY],
}


def test_shellcheck_finds_nothing():
    shellcheck = Path(sys.executable).parent / "shellcheck"  # of the extra `test`
    scripts = sorted(LAUNCH.rglob("*.sh"))
    assert len(scripts) == 10
    checked = subprocess.run([shellcheck, "-x", *scripts], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_shows_a_command_and_every_option_and_asks_nothing_of_gcloud(world, script):
    told = world.run(script, "--help")
    assert told.returncode == 0 and f"    launch/{script} " in told.stdout
    takes = re.search(r"^parse '(.*)' ", (LAUNCH / script).read_text(), re.M)
    assert takes
    for option in ["zone", "project", "dry-run", *takes[1].replace("=", "").split()]:
        assert f"--{option}" in told.stdout
    assert not world.calls()


@given(words=st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=9)))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_quoted_words_come_back_from_a_shell(words):
    quoting = ["bash", "-c", f'source {LAUNCH}/slice.sh; quoted "$@"', "-", *words]
    line = (
        subprocess.run(quoting, capture_output=True, check=True).stdout.decode().removesuffix("\n")
    )
    assert shlex.split(line) == words
    back = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True).stdout
    assert back.decode().split("\0")[:-1] == (words or [""])


@pytest.mark.parametrize(
    "kind, version",
    [
        ("v4-8", "tpu-ubuntu2204-base"),
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-8", "v2-alpha-tpuv5"),
        ("v6e-8", "v2-alpha-tpuv6e"),
    ],
)
def test_create_asks_once_for_the_type_with_its_image(world, kind, version):
    world.put(lives=[{"queue": [READY]}] * 2)
    told = world.run("create.sh", *DEMO, "--type", kind, "--project=p", "--spot")
    assert told.returncode == 0 and "launch/delete.sh demo" in told.stderr
    flags = f"--accelerator-type={kind} --runtime-version={version} --spot".split()
    begin = "compute tpus queued-resources create demo --zone=us-west4-a --project=p --node-id=demo"
    assert world.calls("create") == [begin.split() + flags]


@pytest.mark.parametrize(
    "script, args, says",
    [
        ("create.sh", ["demo", "--type", "v6e-8"], "--zone is missing: give --zone"),
        ("create.sh", [*DEMO], "--type is missing"),
        ("create.sh", [*DEMO, "--type", "v5e-16"], "gcloud calls v5e slices v5litepod-16"),
        ("create.sh", [*DEMO, "--type", "tpu7x-8"], "--type = 'tpu7x-8' is not known here"),
        ("create.sh", [*DEMO, "--typ", "v4-8"], "--typ is not an option of create.sh"),
        ("create.sh", [*DEMO, "--type"], "--type needs a value"),
        ("create.sh", [*DEMO, "--type="], "--type = '' is empty"),
        ("create.sh", ["A_b", "--zone=z", "--type=v4-8"], "NAME = 'A_b' is not allowed"),
        ("create.sh", ["--zone=z", "--type=v4-8"], "the name of the slice is missing"),
        ("create.sh", [*DEMO, "two", "--type=v4-8"], "'two' is one name too many"),
        ("delete.sh", [*DEMO, "--yes=no"], "--yes=no is not an option of delete.sh"),
        ("setup.sh", [*DEMO, "--", "x"], "nothing may follow --, but 'x' does"),
        ("setup.sh", [*DEMO], "NAME = 'demo' does not exist"),
        ("recreate.sh", [*DEMO], "NAME = 'demo' was not taken away by the service"),
        ("run.sh", [*DEMO], "NAME = 'demo' does not exist"),
        ("run.sh", [*DEMO, "--bucket", "b"], "--bucket = 'b' is no folder of a bucket: give gs://"),
        ("run.sh", [*DEMO, "--bucket", "gs://b/"], "'gs://b' is no folder of a bucket"),
        ("run.sh", [*DEMO, "--workdir", "gs://b"], "give --bucket 'gs://b'"),
        ("run.sh", [*DEMO, "--sync-every", "1m"], "--sync-every = '1m': give whole seconds"),
        ("run.sh", [*DEMO, "--", "--workdir=x"], "--workdir=x goes before the --"),
        ("run.sh", [*DEMO, "--", "--dry-run"], "--dry-run goes before the --"),
    ],
)
def test_mistakes_are_refused_by_name_before_anything_happens(world, script, args, says):
    told = world.run(script, *args)
    assert told.returncode == 2 and says in told.stderr, told.stderr
    assert all("list" in call for call in world.calls())


def test_create_refuses_a_name_that_exists_and_what_it_cannot_see(world):
    create = ("create.sh", *DEMO, "--type", "v4-8")
    world.put(exists=True, lives=[{"queue": ["WAITING_FOR_RESOURCES//"]}])
    assert "(queued resource WAITING_FOR_RESOURCES, VMs ABSENT)" in world.run(*create).stderr
    world.put(exists=False, vms="READY")
    assert "(queued resource ABSENT, VMs READY)" in world.run(*create).stderr
    world.put(vms="", fails=["tpu-vm list"])
    assert "nothing was created" in world.run(*create).stderr
    assert not world.calls("create")


def test_setup_waits_for_the_slice_and_brings_the_checkout_to_every_worker(world):
    world.put(exists=True, lives=[NEW_LIFE])
    world.launch = LAUNCH
    told = world.run("setup.sh", *DEMO)
    assert told.returncode == 0, told.stderr
    for state in ("WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE, VMs READY"):
        assert told.stderr.count(state) == 1
    for worker in (0, 1):
        assert (world.root / f"worker-{worker}/prm_jax/prm_jax/train.py").exists()
    asked = [json.loads(line) for line in (world.root / "python3.jsonl").read_text().splitlines()]
    assert sorted(words[2:4] for words in asked) == sorted(
        2 * [["install", "--quiet"], ["venv", "--quiet"], ["pip", "install"]]
    )
    assert all(words[-1] in ("uv", ".venv", ".[tpu]") for words in asked)


def test_setup_ends_when_gcloud_shows_nothing(world):
    world.put(exists=True, lives=[NEW_LIFE], fails=["tpu-vm list"])
    told = world.run("setup.sh", *DEMO)
    assert told.returncode == 1 and told.stderr.count("cannot see demo; trying again") == 9
    assert "error: cannot see demo: is gcloud logged in" in told.stderr


def test_setup_ends_when_the_slice_will_not_come(world):
    world.put(exists=True, lives=[{"queue": ["PROVISIONING//", "FAILED//"]}])
    told = world.run("setup.sh", *DEMO)
    assert (
        told.returncode == 1 and "demo is FAILED" in told.stderr and "delete.sh demo" in told.stderr
    )
    assert not world.calls("scp")


def commands(text: str) -> list[list[str]]:
    lines = "".join(line for line in text.splitlines(True) if not line.startswith("#"))
    words = shlex.split(lines.replace("\ngcloud ", " ; gcloud "))
    split = " ".join("\n" if w == ";" else shlex.quote(w) for w in words)
    return [shlex.split(line)[1:] for line in split.split(" \n ")]


def timeless(calls: list[list[str]]) -> list[list[str]]:
    archive, attempt = r"\S*/(prm_jax.tar.gz)$", r"\d{8}T\d{6}-\d+-"
    return [[re.sub(attempt, "", re.sub(archive, r"\1", word)) for word in call] for call in calls]


@pytest.mark.parametrize(
    "script, args",
    [
        ("create.sh", ["--type", "v4-8"]),
        ("setup.sh", []),
        ("run.sh", [*BUCKET, "--workdir", "it's a dir", "--", *NASTY]),
        ("delete.sh", ["--yes"]),
    ],
)
def test_a_dry_run_prints_the_commands_of_the_real_one_and_runs_none(world, script, args):
    printed = world.run(script, *DEMO, "--dry-run", *args)
    assert printed.returncode == 0 and not world.calls() and not (world.root / "now").exists()
    if script == "create.sh":
        world.put(lives=[{"queue": [READY]}] * 2)
    else:
        world.up(READY)
    assert world.run(script, *DEMO, *args).returncode == 0
    real = iter(timeless(world.calls()))
    for command in timeless(commands(printed.stdout)):
        assert command in real  # in this order; the real one looks more often


def test_every_worker_trains_with_the_words_as_given_and_its_lines_are_marked(world):
    world.up(READY)
    told = world.run("run.sh", *DEMO, "--workdir", "it's a dir", "--", *NASTY)
    assert told.returncode == 0, told.stderr
    for worker in (0, 1):
        (training,) = world.trained(worker)
        home = world.root / f"worker-{worker}"
        assert training["argv"] == ["-m", "prm_jax.train", "--workdir", "it's a dir", *NASTY]
        assert training["cwd"] == str(home / "prm_jax")
        assert training["cache"] == str(home / ".cache/prm_jax/compiled")
        assert f"[worker {worker}] step 0\n" in told.stdout
    assert (
        "demo STILL EXISTS" in told.stderr
        and "launch/delete.sh demo --zone=us-west4-a" in told.stderr
    )
    assert not world.calls("create") and not world.calls("delete")


def test_several_hosts_train_in_one_workdir_in_the_bucket(world):
    world.up(READY).of_one_run().trainings([75, 0], [75, 0])
    (world.root / "bucket/b").mkdir(parents=True)
    told = world.run("run.sh", *DEMO, *BUCKET, "--workdir", "it's a dir", "--", *NASTY)
    assert told.returncode == 0, told.stdout + told.stderr
    for worker in (0, 1):
        first, second = world.trained(worker)
        mount = world.root / f"worker-{worker}/prm_jax_buckets/b"
        workdir = str(mount / "run/it's a dir")
        assert first["argv"] == ["-m", "prm_jax.train", "--workdir", workdir, *NASTY]
        assert second["argv"] == first["argv"] and second["resumed"]
    assert (world.root / "bucket/b/run/it's a dir/step").exists()
    assert not list((world.root / "bucket").rglob("latest"))  # nothing is mirrored as well
    mounted = (world.root / "mounted").read_text().splitlines()
    assert len(mounted) == 2 and all("--metadata-cache-ttl-secs=0 b " in line for line in mounted)


def test_several_hosts_are_refused_without_a_workdir_that_all_see(world):
    world.up(READY, spot=False).of_one_run()
    told = world.run("run.sh", *DEMO)
    assert told.returncode == 2 and "--workdir = 'runs/demo' is a folder of each" in told.stdout
    told = world.run("run.sh", *DEMO, "--bucket", "gs://nowhere/a")
    assert told.returncode == 2 and "--bucket = 'gs://nowhere/a' cannot be mounted" in told.stdout
    assert not world.trained(0)
    shared = world.root / "a shared disk"
    assert world.run("run.sh", *DEMO, "--workdir", str(shared)).returncode == 0
    for worker in (0, 1):
        (training,) = world.trained(worker)
        assert training["argv"] == ["-m", "prm_jax.train", "--workdir", str(shared)]


def test_setup_brings_what_mounts_a_bucket_to_the_hosts_of_one_run(world):
    world.up(READY)
    assert world.run("setup.sh", *DEMO).returncode == 0
    assert not (world.root / "installed").exists()
    (world.root / "endpoints").write_text("10.0.0.1,10.0.0.2")
    told = world.run("setup.sh", *DEMO)
    assert told.returncode == 0, told.stderr
    done = sorted((world.root / "installed").read_text().splitlines())
    assert [line.split()[:2] for line in done] == [
        [worker, program] for worker in "01" for program in ("curl", "dpkg")
    ]
    assert done[1].endswith("worker-0/.local/gcsfuse")


@pytest.mark.parametrize(
    "statuses, worst",
    [((1, 3), 3), ((1, 75), 1), ((75, 0), 75), ((2, 0), 2)],
)
def test_the_exit_status_is_that_of_the_worst_worker(world, statuses, worst):
    world.up(READY).trainings(*([status] for status in statuses))
    told = world.run("run.sh", *DEMO, "--restarts", "0", "--delete-when-done")
    assert told.returncode == worst, told.stdout + told.stderr
    assert "STILL EXISTS" in told.stderr
    assert [len(world.trained(worker)) for worker in (0, 1)] == [1, 1]
    assert not world.calls("delete")


def test_exit_status_75_starts_the_same_training_again(world):
    world.up(READY).trainings([75, 0], [75, 0])
    assert world.run("run.sh", *DEMO, "--delete-when-done", "--", "--seed", "1").returncode == 0
    first, second = world.trained(1)
    assert first["argv"] == second["argv"] and second["resumed"]
    assert len(world.calls("queued-resources delete")) == 1 and not world.calls("create")


@pytest.mark.parametrize("loss", ["SUSPENDING/SERVICE/", "ACTIVE//PREEMPTED"])
def test_a_preempted_slice_is_created_again_once_and_goes_on_from_the_bucket(world, loss):
    after = [GONE] if loss.startswith("SUSPENDING") else []
    world.up(READY, "ERROR", READY, loss, *after, more_lives=(NEW_LIFE,))
    world.trainings(["until stopped", 0], [1, 0])
    before = world.root / "bucket/b/run/worker-0"
    (before / "b/sub").mkdir(parents=True)
    (before / "b/sub/old").write_text("from an earlier slice")
    (before / "latest").write_text("b")
    told = world.run("run.sh", *DEMO, *BUCKET, "--sync-every", "1", "--", "--config", "a b.py")
    assert told.returncode == 0, told.stdout + told.stderr
    changes = [call[3] for call in world.calls() if call[3] in ("create", "delete", "scp")]
    assert changes == ["delete", "create", "scp"]
    (create,) = world.calls("create")
    assert "launch/delete.sh demo" in told.stderr
    assert "--spot" in create and "--accelerator-type=v5litepod-16" in create
    assert "--network=net" in create and "--service-account=me@x.iam.gserviceaccount.com" in create
    first, second = world.trained(0)
    assert first["argv"] == second["argv"] and not first["resumed"]
    assert (world.root / "worker-0/prm_jax/runs/demo/sub/old").exists()
    assert world.trained(1)[1]["resumed"], "worker 1 had ended and uploaded"
    assert "STILL EXISTS" in told.stderr


def test_what_fails_on_the_way_back_is_tried_again(world):
    failing = ["queued-resources delete", "queued-resources create", "tpu-vm scp"]
    world.up(GONE, more_lives=(NEW_LIFE,), fails_once=failing).trainings(["until stopped", 0], [0])
    told = world.run("run.sh", *DEMO, *BUCKET)
    assert told.returncode == 0, told.stdout + told.stderr
    changes = [call[3] for call in world.calls() if call[3] in ("create", "delete", "scp")]
    assert changes == ["delete"] * 2 + ["create"] * 2 + ["scp"] * 2


def test_recreate_leaves_alone_what_runs_is_on_demand_or_was_stopped_by_its_user(world):
    for state, spot in ((READY, True), (GONE, False), ("SUSPENDED/USER/", True)):
        world.put(exists=True, lives=[{"queue": [state]}], spot=spot)
        assert world.run("recreate.sh", *DEMO).returncode == 2
    dry = world.run("recreate.sh", *DEMO, "--dry-run").stdout
    done = ["describe", "delete", "create", "scp", "ssh"]
    assert [c[3] for c in commands(dry) if c[3] != "list"] == done
    assert {call[3] for call in world.calls()} == {"list"}


def test_a_connection_that_never_was_is_tried_again(world):
    world.up(READY, fails_once=["tpu-vm ssh"])
    told = world.run("run.sh", *DEMO)
    assert told.returncode == 0 and "exit status 255: the same command again" in told.stderr
    assert len(world.trained(0)) == 1


def test_a_slice_that_lost_host_0_goes_on_and_a_crash_there_does_not(world):
    """JAX ends the other hosts with 134 either way; a lost host does not say how it ended."""
    world.up(READY, loses_worker_0=True).trainings(["until stopped", 0], [134, 0])
    told = world.run("run.sh", *DEMO)
    assert told.returncode == 0 and "exit status 255: the same command again" in told.stderr
    assert [len(world.trained(worker)) for worker in (0, 1)] == [2, 2]
    world.trainings([134], [134])
    assert world.run("run.sh", *DEMO).returncode == 134
    assert [len(world.trained(worker)) for worker in (0, 1)] == [3, 3]


@pytest.mark.parametrize(
    "spot, bucket, loss",
    [
        (True, BUCKET, "SUSPENDED/USER/"),
        (False, BUCKET, "FAILED//"),
        (True, (), GONE),
        (True, (*BUCKET, "--restarts", "0"), GONE),
    ],
)
def test_what_may_not_be_created_again_is_not(world, spot, bucket, loss):
    world.up(READY, loss, spot=spot).trainings(["until stopped"], ["until stopped"])
    told = world.run("run.sh", *DEMO, *bucket)
    assert told.returncode == 1, told.stdout + told.stderr
    assert "demo STILL EXISTS" in told.stderr
    assert not world.calls("create") and not world.calls("delete")


def test_a_slice_that_is_lost_again_and_again_is_given_up(world):
    world.up(GONE, more_lives=({"queue": ["FAILED//"]},) * 5).trainings(
        ["until stopped"], ["until stopped"]
    )
    told = world.run("run.sh", *DEMO, *BUCKET, "--restarts", "2")
    assert told.returncode == 1 and "could not be brought back" in told.stderr
    assert len(world.calls("create")) == 2 and "demo STILL EXISTS" in told.stderr


def test_a_broken_connection_joins_the_training_that_runs(world):
    world.up(READY, connection_breaks=True).trainings(["until stopped"], ["until stopped"])
    process = world.start("run.sh", *DEMO, *BUCKET, "--", "--seed", "1")
    world.wait_for("trained-1-0")
    world.put(connection_breaks=False)
    time.sleep(1)
    assert [len(world.trained(worker)) for worker in (0, 1)] == [1, 1]
    other = world.run("run.sh", *DEMO, *BUCKET, "--", "--seed", "2")
    assert other.returncode == 2 and "another training runs here" in other.stdout
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "demo STILL EXISTS" in err and "launch/delete.sh demo" in err
    for worker in (0, 1):
        (status,) = (world.root / f"worker-{worker}/prm_jax_runs").glob("*/status")
        assert status.read_text() == "130\n"
        assert (world.root / f"bucket/b/run/worker-{worker}/a/step").exists(), "uploaded at the end"
    assert not world.calls("delete")


def test_an_interrupt_is_never_lost_while_the_state_is_looked_at(tmp_path):
    """bash 5.2 loses some 2 in 100 of those that come while it expands a command."""
    (tmp_path / "gcloud").write_text("#!/bin/sh\necho 'ACTIVE|SERVICE|e30='\n")
    (tmp_path / "gcloud").chmod(0o755)
    (tmp_path / "looks.sh").write_text(
        'source "$1/slice.sh"\nname=demo\nset -euo pipefail\n'
        "trap 'echo interrupted; exit 130' INT\necho begun\nwhile :; do look; done\n"
    )
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    words = ["env", "--default-signal=INT", "bash", tmp_path / "looks.sh", LAUNCH]
    rng = random.Random(0)
    for _ in range(150):
        with subprocess.Popen(
            words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as bash:
            assert bash.stdout.readline() == b"begun\n"
            time.sleep(rng.uniform(0, 0.03))
            bash.send_signal(signal.SIGINT)
            try:
                assert bash.communicate(timeout=20) == (b"interrupted\n", b"")
            finally:
                bash.kill()
            assert bash.returncode == 130


def test_no_temporary_folder_is_refused_with_the_way_out(world, monkeypatch):
    world.up(READY)
    monkeypatch.setenv("TMPDIR", str(world.root / "no folder"))
    told = world.run("delete.sh", *DEMO, "--yes")
    assert told.returncode == 2 and "set TMPDIR to a folder with space" in told.stderr
    assert not world.calls()


def test_a_bucket_that_cannot_be_used_is_refused_before_the_training(world):
    world.up(READY, fails=["storage cp"])
    told = world.run("run.sh", *DEMO, *BUCKET)
    assert (
        told.returncode == 2 and "--bucket = 'gs://b/run' cannot be read and written" in told.stdout
    )
    assert not world.trained(0)


def test_a_last_upload_that_fails_is_not_success(world):
    world.up(READY, fails=["storage rsync"])
    told = world.run("run.sh", *DEMO, *BUCKET, "--delete-when-done")
    assert told.returncode == 74 and "the last upload to gs://b/run/worker-0 failed" in told.stdout
    assert not world.calls("delete") and "STILL EXISTS" in told.stderr


def sync(world, direction: str) -> int:
    workdir = world.root / "work dir"
    words = ["bash", LAUNCH / "worker/sync.sh", direction, workdir, "gs://b/run", world.root / "c"]
    path = f"{world.root}/bin:{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "WORLD": str(world.root), "WORKER": "0"}
    return subprocess.run(words, env=env, capture_output=True).returncode


def test_only_whole_uploads_are_resumed_from(world):
    work, remote = world.root / "work dir", world.root / "bucket/b/run"
    (work / "2.orbax-checkpoint-tmp-1").mkdir(parents=True)
    (work / "2.orbax-checkpoint-tmp-1/half").write_text("x")
    (work / "big").write_bytes(bytes(65 << 20))
    (work / "step").write_text("1")
    remote = world.root / "bucket/b/run"
    assert sync(world, "up") == 0 and (remote / "latest").read_text() == "a"
    assert sorted(p.name for p in (remote / "a").rglob("*")) == ["big", "step"]
    (work / "step").write_text("2")
    world.put(fails=["storage cp"])  # cut before the last word
    assert sync(world, "up") != 0 and (remote / "latest").read_text() == "a"
    world.put(fails=[])
    shutil.rmtree(work)
    assert sync(world, "up") == 0, "nothing to upload"
    assert sync(world, "down") == 0 and (work / "step").read_text() == "1"
    (work / "big").unlink()
    assert sync(world, "up") == 0 and (remote / "latest").read_text() == "b"
    assert [p.name for p in (remote / "b").rglob("*")] == ["step"]
    world.put(fails=["storage cat"])  # unreadable is not empty
    assert sync(world, "down") != 0 and sync(world, "up") != 0


def test_delete_says_what_still_exists(world):
    world.put(exists=True, lives=[{"queue": ["FAILED//"]}], fails=["queued-resources delete"])
    told = world.run("delete.sh", *DEMO)
    assert told.returncode == 1 and "demo STILL EXISTS (queued resource FAILED" in told.stderr
    world.put(fails=[])
    told = world.run("delete.sh", *DEMO, "--yes")
    assert told.returncode == 0 and "demo is gone" in told.stderr and "NAME ZONE" in told.stdout
    assert [("--force" in call, "--quiet" in call) for call in world.calls("resources delete")] == [
        (True, False),
        (True, True),
    ]
    assert "nothing to delete" in world.run("delete.sh", *DEMO).stderr
    world.put(vms="READY")  # a TPU VM that no queued resource owns
    assert world.run("delete.sh", *DEMO, "--yes").returncode == 0
    assert len(world.calls("tpu-vm delete")) == 1
    world.put(fails=["tpu-vm list"])
    assert "nothing was deleted" in world.run("delete.sh", *DEMO).stderr


def test_status_lists_requests_and_vms_in_all_zones(world):
    assert world.run("status.sh", "--zone", "-").returncode == 0
    kinds = [call[2:] for call in world.calls()]
    assert kinds == [["queued-resources", "list", "--zone=-"], ["tpu-vm", "list", "--zone=-"]]
