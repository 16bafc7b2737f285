"""Formats of published sets, on invented problems in their form: right and wrong solutions."""

import ast
import base64
import json
import os
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_jax.problems import BadRow, ProblemsError, read_problems
from prm_jax.problems.formats import by_name, livecodebench, recognised
from prm_jax.problems.formats.literals import literal
from prm_jax.problems.rows import Row, read_rows
from prm_jax.sandbox import Sandbox
from prm_jax.sandbox.core import asserts, identifiers
from prm_jax.types import CallTests, CheckTests, Limits, StdioTests, Verdict

DATA = Path(__file__).parent / "data"
# By file and task: completions that are not the reference, and whether they pass.
OTHERS = {
    "human_eval_plus": {
        "HumanEval/9001": [
            ("    return (xs[-1] - xs[0]) / (len(xs) - 1) if len(xs) > 1 else 0.0\n", True),
            ("    return (xs[-1] - xs[0]) / (len(xs) - 1)\n", False),  # base inputs: 1 of 2
            ("    gaps = [b - a for a, b in zip(xs, xs[1:])]\n    return sum(gaps) / 2\n", False),
            ("    return None\n", False),
        ],
        "HumanEval/9002": [
            ("    return sorted(w + w for w in words)\n", True),
            ("    return words\ndef twice(w): return w\n", False),
            ("    return [w + w for w in words]\n", False),
        ],
        "HumanEval/32": [
            ("    return -0.5 if len(xs) == 2 else 2.0\n", True),  # another zero is right too
            ("    return -0.5\n", False),
            ("    return 7.0\npoly = lambda xs, x: 0.0\n", False),
        ],
    },
    "mbpp_plus": {
        "Mbpp/2": [
            ("def similar_elements(a, b): return list({*a} & {*b}) * 2\n", True),  # as a set
            ("def similar_elements(a, b): return a\n", False),
            (
                "class E(tuple):\n    def __eq__(s, o): return True\n    __hash__ = None\n"
                "def similar_elements(a, b): return E()\n",
                False,
            ),
        ],
        "Mbpp/252": [
            ("import math\ndef polar(z): return abs(z), math.atan2(z.imag, z.real)\n", True),
            ("import math\ndef polar(z): return [abs(z), math.atan2(z.imag, z.real)]\n", False),
        ],
        "Mbpp/9003": [("def invert(d): return {v: k for k, v in list(d.items())[:1]}\n", False)],
    },
    "mbpp_plus_script": {
        "11": [
            ("def add(x, y): return y + x\n", True),
            ("def add(x, y): return 3\n", False),
        ],
    },
    "livecodebench": {
        "x1_a": [
            ("print(int(input()) / 2)\n", True),
            ("print('1.5')\n", False),
            ("print(int(input()) / 2 + 1e-6)\n", False),
        ],
        "9101": [
            ("class Solution:\n    def ends(self, x: List[int], y): return x[0], x[-1]", True),
            ("class Solution:\n    def ends(self, nums, name): return [1, 3]", False),
            ("def ends(nums, name): return [nums[0], nums[-1]]", False),
        ],
        "x1_b": [("print(sum(map(int, input().split())))", True), ("print(3)", False)],
    },
    "apps": {
        "apps/test/1": [("print(sum(map(int, open(0))))", True), ("print(3)", False)],
        "apps/test/2": [
            ("def order(*x): return sorted(x)", True),
            ("def order(*x): return [sorted(x)]", True),  # as the file has it
            ("def order(*x): return [1, 2]", False),
            ("def order(*x): return 1", False),  # the first of an answer is no answer
        ],
        "apps/test/3": [("class Solution:\n    def largest(self, d): return d[1]", False)],
    },
    "taco": {
        "taco/taco/0": [("print([0, 0, 1.50001, 1.33333][len(input().split())])", True),
                        ("print(1.5)", False)],
        "taco/taco/1": [
            ("def pairs(xs): return [[a, b] for a, b in zip(xs, xs[1:])]", True),
            ("def pairs(xs): return tuple(zip(xs, xs[1:]))", True),
            ("def pairs(xs): return [1, 2]", False),
        ],
    },
    "codecontests": {
        "9001_A. Echo": [("while True: print(input()); break", True), ("print('abc')", False)],
        "9001_B. Root": [
            ("import math\nprint(round(math.sqrt(int(input())), 6))", True),
            ("print('1.4142136')", False),
        ],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(min_tier="T4") as running:
        yield running


@pytest.mark.parametrize("file", OTHERS)
def test_references_pass_and_other_programs_are_judged(sandbox, tmp_path, file):
    benchmark = read_problems(str(DATA / f"{file}.jsonl"), tmp_path)
    assert benchmark.name == file.removesuffix("_script")
    (problems,) = benchmark.splits.values()
    assert [p.task_id for p in problems] == list(OTHERS[file])
    for problem in problems:
        if file != "livecodebench":  # it publishes no solutions
            judged = verdict(sandbox, problem, problem.solution)
            assert judged.passed, (problem.task_id, judged)
            for stop in benchmark.stop_strings:
                assert stop not in "\n" + problem.solution
        for completion, passes in OTHERS[file][problem.task_id]:
            judged = verdict(sandbox, problem, completion)
            assert judged.passed == passes, (problem.task_id, completion, judged)
            assert judged.status in ("passed", "failed", "error")


def verdict(sandbox: Sandbox, problem, completion: str) -> Verdict:
    return sandbox.submit(problem.program(completion), problem.tests, problem.limits).result()


def test_rows_without_tests_are_skipped_and_told(tmp_path):
    apps = read_problems(str(DATA / "apps.jsonl"), tmp_path)
    assert apps.skipped == (f"{DATA / 'apps.jsonl'}, line 4",)
    for _ in range(2):  # prepared, and then read from disk
        contests = read_problems(str(DATA / "codecontests.jsonl"), tmp_path)
        assert len(contests.skipped) == 1 and len(contests.splits["test"]) == 2


def test_kinds_limits_and_difficulties(tmp_path):
    def read(name: str) -> list:
        return list(read_problems(str(DATA / f"{name}.jsonl"), tmp_path).splits["test"])

    halves, pair, plain = read("livecodebench")
    assert isinstance(halves.tests, StdioTests) and halves.tests.float_tolerance == 1e-9
    assert [given for given, _ in halves.tests.cases] == ["3\n", "8\n", "1\n"]
    assert isinstance(pair.tests, CallTests) and len(pair.tests.asserts) == 2
    assert pair.tests.asserts[1] == r"assert Solution().ends([5], '\n') in ([5, 5], (5, 5))"
    assert "from typing import *" in pair.program_prefix and plain.program_prefix == ""
    assert "def ends" in pair.prompt and "def ends" in pair.instruction
    assert plain.tests == StdioTests((("1 2", "3"), ("4 5 6", "15")))
    echo, root = read("codecontests")
    assert echo.limits == Limits(1.5, 256) and (echo.difficulty, root.difficulty) == ("800", "B")
    assert len(echo.tests.cases) == 4 and echo.tests.float_tolerance == 0
    mean, pairs = read("taco")
    assert mean.limits == Limits(1.5, 128) and mean.tests.float_tolerance == 1e-5
    assert pairs.solution == "def pairs(xs):\n    return [*zip(xs, xs[1:])]\n"
    add = read("apps")[0]
    assert add.tests.cases == (("1\n2\n", "3\n"), ("3\n4", "7"))
    assert add.solution == "a = int(input())\nb = int(input())\nprint(a + b)\n"
    for name in ("human_eval_plus", "mbpp_plus", "mbpp_plus_script"):
        for problem in read(name):
            assert isinstance(problem.tests, CheckTests)
            free = set(identifiers.free_names(problem.tests.code))
            assert not free - identifiers.sources(problem.tests.code).keys(), (
                "the program's to forge"
            )


def test_folders_of_published_splits(tmp_path):
    data = (DATA / "apps.jsonl").read_text()
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).write_text(data)
    apps = read_problems(f"apps:{tmp_path}", tmp_path / "prepared")
    assert {split: ps[0].task_id for split, ps in apps.splits.items()} == {
        "train": "apps/train/1",
        "test": "apps/test/1",
    }


@pytest.mark.parametrize(
    ("starter", "solutions", "statement", "reference", "head"),
    [
        ("", ["def f(x): return x"], "f(1)", "def f(x): return x\n", "def f(...):"),
        ("def f(x):", ["class Solution:\n    def f(s, x): pass"], "f(1)", "", "def f(x):"),
        (
            "",
            ["class Solution:\n def f(s, x): return x"],
            "Solution().f(1)",
            "class Solution:\n def f(s, x): return x\n",
            "class Solution:\n    def f(self, ...):",
        ),
    ],
)
def test_calls_fit_what_is_asked_for(starter, solutions, statement, reference, head):
    cases = json.dumps({"fn_name": "f", "inputs": [[1]], "outputs": [1]})
    change = {"starter_code": starter, "solutions": json.dumps(solutions), "input_output": cases}
    problem = by_name("apps").problem(row_of("apps", 2, **change))
    assert problem is not None and problem.tests == CallTests((f"assert {statement} == 1",))
    assert problem.solution == reference
    assert head in problem.prompt and head in problem.instruction


def test_limits_in_words():
    for words, cpu_s in (("2.0 seconds", 2.0), ("1 second", 1.0), ("soon", 4.0), ("", 4.0)):
        problem = by_name("taco").problem(row_of("taco", 1, time_limit=words))
        assert problem is not None and problem.limits.cpu_s == cpu_s


# ------------------------------------------------------------------------------------- refusals


def row_of(file: str, line: int, **change: Any) -> Row:
    rows = list(read_rows((DATA / f"{file}.jsonl",)))
    row = rows[line - 1]
    return Row(row.file, row.number, {**row.fields, **change})


def packed(value: Any) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


@pytest.mark.parametrize(
    ("file", "field", "value"),
    [
        ("human_eval_plus", "base_input", 5),
        ("human_eval_plus", "base_input", [5]),
        ("human_eval_plus", "plus_input", "x"),
        ("human_eval_plus", "atol", "x"),
        ("human_eval_plus", "entry_point", None),
        ("mbpp_plus", "base_input", [[3]]),
        ("mbpp_plus_script", "test", "def f("),
        ("mbpp_plus_script", "test", "x = 1"),
        ("livecodebench", "question_content", 5),
        ("livecodebench", "public_test_cases", "x"),
        ("livecodebench", "public_test_cases", '[{"input": "1"}]'),
        ("livecodebench", "private_test_cases", "no base64"),
        ("livecodebench", "private_test_cases", packed(["a list"])),
        ("livecodebench", "private_test_cases", packed("not JSON")),
        ("livecodebench", "private_test_cases", packed("[]")[:-8]),
        ("livecodebench", "private_test_cases", base64.b64encode(b"junk").decode()),
        ("apps", "input_output", "{"),
        ("apps", "input_output", '{"inputs": ["1"], "outputs": []}'),
        ("apps", "input_output", '{"inputs": [1], "outputs": ["1"]}'),
        ("apps", "input_output", '{"inputs": [[1]], "outputs": [1], "fn_name": "a b"}'),
        ("apps", "input_output", '{"inputs": [1], "outputs": [1], "fn_name": "f"}'),
        ("apps", "solutions", '"x"'),
        ("apps", "problem_id", 1.5),
        ("taco", "time_limit", 2.0),
        ("taco", "memory_limit", 256),
        ("codecontests", "public_tests", {"input": ["1"], "output": []}),
        ("codecontests", "solutions", {"language": [3]}),
        ("codecontests", "time_limit", 5),
        ("codecontests", "difficulty", 1.5),
        ("codecontests", "cf_rating", "high"),
        ("codecontests", "name", None),
    ],
)
def test_a_wrong_field_is_named(file, field, value):
    row = row_of(file, 1, **{field: value})
    format = recognised(row_of(file, 1))
    with pytest.raises(BadRow) as error:
        format.problem(row)
    message = str(error.value)
    assert message.startswith(f"{DATA / file}.jsonl, line 1: {field} ")
    assert "it must be" in message


class _Runs:
    """What a hostile file may hold: to read its pickle would make a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_private_cases_run_no_code(tmp_path):
    made = tmp_path / "made"
    hostile = [
        pickle.dumps(_Runs(made)),
        pickle.dumps(("[]", _Runs(made)), protocol=0),
        b"cos\nsystem\n(S'mkdir " + str(made).encode() + b"'\ntR.",
        b"(S'" + str(made).encode() + b"'\nios\nmkdir\n.",
        pickle.dumps(Path),
        pickle.dumps(bytearray(b"[]"), protocol=5),
        pickle.dumps(b"[]"),
        b"Pname\n.",  # a persistent reference
        b"\x82\x01.",  # an extension
        b"",
    ]
    for data in hostile:
        value = base64.b64encode(zlib.compress(data)).decode()
        with pytest.raises(BadRow, match="private_test_cases"):
            livecodebench.problem(row_of("livecodebench", 1, private_test_cases=value))
    assert not made.exists()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.text(), st.integers(0, 5))
def test_the_reader_of_pickles_reads_texts(text, protocol):
    assert livecodebench.unpickled_text(pickle.dumps(text, protocol=protocol)) == text


json_values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5)
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(json_values)
def test_a_literal_is_equal_to_its_value(value):
    found = asserts.literal(identifiers.parse(literal(value), mode="eval").body)
    assert found == value and repr(found) == repr(value)


def test_literals_that_python_would_not_write():
    for large in (int("9" * 4000) ** 3, -(10**9000), 2**12_001, 2**12_000):
        tree = identifiers.parse(literal(large), mode="eval")
        assert asserts.literal(tree.body) == large
        assert eval(ast.unparse(tree)) == large
    assert literal({1, 2}) == "{1, 2}" and literal(set()) == "set()"


@pytest.mark.parametrize("file", OTHERS)
def test_a_set_is_recognised_by_its_fields(file):
    assert recognised(row_of(file, 1)).name == file.removesuffix("_script")


def test_unknown_names_are_refused():
    with pytest.raises(ProblemsError, match="'mpbb' is no problem set: it must be one of human_"):
        by_name("mpbb")
