"""Line labels from tests of prefixes: the binary search of Algorithm 1, and what is made of it.

A prefix of a failing response is tested by completing it. The search finds the last prefix that can
still be completed with about log2 of the number of steps in tests; labels, response classes and the
choice of training data follow from it. Steps are counted from 1, as in the paper: prefix m is the
response up to and including step m, and prefix 0 is the prompt alone.

Source: Process Supervision-Guided Policy Optimization for Code Generation, arXiv 2410.17621,
section 3.1, Algorithm 1.
"""

import dataclasses
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from prm_jax.types import LineKind, PrefixLabels

Selection = Literal["full", "remove_hard", "medium_only", "revised_only"]
LossOn = Literal["all", "first_error", "outcome"]
Target = Literal["binary", "rate", "counts"]


# --------------------------------------------------------------------------------------- the search


class SearchState(NamedTuple):
    """Where the transitions of R responses may still lie: lo <= m* <= hi; settled where equal."""

    lo: Int[np.ndarray, "R"]
    hi: Int[np.ndarray, "R"]


def search_start(n_steps: Int[np.ndarray, "R"]) -> SearchState:
    """The search before any test: m* is in 0..n_steps. Prefix 0 is never tested.

    Raises ValueError if a number of steps is negative.
    """
    if (n_steps < 0).any():
        raise ValueError(f"n_steps = {n_steps.min()} is not allowed: it must be at least 0")
    return SearchState(lo=np.zeros_like(n_steps), hi=n_steps.copy())


def next_probe(state: SearchState) -> Int[np.ndarray, "R"]:
    """The prefix to test next in each response, 1..n_steps; 0 where the search is settled.

    It is the middle, rounded up: success leaves ceil(n/2) of n candidates and failure floor(n/2),
    so ceil(log2(n_steps + 1)) tests are always enough.
    """
    return np.where(state.lo < state.hi, (state.lo + state.hi + 1) // 2, 0)


def search_update(
    state: SearchState, success: Bool[np.ndarray, "R"], active: Bool[np.ndarray, "R"]
) -> SearchState:
    """The search after its next probes were tested; `success` counts only where `active`.

    Assumes that tests are monotone: if prefix m can be completed, so can every shorter one.
    """
    probe = next_probe(state)
    active = active & (probe > 0)
    return SearchState(
        lo=np.where(active & success, probe, state.lo),
        hi=np.where(active & ~success, probe - 1, state.hi),
    )


def cheapest_probe(
    lo: int, hi: int, cost_of_failure: Float[np.ndarray, "M"], cost_of_success: float
) -> int:
    """The prefix to test next, lo+1..hi, so that m* in lo..hi is found at the least expected cost.

    V(l, h) = min over m of p (c_success + V(m, h)) + (1 - p) (c_failure[m] + V(l, m - 1)), with
    V(l, l) = 0 and p = (h - m + 1) / (h - l + 1): all m* in l..h are taken to be equally likely.
    `cost_of_failure[m - 1]` is that of prefix m. A test that succeeds ends with the first pass and
    one that fails takes all K completions, so the middle is seldom the cheapest; where both cost
    the same, this is a binary search.
    """
    width = hi - lo
    value = np.zeros((width + 1, width + 1))
    best = 0
    for length in range(1, width + 1):
        for low in range(width - length + 1):
            high = low + length
            m = np.arange(low + 1, high + 1)
            p = (high - m + 1) / (length + 1)
            costs = p * (cost_of_success + value[m, high])
            costs += (1 - p) * (cost_of_failure[lo + m - 1] + value[low, m - 1])
            best = int(costs.argmin())
            value[low, high] = costs[best]
    return lo + best + 1


def chance_of_a_pass(failed: int, left: int) -> float:
    """P(one of the next `left` completions of a prefix passes | the first `failed` did not).

    left / ((failed + 2) (failed + 1 + left)): a prefix is dead, or passes at an unknown rate that
    is uniform in 0..1, and either is as likely before the first completion.
    """
    return left / ((failed + 2) * (failed + 1 + left))


@dataclasses.dataclass(frozen=True)
class Transition:
    """The transition step of one response and the tests that found it, in order."""

    m_star: int  # the largest m such that prefix m can be completed
    probes: tuple[tuple[int, bool], ...]  # (m, whether prefix m could be completed)


def transition(n_steps: int, test_prefix: Callable[[int], bool]) -> Transition:
    """Algorithm 1 for one response: the largest m in 0..n_steps with test_prefix(m).

    Calls test_prefix at most ceil(log2(n_steps + 1)) times, with m in 1..n_steps; m* = 0 stands if
    every call fails. Assumes monotone tests, see search_update.
    """
    state = search_start(np.array([n_steps]))
    active = np.array([True])
    probes: list[tuple[int, bool]] = []
    while (m := int(next_probe(state)[0])) > 0:
        success = bool(test_prefix(m))
        probes.append((m, success))
        state = search_update(state, np.array([success]), active)
    return Transition(m_star=int(state.lo[0]), probes=tuple(probes))


@dataclasses.dataclass(frozen=True)
class DenseTransition:
    """The transition step of one response from a test of every prefix."""

    m_star: int  # the steps before the first prefix that cannot be completed
    monotone: bool  # whether no prefix after that one can be completed
    successes: tuple[bool, ...]  # of prefixes 1..n_steps


def dense_transition(n_steps: int, test_prefix: Callable[[int], bool]) -> DenseTransition:
    """Tests every prefix: what the search finds if tests are monotone, and whether they are."""
    successes = tuple(bool(test_prefix(m)) for m in range(1, n_steps + 1))
    m_star = successes.index(False) if False in successes else n_steps
    return DenseTransition(m_star, monotone=not any(successes[m_star:]), successes=successes)


# ------------------------------------------------------------------------------- labels and classes


def step_labels(
    kinds: Int[np.ndarray, "M"] | Sequence[int], m_star: int, *, neutral_comments: bool = True
) -> Int[np.ndarray, "M"]:
    """+1 for the first m_star steps, -1 for the others, 0 for comments (the neutral label).

    Without `neutral_comments` a comment is labelled as any other step. A passing response has
    m_star = M. Raises ValueError if m_star is not in 0..M or a step is
    blank.
    """
    kind = np.array(kinds, dtype=np.int64)
    if not 0 <= m_star <= len(kind):
        raise ValueError(f"m_star = {m_star} is not allowed: it must be in 0..{len(kind)}")
    if (kind == LineKind.BLANK).any():
        raise ValueError(f"kinds = {kind} is not allowed: blank lines are no steps, leave them out")
    labels = np.where(np.arange(len(kind)) < m_star, 1, -1)
    return np.where(kind == LineKind.COMMENT, 0, labels) if neutral_comments else labels


class ResponseClass(IntEnum):
    """Correct passes; Revised fails, but a non-empty prefix can be completed; Wrong has none."""

    CORRECT = 0
    REVISED = 1
    WRONG = 2


def response_class(passed: bool, m_star: int) -> ResponseClass:
    """The class of a response; m_star is of no account where it passed."""
    if passed:
        return ResponseClass.CORRECT
    return ResponseClass.REVISED if m_star > 0 else ResponseClass.WRONG


def select(
    classes: Int[np.ndarray, "R"] | Sequence[int],
    prompt_ids: Int[np.ndarray, "R"] | Sequence[str] | Sequence[int],
    selection: Selection,
) -> Bool[np.ndarray, "R"]:
    """Which responses train the PRM, True where kept. `prompt_ids` says which share a prompt.

    The paper names four selections without giving their rules; this is our reading of the names:

    - full: every response.
    - remove_hard: without the responses of prompts whose responses are all Wrong.
    - medium_only: responses of prompts that have neither only Correct nor only Wrong responses.
    - revised_only: Revised responses.

    Raises ValueError for another name or if the lengths differ.
    """
    kind = np.array(classes, dtype=np.int64)
    if len(kind) != len(prompt_ids):
        raise ValueError(
            f"prompt_ids has {len(prompt_ids)} entries and classes {len(kind)}: "
            "give one of each per response"
        )
    _, prompt = np.unique(np.asarray(prompt_ids), return_inverse=True)
    size = np.bincount(prompt)[prompt]
    all_correct = np.bincount(prompt, kind == ResponseClass.CORRECT)[prompt] == size
    all_wrong = np.bincount(prompt, kind == ResponseClass.WRONG)[prompt] == size
    match selection:
        case "full":
            return np.ones(len(kind), dtype=bool)
        case "remove_hard":
            return ~all_wrong
        case "medium_only":
            return ~all_wrong & ~all_correct
        case "revised_only":
            return kind == ResponseClass.REVISED
    raise ValueError(
        f"selection = {selection!r} is not allowed: it must be full, remove_hard, medium_only or "
        "revised_only"
    )


def loss_support(
    labels: Int[np.ndarray, "M"] | Sequence[int], loss_on: LossOn
) -> Bool[np.ndarray, "M"]:
    """Which steps of one response the PRM's loss counts, True where it does.

    all: every step (paper). first_error: the steps up to and including the first -1; those behind
    it say no more than "already dead". Neutral steps count in both, with their target 0. outcome:
    the last step alone, where an outcome model is trained.
    """
    label = np.array(labels, dtype=np.int64)
    match loss_on:
        case "all":
            return np.ones(len(label), dtype=bool)
        case "first_error":
            errors = np.cumsum(label == -1)
            return (errors == 0) | ((errors == 1) & (label == -1))
        case "outcome":
            return np.arange(len(label)) == len(label) - 1
    raise ValueError(
        f"loss_on = {loss_on!r} is not allowed: it must be all, first_error or outcome"
    )


def error_threshold(target: Target, samples: int) -> float:
    """The score below which a step counts as an error, of a PRM that learned such targets.

    binary: 0, halfway between the labels. rate: -1 + 1/K, halfway between no pass and one of
    K = `samples` completions, since one is enough for the label +1. counts: -1 + 1/(K + 1), the
    response itself being one of them. Source: ours.
    """
    match target:
        case "binary":
            return 0.0
        case "rate":
            return -1 + 1 / samples
        case "counts":
            return -1 + 1 / (samples + 1)


def prm_targets(
    steps: PrefixLabels, passed: bool, *, target: Target, loss_on: LossOn
) -> tuple[Float[np.ndarray, "M"], Float[np.ndarray, "M"]]:
    """What a response teaches the PRM, `(targets, weights)`: a target in [-1, 1] for each step.

    binary: the labels, -1, 0 or +1 (paper). rate: 2 passes / samples - 1 where the step's prefix
    was completed (Math-Shepherd, arXiv 2312.08935), and the label in passing responses, at neutral
    steps and at the last one; other steps weigh 0, since their rates are not known. counts: every
    single completion, +1 or -1, the response itself among them, since it completed each of its
    prefixes: n = samples + 1 of them, whose mean is the target and whose number its weight (but for
    a constant: sum_k (R - o_k)^2 = n (R - mean o)^2 + ...). A search that ends a prefix at its
    first pass makes rates too high, but not the mean of all single completions (Wald's identity).
    Else all steps that the loss counts weigh 1. With loss on the outcome the targets are +1 in a
    passing response and -1 in a failing one, whatever its last line is.
    """
    labels = np.array(steps.labels, dtype=np.float64)
    weights = loss_support(np.array(steps.labels, dtype=np.int64), loss_on).astype(np.float64)
    if loss_on == "outcome":
        return np.full(len(labels), 1.0 if passed else -1.0), weights
    passes = np.array(steps.passes, dtype=np.float64)
    samples = np.array(steps.samples, dtype=np.float64)
    match target:
        case "binary":
            return labels, weights
        case "rate":
            rate = 2 * passes / np.maximum(samples, 1) - 1
            known = (samples > 0) & (labels != 0)
            unknown = (samples == 0) & (labels != 0) & (not passed)
            unknown[-1:] = False
            return np.where(known, rate, labels), np.where(unknown, 0.0, weights)
        case "counts":
            mean = 2 * (passes + passed) / (samples + 1) - 1
            n = np.where(labels != 0, samples + 1, 1.0)
            return np.where(labels != 0, mean, labels), n * weights
    raise ValueError(f"target = {target!r} is not allowed: it must be binary, rate or counts")
