"""Probes of many label searches, interleaved so that the device and the sandbox both stay busy.

Each search asks for one wave of completions at a time and goes on when their verdicts are known.
While some wait for verdicts, the others' completions are being sampled; a search that is over makes
room for the next response. What is drawn for a probe depends on the probe, not on its company.
"""

import collections
import dataclasses
import time
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future
from typing import Any

from prm_jax.config import Config
from prm_jax.metrics import Progress
from prm_jax.stages.attempts import Attempt, Judge, Judging, Memo, Start, as_rows, digest
from prm_jax.stages.journal import Journal
from prm_jax.stages.run import Run, Stream
from prm_jax.steps.prefixes import Asked, PrefixCompleter
from prm_jax.steps.sample import Choice
from prm_jax.types import Problem, Verdict

PLACES = 4  # responses whose searches are open, for each group of rows that shares a prefix
WIDTH_STEP = 32  # of the tokens that a place holds


@dataclasses.dataclass(frozen=True)
class Probe:
    """One wave of completions of a prefix; `ids` are the response's tokens that are kept."""

    step: int
    wave: int
    ids: tuple[int, ...]


# A search: yields a probe, is sent its attempts, and returns when it is over.
Search = Generator[Probe, list[Attempt], None]


@dataclasses.dataclass
class _Open:
    """A search under way, in a place of the completer."""

    number: int  # of the search, among all of this completer's
    problem: Problem
    ids: tuple[int, ...]  # of the whole response
    search: Search
    probe: Probe
    judging: list[Judging] | None = None  # None: to be sampled

    @property
    def settled(self) -> bool:
        return self.judging is not None and all(one.settled for one in self.judging)


def probe_sizes(config: Config, *, searches: int, prompt: int, longest: int) -> dict[str, int]:
    """The sizes of a PrefixCompleter, for prompts and for texts of at most so many tokens."""
    groups = max(1, config.decode_rows // config.label.wave)
    return {
        "places": max(1, min(PLACES * groups, config.device_batch, searches)),
        "width": -(-longest // WIDTH_STEP) * WIDTH_STEP,
        "positions": prompt + config.max_completion_tokens,
        "completion_tokens": config.max_completion_tokens,
        "samples": config.label.wave,
        "rows": config.decode_rows,
    }


def asked_for(
    run: Run,
    place: int,
    problem: Problem,
    ids: tuple[int, ...],
    probe: Probe,
    name: tuple[int, int],
) -> Asked:
    """A probe of the response `ids`, as the completer is asked for it; `name` is the search's."""
    prompt, kept = run.prompt_ids(problem), probe.ids
    return Asked(
        place,
        prefix=(*prompt, *kept),
        whole=(*prompt, *ids),
        budget=run.config.max_completion_tokens - len(kept),
        numbers=(*name, probe.step << 16 | probe.wave),
        # A stop string may begin in the part of the response that is kept.
        stop_state=run.stops.start(run.tokenizer.pieces(kept)) if run.stops else 0,
    )


class Prober:
    """Runs searches to their ends.

    `prompt` is the most tokens of a prompt, `longest` of a prompt with its response or a prefix.
    """

    def __init__(self, run: Run, memo: Memo, *, searches: int, prompt: int, longest: int):
        self._run = run
        self._judge = Judge(run, memo)
        self._completer = PrefixCompleter(
            run.policy,
            run.mesh,
            run.key(Stream.PROBE),
            **probe_sizes(run.config, searches=searches, prompt=prompt, longest=longest),
            choice=Choice(run.config.label.temperature),
            eos_ids=run.tokenizer.eos_ids,
            stops=run.stops,
        )
        self.seconds = 0.0  # spent on all probes so far, also by a run that was killed since

    def run(
        self,
        params: Any,
        completer: int,
        searches: Sequence[tuple[Problem, tuple[int, ...], Search]],
        journal: Journal,
        title: str,
    ) -> None:
        """Runs each search, of a response's tokens to a problem, with the completer's parameters.

        `completer` names it: part of what the completions are drawn by, and of the journal's keys.
        """
        waiting = collections.deque(enumerate(searches))
        places: dict[int, _Open | None] = dict.fromkeys(range(self._completer.places))
        self._completer.use(params)
        mark_s = time.perf_counter()
        with Progress(len(searches), title, "responses") as progress:
            while True:
                over = 0
                settled = {i: one for i, one in places.items() if one and one.settled}
                found = {i: self._found(one) for i, one in settled.items()}
                if found:
                    now_s = time.perf_counter()
                    self._record(completer, settled, found, journal, now_s - mark_s)
                    mark_s = now_s
                for i, one in settled.items():
                    if not self._goes_on(one, completer, found[i], journal):
                        places[i], over = None, over + 1
                for i in [i for i, one in places.items() if one is None]:
                    while waiting and places[i] is None:
                        places[i] = self._begun(*waiting.popleft(), completer, journal)
                        over += places[i] is None
                progress.update(over)
                open_ = [one for one in places.values() if one]
                if not open_:
                    return
                ready = {i: one for i, one in places.items() if one and one.judging is None}
                if 2 * len(ready) < len(open_):  # a batch is worth more with those to come
                    self._run.await_some(_pending(one for one in open_ if one.judging is not None))
                else:
                    self._sample(ready, completer)

    def _begun(self, number: int, asked, completer: int, journal: Journal) -> _Open | None:
        """A search that has something to sample, or None."""
        problem, ids, search = asked
        probe = next(search, None)
        if probe is None:
            return None
        one = _Open(number, problem, ids, search, probe)
        done = self._recalled(one, completer, journal)
        return one if done is None or self._goes_on(one, completer, done, journal) else None

    def _goes_on(self, one: _Open, completer: int, found: list[Attempt], journal: Journal) -> bool:
        """Sends the search what was found, and all that the journal knows of what it asks next."""
        known: list[Attempt] | None = found
        while known is not None:
            try:
                one.probe, one.judging = one.search.send(known), None
            except StopIteration:
                return False
            known = self._recalled(one, completer, journal)
        return True

    def _sample(self, ready: dict[int, _Open], completer: int) -> None:
        """Samples the wave that each search asks for, and starts judging it."""
        asked = [
            asked_for(self._run, place, one.problem, one.ids, one.probe, (completer, one.number))
            for place, one in ready.items()
        ]
        for one, new in zip(ready.values(), self._completer.complete(asked), strict=True):
            start = Start(one.problem, one.probe.ids)
            one.judging = [self._judge.submit(start, ids) for ids in new]

    def _found(self, one: _Open) -> list[Attempt]:
        assert one.judging is not None
        return [self._judge.result(judging) for judging in one.judging]

    def _record(
        self,
        completer: int,
        settled: dict[int, _Open],
        found: dict[int, list[Attempt]],
        journal: Journal,
        seconds: float,
    ) -> None:
        self.seconds += seconds
        units = {}
        for place, one in settled.items():
            units[_key(one, completer)] = {
                "about": digest([Start(one.problem, one.probe.ids)]),
                "seconds": seconds / len(settled),
                "attempts": as_rows(found[place]),
            }
        journal.put_all(units)

    def _recalled(self, one: _Open, completer: int, journal: Journal) -> list[Attempt] | None:
        """What the journal knows of the probe that a search asks for."""
        done = journal.get(_key(one, completer))
        if done is None or done["about"] != digest([Start(one.problem, one.probe.ids)]):
            return None
        self.seconds += done["seconds"]
        return self._judge.recall(one.problem, done["attempts"])


def _key(one: _Open, completer: int) -> str:
    return f"probe/{completer}/{one.number}/{one.probe.step}/{one.probe.wave}"


def _pending(waiting: Iterable[_Open]) -> set[Future[Verdict]]:
    return {
        judging.future
        for one in waiting
        for judging in one.judging or ()
        if judging.future is not None and not judging.future.done()
    }
