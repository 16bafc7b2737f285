"""`python -m prm_jax.judge` on files of programs: a line out per line in, whatever comes in."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_jax import judge
from prm_jax.sandbox import in_process
from prm_jax.types import CallTests, CheckTests, StdioTests

FIELDS = {
    "id", "status", "passed", "tests_passed", "tests_total", "cpu_s", "wall_s", "tier", "message"
}  # fmt: skip
SQUARE = "def f(x): return x * x"
CHECK = "def check(candidate):\n    assert candidate(2) == 4\n"
JUDGED = [
    ({"id": "a", "program": SQUARE, "tests": ["assert f(2) == 4", "assert f(3) == 9"]}, "passed"),
    ({"id": 2, "program": SQUARE, "test": CHECK, "entry_point": "f"}, "passed"),
    ({"id": "c", "program": "print(input())", "cases": [["1", "1"], ["2", "3"]]}, "failed"),
    ({"id": "d", "program": "def f(x", "tests": ["assert f(2) == 4"]}, "error"),
    (
        {"id": "e", "program": "while True: pass", "tests": ["assert f(2) == 4"], "cpu_s": 0.2},
        "timeout",
    ),
    (
        {"id": "m", "program": "a = bytearray(1 << 26)", "tests": ["assert a"], "memory_mib": 20},
        "memory",
    ),
    ({"id": "g", "program": "import os\nos.fork()", "tests": ["assert a"]}, "forbidden"),
    (
        {
            "id": "t",
            "program": "def f(x): return x / 3",
            "tests": ["assert f(1) == 0.3333"],
            "float_tolerance": 1e-3,
        },
        "passed",
    ),
    (
        {
            "id": "s",
            "program": "def f(x): return x + y",
            "test_list": ["assert f(1) == 3"],
            "test_setup_code": "y = 2",
        },
        "passed",
    ),
]
MALFORMED = [
    b"not json",
    b"[1]",
    b"",
    b"\xff\xfe",
    b'{"id": 1}',
    b'{"id": 1, "program": 5, "tests": ["assert f(1)"]}',
    b'{"id": 1, "program": "x"}',
    b'{"id": 1, "program": "x", "tests": []}',
    b'{"id": 1, "program": "x", "tests": "assert f(1)"}',
    b'{"id": 1, "program": "x", "tests": ["assert f(1) =="]}',
    b'{"id": 1, "program": "x", "test": "def check(c): pass"}',
    b'{"id": 1, "program": "x", "test": "x = 1", "entry_point": "f"}',
    b'{"id": 1, "program": "x", "cases": [["1"]]}',
    b'{"id": 1, "program": "x", "task_id": "unknown"}',
    b'{"id": 1, "program": "x", "tests": ["assert f(1)"], "cpu_s": -1}',
    b'{"id": 1, "program": "x", "tests": ["assert f(1)"], "cpu_s": "2"}',
    b"[" * 100_000,
    b'{"id": NaN, "program": "x", "tests": ["assert f(1)"]}',
    b'{"id": 1, "program": "x", "suite": "def test_a(): pass"}',
    b'{"id": ' + b"9" * 10_000 + b"}",
]


def run(folder: Path, lines: list[bytes], *options: str) -> tuple[int, list[dict]]:
    """Exit status and records of a run on these lines."""
    (folder / "programs.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    out = folder / "out.jsonl"
    arguments = ["--programs", str(folder / "programs.jsonl"), "--out", str(out)]
    status = judge.main([*arguments, "--min-tier", "T4", *options])
    return status, [json.loads(line) for line in out.read_text().splitlines()]


def encode(row: dict) -> bytes:
    return json.dumps(row).encode()


def test_every_kind_of_line_is_judged(tmp_path):
    status, records = run(tmp_path, [encode(row) for row, _ in JUDGED])
    assert status == 0
    assert [r["id"] for r in records] == [row["id"] for row, _ in JUDGED]
    assert [r["status"] for r in records] == [expected for _, expected in JUDGED]
    for record in records:
        assert set(record) == FIELDS
        assert record["passed"] == (record["status"] == "passed")
        assert record["tier"].startswith("T")
        assert record["passed"] or record["message"]
    assert (records[0]["tests_passed"], records[0]["tests_total"]) == (2, 2)
    assert (records[2]["tests_passed"], records[2]["tests_total"]) == (1, 2)


def test_malformed_lines_do_not_stop_the_others(tmp_path):
    good = encode(JUDGED[0][0])
    lines = [line for bad in MALFORMED for line in (bad, good)]
    status, records = run(tmp_path, lines)
    assert status == 1
    assert [r["status"] for r in records] == ["infrastructure", "passed"] * len(MALFORMED)
    for number, record in enumerate(records, 1):
        assert set(record) == FIELDS
        if record["status"] == "infrastructure":
            assert record["message"] and not record["passed"]
            assert record["message"].startswith(f"line {number}: ")


PROMPT = "def helper(x):\n    return x + 1\n\n\ndef f(x):\n    '''Add one.'''\n"
PROBLEMS = [
    {
        "task_id": "P/1",
        "prompt": PROMPT,
        "entry_point": "f",
        "test": "def check(candidate):\n    assert helper(candidate(1)) == 3\n",
    },
    {"task_id": 2, "test_list": ["assert g(1) == 1"], "test_setup_code": ""},
    {"task_id": "P/3", "cases": [["1", "1"]]},
]


@pytest.mark.parametrize("name", ["problems.jsonl", "problems.jsonl.gz"])
def test_problems_are_joined_by_task_id(tmp_path, name):
    data = b"\n".join(encode(problem) for problem in PROBLEMS)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    lines = [
        {"id": "right", "task_id": "P/1", "program": PROMPT + "    return x + 1"},
        {"id": "wrong", "task_id": "P/1", "program": PROMPT + "    return x"},
        {
            "id": "brings its own helper",
            "task_id": "P/1",
            "program": "def helper(x): return 3\ndef f(x): return 0",
        },
        {"id": "number", "task_id": 2, "program": "def g(x): return x"},
        {"id": "stdio", "task_id": "P/3", "program": "print(input())"},
        {"id": "own tests", "task_id": "P/3", "program": "x = 1", "tests": ["assert x == 1"]},
        {"task_id": "P/3", "program": "print(2)"},
    ]
    status, records = run(tmp_path, list(map(encode, lines)), "--problems", str(tmp_path / name))
    assert status == 0
    statuses = ["passed", "failed", "failed", "passed", "passed", "passed", "failed"]
    assert [r["status"] for r in records] == statuses
    assert records[-1]["id"] == "P/3"


def test_problems_become_tests():
    one, two, three = (judge._tests(problem, {}) for problem in PROBLEMS)
    assert isinstance(one, CheckTests) and "def helper" in one.code and "def f" not in one.code
    assert two == CallTests(("assert g(1) == 1",))
    assert three == StdioTests((("1", "1"),))


@pytest.mark.parametrize(
    "options",
    [
        ["--programs", "nowhere.jsonl"],
        ["--programs", "."],
        ["--programs", "programs.jsonl", "--problems", "nowhere.jsonl"],
        ["--programs", "programs.jsonl", "--problems", "programs.jsonl"],
        ["--programs", "programs.jsonl", "--out", "no/such/folder.jsonl"],
    ],
)
def test_unusable_input(tmp_path, monkeypatch, capsys, options):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "programs.jsonl").write_bytes(encode(JUDGED[0][0]) + b"\n")
    assert judge.main([*options, "--min-tier", "T4"]) == 2
    assert capsys.readouterr().err.startswith("judge: ")


@pytest.mark.parametrize(
    "options",
    [[], ["--jobs", "-1"], ["--cpu-s", "0"], ["--memory-mib", "0"], ["--min-tier", "T9"]],
)
def test_bad_options(options, capsys):
    with pytest.raises(SystemExit) as exit_:
        judge.main(["--programs", "x", *options] if options else [])
    assert exit_.value.code == 2
    assert capsys.readouterr().err


def test_the_command_writes_to_standard_output(tmp_path):
    (tmp_path / "programs.jsonl").write_bytes(encode(JUDGED[0][0]))
    command = [sys.executable, "-m", "prm_jax.judge", "--programs", "programs.jsonl"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    environment["PYTHONPATH"] += os.pathsep + str(Path(__file__).parents[1])
    done = subprocess.run(
        [*command, "--min-tier", "T4"], cwd=tmp_path, env=environment, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "passed"
    assert done.stderr == b""


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=30).filter(lambda b: b"\n" not in b),
            st.dictionaries(
                st.sampled_from(
                    ["id", "program", "tests", "test", "cases", "task_id", "entry_point", "cpu_s"]
                ),
                st.recursive(
                    st.one_of(st.none(), st.booleans(), st.floats(), st.text(max_size=4)),
                    lambda inner: st.lists(inner, max_size=2),
                    max_leaves=4,
                ),
            ).map(lambda row: json.dumps(row).encode()),
        ),
        max_size=4,
    )
)
def test_any_line_is_read_or_refused(lines):
    class Accepts:
        def submit(self, program, tests, limits):
            assert isinstance(program, str)
            assert isinstance(tests, CallTests | CheckTests | StdioTests)
            assert limits.cpu_s > 0 and limits.memory_mib >= 1

    limits = judge.Limits()
    for number, line in enumerate(lines, 1):
        item = judge._submit(number, line, {}, limits, Accepts())  # type: ignore[arg-type]
        assert item.trouble == "" or item.trouble.startswith(f"line {number}: ")


SUITE = """
import unittest
from program import Stack

class Base(unittest.TestCase):
    def setUp(self): self.stack = Stack()
    def test_push(self):
        self.stack.push(1)
        self.assertEqual(self.stack.items, [1])

class More(Base):
    def test_pop(self):
        self.stack.push(2)
        self.assertEqual(self.stack.pop(), 2)

class TestPlain:
    def setup_method(self): self.stack = Stack()
    def test_empty(self): assert not self.stack.items

def test_function(): assert isinstance(Stack(), Stack)
"""
STACK = """
class Stack:
    def __init__(self): self.items = []
    def push(self, x): self.items.append(x)
    def pop(self): return self.items.pop()
"""


def test_suites_run_in_process_on_request_only(tmp_path):
    programs = {
        "right": (STACK, "passed", 5),
        "wrong": (STACK.replace("return self.items.pop()", "return None"), "failed", 4),
        "raises": (STACK.replace("pop()", "pop(9)", 2), "error", 4),
        "forged": (STACK + "import unittest\nunittest.TestCase.assertEqual = print\n", "passed", 5),
    }
    lines = [
        encode({"id": name, "program": program, "suite": SUITE})
        for name, (program, _, _) in programs.items()
    ]
    status, records = run(tmp_path, lines, "--in-process")
    assert status == 0
    for record in records:
        _, expected, passed = programs[record["id"]]
        assert (record["status"], record["tests_passed"]) == (expected, passed), record
        assert record["tests_total"] == 5
        assert "can forge this verdict" in record["message"]
    status, records = run(tmp_path, lines)
    assert status == 1
    assert {r["status"] for r in records} == {"infrastructure"}
    assert all("--in-process" in r["message"] for r in records)


@pytest.mark.parametrize(
    "suite", ["", "x = 1", "def test_a(fixture): pass", "def f(", "async def test(): pass"]
)
def test_suites_that_cannot_run_are_refused(suite):
    with pytest.raises(in_process.BadSuite):
        in_process.as_calls("x = 1", suite)


def test_nothing_but_judge_reaches_in_process_suites():
    package = Path(judge.__file__).parent
    users = {p.name for p in package.rglob("*.py") if "in_process" in p.read_text()}
    assert users == {"judge.py"}, "rewards must not rest on verdicts that a program can forge"


def test_a_helper_that_only_the_program_defines_is_told(tmp_path):
    test = "def check(candidate):\n    assert helper(candidate(1)) == 3\n"
    row = {
        "program": "def helper(x): return 3\ndef f(x): return 0",
        "test": test,
        "entry_point": "f",
    }
    status, records = run(tmp_path, [encode(row), encode({**row, "prompt": PROMPT})])
    assert [r["status"] for r in records] == ["passed", "failed"]
    assert "helper of the program" in records[0]["message"]


@pytest.mark.parametrize("damage", [slice(0, 40), slice(10, None), slice(0, -12)])
def test_a_damaged_archive_is_unusable_input(tmp_path, damage, capsys):
    path = tmp_path / "programs.jsonl.gz"
    path.write_bytes(gzip.compress(os.urandom(500).hex().encode())[damage])
    assert (
        judge.main(["--programs", str(path), "--min-tier", "T4", "--out", str(tmp_path / "o")]) == 2
    )
    assert capsys.readouterr().err.startswith("judge: ")


DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize(
    ("problems", "lines"),
    [
        (
            "human_eval",
            [
                ("HumanEval/23", "def strlen(s): return len(s)", "passed"),
                ("HumanEval/23", "def strlen(s): return 0", "failed"),
                ("HumanEval/999", "x = 1", "infrastructure"),
            ],
        ),
        (
            str(DATA / "human_eval_plus.jsonl"),
            [
                ("HumanEval/9001", "def mean_gap(x): return 1.5 * (len(x) > 2)", "failed"),
                ("HumanEval/32", "def find_zero(x): return [0, 0, -0.5, 0, 3][len(x)]", "passed"),
            ],
        ),
        (
            f"codecontests:{DATA / 'codecontests.jsonl'}",
            [("9001_A. Echo", "print(input())", "passed"), ("9001_A. Echo", "print(1)", "failed")],
        ),
    ],
)
def test_published_sets_are_known_by_name_or_fields(tmp_path, monkeypatch, problems, lines):
    monkeypatch.chdir(tmp_path)
    rows = [encode({"task_id": name, "program": program}) for name, program, _ in lines]
    status, records = run(tmp_path, rows, "--problems", problems)
    assert [r["status"] for r in records] == [expected for _, _, expected in lines]
    assert status == any(expected == "infrastructure" for _, _, expected in lines)


def test_a_line_goes_before_its_problem_and_that_before_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    problem = {"task_id": 1, "cases": [["", "1"]]}
    endless = {"task_id": 1, "program": "while True: pass"}
    for fields, of_line, least, most in (
        ({"cpu_s": 0.5}, {}, 0.4, 0.9),
        ({"cpu_s": 0.5}, {"cpu_s": 0.1}, 0.05, 0.4),
        ({}, {}, 1.0, 1.9),
    ):
        (tmp_path / "p.jsonl").write_bytes(encode({**problem, **fields}))
        line = encode({**endless, **of_line})
        _, (record,) = run(tmp_path, [line], "--problems", "p.jsonl", "--cpu-s", "1.2")
        assert record["status"] == "timeout" and least < record["cpu_s"] < most


@pytest.mark.slow
def test_the_built_in_problems_are_known_by_name(tmp_path, monkeypatch):
    from prm_jax.config import ProblemsConfig
    from prm_jax.problems import load_problems

    monkeypatch.chdir(tmp_path)
    sets = load_problems(ProblemsConfig(), Path(judge._DATA_FOLDER), judge.Limits())
    problems = [*sets.train[:20], *sets.held_out["test"][:5], *sets.held_out["test_long"][:5]]
    lines = [
        encode({"task_id": p.task_id, "program": p.program(completion)})
        for p in problems
        for completion in (p.solution, "    return None\n")
    ]
    status, records = run(tmp_path, lines, "--problems", "chains")
    assert status == 0
    assert [r["passed"] for r in records] == [True, False] * len(problems)
