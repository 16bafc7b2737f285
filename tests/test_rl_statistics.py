"""Statistics against enumeration, scikit-learn, simulation and numbers by hand."""

import itertools
import math

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_auc_score

from prm_jax.rl.statistics import (
    auc,
    auc_within_groups,
    best_of_n,
    bootstrap_interval,
    calibration,
    first_error,
    first_error_of_failing,
    first_error_report,
    pass_at_k,
    success_variance,
    value_error,
)


def one(n, c, k):
    return pass_at_k(np.array([n]), np.array([c]), k)[0]


# ------------------------------------------------------------------------------------ pass rates


@pytest.mark.parametrize("n, c", [(1, 0), (1, 1), (5, 0), (5, 2), (6, 5), (7, 7)])
def test_pass_at_k_matches_enumeration(n, c):
    passed = [True] * c + [False] * (n - c)
    for k in range(1, n + 1):
        subsets = list(itertools.combinations(passed, k))
        np.testing.assert_allclose(one(n, c, k), np.mean([any(s) for s in subsets]), atol=1e-12)


def test_pass_at_1_is_the_share_that_passes():
    n, c = np.array([10, 4, 3]), np.array([3, 4, 0])
    np.testing.assert_allclose(pass_at_k(n, c, 1), [0.3, 1, 0])


def test_pass_at_k_is_unbiased():
    # Summed over the binomial distribution of c it is 1 - (1 - p)^k, for any n.
    n, k, p = 12, 5, 0.2
    c = np.arange(n + 1)
    weight = np.array([math.comb(n, x) * p**x * (1 - p) ** (n - x) for x in c])
    expected = 1 - (1 - p) ** k
    np.testing.assert_allclose(weight @ pass_at_k(np.full(n + 1, n), c, k), expected, rtol=1e-12)


def test_pass_at_k_of_many_samples_does_not_overflow():
    np.testing.assert_allclose(one(20_000, 1, 10_000), 0.5)


@pytest.mark.parametrize("k", [0, 4])
def test_pass_at_k_refuses_k(k):
    with pytest.raises(ValueError, match=rf"k = {k} .* in 1\.\.3"):
        pass_at_k(np.array([5, 3]), np.array([1, 1]), k)


@pytest.mark.parametrize("c", [-1, 4])
def test_pass_at_k_refuses_c(c):
    with pytest.raises(ValueError, match=r"it must be in 0\.\.n"):
        one(3, c, 1)


@pytest.mark.parametrize("levels", [2, 4, 1000])  # few levels make many ties
def test_best_of_n_matches_enumeration(levels):
    rng = np.random.default_rng(levels)
    scores, passed = rng.integers(levels, size=(4, 6)), rng.random((4, 6)) < 0.4
    for n in range(1, 7):
        expected = np.zeros(4)
        for problem in range(4):
            picks = []
            for subset in itertools.combinations(range(6), n):
                top = max(scores[problem, list(subset)])
                ties = [s for s in subset if scores[problem, s] == top]
                picks.append(np.mean(passed[problem, ties]))
            expected[problem] = np.mean(picks)
        np.testing.assert_allclose(best_of_n(scores, passed, n), expected, atol=1e-12)


def test_best_of_n_by_an_oracle_is_pass_at_k_and_by_nothing_is_pass_at_1():
    passed = np.random.default_rng(0).random((5, 8)) < 0.3
    n, c = np.full(5, 8), passed.sum(axis=1)
    for k in (1, 3, 8):
        oracle = best_of_n(passed.astype(float), passed, k)
        np.testing.assert_allclose(oracle, pass_at_k(n, c, k), atol=1e-12)
        blind = best_of_n(np.zeros((5, 8)), passed, k)
        np.testing.assert_allclose(blind, passed.mean(axis=1), atol=1e-12)


def test_best_of_n_refuses_what_it_cannot_rank():
    passed = np.array([[True, False]])
    with pytest.raises(ValueError, match=r"n = 3 .* in 1\.\.2"):
        best_of_n(np.zeros((1, 2)), passed, 3)
    with pytest.raises(ValueError, match=r"scores has a NaN at \[0, 1\]"):
        best_of_n(np.array([[0, np.nan]]), passed, 1)


def test_success_variance_by_hand():
    # One problem whose plans decide everything, one whose plans decide nothing.
    passed = np.array([[[1, 1], [0, 0]], [[1, 0], [1, 0]]], bool)
    found = success_variance(passed)
    # Within: 0, 0, 1/2, 1/2. Means of plans: variance 1/2 and 0, their mean 1/4.
    assert found.within_plans == 1 / 4
    assert found.between_plans == 1 / 4 - (1 / 4) / 2
    assert found.between_problems == 0 - (1 / 4) / 2
    assert found.plan_share == pytest.approx(1 / 3)


@pytest.mark.parametrize(("rate_of_plan", "share"), [("decides", 1.0), ("nothing", 0.0)])
def test_plans_that_decide_everything_or_nothing(rate_of_plan, share):
    rng = np.random.default_rng(0)
    draws = rng.random((4000, 3, 1 if rate_of_plan == "decides" else 4)) < 0.3
    passed = np.broadcast_to(draws, (4000, 3, 4))
    assert success_variance(passed).plan_share == pytest.approx(share, abs=0.03)


def test_success_variance_is_unbiased_with_few_plans_and_few_programs():
    """Beta-distributed rates of problems and plans, whose variances are known."""
    rng = np.random.default_rng(1)
    n = 40_000
    of_problem = rng.beta(2, 2, (n, 1, 1))  # variance 1/20
    of_plan = rng.beta(of_problem * 4, (1 - of_problem) * 4, (n, 2, 1))  # q (1 - q) / 5 around q
    found = success_variance(rng.random((n, 2, 2)) < of_plan)
    mean_q = 0.5 * 0.5 - 1 / 20  # E q (1 - q)
    np.testing.assert_allclose(found.between_problems, 1 / 20, atol=0.005)
    np.testing.assert_allclose(found.between_plans, mean_q / 5, atol=0.005)
    np.testing.assert_allclose(found.within_plans, mean_q * 4 / 5, atol=0.005)


@pytest.mark.parametrize("shape", [(1, 2, 2), (2, 1, 2), (2, 2, 1)])
def test_success_variance_needs_two_of_each(shape):
    with pytest.raises(ValueError, match="two along each axis"):
        success_variance(np.ones(shape, bool))


def test_success_that_never_varies_has_no_share():
    assert np.isnan(success_variance(np.ones((2, 2, 2), bool)).plan_share)


def test_bootstrap_interval_repeats_by_seed_and_holds_the_mean():
    values = np.random.default_rng(0).random(50)
    low, high = bootstrap_interval(values, resamples=500, confidence=0.95, seed=1)
    assert low < values.mean() < high
    assert (low, high) == bootstrap_interval(values, resamples=500, confidence=0.95, seed=1)
    assert (low, high) != bootstrap_interval(values, resamples=500, confidence=0.95, seed=2)
    narrow = bootstrap_interval(values, resamples=500, confidence=0.5, seed=1)
    assert low < narrow[0] < narrow[1] < high


def test_bootstrap_interval_has_the_width_of_the_normal_one():
    values = np.random.default_rng(1).normal(size=400)
    low, high = bootstrap_interval(values, resamples=4000, confidence=0.95, seed=0)
    error = values.std() / np.sqrt(400)
    np.testing.assert_allclose([low, high], values.mean() + 1.96 * error * np.array([-1, 1]), 0.1)


def test_bootstrap_interval_covers_the_truth():
    rng = np.random.default_rng(2)
    covered = []
    for trial in range(300):
        passed = rng.binomial(10, rng.beta(1, 2, size=60)) / 10  # problems differ; the mean is 1/3
        low, high = bootstrap_interval(passed, resamples=200, confidence=0.9, seed=trial)
        covered.append(low <= 1 / 3 <= high)
    # 300 trials: 0.9 with a standard error of 0.017
    assert 0.84 < np.mean(covered) < 0.96


def test_bootstrap_of_one_problem_and_of_booleans():
    assert bootstrap_interval(np.array([0.3]), resamples=9, confidence=0.9, seed=0) == (0.3, 0.3)
    low, high = bootstrap_interval(np.ones(4, bool), resamples=9, confidence=0.9, seed=0)
    assert (low, high) == (1, 1)


@pytest.mark.parametrize("values, message", [([], "is empty"), ([0.1, np.nan], r"NaN at \[1\]")])
def test_bootstrap_refusals(values, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(np.array(values), resamples=9, confidence=0.9, seed=0)


# ------------------------------------------------------------------------------------ ranking


@pytest.mark.parametrize("levels", [3, 10_000])
def test_auc_matches_scikit_learn(levels):
    rng = np.random.default_rng(levels)
    labels = rng.choice([-1, 0, 1], size=300)
    scores = rng.integers(levels, size=300) / levels + 0.2 * (labels == 1)
    counts = labels != 0  # comments are left out
    expected = roc_auc_score(labels[counts] == 1, scores[counts])
    np.testing.assert_allclose(auc(scores, labels), expected, rtol=1e-12)


def test_auc_by_hand():
    # +1 at 3 and 1, -1 at 2 and 1: wins 3>2, 3>1, loses 1<2, ties 1=1: 2.5 of 4
    assert auc(np.array([3, 1, 2, 1, 9]), np.array([1, 1, -1, -1, 0])) == 0.625


@pytest.mark.parametrize("labels", [[1, 1, 0], [-1, 0, 0], [0, 0, 0]])
def test_auc_without_both_classes_is_nan(labels):
    assert math.isnan(auc(np.array([1.0, 2, 3]), np.array(labels)))


def test_auc_refuses_other_labels_and_nan():
    with pytest.raises(ValueError, match="must be -1, 0 or 1"):
        auc(np.zeros(2), np.array([1, 2]))
    with pytest.raises(ValueError, match=r"scores has a NaN at \[1\]"):
        auc(np.array([0, np.nan]), np.array([1, -1]))


def test_auc_within_groups_weighs_by_pairs():
    rng = np.random.default_rng(3)
    groups = rng.integers(12, size=200)
    labels, scores = rng.choice([-1, 0, 1], size=200), rng.integers(6, size=200)
    labels[groups == 0] = 1  # a group of one class has no pairs
    labels[groups == 1] = 0
    won, total = 0.0, 0
    for g in range(2, 12):
        positive, negative = (scores[(groups == g) & (labels == s)] for s in (1, -1))
        pairs = len(positive) * len(negative)
        won += pairs * auc(scores[groups == g], labels[groups == g])
        total += pairs
    value, n_groups = auc_within_groups(scores, labels, groups)
    np.testing.assert_allclose(value, won / total, rtol=1e-12)
    assert n_groups == 10
    names = [f"problem {g}" for g in groups]
    assert auc_within_groups(scores, labels, names) == (value, 10)


def test_auc_within_groups_is_blind_to_difficulty():
    # Scores that know the problem and nothing of its steps: pooled AUC 0.8, within problems 0.5.
    labels = np.array([1, 1, -1, 1, -1, -1])
    groups = np.array([0, 0, 0, 1, 1, 1])
    scores = np.array([1.0, 1, 1, 0, 0, 0])
    assert auc(scores, labels) > 0.6
    assert auc_within_groups(scores, labels, groups) == (0.5, 2)


def test_auc_within_no_groups_is_nan():
    value, n_groups = auc_within_groups(np.zeros(2), np.array([1, -1]), np.array([0, 1]))
    assert math.isnan(value) and n_groups == 0
    value, n_groups = auc_within_groups(np.zeros(0), np.zeros(0, int), np.zeros(0, int))
    assert math.isnan(value) and n_groups == 0


def test_auc_within_groups_refuses_lengths_that_differ():
    with pytest.raises(ValueError, match="groups has 1 entries and scores 2"):
        auc_within_groups(np.zeros(2), np.array([1, -1]), ["a"])


# ------------------------------------------------------------------------------------ first error


@pytest.mark.parametrize(
    "scores, labels, expected",
    [
        ([0.9, -0.1, -0.9], [1, 1, -1], 1),
        ([0.9, 0.0, 0.1], [1, 1, -1], -1),  # at the threshold is not below it
        ([-0.9, 0.9, -0.9], [0, 1, -1], 2),  # a comment is no error, whatever its score
        ([], [], -1),
    ],
)
def test_first_error(scores, labels, expected):
    got = first_error(np.array(scores), np.array(labels, dtype=int), threshold=0.0)
    assert got == expected


def test_first_error_report_by_hand():
    responses = [
        ([0.5, 0.5, -0.5, -0.5], [1, 1, -1, -1]),  # exact
        ([0.5, 0.5, 0.5, -0.5], [1, 0, -1, -1]),  # too late
        ([0.5, -0.5, -0.5], [1, 1, -1]),  # too early
        ([0.5, 0.5, 0.5], [1, 1, -1]),  # missed
        ([-0.5, -0.5], [0, -1]),  # exact: the comment before it does not count
        ([0.5, 0.5], [1, 1]),  # right
        ([0.5, -0.5], [1, 0]),  # right: only the comment scores low
        ([0.5, -0.5], [1, 1]),  # a false alarm
        ([-0.5], [0]),  # no step that counts
        ([], []),
    ]
    report = first_error_report(
        [np.array(s, dtype=float) for s, _ in responses],
        [np.array(x, dtype=int) for _, x in responses],
        threshold=0.0,
    )
    assert (report.n_error, report.n_ok) == (5, 3)
    assert report.acc_error == report.exact == 0.4
    assert report.acc_ok == pytest.approx(2 / 3)
    assert (report.too_early, report.too_late, report.missed) == (0.2, 0.2, 0.2)
    assert report.f1 == pytest.approx(2 * 0.4 * (2 / 3) / (0.4 + 2 / 3))
    # Of the one that was missed, the largest fall is to its first step, from the prompt's 1.
    assert report.localised == 0.4


@pytest.mark.parametrize(
    ("scores", "labels", "expected"),
    [
        ([0.9, 0.8, 0.1, 0.2], [1, 1, -1, -1], 2),  # nothing below 0: the fall from 0.8
        (
            [0.9, 0.8, -0.1, -0.9],
            [1, 1, -1, -1],
            2,
        ),  # the first below 0, though the next falls more
        ([0.3, 0.2], [1, -1], 0),  # the prompt counts as 1
        ([0.9, 0.1, 0.7], [1, 0, -1], 2),  # a comment is passed over: from 0.9 to 0.7
        ([0.5], [0], -1),
        ([], [], -1),
    ],
)
def test_the_first_error_of_a_failing_response(scores, labels, expected):
    got = first_error_of_failing(np.array(scores), np.array(labels, dtype=int), threshold=0.0)
    assert got == expected


def test_what_is_told_to_fail_is_found_at_least_as_often():
    rng = np.random.default_rng(5)
    labels = [np.where(np.arange(n) < rng.integers(0, n), 1, -1) for n in rng.integers(1, 9, 300)]
    scores = [np.clip(x * 0.4 + 0.3 + 0.3 * rng.normal(size=len(x)), -1, 1) for x in labels]
    report = first_error_report(scores, labels, threshold=0.0)
    assert report.missed > 0.05 and report.exact < report.localised <= report.exact + report.missed


def test_first_error_shares_sum_to_1():
    rng = np.random.default_rng(4)
    labels = [rng.choice([-1, 0, 1], size=n) for n in rng.integers(0, 9, size=200)]
    scores = [rng.normal(size=len(x)) for x in labels]
    report = first_error_report(scores, labels, threshold=-0.5)
    total = report.exact + report.too_early + report.too_late + report.missed
    assert total == pytest.approx(1)
    assert min(report.exact, report.too_early, report.too_late, report.missed) > 0
    assert report.n_error == sum((x == -1).any() for x in labels)
    assert report.n_ok == sum((x == 1).any() and not (x == -1).any() for x in labels)


def test_the_f1_of_a_perfect_and_of_a_useless_prm():
    labels = [np.array([1, -1]), np.array([1, 1])]
    perfect = first_error_report([x.astype(float) for x in labels], labels, threshold=0.0)
    assert perfect.f1 == 1
    alarm = first_error_report([np.array([-1.0, -1])] * 2, labels, threshold=0.0)
    assert (alarm.f1, alarm.too_early, alarm.acc_ok) == (0, 1, 0)


def test_first_error_report_without_a_group_is_nan():
    report = first_error_report([np.ones(2)], [np.array([1, 1])], threshold=0.0)
    assert math.isnan(report.f1) and math.isnan(report.exact) and report.acc_ok == 1


def test_first_error_report_refuses_lengths_that_differ():
    with pytest.raises(ValueError, match="response 0 has 2 scores and 1 labels"):
        first_error_report([np.ones(2)], [np.array([1])], threshold=0.0)


# ------------------------------------------------------------------------------------ calibration


def test_calibration_by_hand():
    # scores -1, -0.8, 0.2, 3 are p = 0, 0.1, 0.6, 1. Bins [0, .5) and [.5, 1]:
    # predicted 0.05 and 0.8, observed 0.5 and 0.75; error = (2 * 0.45 + 2 * 0.05) / 4
    table = calibration(np.array([-1, -0.8, 0.2, 3]), np.array([0, 1, 0.5, 1]), bins=2)
    assert table.low.tolist() == [0, 0.5] and table.high.tolist() == [0.5, 1]
    assert table.count.tolist() == [2, 2]
    np.testing.assert_allclose(table.predicted, [0.05, 0.8])
    np.testing.assert_allclose(table.observed, [0.5, 0.75])
    np.testing.assert_allclose(table.error, 0.25)


def test_calibration_matches_scikit_learn():
    rng = np.random.default_rng(5)
    p = rng.random(2000)
    success = rng.random(2000) < p**2
    table = calibration(2 * p - 1, success, bins=10)
    observed, predicted = calibration_curve(success, p, n_bins=10)
    np.testing.assert_allclose(table.observed, observed)
    np.testing.assert_allclose(table.predicted, predicted)


def test_calibrated_scores_have_a_small_error():
    rng = np.random.default_rng(6)
    p = rng.random(20_000)
    assert calibration(2 * p - 1, rng.random(20_000) < p, bins=10).error < 0.02
    # Overconfidence by half: |p - sign| is 0.25 on average.
    extreme = np.where(p > 0.5, 1.0, -1.0)
    np.testing.assert_allclose(calibration(extreme, rng.random(20_000) < p, 10).error, 0.25, 0.05)


def test_empty_bins_are_nan_and_do_not_count():
    table = calibration(np.array([0.9, 1.0]), np.array([1, 1]), bins=4)
    assert table.count.tolist() == [0, 0, 0, 2]
    assert np.isnan(table.predicted[:3]).all() and np.isnan(table.observed[:3]).all()
    np.testing.assert_allclose(table.error, 0.025)
    assert math.isnan(calibration(np.zeros(0), np.zeros(0), bins=4).error)


@pytest.mark.parametrize(
    "score, success, bins, message",
    [(0.5, 1, 0, "bins = 0"), (np.nan, 1, 5, "scores has a NaN"), (0.5, -1, 5, "lie in")],
)
def test_calibration_refusals(score, success, bins, message):
    with pytest.raises(ValueError, match=message):
        calibration(np.array([score]), np.array([success]), bins=bins)


# ----------------------------------------------------------------------------------- critic: error


def test_value_error_by_hand():
    # Means 3/4, 1/4, 1/4. Each row of outcomes has a variance of 1/4, so a mean is off by 1/16.
    # Means have a variance of 1/12, so expected outcomes have 1/48. Of values 2, 1, 0 it is 1, and
    # the covariance with the means is 1/4; 1/4 / sqrt(1/48) is above 1.
    outcomes = np.array([[1, 1, 1, 0], [0, 0, 1, 0], [1, 0, 0, 0]], bool)
    found = value_error(np.array([2.0, 1.0, 0.0]), outcomes)
    assert (found.correlation, found.rmse) == (1.0, 0.0)
    np.testing.assert_allclose(found.rmse_of_mean**2, 1 / 48)
    # Values 0, 9, 0 have a variance of 27 and a covariance of -3/4: -3/4 / sqrt(27/48) is -1.
    np.testing.assert_allclose(value_error(np.array([0.0, 9.0, 0.0]), outcomes).correlation, -1.0)
    # Of values 0, 1, 3 the variance is 7/3, and the covariance -1/3.
    found = value_error(np.array([0.0, 1.0, 3.0]), outcomes)
    correlation = -1 / 3 / np.sqrt(7 / 3 / 48)
    assert correlation < -1 and found.correlation == -1  # noise alone can do that, with so few
    same = value_error(np.ones(3), outcomes)
    assert math.isnan(same.correlation) and same.rmse == same.rmse_of_mean


@pytest.mark.parametrize("a, b", [(1, 1), (2, 8)])
def test_value_error_sees_through_the_noise_of_few_completions(a, b):
    rng = np.random.default_rng(7)
    p = rng.beta(a, b, 50_000)
    outcomes = rng.random((50_000, 4)) < p[:, None]
    found = value_error(0.3 + 2 * p, outcomes)  # shifted and scaled
    np.testing.assert_allclose(found.correlation, 1, atol=0.02)
    np.testing.assert_allclose(found.rmse_of_mean, p.std(), rtol=0.02)
    noisy = value_error(p + rng.normal(0, p.std(), p.shape), outcomes)
    np.testing.assert_allclose(noisy.correlation, np.sqrt(0.5), atol=0.02)
    np.testing.assert_allclose(noisy.rmse, p.std() * np.sqrt(0.5), rtol=0.03)


@pytest.mark.parametrize("n, k", [(1, 4), (3, 1)])
def test_value_error_refuses_what_has_no_variance(n, k):
    with pytest.raises(ValueError, match="two prefixes"):
        value_error(np.zeros(n), np.zeros((n, k)))
