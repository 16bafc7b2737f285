"""Verdicts that runs share: found again, forgotten when anything changes, and never in the way."""

import concurrent.futures
import multiprocessing
import sqlite3
from pathlib import Path

import pytest

from prm_jax.process import verdicts_file
from prm_jax.sandbox import Sandbox, memo
from prm_jax.sandbox.memo import Memo
from prm_jax.types import CallTests, Limits, Verdict

TESTS = CallTests(("assert f() == 1",))
PROGRAM = "def f():\n    return sum(range(100_000)) and 2\n"
PASSED, KEY = Verdict("passed", 3, 3, cpu_s=0.25, message="é"), b"k" * 32


def judged(path: Path | None, program: str = PROGRAM, **settings) -> Verdict:
    """The verdict, whose times say which execution it comes from."""
    with Sandbox(1, memo=path, **settings) as sandbox:
        return sandbox.submit(program, TESTS, Limits()).result()


def test_another_run_does_not_execute_a_program_again(tmp_path):
    path = tmp_path / "cache/verdicts"
    first = judged(path)
    assert first.status == "failed" and first.cpu_s > 0
    assert judged(path) == first
    assert judged(None) != first
    assert judged(tmp_path / "other") != first


def test_what_may_change_a_verdict_is_part_of_its_key(tmp_path, monkeypatch):
    path = tmp_path / "verdicts"
    first = judged(path)
    with Sandbox(1, memo=path) as sandbox:
        assert sandbox.submit(PROGRAM, TESTS, Limits()).result() == first
        for work in (
            (PROGRAM + "#", TESTS, Limits()),
            (PROGRAM, CallTests(("assert f() == 2",)), Limits()),
            (PROGRAM, TESTS, Limits(cpu_s=3)),
        ):
            assert sandbox.submit(*work).result() != first
    assert judged(path, without=("cgroup",)) != first
    monkeypatch.setattr(memo.importlib.metadata, "distributions", lambda: [])
    assert judged(path) != first


@pytest.fixture
def known(tmp_path):
    found = Memo(tmp_path / "verdicts")
    yield found
    found.close()


def test_verdicts_of_weaker_isolation_are_not_taken(tmp_path, known):
    known.put(KEY, PASSED)
    other = Memo(tmp_path / "verdicts", isolation="T2 []")
    assert other.get(KEY) is None
    other.put(KEY, Verdict("failed", 0, 3))
    assert known.get(KEY) == PASSED
    other.close()


def test_a_verdict_under_anothers_key_is_not_believed(tmp_path, known, caplog):
    known.put(KEY, PASSED)
    known.put(b"other", Verdict("failed", 0, 3))
    file = sqlite3.connect(tmp_path / "verdicts", isolation_level=None)
    passed = file.execute("SELECT verdict FROM verdicts WHERE number = 1").fetchone()
    file.execute("UPDATE verdicts SET verdict = ? WHERE number = 2", passed)
    file.close()
    assert known.get(b"other") is None
    assert "not of the program" in caplog.text


@pytest.mark.parametrize("status", ["timeout", "memory"])
def test_what_a_busy_machine_may_cause_is_not_kept(known, status):
    known.put(KEY, Verdict(status, 0, 3))
    assert known.get(KEY) is None
    known.put(KEY, PASSED)
    assert known.get(KEY) == PASSED


def test_the_oldest_are_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr(memo, "MOST", 3)
    known = Memo(tmp_path / "verdicts")
    for i in range(5):
        known.put(bytes([i]), PASSED)
    known.close()
    again = Memo(tmp_path / "verdicts")
    assert [again.get(bytes([i])) is None for i in range(5)] == [True, True, False, False, False]
    again.close()


def test_a_broken_file_is_told_and_done_without(tmp_path, caplog):
    path = tmp_path / "verdicts"
    path.write_bytes(b"no database" * 1000)
    assert judged(path).status == "failed"
    assert str(path) in caplog.text and "delete the file" in caplog.text
    assert len(caplog.records) == 1  # told once


def test_a_verdict_that_cannot_be_read_is_judged_again(tmp_path, known):
    known.put(KEY, PASSED)
    file = sqlite3.connect(tmp_path / "verdicts", isolation_level=None)
    file.execute("UPDATE verdicts SET verdict = '{\"status\": 1'")
    file.close()
    assert known.get(KEY) is None
    assert judged(tmp_path / "verdicts").status == "failed"


def test_a_folder_that_cannot_be_made_is_told_and_done_without(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    known = Memo(tmp_path / "file/verdicts")
    known.put(KEY, PASSED)
    assert known.get(KEY) is None
    known.close()
    assert "not used" in caplog.text


def fill(path: str, start: int) -> int:
    known = Memo(Path(path))
    for i in range(start, start + 200):
        known.put(i.to_bytes(2, "big"), PASSED)
    found = sum(known.get(i.to_bytes(2, "big")) == PASSED for i in range(start, start + 200))
    known.close()
    return found


def test_processes_share_a_file(tmp_path, known):
    path = str(tmp_path / "verdicts")
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(4, mp_context=context) as pool:
        assert list(pool.map(fill, [path] * 4, [0, 100, 200, 300])) == [200] * 4
    assert all(known.get(i.to_bytes(2, "big")) == PASSED for i in range(500))


def test_where_the_file_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("PRM_JAX_VERDICTS", str(tmp_path / "mine"))
    assert verdicts_file() == tmp_path / "mine"
    monkeypatch.setenv("PRM_JAX_VERDICTS", "")
    assert verdicts_file() is None
    monkeypatch.delenv("PRM_JAX_VERDICTS")
    named = verdicts_file()
    assert named is not None and named.parent == Path.home() / ".cache/prm_jax/verdicts"


def test_the_memo_is_closed_with_a_sandbox_that_was_given_up(tmp_path):
    with Sandbox(1, memo=tmp_path / "verdicts") as sandbox:
        sandbox._closed = True  # as the reading thread leaves it when no broker starts any more
    assert sandbox._memo is not None and sandbox._memo._file is None
    sandbox._closed = False
    sandbox.close()
