"""Means over seeds, with intervals that speak of seeds and of problems.

Rates are `[S, N]`: the pass rate of each of N problems in each of S runs that differ by their seed
alone. All seeds are judged on the same problems.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds; what cannot be told from one seed is None."""

    value: float
    seeds: int
    problems: int
    standard_error: float | None  # over seeds
    low: float | None  # Student's t over seeds
    high: float | None
    bootstrap_low: float | None  # seeds and problems, both resampled
    bootstrap_high: float | None


@dataclasses.dataclass(frozen=True)
class SeedMean:
    """A number that each seed has once: its mean, and half of its interval by seeds."""

    mean: float
    half: float | None  # None from one seed


def seed_mean(values: Sequence[float], *, confidence: float) -> SeedMean:
    """mean +- t_{S-1} s / sqrt(S) of S >= 1 values, one of each seed."""
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return SeedMean(mean, None)
    standard_error = float(np.std(values, ddof=1)) / math.sqrt(n)
    return SeedMean(mean, float(stdtrit(n - 1, (1 + confidence) / 2)) * standard_error)


def estimate(
    rates: Float[np.ndarray, "S N"], *, confidence: float, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """The mean of rates with two intervals.

    By seeds: mean +- t_{S-1} s / sqrt(S), s the standard deviation of the S means over problems.
    It says what another seed would give on these problems. By seeds and problems: percentiles of
    the mean over seeds drawn with replacement and problems drawn with replacement, the same
    problems for all seeds (a crossed bootstrap). With few seeds the second is too narrow by about
    sqrt((S - 1) / S), so a claim rests on the first. Raises ValueError without rates.
    """
    n_seeds, n_problems = rates.shape
    if not n_seeds or not n_problems:
        raise ValueError(f"rates has shape {rates.shape}: it needs a seed and a problem at least")
    means = rates.mean(axis=1)
    value = float(means.mean())
    if n_seeds == 1:
        return Estimate(value, 1, n_problems, None, None, None, None, None)
    standard_error = float(means.std(ddof=1) / math.sqrt(n_seeds))
    half = float(stdtrit(n_seeds - 1, (1 + confidence) / 2)) * standard_error
    rng = np.random.default_rng(seed)
    # A mean over drawn rows and columns is a product with how often each was drawn.
    rows = rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), size=resamples) / n_seeds
    columns = rng.multinomial(n_problems, np.full(n_problems, 1 / n_problems), size=resamples)
    drawn = np.einsum("rs,sn,rn->r", rows, rates, columns / n_problems, optimize=True)
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(
        value=value,
        seeds=n_seeds,
        problems=n_problems,
        standard_error=standard_error,
        low=value - half,
        high=value + half,
        bootstrap_low=float(low),
        bootstrap_high=float(high),
    )
