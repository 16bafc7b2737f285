"""What the PRM learns of which token, and how it is judged."""

import dataclasses
import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from made_up_stage import (
    CHAIN,
    TOKENIZER,
    WRONG_2,
    labelled,
    problem,
    run_with,
)

from prm_jax.config import (
    Config,
    ConfigError,
    LabelConfig,
    PRMConfig,
)
from prm_jax.stages import prm as prm_stage
from prm_jax.stages.labelled import Candidate, read_candidates


def test_a_batch_of_the_prm_has_each_label_at_the_token_that_ends_its_step():
    prompts = ["?", "a longer prompt\n", "pq\n"]
    responses = [
        labelled("a1\nb2\n#3\nd4\ne5", ("1\n", 1), ("2\n", 1), ("3\n", 0), ("4\n", -1), ("$", -1)),
        labelled("f6\n\n\ng7", ("6\n", -1), ("$", -1)),
        labelled("h8\ni9", ("8\n", 1), ("$", 1), passed=True),
    ]
    wanted = {
        "all": ["1\n+", "2\n+", "3\n0", "4\n-", "$-", "6\n-", "$-", "8\n+", "$+"],
        "first_error": ["1\n+", "2\n+", "3\n0", "4\n-", "6\n-", "8\n+", "$+"],
    }
    for loss_on, items in wanted.items():
        run = run_with(Config(prm=PRMConfig(loss_on=loss_on)))
        batch = prm_stage.label_batch(run, [TOKENIZER.encode(p) for p in prompts], responses)
        tokens, mask = np.asarray(batch.tokens), np.asarray(batch.weights) > 0
        found = [
            ("$" if t == TOKENIZER.eos_id else TOKENIZER.decode([t])) + "-0+"[int(label) + 1]
            for t, label in zip(tokens[mask], np.asarray(batch.labels)[mask], strict=True)
        ]
        assert found == items, loss_on
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            text = tokens[row][np.asarray(batch.valid)[row]].tolist()
            assert text == [*TOKENIZER.encode(prompt), *response.ids]


def test_a_batch_of_the_prm_may_hold_rates_or_outcomes():
    failing = labelled("a1\nb2\nc3", ("1\n", 1), ("2\n", 1), ("$", -1))
    counts = dataclasses.replace(failing.steps, passes=(0, 3, 0), samples=(0, 4, 8))
    responses = [
        dataclasses.replace(failing, steps=counts),
        labelled("h8\ni9", ("8\n", 1), ("$", 1), passed=True),
    ]
    for config, wanted, weights in (
        (PRMConfig(target="rate"), [0.5, -1, 1, 1], [1] * 4),
        (PRMConfig(target="counts"), [-1, 0.2, -1, 1, 1], [1, 5, 9, 1, 1]),
        (PRMConfig(loss_on="outcome"), [-1, 1], [1, 1]),
    ):
        run = run_with(Config(prm=config, label=LabelConfig(wave=8, search="binary")))
        batch = prm_stage.label_batch(run, [TOKENIZER.encode("?")] * 2, responses)
        mask = np.asarray(batch.weights) > 0
        assert np.asarray(batch.labels)[mask].tolist() == pytest.approx(wanted)
        assert np.asarray(batch.weights)[mask].tolist() == weights
        assert (np.asarray(batch.tokens)[mask][-1]) == TOKENIZER.eos_id


@pytest.mark.parametrize("n", [1, 4, 10])
def test_the_score_of_a_step_is_read_at_its_token_and_clipped(monkeypatch, n):
    """A stand-in for the PRM says of each token its own id, so that it shows what was read."""
    seen = []

    def make_prefix_scores(model, mesh):
        def score(params, tokens, valid):
            seen.append((params, tokens.shape[0]))
            return jnp.where(valid, (tokens - 50) / 40, np.nan)

        return score

    monkeypatch.setattr(prm_stage, "make_prefix_scores", make_prefix_scores)
    problems = [problem(f"p{i}", "?" * (1 + 3 * i)) for i in range(n)]
    ids = [TOKENIZER.response("0\n" * (i % 3) + "A~\nz"[i % 2 :]) for i in range(n)]
    ends = [
        np.flatnonzero([i == 1 or b"\n" in TOKENIZER.pieces([i])[0] for i in row]) for row in ids
    ]
    ends[0] = ends[0][:0]  # a response without steps
    found = prm_stage.step_scores(
        run_with(Config(device_batch=4), scalar=None),
        "prm",
        problems,
        list(zip(ids, ends, strict=True)),
    )
    assert len(found) == n and seen == [("prm", 4)] * -(-n // 4)
    raw = [(np.array(row)[end] - 50) / 40 for row, end in zip(ids, ends, strict=True)]
    for scores, wanted in zip(found, raw, strict=True):
        np.testing.assert_allclose(scores, np.clip(wanted, -1, 1), rtol=1e-6)
    if n > 1:
        assert np.concatenate(raw).min() < -1 and np.concatenate(raw).max() > 1


def test_the_prm_is_judged_up_to_the_first_error(monkeypatch):
    """Steps 4 and 5 of p are behind its error, and the neutral step of q has no say."""
    responses = [
        labelled("a1\nb2\nc3\nd4\ne5", ("1\n", 1), ("2\n", 1), ("3\n", -1), ("4\n", -1), ("$", -1)),
        labelled("#6\ng7", ("6\n", 0), ("$", 1), passed=True, task_id="q", checkpoint=2),
    ]
    scores = [np.array([0.8, -0.2, -0.6, 1.0, 1.0]), np.array([-1.0, 0.4])]
    monkeypatch.setattr(prm_stage, "step_scores", lambda *arguments: scores)
    validation = [problem("p"), problem("q")]
    run = run_with(Config(), problems=SimpleNamespace(validation=validation, asked={}))
    found = prm_stage.judge_prm(run, "prm", responses)
    assert found["n_responses"] == 2 and "by_oracle" not in found
    assert found["auc_within_problem"] == 1.0  # 0.8 and -0.2 above -0.6; q has one class only
    # The first score below 0 is step 2, one before the error; q is rightly left alone.
    report = found["first_error"]
    assert (report["exact"], report["too_early"], report["acc_ok"]) == (0.0, 1.0, 1.0)
    # p = 0.9, 0.4, 0.2 and 0.7 against 1, 1, 0 and 1: a bin each.
    assert found["ece"] == pytest.approx((0.1 + 0.6 + 0.2 + 0.3) / 4)
    assert sum(row["n"] for row in found["calibration"]) == 4
    # p was written by checkpoint 1, q by 2.
    first, second = (found["by_checkpoint"][step] for step in ("1", "2"))
    assert (first["first_error"]["too_early"], first["auc_within_problem"]) == (1.0, 1.0)
    assert (second["first_error"]["acc_ok"], second["auc_within_problem"]) == (1.0, None)
    assert first["n_responses"] == second["n_responses"] == 1 and "calibration" not in first


@pytest.mark.parametrize(
    ("target", "times"), [("binary", [1, 1, 1]), ("rate", [1, 1, 1]), ("counts", [9, 9, 9])]
)
def test_a_prm_of_rates_is_judged_by_rates(monkeypatch, target, times):
    """Half, a quarter and none of eight completions pass, and of nine with the response itself."""
    one = labelled("a1\nb2\nc3\nd4", ("1\n", 1), ("2\n", 1), ("3\n", -1), ("$", -1))
    steps = dataclasses.replace(one.steps, passes=(4, 2, 0, 0), samples=(8, 8, 8, 0))
    rates = np.array([0.0, -0.5, -0.99, 1.0])
    scores = np.array([0.9, 0.1, -0.9, 1.0]) if target == "binary" else rates
    monkeypatch.setattr(prm_stage, "step_scores", lambda *arguments: [scores])
    label = LabelConfig(samples_per_prefix=8, wave=8, search="binary")
    run = run_with(
        Config(prm=PRMConfig(target=target), label=label),
        problems=SimpleNamespace(validation=[problem("p")], asked={}),
    )
    found = prm_stage.judge_prm(run, "prm", [dataclasses.replace(one, steps=steps)])
    # One pass of eight makes the label +1, so the threshold lies halfway to it.
    threshold = {"binary": 0.0, "rate": -1 + 1 / 8, "counts": -1 + 1 / 9}[target]
    assert found["first_error"]["threshold"] == threshold
    assert found["first_error"]["exact"] == 1.0
    p = (scores[:3] + 1) / 2
    said = {"binary": [1, 1, 0], "rate": [1 / 2, 1 / 4, 0], "counts": [4 / 9, 2 / 9, 0]}
    success = np.array(said[target])
    assert found["ece"] == pytest.approx(np.average(np.abs(p - success), weights=times))
    assert sum(row["n"] for row in found["calibration"]) == sum(times)


def test_labels_of_an_older_version_are_told_from_a_file_that_is_missing(tmp_path):
    with pytest.raises(ConfigError, match=r"(?s)candidates.jsonl is missing.*label/done.json"):
        read_candidates(run_with(Config(), workdir=tmp_path))
    (tmp_path / "label").mkdir()
    one = Candidate("p", True, (1, 2), (0, 1))
    text = json.dumps(one._asdict()) + "\n"
    (tmp_path / "label/candidates.jsonl").write_text(text)
    assert read_candidates(run_with(Config(), workdir=tmp_path)) == [one]


def test_the_prm_is_held_against_the_oracle_where_labels_are_wrong(monkeypatch):
    """Labels say that the first line is lost; the error is in the second, where the PRM sees it."""
    one = labelled(WRONG_2, ("3]\n", -1), ("* 3\n", -1), ("$", -1))
    monkeypatch.setattr(prm_stage, "step_scores", lambda *arguments: [np.array([0.5, -0.5, 1.0])])
    run = run_with(
        Config(), problems=SimpleNamespace(validation=[problem("p")], asked={"p": CHAIN})
    )
    found = prm_stage.judge_prm(run, "prm", [one])
    assert (found["first_error"]["exact"], found["first_error"]["too_late"]) == (0.0, 1.0)
    assert found["by_oracle"]["first_error"]["exact"] == 1.0
    assert found["by_oracle"]["auc_within_problem"] == 1.0
    (of_checkpoint,) = found["by_checkpoint"].values()
    assert of_checkpoint["by_oracle"] == found["by_oracle"]


def test_prms_choose_among_the_same_candidates(monkeypatch):
    """p has one that passes, best by its last step and worst by its lowest; q has none."""
    passing, failing = "a1\nb2", "c3\nd4"
    candidates = [
        Candidate(task, text == passing, TOKENIZER.response(text), (2, 5))
        for task, texts in (("p", [failing] * 7 + [passing]), ("q", [failing] * 8))
        for text in texts
    ]

    def scores(run, params, problems, responses):
        assert params == "prm" and [p.task_id for p in problems] == ["p"] * 8 + ["q"] * 8
        assert all(ends == (2, 5) for _, ends in responses)
        return [np.array([-0.9, 0.9] if c.passed else [0.1, 0.2]) for c in candidates]

    monkeypatch.setattr(prm_stage, "step_scores", scores)
    run = run_with(
        Config(), problems=SimpleNamespace(validation=[problem("p"), problem("q")], asked={})
    )
    assert prm_stage.judge_reranking(run, "prm", candidates) == {
        "responses_per_problem": 8,
        "pass_rate": 1 / 16,
        "any_of_n": 0.5,
        "best_of_n": {"lowest": 0.0, "last": 0.5},
    }
