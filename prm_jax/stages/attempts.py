"""Sampling and judging in bulk: many responses to many problems, from a prompt or a prefix on.

Work is cut into units of one device batch each. A unit's programs are judged while the next
unit is being sampled, and a finished unit is journaled: a kill loses at most the units in flight.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import jax
import numpy as np

from prm_jax import hosts
from prm_jax.metrics import Progress
from prm_jax.sharding import batch_shards
from prm_jax.stages.batches import left_pad
from prm_jax.stages.journal import Journal
from prm_jax.stages.run import Run
from prm_jax.steps.sample import make_sampler
from prm_jax.types import Problem, Samples, Verdict

_BLANKS = " \t\n"


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
    def key(problem: Problem, program: str) -> bytes:
        """Equal for programs that must have one verdict."""
        # Only blanks that Python skips at the end of a program: another blank is a syntax error.
        text = f"{problem.task_id}\0{program.rstrip(_BLANKS)}"
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()

    def get(self, problem: Problem, program: str) -> str | None:
        return self._statuses.get(self.key(problem, program))

    def put(self, problem: Problem, program: str, status: str) -> None:
        self._statuses[self.key(problem, program)] = status


@dataclasses.dataclass(frozen=True)
class Judging:
    """A sampled response whose verdict is known or on its way."""

    problem: Problem
    ids: tuple[int, ...]
    sampled_tokens: int
    program: str
    known: str | None  # by the memo
    executed: bool  # this one was sent to the sandbox; its twins share the future
    future: Future[Verdict] | None

    @property
    def settled(self) -> bool:
        return self.future is None or self.future.done()


class Judge:
    """Sends responses to the sandbox, equal programs once."""

    def __init__(self, run: Run, memo: Memo):
        self._run = run
        self._memo = memo
        self._running: dict[bytes, Future[Verdict]] = {}

    def submit(self, start: Start, new: tuple[int, ...]) -> Judging:
        """Starts judging a start with the tokens that were sampled after it."""
        problem, ids = start.problem, start.prefix + new
        program = self._run.program(problem, ids)
        known = self._memo.get(problem, program)
        twin = self._memo.key(problem, program)
        executed = known is None and twin not in self._running
        if executed:
            self._running[twin] = self._run.judge(problem, program)
        future = None if known is not None else self._running[twin]
        return Judging(problem, ids, len(new), program, known, executed, future)

    def result(self, judging: Judging) -> Attempt:
        """Waits for the verdict, which the memo knows from here on."""
        status = judging.known
        if status is None:
            assert judging.future is not None
            status = judging.future.result().status
            self._memo.put(judging.problem, judging.program, status)
            self._running.pop(self._memo.key(judging.problem, judging.program), None)
        return Attempt(judging.ids, status, judging.executed, judging.sampled_tokens)

    def recall(self, problem: Problem, rows: list[Any]) -> list[Attempt]:
        """Attempts as a journal has them (`as_rows`); the memo learns what they ran.

        The first of equal programs counts as the one that was executed, as it does without a kill:
        the journal may have lost that one and kept its twin.
        """
        attempts = []
        for ids, status, _, sampled_tokens in rows:
            program = self._run.program(problem, tuple(ids))
            executed = self._memo.get(problem, program) is None
            self._memo.put(problem, program, status)
            attempts.append(Attempt(tuple(ids), status, executed, sampled_tokens))
        return attempts


def as_rows(attempts: Sequence[Attempt]) -> list[Any]:
    """Attempts as JSON."""
    return [dataclasses.astuple(attempt) for attempt in attempts]


class Sampling:
    """Samples and judges `samples` responses per start under one setting of the sampler."""

    def __init__(
        self, run: Run, memo: Memo, *, samples: int, temperature: float, top_p: float = 1.0
    ):
        self._run = run
        self._judge = Judge(run, memo)
        self._samples = samples
        self._sampler = make_sampler(
            run.policy,
            run.mesh,
            completion_tokens=run.config.max_completion_tokens,
            samples_per_prompt=samples,
            rows=run.config.decode_rows,
            temperature=temperature,
            top_p=top_p,
            eos_ids=run.tokenizer.eos_ids,
            stops=run.stops,
        )
        self.seconds = 0.0  # spent on the units so far, also by a run that was killed since
        self._starts_per_unit = max(1, run.config.device_batch // samples)  # on any mesh

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
        in_flight: tuple[str, str, list[int], list[list[Judging]]] | None = None
        begun_s = time.perf_counter()
        for number, unit in enumerate(units):
            unit_key = f"{name}/{number}"
            about = digest([starts[i] for i in unit])
            done = journal.get(unit_key)
            if done is not None and done["about"] != about:  # the unit of another version
                done = None
            samples = None
            if done is None:  # dispatched before the wait below
                samples = self._sample(
                    params, starts, prompts, unit, jax.random.fold_in(key, number)
                )
            if in_flight is not None:
                yield self._collect(*in_flight, journal, begun_s)
                begun_s = time.perf_counter()
                in_flight = None
            if done is not None:
                yield unit, self._recall(done, starts, unit)
            else:
                assert samples is not None
                in_flight = (unit_key, about, unit, self._submit(starts, unit, samples))
        if in_flight is not None:
            yield self._collect(*in_flight, journal, begun_s)

    def _sample(self, params, starts, prompts, unit: list[int], key: jax.Array) -> Samples:
        shards = batch_shards(self._run.mesh)
        n_rows = -(-self._starts_per_unit // shards) * shards
        rows = unit + [unit[-1]] * (n_rows - len(unit))
        tokens, valid = left_pad([prompts[i] for i in rows], self._run.tokenizer.pad_id)
        limit = self._run.config.max_completion_tokens
        budget = np.array([limit - len(starts[i].prefix) for i in rows], np.int32)
        stops = self._run.stops
        if stops is None:
            return self._sampler(params, tokens, valid, budget, key)
        # A stop string may begin in the part of the response that is kept.
        kept = [stops.start(self._run.tokenizer.pieces(starts[i].prefix)) for i in rows]
        return self._sampler(params, tokens, valid, budget, key, np.array(kept, np.int32))

    def _submit(self, starts, unit: list[int], samples: Samples) -> list[list[Judging]]:
        completions = completion_ids(samples)
        return [
            [
                self._judge.submit(starts[i], completions[position * self._samples + sample])
                for sample in range(self._samples)
            ]
            for position, i in enumerate(unit)
        ]

    def _collect(
        self,
        unit_key: str,
        about: str,
        unit: list[int],
        judging: list[list[Judging]],
        journal: Journal,
        begun_s: float,
    ) -> tuple[list[int], list[list[Attempt]]]:
        found = [[self._judge.result(one) for one in row] for row in judging]
        seconds = time.perf_counter() - begun_s
        self.seconds += seconds
        rows = [as_rows(row) for row in found]
        journal.put(unit_key, {"about": about, "seconds": seconds, "attempts": rows})
        return unit, found

    def _recall(self, done, starts, unit: list[int]) -> list[list[Attempt]]:
        """A journaled unit's attempts."""
        self.seconds += done["seconds"]
        return [
            self._judge.recall(starts[i].problem, row)
            for i, row in zip(unit, done["attempts"], strict=True)
        ]


def digest(starts: Sequence[Start]) -> str:
    """What a unit is about, so that a journal is never read as being about something else."""
    text = json.dumps([(start.problem.task_id, start.prefix) for start in starts])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def completion_ids(samples: Samples) -> list[tuple[int, ...]]:
    """The completion of every row as token ids, its EOS included where it has one."""
    tokens, mask = hosts.whole(samples.tokens), hosts.whole(samples.completion_mask)
    return [tuple(int(t) for t in row[chosen]) for row, chosen in zip(tokens, mask, strict=True)]
