"""How much of a program's success its plan decides: plans, and programs that keep them, sampled.

PlanSearch (arXiv 2409.03733) found that programs which follow one sketch mostly all pass or all
fail. Here the policy writes plans for validation problems and several programs for each plan.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from prm_jax.rl.statistics import success_variance
from prm_jax.stages.attempts import Attempt, Memo, Sampling, Start
from prm_jax.stages.journal import Journal
from prm_jax.stages.prm import or_none
from prm_jax.stages.run import Run, Stream
from prm_jax.types import LineKind, Problem

SAMPLES = 4  # plans to each problem, and programs that keep each plan


def plan_sampling(run: Run, memo: Memo) -> Sampling:
    """Samples at the temperature of PPO's rollouts, for the policies of all arms."""
    return Sampling(run, memo, samples=SAMPLES, temperature=run.config.ppo.temperature)


def plan_variance(
    run: Run,
    sampling: Sampling,
    params: Any,
    problems: Sequence[Problem],
    journal: Journal,
    name: str,
) -> dict[str, float | int | None]:
    """The variance of success, split (`success_variance`), with `plan_sampling`'s programs.

    A plan that takes up its whole response leaves nothing to write: all its programs fail as that
    one did. A response without a plan has one that says nothing.
    """
    asked = [Start(problem) for problem in problems]
    responses = sampling.run(params, asked, run.key(Stream.PLANS, 0), journal, f"plans/{name}")
    plans = [
        _plan_of(run, problem, attempt)
        for problem, row in zip(problems, responses, strict=True)
        for attempt in row
    ]
    starts = [plan for plan in plans if plan is not None]
    key = run.key(Stream.PLANS, 1)
    programs = iter(sampling.run(params, starts, key, journal, f"programs/{name}"))
    passed = np.array(
        [
            [False] * SAMPLES if plan is None else [attempt.passed for attempt in next(programs)]
            for plan in plans
        ]
    )
    split = success_variance(passed.reshape(len(problems), SAMPLES, SAMPLES))
    return {
        "problems": len(problems),
        "plans_per_problem": SAMPLES,
        "programs_per_plan": SAMPLES,
        "pass_rate": float(passed.mean()),
        "between_problems": split.between_problems,
        "between_plans": split.between_plans,
        "within_plans": split.within_plans,
        "plan_share": or_none(split.plan_share),
    }


def _plan_of(run: Run, problem: Problem, attempt: Attempt) -> Start | None:
    """The plan of a response, for others to keep; None if nothing can follow it."""
    lines = run.lines(attempt.ids)
    if LineKind.PLAN not in lines.kind:
        return Start(problem)
    if lines.end_token[0] == len(attempt.ids) - 1:
        return None
    plan = run.tokenizer.prefix_ids(attempt.ids, int(lines.end_byte[0]))
    return Start(problem, tuple(plan))
