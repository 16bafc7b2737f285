"""A made-up Google Cloud project on this machine: stand-ins for gcloud, which plays the queue of a
zone, the disks of a slice's workers and a bucket, and for the pythons of a worker. They record
what is asked of them."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

LAUNCH = Path(__file__).parents[1] / "launch"

# world.json: workers, spot, lives. A life is what `queued-resources list` sees, look by look: first
# `queue`, then, once training began, `training`; the last entry stays. "STATE/INITIATOR/VMS".
GCLOUD = r"""
import fcntl, json, os, pathlib, sys
root = pathlib.Path(os.environ["WORLD"])
lock = open(root / "lock", "w")

def now_alone():  # until the end, or until unlocked: others may change the world at the same time
    fcntl.flock(lock, fcntl.LOCK_EX)
    return json.loads((root / "world.json").read_text())

world = now_alone()
argv, worker = sys.argv[1:], os.environ.get("WORKER")
verb = " ".join(argv[2:4] if argv[0] == "compute" else argv[:2])
with open(root / "calls.jsonl", "a") as calls:
    calls.write(json.dumps([worker, *argv]) + "\n")
if verb in world.get("fails", ()):
    sys.exit(f"ERROR: (gcloud) {verb} failed")
flaky = worker is None and verb in world.get("fails_once", ())
homes = [root / f"worker-{i}" for i in range(world["workers"])]

def save():
    new = root / f"world.json.{os.getpid()}"
    new.write_text(json.dumps(world))
    new.rename(root / "world.json")

if flaky:
    world["fails_once"].remove(verb)
    save()
    sys.exit(f"ERROR: (gcloud) {verb} failed, this once")

def life():
    return world["lives"][world["life"]] if world["exists"] else {"queue": ["//"]}

def kill_trainings(workers):
    for pid in root.glob(f"{workers}/prm_jax_runs/*/*pid"):
        try:
            os.killpg(int(pid.read_text()), 9)
        except ProcessLookupError:
            pass

if verb == "queued-resources list" and not any(a.startswith("--filter") for a in argv):
    print("NAME ZONE STATE")
elif verb == "queued-resources list":
    phase = "training" if (root / "training").exists() and life().get("training") else "queue"
    left = life()[phase]
    now = left.pop(0) if len(left) > 1 else left[0]
    save()
    (root / "now").write_text(now)
    if now == "ERROR":
        sys.exit("ERROR: (gcloud) the network is down")
    if world["exists"]:
        state, initiator, _ = now.split("/")
        print(state, initiator, "e30=" if world["spot"] else "", sep="|")
elif verb == "tpu-vm list":
    vms = (root / "now").read_text().split("/")[-1] if world["exists"] else world.get("vms", "")
    print(vms, end="\n" if vms else "")
elif verb == "queued-resources describe":
    print("v5litepod-16|v2-alpha-tpuv5-lite|net||me@x.iam.gserviceaccount.com")
elif verb == "queued-resources create":
    assert not world["exists"], "created twice"
    world.update(exists=True, life=world["life"] + 1, spot="--spot" in argv)
    save()
elif verb in ("queued-resources delete", "tpu-vm delete"):
    import shutil
    kill_trainings("worker-*")
    for home in homes:
        shutil.rmtree(home, ignore_errors=True)
    (root / "training").unlink(missing_ok=True)
    world.update(exists=False, vms="")
    save()
elif verb == "tpu-vm scp":
    import shutil
    for home in homes:
        home.mkdir(exist_ok=True)
        shutil.copy(argv[4], home / argv[5].partition(":")[2])
elif verb == "tpu-vm ssh":
    import subprocess, time
    fcntl.flock(lock, fcntl.LOCK_UN)
    command = next(a for a in argv if a.startswith("--command=")).removeprefix("--command=")
    def start():
        return [
            subprocess.Popen(["bash", "-c", command], cwd=home,
                             env=os.environ | {"HOME": str(home), "WORKER": str(i)})
            for i, home in enumerate(homes)
        ]
    running = start()
    if world.get("connection_breaks"):  # gcloud itself connects and runs the command again
        while len(list(root.glob("worker-*/trained-*"))) < len(homes):
            time.sleep(0.05)
        for process in running:
            process.kill()
        running = start()
    if world.get("loses_worker_0"):  # the machine: its training and its connection
        while len(list(root.glob("worker-*/trained-*"))) < len(homes):
            time.sleep(0.05)
        running[0].kill()
        kill_trainings("worker-0")
        world = now_alone()
        del world["loses_worker_0"]
        save()
        fcntl.flock(lock, fcntl.LOCK_UN)
        running.reverse()  # the others' exit status is there first
    statuses = [process.wait() for process in running]
    sys.exit(next((status for status in statuses if status), 0))
elif argv[0] == "storage":
    import shutil
    def path(text):
        return root / "bucket" / text[5:] if text.startswith("gs://") else pathlib.Path(text)
    source, target = path(argv[2]), path(argv[3]) if len(argv) > 3 else None
    if argv[1] == "cat" and not source.exists():
        sys.exit("ERROR: The following URLs matched no objects or files:\n" + argv[2])
    elif argv[1] == "cat":
        print(source.read_text(), end="")
    elif argv[1] == "cp":
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(sys.stdin.read())
    elif source.is_dir():
        if "--delete-unmatched-destination-objects" in argv:
            shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target, dirs_exist_ok=True)
else:
    sys.exit(f"the stand-in knows no {argv}")
"""

# trainings.json: per worker, what each training does in turn: its exit status, or "until stopped".
PYTHON = r"""
import json, os, pathlib, sys, time
root, worker = pathlib.Path(os.environ["WORLD"]), os.environ["WORKER"]
argv, home = sys.argv[1:], pathlib.Path.home()
if argv[0] == "-c":
    sys.exit(0)
workdir = pathlib.Path(argv[argv.index("--workdir") + 1])
workdir.mkdir(parents=True, exist_ok=True)
count = len(list(root.glob(f"trained-{worker}-*")))
told = {"argv": argv, "cwd": os.getcwd(), "resumed": (workdir / "step").exists(),
        "cache": os.environ.get("JAX_COMPILATION_CACHE_DIR")}
(root / f"trained-{worker}-{count}").write_text(json.dumps(told))
(workdir / "step").write_text(f"{worker} {count}")
(home / f"trained-{count}").touch()
(root / "training").touch()
print("step", count, flush=True)
plan = json.loads((root / "trainings.json").read_text())[int(worker)]
status = plan[min(count, len(plan) - 1)]
try:
    while status == "until stopped":
        time.sleep(0.05)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    status = 130
os._exit(status)
"""

# A slice whose workers are the hosts of one run has a file `endpoints`.
CURL = """#!/bin/sh
case "$*" in
*worker-network-endpoints*) cat "$WORLD/endpoints" 2>/dev/null || printf %s "$WORKER" ;;
*agent-worker-number*) printf %s "$WORKER" ;;
*) echo "$WORKER curl $*" >>"$WORLD/installed" ;;
esac
"""
GCSFUSE = """#!/bin/sh
echo "$WORKER $*" >>"$WORLD/mounted"
while [ $# -gt 2 ]; do shift; done
test -d "$WORLD/bucket/$1" && rmdir "$2" && ln -s "$WORLD/bucket/$1" "$2"
"""

# The image's python3: what worker/setup.sh asks of pip and uv.
PYTHON3 = r"""
import json, os, pathlib, sys
with open(pathlib.Path(os.environ["WORLD"]) / "python3.jsonl", "a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\n")
if sys.argv[1:4] == ["-m", "uv", "venv"]:
    python = pathlib.Path(sys.argv[-1]) / "bin/python"
    python.parent.mkdir(parents=True)
    python.write_text((pathlib.Path(os.environ["WORLD"]) / "bin/train-python").read_text())
    python.chmod(0o755)
"""


class World:
    """A project with one zone, in which the slice `demo` may exist."""

    def __init__(self, root: Path):
        self.root = root
        self.started: list[subprocess.Popen] = []
        (root / "bin").mkdir(parents=True)
        for name, text in (("gcloud", GCLOUD), ("train-python", PYTHON), ("python3", PYTHON3)):
            self._program(name, f"#!{sys.executable} -S\n{text}")
        self._program("curl", CURL)
        self._program("dpkg", '#!/bin/sh\necho "$WORKER dpkg $1 $3" >>"$WORLD/installed"\n')
        self._program("mountpoint", '#!/bin/sh\ntest -L "$2"\n')
        # A small checkout, which is no git clone: quick to pack.
        shutil.copytree(LAUNCH, root / "checkout/launch")
        self.launch = root / "checkout/launch"
        self.put(workers=2, spot=True, lives=[], life=0, exists=False)
        self.trainings([0], [0])

    def _program(self, name: str, text: str) -> None:
        (self.root / "bin" / name).write_text(text)
        (self.root / "bin" / name).chmod(0o755)

    def put(self, **changes) -> None:
        path = self.root / "world.json"
        with open(self.root / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            old = json.loads(path.read_text()) if path.exists() else {}
            (self.root / "world.json.new").write_text(json.dumps(old | changes))
            (self.root / "world.json.new").rename(path)

    def trainings(self, *plans: list) -> None:
        (self.root / "trainings.json").write_text(json.dumps(plans))

    def up(self, *training: str, more_lives: tuple = (), **changes) -> "World":
        """The slice is ACTIVE and set up; `training` is what looks see once a training began."""
        first = {"queue": ["ACTIVE//READY"], "training": list(training)}
        self.put(exists=True, lives=[first, *more_lives], **changes)
        for worker in range(json.loads((self.root / "world.json").read_text())["workers"]):
            checkout = self.root / f"worker-{worker}/prm_jax"
            shutil.copytree(LAUNCH, checkout / "launch")
            (checkout / ".venv/bin").mkdir(parents=True)
            shutil.copy(self.root / "bin/train-python", checkout / ".venv/bin/python")
        return self

    def of_one_run(self) -> "World":
        """Its workers are the hosts of one run, and can mount buckets."""
        (self.root / "endpoints").write_text("10.0.0.1,10.0.0.2")
        self._program("gcsfuse", GCSFUSE)
        return self

    def start(self, script: str, *args: str) -> subprocess.Popen:
        env = os.environ | {
            "PATH": f"{self.root}/bin:{os.environ['PATH']}",
            "WORLD": str(self.root),
            "LAUNCH_POLL_S": "0.1",
        }
        env.pop("CLOUDSDK_COMPUTE_ZONE", None)
        process = subprocess.Popen(
            # A shell cannot trap what was ignored at its start, as SIGINT is in a job with &.
            ["env", "--default-signal=INT", "bash", str(self.launch / script), *args],
            env=env,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.started.append(process)
        return process

    def run(self, script: str, *args: str) -> subprocess.CompletedProcess:
        process = self.start(script, *args)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(args, process.returncode, out, err)

    def calls(self, verb: str = "") -> list[list[str]]:
        """What the scripts here asked of gcloud (the workers' own calls left out)."""
        path = self.root / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        calls = [call for worker, *call in map(json.loads, lines) if worker is None]
        return [call for call in calls if verb in " ".join(call[:4])]

    def trained(self, worker: int) -> list[dict]:
        return [json.loads(p.read_text()) for p in sorted(self.root.glob(f"trained-{worker}-*"))]

    def wait_for(self, pattern: str) -> None:
        deadline = time.monotonic() + 30
        while not list(self.root.glob(pattern)):
            assert time.monotonic() < deadline, f"{pattern} never came"
            time.sleep(0.05)

    def close(self) -> None:
        """Ends what a failed test left: scripts, and what still runs on the workers."""
        for process in self.started:
            process.kill()
            process.wait()
            process.stdout.close()
            process.stderr.close()
        for pid in self.root.glob("worker-*/prm_jax_runs/*/*pid"):
            try:
                os.killpg(int(pid.read_text()), signal.SIGKILL)
            except ProcessLookupError:
                pass
