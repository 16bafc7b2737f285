"""PRM and critics held against what the trained policies do, on validation problems.

A PRM learns from the baseline's responses, and `rl_prm` moves away from them: its scores are
compared with outcomes at each checkpoint that PPO left. On the baseline's own responses they are
compared with many completions of each prefix, where labels had few. A critic says what is still to
come: it is compared with the mean outcome of completions from the same prefix.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from prm_jax.checkpoint import Checkpoints
from prm_jax.rl.lines import step_ends
from prm_jax.rl.statistics import auc_within_groups, pass_at_k, value_error
from prm_jax.stages.attempts import Attempt, Memo, Sampling, Start
from prm_jax.stages.journal import Journal
from prm_jax.stages.prm import (
    NO_STEP,
    calibration_rows,
    or_none,
    quality_of,
    reranking,
    scalars_at,
    step_scores,
    threshold_of,
)
from prm_jax.stages.run import Run, Stream
from prm_jax.stages.truth import true_labels
from prm_jax.types import LineKind, Problem

RESPONSES = 8  # to each problem, from each checkpoint
COMPLETIONS = 16  # of each prefix


class Inspection:
    """Samples at the temperature of PPO's rollouts; the policies of all arms share its programs."""

    def __init__(self, run: Run, memo: Memo, journal: Journal):
        self._run = run
        self._journal = journal
        self._problems = list(run.problems.validation)[: run.config.evaluate.inspect]
        temperature = run.config.ppo.temperature
        self._responding, self._responding_once, self._completing = (
            Sampling(run, memo, samples=samples, temperature=temperature)
            for samples in (RESPONSES, 1, COMPLETIONS)
        )

    def prm(self, arm: str, params: Any | None) -> dict[str, dict[str, Any]]:
        """What the PRM says of each checkpoint of an arm's policy, by step.

        Without `params` it is the PRM that learned beside that policy, as it was at that step.

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
        n = len(asked)
        if params is None:
            scores = []
            for i, step in enumerate(steps):
                learned = run.restore(f"{arm}/prm", run.scalar, step)
                scores += step_scores(run, learned, asked, responses[i * n : (i + 1) * n])
        else:
            # All at once: what scores them is compiled once.
            scores = step_scores(run, params, asked * len(steps), responses)
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

    def calibration(self, params: Any) -> dict[str, Any]:
        """The PRM's scores of prefixes against many completions of each (`against_completions`).

        Of responses by the baseline's checkpoints, in equal parts, each prefix that ends in a step
        and leaves something to write, up to the first one that none of `COMPLETIONS` could save, as
        the PRM learns them. The policy that the baseline ends with completes.
        """
        run = self._run
        with Checkpoints(run.workdir / "rl/policy") as checkpoints:
            steps = checkpoints.steps()
        starts, of_response, places = [], [], []
        for number, step in enumerate(steps):
            params_of_step = run.restore("rl/policy", run.policy, step)
            some = self._problems[number :: len(steps)]
            key = run.key(Stream.INSPECT, step, 2)
            asked = [Start(problem) for problem in some]
            name = f"prm/respond/{step}"
            rows = self._responding_once.run(params_of_step, asked, key, self._journal, name)
            for problem, row in zip(some, rows, strict=True):
                ids = row[0].ids
                ends, kinds = step_ends(run.lines(ids))
                ends = ends[(kinds != LineKind.COMMENT) & (ends < len(ids) - 1)]
                starts += [Start(problem, ids[: end + 1]) for end in ends.tolist()]
                of_response.append(len(ends))
                places.append((problem, (ids, ends)))
        policy = run.restore("rl/policy", run.policy, steps[-1])
        key = run.key(Stream.INSPECT, steps[-1], 3)
        rows = self._completing.run(policy, starts, key, self._journal, "prm/complete")
        passed = np.array([[a.passed for a in row] for row in rows], bool)
        scores = step_scores(run, params, [p for p, _ in places], [at for _, at in places])
        cuts = np.cumsum(of_response)[:-1]
        of_one = run.config.prm.target == "binary"
        return against_completions(
            scores,
            np.split(passed.reshape(-1, COMPLETIONS), cuts),
            k=min(run.config.label.samples_per_prefix, COMPLETIONS) if of_one else 1,
        )

    def _responses(self, arm: str, step: int) -> list[list[Attempt]]:
        run = self._run
        params = run.restore(f"{arm}/policy", run.policy, step)
        starts = [Start(problem) for problem in self._problems]
        key = run.key(Stream.INSPECT, step, 0)
        return self._responding.run(params, starts, key, self._journal, f"{arm}/respond/{step}")


def against_completions(
    scores: Sequence[np.ndarray], passed: Sequence[np.ndarray], *, k: int
) -> dict[str, Any]:
    """Scores of a response's prefixes [M] against their completions [M, n], of many responses.

    Prefixes behind the first that none of the n saved are left out. `saved` is the mean chance that
    one of `k` completions passes, without bias (`pass_at_k`): with the labels' own K, what the PRM
    learned; `calibration` and `ece` hold (score + 1) / 2 against it. `correlation` is that of the
    score with the share that passes, less the noise of n (`value_error`); `pass_rate` is the mean
    share.
    """
    kept = []
    for of_response in passed:
        lost = np.cumsum(~of_response.any(axis=1))
        kept.append((lost == 0) | ((lost == 1) & ~of_response.any(axis=1)))
    flat = np.concatenate([s[keep] for s, keep in zip(scores, kept, strict=True)])
    outcomes = np.concatenate([p[keep] for p, keep in zip(passed, kept, strict=True)])
    n = np.full(len(outcomes), outcomes.shape[1], np.int64)
    saved = pass_at_k(n, outcomes.sum(axis=1), k)
    return {
        "prefixes": len(flat),
        "completions": outcomes.shape[1],
        "k": k,
        "pass_rate": float(outcomes.mean()) if len(flat) else None,
        "saved": float(saved.mean()) if len(flat) else None,
        "correlation": or_none(value_error(flat, outcomes).correlation) if len(flat) > 1 else None,
        **calibration_rows(flat, saved),
    }


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
