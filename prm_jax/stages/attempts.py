"""Sampling and judging in bulk: many responses to many problems, from a prompt or a prefix on.

Work is cut into units of one device batch each. A unit's programs are judged while the next unit
is being sampled, and a finished unit is journaled, so a kill loses at most the units in flight.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import jax
import numpy as np

from prm_jax.metrics import Progress
from prm_jax.sharding import batch_shards
from prm_jax.stages.journal import Journal
from prm_jax.stages.run import Run
from prm_jax.steps.sample import make_sampler
from prm_jax.types import Problem, Samples, Verdict

ROWS = 256  # responses per device batch
WIDTH_STEP = 32  # prompts are padded to a multiple of this, so that few shapes are compiled


@dataclasses.dataclass(frozen=True)
class Start:
    """Where responses start: a problem, and the tokens of a response that are kept."""

    problem: Problem
    prefix: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One judged response: its tokens (prefix and EOS included) and what the tests said."""

    ids: tuple[int, ...]
    status: str
    executed: bool  # False: the memo knew the verdict
    sampled_tokens: int

    @property
    def passed(self) -> bool:
        return self.status == "passed"


class Memo:
    """Verdicts by problem and program text, so that no program is run twice."""

    def __init__(self):
        self._statuses: dict[bytes, str] = {}

    @staticmethod
    def _key(problem: Problem, program: str) -> bytes:
        return hashlib.sha256(f"{problem.task_id}\0{program.rstrip()}".encode()).digest()

    def get(self, problem: Problem, program: str) -> str | None:
        return self._statuses.get(self._key(problem, program))

    def put(self, problem: Problem, program: str, status: str) -> None:
        self._statuses[self._key(problem, program)] = status


class Sampling:
    """Samples and judges `samples` responses per start under one setting of the sampler."""

    def __init__(
        self, run: Run, memo: Memo, *, samples: int, temperature: float, top_p: float = 1.0
    ):
        self._run = run
        self._memo = memo
        self._samples = samples
        self._sampler = make_sampler(
            run.policy,
            run.mesh,
            completion_tokens=run.config.max_completion_tokens,
            samples_per_prompt=samples,
            temperature=temperature,
            top_p=top_p,
            eos_id=run.tokenizer.eos_id,
        )
        shards = batch_shards(run.mesh)
        self._starts_per_unit = max(1, ROWS // samples // shards) * shards

    def run(
        self,
        params: Any,
        starts: Sequence[Start],
        key: jax.Array,
        journal: Journal,
        name: str,
        progress: Progress | None = None,
    ) -> list[list[Attempt]]:
        """Attempts of every start, in the order of `starts`; units go to `journal` under `name`."""
        prompts = [self._run.prompt_ids(start.problem) + list(start.prefix) for start in starts]
        by_length = sorted(range(len(starts)), key=lambda i: len(prompts[i]))
        units = [
            by_length[i : i + self._starts_per_unit]
            for i in range(0, len(by_length), self._starts_per_unit)
        ]
        attempts: list[list[Attempt]] = [[] for _ in starts]
        for unit, found in self._judged(params, starts, prompts, units, key, journal, name):
            for i, row in zip(unit, found, strict=True):
                attempts[i] = row
            if progress is not None:
                progress.update(len(unit))
        return attempts

    def _judged(
        self, params, starts, prompts, units, key, journal: Journal, name: str
    ) -> Iterator[tuple[list[int], list[list[Attempt]]]]:
        """Each unit with its attempts; unit n+1 is sampled while unit n is judged."""
        in_flight: tuple[str, list[int], list[_Judging]] | None = None
        for number, unit in enumerate(units):
            unit_key = f"{name}/{number}"
            done = journal.get(unit_key)
            samples = None
            if done is None:  # dispatched before the wait below
                samples = self._sample(
                    params, starts, prompts, unit, jax.random.fold_in(key, number)
                )
            if in_flight is not None:
                yield self._collect(*in_flight, starts, journal)
                in_flight = None
            if done is not None:
                yield unit, self._recall(done, starts, unit)
            else:
                assert samples is not None
                in_flight = (unit_key, unit, self._submit(starts, unit, samples))
        if in_flight is not None:
            yield self._collect(*in_flight, starts, journal)

    def _sample(self, params, starts, prompts, unit: list[int], key: jax.Array) -> Samples:
        rows = unit + [unit[-1]] * (self._starts_per_unit - len(unit))
        width = -(-max(len(prompts[i]) for i in rows) // WIDTH_STEP) * WIDTH_STEP
        tokens, valid = left_pad([prompts[i] for i in rows], width, self._run.tokenizer.pad_id)
        limit = self._run.config.max_completion_tokens
        budget = np.array([limit - len(starts[i].prefix) for i in rows], np.int32)
        return self._sampler(params, tokens, valid, budget, key)

    def _submit(self, starts, unit: list[int], samples: Samples) -> list["_Judging"]:
        completions = completion_ids(samples)
        judging = []
        for position, i in enumerate(unit):
            for sample in range(self._samples):
                new = completions[position * self._samples + sample]
                ids = starts[i].prefix + new
                problem = starts[i].problem
                completion = self._run.tokenizer.decode(ids)
                known = self._memo.get(problem, completion)
                future = None if known else self._run.judge(problem, completion)
                judging.append(_Judging(problem, ids, len(new), completion, known, future))
        return judging

    def _collect(
        self, unit_key: str, unit: list[int], judging: list["_Judging"], starts, journal: Journal
    ) -> tuple[list[int], list[list[Attempt]]]:
        flat = []
        for item in judging:
            # The same program may come twice in one unit: only the first is an execution.
            status = item.known or self._memo.get(item.problem, item.completion)
            executed = status is None
            if status is None:
                assert item.future is not None
                status = item.future.result().status
                self._memo.put(item.problem, item.completion, status)
            flat.append(Attempt(item.ids, status, executed, item.sampled_tokens))
        found = [flat[i : i + self._samples] for i in range(0, len(flat), self._samples)]
        journal.put(unit_key, [[dataclasses.astuple(a) for a in row] for row in found])
        return unit, found

    def _recall(self, done, starts, unit: list[int]) -> list[list[Attempt]]:
        """A journaled unit's attempts; what it ran goes back into the memo."""
        found = [[Attempt(tuple(ids), *rest) for ids, *rest in row] for row in done]
        for i, row in zip(unit, found, strict=True):
            for attempt in row:
                problem = starts[i].problem
                completion = self._run.tokenizer.decode(attempt.ids)
                self._memo.put(problem, completion, attempt.status)
        return found


@dataclasses.dataclass(frozen=True)
class _Judging:
    """A sampled response whose verdict is known or on its way."""

    problem: Problem
    ids: tuple[int, ...]
    sampled_tokens: int
    completion: str
    known: str | None
    future: Future[Verdict] | None


def completion_ids(samples: Samples) -> list[tuple[int, ...]]:
    """The completion of every row as token ids, its EOS included where it has one."""
    tokens, mask = np.asarray(samples.tokens), np.asarray(samples.completion_mask)
    return [tuple(int(t) for t in row[chosen]) for row, chosen in zip(tokens, mask, strict=True)]


def left_pad(
    rows: Sequence[Sequence[int]], width: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Token rows at the right of `[N, width]`, and the mask of what is not padding."""
    tokens = np.full((len(rows), width), pad_id, np.int32)
    valid = np.zeros((len(rows), width), bool)
    for i, row in enumerate(rows):
        tokens[i, width - len(row) :] = row
        valid[i, width - len(row) :] = True
    return tokens, valid
