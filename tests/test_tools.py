"""`prm_jax.evaluate` and `prm_jax.score` on a run: every number of theirs, computed again."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import scripted

from prm_jax import evaluate, export, score
from prm_jax.metrics import MetricsLog
from prm_jax.problems import ProblemSets
from prm_jax.rl.lines import step_ends
from prm_jax.stages import attempts, chosen, prm

ROOT = Path(__file__).parents[1]
SAMPLES = 6


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """One compilation cache for all processes of this file; one device, as on a laptop."""
    cache = tmp_path_factory.mktemp("compiled")
    path = os.pathsep.join([str(ROOT), *(p for p in sys.path if p)])
    names = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    return os.environ | names


@pytest.fixture(scope="module")
def run(tmp_path_factory, environment) -> Path:
    """The workdir of a run that has a policy and a PRM."""
    workdir = tmp_path_factory.mktemp("run") / "micro"
    argv = ["--config", str(ROOT / "tests/micro.py"), "--workdir", str(workdir)]
    command = [sys.executable, "-m", "prm_jax.train", *argv, "--stages", "sft,rl,label,prm"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return workdir


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch, environment):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", environment["JAX_COMPILATION_CACHE_DIR"])


def arguments(run: Path, out: Path, *more: str) -> list[str]:
    """Answers with errors of every kind, a problem a batch."""
    return [
        "--model", str(run), "--problems", "chains", "--samples", f"{SAMPLES}", "--k", "1,2,6",
        "--temperature", "1", "--min-tier", "T4", "--device-batch", f"{SAMPLES}",
        "--out", str(out), *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def evaluated(run, tmp_path_factory, environment) -> Path:
    """The folder of an evaluation that nobody disturbed."""
    out = tmp_path_factory.mktemp("evaluated")
    command = [sys.executable, "-m", "prm_jax.evaluate", *arguments(run, out, "--prm", str(run))]
    done = subprocess.run(command, env=environment, cwd=out, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "pass@6" in done.stdout and "PRM, worst line" in done.stdout
    return out


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def results(out: Path) -> dict:
    return json.loads((out / "results.json").read_text())


def written(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in ("samples.jsonl", "results.json")}


def by_problem(rows: list[dict]) -> dict[str, list[dict]]:
    """Rows of samples.jsonl by problem, which are adjacent and numbered."""
    found = {
        task_id: list(group) for task_id, group in itertools.groupby(rows, lambda r: r["task_id"])
    }
    assert len(found) == len({row["task_id"] for row in rows})
    for group in found.values():
        assert [row["sample"] for row in group] == list(range(len(group)))
    return found


def no_sampling(monkeypatch):
    def make_sampler(*args, **kwargs):
        def sampler(*args, **kwargs):
            raise AssertionError("a finished batch was sampled again")

        return sampler

    monkeypatch.setattr(attempts, "make_sampler", make_sampler)


def test_pass_at_k_is_the_share_of_subsets_with_a_pass(evaluated):
    groups = by_problem(lines(evaluated / "samples.jsonl"))
    assert len(groups) == 8 and all(len(group) == SAMPLES for group in groups.values())
    found = results(evaluated)
    for k in (1, 2, 6):
        share = [
            np.mean([any(c) for c in itertools.combinations([r["passed"] for r in group], k)])
            for group in groups.values()
        ]
        at_k = found["pass_at_k"][str(k)]
        assert at_k["value"] == pytest.approx(np.mean(share)) and at_k["n"] == 8
        assert at_k["low"] <= at_k["value"] <= at_k["high"]
    passed = [row["passed"] for row in lines(evaluated / "samples.jsonl")]
    assert 0 < sum(passed) < len(passed)  # else all of this says nothing


def test_breakdowns_are_those_of_the_samples(run, evaluated):
    config = chosen.choose_config(chosen.ModelChoice(run))
    sets = chosen.read_split(chosen.ModelChoice(run), config, "chains", "test", Path())
    difficulty = {p.task_id: p.difficulty for p in sets.held_out["test"]}
    rows, found = lines(evaluated / "samples.jsonl"), results(evaluated)
    groups = by_problem(rows)
    assert set(found["by_difficulty"]) == set(difficulty.values())
    for name, rate in found["by_difficulty"].items():
        shares = [np.mean([r["passed"] for r in g]) for t, g in groups.items()
                  if difficulty[t] == name]  # fmt: skip
        assert rate["value"] == pytest.approx(np.mean(shares)) and rate["n"] == len(shares)
    assert {s: n for s, n in found["statuses"].items() if n} == {
        s: sum(r["status"] == s for r in rows) for s in {r["status"] for r in rows}
    }
    assert found["tokens"] == pytest.approx(np.mean([r["tokens"] for r in rows]))
    for name, rate in found["by_length"].items():
        low, _, high = name.rstrip("+").partition("-")
        inside = [
            [r["passed"] for r in g if int(low) <= r["tokens"] <= int(high or 10**9)]
            for g in groups.values()
        ]
        shares = [np.mean(row) for row in inside if row]
        assert rate["value"] == pytest.approx(np.mean(shares)) and rate["n"] == len(shares)


def test_lengths_fall_into_bins_of_tokens(monkeypatch):
    """Bins of few tokens over known answers: low <= tokens < high."""
    monkeypatch.setattr(evaluate, "LENGTHS", (3, 4))
    monkeypatch.setattr(evaluate, "interval", lambda run, x: {"value": x.mean(), "n": len(x)})
    answers = [[attempts.Attempt((0,) * n, status, True, n)
                for n, status in ((2, "passed"), (3, "failed"), (4, "passed"), (5, "failed"),
                                  (0, "too_long"))]]  # fmt: skip
    problem: Any = types.SimpleNamespace(difficulty="")
    nothing: Any = None
    found = evaluate.rates(nothing, [problem], answers, (1,))["by_length"]
    assert {name: row["value"] for name, row in found.items()} == {"0-2": 1, "3-3": 0, "4+": 0.5}


def test_the_second_call_samples_nothing_and_writes_the_same(run, evaluated, monkeypatch, capsys):
    no_sampling(monkeypatch)
    before = written(evaluated)
    assert evaluate.main(arguments(run, evaluated, "--prm", str(run))) == 0
    assert written(evaluated) == before
    assert "replaced" not in capsys.readouterr().err
    # Another k or another chooser asks for no other samples.
    assert evaluate.main(arguments(run, evaluated, "--best-of", "2", "--k", "3")) == 0
    found = results(evaluated)
    assert set(found["pass_at_k"]) == {"3"} and set(found["best_of_n"]) == {
        "n", "first", "random", "oracle"
    }  # fmt: skip
    assert evaluate.main(arguments(run, evaluated, "--prm", str(run))) == 0
    assert written(evaluated) == before


# As python -m does, where the shell that started the tests has SIGINT ignored (a job with &).
LISTENS = """
import signal, sys
from prm_jax.evaluate import main
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main())
"""


def test_a_call_that_was_stopped_goes_on_and_ends_equal(run, evaluated, tmp_path, environment):
    """Interrupted from the keyboard, killed, and then left alone."""
    out = tmp_path / "out"
    argv = arguments(run, out, "--prm", str(run))
    command = [sys.executable, "-c", LISTENS, *argv]
    journal = out / "journal.jsonl"
    for sent, units in ((signal.SIGINT, 2), (signal.SIGKILL, 4)):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 300
        while not (journal.exists() and journal.read_bytes().count(b"\n") >= units):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, sent)
        _, said = process.communicate()
        if sent == signal.SIGINT:
            assert process.returncode == 130
            assert said.decode().endswith("the same command goes on from the last batch\n")
            assert "Traceback" not in said.decode()
        else:
            assert process.returncode == -sent
        assert not (out / "results.json").exists()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert written(out) == written(evaluated)


def test_another_temperature_never_reads_the_journal_of_the_first(run, tmp_path, capsys):
    argv = arguments(run, tmp_path / "out", "--first", "2")
    assert evaluate.main(argv) == 0
    first = lines(tmp_path / "out/samples.jsonl")
    assert evaluate.main([*argv, "--temperature", "0"]) == 0
    assert "temperature: 1.0 -> 0" in capsys.readouterr().err
    greedy = by_problem(lines(tmp_path / "out/samples.jsonl"))
    assert all(len({r["completion"] for r in group}) == 1 for group in greedy.values())
    assert len({r["completion"] for r in first}) > 2
    assert len(lines(tmp_path / "out/journal.jsonl")) == 4


def test_without_out_two_evaluations_never_share_a_folder(run, monkeypatch):
    scripted.play(monkeypatch, run / "tokenizer.json", lambda start, k: "    return 1\n")
    argv = arguments(run, Path("unused"), "--first", "1")
    del argv[argv.index("--out") : argv.index("--out") + 2]
    for more in ([], ["--temperature", "0.5"], ["--seed", "1"], ["--checkpoint", "sft/policy"]):
        assert evaluate.main([*argv, *more]) == 0
    folders = sorted(Path("runs/evaluate").iterdir())
    assert len(folders) == 4 and all(f.name.startswith("micro-chains-") for f in folders)
    assert evaluate.main([*argv, "--best-of", "3", "--jobs", "1"]) == 0
    assert len(list(Path("runs/evaluate").iterdir())) == 4
    models = {results(folder)["model"] for folder in folders}
    assert models == {f"{run}/rl/policy@4", f"{run}/sft/policy@500"}


# --------------------------------------------------------------------------------- best of N


def scores_of(model: Path, out: Path, *options: str) -> dict[str, np.ndarray]:
    """What `prm_jax.score` says of every sample, `[problems, samples]`, by rule."""
    argv = ["--model", str(model), "--programs", str(out / "samples.jsonl"), *options]
    assert score.main([*argv, "--out", "scored"]) == 0
    rows = lines(Path("scored/scores.jsonl"))
    assert [r["task_id"] for r in rows] == [r["task_id"] for r in lines(out / "samples.jsonl")]
    return {
        rule: np.array([-1.0 if r[rule] is None else r[rule] for r in rows]).reshape(-1, SAMPLES)
        for rule in ("last", "mean", "min")
    }


def best_of(n: int, scores: np.ndarray, passed: np.ndarray) -> float:
    """Mean over all choices of n samples of whether the best-scored passes; ties share."""
    found = []
    for s, p in zip(scores, passed, strict=True):
        for c in map(list, itertools.combinations(range(SAMPLES), n)):
            found.append(np.mean(p[c][s[c] == s[c].max()]))
    return float(np.mean(found))


def write_problems(run: Path, path: Path) -> dict[str, str]:
    """The held-out problems of a run as a file of one's own; their solutions by prompt."""
    config = chosen.choose_config(chosen.ModelChoice(run))
    sets = chosen.read_split(chosen.ModelChoice(run), config, "chains", "test", Path())
    rows = [
        {"task_id": p.task_id, "prompt": p.prompt, "program_prefix": p.program_prefix,
         "solution": p.solution, "tests": list(p.tests.asserts)}
        for p in sets.held_out["test"]
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {row["prompt"]: row["solution"] for row in rows}


@pytest.mark.parametrize("n", [2, SAMPLES])
@pytest.mark.parametrize("kind", ["its own PRM", "one with another tokenizer"])
def test_best_of_n_follows_the_scores_that_score_gives(run, tmp_path, monkeypatch, kind, n):
    """A PRM with a tokenizer of its own reads the programs, not the policy's tokens.

    The answers are scripted: text that the policy's tokenizer gives the same tokens again.
    """
    prm_path = run if kind == "its own PRM" else scripted.model(tmp_path / "prm", prm=True)
    problems, out = tmp_path / "problems.jsonl", tmp_path / "out"
    solutions = write_problems(run, problems)

    def answer(start: str, k: int) -> str:
        right = (len(start) + k) % 4 == 0
        return solutions[start] if right else f"    # {k}\n    return [{len(start) * k}]\n"

    scripted.play(monkeypatch, run / "tokenizer.json", answer)
    more = ("--problems", str(problems), "--best-of", f"{n}", "--prm", str(prm_path))
    assert evaluate.main(arguments(run, out, *more)) == 0
    found = results(out)["best_of_n"]
    passed = np.array([r["passed"] for r in lines(out / "samples.jsonl")]).reshape(-1, SAMPLES)
    assert found["n"] == n
    assert found["first"]["value"] == passed[:, 0].mean()
    assert found["random"]["value"] == pytest.approx(passed.mean())
    subsets = [p[list(c)].any() for p in passed for c in itertools.combinations(range(SAMPLES), n)]
    assert found["oracle"]["value"] == pytest.approx(np.mean(subsets))
    rows = {name: row["value"] for name, row in found.items() if name != "n"}
    if n < SAMPLES:
        del rows["first"]  # one sample by itself, the others averages over choices of n
    assert max(rows.values()) == rows["oracle"] > rows["random"]
    scores = scores_of(prm_path, out, "--problems", str(problems))
    for rule, values in scores.items():
        assert len(np.unique(values)) > SAMPLES
        expected = best_of(n, values, passed)
        assert found[f"prm_{rule}"]["value"] == pytest.approx(expected), (rule, rows)


def test_an_exported_run_answers_as_the_run_does(run, tmp_path):
    write_problems(run, tmp_path / "problems.jsonl")
    for kind in ("rl/policy", "prm/model"):
        export.export(run, tmp_path / kind, kind)
    greedy = ["--temperature", "0", "--samples", "1", "--k", "1"]
    limits = ["--max-prompt-tokens", "64", "--max-completion-tokens", "32"]
    exported = (tmp_path / "rl/policy", tmp_path / "prm/model")
    for name, model, chooser in (("a", run, run), ("b", *exported)):
        more = ("--problems", str(tmp_path / "problems.jsonl"), "--prm", str(chooser), *limits)
        assert evaluate.main(arguments(model, tmp_path / name, *more, *greedy)) == 0
    assert written(tmp_path / "a")["samples.jsonl"] == written(tmp_path / "b")["samples.jsonl"]
    ours, theirs = results(tmp_path / "a"), results(tmp_path / "b")
    assert ours["best_of_n"] == theirs["best_of_n"] and ours["pass_at_k"] == theirs["pass_at_k"]


# ------------------------------------------------------------------------------------- score


def test_scores_are_those_of_the_prm_stage(run, evaluated, tmp_path):
    argv = ["--model", str(run), "--problems", "chains", "--out", "scored"]
    assert score.main([*argv, "--programs", str(evaluated / "samples.jsonl")]) == 0
    rows, samples = lines(Path("scored/scores.jsonl")), lines(evaluated / "samples.jsonl")
    choice = chosen.ModelChoice(run)
    config = chosen.choose_config(choice)
    sets = chosen.read_split(choice, config, "chains", "test", Path())
    problems = {p.task_id: p for p in sets.held_out["test"]}
    with MetricsLog(tmp_path / "log") as log:
        opened = chosen.open_run(choice, config, ProblemSets((), (), (), {}, ()), None, log)
        params = opened.restore("prm/model", opened.scalar)
        ids = []
        for sample in samples:
            own = opened.tokenizer.encode(sample["response"])
            ids.append((*own, opened.tokenizer.eos_id)[: config.max_completion_tokens])
        ends = [step_ends(opened.lines(row))[0] for row in ids]
        asked = [problems[sample["task_id"]] for sample in samples]
        expected = prm.step_scores(opened, params, asked, list(zip(ids, ends, strict=True)))
    assert sum(len(values) for values in expected) > len(samples)
    for row, sample, values in zip(rows, samples, expected, strict=True):
        assert set(row) == {"id", "task_id", "last", "mean", "min", "first_error", "lines"}
        found = [line["score"] for line in row["lines"] if line["score"] is not None]
        np.testing.assert_allclose(found, values, atol=1e-6)
        text = sample["completion"].rstrip("\n")
        assert "\n".join(line["text"] for line in row["lines"]).rstrip("\n") == text
        if found:
            assert (row["last"], row["min"]) == (found[-1], min(found))
            assert row["mean"] == pytest.approx(np.mean(found))
        bad = [i for i, line in enumerate(row["lines"])
               if line["kind"] == "code" and (line["score"] or 0) < 0]  # fmt: skip
        assert row["first_error"] == (bad[0] if bad else None)


def test_programs_with_prompts_need_no_problems_and_hostile_text_stays_text(run):
    hostile = "</code><script>alert('x')</script>\u202e<img src=x onerror=alert(1)>"
    programs = [
        {"id": hostile, "prompt": f"# {hostile}", "program": f"    return '{hostile}'\n"},
        {"prompt": "def f(a):\n", "program": "    # x\n\n    return a\n", "task_id": "mine"},
    ]
    Path("p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in programs))
    argv = ["--model", str(run), "--programs", "p.jsonl", "--max-completion-tokens", "200"]
    assert score.main([*argv, "--max-prompt-tokens", "200"]) == 0
    (folder,) = Path("runs/score").iterdir()
    rows = lines(folder / "scores.jsonl")
    assert [row["id"] for row in rows] == [hostile, "mine"]
    assert [line["kind"] for line in rows[1]["lines"]] == ["comment", "blank", "code"]
    assert [line["score"] is None for line in rows[1]["lines"]] == [False, True, False]
    page = (folder / "scores.html").read_text()
    assert "<script" not in page and "<img" not in page and "\u202e" not in page
    assert page.count("&lt;script&gt;alert") == 3


# --------------------------------------------------------------------- what decides the samples


def test_the_fingerprint_is_of_values_and_places():
    tree = {"a": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.ones(2, np.float32)}
    others = (
        tree | {"a": tree["a"][::-1]},
        tree | {"b": -tree["b"]},
        tree | {"a": tree["a"].reshape(4, 3)},
        tree | {"b": tree["b"].astype(jax.numpy.bfloat16)},
        {"b": tree["a"], "a": tree["b"]},
    )
    found = [chosen.fingerprint(jax.tree.map(jax.numpy.asarray, t)) for t in (tree, *others)]
    assert len(set(found)) == 6
    mesh = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2])
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "x"))
    assert chosen.fingerprint(tree | {"a": jax.device_put(tree["a"], spread),
                                      "b": jax.numpy.asarray(tree["b"])}) == found[0]  # fmt: skip
