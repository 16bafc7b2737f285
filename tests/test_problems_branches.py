"""The functions with branches: what a test catches, and the oracle held against execution."""

import dataclasses
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_jax.config import BranchesConfig, ConfigError, ProblemsConfig
from prm_jax.problems import first_error, load_problems
from prm_jax.problems.branches import generator
from prm_jax.problems.branches.generator import INDENT, Function
from prm_jax.problems.branches.statements import STATEMENTS, WORDINGS, Line, render
from prm_jax.types import Limits, Problem

SMALL = BranchesConfig(seed=3, sft_pairs=400, train=24, validation=6, test=30, final=5)
SPLITS = ("train", "validation", "test", "test_long")

# start 3; over the items after the first: if odd add the item, else double; less 2; negated.
FUNCTION = Function(
    (
        Line("start", 3, "easy", 1),
        Line("after", 1, "medium", 1),
        Line("odd", 0, "hard", 2),
        Line("add_item", 0, "easy", 3),
        Line("else", 0, "easy", 2),
        Line("double", 0, "easy", 3),
        Line("subtract", 2, "easy", 2),
        Line("negated", 0, "easy", 1),
    )
)
RIGHT = """\
    s = 3
    for v in a[1:]:
        if v % 2:
            s += v
        else:
            s *= 2
        s -= 2
    return -s"""


def passes(tests: tuple[str, ...], completion: str) -> bool:
    """Runs a program of this project's own generator against its asserts, in this process."""
    scope: dict = {}
    try:
        exec(generator.PREFIX + completion, scope)
        for test in tests:
            exec(test, scope)
    except Exception:
        return False
    return True


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("problems")


@pytest.fixture(scope="module")
def sets(data_dir):
    return load(data_dir)


def load(data_dir, **changes):
    config = ProblemsConfig(name="branches", branches=dataclasses.replace(SMALL, **changes))
    return load_problems(config, data_dir, Limits(cpu_s=0.5))


@pytest.fixture(scope="module")
def problems():
    made = generator.make_problems(SMALL)
    return [problem for split in made.values() for problem in split]


def all_problems(sets) -> list[Problem]:
    held_out = [problem for split in sets.held_out.values() for problem in split]
    return [*sets.train, *sets.validation, *held_out]


# -------------------------------------------------------------------------------- the statements


def test_statements_do_what_their_words_say():
    """On a total of 7 and an item of -4 or 4, worked out by hand."""
    actions = {
        "add_item": (3, 11), "subtract_item": (11, 3), "from_item": (-11, -3), "larger": (7, 7),
        "smaller": (-4, 4), "add": (9, 9), "subtract": (5, 5), "double": (14, 14),
        "negate": (-7, -7),
    }  # fmt: skip
    conditions = {
        "odd": (False, False), "even": (True, True), "above": (False, True),
        "below": (True, False), "multiple": (True, True), "total_above": (True, True),
        "total_odd": (True, True), "total_negative": (False, False),
    }  # fmt: skip
    loops = {
        "items": [1, 2, 3, 4], "backwards": [4, 3, 2, 1], "after": [3, 4], "every_other": [1, 3],
        "below_it": [0, 1, 2, 3], "through_it": [1, 2, 3, 4], "down": [4, 3, 2, 1],
    }  # fmt: skip
    results = {"total": 7, "negated": -7, "plus": 9, "times": 14}
    for name, wanted in actions.items():
        for item, total in zip((-4, 4), wanted, strict=True):
            scope = {"s": 7, "v": item}
            exec(render(STATEMENTS[name].code, 2), scope)
            assert scope["s"] == total, name
    for name, wanted in conditions.items():
        test = render(STATEMENTS[name].code, 2).removeprefix("if ").removesuffix(":")
        assert tuple(bool(eval(test, {"s": 7, "v": v})) for v in (-4, 4)) == wanted, name
    for name, wanted in loops.items():
        iterable = render(STATEMENTS[name].code, 2).removeprefix("for v in ").removesuffix(":")
        a = [1, 2, 3, 4] if STATEMENTS[name].kind == "list" else 4
        assert list(eval(iterable, {"a": a})) == wanted, name
    for name, wanted in results.items():
        code = render(STATEMENTS[name].code, 2).removeprefix("return ")
        assert eval(code, {"s": 7}) == wanted, name
    told = {"start", "else", "stop", "next", *actions, *conditions, *loops, *results}
    assert told == set(STATEMENTS)


def test_wordings_are_distinct_and_say_the_number():
    said = [words for statement in STATEMENTS.values() for words in statement.words]
    assert len(set(said)) == len(STATEMENTS) * len(WORDINGS)
    for statement in STATEMENTS.values():
        assert statement.kind == "else" or len(statement.confusions) >= 2
        assert len({statement.code, *statement.confusions}) == 1 + len(statement.confusions)
        for words in statement.words:
            assert ("{n}" in words) == (statement.numbers != (0,))
            assert words.endswith(":") == statement.code.endswith(":")


# ---------------------------------------------------------------------------------- the problems


def test_a_prompt_has_a_line_of_words_for_every_line_of_code():
    assert FUNCTION.solution() == RIGHT
    assert FUNCTION.prompt() == (
        "start at 3\nskip 1:\n if unpaired:\n  add item\n else:\n  double\n subtract 2\n"
        "return negated\ndef f(a):\n"
    )
    # 3; 5 is odd: 8, 6; 4 is even: 12, 10.
    assert generator.compiled(RIGHT)([9, 5, 4]) == -10


def test_problems_have_the_horizons_asked_for_and_solutions_that_pass(sets):
    for problem in all_problems(sets):
        assert passes(problem.tests.asserts, problem.solution), problem
        assert len(problem.solution.split("\n")) == problem.horizon
        assert len(problem.tests.asserts) == 8
        assert problem.limits == Limits(cpu_s=0.5)
    for split, horizons in (
        (sets.train, range(7, 10)),
        (sets.held_out["test"], range(5, 10)),
        (sets.held_out["test_long"], range(10, 13)),
    ):
        assert {problem.horizon for problem in split} == set(horizons)


def test_functions_are_of_many_kinds(problems):
    lines = [line for problem in problems for line in problem.function.lines]
    assert {line.statement for line in lines} == set(STATEMENTS)
    assert {line.wording for line in lines} == set(WORDINGS)
    behind = [p for p in problems if "\n    if" in p.function.solution()]
    assert behind  # a condition after the loop
    assert {p.function.takes_list for p in problems} == {True, False}


def test_tests_catch_every_confusion_and_every_action_left_out(problems):
    mistakes = 0
    for problem in problems:
        function = problem.function
        codes = [line.code() for line in function.lines]
        for k, line in enumerate(function.lines):
            kind = STATEMENTS[line.statement].kind
            out = ("pass",) if kind in ("action", "exit") else ()
            for wrong in (*line.confused_code(), *out):
                body = function.body([*codes[:k], wrong, *codes[k + 1 :]])
                assert not passes(problem.tests.asserts, body), body
                mistakes += 1
    assert mistakes > 1000


def test_no_program_is_in_two_splits_or_in_the_sft_pairs(sets):
    programs = [problem.solution for problem in all_problems(sets)]
    assert len(set(programs)) == len(programs)
    words = {problem.prompt for problem in all_problems(sets)}
    for pair in sets.sft:
        assert pair.prompt not in words
        assert pair.solution not in programs


def test_sft_pairs_are_mostly_short_and_wrong_as_the_wording_says():
    config = dataclasses.replace(SMALL, sft_pairs=3000)
    pairs = list(generator.make_sft_pairs(config, []))
    sizes = [len(pair.function.lines) for pair in pairs]
    assert set(sizes) == set(range(4, 10)) and sizes.count(4) > 3 * sizes.count(9)
    right = {wording: [0, 0] for wording in WORDINGS}
    for pair in pairs:
        texts = [t for t in map(str.strip, pair.completion.split("\n")) if t[:1] != "#"]
        texts = [t for t in texts if t != "pass"]
        compile(generator.PREFIX + pair.completion, "pair", "exec")
        for line, text in zip(pair.function.lines, texts, strict=True):
            if line.confused_code():
                right[line.wording][text == line.code()] += 1
    shares = {wording: good / (bad + good) for wording, (bad, good) in right.items()}
    assert shares == pytest.approx({"easy": 0.97, "medium": 0.70, "hard": 0.30}, abs=0.03)


def test_one_seed_gives_one_set_and_another_gives_another(sets, data_dir):
    again = generator.make_problems(SMALL)
    assert [p.function.prompt() for p in again["train"]] == [p.prompt for p in sets.train]
    assert [p.tests for p in again["test"]] == [p.tests for p in sets.held_out["test"]]
    assert [p.function for p in again["test"]] == [
        sets.asked[p.task_id] for p in sets.held_out["test"]
    ]
    other = generator.make_problems(dataclasses.replace(SMALL, seed=4))
    assert other["train"][0].function != again["train"][0].function


def test_the_final_set_is_apart(sets, data_dir):
    config = ProblemsConfig(name="branches", branches=SMALL, held_out="final")
    final = load_problems(config, data_dir, Limits())
    assert list(final.held_out) == ["final"] and len(final.held_out["final"]) == 5
    programs = {problem.solution for problem in all_problems(sets)}
    assert programs.isdisjoint(p.solution for p in final.held_out["final"])
    with pytest.raises(ConfigError, match="branches.final"):
        ProblemsConfig(name="branches", held_out="final")


def test_what_cannot_be_made_is_refused():
    with pytest.raises(ConfigError, match="problems.branches.test_horizons.*4 <= fewest"):
        BranchesConfig(test_horizons=(3, 8))
    with pytest.raises(ConfigError, match="problems.branches.long_horizons"):
        BranchesConfig(long_horizons=(9, 12))


# ------------------------------------------------------------------------------------ the oracle


def with_mistakes(
    function: Function, wrong: dict[int, int], rng: random.Random
) -> tuple[str, int | None]:
    """A solution with confusion wrong[k] in line k and with harmless lines; its first error."""
    texts: list[str] = []
    first = None
    for k, line in enumerate(function.lines):
        indent = INDENT * line.depth
        while rng.random() < 0.15:
            harmless = [f"{indent}# {line.words()}", "", "# note"]
            if line.statement != "else":
                harmless.append(f"{indent}pass")
            texts.append(rng.choice(harmless))
        if k in wrong and first is None:
            first = len(texts)
        texts.append(indent + (line.confused_code()[wrong[k]] if k in wrong else line.code()))
    return "\n".join(texts), first


def test_no_error_means_passing_over_single_mistakes(problems):
    rng = random.Random(1)
    for problem in problems:
        function = problem.function
        right, _ = with_mistakes(function, {}, rng)
        assert first_error(function, right) is None and passes(problem.tests.asserts, right)
        for k, line in enumerate(function.lines):
            for c in range(len(line.confused_code())):
                completion, first = with_mistakes(function, {k: c}, rng)
                assert first_error(function, completion) == first, completion
                assert not passes(problem.tests.asserts, completion)


def test_no_error_means_passing_over_several_mistakes(problems):
    rng = random.Random(2)
    cancelled = 0
    for _ in range(3000):
        problem = rng.choice(problems)
        lines = [k for k, line in enumerate(problem.function.lines) if line.confused_code()]
        chosen = rng.sample(lines, rng.randint(2, 5))
        wrong = {k: rng.randrange(len(problem.function.lines[k].confused_code())) for k in chosen}
        completion, first = with_mistakes(problem.function, wrong, rng)
        assert first_error(problem.function, completion) == first
        if passes(problem.tests.asserts, completion):
            assert len(wrong) > 2  # nothing guards against three that undo each other
            cancelled += 1
    assert cancelled <= 5


def test_the_first_error_is_where_the_right_rest_no_longer_helps(problems):
    """An oracle by execution: a beginning is good if the lines asked for after it pass."""
    rng = random.Random(3)
    for _ in range(200):
        problem = rng.choice(problems)
        codes = [INDENT * line.depth + line.code() for line in problem.function.lines]
        wrong = {
            k: rng.randrange(len(line.confused_code()))
            for k, line in enumerate(problem.function.lines)
            if line.confused_code() and rng.random() < 0.3
        }
        texts = [
            INDENT * line.depth + (line.confused_code()[wrong[k]] if k in wrong else line.code())
            for k, line in enumerate(problem.function.lines)
        ]
        found = first_error(problem.function, "\n".join(texts))
        for m in range(1, len(texts) + 1):
            helped = passes(problem.tests.asserts, "\n".join([*texts[:m], *codes[m:]]))
            if found is None or m <= found:
                assert helped
            elif m == found + 1:
                assert not helped  # one mistake, and the tests catch every one


@pytest.mark.parametrize(
    "text",
    [
        RIGHT + "\n",
        RIGHT.replace("    ", "\t"),
        RIGHT.replace("    ", " "),
        re.sub(r"\bv\b", "item", re.sub(r"\bs\b", "total", RIGHT)),
        RIGHT.replace("v", "a"),  # the loop reads the list before it names its items
        RIGHT.replace("s += v", "s = v + s"),
        RIGHT.replace("s *= 2", "s = s + s"),
        RIGHT.replace("if v % 2:", "if v % 2 == 1:"),
        RIGHT.replace("if v % 2:", "if not v % 2 == 0:"),
        RIGHT.replace("s -= 2", "s += -2"),
        RIGHT.replace("return -s", "return 0 - s"),
        RIGHT.replace("a[1:]", "a[1:len(a)]"),
        RIGHT.replace("s = 3", "s = 1 + 2"),
        RIGHT.replace("        s -= 2", "        pass\n        s -= 2  # less"),
        RIGHT.replace(
            "            s += v", "            pass\n            s += v\n            pass"
        ),
        RIGHT + "\n    return s",  # never reached
    ],
)
def test_other_spellings_of_the_same_are_right(text):
    value = [9, 5, 4, 0, -3]
    assert generator.compiled(text)(value) == generator.compiled(RIGHT)(value)
    assert first_error(FUNCTION, text) is None


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", 0),
        ("    s = 3", 0),  # it ends too early
        (RIGHT.removesuffix("\n    return -s"), 6),
        (RIGHT.replace("s = 3", "s = 4"), 0),
        (RIGHT.replace("s = 3", "a = 3"), 0),  # the list is lost
        (RIGHT.replace("s = 3", "s = a[0]"), 0),
        (RIGHT.replace("for v in", "for s in"), 1),
        (RIGHT.replace("for v in a[1:]", "for v in a[:1]"), 1),
        (RIGHT.replace("if v % 2:", "if v % 2 == -1:"), 2),
        (RIGHT.replace("if v % 2:", "if v > 0 and v % 2:"), 2),
        (RIGHT.replace("s += v", "s += w"), 3),
        (RIGHT.replace("s += v", "v += s"), 3),
        (RIGHT.replace("s += v", "s += v; s += 0"), 3),
        (RIGHT.replace("        else:\n            s *= 2\n", ""), 4),
        (RIGHT.replace("        else", "        pass\n        else"), 4),  # parted from its if
        (RIGHT.replace("        s -= 2", "    s -= 2"), 6),
        (RIGHT.replace("        s -= 2", "    pass\n        s -= 2"), 6),  # the loop is over
        (RIGHT.replace("        s -= 2", "         s -= 2"), 6),
        (RIGHT.replace("            s += v", "        s += v"), 3),
        (RIGHT.replace("return -s", "return -v"), 7),  # the item is no more
        (RIGHT.replace("return -s", "return s -"), 7),
        (RIGHT.replace("    return -s", "return -s"), 7),
        (RIGHT + "\n    if", 8),
        (RIGHT.replace("s *= 2", "s *= 2 ** 9 ** 9"), 5),
        (RIGHT.replace("s *= 2", "s *= len(range(9 ** 9))"), 5),
        (RIGHT.replace("s -= 2", "s -= [2]"), 6),
        (RIGHT.replace("s -= 2", "s -= 2 // 0"), 6),
        (RIGHT.replace("s -= 2", "s -= 2.0"), 6),
        ("    while True:\n        s = 3", 0),
        ("    s = 3\n    import os", 1),
        ("    s = 3\n    for v in a[1:]: s += v", 1),
    ],
)
def test_the_first_wrong_line_is_named(text, line):
    assert first_error(FUNCTION, text) == line


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="sva =+-*/%()[]:\n0123ifelsreturnpasfokb#\t\\'\"\r\f\x00é", max_size=80))
def test_any_text_gets_an_answer(text):
    found = first_error(FUNCTION, text)
    assert found is not None and 0 <= found < max(len(text.split("\n")), 1)
