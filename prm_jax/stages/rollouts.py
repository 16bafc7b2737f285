"""The rollouts of a PPO stage: sampled from training prompts, judged, and laid on the grid."""

import dataclasses
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np

from prm_jax import hosts
from prm_jax.rl.lines import line_end_mask
from prm_jax.rl.rewards import partial_credit
from prm_jax.sharding import batch_sharding
from prm_jax.stages.attempts import Memo, completion_ids
from prm_jax.stages.batches import left_pad
from prm_jax.stages.run import Run, Stream, take_cycled
from prm_jax.stages.truth import true_labels
from prm_jax.steps.sample import make_sampler
from prm_jax.types import Problem, Rollout, Samples, Verdict


def earned(verdicts: Sequence[Verdict], outcome: str) -> np.ndarray:
    """`[rows, 2]` float32: whether each program passes, and what it earns for that."""
    passed = [float(verdict.passed) for verdict in verdicts]
    worth = passed if outcome == "pass" else [partial_credit(verdict) for verdict in verdicts]
    return np.stack([passed, worth], axis=1).astype(np.float32)


class Rollouts:
    """Samples a step's rollout from training prompts, judges it, and lays it on the grid.

    Of several hosts each decodes and judges its own rows. `rows` are those that it holds, `_mine`
    says which of them are its own. With `truth` the oracle scores the lines; without `plan` a plan
    is no step, so that nothing is paid for it. There are `n` of them, by default ppo.rollouts.
    """

    def __init__(self, run: Run, truth: bool = False, plan: bool = True, n: int | None = None):
        self._run = run
        self._n = n or run.config.ppo.rollouts
        self._truth = truth
        self._plan = plan
        config = run.config.ppo
        self._prompts = [run.prompt_ids(problem) for problem in run.problems.train]
        self._tasks = [problem.task_id for problem in run.problems.train]
        self._number = {task: number for number, task in enumerate(self._tasks)}
        # All steps share one width, so that each program is compiled once.
        self.width = -(-max(len(ids) for ids in self._prompts) // 8) * 8
        self._sharding = batch_sharding(run.mesh)
        self._rows, self._mine = hosts.owned(self._sharding, self._n)
        self._sampler = make_sampler(
            run.policy,
            run.mesh,
            completion_tokens=run.config.max_completion_tokens,
            samples_per_prompt=config.samples_per_prompt,
            rows=run.config.decode_rows,
            temperature=config.temperature,
            eos_ids=run.tokenizer.eos_ids,
            stops=run.stops,
        )

    def sample(
        self, params: Any, step: int, stream: Stream = Stream.RL_SAMPLE
    ) -> tuple[list[Problem], Samples]:
        """The rollout of a step: the problem of each row held, and the samples on the device."""
        run, config = self._run, self._run.config.ppo
        n = self._n // config.samples_per_prompt
        index = take_cycled(
            lambda epoch: run.order(Stream.RL_ORDER, len(self._prompts), epoch),
            len(self._prompts),
            start=step * n,
            count=n,
        )
        tokens, valid = left_pad(
            [self._prompts[i] for i in index], run.tokenizer.pad_id, self.width
        )
        budget = np.full(n, run.config.max_completion_tokens, np.int32)
        samples = self._sampler(params, tokens, valid, budget, run.key(stream, step))
        asked = np.repeat(index, config.samples_per_prompt)[self._rows]
        return [run.problems.train[int(i)] for i in asked], samples

    def completions(self, samples: Samples) -> list[tuple[int, ...]]:
        """The completion of each row held."""
        tokens, mask = hosts.held(samples.tokens), hosts.held(samples.completion_mask)
        return completion_ids(dataclasses.replace(samples, tokens=tokens, completion_mask=mask))

    def judge(
        self, problems: list[Problem], completions: list[tuple[int, ...]]
    ) -> list[Future[Verdict]]:
        with self._deadline():
            return [
                self._run.judge_here(problem, self._run.program(problem, ids))
                for problem, ids, mine in zip(problems, completions, self._mine, strict=True)
                if mine
            ]

    def outcomes(self, verdicts: list[Future[Verdict]]) -> tuple[np.ndarray, np.ndarray]:
        """`(passed, outcome)` of all rows, float32: whether a program passes, what it earns."""
        with self._deadline():
            found = [verdict.result() for verdict in verdicts]
        both = earned(found, self._run.config.ppo.outcome)
        both = hosts.gather_rows(self._rows[self._mine], both, self._n)
        return both[:, 0], both[:, 1]

    def solved(
        self, problems: list[Problem], completions: list[tuple[int, ...]], passed: np.ndarray
    ) -> tuple[list[str], list[tuple[str, str]]]:
        """The tasks of all rows with a response, and (task, digest) of programs that passed."""
        mine = [
            (self._number[problem.task_id] if ids else -1, self._digest(problem, ids))
            for problem, ids, own in zip(problems, completions, self._mine, strict=True)
            if own
        ]
        found = hosts.gather_rows(self._rows[self._mine], np.array(mine, np.int64), self._n)
        written = found[:, 0] >= 0
        tasks = [self._tasks[number] for number in found[written, 0]]
        digests = [f"{digest & (1 << 64) - 1:016x}" for digest in found[written, 1].tolist()]
        both = zip(tasks, digests, passed[written], strict=True)
        return tasks, [(task, digest) for task, digest, passes in both if passes]

    def _digest(self, problem: Problem, ids: tuple[int, ...]) -> int:
        key = Memo.key(problem, self._run.program(problem, ids))
        return int.from_bytes(key[:8], "big", signed=True)

    def _deadline(self) -> AbstractContextManager[None]:
        n, seconds = int(self._mine.sum()), self._run.config.sandbox.deadline_s
        return hosts.deadline(seconds, f"judging {n} programs")

    def scores(
        self,
        problems: list[Problem],
        completions: list[tuple[int, ...]],
        passed: np.ndarray,
        by_prm: jax.Array,
    ) -> jax.Array:
        """The PRM's scores, or the oracle's labels if it takes the PRM's place."""
        if not self._truth:
            return by_prm
        columns = self.width + self._run.config.max_completion_tokens
        found = np.zeros((len(completions), columns), np.float32)
        for row, (problem, ids) in enumerate(zip(problems, completions, strict=True)):
            passes = bool(passed[self._rows[row]])
            ends, labels = true_labels(self._run, problem, ids, passed=passes)
            found[row, self.width + ends] = labels
        return self._place(found)

    def _place(self, of_rows_held: np.ndarray) -> jax.Array:
        return hosts.place_rows(of_rows_held, self._n, self._sharding)

    def assemble(self, samples, completions, outcome, ref_logp, values, scores) -> Rollout:
        line_end = np.zeros((len(completions), samples.tokens.shape[1]), bool)
        for row, ids in enumerate(completions):
            ends = line_end_mask(self._run.lines(ids), len(ids), plan=self._plan)
            line_end[row, self.width : self.width + len(ids)] = ends
        return Rollout(
            tokens=samples.tokens,
            valid=samples.valid,
            completion_mask=samples.completion_mask,
            line_end=self._place(line_end),
            logp=samples.logp,
            ref_logp=ref_logp,
            values=values,
            prm_scores=scores,
            outcome=hosts.place(outcome, self._sharding),
        )
