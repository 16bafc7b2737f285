"""`python -m prm_jax.problems check`: failing, flaky, slow, forgeable and repeated problems."""

import itertools
import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_jax.problems import __main__ as command
from prm_jax.problems.duplicates import Member, duplicates, member
from prm_jax.types import CallTests, Problem

DATA = Path(__file__).parent / "data"
GOOD = {
    "task_id": "good",
    "prompt": "Write a function f that squares a number, whatever its sign may be.",
    "tests": ["assert f(2) == 4"],
    "solution": "def f(x): return x * x\n",
}
# 0.1 s of 1 s of CPU, and 0.8 s of it: measured in the program itself, so no machine is too slow.
BUSY = "import time\ndef f(x):\n    while time.process_time() < {}: pass\n    return x\n"


def run(folder: Path, rows: list[dict], *options: str) -> tuple[int, list[dict]]:
    """Exit status and report of a check of these rows."""
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = folder / "report.jsonl"
    arguments = ["check", str(path), "--out", str(out), "--data-dir", str(folder / "prepared")]
    status = command.main([*arguments, "--min-tier", "T4", *options])
    return status, [json.loads(line) for line in out.read_text().splitlines()]


def test_a_sound_set_passes(tmp_path, capsys):
    status, (record,) = run(tmp_path, [GOOD])
    assert status == 0
    assert record == {
        "set": "mine",
        "split": "test",
        "task_id": "good",
        "has_reference": True,
        "passed": True,
        "flaky": False,
        "slow": False,
        "statuses": ["passed"] * 3,
        "cpu_s": record["cpu_s"],
        "message": "",
        "forgeable_names": [],
        "duplicates": [],
    }
    printed = capsys.readouterr().out
    assert "references: 1 of 1 pass, run 3 times each (test 1/1)\nduplicates: none\n" in printed


def test_every_trouble_is_told(tmp_path, capsys):
    rows = [
        GOOD,
        {**GOOD, "task_id": "fails", "solution": "def f(x): return x\n"},
        {**GOOD, "task_id": "raises", "solution": "def f(x): return y\n"},
        {**GOOD, "task_id": "unreadable", "tests": ["assert f(2) =="]},
        {**GOOD, "task_id": "none", "solution": ""},
        {
            "task_id": "slow",
            "prompt": "p",
            "tests": ["assert f(2) == 2"],
            "solution": BUSY.format(0.8),
            "cpu_s": 1.0,
        },
        {
            "task_id": "many cases",
            "prompt": "p",
            "cases": [["1", "1"]] * 8,
            "solution": "import time\nwhile time.process_time() < 0.1: pass\nprint(input())\n",
            "cpu_s": 1.0,
        },
        {
            "task_id": "forgeable",
            "prompt": "p",
            "test": "def check(f):\n    assert twice(f(1)) == 2\n",
            "entry_point": "f",
            "solution": "def twice(x): return 2 * x\ndef f(x): return x\n",
        },
    ]
    rows = [{**row, "split": "train"} for row in rows]
    status, records = run(tmp_path, rows, "--repeat", "1")
    assert status == 1
    found = {record["task_id"]: record for record in records}
    assert [name for name, r in found.items() if not r["passed"]] == [
        "fails", "raises", "unreadable", "none",
    ]  # fmt: skip
    assert found["fails"]["statuses"] == ["failed"] and found["fails"]["message"]
    assert "NameError" in found["raises"]["message"]
    assert found["unreadable"]["statuses"] == ["infrastructure"]
    assert not found["none"]["has_reference"]
    assert [name for name, r in found.items() if r["slow"]] == ["slow"]
    assert found["many cases"]["cpu_s"] > 0.5, "its cases together, each is quick"
    assert found["forgeable"]["forgeable_names"] == ["twice"]
    printed = capsys.readouterr().out
    assert "references: 4 of 7 pass, run once each (train 4/7)" in printed
    assert "no reference: 1 problems" in printed
    assert "fails (train): failed: " in printed
    assert "slow (train): more than half of its CPU limit" in printed
    assert "forgeable (train): its test uses the program's twice" in printed


def test_a_flaky_reference_is_told(tmp_path, capsys):
    """One that reads the clock: it passes in some microseconds, and fails in others."""
    row = {
        **GOOD,
        "tests": ["assert f() == 0"],
        "solution": "import time\ndef f(): return time.time_ns() // 1000 % 2\n",
    }
    status, (record,) = run(tmp_path, [row], "--repeat", "20")
    assert status == 1 and record["flaky"] and not record["passed"]
    assert set(record["statuses"]) == {"passed", "failed"}
    assert "flaky: 1\n  good (test): " in capsys.readouterr().out


def test_problems_of_training_and_evaluation_sets_are_compared(tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    reworded = {
        **GOOD,
        "task_id": "reworded",
        "prompt": "Write a function f that squares a number, whatever its sign is.",
        "tests": ["assert f(-3) == 9"],
    }
    (other / "mine.jsonl").write_text(json.dumps(reworded) + "\n")
    rows = [
        {**GOOD, "split": "train"},
        {**GOOD, "task_id": "again", "prompt": GOOD["prompt"].upper() + "\nassert f(9) == 81\n"},
        {**GOOD, "task_id": "another", "prompt": "Write a function that adds two numbers."},
    ]
    status, records = run(tmp_path, rows, "--repeat", "1", "--against", str(other / "mine.jsonl"))
    assert status == 0, "duplicates are told, and do not fail the set"
    twins = {
        r["task_id"]: [(d["task_id"], d["part"], d["similarity"]) for d in r["duplicates"]]
        for r in records
    }
    # 13 words and 12, of which the first 11 are the same: 9 and 8 runs of five words, 7 of them
    # shared, 10 in all.
    assert twins == {
        "good": [("again", "prompt", 1.0), ("reworded", "prompt", 0.7)],
        "again": [("good", "prompt", 1.0), ("reworded", "prompt", 0.7)],
        "another": [],
    }
    printed = capsys.readouterr().out
    assert "duplicates of train and test: 1 exact, 0 near\n  good and again: prompt 1.00" in printed
    assert f"duplicates of train and {other / 'mine.jsonl'} test: 0 exact, 1 near" in printed


WORDS = "sort list word tree sum find number text pair count".split()
texts = st.lists(st.sampled_from(WORDS), min_size=0, max_size=40).map(" ".join)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(st.tuples(texts, texts), min_size=2, max_size=6), st.randoms())
def test_duplicates_are_what_comparing_all_pairs_finds(parts, chance: random.Random):
    """Against the definition, on texts that are near each other by a few changed words."""
    members = []
    for i, (prompt, solution) in enumerate(parts):
        for copy in range(2):
            words = prompt.split()
            if copy and words:
                words[chance.randrange(len(words))] = chance.choice(WORDS)
            members.append(Member("s", f"{copy}", f"{i}", " ".join(words), solution))
    found = {
        (p.first, p.second): (p.part, p.similarity)
        for p in duplicates(members, lambda a, b: a.split != b.split)
    }
    for a, b in itertools.combinations(members, 2):
        if a.split != b.split:
            best = max(
                jaccard(a.prompt, b.prompt, least=5), jaccard(a.solution, b.solution, least=12)
            )
            if best >= 0.7:
                assert found.pop((a, b))[1] == pytest.approx(best)
            else:
                assert (a, b) not in found
    assert not found


def jaccard(a: str, b: str, least: int) -> float:
    left, right = a.split(), b.split()
    if len(left) < least or len(right) < least:
        return 0.0
    one, two = ({tuple(w[i : i + 5]) for i in range(len(w) - 4)} for w in (left, right))
    if one == two and a != b:
        return len(one) / (len(one) + 1)
    return len(one & two) / len(one | two)


def test_near_duplicates_are_found_among_thousands():
    chance = random.Random(0)
    texts = [" ".join(f"w{chance.randrange(3000)}" for _ in range(60)) for _ in range(3000)]
    members = [Member("s", "train", f"{i}", f"read the line {t}", "") for i, t in enumerate(texts)]
    changed = texts[7].replace(" w", " w", 1).split()
    changed[30] = "another"
    members.append(Member("s", "test", "x", "read the line " + " ".join(changed), ""))
    (pair,) = duplicates(members, lambda a, b: a.split != b.split)
    assert (pair.first.task_id, pair.second.task_id) == ("7", "x") and not pair.exact


def test_tests_and_examples_are_no_words_of_a_prompt():
    problem = Problem("a", "Add One.\n  >>> f(1)\n2\nassert f(2) == 3\n", CallTests(("",)), "x=1\n")
    assert member("s", "train", problem) == Member("s", "train", "a", "add one 2", "x 1")


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "nowhere.jsonl"],
        ["check", "mbpp"],
        ["check", "human_eval", "--against", "nowhere"],
        ["check", "human_eval", "--out", "no/such/folder.jsonl"],
    ],
)
def test_unusable_input(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    assert command.main([*arguments, "--min-tier", "T4"]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("problems: ") and not printed.out


@pytest.mark.parametrize("arguments", [[], ["check"], ["check", "x", "--repeat", "0"], ["mend"]])
def test_bad_options(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        command.main(arguments)
    assert exit_.value.code == 2 and capsys.readouterr().err


def test_help_names_every_set(capsys):
    with pytest.raises(SystemExit):
        command.main(["check", "--help"])
    printed = capsys.readouterr().out
    for words in ("human_eval", "codecontests", "examples:", "exit status:", "docs/problems.md"):
        assert words in printed
