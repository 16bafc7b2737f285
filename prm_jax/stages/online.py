"""Labels while RL runs: the policy searches its own failing responses, and learns of the searches.

Of the ppo.rollouts programs of a step, dense.completions complete prefixes of its failing
responses, drawn by the policy that wrote them. With `dense.source = "labels"` the labels that come
of it are line rewards of these responses, without a PRM between; with `dense.prm_updates` a PRM
learns from them (learning.py). A response that passes is right in all lines. Each completion is an
on-policy rollout of what follows its prefix, whose outcome is that of the whole program, and trains
policy and critic like any other; the prefix that it was given carries no loss. So labels take no
program that PPO would not have had.
"""

import collections
import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from prm_jax import hosts
from prm_jax.checkpoint import Checkpoints
from prm_jax.sharding import batch_sharding
from prm_jax.stages.attempts import Attempt
from prm_jax.stages.batches import left_pad
from prm_jax.stages.labelled import LabelledResponse
from prm_jax.stages.learning import LearningPRM
from prm_jax.stages.probing import Probe, Search, asked_for, probe_sizes
from prm_jax.stages.rollouts import earned
from prm_jax.stages.run import Run, Stream
from prm_jax.stages.search import Response, Searches, make_response, prefix_of
from prm_jax.stages.step_lines import StepLines
from prm_jax.steps.prefixes import PrefixCompleter
from prm_jax.steps.sample import Choice
from prm_jax.types import Problem, Samples, TrainState, Verdict

ROUNDS = 4  # that the completions of a step last for: as many searches are open as then find work


class Labelled(NamedTuple):
    """A step's whole responses and, behind them, the completions of their prefixes.

    Rows without either fill the batch up: the prompt of the first row, and no completion.
    """

    problems: list[Problem]
    completions: list[tuple[int, ...]]  # of a prefix: it and what follows
    samples: Samples  # on the device; of completions too, logp is the sampler's
    passed: np.ndarray  # [B] float32
    outcome: np.ndarray  # [B] float32
    scores: np.ndarray  # [B, T] float32: labels at the ends of steps, 0 where none is known
    metrics: dict[str, float | jax.Array]


@dataclasses.dataclass(frozen=True)
class _Completion:
    response: Response
    kept: int  # tokens of its prefix
    ids: tuple[int, ...]
    logp: np.ndarray  # of the tokens behind the prefix
    verdict: Verdict

    @property
    def attempt(self) -> Attempt:
        return Attempt(self.ids, self.verdict.status, True, len(self.logp))


@dataclasses.dataclass
class _Open:
    number: int  # of the response among the step's
    response: Response
    search: Search
    probe: Probe


class OnlineLabels:
    """Labels as many failing responses of each step as dense.completions pay for.

    Searches go on in rounds, each of which waits for all of its verdicts, so that who gets the last
    completions does not hang on when verdicts come, nor on how many rows or devices there are. A
    search that is cut off leaves no label. Of the samples of one prompt, the first ones are
    searched before the second ones.

    A context manager, which keeps its labels in `labels.jsonl`, and the PRM that learns from them,
    if there is one, in `prm`.
    """

    def __init__(self, run: Run, folder: Path, width: int, learner: LearningPRM | None = None):
        """`folder` is the stage's; `width` is P, the columns of the grid that hold prompts."""
        config = run.config
        self._run, self._folder, self._width, self._learner = run, folder, width, learner
        self._files = contextlib.ExitStack()
        self._searches = Searches(run)
        self._open = max(1, config.dense.completions // (ROUNDS * config.label.wave))
        sizes = probe_sizes(
            config,
            searches=self._open,
            prompt=width,
            longest=width + config.max_completion_tokens,
        )
        self._completer = PrefixCompleter(
            run.policy,
            run.mesh,
            run.key(Stream.LABELS_ONLINE),
            **sizes | {"places": self._open},
            choice=Choice(config.ppo.temperature),
            eos_ids=run.tokenizer.eos_ids,
            stops=run.stops,
        )

    def go_on(self, start: int, states: Sequence[TrainState]) -> None:
        """Opens its files, as a stage that goes on from step `start` needs them.

        `states` are those that a checkpoint had, if there was one.
        """
        labels = StepLines(self._folder / "labels.jsonl", start, "checkpoint")
        self._labels = self._files.enter_context(labels)
        if self._learner is not None:
            self._prms = self._files.enter_context(Checkpoints(self._folder / "prm"))
            if start:
                (state,) = states
                self._learner.resume(state, map(LabelledResponse.from_json, labels.lines()))

    def __enter__(self) -> "OnlineLabels":
        return self

    def __exit__(self, *unused: object) -> None:
        self._files.close()

    @property
    def states(self) -> tuple[TrainState, ...]:
        """What a checkpoint must have of it: the state of the PRM that learns, if there is one."""
        return () if self._learner is None else (self._learner.state,)

    @property
    def prm(self) -> Any | None:
        """The parameters of that PRM, which scores the lines; none: the labels do."""
        return None if self._learner is None else self._learner.params

    def save_prm(self, step: int) -> None:
        """Keeps that PRM beside the checkpoint of the policy."""
        if self._learner is not None:
            self._prms.save(step, self._learner.state.params)

    def flush(self) -> None:
        """Before a checkpoint: a run that goes on from it needs all labels, and the PRMs kept."""
        self._labels.flush()
        if self._learner is not None:
            self._prms.wait()

    def extend(
        self,
        params: Any,
        step: int,
        problems: Sequence[Problem],
        completions: Sequence[tuple[int, ...]],
        samples: Samples,
        passed: np.ndarray,
        outcome: np.ndarray,
    ) -> Labelled:
        """The rollout of a step with the searches of it by `params`, which wrote it.

        The PRM that learns has then learned of their labels.
        """
        run = self._run
        responses = [
            make_response(
                run, problem, "train", step,
                Attempt(ids, "passed" if passes else "failed", True, len(ids)),
            )
            for problem, ids, passes in zip(problems, completions, passed, strict=True)
        ]  # fmt: skip
        searched, found = self._search(params, step, responses)
        earns = earned([one.verdict for one in found], run.config.ppo.outcome)
        repaired = [
            make_response(run, one.response.problem, "train", step, one.attempt) for one in found
        ]
        n = run.config.ppo.rollouts
        missing = n - len(responses) - len(found)
        scores = np.zeros((n, samples.tokens.shape[1]), np.float32)
        labelled = []
        drawn = searched | _passing_beside(searched, responses)
        for row, response in enumerate([*responses, *repaired]):
            if response.passed or row in searched:
                neutral = run.config.label.neutral_comments
                one = LabelledResponse.of(response, neutral_comments=neutral)
                scores[row, self._width + response.end_token] = one.steps.labels
                if row in drawn:
                    labelled.append(one)
                    self._labels.add(one.to_json())
        learned = {} if self._learner is None else self._learner.learn(step, labelled)
        none = np.zeros(missing, np.float32)
        return Labelled(
            problems=[*problems, *(r.problem for r in repaired), *[problems[0]] * missing],
            completions=[*completions, *(r.ids for r in repaired), *[()] * missing],
            samples=self._grid(samples, found, problems[0], missing),
            passed=np.concatenate([passed, earns[:, 0], none]),
            outcome=np.concatenate([outcome, earns[:, 1], none]),
            scores=scores,
            metrics=learned
            | {
                "labels/responses": float(len(searched)),
                "labels/completions": float(len(found)),
                "labels/completions_passed": float(earns[:, 0].mean()) if len(found) else 0.0,
            },
        )

    def _search(
        self, params: Any, step: int, responses: Sequence[Response]
    ) -> tuple[set[int], list[_Completion]]:
        """The numbers of the failing responses that were searched to the end, and what it took."""
        samples = self._run.config.ppo.samples_per_prompt
        order = sorted(range(len(responses)), key=lambda i: (i % samples, i))
        rank = {number: i for i, number in enumerate(order)}
        waiting = collections.deque(
            i for i in order if not responses[i].passed and self._fits(responses[i])
        )
        open_: dict[int, _Open] = {}
        labelled: set[int] = set()
        found: list[_Completion] = []
        self._completer.use(params)
        while True:
            for place in range(self._open):
                while waiting and place not in open_:
                    number = waiting.popleft()
                    response = responses[number]
                    search = self._searches.of(response)
                    probe = next(search, None)
                    if probe is None:  # nothing can follow any of its lines
                        labelled.add(number)
                    else:
                        open_[place] = _Open(number, response, search, probe)
            left = self._run.config.dense.completions - len(found)
            oldest = sorted(open_, key=lambda place: rank[open_[place].number])
            asked = oldest[: left // self._run.config.label.wave]
            if not asked:
                self._completer.forget()
                return labelled, found
            for place, wave in self._round(step, {place: open_[place] for place in asked}):
                one = open_[place]
                found += wave
                try:
                    one.probe = one.search.send([completion.attempt for completion in wave])
                except StopIteration:
                    labelled.add(one.number)
                    del open_[place]

    def _fits(self, response: Response) -> bool:
        """Whether each prefix has room: a token that is cut at a newline may become several."""
        room = self._run.config.max_completion_tokens
        steps = range(1, response.open_steps + 1)
        return all(len(prefix_of(self._run, response, step)) < room for step in steps)

    def _round(self, step: int, asked: dict[int, _Open]) -> list[tuple[int, list[_Completion]]]:
        """A wave of completions for each of these searches, judged."""
        run = self._run
        new = self._completer.complete_with_logps(
            [
                asked_for(
                    run, place, one.response.problem, one.response.ids, one.probe,
                    (step, one.number),
                )
                for place, one in asked.items()
            ]
        )  # fmt: skip
        judging = []
        for one, wave in zip(asked.values(), new, strict=True):
            problem = one.response.problem
            for ids, logp in wave:
                whole = one.probe.ids + ids
                judging.append(
                    (one, whole, logp, run.judge_here(problem, run.program(problem, whole)))
                )
        found: dict[int, list[_Completion]] = {one.number: [] for one in asked.values()}
        for one, ids, logp, verdict in judging:
            completion = _Completion(one.response, len(one.probe.ids), ids, logp, verdict.result())
            found[one.number].append(completion)
        return [(place, found[one.number]) for place, one in asked.items()]

    def _grid(
        self, samples: Samples, found: Sequence[_Completion], filler: Problem, missing: int
    ) -> Samples:
        """The rows of `samples`, those of completions, and as many without one as are missing."""
        n = len(found) + missing
        prompts = [self._run.prompt_ids(one.response.problem) for one in found]
        prompts += [self._run.prompt_ids(filler)] * missing
        before, valid = left_pad(prompts, self._run.tokenizer.pad_id, self._width)
        room = self._run.config.max_completion_tokens
        after = np.full((n, room), self._run.tokenizer.pad_id, before.dtype)
        written, chosen = np.zeros(after.shape, bool), np.zeros(after.shape, bool)
        logp = np.zeros(after.shape, np.float32)
        for row, one in enumerate(found):
            kept, end = one.kept, len(one.ids)
            after[row, :end], written[row, :end] = one.ids, True
            logp[row, kept:end], chosen[row, kept:end] = one.logp, True
        before_them = ((0, 0), (self._width, 0))
        new = {
            "tokens": np.concatenate([before, after], axis=1),
            "valid": np.concatenate([valid, written], axis=1),
            "completion_mask": np.pad(chosen, before_them),
            "logp": np.pad(logp, before_them),
        }
        both = {
            name: np.concatenate([np.asarray(getattr(samples, name)), rows])
            for name, rows in new.items()
        }
        return Samples(**hosts.place(both, batch_sharding(self._run.mesh)))


def _passing_beside(searched: set[int], responses: Sequence[Response]) -> set[int]:
    """Responses that pass, the first ones, in the share that they have among all responses.

    All of them would be many more than there are to the failing ones that were searched.
    """
    passing = [number for number, response in enumerate(responses) if response.passed]
    failing = len(responses) - len(passing)
    share = len(searched) / failing if failing else 1.0
    return set(passing[: round(share * len(passing))])
