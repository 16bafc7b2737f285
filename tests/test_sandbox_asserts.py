"""Which asserts are split into a value and a literal, and what then holds."""

import ast

import pytest

from prm_jax.sandbox.core import asserts, values

SPLIT = {
    "f(2) == 4": ["f(2)"],
    "4 == f(2)": ["f(2)"],
    "set(f(0)) == {1, 2}": ["set(f(0))"],
    "sorted(f(1), key=lambda t: t[0]) == [4, 5]": ["sorted(f(1), key=lambda t: t[0])"],
    "len(f(1)) == 2": ["len(f(1))"],
    "round(f(1), 2) == 2.5": ["round(f(1), 2)"],
    "f(1) is None": ["f(1)"],
    "not f(1)": ["f(1)"],
    "f(1)": ["f(1)"],
    "f(1) in (1, 2)": ["f(1)"],
    "1 < f(1) <= 3 and f(2) != 0": ["f(1)", "f(2)"],
    "Solution().f([1], 2) == 3": ["Solution().f([1], 2)"],
    "f(Pair(1, 2)).a == 3": ["f(Pair(1, 2)).a"],
    "f(x for x in range(3)) == float('inf')": None,
    "f([1]) == [0] * 3 + [2 ** 5]": ["f([1])"],
    "sum(10, 15) == 6": ["sum(10, 15)"],
}
# a program could make these true without knowing the number in them
WHOLE = [
    "abs(f(2) - 4) < 0.1",
    "isclose(f(2), 4)",
    "math.isclose(f(2), 4)",
    "np.allclose(f(2), [4])",
    "f(2).startswith('a') == True",
    "f(2).__eq__(4)",
    "(f(2) == 4) == True",
    "all(x == 4 for x in f(2))",
    "isinstance(f(2), int)",
    "f(2) is expected",
    "f(2) in ANSWERS",
    "f(2) == 4 or f(3) == 5",
    "eval('f(2) == 4')",
    "f(2) - 4 == 0",
    "[f(2) == 4][0]",
    "(lambda a: a == 4)(f(2))",
]


@pytest.mark.parametrize("test, expressions", SPLIT.items())
def test_split(test, expressions):
    found, conditions = asserts.split([f"assert {test}"])
    assert len(conditions) == 1
    if expressions is not None:
        assert found == [ast.unparse(ast.parse(e)) for e in expressions]


@pytest.mark.parametrize("test", WHOLE)
def test_what_would_tell_the_program_too_much_stays_whole(test):
    with pytest.raises(asserts.NotSplit):
        asserts.split([f"assert {test}"])


def test_a_function_of_the_setup_is_trusted_and_stays_whole():
    assert asserts.split(["assert tidy(f(1)) == 1"])
    with pytest.raises(asserts.NotSplit):
        asserts.split(["assert tidy(f(1)) == 1"], "def tidy(x): return round(x)")


@pytest.mark.parametrize("statement", ["f(2) == 4", "x = f(2)\nassert x == 4", ""])
def test_what_is_no_single_assert_stays_whole(statement):
    with pytest.raises(asserts.NotSplit):
        asserts.split([statement])


HOLDS = [
    ("f(0) == 4", [4], True),
    ("f(0) == 4", [5], False),
    ("f(0) != 4", [5], True),
    ("not f(0)", [["l"]], True),
    ("f(0)", [""], False),
    ("f(0) is True", [1], False),
    ("f(0) is True", [True], True),
    ("f(0) is None", [None], True),
    ("f(0) is not None", [0], True),
    ("f(0) in (1, 'a')", ["a"], True),
    ("f(0) not in [1]", [1.0], False),
    ("1 < f(0) < 3", [2.5], True),
    ("1 < f(0) < 3", [3], False),
    ("f(0) == f(1)", [["t", 1], ["t", True]], True),
    ("f(0) == 1 and f(1) == 2", [1, 3], False),
    ("f(0) > 'a'", ["b"], True),
]


@pytest.mark.parametrize("test, results, expected", HOLDS)
def test_holds(test, results, expected):
    _, (condition,) = asserts.split([f"assert {test}"])
    assert asserts.holds(condition, results) == expected


@pytest.mark.parametrize("data", [{"a": 1}, [[]], ["l", {}], ["zz"], ["d", 1], ["s", ["r"]]])
@pytest.mark.parametrize("test", ["f(0) == 1", "not f(0)", "f(0) < 2", "f(0) in (1,)"])
def test_what_is_no_value_makes_nothing_hold(test, data):
    _, (condition,) = asserts.split([f"assert {test}"])
    try:
        assert not asserts.holds(condition, [data]) or test == "not f(0)"
    except values.Malformed:
        pass


@pytest.mark.parametrize("text", ["9**9**9", "[0] * 10**9", "'a' * 10**10", "open('x')", "f"])
def test_literals_are_bounded_and_call_nothing(text):
    with pytest.raises((ValueError, TypeError)):
        asserts.literal(ast.parse(text, mode="eval").body)


def test_free_names():
    code = (
        "import math\ndef check(c):\n    for i in range(3):\n        assert c(i) == g(math.pi, i)"
    )
    assert asserts.free_names(code) == ["g"]
