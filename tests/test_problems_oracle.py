"""The oracle against execution: it finds no error if and only if the program passes its tests."""

import random

import pytest

from prm_jax.config import ChainsConfig
from prm_jax.problems import first_error
from prm_jax.problems.chains import generator
from prm_jax.problems.chains.generator import Chain
from prm_jax.problems.chains.operations import Step

CONFIG = ChainsConfig(seed=11, train=24, validation=1, test=24)
CHAIN = Chain(
    (Step("drop_first", 3, "easy"), Step("add", 8, "easy"), Step("reverse", 0, "easy")), "abc"
)


@pytest.fixture(scope="module")
def problems():
    return [p for split in generator.make_problems(CONFIG).values() for p in split]


def passes(problem: generator.ChainProblem, completion: str) -> bool:
    scope: dict = {}
    try:
        exec(problem.chain.program_prefix() + completion, scope)
        for test in problem.tests.asserts:
            exec(test, scope)
    except Exception:
        return False
    return True


def with_mistakes(chain: Chain, wrong: dict[int, int], rng: random.Random) -> tuple[str, int]:
    """A solution with confusion wrong[k] in step k, and with harmless lines; its first error."""
    heads = [f"    {name} = " for name in chain.names[1:]] + ["    return "]
    lines: list[str] = []
    first = -1
    for k, (head, step, name) in enumerate(zip(heads, chain.steps, chain.names, strict=True)):
        while rng.random() < 0.15:
            lines.append(rng.choice(["    # " + step.words(), "    pass", "", "# note"]))
        if k in wrong:
            first = len(lines) if first < 0 else first
            lines.append(head + step.confused_expressions(name)[wrong[k]])
        else:
            lines.append(head + step.expression(name))
    return "\n".join(lines), first


def test_no_error_means_passing_over_single_mistakes(problems):
    rng = random.Random(1)
    for problem in problems:
        chain = problem.chain
        right, _ = with_mistakes(chain, {}, rng)
        assert first_error(chain, right) is None and passes(problem, right)
        for k, step in enumerate(chain.steps):
            for c in range(len(step.confused_expressions("x"))):
                completion, first = with_mistakes(chain, {k: c}, rng)
                assert first_error(chain, completion) == first
                assert not passes(problem, completion)


def test_no_error_means_passing_over_several_mistakes(problems):
    rng = random.Random(2)
    cancelled = 0
    for _ in range(3000):
        problem = rng.choice(problems)
        chain = problem.chain
        lines = rng.sample(range(len(chain.steps)), rng.randint(0, min(5, len(chain.steps))))
        wrong = {k: rng.randrange(len(chain.steps[k].confused_expressions("x"))) for k in lines}
        completion, first = with_mistakes(chain, wrong, rng)
        assert first_error(chain, completion) == (first if wrong else None)
        if passes(problem, completion) != (not wrong):
            # Nothing guards against three mistakes that undo each other.
            assert len(wrong) > 2
            cancelled += 1
    assert cancelled <= 3


def test_a_line_is_judged_by_the_list_that_its_variable_holds():
    good = "    b = a[3:]\n    c = [v + 8 for v in b]\n    return c[::-1]"
    assert first_error(CHAIN, good) is None
    assert first_error(CHAIN, good + "\n") is None
    assert (
        first_error(CHAIN, "    z = a[3:]\n    z = [v + 8 for v in z]\n    return z[::-1]") is None
    )
    assert first_error(CHAIN, good.replace("return c[::-1]", "d = c[::-1]\n    return d")) is None
    assert first_error(CHAIN, good.replace("[v + 8 for", "[ v+8  for")) is None
    assert first_error(CHAIN, good.replace("in b]", "in a]")) == 1
    assert first_error(CHAIN, good.replace("return c", "return b")) == 2
    assert first_error(CHAIN, good.replace("in b]", "in q]")) == 1


def test_programs_that_stop_early_or_never_are_wrong_where_they_do():
    assert first_error(CHAIN, "    b = a[3:]\n    return b") == 1
    assert first_error(CHAIN, "    b = a[3:]\n    c = [v + 8 for v in b]") == 1
    assert first_error(CHAIN, "    b = a[3:]\n    # done") == 1
    assert first_error(CHAIN, "") == 0
    assert first_error(CHAIN, "    return a") == 0
    assert first_error(CHAIN, "    b = a[2:]\n    c = [v + 8 for v in b]") == 0


def test_a_mistake_that_nothing_depends_on_is_forgiven():
    good = "    b = a[3:]\n    c = [v + 8 for v in b]\n    return c[::-1]"
    repaired = "    b = a[2:]\n" + good
    assert first_error(CHAIN, repaired) is None
    # The mistake destroys what it was made from.
    assert first_error(CHAIN, repaired.replace("b = a[2:]", "a = a[2:]")) == 0
    assert first_error(CHAIN, good + "\n    d = a[9:]\n    return d") is None


@pytest.mark.parametrize(
    ("line", "replacement"),
    [
        (1, "    c = [v + 8 for v in b"),
        (1, "      c = [v + 8 for v in b]"),
        (1, "c = [v + 8 for v in b]"),
        (1, "    c = [v + 8 for v in b]; c = b"),
        (1, "    sorted = b"),
        (1, "    c = \x00"),
        (1, "    return yes"),
        (2, "    return (yield c[::-1])"),
        (2, "    return"),
        (2, "    " + "(" * 5000),
        (0, "    b = (c := a[3:])"),
        (0, "    import os"),
    ],
)
def test_what_is_not_a_step_is_an_error_where_it_stands(line, replacement):
    lines = ["    b = a[3:]", "    c = [v + 8 for v in b]", "    return c[::-1]"]
    lines[line] = replacement
    assert first_error(CHAIN, "\n".join(lines)) == line


def test_a_line_that_python_cannot_read_fails_after_the_return_too():
    good = "    b = a[3:]\n    c = [v + 8 for v in b]\n    return c[::-1]"
    assert first_error(CHAIN, good + "\n    b = = a") == 3
    assert first_error(CHAIN, good + "\n  pass") == 3


def test_hasty_solutions_pass_exactly_where_the_oracle_says_so(problems):
    """The very mistakes that SFT teaches, on problems whose tests are known."""
    rng = random.Random(5)
    seen = {True: 0, False: 0}
    for _ in range(1500):
        problem = rng.choice(problems)
        templates = [generator._hasty_template(rng, step) for step in problem.chain.steps]
        completion = problem.chain.body(templates)
        passed = passes(problem, completion)
        assert passed == (first_error(problem.chain, completion) is None)
        seen[passed] += 1
    assert min(seen.values()) > 50
