"""The exact oracle in the PRM's place: which label each line gets, and where it is refused."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from characters import Characters
from made_up_stage import CHAIN, RIGHT, WRONG_2, run_with
from test_stage_loops import CONFIG, Traces, run_rl

from prm_jax import train
from prm_jax.config import Config, ConfigError, DenseConfig
from prm_jax.rl.lines import split_lines
from prm_jax.stages import rollouts as rollouts_room
from prm_jax.stages.truth import check_source, reads_prm, true_labels
from prm_jax.types import CallTests, Problem

TOKENIZER = Characters()
PROBLEM = Problem("p", "?", CallTests(()))
RUN = run_with(Config(), problems=SimpleNamespace(asked={"p": CHAIN}))
ORACLE = DenseConfig(lam_fail=0.3, lam_pass=0.2, source="oracle")


@pytest.mark.parametrize(
    ("text", "passed", "labels"),
    [
        (WRONG_2, False, [1, -1, -1]),
        (RIGHT, True, [1, 1, 1]),
        # Blank lines are no steps, and comments are neutral wherever they stand.
        ("\n    # a\n" + WRONG_2.replace("    return", "\n    # b\n    return"), False,
         [0, 1, -1, 0, -1]),
        (WRONG_2, True, [1, 1, 1]),  # it passes, whatever the oracle thinks
        (RIGHT, False, [1, 1, -1]),  # it fails, though the oracle finds no error
        ("", False, []),
    ],
)  # fmt: skip
def test_each_line_is_labelled_as_a_search_without_fault_would(text, passed, labels):
    ids = TOKENIZER.response(text)
    ends, found = true_labels(RUN, PROBLEM, ids, passed=passed)
    assert found.tolist() == labels and found.dtype == np.float32
    newlines = [i for i, piece in enumerate(TOKENIZER.pieces(ids)) if piece.endswith(b"\n")]
    assert set(ends[:-1]) <= set(newlines)
    if labels:
        assert ids[ends[-1]] == TOKENIZER.eos_id


def test_a_plan_is_right_if_it_is_the_problems_own():
    run = run_with(Config(), problems=SimpleNamespace(asked={"p": CHAIN}))

    def lines(ids):
        pieces = TOKENIZER.pieces(ids)
        text = b"".join(pieces)
        plan = 0
        if text.startswith(b"<plan>\n"):
            plan = text.index(b"</plan>\n") + 8 if b"</plan>\n" in text else len(text)
        return split_lines(pieces, (plan, len(text)), (0, plan))

    run.lines = lines
    problem = dataclasses.replace(PROBLEM, plan=CHAIN.plan())

    def labels(text: str, passed: bool = False) -> list[float]:
        return true_labels(run, problem, TOKENIZER.response(text), passed=passed)[1].tolist()

    right = f"<plan>\n{CHAIN.plan()}\n</plan>\n"
    wrong = right.replace("\n</plan>", "x\n</plan>")
    assert labels(right + WRONG_2) == [1, 1, -1, -1]
    assert labels(right + RIGHT, passed=True) == [1, 1, 1, 1]
    assert labels(wrong + WRONG_2) == [-1, -1, -1, -1]
    assert labels(wrong + RIGHT, passed=True) == [1, 1, 1, 1]  # nobody kept to it
    assert labels(right.removesuffix("</plan>\n")) == [-1]  # no code
    assert labels(WRONG_2) == [1, -1, -1]  # no plan


def test_rollouts_carry_the_oracles_labels_and_the_prm_is_not_asked(monkeypatch):
    monkeypatch.setattr(
        rollouts_room,
        "true_labels",
        lambda run, problem, ids, passed: (np.array([0]), np.array([0.5 if passed else -0.5])),
    )
    config = dataclasses.replace(CONFIG, dense=ORACLE, value_init=False)
    seen = run_rl(monkeypatch, Traces(), "rl_prm", config)
    assert seen["scored"][0] == ("sft/policy", "scalar on trunk of sft/policy", None)
    used = seen["settings"]["experience"]
    assert (used["lam_fail"], used["lam_pass"]) == (0.3, 0.2)
    for rollout in seen["rollouts"]:
        scores = np.asarray(rollout.prm_scores)
        assert scores[:, 16].tolist() == [0.5 if o else -0.5 for o in np.asarray(rollout.outcome)]
        assert np.count_nonzero(scores) == 4
    # The baseline is never told.
    seen = run_rl(monkeypatch, Traces(), "rl", config)
    assert seen["settings"]["experience"]["lam_fail"] == 0.0
    assert seen["rollouts"][0].prm_scores == "prm_scores"


@pytest.mark.parametrize(
    ("source", "enabled", "value_init", "read"),
    [
        ("prm", True, False, True),
        ("oracle", True, False, False),
        ("oracle", True, True, True),  # the critic starts as the PRM
        ("oracle", False, False, True),  # the oracle has no say
    ],
)
def test_a_prm_is_needed_unless_the_oracle_scores_all(tmp_path, source, enabled, value_init, read):
    dense = DenseConfig(source=source, enabled=enabled)
    config = Config(dense=dense, value_init=value_init)
    assert reads_prm(config) is read
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft/done.json").touch()
    if read:
        with pytest.raises(ConfigError, match="'rl_prm' needs 'prm'"):
            train.check_order(["rl_prm"], tmp_path, config)
    else:
        train.check_order(["rl_prm"], tmp_path, config)


def test_problems_without_an_oracle_refuse_it():
    benchmark = SimpleNamespace(asked={})
    run = run_with(Config(dense=ORACLE), problems=benchmark)
    with pytest.raises(ConfigError, match="dense.source = 'oracle' .* problems.name = 'chains'"):
        check_source(run)
    check_source(run_with(Config(), problems=benchmark))
    check_source(run_with(Config(dense=ORACLE), problems=SimpleNamespace(asked={"p": CHAIN})))
    with pytest.raises(ConfigError, match="dense.source"):
        DenseConfig(source="human")  # type: ignore[arg-type]
