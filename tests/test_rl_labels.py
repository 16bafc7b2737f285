"""The label search against a search of every prefix, and labels, classes and selections by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_jax.rl.labels import (
    ResponseClass,
    chance_of_a_pass,
    cheapest_probe,
    dense_transition,
    error_threshold,
    loss_support,
    next_probe,
    prm_targets,
    response_class,
    search_start,
    search_update,
    select,
    step_labels,
    transition,
)
from prm_jax.types import LineKind, PrefixLabels

CORRECT, REVISED, WRONG = ResponseClass.CORRECT, ResponseClass.REVISED, ResponseClass.WRONG
CODE, COMMENT, PLAN = LineKind.CODE, LineKind.COMMENT, LineKind.PLAN
fixed = settings(derandomize=True, deadline=None, max_examples=150)


@st.composite
def searches(draw, most=300):
    n_steps = draw(st.integers(0, most))
    return n_steps, draw(st.integers(0, n_steps))


# ------------------------------------------------------------------------------------ the search


def test_a_search_by_hand():
    # 0..7, middle 4 works -> 4..7, middle 6 fails -> 4..5, middle 5 fails -> 4
    found = transition(7, lambda m: m <= 4)
    assert found.m_star == 4
    assert found.probes == ((4, True), (6, False), (5, False))


@pytest.mark.parametrize("n_steps", [0, 1, 2, 3, 7, 8])
@pytest.mark.parametrize("answer", [True, False])
def test_extremes(n_steps, answer):
    found = transition(n_steps, lambda m: answer)
    assert found.m_star == (n_steps if answer else 0)
    assert len(found.probes) <= math.ceil(math.log2(n_steps + 1))


@fixed
@given(searches())
def test_monotone_search_finds_what_a_dense_search_finds(search):
    n_steps, m_star = search
    calls = []

    def test_prefix(m):
        calls.append(m)
        return m <= m_star

    found = transition(n_steps, test_prefix)
    dense = dense_transition(n_steps, lambda m: m <= m_star)
    assert found.m_star == dense.m_star == m_star
    assert dense.monotone
    assert len(calls) <= math.ceil(math.log2(n_steps + 1))
    assert len(set(calls)) == len(calls)
    assert all(1 <= m <= n_steps for m in calls)
    assert found.probes == tuple((m, m <= m_star) for m in calls)


@pytest.mark.parametrize("n_steps", range(40))
def test_the_bound_on_probes_is_reached_and_not_passed(n_steps):
    probes = [
        len(transition(n_steps, lambda m, m_star=m_star: m <= m_star).probes)
        for m_star in range(n_steps + 1)
    ]
    assert max(probes) == math.ceil(math.log2(n_steps + 1))


@fixed
@given(st.lists(st.booleans(), max_size=40))
def test_without_monotony_the_search_still_ends_at_a_boundary(successes):
    n_steps = len(successes)
    found = transition(n_steps, lambda m: successes[m - 1])
    assert found.m_star == 0 or successes[found.m_star - 1]
    assert found.m_star == n_steps or not successes[found.m_star]


def test_dense_search_by_hand():
    # prefixes 1 and 2 work, 3 fails, 4 works again: the transition is at 2, and not monotone
    dense = dense_transition(4, lambda m: m != 3)
    assert (dense.m_star, dense.monotone) == (2, False)
    assert dense.successes == (True, True, False, True)
    assert dense_transition(0, lambda m: True).m_star == 0


@fixed
@given(st.lists(searches(most=40), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_batched_search_matches_single_searches_in_any_order(searches, random):
    n_steps = np.array([n for n, _ in searches])
    m_star = np.array([m for _, m in searches])
    state = search_start(n_steps)
    n_probes = np.zeros_like(n_steps)
    for _ in range(1000):
        probe = next_probe(state)
        if not probe.any():
            break
        active = np.array([random.random() < 0.7 for _ in searches])
        # What inactive and settled rows say must not matter: give them noise.
        noise = np.array([random.random() < 0.5 for _ in searches])
        success = np.where(active & (probe > 0), probe <= m_star, noise)
        n_probes += active & (probe > 0)
        state = search_update(state, success, active)
    assert state.lo.tolist() == state.hi.tolist() == m_star.tolist()
    for row, (n, m) in enumerate(searches):
        assert n_probes[row] == len(transition(n, lambda k, m=m: k <= m).probes)


def test_a_search_leaves_its_inputs_alone():
    n_steps = np.array([3, 0])
    start = search_start(n_steps)
    search_update(start, np.array([False, False]), np.array([True, True]))
    assert n_steps.tolist() == [3, 0]
    assert start.hi.tolist() == [3, 0] and start.lo.tolist() == [0, 0]


def test_negative_steps_are_refused():
    with pytest.raises(ValueError, match="n_steps = -1"):
        search_start(np.array([2, -1]))


# ------------------------------------------------------------------------------------ labels


@pytest.mark.parametrize(
    "m_star, expected",
    [(0, [-1, 0, -1, 0]), (1, [1, 0, -1, 0]), (2, [1, 0, -1, 0]), (3, [1, 0, 1, 0]),
     (4, [1, 0, 1, 0])],
)  # fmt: skip
def test_labels_with_comments(m_star, expected):
    assert step_labels([CODE, COMMENT, CODE, COMMENT], m_star).tolist() == expected


def test_comments_may_be_labelled_as_lines():
    kinds = [CODE, COMMENT, CODE, COMMENT]
    assert step_labels(kinds, 1, neutral_comments=False).tolist() == [1, -1, -1, -1]
    assert step_labels(kinds, 2, neutral_comments=False).tolist() == [1, 1, -1, -1]


def test_a_plan_is_a_step_with_a_label():
    assert step_labels(np.array([PLAN, CODE]), 0).tolist() == [-1, -1]
    assert step_labels(np.array([PLAN, CODE]), 1).tolist() == [1, -1]


def test_labels_of_nothing():
    assert step_labels([], 0).tolist() == []


@pytest.mark.parametrize("m_star", [-1, 3])
def test_a_transition_outside_the_response_is_refused(m_star):
    with pytest.raises(ValueError, match=rf"m_star = {m_star} .* in 0\.\.2"):
        step_labels([CODE, CODE], m_star)


def test_blank_steps_are_refused():
    with pytest.raises(ValueError, match="blank lines are no steps"):
        step_labels([CODE, LineKind.BLANK], 1)


@pytest.mark.parametrize(
    "labels, all_, first_error",
    [
        ([1, 1, -1, -1], "1111", "1110"),
        ([1, 0, -1, 0, -1], "11111", "11100"),
        ([0, 1, 0], "111", "111"),  # no error: neutral steps keep their target 0
        ([-1, -1], "11", "10"),
        ([], "", ""),
    ],
)
def test_loss_support(labels, all_, first_error):
    outcome = loss_support(labels, "outcome").tolist()
    assert outcome == [False] * (len(labels) - 1) + [True] * bool(labels)
    assert loss_support(labels, "all").tolist() == [c == "1" for c in all_]
    assert loss_support(labels, "first_error").tolist() == [c == "1" for c in first_error]


def labelled(labels, passes, samples) -> PrefixLabels:
    kinds = tuple(CODE if label else COMMENT for label in labels)
    return PrefixLabels(kinds, tuple(labels), tuple(passes), tuple(samples))


#                     inferred, probed, neutral and probed, probed, inferred
FAILING = labelled([1, 1, 0, -1, -1], [0, 3, 2, 0, 0], [0, 4, 4, 8, 0])
PASSING = labelled([1, 0, 1], [0, 0, 0], [0, 0, 0])


@pytest.mark.parametrize(
    ("steps", "passed", "target", "loss_on", "targets", "weighs"),
    [
        (FAILING, False, "binary", "all", [1, 1, 0, -1, -1], "11111"),
        (FAILING, False, "binary", "first_error", [1, 1, 0, -1, -1], "11110"),
        # 3 of 4: 2 * 3/4 - 1; of the first prefix no rate is known, of the last that it fails.
        (FAILING, False, "rate", "all", [1, 0.5, 0, -1, -1], "01111"),
        (FAILING, False, "rate", "first_error", [1, 0.5, 0, -1, -1], "01110"),
        (FAILING, False, "binary", "outcome", [-1] * 5, "00001"),
        (PASSING, True, "binary", "all", [1, 0, 1], "111"),
        (PASSING, True, "rate", "first_error", [1, 0, 1], "111"),
        (PASSING, True, "binary", "outcome", [1] * 3, "001"),
        # The last line may be a comment: the outcome is the outcome.
        (labelled([1, 0], [0, 0], [0, 0]), True, "binary", "outcome", [1, 1], "01"),
        # Each weighs as many as its completions, itself one of them: 3 of 5, 2 * 3/5 - 1.
        (FAILING, False, "counts", "all", [-1, 0.2, 0, -1, -1], "15191"),
        (FAILING, False, "counts", "first_error", [-1, 0.2, 0, -1, -1], "15190"),
        (PASSING, True, "counts", "all", [1, 0, 1], "111"),
        (labelled([], [], []), False, "rate", "all", [], ""),
        (labelled([], [], []), False, "binary", "outcome", [], ""),
    ],
)
def test_targets_of_the_prm_by_hand(steps, passed, target, loss_on, targets, weighs):
    found, weights = prm_targets(steps, passed, target=target, loss_on=loss_on)
    assert found.tolist() == pytest.approx(targets)
    assert weights.tolist() == [int(c) for c in weighs]


@pytest.mark.parametrize("k", [1, 4, 8, 20])
def test_an_error_is_what_scores_nearer_to_no_pass_than_to_one(k):
    one = labelled([1], [1], [k])
    for target in ("rate", "counts"):
        (least,), _ = prm_targets(one, False, target=target, loss_on="all")
        assert error_threshold(target, k) == pytest.approx((least + -1) / 2)
    assert error_threshold("binary", k) == 0


@fixed
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 20)), min_size=1, max_size=12))
def test_a_rate_is_the_share_that_passed_on_the_scale_of_labels(counts):
    counts = [(min(passes, samples), samples) for passes, samples in counts]
    steps = labelled(
        [1 if p else -1 for p, _ in counts], [p for p, _ in counts], [n for _, n in counts]
    )
    rates, _ = prm_targets(steps, False, target="rate", loss_on="all")
    labels, _ = prm_targets(steps, False, target="binary", loss_on="all")
    np.testing.assert_allclose((rates + 1) / 2, [p / n for p, n in counts])
    assert (np.abs(rates) <= 1).all() and (rates[labels == -1] == -1).all()


# ------------------------------------------------------------------------------------ selections


def test_response_classes():
    assert response_class(True, 0) == response_class(True, 5) == CORRECT
    assert response_class(False, 1) == REVISED
    assert response_class(False, 0) == WRONG


#          a: all wrong   b: all correct    c: wrong, correct   d: revised  e: wrong, revised
CLASSES = [WRONG, WRONG, CORRECT, CORRECT, WRONG, CORRECT, REVISED, WRONG, REVISED]
PROMPTS = ["a", "a", "b", "b", "c", "c", "d", "e", "e"]


@pytest.mark.parametrize(
    "selection, expected",
    [
        ("full", "111111111"),
        ("remove_hard", "001111111"),
        ("medium_only", "000011111"),
        ("revised_only", "000000101"),
    ],
)
def test_selections(selection, expected):
    keep = [c == "1" for c in expected]
    assert select(CLASSES, PROMPTS, selection).tolist() == keep
    # Neither the order of the responses nor the names of the prompts matter.
    order = np.random.default_rng(0).permutation(len(CLASSES))
    ids = np.array([ord(p) for p in PROMPTS])[order]
    shuffled = select(np.array(CLASSES)[order], ids, selection)
    assert shuffled.tolist() == np.array(keep)[order].tolist()


def test_selections_of_nothing():
    for selection in ("full", "remove_hard", "medium_only", "revised_only"):
        assert select([], [], selection).tolist() == []


def test_select_refuses_lengths_that_differ():
    with pytest.raises(ValueError, match="prompt_ids has 1 entries and classes 2"):
        select([CORRECT, WRONG], ["a"], "full")


# ---------------------------------------------------------------------------- the cheapest search


def least_cost(lo: int, hi: int, failure: tuple[float, ...], success: float) -> tuple[float, int]:
    """By trying every probe, in exact order: the least expected cost, and the first probe."""
    if lo == hi:
        return 0.0, 0
    costs = []
    for m in range(lo + 1, hi + 1):
        p = (hi - m + 1) / (hi - lo + 1)
        passed = success + least_cost(m, hi, failure, success)[0]
        failed = failure[m - 1] + least_cost(lo, m - 1, failure, success)[0]
        costs.append((p * passed + (1 - p) * failed, m))
    return min(costs)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_the_cheapest_probe_is_that_of_trying_them_all(data):
    n = data.draw(st.integers(1, 7))
    lo = data.draw(st.integers(0, n - 1))
    hi = data.draw(st.integers(lo + 1, n))
    failure = tuple(data.draw(st.lists(st.floats(0.5, 20), min_size=n, max_size=n)))
    success = data.draw(st.floats(0.5, 20))
    found = cheapest_probe(lo, hi, np.array(failure), success)
    assert lo < found <= hi
    best, _ = least_cost(lo, hi, failure, success)
    p = (hi - found + 1) / (hi - lo + 1)
    cost = p * (success + least_cost(found, hi, failure, success)[0])
    cost += (1 - p) * (failure[found - 1] + least_cost(lo, found - 1, failure, success)[0])
    assert cost == pytest.approx(best)


def test_dear_failures_make_the_search_begin_at_the_front():
    assert cheapest_probe(0, 7, np.full(7, 1.0), 1.0) == 4  # as a binary search
    assert cheapest_probe(0, 7, np.full(7, 20.0), 1.0) < 3
    assert cheapest_probe(0, 7, np.full(7, 1.0), 20.0) > 5


@pytest.mark.parametrize(("failed", "left"), [(0, 1), (0, 20), (3, 5), (9, 11)])
def test_the_chance_of_a_pass_is_that_of_a_dead_or_a_live_prefix(failed, left):
    rates = (np.arange(200_000) + 0.5) / 200_000
    alive = 0.5 * np.mean((1 - rates) ** failed)  # and `failed` completions did not pass
    passes = 0.5 * np.mean((1 - rates) ** failed * (1 - (1 - rates) ** left))
    assert chance_of_a_pass(failed, left) == pytest.approx(passes / (0.5 + alive), rel=1e-6)
