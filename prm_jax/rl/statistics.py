"""Numbers of the evaluation: pass rates with intervals, and how well a PRM judges lines.

A PRM is judged on labelled steps: label +1 for a step whose prefix can be completed, -1 for one
whose prefix cannot. Steps with label 0 (comments) are left out of every judgement. Undefined
numbers, such as an AUC with one class only, are NaN and never a number that looks like a result.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Real

# --------------------------------------------------------------------------------------- pass rates


def pass_at_k(n: Int[np.ndarray, "N"], c: Int[np.ndarray, "N"], k: int) -> Float[np.ndarray, "N"]:
    """The chance that at least one of k samples passes, estimated from c passes among n samples.

    pass@k = 1 - C(n - c, k) / C(n, k), per problem; unbiased for 1 - (1 - p)^k.

    Raises ValueError if k is not in 1..n or c not in 0..n. Source: Chen et al., arXiv 2107.03374.
    """
    if len(n) and not 1 <= k <= n.min():
        raise ValueError(f"k = {k} is not allowed: it must be in 1..{n.min()}, the fewest samples")
    if (c < 0).any() or (c > n).any():
        raise ValueError(f"c = {c} is not allowed: it must be in 0..n, with n = {n}")
    misses = [math.comb(int(a - b), k) / math.comb(int(a), k) for a, b in zip(n, c, strict=True)]
    return 1 - np.array(misses, dtype=np.float64)


def best_of_n(
    scores: Real[np.ndarray, "N S"], passed: Bool[np.ndarray, "N S"], n: int
) -> Float[np.ndarray, "N"]:
    """The chance that the best-scored of n samples passes, estimated from all S samples.

    With the samples in falling order of score, the j-th (from 0) is the best of a random subset of
    size n with probability C(S - 1 - j, n - 1) / C(S, n); samples of equal score share theirs. Per
    problem; exact over all subsets. Raises ValueError if n is not in 1..S or a score is NaN.
    """
    size = scores.shape[1]
    if not 1 <= n <= size:
        raise ValueError(
            f"n = {n} is not allowed: it must be in 1..{size}, the samples per problem"
        )
    _refuse_nan("scores", scores)
    weight = np.array([math.comb(size - 1 - j, n - 1) / math.comb(size, n) for j in range(size)])
    chance = np.zeros(len(scores))
    for problem, (score, success) in enumerate(zip(-scores, passed, strict=True)):
        _, tie = np.unique(score, return_inverse=True)
        count = np.bincount(tie)
        rank_weight = np.bincount(np.repeat(np.arange(len(count)), count), weight)
        chance[problem] = rank_weight @ (np.bincount(tie, success) / count)
    return chance


@dataclasses.dataclass(frozen=True)
class SuccessVariance:
    """Where the variance of a program's success lies; the three add up to the whole of it."""

    between_problems: float
    between_plans: float  # of one problem
    within_plans: float  # between programs that keep one plan

    @property
    def plan_share(self) -> float:
        """Of the variance among programs for one problem, what their plans decide."""
        of_problem = self.between_plans + self.within_plans
        return self.between_plans / of_problem if of_problem else math.nan


def success_variance(passed: Bool[np.ndarray, "N P C"]) -> SuccessVariance:
    """The variance of success, split between N problems, P plans for each, C programs for each.

    Nested analysis of variance with random effects, unbiased: with S_w the mean variance within
    plans, S_p that of the plans' means within problems and S_n that of the problems' means (each
    over one less than its count), within = S_w, between plans = S_p - S_w / C and between problems
    = S_n - S_p / P. An estimate can fall below 0 where the truth is near it. A plan that decides
    everything has a plan_share of 1, one that decides nothing 0.

    Raises ValueError unless there are two of each. Source: Searle, Casella and McCulloch 1992,
    Variance Components, chapter 3.
    """
    if min(passed.shape) < 2:
        raise ValueError(f"passed has shape {passed.shape}: a variance needs two along each axis")
    success = passed.astype(np.float64)
    n_plans, n_programs = success.shape[1:]
    plans = success.mean(axis=2)
    within = success.var(axis=2, ddof=1).mean()
    of_plans = plans.var(axis=1, ddof=1).mean()
    return SuccessVariance(
        between_problems=float(plans.mean(axis=1).var(ddof=1) - of_plans / n_plans),
        between_plans=float(of_plans - within / n_programs),
        within_plans=float(within),
    )


def bootstrap_interval(
    per_problem: Real[np.ndarray, "N"] | Bool[np.ndarray, "N"],
    *,
    resamples: int,
    confidence: float,
    seed: int,
) -> tuple[float, float]:
    """Percentile interval `(low, high)` of the mean over problems, which are what is resampled.

    It covers the choice of problems and the samples that each was judged by, not the seed of a run.
    Raises ValueError without problems or if a value is NaN. Source: Efron and Tibshirani 1993,
    chapter 13.
    """
    if len(per_problem) == 0:
        raise ValueError("per_problem is empty: an interval needs at least one problem")
    values = per_problem.astype(np.float64)
    _refuse_nan("per_problem", values)
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


# ------------------------------------------------------------------------------------ critic: error


@dataclasses.dataclass(frozen=True)
class CriticError:
    """How well values of prefixes, shifted and scaled at will, tell the outcomes to expect."""

    correlation: float  # with the expected outcome; NaN if one of the two does not vary
    rmse: float  # of the best straight line, in units of outcome
    rmse_of_mean: float  # of somebody who knows no more than the mean of all prefixes


def value_error(
    values: Real[np.ndarray, "N"], outcomes: Real[np.ndarray, "N K"] | Bool[np.ndarray, "N K"]
) -> CriticError:
    """How well a critic's values v of N prefixes tell the expected outcomes q, by K completions.

    The mean m of a prefix's completions is off by a variance of s^2 / K, with s^2 that of its
    outcomes over K - 1. That is taken off, so that few completions make no critic look worse:

    var q = var m - mean s^2 / K,  correlation = cov(v, m) / sqrt(var v var q)
    rmse_of_mean^2 = var q,  rmse^2 = var q (1 - correlation^2)

    A critic also expects what is no outcome: the KL penalty, line rewards, partial credit. Where
    these are much alike for all prefixes, or follow the outcome, they change none of the three.

    Raises ValueError unless there are two prefixes and two completions. VinePPO (arXiv 2410.01679)
    compares critics with completions; the correction is the classical one for attenuation.
    """
    if min(outcomes.shape) < 2:
        raise ValueError(
            f"outcomes of shape {outcomes.shape} are not allowed: give those of at least two "
            "prefixes, and of at least two completions of each"
        )
    _refuse_nan("values", values)
    value, outcome = values.astype(np.float64), outcomes.astype(np.float64)
    mean = outcome.mean(axis=1)
    noise = (outcome.var(axis=1, ddof=1) / outcome.shape[1]).mean()
    expected = max(mean.var(ddof=1) - noise, 0.0)
    scale = math.sqrt(value.var(ddof=1) * expected)
    correlation = math.nan
    if scale > 0:
        correlation = float(np.clip(np.cov(value, mean)[0, 1] / scale, -1, 1))
    unexplained = 1.0 if math.isnan(correlation) else 1 - correlation**2
    return CriticError(
        correlation=correlation,
        rmse=math.sqrt(expected * unexplained),
        rmse_of_mean=math.sqrt(expected),
    )


# ------------------------------------------------------------------------------------- PRM: ranking


def auc(scores: Real[np.ndarray, "M"], labels: Int[np.ndarray, "M"]) -> float:
    """The chance that a step labelled +1 outscores one labelled -1; ties count half.

    The area under the ROC curve; NaN if a class is missing. Raises ValueError for other labels than
    -1, 0, 1 or a NaN score.
    """
    wins, pairs = _won_pairs(scores, labels)
    return wins / pairs if pairs else math.nan


def auc_within_groups(
    scores: Real[np.ndarray, "M"],
    labels: Int[np.ndarray, "M"],
    groups: Int[np.ndarray, "M"] | Sequence[str],
) -> tuple[float, int]:
    """`(auc, n_groups)` from pairs of steps of one group only, such as a problem or a response.

    Groups count by their pairs, and n_groups is the number of those that have both classes (NaN if
    none has). A pooled AUC is mostly about which problems are hard; this one is not.
    """
    if len(groups) != len(scores):
        raise ValueError(
            f"groups has {len(groups)} entries and scores {len(scores)}: give one of each per step"
        )
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    won, total, n_groups = 0.0, 0, 0
    for members in np.split(order, starts[1:]):
        wins, pairs = _won_pairs(scores[members], labels[members])
        won, total, n_groups = won + wins, total + pairs, n_groups + (pairs > 0)
    return (won / total if total else math.nan), n_groups


def _won_pairs(scores: np.ndarray, labels: np.ndarray) -> tuple[float, int]:
    """How many (+1, -1) pairs the +1 wins, ties as half, and how many pairs there are."""
    _refuse_other_labels(labels)
    _refuse_nan("scores", scores)
    positive, negative = scores[labels == 1], np.sort(scores[labels == -1])
    below = np.searchsorted(negative, positive, side="left").sum()
    not_above = np.searchsorted(negative, positive, side="right").sum()
    return (below + not_above) / 2, len(positive) * len(negative)


# ----------------------------------------------------------------------------- PRM: the first error


def first_error(
    scores: Real[np.ndarray, "M"], labels: Int[np.ndarray, "M"], *, threshold: float
) -> int:
    """The index, from 0, of the first step that scores below the threshold; -1 if none does.

    Labels serve only to pass over the neutral steps.
    """
    _refuse_nan("scores", scores)
    return _first((scores < threshold) & (labels != 0))


def first_error_of_failing(
    scores: Real[np.ndarray, "M"], labels: Int[np.ndarray, "M"], *, threshold: float
) -> int:
    """The index of the first error of a response that is known to fail: one is always named.

    `first_error`; where no step scores below the threshold, the step of the largest fall, the m
    with the largest R_{m-1} - R_m, R_0 = 1: the prompt is not lost. -1 without a step that counts.
    Labels serve only to pass over the neutral steps. Raises ValueError if a score is NaN. Source:
    ours.
    """
    found = first_error(scores, labels, threshold=threshold)
    counted = np.flatnonzero(labels != 0)
    if found >= 0 or not len(counted):
        return found
    return int(counted[np.argmax(-np.diff(scores[counted], prepend=1.0))])


@dataclasses.dataclass(frozen=True)
class FirstErrorReport:
    """How well a PRM finds the first error of responses; shares are of the responses with one.

    exact + too_early + too_late + missed = 1. `missed` means that no error was predicted, and it is
    counted apart from too_late; in both the PRM goes on paying for broken code.
    """

    n_error: int  # responses with a step labelled -1
    n_ok: int  # responses with steps, none of them labelled -1
    acc_error: float  # share of n_error whose first error was found exactly (the same as `exact`)
    acc_ok: float  # share of n_ok in which no error was predicted
    f1: float  # harmonic mean of the two
    exact: float
    too_early: float
    too_late: float
    missed: float
    localised: float
    """Share of n_error whose first error `first_error_of_failing` finds exactly: at least `exact`,
    since it names one where none was predicted."""


def first_error_report(
    scores: Sequence[Real[np.ndarray, "_"]],
    labels: Sequence[Int[np.ndarray, "_"]],
    *,
    threshold: float,
) -> FirstErrorReport:
    """The first error as predicted, held against the labels, over responses (one array each).

    f1 = 2 acc_error acc_ok / (acc_error + acc_ok). Shares of no responses are NaN, and so is f1
    then. Responses without any step that counts are passed over. Raises ValueError if scores and
    labels do not match. Source: ProcessBench, arXiv 2412.06559.
    """
    predicted, localised, true = [], [], []
    for index, (score, label) in enumerate(zip(scores, labels, strict=True)):
        if len(score) != len(label):
            raise ValueError(
                f"response {index} has {len(score)} scores and {len(label)} labels: "
                "give one of each per step"
            )
        _refuse_other_labels(label)
        if (label != 0).any():
            predicted.append(first_error(score, label, threshold=threshold))
            localised.append(first_error_of_failing(score, label, threshold=threshold))
            true.append(_first(label == -1))
    guess, truth = np.array(predicted, dtype=np.int64), np.array(true, dtype=np.int64)
    error, found = truth >= 0, guess >= 0
    acc_error = _share(guess == truth, error)
    acc_ok = _share(~found, ~error)
    total = acc_error + acc_ok
    return FirstErrorReport(
        n_error=int(error.sum()),
        n_ok=int((~error).sum()),
        acc_error=acc_error,
        acc_ok=acc_ok,
        f1=2 * acc_error * acc_ok / total if total != 0 else 0.0,
        exact=acc_error,
        too_early=_share(found & (guess < truth), error),
        too_late=_share(guess > truth, error),
        missed=_share(~found, error),
        localised=_share(np.array(localised, np.int64) == truth, error),
    )


def _first(hits: np.ndarray) -> int:
    return int(hits.argmax()) if hits.any() else -1


def _share(hits: np.ndarray, among: np.ndarray) -> float:
    return float(hits[among].mean()) if among.any() else math.nan


# --------------------------------------------------------------------------------- PRM: calibration


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """A table of predicted against observed success; empty bins hold NaN."""

    low: Float[np.ndarray, "bins"]  # of the predicted probability
    high: Float[np.ndarray, "bins"]
    count: Int[np.ndarray, "bins"]
    predicted: Float[np.ndarray, "bins"]  # mean prediction in the bin
    observed: Float[np.ndarray, "bins"]  # mean success in the bin
    error: float  # expected calibration error; NaN without predictions


def calibration(
    scores: Real[np.ndarray, "M"],
    successes: Real[np.ndarray, "M"] | Bool[np.ndarray, "M"],
    bins: int,
) -> Calibration:
    """Whether a PRM's scores, read as probabilities, are the observed rates of success.

    A head trained with squared error on labels of -1 and +1 predicts p = (clip(R, -1, 1) + 1) / 2.
    `successes` is what came of each prefix, in [0, 1]: whether it could be completed, or a share of
    completions. Leave neutral steps out of both. Bins are of equal width, and p on an edge belongs
    to the bin above it.

    error = sum over bins of count / M |predicted - observed|

    Raises ValueError if bins < 1, a score is NaN or a success is outside [0, 1]. Source: Guo et
    al., arXiv 1706.04599.
    """
    if bins < 1:
        raise ValueError(f"bins = {bins} is not allowed: it must be at least 1")
    _refuse_nan("scores", scores)
    success = successes.astype(np.float64)
    if not ((success >= 0) & (success <= 1)).all():
        raise ValueError("successes must all lie in [0, 1]; map labels with (label + 1) / 2")
    p = (np.clip(scores.astype(np.float64), -1, 1) + 1) / 2
    edges = np.linspace(0, 1, bins + 1)
    where = np.searchsorted(edges[1:-1], p, side="right")
    count = np.bincount(where, minlength=bins)
    size = np.where(count > 0, count, np.nan)
    predicted = np.bincount(where, p, minlength=bins) / size
    observed = np.bincount(where, success, minlength=bins) / size
    error = float(np.nansum(count * np.abs(predicted - observed)) / len(p)) if len(p) else math.nan
    return Calibration(edges[:-1], edges[1:], count, predicted, observed, error)


# ----------------------------------------------------------------------------------------- refusals


def _refuse_nan(name: str, values: np.ndarray) -> None:
    if np.isnan(values).any():
        raise ValueError(f"{name} has a NaN at {np.argwhere(np.isnan(values))[0].tolist()}")


def _refuse_other_labels(labels: np.ndarray) -> None:
    if not np.isin(labels, (-1, 0, 1)).all():
        raise ValueError(f"labels = {np.unique(labels)} are not allowed: they must be -1, 0 or 1")
