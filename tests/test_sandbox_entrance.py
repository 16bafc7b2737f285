"""What is laid out before a child is forked: calls, memory, limits, compiled tests."""

import errno
import os
import resource
import socket
import subprocess
import sys
import time

import pytest

from prm_jax.sandbox import Sandbox, SandboxError
from prm_jax.sandbox.core import linux, pool, verdicts
from prm_jax.types import CallTests, CheckTests, Limits

RIGHT = "def f(x):\n    return x * x\n"


_LIMITS_ARE_READ_LATE = """
import resource
from prm_jax.sandbox.core import linux
calls = linux.Calls()
limits = calls.setrlimit(resource.RLIMIT_CPU)
limits[0], limits[1] = 123, 456
calls.make()
assert resource.getrlimit(resource.RLIMIT_CPU) == (123, 456)
"""


def run(code: str, timeout_s: float = 60.0) -> None:
    """In an interpreter of its own, for these processes are limited or measured."""
    environment = {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=timeout_s)


def test_calls_read_their_limits_when_they_are_made():
    run(_LIMITS_ARE_READ_LATE)


def test_the_first_call_that_fails_raises():
    calls = linux.Calls()
    calls.prctl(0x7FFFFFFF)
    calls.close(-1)
    with pytest.raises(OSError, match="prctl") as error:
        calls.make()
    assert error.value.errno == errno.EINVAL


_SIDE_BY_SIDE = """
import collections
from prm_jax.sandbox.core import zygote
filling = list(zygote._fill_pools())
together = 0
for size in range(48, 513, 16):
    objects = [bytes(size - zygote._BYTES_OVERHEAD) for _ in range(6)]
    pages = collections.Counter(id(o) // 4096 for o in objects)
    together += max(pages.values()) >= 5
assert together >= 26, together  # of 30; about half without the filling
assert len(filling) < 10_000
"""


def test_objects_lie_side_by_side_once_the_pools_are_filled():
    run(_SIDE_BY_SIDE)


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(jobs=1, min_tier="T4") as running:
        yield running


def test_limits_beyond_what_a_kernel_can_say_are_no_limits(sandbox):
    limits = Limits(cpu_s=1e300, memory_mib=1 << 60)
    program = f"{RIGHT}a = b'x' * (400 << 20)\n"  # every page is written to
    assert sandbox.submit(program, CallTests(("assert f(3) == 9",)), limits).result().passed


def test_tests_that_do_not_compile_are_no_fault_of_the_program(sandbox):
    for tests in (
        CallTests(("assert f(3) == 9", "assert f((yield)) == 9")),
        CheckTests("def check(candidate):\n    break\n", "f"),
    ):
        with pytest.raises(SandboxError, match="cannot be read"):
            sandbox.submit(RIGHT, tests).result()
    assert sandbox.submit(RIGHT, CallTests(("assert f(2) == 4",))).result().passed


def test_tests_are_compiled_once_for_all_programs():
    limits = verdicts.Limits(1.0, 1 << 28, 1 << 16)
    tests = {"asserts": ["assert f(2) == 4"], "setup": "", "float_tolerance": 0.0}
    jobs = [
        next(verdicts.judge(program, {"kind": "calls", **tests}, limits))[0].job
        for program in (RIGHT, RIGHT + "# another\n")
    ]
    assert jobs[0]["expressions"] is jobs[1]["expressions"]
    assert eval(jobs[0]["expressions"][0], {"f": lambda x: x + 40}) == 42


_HEAVY = """
import resource, time
from prm_jax.sandbox.core import verdicts

nested = "".join(
    f"{' ' * i}try: pass\\n{' ' * i}finally:\\n" for i in range(18)
) + " " * 18 + "x = 1"
leaving = "def g(a):\\n  for i in a:\\n    try:\\n" + "      if i: return\\n" * 1000
leaving += "    finally:\\n" + "      a(i)\\n" * 1000
folded = "\\n".join(f"x = 'a{i}'*2000" for i in range(3000))
tuples = "\\n".join(f"x = ('a{i}',)[0]*2000, (1, {i})*120" for i in range(1500))
added = "x = " + "+".join(f"'{i:0500}'" for i in range(500))
limits = verdicts.Limits(1.0, 1 << 28, 1 << 16)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for setup in (nested, leaving, folded, tuples, added):
    tests = {"asserts": ["assert f(2) == 4"], "setup": setup, "float_tolerance": 0.0}
    start_s = time.process_time()
    (spec,) = next(verdicts.judge("", {"kind": "calls", **tests}, limits))
    assert time.process_time() - start_s < 1.5, setup[:80]
    assert spec.job["setup"] == setup  # the child compiles it
    test = "\\n".join(["def check(candidate):", *["  " + line for line in setup.splitlines()]])
    tests = {"code": test, "entry_point": "f"}
    specs = next(verdicts.judge("", {"kind": "check", **tests}, limits))
    assert isinstance(specs[1].job["tests"][0], str)
statements = [f"assert f({i}) == 'a{i}'*50000" for i in range(1000)]
try:
    verdicts.judge(
        "", {"kind": "calls", "asserts": statements, "setup": "", "float_tolerance": 0.0}, limits
    )
except verdicts.BadTests as error:
    assert "too large" in str(error)
else:
    raise AssertionError("100 MB are expected")
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
assert grown < 100 << 10, f"{grown} KiB"
kept = sum(len(text) for key in verdicts._plans for text in key[1:])
assert kept + sum(plan.size() for plan in verdicts._plans.values()) < 1 << 20
"""


def test_tests_that_would_grow_when_compiled_cost_the_broker_little():
    run(_HEAVY)


NESTED = "".join(f"{' ' * i}try: pass\n{' ' * i}finally:\n" for i in range(18))


def test_what_the_child_compiles_is_judged_under_the_programs_limits(sandbox):
    tests = CallTests(("assert f(3) == 9",), setup="try: a = 'x' * 10\nfinally: b = 'y' * 10")
    assert sandbox.submit(RIGHT, tests).result().passed
    body = "  try: assert abs(candidate(3) - 9) < 1\n  finally: pass\n"
    assert sandbox.submit(RIGHT, CheckTests(f"def check(candidate):\n{body}", "f")).result().passed
    wrong = "def f(x):\n    return x\n"
    verdict = sandbox.submit(wrong, CheckTests(f"def check(candidate):\n{body}", "f")).result()
    assert verdict.status == "failed"
    tests = CallTests(("assert f(3) == 9",), setup=f"{NESTED}{' ' * 18}x = 1")
    verdict = sandbox.submit(RIGHT, tests, Limits(cpu_s=0.5, memory_mib=64)).result()
    assert verdict.status in ("timeout", "memory")


@pytest.mark.parametrize("name", ["_memory_file", "_pipe"])
@pytest.mark.parametrize("good_calls", [0, 1])
def test_a_start_that_lacks_descriptors_is_no_end_of_the_broker(monkeypatch, name, good_calls):
    zygote = object.__new__(pool.Zygote)
    zygote.jobs, zygote.group, zygote.run = 0, None, None
    zygote.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = len(os.listdir("/proc/self/fd"))
    real, calls = getattr(pool, name), []

    def scarce(*arguments):
        calls.append(1)
        if len(calls) > good_calls:
            raise OSError(errno.EMFILE, "too many open files")
        return real(*arguments)

    monkeypatch.setattr(pool, name, scarce)
    run = pool.Run(verdicts.Spec("stdio", {}, verdicts.Limits(1.0, 1 << 28, 1 << 16)))
    with pytest.raises(pool.Infrastructure, match="too many open files"):
        zygote.start(run, list(os.pipe()))
    run.close()
    assert len(os.listdir("/proc/self/fd")) == before
    zygote.socket.close()
    theirs.close()


def test_a_broker_without_room_for_descriptors_lives_on(sandbox):
    broker = sandbox._process.pid
    assert sandbox.submit(RIGHT, CallTests(("assert f(5) == 25",))).result().passed
    usual = resource.prlimit(broker, resource.RLIMIT_NOFILE)
    most = 1 + max(map(int, os.listdir(f"/proc/{broker}/fd")))
    for room in range(4):
        resource.prlimit(broker, resource.RLIMIT_NOFILE, (most + room, usual[1]))
        tests = CallTests(("assert f(4) == 16", f"assert abs(f(2) - 4) < {room + 1}"))
        future = sandbox.submit(RIGHT, tests)
        time.sleep(0.5)
        resource.prlimit(broker, resource.RLIMIT_NOFILE, usual)
        assert sandbox.submit(RIGHT + f"# {room}", tests).result().passed
        try:
            assert future.result().passed
        except SandboxError as error:
            assert "too many open files" in str(error).lower()
    assert sandbox._process.pid == broker


_CAN_NOTHING = """
import os
from prm_jax.sandbox.core import entrance, linux
# So that nothing but the two calls themselves takes capabilities and readability away.
linux.Calls.change_user = lambda calls, uid: None
linux.prctl(linux.PR_SET_DUMPABLE, 1)
null = os.open("/dev/null", os.O_RDONLY)
door = entrance.Entrance(null, {"second_uid"}, 65534, (1 << 40, 1 << 40))
door.set_limits(10.0, 1 << 30)
child = os.fork()
if not child:
    assert door.enter()
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    held = {name: status[name].strip() for name in ("CapInh", "CapPrm", "CapEff")}
    assert set(held.values()) == {"0" * 16}, held
    calls = linux.Calls()
    calls.prctl(linux.PR_GET_DUMPABLE)
    (get, _), = calls._calls
    assert get() == 0, "other processes of its user could read its memory"
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


def test_a_child_keeps_no_capability_and_no_process_may_read_it():
    run(_CAN_NOTHING)


_ENDS_WITH_ITS_ZYGOTE = """
import os, signal, sys, time
from prm_jax.sandbox.core import entrance
told, tell = os.pipe()
zygote = os.fork()
if not zygote:
    null = os.open("/dev/null", os.O_RDONLY)
    door = entrance.Entrance(null, set(), 0, (1 << 40, 1 << 40))
    door.set_limits(10.0, 1 << 30)
    if not os.fork():
        assert door.enter()
        os.write(tell, b"in")
        time.sleep(60)
        os._exit(0)
    time.sleep(60)
os.close(tell)
assert os.read(told, 2) == b"in"
os.kill(zygote, signal.SIGKILL)
os.waitpid(zygote, 0)
start_s = time.monotonic()
assert os.read(told, 1) == b""  # the pipe ends with the last process that holds it
assert time.monotonic() - start_s < 20
"""


def test_where_no_namespace_ends_with_the_zygote_its_children_do():
    run(_ENDS_WITH_ITS_ZYGOTE)
