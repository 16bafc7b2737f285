"""Styles by hand, that they keep what a program computes, and what is counted of the scores."""

import dataclasses
from concurrent.futures import Future
from types import SimpleNamespace

import numpy as np
import pytest
from characters import Characters, Completions
from made_up_stage import run_with

from prm_jax.config import Config
from prm_jax.stages.style import REWRITES, commented, renamed, style_probes, with_dead_code, wrapped
from prm_jax.types import CallTests, Problem, Verdict

TOKENIZER = Characters()
PROBLEM = Problem(
    "p", "?", CallTests(("assert f([1, 2]) == [2, 4, 5]",)),
    solution="    b = [v * 2 for v in a]\n\n    c = b\n    return c + [5]",
    program_prefix="def f(a):\n",
)  # fmt: skip
WHOLE = Problem(
    "w", "?", CallTests(("assert g(1) == 3",)),
    solution="def g(x):\n    x = x + 1\n    y = x\n    return y + 1\n",
)  # fmt: skip


def passes(problem: Problem, text: str) -> bool:
    scope: dict = {}
    try:
        exec(problem.program(text) + "\n" + "\n".join(problem.tests.asserts), scope)
    except Exception:
        return False
    return True


def test_styles_by_hand():
    problem = dataclasses.replace(PROBLEM, solution="    b = a\n    return b")
    assert commented(problem) == "    # as asked\n    b = a\n    # as asked\n    return b"
    assert with_dead_code(problem) == "    unused = 0\n    b = a\n    unused = 0\n    return b"
    assert renamed(problem) == "    b_ = a\n    return b_"
    assert wrapped(problem) == (
        "    try:\n        b = a\n        return b\n    except Exception:\n        raise"
    )


@pytest.mark.parametrize("rewrite", REWRITES)
@pytest.mark.parametrize("problem", [PROBLEM, WHOLE], ids=["body", "whole"])
def test_a_style_changes_the_text_and_not_what_it_computes(problem, rewrite):
    text = rewrite(problem)
    assert passes(problem, problem.solution) and passes(problem, text)
    assert text != problem.solution


def test_a_program_that_cannot_be_read_keeps_its_names():
    broken = dataclasses.replace(PROBLEM, solution="    b = (a\n")
    assert renamed(broken) == broken.solution


def probed(score, problems=(PROBLEM,)):
    def judge(problem: Problem, program: str) -> Future:
        future: Future = Future()
        passed = passes(problem, program.removeprefix(problem.program_prefix))
        future.set_result(Verdict("passed" if passed else "failed", 0, 1))
        return future

    run = run_with(
        Config(),
        problems=SimpleNamespace(validation=list(problems)),
        prompts=Completions(),
        judge=judge,
    )
    return style_probes(run, score, threshold=0.0)


def test_scores_of_added_lines_count_for_accusations_and_not_for_the_mean():
    def score(problems, responses):
        """+0.5 for each line of the solution, -1 for a dead one, and 0.25 less inside a try."""
        found = []
        for ids, ends in responses:
            lines = TOKENIZER.decode(ids).split("\n")
            texts = [line for line in lines if line.strip()]
            inside = 0.25 * any("try:" in line for line in texts)
            row = [-1.0 if "unused" in line else 0.5 - inside for line in texts]
            assert len(row) == len(ends)
            found.append(np.array(row))
        return found

    found = probed(score)
    assert list(found) == ["as_written", "commented", "with_dead_code", "renamed", "wrapped"]
    assert found["as_written"] == {"n": 1, "accused": 0.0, "mean_score": 0.5, "mean_change": 0.0}
    assert found["commented"] == found["renamed"] == found["as_written"]
    dead = {"n": 1, "accused": 1.0, "mean_score": 0.5, "mean_change": 0.0}
    assert found["with_dead_code"] == dead
    assert found["wrapped"] == {"n": 1, "accused": 0.0, "mean_score": 0.25, "mean_change": -0.25}


def test_programs_that_do_not_pass_are_left_out():
    wrong = dataclasses.replace(PROBLEM, task_id="q", solution="    return a")
    empty = dataclasses.replace(PROBLEM, task_id="r", solution="")

    def score(problems, responses):
        return [np.full(len(ends), 1.0) for _, ends in responses]

    found = probed(score, [wrong, PROBLEM, empty])
    assert {row["n"] for row in found.values()} == {1}
    long = dataclasses.replace(PROBLEM, task_id="t", solution=PROBLEM.solution + " " * 100)
    assert {row["n"] for row in probed(score, [PROBLEM, long]).values()} == {1}
    nothing = probed(score, [wrong])
    assert nothing["as_written"] == {
        "n": 0, "accused": None, "mean_score": None, "mean_change": None
    }  # fmt: skip
