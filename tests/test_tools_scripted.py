"""`prm_jax.label` and `prm_jax.evaluate` with a scripted model, so that every number is known."""

import fcntl
import json
from pathlib import Path

import pytest
import scripted

from prm_jax import evaluate, label
from prm_jax.config import ConfigError
from prm_jax.stages.journal import Journal

HEAD = "def f(x):\n"
REFERENCE = (
    "    # twice, in two steps",
    "    y = x + x",
    "    y = y + 0",
    "",
    "    for i in range(2):",
    "        y = y + i",
    "    return y - 1",
)
WRONG = "    y = 5 + 0 * y"  # nothing after it gets x back
PROBLEM = {
    "task_id": "twice",
    "prompt": HEAD,
    "program_prefix": HEAD,
    "solution": "".join(line + "\n" for line in REFERENCE),
    "tests": ["assert f(2) == 4", "assert f(-3) == -6"],
}
CODE = [i for i, line in enumerate(REFERENCE) if line.strip() and not line.strip().startswith("#")]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return scripted.model(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")


def write_lines(path: str, rows: list[dict]) -> None:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_lines(path: str | Path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def the_rest(start: str, sample: int) -> str:
    """The lines of the reference that the prefix has none for yet."""
    n_lines = start.removeprefix(HEAD).count("\n")
    return "".join(line + "\n" for line in REFERENCE[n_lines:])


def broken(at: int) -> str:
    """The reference with a line that loses x in the place of line `at`."""
    indent = REFERENCE[at][: len(REFERENCE[at]) - len(REFERENCE[at].lstrip())]
    wrong = "return 0" if REFERENCE[at].strip().startswith("return") else WRONG.strip()
    wrong = "y = 5" if at == CODE[0] else wrong
    if REFERENCE[at].strip().startswith("for"):
        wrong = f"y = 5\n{indent}{REFERENCE[at].strip()}"
    lines = [*REFERENCE[:at], indent + wrong, *REFERENCE[at + 1 :]]
    return HEAD + "\n".join(lines) + "\n"


# Where a comment is a step too, and a blank line is none.
PROGRAMS = [
    {"id": "reference", "task_id": "twice", "completion": PROBLEM["solution"]},
    *({"id": f"broken at {i}", "task_id": "twice", "program": broken(i)} for i in CODE),
    {"id": "as a response", "task_id": "twice", "response": broken(CODE[0])[len(HEAD) :]},
    {"id": "whole", "task_id": "twice", "program": HEAD + PROBLEM["solution"]},
    {"id": "empty", "task_id": "twice", "completion": ""},
    {"id": "comments", "task_id": "twice", "completion": "    # nothing\n\n    # at all\n"},
]
LINES = {"text", "kind", "label", "passes", "samples"}
ROWS = {"id", "task_id", "status", "passed", "class", "first_error", "lines"}


def labelled(model: Path, *options: str, status: int = 0) -> list[dict]:
    write_lines("problems.jsonl", [PROBLEM])
    write_lines("programs.jsonl", PROGRAMS)
    argv = ["--model", str(model), "--programs", "programs.jsonl", "--problems", "problems.jsonl"]
    assert label.main([*argv, "--min-tier", "T4", "--k", "2", "--wave", "1", *options]) == status
    folders = list(Path("runs/label").iterdir())
    assert len(folders) == 1 and folders[0].name.startswith(f"{model.name}-programs-")
    return [] if status else read_lines(folders[0] / "labels.jsonl")


@pytest.mark.parametrize("search", ["binary", "dense"])
def test_a_line_that_is_broken_for_good_is_labelled_from_there_on(model, monkeypatch, search):
    scripted.play(monkeypatch, model, the_rest)
    rows = labelled(model, "--search", search)
    assert [row["id"] for row in rows] == [program["id"] for program in PROGRAMS]
    by_id = {row["id"]: row for row in rows}
    for row in rows:
        assert set(row) == ROWS and all(set(line) == LINES for line in row["lines"])
        assert row["task_id"] == "twice" and row["passed"] == (row["status"] == "passed")
        for line in row["lines"]:
            assert (line["label"] is None) == (line["kind"] == "blank")
            assert (line["label"] == 0) == (line["kind"] == "comment")
            if line["samples"]:
                assert line["samples"] <= 2 and line["passes"] <= line["samples"]
    for name in ("reference", "whole"):
        row = by_id[name]
        assert row["class"] == "correct" and row["first_error"] is None
        assert [line["text"] for line in row["lines"]] == list(REFERENCE)
        assert [line["label"] for line in row["lines"]] == [0, 1, 1, None, 1, 1, 1]
        assert not any(line["samples"] for line in row["lines"])
    for at in CODE:
        row = by_id[f"broken at {at}"]
        first = row["first_error"]
        assert not row["passed"] and row["class"] == "revised", row
        assert first == at
        for i, line in enumerate(row["lines"]):
            if line["kind"] == "code":
                assert line["label"] == (1 if i < at else -1)
                if search == "dense":
                    assert line["samples"] == (1 if i < at else 2)
                    assert line["passes"] == (i < at)
    assert by_id["as a response"]["lines"] == by_id[f"broken at {CODE[0]}"]["lines"]
    assert by_id["empty"]["lines"] == [] and by_id["empty"]["class"] == "wrong"
    # The function of the comments alone has no body, and the rest of the reference mends it.
    assert [line["label"] for line in by_id["comments"]["lines"]] == [0, None, 0]


def test_labels_go_on_where_they_stopped(model, monkeypatch, capsys):
    scripted.play(monkeypatch, model, the_rest)
    options = ("--device-batch", "2", "--seed", "3")
    whole = labelled(model, *options)
    folder = next(Path("runs/label").iterdir())
    text = (folder / "labels.jsonl").read_bytes()
    again = scripted.play(monkeypatch, model, the_rest)
    assert labelled(model, *options) == whole and not again.widths

    for path in folder.iterdir():
        if path.is_file():
            path.unlink()
    first = scripted.play(monkeypatch, model, the_rest, interrupt_at=5)
    labelled(model, *options, status=130)
    assert "the same command goes on" in capsys.readouterr().err
    assert len(first.widths) == 5 and not (folder / "labels.jsonl").exists()
    kept = sum(len(read_lines(path)) for path in folder.glob("journal*"))
    assert 0 < kept <= len(first.starts)  # not those that were under way
    rest = scripted.play(monkeypatch, model, the_rest)
    labelled(model, *options)
    assert (folder / "labels.jsonl").read_bytes() == text
    for path in folder.glob("journal*"):
        path.unlink()
    anew = scripted.play(monkeypatch, model, the_rest)
    labelled(model, *options)
    assert len(rest.starts) == len(anew.starts) - kept


def test_a_problem_whose_tests_were_mended_is_judged_anew(model, monkeypatch):
    scripted.play(monkeypatch, model, the_rest)
    argv = ["--model", str(model), "--problems", "p.jsonl", "--samples", "1", "--min-tier", "T4"]
    for tests, passes in ((["assert f(2) == 5"], False), (["assert f(2) == 4"], True)):
        write_lines("p.jsonl", [PROBLEM | {"tests": tests}])
        assert evaluate.main(argv) == 0
        folder = next(Path("runs/evaluate").iterdir())
        assert [row["passed"] for row in read_lines(folder / "samples.jsonl")] == [passes]
    assert len(list(Path("runs/evaluate").iterdir())) == 1


def test_prompts_that_the_model_cannot_read_count_as_failed(tmp_path, monkeypatch, capsys):
    model = scripted.model(tmp_path / "small", positions=600)
    long = "# " + "x" * 700 + "\n"
    write_lines("p.jsonl", [
        PROBLEM, PROBLEM | {"task_id": "long", "prompt": long + HEAD, "program_prefix": HEAD}
    ])  # fmt: skip
    played = scripted.play(monkeypatch, model, the_rest)
    argv = ["--model", str(model), "--problems", "p.jsonl", "--samples", "2", "--min-tier", "T4",
            "--best-of", "2", "--out", "out", "--max-completion-tokens"]  # fmt: skip
    assert evaluate.main([*argv, "300"]) == 0
    said = capsys.readouterr().err
    assert "1 of 2 problems count as failed (too_long)" in said and "600 positions" in said
    assert set(played.starts) == {HEAD}
    results = json.loads(Path("out/results.json").read_text())
    assert results["statuses"] == {"passed": 2, "too_long": 2}
    assert results["pass_at_k"]["1"]["value"] == results["best_of_n"]["oracle"]["value"] == 0.5
    assert [row["n"] for row in results["by_length"].values()] == [1]
    assert [row["completion"] for row in read_lines("out/samples.jsonl")][2:] == ["", ""]
    # Where nothing fits, and where a setting mends it, that is said before any work.
    assert evaluate.main([*argv, "599"]) == 2
    assert "made for 600 positions, and the shortest prompt takes 10" in capsys.readouterr().err
    assert evaluate.main([*argv, "300", "--max-prompt-tokens", "9"]) == 2
    assert "give --max-prompt-tokens 10" in capsys.readouterr().err


def test_a_journal_that_is_damaged_or_in_use_is_refused(model, capsys, monkeypatch):
    scripted.play(monkeypatch, model, the_rest)
    write_lines("problems.jsonl", [PROBLEM])
    argv = ["--model", str(model), "--problems", "problems.jsonl", "--out", "out",
            "--samples", "1", "--min-tier", "T4"]  # fmt: skip
    assert evaluate.main(argv) == 0
    journal = Path("out/journal.jsonl")
    whole = journal.read_bytes()
    for damage in (b"[1]\n", b'{"key": 1}\n', b"\0\0\n", b'{"value": {}\n'):
        journal.write_bytes(damage + whole)
        with pytest.raises(ConfigError, match="line 1 is damaged"):
            Journal(journal)
        assert journal.read_bytes() == damage + whole  # nothing is lost
    capsys.readouterr()
    assert evaluate.main(argv) == 2
    assert "journal.jsonl, line 1 is damaged: remove that line" in capsys.readouterr().err
    journal.write_bytes(whole + b'{"key": "torn')
    with Journal(journal):
        assert journal.read_bytes() == whole
    with journal.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        capsys.readouterr()
        assert evaluate.main(argv) == 2
        assert "in use by another process" in capsys.readouterr().err
