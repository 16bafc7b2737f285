"""PRM and critics held against what the trained policies do, on validation problems.

A PRM learns from the baseline's responses, and `rl_prm` moves away from them: its scores are
compared with outcomes at each checkpoint that PPO left. A critic says what is still to come: it is
compared with the mean outcome of completions from the same prefix.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from prm_jax.checkpoint import Checkpoints
from prm_jax.rl.lines import step_ends
from prm_jax.rl.statistics import auc_within_groups, value_error
from prm_jax.stages.attempts import Attempt, Memo, Sampling, Start
from prm_jax.stages.journal import Journal
from prm_jax.stages.prm import (
    NO_STEP,
    or_none,
    quality_of,
    reranking,
    scalars_at,
    step_scores,
    threshold_of,
)
from prm_jax.stages.run import Run, Stream
from prm_jax.stages.truth import true_labels
from prm_jax.types import Problem

RESPONSES = 8  # to each problem, from each checkpoint
COMPLETIONS = 16  # of each prefix


class Inspection:
    """Samples at the temperature of PPO's rollouts; the policies of all arms share its programs."""

    def __init__(self, run: Run, memo: Memo, journal: Journal):
        self._run = run
        self._journal = journal
        self._problems = list(run.problems.validation)[: run.config.evaluate.inspect]
        temperature = run.config.ppo.temperature
        self._responding, self._completing = (
            Sampling(run, memo, samples=samples, temperature=temperature)
            for samples in (RESPONSES, COMPLETIONS)
        )

    def prm(self, arm: str, params: Any) -> dict[str, dict[str, Any]]:
        """What the PRM says of each checkpoint of an arm's policy, by step.

        `pass_rate` of `RESPONSES` to each problem; `best_of_n`: the share of problems solved where
        the PRM picks one of them, by its last score or its lowest; `auc_passed`: the chance that a
        response that passes has the higher lowest score, within problems; `mean_score` of lines in
        responses that pass and fail; and where there is an oracle, what `prm.quality` has.
        """
        run, problems = self._run, self._problems
        with Checkpoints(run.workdir / f"{arm}/policy") as checkpoints:
            steps = checkpoints.steps()
        asked = [problem for problem in problems for _ in range(RESPONSES)]
        by_step = [[a for row in self._responses(arm, step) for a in row] for step in steps]
        attempts = [attempt for some in by_step for attempt in some]
        responses = [(a.ids, step_ends(run.lines(a.ids))[0]) for a in attempts]
        # All at once: what scores them is compiled once.
        scores = step_scores(run, params, asked * len(steps), responses)
        n = len(asked)
        return {
            str(step): _judged(run, asked, some, scores[i * n : (i + 1) * n])
            for i, (step, some) in enumerate(zip(steps, by_step, strict=True))
        }

    def critic(self, arm: str, params: Any) -> dict[str, float | int | None]:
        """A critic, or a PRM in its place, against completions by the policy that an arm ends with.

        One prefix of one response to each problem, drawn evenly from the prompt and the ends of its
        steps, and whether `COMPLETIONS` from there pass (`value_error`).
        """
        run, problems = self._run, self._problems
        with Checkpoints(run.workdir / f"{arm}/policy") as checkpoints:
            last = checkpoints.steps()[-1]
        rng = np.random.default_rng([run.config.seed, int(Stream.INSPECT)])
        starts, places = [], []
        for problem, row in zip(problems, self._responses(arm, last), strict=True):
            ids = row[0].ids
            ends = step_ends(run.lines(ids))[0]
            # A step that takes in the last token leaves nothing to write.
            ends = np.array([-1, *ends[ends < len(ids) - 1]], np.int64)
            end = int(rng.choice(ends))
            starts.append(Start(problem, ids[: end + 1]))
            places.append((ids, np.array([end])))
        values = scalars_at(run, params, problems, places)
        policy = run.restore(f"{arm}/policy", run.policy)
        key = run.key(Stream.INSPECT, last, 1)
        rows = self._completing.run(policy, starts, key, self._journal, f"{arm}/complete/{last}")
        outcomes = np.array([[a.passed for a in row] for row in rows])
        error = value_error(np.concatenate(values), outcomes)
        return {
            "prefixes": len(starts),
            "completions": COMPLETIONS,
            "correlation": or_none(error.correlation),
            "rmse": or_none(error.rmse),
            "rmse_of_mean": or_none(error.rmse_of_mean),
        }

    def _responses(self, arm: str, step: int) -> list[list[Attempt]]:
        run = self._run
        params = run.restore(f"{arm}/policy", run.policy, step)
        starts = [Start(problem) for problem in self._problems]
        key = run.key(Stream.INSPECT, step, 0)
        return self._responding.run(params, starts, key, self._journal, f"{arm}/respond/{step}")


def _judged(
    run: Run,
    problems: Sequence[Problem],
    attempts: Sequence[Attempt],
    scores: Sequence[np.ndarray],
) -> dict[str, Any]:
    """What the scores of all steps say of these responses, `RESPONSES` to each problem in turn."""
    passed = np.array([attempt.passed for attempt in attempts])
    lowest = np.array([s.min() if len(s) else NO_STEP for s in scores])
    tasks = [problem.task_id for problem in problems]
    found: dict[str, Any] = {
        "responses": len(attempts),
        **reranking(scores, passed, RESPONSES),
        "auc_passed": or_none(
            auc_within_groups(lowest, np.where(passed, 1, -1).astype(np.int64), tasks)[0]
        ),
        "mean_score": {
            name: _mean([s for s, p in zip(scores, passed, strict=True) if p == which])
            for name, which in (("passing", True), ("failing", False))
        },
    }
    if run.problems.asked:
        true = [
            true_labels(run, problem, a.ids, passed=a.passed)[1].astype(np.int64)
            for problem, a in zip(problems, attempts, strict=True)
        ]
        found["by_oracle"] = quality_of(tasks, scores, true, threshold=threshold_of(run))
    return found


def _mean(rows: Sequence[np.ndarray]) -> float | None:
    flat = np.concatenate([*rows, np.zeros(0)])
    return float(flat.mean()) if len(flat) else None
