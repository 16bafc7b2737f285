"""The label search: which prefixes of failing responses can still be completed, by execution.

Prefixes of many responses are completed and judged side by side, in the rounds of the binary search
of Algorithm 1 (paper, section 3.1) or all of them at once.
"""

import dataclasses
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool

from prm_jax.metrics import Progress
from prm_jax.rl.labels import (
    DenseTransition,
    dense_transition,
    next_probe,
    search_start,
    search_update,
    step_labels,
    transition,
)
from prm_jax.stages.attempts import Attempt, Memo, Sampling, Start
from prm_jax.stages.journal import Journal
from prm_jax.stages.run import Run, Stream
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
    end_line: np.ndarray  # [M], how many physical lines each step's prefix has
    end_byte: np.ndarray  # [M], how many bytes
    kinds: tuple[LineKind, ...]
    passes: np.ndarray  # [M]
    samples: np.ndarray  # [M]
    m_star: int = 0

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


@dataclasses.dataclass
class Spent:
    """What probing the training responses cost."""

    probes: int = 0
    completions: int = 0
    sampled_tokens: int = 0
    executions: int = 0
    seconds: float = 0.0  # validation responses included

    def add(self, attempts: list[Attempt]) -> None:
        self.completions += len(attempts)
        self.sampled_tokens += sum(a.sampled_tokens for a in attempts)
        self.executions += sum(a.executed for a in attempts)


def search(
    run: Run, memo: Memo, journal: Journal, params: Any, completer: int, group: list[Response]
) -> Spent:
    """Finds m* of every response of the group, all searches side by side."""
    config = run.config.label
    sampling = Sampling(run, memo, samples=config.wave, temperature=config.temperature)
    prober = _Prober(run, sampling, journal, params, completer, group)
    if config.search == "dense":
        prober.probe(
            [(i, m) for i, r in enumerate(group) for m in range(1, r.open_steps + 1)],
            round_number=0,
            title="label: every prefix",
        )
        for response in group:
            response.m_star = _dense(response).m_star
    else:
        _binary_search(prober, group)
    prober.spent.seconds = sampling.seconds
    return prober.spent


def _binary_search(prober: "_Prober", group: list[Response]) -> None:
    """Algorithm 1, a probe of each open search a round."""
    state = search_start(np.array([r.open_steps for r in group], np.int64))
    most_rounds = int(np.ceil(np.log2(state.hi.max(initial=0) + 1)))
    round_number = 0
    while (probe := next_probe(state)).any():
        pending = np.flatnonzero(probe)
        passed = np.zeros(len(group), bool)
        passed[pending] = prober.probe(
            [(int(i), int(probe[i])) for i in pending],
            round_number,
            title=f"label: search round {round_number + 1} of {most_rounds}",
        )
        state = search_update(state, passed, active=probe > 0)
        round_number += 1
    for i, response in enumerate(group):
        response.m_star = int(state.lo[i])


@dataclasses.dataclass
class _Prober:
    """Completes prefixes of the group's responses, and keeps count."""

    run: Run
    sampling: Sampling
    journal: Journal
    params: Any
    completer: int
    group: list[Response]
    spent: Spent = dataclasses.field(default_factory=Spent)

    def probe(
        self, probes: list[tuple[int, int]], round_number: int, title: str
    ) -> Bool[np.ndarray, "N"]:
        """Whether each (response, step) can be completed.

        A probe samples its completions in waves and ends with the first wave in which one passes.
        """
        config = self.run.config.label
        passed = np.zeros(len(probes), bool)
        for wave in range(config.samples_per_prefix // config.wave):
            open_ = np.flatnonzero(~passed)
            asked = [(self.group[probes[n][0]], probes[n][1]) for n in open_]
            starts = [Start(r.problem, _prefix(self.run, r, step)) for r, step in asked]
            name = f"probe/{self.completer}/{round_number}/{wave}"
            with Progress(len(open_), f"{title}, wave {wave + 1}", "prefixes") as progress:
                key = self.run.key(Stream.PROBE, self.completer, round_number, wave)
                attempts = self.sampling.run(self.params, starts, key, self.journal, name, progress)
            for n, (response, step), row in zip(open_, asked, attempts, strict=True):
                response.samples[step - 1] += len(row)
                response.passes[step - 1] += sum(a.passed for a in row)
                passed[n] = any(a.passed for a in row)
                if response.split == "train":
                    self.spent.probes += wave == 0
                    self.spent.add(row)
        return passed


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


def _prefix(run: Run, response: Response, step: int) -> tuple[int, ...]:
    """The tokens of the first `step` steps of a response.

    A tokenizer that joins a newline with the next line's indentation is cut at the newline: the
    text is exact, but the completer then starts from a split that it saw less often in training.
    """
    return tuple(run.tokenizer.prefix_ids(response.ids, int(response.end_byte[step - 1])))
