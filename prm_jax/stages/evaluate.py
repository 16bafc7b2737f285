"""Stage `evaluate`: what came of it, on held-out problems, as `results.json` (docs/results.md).

Every arm that was trained samples the same problems at the same setting; intervals resample the
problems. About twenty programs, with the PRM's score of every line, go to `evaluate/scored.jsonl`.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from prm_jax import hosts
from prm_jax.metrics import Progress
from prm_jax.rl.lines import Lines, step_ends
from prm_jax.rl.statistics import bootstrap_interval, pass_at_k
from prm_jax.stages.attempts import Attempt, Memo, Sampling, Start
from prm_jax.stages.inspection import Inspection
from prm_jax.stages.journal import Journal
from prm_jax.stages.labelled import LabelledResponse, read_labels
from prm_jax.stages.plans import plan_sampling, plan_variance
from prm_jax.stages.prm import step_scores
from prm_jax.stages.run import Run, Stream, write_atomically, write_json_lines
from prm_jax.stages.truth import first_wrong_line, first_wrong_step
from prm_jax.types import LineKind, Problem

ARMS = ("sft", "rl", "rl_prm")
KS = (1, 2, 5, 10, 20, 30)  # those up to `samples`; best-of-K of the paper ends at 30
SCORED_FAILING, SCORED_PASSING = 5, 2  # programs per arm that the report shows


def evaluate(run: Run) -> None:
    first = run.config.evaluate.first or None
    sets = {name: list(problems)[:first] for name, problems in run.problems.held_out.items()}
    asked = [problem for problems in sets.values() for problem in problems]
    main = next(iter(sets))
    arms = [arm for arm in ARMS if run.done(arm) is not None]
    scorers = _scorers(run, arms)
    found: dict[str, dict[str, list[list[Attempt]]]] = {}
    plans: dict[str, dict[str, float | int | None]] = {}
    critics: dict[str, dict[str, float | int | None]] = {}
    as_critic: dict[str, float | int | None] = {}
    by_completions: dict[str, Any] = {}
    drift: dict[str, dict[str, Any]] = {}
    config = run.config.evaluate
    # One for all arms: it is compiled once, and what one arm wrote is not run again for another.
    memo = Memo()
    # A variance needs two problems.
    planned = run.config.prompts.plan and len(run.problems.validation) > 1
    of_plans = plan_sampling(run, memo) if planned else None
    sampling = Sampling(
        run, memo, samples=config.samples, temperature=config.temperature, top_p=config.top_p
    )
    with (
        Journal(run.workdir / "evaluate/journal.jsonl") as journal,
        Progress(len(arms) * len(asked), "evaluate", "problems") as progress,
    ):
        for arm in arms:
            attempts = _attempts(run, sampling, arm, asked, journal, progress)
            _write_samples(run, arm, asked, attempts)
            found[arm] = _by_set(sets, attempts)
            if of_plans is not None:
                params = run.restore(f"{arm}/policy", run.policy)
                problems = run.problems.validation
                plans[arm] = plan_variance(run, of_plans, params, problems, journal, arm)
        if config.inspect and len(run.problems.validation) > 1:
            inspection = Inspection(run, memo, journal)
            for arm in arms:
                if hosts.first((run.workdir / arm / "critic").exists):
                    params = run.restore(f"{arm}/critic", run.scalar)
                    critics[arm] = inspection.critic(arm, params)
            if run.done("prm") is not None:
                prm_params = run.restore("prm/model", run.scalar)
                as_critic = inspection.critic("sft", prm_params)
                if "rl" in arms:
                    by_completions = inspection.calibration(prm_params)
                if scorers.get("rl_prm") == "prm/model":
                    drift = inspection.prm("rl_prm", prm_params)
            if scorers.get("rl_prm") == "rl_prm/prm":
                drift = inspection.prm("rl_prm", None)

    results: dict[str, Any] = {
        "schema": 1,
        "seed": run.config.seed,
        "config_digest": run.digest(),
        "versions": json.loads(hosts.first((run.workdir / "versions.json").read_text)),
        "confidence": config.confidence,
        "arms": {},
    }
    for arm in arms:
        summary = run.done(arm) or {}
        rates = {name: _pass_rates(run, sets[name], found[arm][name]) for name in sets}
        results["arms"][arm] = {
            **rates.pop(main),
            **rates,
            "samples": config.samples,
            "temperature": config.temperature,
            "programs_generated": summary.get("programs_generated", 0),
        }
        if arm in critics:
            results["arms"][arm]["critic"] = critics[arm]
        if "exploration" in summary:
            results["arms"][arm]["exploration"] = summary["exploration"]
        if arm in plans:
            results["arms"][arm]["plans"] = plans[arm]
        if arm != "rl" and "rl" in arms:
            results["arms"][arm]["difference_to_rl"] = _difference(
                run, found[arm][main], found["rl"][main]
            )
    if (labelled := run.done("label")) is not None:
        results["label_cost"] = labelled["cost"]
        train = [r for r in read_labels(run) if r.split == "train"]
        results["labels"] = labelled["classes"]
        if (dense := labelled.get("dense_search")) is not None:
            results["labels"]["dense_search"] = dense
        if run.problems.asked:
            results["labels"] |= _oracle_agreement(run, train)
    if (prm := run.done("prm")) is not None:
        results["prm"] = prm["quality"] | {"style": prm.get("style", {})}
        if as_critic:
            results["prm"]["as_critic"] = as_critic
        if by_completions:
            results["prm"]["by_completions"] = by_completions
    scored = []
    for path in ("prm/model", "rl_prm/prm"):
        judged = {arm: found[arm][main] for arm in arms if scorers.get(arm) == path}
        scored += _scored(run, path, sets[main], judged) if judged else []
    if scored:
        write_json_lines(run.workdir / "evaluate/scored.jsonl", scored)
    if drift:
        results.setdefault("prm", {})["by_step_of_rl_prm"] = drift
    write_atomically(run.workdir / "results.json", json.dumps(results, indent=2))
    run.finish("evaluate", {"arms": arms})


def _scorers(run: Run, arms: Sequence[str]) -> dict[str, str]:
    """The PRM that scores each arm's programs: the one that learned beside it, if there is one."""
    found = dict.fromkeys(arms, "prm/model") if run.done("prm") is not None else {}
    if "rl_prm" in arms and hosts.first((run.workdir / "rl_prm/prm").exists):
        found["rl_prm"] = "rl_prm/prm"
    return found


def _by_set(
    sets: dict[str, list[Problem]], attempts: list[list[Attempt]]
) -> dict[str, list[list[Attempt]]]:
    """Attempts at the problems of all sets, in order, cut up into those of each set."""
    rest = iter(attempts)
    return {name: [next(rest) for _ in problems] for name, problems in sets.items()}


def _attempts(
    run: Run,
    sampling: Sampling,
    arm: str,
    problems: list[Problem],
    journal: Journal,
    progress: Progress,
) -> list[list[Attempt]]:
    params = run.restore(f"{arm}/policy", run.policy)
    starts = [Start(problem) for problem in problems]
    # Every arm draws from one stream: arms differ by their policies alone.
    return sampling.run(params, starts, run.key(Stream.EVALUATE), journal, arm, progress)


def _write_samples(
    run: Run, arm: str, problems: list[Problem], attempts: list[list[Attempt]]
) -> None:
    rows = [
        {
            "task_id": problem.task_id,
            "sample": number,
            "completion": run.tokenizer.decode(attempt.ids),
            "status": attempt.status,
            "passed": attempt.passed,
        }
        for problem, row in zip(problems, attempts, strict=True)
        for number, attempt in enumerate(row)
    ]
    write_json_lines(run.workdir / f"evaluate/{arm}.jsonl", rows)


def _pass_rates(
    run: Run, problems: Sequence[Problem], attempts: list[list[Attempt]]
) -> dict[str, Any]:
    n, c = counts(attempts)
    horizons = np.array([problem.horizon for problem in problems])
    ks = [k for k in KS if k <= run.config.evaluate.samples]
    return {
        "pass_at_1": interval(run, pass_at_k(n, c, 1)),
        "pass_at_k": {str(k): interval(run, pass_at_k(n, c, k)) for k in ks if k > 1},
        "by_horizon": {
            str(h): interval(run, pass_at_k(n[horizons == h], c[horizons == h], 1))
            for h in np.unique(horizons)
        },
    }


def _difference(
    run: Run, attempts: list[list[Attempt]], baseline: list[list[Attempt]]
) -> dict[str, float | int]:
    """pass@1 less that of the baseline, each problem against itself (paired bootstrap).

    A resample draws problems, and a problem brings both arms along: how hard it is cancels out,
    and the interval is narrower than those of the two arms suggest.
    """
    ours, theirs = (pass_at_k(*counts(arm), 1) for arm in (attempts, baseline))
    return interval(run, ours - theirs)


def counts(attempts: list[list[Attempt]]) -> tuple[np.ndarray, np.ndarray]:
    """How many attempts each problem has, and how many of them pass."""
    n = np.array([len(row) for row in attempts], np.int64)
    return n, np.array([sum(a.passed for a in row) for row in attempts], np.int64)


def interval(run: Run, per_problem: np.ndarray) -> dict[str, float | int]:
    """The mean over problems, with the bootstrap interval that `evaluate` asks for."""
    config = run.config.evaluate
    low, high = bootstrap_interval(
        per_problem,
        resamples=config.bootstrap,
        confidence=config.confidence,
        seed=run.config.seed,
    )
    return {"value": float(per_problem.mean()), "low": low, "high": high, "n": len(per_problem)}


def _oracle_agreement(run: Run, train: list[LabelledResponse]) -> dict[str, float | None]:
    """How often the labels say what the built-in problems' exact oracle says (a diagnostic).

    Over failing responses: the first -1 against the oracle's first error, and the labels of steps
    up to and including the oracle's first error, -1 there and +1 before.
    """
    problems = {problem.task_id: problem for problem in run.problems.train}
    exact, agree, counted = [], 0, 0
    for response in train:
        if response.passed:
            continue
        error = first_wrong_step(run, problems[response.task_id], response.ids)
        if error is None:
            continue
        labels = np.array(response.steps.labels)
        first = int(np.argmax(labels == -1)) if (labels == -1).any() else -1
        exact.append(first == error)
        upto = labels[: error + 1]
        truth = np.where(np.arange(len(upto)) < error, 1, -1)
        agree += int((upto == truth)[upto != 0].sum())
        counted += int((upto != 0).sum())
    return {
        "oracle_first_error_exact": float(np.mean(exact)) if exact else None,
        "oracle_line_agreement": agree / counted if counted else None,
    }


def _scored(
    run: Run, path: str, problems: list[Problem], attempts: dict[str, list[list[Attempt]]]
) -> list[dict[str, Any]]:
    """A few failing and passing programs of each arm, their lines scored by the PRM at `path`."""
    params = run.restore(path, run.scalar)
    chosen: list[tuple[str, Problem, Attempt]] = []
    for arm, rows in attempts.items():
        firsts = [(arm, problem, row[0]) for problem, row in zip(problems, rows, strict=True)]
        for wanted, passed in ((SCORED_FAILING, False), (SCORED_PASSING, True)):
            some = [item for item in firsts if item[2].passed == passed]
            chosen += [some[i] for i in _spread([p.horizon for _, p, _ in some], wanted)]
    lines = [run.lines(a.ids) for _, _, a in chosen]
    ends = [step_ends(line)[0] for line in lines]
    scores = step_scores(
        run,
        params,
        [problem for _, problem, _ in chosen],
        [(a.ids, end) for (_, _, a), end in zip(chosen, ends, strict=True)],
    )
    rows = []
    for (arm, problem, attempt), line, end, score in zip(chosen, lines, ends, scores, strict=True):
        by_token = dict(zip(end.tolist(), score.tolist(), strict=True))
        completion = run.tokenizer.decode(attempt.ids)
        rows.append(
            {
                "task_id": problem.task_id,
                "arm": arm,
                "split": "test",
                "horizon": problem.horizon,
                "prompt": problem.prompt,
                "program_prefix": problem.program_prefix,
                "completion": completion,
                "passed": attempt.passed,
                "status": attempt.status,
                "lines": [
                    {
                        "text": text.decode("utf-8", errors="replace").rstrip("\n"),
                        "kind": LineKind(kind).name.lower(),
                        "score": None if kind == LineKind.BLANK else by_token[int(token)],
                    }
                    for text, kind, token in zip(line.text, line.kind, line.end_token, strict=True)
                ],
                "first_error": _first_error(run, problem, line),
            }
        )
    return rows


def _first_error(run: Run, problem: Problem, lines: Lines) -> int | None:
    """The oracle's first wrong line, for the problems that have an oracle."""
    asked = run.problems.asked.get(problem.task_id)
    return None if asked is None else first_wrong_line(problem, asked, lines)


def _spread(horizons: Sequence[int], wanted: int) -> list[int]:
    """Indices of `wanted` problems (fewer if there are fewer), evenly spaced in order of horizon.

    The problems themselves come in turns of all horizons, where a stride might meet one only.
    """
    order = np.argsort(np.array(horizons), kind="stable")
    wanted = min(wanted, len(order))
    return [int(order[(2 * i + 1) * len(order) // (2 * wanted)]) for i in range(wanted)]
