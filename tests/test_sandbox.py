"""Programs judged for real: honest ones pass, limits hold, and no failure of ours is a verdict."""

import collections
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sandbox_attacks import descendants, gone

from prm_jax.sandbox import Sandbox, SandboxError, SandboxRefused, client
from prm_jax.types import CallTests, CheckTests, Limits, StdioTests

SQUARE = CallTests(("assert f(2) == 4", "assert f(-3) == 9"))
SHORT = Limits(cpu_s=0.5, memory_mib=100)


def stdio(*cases: tuple[str, str], **options) -> StdioTests:
    return StdioTests(tuple(cases), **options)


def check(body: str, entry_point: str = "f") -> CheckTests:
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    return CheckTests(f"def check(candidate):\n{lines}", entry_point)


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(min_tier="T4") as running:
        yield running


HONEST = {
    "call": ("def f(x): return x * x", SQUARE),
    "class": (
        "class Solution:\n    def f(self, a): return sorted(a)",
        CallTests(("assert Solution().f([2, 1]) == [1, 2]",)),
    ),
    "set-up after the program": (
        "def f(node): return node.value",
        CallTests(("assert f(root) == 5",), setup="class Node: value = 5\nroot = Node()"),
    ),
    "objects of the program": (
        "class Pair:\n    def __init__(s, a): s.a = a\ndef f(p): return p.a",
        CallTests(("assert f(Pair(3)) == 3", "assert abs(f(Pair(3)) - 3) < 1e-9")),
    ),
    "own function with a built-in's name": (
        "def sum(a, b): return a + b",
        CallTests(("assert sum(1, 2) == 3",)),
    ),
    "tolerance": ("def f(x): return x / 3", CallTests(("assert f(1) == 0.33333",), "", 1e-4)),
    "test with its own tolerance": (
        "def f(x): return x / 3",
        CallTests(("assert abs(f(1) - 0.33333) < 1e-4", "assert f(3) == 1")),
    ),
    "a module that the test names": (
        "import sys\ndef f(x): return sys.getsizeof(x)",
        CallTests(("assert f(()) == sys.getsizeof(())",)),
    ),
    "counter": (
        "from collections import Counter\ndef f(x): return Counter(x)",
        CallTests(("assert f('aab') == Counter('aab')", "assert f('aab') == {'a': 2, 'b': 1}")),
    ),
    "dataclass and typing": (
        "from dataclasses import dataclass\nfrom typing import NamedTuple\n"
        "class N(NamedTuple):\n    a: int\n@dataclass\nclass D:\n    a: int\n"
        "def f(x): return N(D(x).a)",
        CallTests(("assert f(5) == (5,)",)),
    ),
    "asyncio": (
        "import asyncio\nasync def g(x):\n    await asyncio.sleep(0.001)\n    return x\n"
        "def f(x): return asyncio.run(g(x))",
        CallTests(("assert f(1) == 1",)),
    ),
    "many modules": (
        "import sqlite3, lzma, bz2, zlib, ctypes, csv, zoneinfo, xml.etree.ElementTree, unittest\n"
        "import subprocess, multiprocessing, tempfile, concurrent.futures, logging, argparse\n"
        "def f(x): return sqlite3.connect(':memory:').execute('select 1').fetchone()",
        CallTests(("assert f(0) == (1,)",)),
    ),
    "numpy": (
        "import numpy as np\ndef f(x): return np.arange(x)",
        CallTests(("assert list(f(3)) == [0, 1, 2]", "assert np.allclose(f(2), [0, 1])")),
    ),
    "sleep": ("import time\ntime.sleep(0.7)\ndef f(x): return x * x", SQUARE),
    "threads": (
        "import threading, time\n"
        "threads = [threading.Thread(target=time.sleep, args=(0.05,)) for _ in range(16)]\n"
        "for t in threads: t.start()\nfor t in threads: t.join()\nprint(5)",
        stdio(("", "5")),
    ),
    "a stack larger than the memory": (
        "import threading\nthreading.stack_size(1 << 29)\n"
        "t = threading.Thread(target=print, args=(5,))\nt.start()\nt.join()",
        stdio(("", "5")),
    ),
    "garbage in cycles": (
        "for _ in range(40000):\n    a = [0] * 1000\n    a.append(a)\nprint(1)",
        stdio(("", "1")),
    ),
    "/dev/stdin": ("print(open('/dev/stdin').read()[::-1])", stdio(("ab", "ba"))),
    "open(0)": ("print(open(0).read()[::-1])", stdio(("ab", "ba"))),
    "output at exit": (
        "import atexit, os\natexit.register(lambda: os.write(1, b'hi'))",
        stdio(("", "hi")),
    ),
    "output of a thread that nobody joins": (
        "import threading, time\ndef late():\n    time.sleep(0.02)\n    print('done')\n"
        "threading.Thread(target=late).start()",
        stdio(("", "done")),
    ),
    "main": ("if __name__ == '__main__': print(input())", stdio(("x", "x"), ("y", "y"))),
    "much output": ("print('x' * 900_000)", stdio(("", "x" * 900_000))),
    "much input": (
        "import sys\nprint(sum(map(int, sys.stdin.read().split())))",
        stdio(("1 " * 500_000, "500000")),
    ),
    "unicode": ("print(input())", stdio(("hé€😀", "hé€😀"))),
    "decimal tolerance": ("print(1 / 3, 2)", stdio(("", "0.33333 2"), float_tolerance=1e-4)),
    "check": ("def f(x): return [x]", check("assert candidate(1) == [1]")),
    "check: changed argument": (
        "def f(a): a.append(3)",
        check("a = [1]\ncandidate(a)\nassert a == [1, 3]"),
    ),
    "check: built-in exception": (
        "def f(a): raise KeyError('bad')",
        check("try: candidate(1)\nexcept KeyError as e: assert e.args == ('bad',)\nelse: assert 0"),
    ),
    "check: generator": (
        "def f(n): yield from range(n)",
        check("assert list(candidate(3)) == [0, 1, 2]"),
    ),
    "check: helper of the program": (
        "def g(x): return x + 1\ndef f(x): return g(x)",
        check("assert candidate(1) == g(1)"),
    ),
    "check: method": (
        "class S:\n    def f(self, x): return x",
        check("assert candidate(1) == 1", "S().f"),
    ),
}


@pytest.mark.parametrize("program, tests", HONEST.values(), ids=HONEST.keys())
def test_honest_programs_pass(sandbox, program, tests):
    verdict = sandbox.submit(program, tests).result()
    assert verdict.passed, verdict
    assert verdict.tests_passed == verdict.tests_total > 0
    assert verdict.tier == sandbox.tier


FAILING = {
    "wrong": ("def f(x): return 4", SQUARE, "failed", 1),
    "raises": ("def f(x): return 4 if x > 0 else 1 // (x + 3)", SQUARE, "error", 1),
    "syntax": ("def f(x)", SQUARE, "error", 0),
    "no program": ("", SQUARE, "error", 0),
    "NUL": ("x = 'a\0'", SQUARE, "error", 0),
    "surrogate": ("x = '\ud800'", SQUARE, "error", 0),
    "spin": ("def f(x):\n    while True: pass", SQUARE, "timeout", 0),
    "spin in the second test": (
        "def f(x):\n    while x < 0: pass\n    return x * x", SQUARE, "timeout", 1
    ),
    "memory": ("def f(x):\n    a = []\n    while True: a.append([0] * 9999)", SQUARE, "memory", 0),
    "fork": ("import os\ndef f(x): os.fork()", SQUARE, "forbidden", 0),
    "segfault": ("import ctypes\nctypes.string_at(0)", SQUARE, "error", 0),
    "stdio: wrong": ("print(input())", stdio(("1", "1"), ("2", "3")), "failed", 1),
    "stdio: exit status": ("print(6)\nraise SystemExit(3)", stdio(("", "6")), "error", 0),
    "stdio: flood": ("while True: print('x' * 9999)", stdio(("", "x")), "error", 0),
    "stdio: spin": ("while True: pass", stdio(("", ""), ("", "")), "timeout", 0),
    "check: wrong": ("def f(x): return 7", check("assert candidate(1) == 1"), "failed", 0),
    "check: None": ("def f(x): pass", check("assert candidate(1) == 1"), "failed", 0),
    "check: no entry point": ("g = 1", check("assert candidate(1) == 1"), "error", 0),
    "check: exit": (
        "import os\ndef f(x): os._exit(0)", check("assert candidate(1) == 1"), "error", 0
    ),
    "check: spin": (
        "def f(x):\n    while True: pass", check("assert candidate(1) == 1"), "timeout", 0
    ),
    "check: ends a loop of the test": (
        "def f(x): raise StopIteration",
        check("for a, b in zip(map(candidate, [1, 2]), [1, 2]): assert a == b"),
        "error",
        0,
    ),
    "check: always equal": (
        "class E:\n    def __eq__(s, o): return True\n    def __sub__(s, o): return 0\n"
        "    def __abs__(s): return 0\n    def __lt__(s, o): return True\n"
        "def f(x): return E()",
        check("assert abs(candidate(1) - 5) < 1 or candidate(1) == 5"),
        "error",
        0,
    ),
    "a program that replaces abs": (
        "import builtins, math\nbuiltins.abs = lambda x: 0\nmath.isclose = lambda *a: True\n"
        "def isclose(*a): return True\ndef f(x): return 9",
        CallTests(
            ("assert abs(f(1) - 5) < 1", "assert math.isclose(f(1), 5)", "assert isclose(f(1), 5)")
        ),
        "failed",
        0,
    ),
    "a program that imports the sandbox": (
        "import sys\ndef f(x):\n    from prm_jax.sandbox.core import values", SQUARE, "error", 0
    ),
}  # fmt: skip


@pytest.mark.parametrize("program, tests, status, passed", FAILING.values(), ids=FAILING.keys())
def test_failing_programs(sandbox, program, tests, status, passed):
    verdict = sandbox.submit(program, tests, SHORT).result()
    assert (verdict.status, verdict.tests_passed) == (status, passed), verdict
    assert not verdict.passed
    assert verdict.message


# A program may write to every descriptor that it finds: it can say values, never a verdict.
SPOILER = """
import os, struct
for fd in range(3, 64):
    for body in BODIES:
        try: os.write(fd, struct.pack("<I", len(body)) + body)
        except OSError: pass
def f(x): return 7
"""
BODIES = [
    b'["end"]', b'["pass",0]', b'["v",5,4]', b'["x",0,"passed",""]', b'["load","passed","passed"]',
    b"{}", b"[[[", b'["v",0,{"a":1}]', b'["v",true,4]', b'{"passed":true}', b"\xff" * 9, b"",
]  # fmt: skip


@pytest.mark.parametrize("tests", [SQUARE, stdio(("", "4")), check("assert candidate(2) == 4")])
def test_writing_on_the_pipes_does_not_pass(sandbox, tests):
    for bodies in [[body] for body in BODIES] + [BODIES]:
        program = SPOILER.replace("BODIES", repr(bodies))
        verdict = sandbox.submit(program, tests, SHORT).result()
        assert not verdict.passed, (bodies, verdict)


@pytest.mark.parametrize(
    "tests",
    [
        CallTests(()),
        CallTests(("assert f(1) ==",)),
        StdioTests(()),
        CheckTests("x = 1", "f"),
        CheckTests("def check(candidate): pass", ""),
    ],
)
def test_unusable_tests_are_no_fault_of_the_program(sandbox, tests):
    with pytest.raises(SandboxError):
        sandbox.submit("def f(x): return x", tests).result()


# ------------------------------------------------------------------------------------ the limits


def test_cpu_time_counts_and_wall_time_does_not():
    """Twelve correct programs of 0.7 s each at once all pass under a limit of 3 s."""
    program = "import time\nwhile time.process_time() < 0.7: pass\ndef f(x): return x * x\n"
    works = [(f"{program}#{i}", SQUARE, Limits(cpu_s=3.0)) for i in range(12)]
    with Sandbox(jobs=12, min_tier="T4") as many:
        assert [v.status for v in many.judge(works)] == ["passed"] * 12


@pytest.mark.slow
def test_a_blocked_program_meets_the_wall_backstop(sandbox):
    start = time.monotonic()
    program = "import time\ntime.sleep(1000)"
    verdict = sandbox.submit(program, SQUARE, Limits(cpu_s=0.01)).result()
    assert verdict.status == "timeout"
    assert verdict.cpu_s < 0.01
    assert 10.0 < time.monotonic() - start < 30.0


def test_memory_limit_is_the_programs_own(sandbox):
    program = "a = bytearray({} << 20)\ndef f(x): return x * x"
    for mib, status in ((40, "passed"), (100, "memory")):
        verdict = sandbox.submit(program.format(mib), SQUARE, Limits(memory_mib=64)).result()
        assert verdict.status == status, verdict


def test_output_limit_holds_for_values_and_for_stdout(sandbox):
    limits = Limits(output_bytes=10_000)
    value = CallTests(("assert len(f(9000)) == 9000", "assert f(20000) == 'x' * 20000"))
    verdict = sandbox.submit("def f(n): return 'x' * n", value, limits).result()
    assert (verdict.status, verdict.tests_passed) == ("error", 1)
    for size, passed in ((9_000, True), (20_000, False)):
        program = f"print('x' * {size})"
        assert sandbox.submit(program, stdio(("", "x" * size)), limits).result().passed == passed


def test_runs_are_reproducible(sandbox):
    tests = CallTests(("assert f() == f()", f"assert [hash('a'), random.random()] == {[0, 0]}"))
    program = "import random\ndef f(): return 1\n# {}"
    messages = {sandbox.submit(program.format(i), tests).result().message for i in range(3)}
    assert len(messages) == 1


# ----------------------------------------------------------------------------- the pool of work


def test_order_is_kept_and_equal_work_is_done_once(sandbox):
    works = [(f"def f(x): return x * x + {i % 2}  # {i % 10}", SQUARE, SHORT) for i in range(200)]
    verdicts = sandbox.judge(works)
    assert [v.passed for v in verdicts] == [i % 2 == 0 for i in range(200)]
    assert len({id(v) for v in verdicts}) == 10


def test_the_verdicts_of_timeouts_are_not_kept(sandbox):
    work = ("def f(x):\n    while True: pass", SQUARE, Limits(cpu_s=0.1))
    first, second = (sandbox.submit(*work).result() for _ in range(2))
    assert first.status == second.status == "timeout"
    assert first is not second


def test_many_threads_may_submit(sandbox):
    def judge(i: int) -> bool:
        return sandbox.submit(f"def f(x): return x * x  # thread {i}", SQUARE).result().passed

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(judge, range(100)))


def test_submitting_waits_when_too_much_is_ahead():
    release = threading.Event()
    with Sandbox(jobs=1, min_tier="T4") as small:

        def fill():
            for i in range(200):
                small.submit(f"import time\ntime.sleep(0.02)\ndef f(x): return x  # {i}", SQUARE)
            release.set()

        thread = threading.Thread(target=fill)
        thread.start()
        assert not release.wait(0.5)
    thread.join()


def test_close_ends_all_work():
    running = Sandbox(jobs=2, min_tier="T4")
    futures = [running.submit(f"import time\ntime.sleep(100)\n# {i}", SQUARE) for i in range(10)]
    time.sleep(0.3)
    pids = descendants(running._process.pid)
    assert len(pids) >= 2
    running.close()
    for future in futures:
        with pytest.raises(SandboxError):
            future.result(timeout=1)
    assert gone(pids)
    with pytest.raises(SandboxError):
        running.submit("x = 1", SQUARE).result()
    running.close()


MIXED = (
    ("def f(x): return x * x  # {}", SQUARE, "passed"),
    ("def f(x): return x + x  # {}", SQUARE, "failed"),
    ("print(int(input()) ** 2)  # {}", stdio(("3", "9"), ("4", "16")), "passed"),
    ("def f(x): return [x]  # {}", check("assert candidate(2) == [2]"), "passed"),
)


def soak(jobs: int, pause_s: float, without: tuple[str, ...] = ()) -> tuple[int, int, int]:
    """Judge mixed jobs, and between verdicts kill a random process of the sandbox.

    Returns how many were killed, and the descriptors of trainer and broker when all is done.
    """
    source, last, killed = random.Random(0), time.monotonic(), 0
    with Sandbox(min_tier="T4", without=without) as running:
        tier = running.tier

        def kill() -> int:
            broker = running._process.pid
            victims = descendants(broker) + [broker] * (source.random() < 0.1)
            if victims:
                try:
                    os.kill(source.choice(victims), signal.SIGKILL)
                    return 1
                except ProcessLookupError:
                    pass
            return 0

        pending = collections.deque()
        for i in range(jobs + 40):
            if i < jobs:
                program, tests, status = MIXED[i % len(MIXED)]
                pending.append((running.submit(program.format(i), tests), status))
            if i >= 40:
                future, status = pending.popleft()
                verdict = future.result()
                assert verdict.status == status, verdict
                if time.monotonic() - last > pause_s:
                    killed += kill()
                    last = time.monotonic()
        assert running.submit("def f(x): return x * x", SQUARE).result().tier == tier
        ours, brokers = (
            len(os.listdir(f"/proc/{pid}/fd")) for pid in (os.getpid(), running._process.pid)
        )
        return killed, ours, brokers


@pytest.mark.parametrize("without", [(), ("namespaces",)])
def test_no_verdict_is_wrong_or_lost_when_processes_die(without):
    before = len(os.listdir("/proc/self/fd"))
    killed, ours, brokers = soak(400, 0.2, without)
    assert killed > 3
    assert ours <= before + 4
    assert brokers < 40


@pytest.mark.slow
def test_a_long_soak():
    killed, _, brokers = soak(10_000, 0.3)
    assert killed > 50
    assert brokers < 40


def test_a_sandbox_that_cannot_start_its_broker_again_says_so(monkeypatch):
    with Sandbox(jobs=1, min_tier="T4") as running:
        future = running.submit("import time\ntime.sleep(100)", SQUARE)
        monkeypatch.setattr(
            "prm_jax.sandbox.client.start_code", lambda module: "raise SystemExit(3)"
        )
        running._process.kill()
        with pytest.raises(SandboxError, match="status 3"):
            future.result(timeout=10)


def test_the_broker_ends_with_its_trainer():
    code = (
        "import os, time\nfrom prm_jax.sandbox import Sandbox\n"
        "s = Sandbox(jobs=1, min_tier='T4')\nprint(s._process.pid, flush=True)\ntime.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment
    ) as trainer:
        assert trainer.stdout is not None
        broker = int(trainer.stdout.readline())
        pids = [broker, *descendants(broker)]
        trainer.kill()
    assert gone(pids)


def test_the_trainer_is_not_forked_and_hands_nothing_on(tmp_path, monkeypatch):
    """No fork runs the hooks of this process, and no descriptor of its own reaches the broker."""
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("the trainer was forked"))
    monkeypatch.setenv("PRM_SECRET", "secret")
    with open(tmp_path / "open", "w") as file:
        os.set_inheritable(file.fileno(), True)
        with Sandbox(jobs=1, min_tier="T4") as running:
            for pid in [running._process.pid, *descendants(running._process.pid)]:
                try:
                    links = [os.readlink(p) for p in Path(f"/proc/{pid}/fd").iterdir()]
                    environment = Path(f"/proc/{pid}/environ").read_bytes()
                except OSError:  # jailed, or gone between two of its self-tests
                    assert pid != running._process.pid
                    continue
                assert file.name not in links
                assert b"PRM_SECRET" not in environment


def test_the_broker_does_not_import_jax(sandbox):
    maps = Path(f"/proc/{sandbox._process.pid}/maps").read_text()
    assert "jaxlib" not in maps and "numpy" not in maps


# ----------------------------------------------------------------------------------- the tiers


def test_too_weak_isolation_is_refused_with_what_to_change():
    with pytest.raises(SandboxRefused, match="min_tier = 'T1'.*gives only T[23]"):
        Sandbox(jobs=1, min_tier="T1", without=("namespaces",))
    with pytest.raises(SandboxRefused, match="gives only T4"):
        Sandbox(jobs=1, without=("landlock",))
    with pytest.raises(SandboxRefused, match="gives only T4"):
        Sandbox(jobs=1, without=("seccomp",))


@pytest.mark.parametrize("options", [{"jobs": -1}, {"min_tier": "T9"}])
def test_bad_settings_are_refused(options):
    with pytest.raises(ValueError, match="is not allowed"):
        Sandbox(**options)


UNUSABLE = {
    "memory_mib = -1": (SQUARE, Limits(memory_mib=-1)),
    "memory_mib = 0.5": (SQUARE, Limits(memory_mib=0.5)),  # type: ignore[arg-type]
    "output_bytes = -5": (SQUARE, Limits(output_bytes=-5)),
    "cpu_s = nan": (SQUARE, Limits(cpu_s=float("nan"))),
    "cpu_s = inf": (SQUARE, Limits(cpu_s=float("inf"))),
    "cpu_s = 0": (SQUARE, Limits(cpu_s=0)),
    "cpu_s = '1'": (SQUARE, Limits(cpu_s="1")),  # type: ignore[arg-type]
    "asserts[1] = 7": (CallTests(("assert f(1) == 1", 7)), None),  # type: ignore[arg-type]
    "asserts = 'assert f(1)'": (CallTests("assert f(1)"), None),  # type: ignore[arg-type]
    "setup = None": (CallTests(("assert f(1) == 1",), None), None),  # type: ignore[arg-type]
    "float_tolerance = nan": (CallTests(("assert f(1) == 1",), "", float("nan")), None),
    "code = 3": (CheckTests(3, "f"), None),  # type: ignore[arg-type]
    "entry_point = None": (CheckTests("x", None), None),  # type: ignore[arg-type]
    "cases[0][1] = 4": (stdio(("2", 4)), None),  # type: ignore[arg-type]
    "cases[0] = ('2',)": (StdioTests((("2",),)), None),  # type: ignore[arg-type]
    "tests = None": (None, None),
}


def test_fields_that_cannot_be_used_are_refused_by_name(sandbox):
    broker = sandbox._process.pid
    innocent = [sandbox.submit(f"def f(x): return x * x  # {i}", SQUARE) for i in range(3)]
    for message, (tests, limits) in UNUSABLE.items():
        with pytest.raises(ValueError, match=re.escape(f"{message} is not allowed")):
            sandbox.submit("def f(x): return x * x", tests, limits)
    with pytest.raises(ValueError, match="program = b'' is not allowed"):
        sandbox.submit(b"", SQUARE)
    assert all(future.result().passed for future in innocent)
    assert sandbox._process.pid == broker


def test_a_job_that_the_broker_stumbles_over_fails_alone(sandbox, monkeypatch):
    monkeypatch.setattr(client, "_count", lambda *_: None)
    monkeypatch.setattr(client, "_text", lambda *_: None)
    broker, program = sandbox._process.pid, "def f(x): return x * x  # {}"
    futures = []
    for i, (tests, limits) in enumerate(
        [
            (SQUARE, Limits(memory_mib=-1)),
            (check("assert abs(candidate(2) - 4) < 1"), Limits(memory_mib=-1)),
            (CallTests((3, 4)), Limits()),  # type: ignore[arg-type]
            (StdioTests((("2", 5),)), Limits()),  # type: ignore[arg-type]
        ]
    ):
        futures.append(sandbox.submit(program.format(f"a{i}"), SQUARE))
        futures.append(sandbox.submit(program.format(f"b{i}"), tests, limits))
    for innocent, guilty in zip(futures[::2], futures[1::2], strict=True):
        assert innocent.result().passed
        with pytest.raises(SandboxError, match="stumbled"):
            guilty.result()
    assert sandbox.submit(program.format("last"), SQUARE).result().passed
    assert sandbox._process.pid == broker
