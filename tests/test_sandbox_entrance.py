"""What is laid out before a child is forked: calls, memory, limits, compiled tests."""

import errno
import os
import subprocess
import sys

import pytest

from prm_jax.sandbox import Sandbox, SandboxError
from prm_jax.sandbox.core import linux, verdicts
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
    assert sandbox.submit(RIGHT, CallTests(("assert f(3) == 9",)), limits).result().passed


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
