"""Which asserts are split into a value and a literal, and what then holds."""

import ast

import pytest

from prm_jax.sandbox.core import asserts, identifiers, values

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
    "copy(3) == 3": ["copy(3)"],  # a module is not called
    "Fraction(2).double() == 4": ["Fraction(2).double()"],  # nothing else of the program is named
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
    # the program could have its own Fraction, sorted or datetime
    "f(2) == Fraction(1, 2)",
    "f([2, 1]) == sorted([2, 1])",
    "f(2) == datetime(2020, 1, 2)",
    "f(2) == copy.copy([1])",
    "f(2) == '%9999999999d' % 1",
]


@pytest.mark.parametrize("test, expressions", SPLIT.items())
def test_split(test, expressions):
    found, conditions = asserts.split([f"assert {test}"])
    assert len(conditions) == 1
    if expressions is not None:
        assert list(map(ast.unparse, found)) == [ast.unparse(ast.parse(e)) for e in expressions]


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


COSTLY = ["9**9**9", "[0] * 10**9", "'a' * 10**10", "'%9999999999d' % 1", "b'%*d' % (10**10, 1)"]
COSTLY += ["list(range(10**10))", "set(range(10**10))", "bytes(10**10)", "open('x')", "f"]


@pytest.mark.parametrize("text", COSTLY)
def test_literals_are_bounded_and_call_nothing(text):
    with pytest.raises((ValueError, TypeError)):
        asserts.literal(ast.parse(text, mode="eval").body)


CHECKS = {
    "asserts": ("    assert candidate(2) == 4, 'text'\n    assert candidate(3)", ["f(2)", "f(3)"]),
    "true assert": ("    '''Text.'''\n    assert True\n    assert candidate(2) == 4", ["f(2)"]),
    "loop": ("    for i in range(3): assert candidate(i) == i", None),
    "tolerance": ("    assert abs(candidate(2) - 4) < 1e-6", None),
    "nothing": ("    assert True", None),
    "helper": ("    assert g(candidate(2)) == 4\ndef g(x): return x", None),
    "its own name": ("    assert candidate(2) == EXPECTED\nEXPECTED = 4", None),
}


@pytest.mark.parametrize("body, expressions", CHECKS.values(), ids=CHECKS.keys())
def test_checks_that_are_nothing_but_asserts_are_split(body, expressions):
    code = f"METADATA = {{'a': 1}}\ndef check(candidate):\n{body}"
    if expressions is None:
        with pytest.raises(asserts.NotSplit):
            asserts.split_check(code, "f")
        return
    found, conditions = asserts.split_check(code, "f")
    assert list(map(ast.unparse, found)) == expressions
    assert len(conditions) == 1
    assert asserts.holds(conditions[0], [4, 1])
    assert not asserts.holds(conditions[0], [5, 1])


def test_sources():
    code = "assert f(datetime(2020, 1, 2)) == Counter(np.ones(2)) and copy(1) and math.pi"
    assert identifiers.sources(code) == {
        "datetime": ("datetime", "datetime"),
        "Counter": ("collections", "Counter"),
        "np": ("numpy", ""),
        "math": ("math", ""),
    }
    assert identifiers.sources("assert Counter('a').most_common() == 1") == {}


def test_free_names():
    code = (
        "import math\ndef check(c):\n    for i in range(3):\n        assert c(i) == g(math.pi, i)"
    )
    assert identifiers.free_names(code) == ["g"]
