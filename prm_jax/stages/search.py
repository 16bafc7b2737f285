"""The label search: which prefixes of failing responses can still be completed, by execution.

A search is written as if it were alone, Algorithm 1 (paper, section 3.1) or a probe of every
prefix; `Prober` runs many of them side by side.
"""

import dataclasses
from collections.abc import Generator, Sequence
from typing import Any, Literal

import numpy as np

from prm_jax.rl.labels import (
    DenseTransition,
    chance_of_a_pass,
    cheapest_probe,
    dense_transition,
    next_probe,
    search_start,
    search_update,
    step_labels,
    transition,
)
from prm_jax.rl.lines import step_ends
from prm_jax.stages.attempts import Attempt, Memo
from prm_jax.stages.journal import Journal
from prm_jax.stages.probing import Probe, Prober, Search
from prm_jax.stages.run import Run
from prm_jax.types import LineKind, PrefixLabels, Problem

Split = Literal["train", "validation"]


@dataclasses.dataclass
class Response:
    """One response and what is found out about its steps (`types.PrefixLabels` says what)."""

    problem: Problem
    split: Split
    checkpoint: int  # step of the baseline that wrote it
    ids: tuple[int, ...]
    passed: bool
    end_token: np.ndarray  # [M], of each step
    end_byte: np.ndarray  # [M], how many bytes each step's prefix has
    kinds: tuple[LineKind, ...]
    passes: np.ndarray  # [M]
    samples: np.ndarray  # [M]
    m_star: int = 0
    repair: tuple[int, ...] = ()
    """The first completion that passed of the longest prefix that has one, with that prefix. Where
    a dense search is not monotone it goes against the labels: repaired_from is above m_star."""
    repaired_from: int = 0  # the steps of that prefix

    @property
    def n_steps(self) -> int:
        return len(self.kinds)

    @property
    def open_steps(self) -> int:
        """How many prefixes of a failing response something can still follow.

        A last step that takes in the response's last token (its EOS, or the cut) leaves nothing to
        write, so that prefix fails as the response did; one that ends in a newline before the EOS
        can be gone on with.
        """
        whole = self.n_steps > 0 and self.end_token[-1] == len(self.ids) - 1
        return self.n_steps - int(whole)

    def keep(self, attempt: Attempt, step: int) -> None:
        """Keeps a completion of prefix `step` as the repair, if it is the best one so far."""
        if attempt.passed and step > self.repaired_from:
            self.repair, self.repaired_from = attempt.ids, step

    def labels(self, *, neutral_comments: bool = True) -> PrefixLabels:
        m_star = self.n_steps if self.passed else self.m_star
        return PrefixLabels(
            kinds=self.kinds,
            labels=tuple(
                int(label)
                for label in step_labels(self.kinds, m_star, neutral_comments=neutral_comments)
            ),
            passes=tuple(int(n) for n in self.passes),
            samples=tuple(int(n) for n in self.samples),
        )


def make_response(
    run: Run, problem: Problem, split: Split, step: int, attempt: Attempt
) -> Response:
    """A judged response with its steps, about which nothing is known yet."""
    lines = run.lines(attempt.ids)
    end_token, kinds = step_ends(lines)
    last_line = np.searchsorted(lines.end_token, end_token, side="right") - 1
    return Response(
        problem=problem,
        split=split,
        checkpoint=step,
        ids=attempt.ids,
        passed=attempt.passed,
        end_token=end_token,
        end_byte=lines.end_byte[last_line],
        kinds=tuple(LineKind(kind) for kind in kinds),
        passes=np.zeros(len(kinds), np.int64),
        samples=np.zeros(len(kinds), np.int64),
    )


@dataclasses.dataclass
class Spent:
    """What the searches of the training responses cost."""

    probes: int = 0
    completions: int = 0
    sampled_tokens: int = 0
    executions: int = 0
    seconds: float = 0.0  # validation responses included

    def add(self, attempts: list[Attempt]) -> None:
        self.completions += len(attempts)
        self.sampled_tokens += sum(a.sampled_tokens for a in attempts)
        self.executions += sum(a.executed for a in attempts)


class Searcher:
    """Finds m* of failing responses, all searches side by side; `responses` are all that there are.

    `spent` counts what the searches of the training responses cost.
    """

    def __init__(self, run: Run, memo: Memo, responses: Sequence[Response]):
        self._searches = Searches(run)
        prompt = longest = 1
        for r in responses:
            before = len(run.prompt_ids(r.problem))
            # A token that is cut at a newline may become several.
            texts = [len(prefix_of(run, r, step)) for step in range(1, r.open_steps + 1)]
            prompt = max(prompt, before)
            longest = max(longest, before + max([len(r.ids), *texts]))
        self._prober = Prober(run, memo, searches=len(responses), prompt=prompt, longest=longest)

    @property
    def spent(self) -> Spent:
        return self._searches.spent

    def run(self, params: Any, completer: int, group: Sequence[Response], journal: Journal) -> None:
        """Searches some of the responses; the policy numbered `completer` completes them."""
        title = f"label: searches with checkpoint {completer}" if completer else "label: searches"
        searches = [(r.problem, r.ids, self._searches.of(r)) for r in group]
        self._prober.run(params, completer, searches, journal, title)
        self.spent.seconds = self._prober.seconds


class Searches:
    """How a response is searched under the run's settings, and what its searches cost so far."""

    def __init__(self, run: Run):
        self._run = run
        self.spent = Spent()

    def of(self, response: Response) -> Search:
        """A search that leaves what it finds in the response."""
        kinds = {"cheapest": self._cheapest, "binary": self._binary, "dense": self._dense}
        return kinds[self._run.config.label.search](response)

    def _binary(self, response: Response) -> Search:
        """Algorithm 1."""
        state = search_start(np.array([response.open_steps], np.int64))
        while step := int(next_probe(state)[0]):
            passed = yield from self._settled(response, step)
            state = search_update(state, np.array([passed]), np.array([True]))
        response.m_star = int(state.lo[0])

    def _cheapest(self, response: Response) -> Search:
        """Algorithm 1 with the prefix that is cheapest to test, and every sample put to use.

        A completion that begins with the response's own next lines has been drawn from their
        prefixes as well: it counts as one of their K. Its pass settles them all.
        """
        config = self._run.config.label
        k, n = config.samples_per_prefix, response.open_steps
        prefixes = [prefix_of(self._run, response, step) for step in range(1, n + 1)]
        passes, samples = response.passes, response.samples
        waves = [0] * n
        while True:
            lo = int(max(np.flatnonzero(passes) + 1, default=0))
            dead = [m for m in range(lo + 1, n + 1) if self._given_up(int(samples[m - 1]))]
            hi = min(dead, default=n + 1) - 1
            if lo == hi:
                break
            left = np.maximum(k - samples[:n], 1).astype(np.float64)
            step = cheapest_probe(lo, hi, left, cost_of_success=float(config.wave))
            attempts = yield Probe(step, waves[step - 1], prefixes[step - 1])
            self._spend(response, attempts, new_probe=waves[step - 1] == 0)
            waves[step - 1] += 1
            for attempt in attempts:
                for m in range(step, n + 1):
                    if attempt.ids[: len(prefixes[m - 1])] != prefixes[m - 1]:
                        break
                    samples[m - 1] += 1
                    passes[m - 1] += attempt.passed
                    response.keep(attempt, m)
        response.m_star = lo

    def _given_up(self, failed: int) -> bool:
        """Whether a prefix is dead after so many completions without a pass."""
        config = self._run.config.label
        left = config.samples_per_prefix - failed
        return left <= 0 or chance_of_a_pass(failed, left) < config.settle

    def _spend(self, response: Response, attempts: list[Attempt], *, new_probe: bool) -> None:
        if response.split == "train":
            self.spent.probes += new_probe
            self.spent.add(attempts)

    def _dense(self, response: Response) -> Search:
        """Every prefix."""
        for step in range(1, response.open_steps + 1):
            yield from self._settled(response, step)
        response.m_star = _dense(response).m_star

    def _settled(self, response: Response, step: int) -> Generator[Probe, list[Attempt], bool]:
        """Whether a prefix can be completed: a probe ends with the first wave in which one passes.

        Returns after at most samples_per_prefix completions.
        """
        config = self._run.config.label
        for wave in range(config.samples_per_prefix // config.wave):
            if self._given_up(int(response.samples[step - 1])):
                break
            attempts = yield Probe(step, wave, prefix_of(self._run, response, step))
            response.samples[step - 1] += len(attempts)
            response.passes[step - 1] += sum(a.passed for a in attempts)
            for attempt in attempts:
                response.keep(attempt, step)
            self._spend(response, attempts, new_probe=wave == 0)
            if any(a.passed for a in attempts):
                return True
        return False


def _dense(response: Response) -> DenseTransition:
    """What the probes of every prefix say of a response."""
    return dense_transition(response.open_steps, lambda m: response.passes[m - 1] > 0)


def against_binary_search(train: list[Response]) -> dict[str, float | int]:
    """How often a dense search is not monotone, and whether a binary one would have found its m*.

    Over failing responses. The binary search reads the dense search's own probes, so that it can
    only differ where they are not monotone.
    """
    failing = [r for r in train if not r.passed]
    dense = [_dense(r) for r in failing]
    binary = [transition(r.open_steps, lambda m, r=r: r.passes[m - 1] > 0) for r in failing]
    n = max(len(failing), 1)
    return {
        "responses": len(failing),
        "non_monotone": sum(not d.monotone for d in dense) / n,
        "binary_agrees": sum(d.m_star == b.m_star for d, b in zip(dense, binary, strict=True)) / n,
    }


def prefix_of(run: Run, response: Response, step: int) -> tuple[int, ...]:
    """The tokens of the first `step` steps of a response.

    A tokenizer that joins a newline with the next line's indentation is cut at the newline: the
    text is exact, but the completer then starts from a split that it saw less often in training.
    """
    return tuple(run.tokenizer.prefix_ids(response.ids, int(response.end_byte[step - 1])))
