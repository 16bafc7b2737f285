"""Labels while RL runs: the policy searches its own failing responses, and learns of the searches.

`dense.source = "labels"`. Of the ppo.rollouts programs of a step, dense.completions complete
prefixes of its failing responses, drawn by the policy that wrote them. The labels that come of it
are line rewards of these responses, without a PRM between; a response that passes is right in all
lines. Each completion is an on-policy rollout of what follows its prefix, whose outcome is that of
the whole program, and trains policy and critic like any other; the prefix that it was given carries
no loss. So labels take no program that PPO would not have had.
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prm_jax import hosts
from prm_jax.config import Config
from prm_jax.sharding import batch_sharding
from prm_jax.stages.attempts import Attempt
from prm_jax.stages.batches import left_pad
from prm_jax.stages.probing import Probe, Search, asked_for, probe_sizes
from prm_jax.stages.rollouts import earned
from prm_jax.stages.run import Run, Stream
from prm_jax.stages.search import Response, Searches, make_response, prefix_of
from prm_jax.steps.prefixes import PrefixCompleter
from prm_jax.steps.sample import Choice
from prm_jax.types import Problem, Samples, Verdict

ROUNDS = 4  # that the completions of a step last for: as many searches are open as then find work


def labels_online(config: Config) -> bool:
    """Whether stage `rl_prm` labels its own rollouts."""
    return config.dense.enabled and config.dense.source == "labels"


def whole_responses(config: Config) -> int:
    """How many of a step's rollouts begin with the prompt alone."""
    return config.ppo.rollouts - (config.dense.completions if labels_online(config) else 0)


class Labelled(NamedTuple):
    """A step's whole responses and, behind them, the completions of their prefixes.

    Rows without either fill the batch up: the prompt of the first row, and no completion.
    """

    problems: list[Problem]
    completions: list[tuple[int, ...]]  # of a prefix: it and what follows
    samples: Samples  # on the device; logp of what follows a prefix is 0
    passed: np.ndarray  # [B] float32
    outcome: np.ndarray  # [B] float32
    scores: np.ndarray  # [B, T] float32: labels at the ends of steps, 0 where none is known
    metrics: dict[str, float]


@dataclasses.dataclass(frozen=True)
class _Completion:
    response: Response
    kept: int  # tokens of its prefix
    ids: tuple[int, ...]
    verdict: Verdict


@dataclasses.dataclass
class _Open:
    number: int  # of the response among the step's
    response: Response
    search: Search
    probe: Probe


def with_logp(samples: Samples, logp: jax.Array, first: int) -> Samples:
    """The samples with these log-probs, `[B, T]`, in the rows from `first` on."""
    new = samples.completion_mask & (jnp.arange(logp.shape[0]) >= first)[:, None]
    return dataclasses.replace(samples, logp=jnp.where(new, logp, samples.logp))


class OnlineLabels:
    """Labels as many failing responses of each step as dense.completions pay for.

    Searches go on in rounds, each of which waits for all of its verdicts, so that who gets the last
    completions does not hang on when verdicts come. A search that is cut off leaves no label.
    """

    def __init__(self, run: Run, width: int):
        """`width` is P, the columns of the grid that hold prompts."""
        config = run.config
        self._run, self._width = run, width
        self._searches = Searches(run)
        self._completer = PrefixCompleter(
            run.policy,
            run.mesh,
            run.key(Stream.LABELS_ONLINE),
            **probe_sizes(
                config,
                searches=max(1, config.dense.completions // (ROUNDS * config.label.wave)),
                prompt=width,
                longest=width + config.max_completion_tokens,
            ),
            choice=Choice(config.ppo.temperature),
            eos_ids=run.tokenizer.eos_ids,
            stops=run.stops,
        )

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
        """The rollout of a step with the searches of it by `params`, which wrote it."""
        responses = [
            make_response(
                self._run, problem, "train", step,
                Attempt(ids, "passed" if passes else "failed", True, len(ids)),
            )
            for problem, ids, passes in zip(problems, completions, passed, strict=True)
        ]  # fmt: skip
        labelled, found = self._search(params, step, responses)
        verdicts = [one.verdict for one in found]
        earns = earned(verdicts, self._run.config.ppo.outcome).reshape(-1, 2)
        repaired = [
            make_response(
                self._run, one.response.problem, "train", step,
                Attempt(one.ids, one.verdict.status, True, len(one.ids) - one.kept),
            )
            for one in found
        ]  # fmt: skip
        n = self._run.config.ppo.rollouts
        missing = n - len(responses) - len(found)
        scores = np.zeros((n, samples.tokens.shape[1]), np.float32)
        for row, response in enumerate([*responses, *repaired]):
            if response.passed or row in labelled:
                labels = response.labels(neutral_comments=self._run.config.label.neutral_comments)
                scores[row, self._width + response.end_token] = labels.labels
        none = np.zeros(missing, np.float32)
        return Labelled(
            problems=[*problems, *(r.problem for r in repaired), *[problems[0]] * missing],
            completions=[*completions, *(r.ids for r in repaired), *[()] * missing],
            samples=self._grid(samples, found, problems[0], missing),
            passed=np.concatenate([passed, earns[:, 0], none]),
            outcome=np.concatenate([outcome, earns[:, 1], none]),
            scores=scores,
            metrics={
                "labels/responses": float(len(labelled)),
                "labels/completions": float(len(found)),
                "labels/completions_passed": float(earns[:, 0].mean()) if len(found) else 0.0,
            },
        )

    def _search(
        self, params: Any, step: int, responses: Sequence[Response]
    ) -> tuple[set[int], list[_Completion]]:
        """The numbers of the failing responses that were searched to the end, and what it took."""
        waiting = collections.deque(
            (number, r) for number, r in enumerate(responses) if not r.passed and self._fits(r)
        )
        open_: dict[int, _Open] = {}
        labelled: set[int] = set()
        found: list[_Completion] = []
        self._completer.use(params)
        while True:
            for place in range(self._completer.places):
                while waiting and place not in open_:
                    number, response = waiting.popleft()
                    search = self._searches.of(response)
                    probe = next(search, None)
                    if probe is None:  # nothing can follow any of its lines
                        labelled.add(number)
                    else:
                        open_[place] = _Open(number, response, search, probe)
            left = self._run.config.dense.completions - len(found)
            oldest = sorted(open_, key=lambda place: open_[place].number)
            asked = oldest[: left // self._run.config.label.wave]
            if not asked:
                return labelled, found
            for place, attempts in self._round(step, {place: open_[place] for place in asked}):
                one = open_[place]
                found += attempts
                try:
                    one.probe = one.search.send(
                        [
                            Attempt(a.ids, a.verdict.status, True, len(a.ids) - a.kept)
                            for a in attempts
                        ]
                    )
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
        new = self._completer.complete(
            [
                asked_for(run, place, one.response.problem, one.response.ids, one.probe,
                          (step, one.number))
                for place, one in asked.items()
            ]
        )  # fmt: skip
        judging = []
        for one, wave in zip(asked.values(), new, strict=True):
            rows = [one.probe.ids + ids for ids in wave]
            problem = one.response.problem
            judging.append(
                [(ids, run.judge_here(problem, run.program(problem, ids))) for ids in rows]
            )
        with hosts.deadline(run.config.sandbox.deadline_s, f"judging {len(judging)} searches"):
            return [
                (
                    place,
                    [_Completion(one.response, len(one.probe.ids), ids, verdict.result())
                     for ids, verdict in wave],
                )
                for (place, one), wave in zip(asked.items(), judging, strict=True)
            ]  # fmt: skip

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
        length, kept = np.zeros(n, np.int64), np.zeros(n, np.int64)
        for row, one in enumerate(found):
            length[row], kept[row] = len(one.ids), one.kept
            after[row, : len(one.ids)] = one.ids
        columns = np.arange(room)
        written = columns < length[:, None]
        chosen = np.pad(written & (columns >= kept[:, None]), ((0, 0), (self._width, 0)))
        new = {
            "tokens": np.concatenate([before, after], axis=1),
            "valid": np.concatenate([valid, written], axis=1),
            "completion_mask": chosen,
            "logp": np.zeros(chosen.shape, np.float32),
        }
        both = {
            name: np.concatenate([np.asarray(getattr(samples, name)), rows])
            for name, rows in new.items()
        }
        return Samples(**hosts.place(both, batch_sharding(self._run.mesh)))
