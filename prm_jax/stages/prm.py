"""Stage `prm`: the process reward model learns the line labels, and is judged by itself.

Reads `label/labels.jsonl`, `label/candidates.jsonl` and the SFT policy's trunk; leaves `prm/model`.
Responses to validation problems, labelled in the same way, judge it without ever training it.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from prm_jax import hosts
from prm_jax.config import ConfigError
from prm_jax.rl.labels import ResponseClass, error_threshold, loss_support, prm_targets, select
from prm_jax.rl.statistics import auc_within_groups, best_of_n, calibration, first_error_report
from prm_jax.sharding import batch_sharding, batch_shards
from prm_jax.stages.batches import Batches, right_pad
from prm_jax.stages.labelled import (
    CANDIDATES,
    Candidate,
    LabelledResponse,
    read_candidates,
    read_labels,
)
from prm_jax.stages.run import Run, Stream
from prm_jax.stages.style import style_probes
from prm_jax.stages.supervised import fit
from prm_jax.stages.truth import true_labels
from prm_jax.steps.prm import make_prefix_scores, make_prm_step
from prm_jax.steps.state import scalar_params
from prm_jax.types import LabelBatch, Problem

NO_STEP = -1.0  # the score of a response without a step
CALIBRATION_BINS = 10


def prm(run: Run) -> None:
    config = run.config.prm
    responses, candidates = read_labels(run), read_candidates(run)
    train = training_responses(run, responses)
    prompts = prompts_of(run, train)
    batches = Batches(
        [len(prompt) + len(r.ids) for prompt, r in zip(prompts, train, strict=True)],
        config.batch_size,
        lambda epoch: run.order(Stream.PRM_ORDER, len(train), epoch),
        run.config.seed,
    )
    policy = run.restore("sft/policy", run.policy)

    def batch_at(step: int) -> LabelBatch:
        index = batches[step]
        return label_batch(run, [prompts[i] for i in index], [train[i] for i in index])

    params = fit(
        run,
        "prm",
        "model",
        config,
        scalar_params(run.scalar, policy["trunk"], run.mesh),
        lambda tx, shardings: make_prm_step(
            run.scalar, tx, run.mesh, shardings, run.config.mesh.rows_at_once
        ),
        batch_at,
    )
    quality = judge_prm(run, params, [r for r in responses if r.split == "validation"])
    quality["reranking"] = judge_reranking(run, params, candidates)
    style = style_probes(run, functools.partial(step_scores, run, params), threshold_of(run))
    summary = {"steps": config.steps, "responses": len(train), "quality": quality}
    run.finish("prm", summary | {"style": style})


def threshold_of(run: Run) -> float:
    """The score below which the run's PRM calls a step an error."""
    return error_threshold(run.config.prm.target, run.config.label.samples_per_prefix)


def training_responses(run: Run, responses: Sequence[LabelledResponse]) -> list[LabelledResponse]:
    """What the labels of the label stage, which are `responses`, teach a PRM.

    Raises ConfigError if that is nothing.
    """
    train = [r for r in responses if r.split == "train"]
    chosen = select_responses(run, train)
    if not chosen:
        raise ConfigError(
            f"prm.selection = {run.config.prm.selection!r} leaves none of {len(train)} labelled "
            "responses: choose 'full', or raise label.prompts"
        )
    if run.config.prm.repairs:
        chosen += [r for r in read_labels(run, "repairs") if len(r.steps.labels)]
    return chosen


def select_responses(run: Run, some: Sequence[LabelledResponse]) -> list[LabelledResponse]:
    """The responses of `prm.selection` that have a line to learn from."""
    kept = select(
        np.array([ResponseClass[r.response_class.upper()] for r in some], np.int64),
        [r.task_id for r in some],
        run.config.prm.selection,
    )
    return [r for r, keep in zip(some, kept, strict=True) if keep and len(r.steps.labels)]


def prompts_of(run: Run, responses: Sequence[LabelledResponse]) -> list[list[int]]:
    """The prompt of each of these responses to training problems."""
    problems = {problem.task_id: problem for problem in run.problems.train}
    return [run.prompt_ids(problems[r.task_id]) for r in responses]


def label_batch(
    run: Run, prompts: Sequence[list[int]], responses: Sequence[LabelledResponse]
) -> LabelBatch:
    """A batch for the PRM's step, on the devices."""
    tokens, valid = right_pad(
        [prompt + list(r.ids) for prompt, r in zip(prompts, responses, strict=True)],
        run.tokenizer.pad_id,
    )
    weights = np.zeros(tokens.shape, np.float32)
    labels = np.zeros(tokens.shape, np.float32)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        columns = len(prompt) + np.array(response.end_token)
        labels[row, columns], weights[row, columns] = prm_targets(
            response.steps,
            response.passed,
            target=run.config.prm.target,
            loss_on=run.config.prm.loss_on,
        )
    return LabelBatch(*hosts.place((tokens, valid, weights, labels), batch_sharding(run.mesh)))


def step_scores(
    run: Run,
    params: Any,
    problems: Sequence[Problem],
    responses: Sequence[tuple[tuple[int, ...], Any]],
) -> list[np.ndarray]:
    """R at each step of each response, clipped to [-1, 1] as the reward clips it.

    `responses` are (ids, end_token) pairs, one per problem.
    """
    return [np.clip(row, -1, 1) for row in scalars_at(run, params, problems, responses)]


def scalars_at(
    run: Run,
    params: Any,
    problems: Sequence[Problem],
    responses: Sequence[tuple[tuple[int, ...], Any]],
) -> list[np.ndarray]:
    """What a PRM or a critic says after each of these tokens of a response; -1 is the prompt's end.

    `responses` are (ids, end_token) pairs, one per problem.
    """
    shards = batch_shards(run.mesh)
    n_rows = -(-run.config.device_batch // shards) * shards
    score = make_prefix_scores(run.scalar, run.mesh)  # type: ignore[arg-type]  # flax hashes it
    found: list[np.ndarray] = []
    for begin in range(0, len(problems), n_rows):
        prompts = [run.prompt_ids(problem) for problem in problems[begin : begin + n_rows]]
        chunk = responses[begin : begin + n_rows]
        rows = [prompt + list(ids) for prompt, (ids, _) in zip(prompts, chunk, strict=True)]
        rows += [rows[-1]] * (n_rows - len(rows))
        tokens, valid = hosts.place(right_pad(rows, run.tokenizer.pad_id), batch_sharding(run.mesh))
        scores = np.asarray(score(params, tokens, valid))
        for row, (prompt, (_, end_token)) in enumerate(zip(prompts, chunk, strict=True)):
            columns = len(prompt) + np.array(end_token, np.int64)
            found.append(scores[row, columns])
    return found


def judge_prm(run: Run, params: Any, responses: list[LabelledResponse]) -> dict[str, Any]:
    """How well the PRM finds errors in responses that it never saw, up to the first error.

    Held against their labels by execution, all together and those of each checkpoint that wrote
    them; and where the problems have an exact oracle against that as well: labels are wrong where
    nobody could complete what can be completed. Calibration is that of what the PRM learns: of
    labels, or of shares of completions (prm.target).
    """
    by_id = {problem.task_id: problem for problem in run.problems.validation}
    problems = [by_id[r.task_id] for r in responses]
    scores = step_scores(run, params, problems, [(r.ids, r.end_token) for r in responses])
    by_execution = [np.array(r.steps.labels, np.int64) for r in responses]
    tasks = [r.task_id for r in responses]
    by_oracle = [
        true_labels(run, problem, r.ids, passed=r.passed)[1].astype(np.int64)
        for problem, r in zip(problems, responses, strict=True)
        if run.problems.asked
    ]

    def quality_on(some: Sequence[int]) -> dict[str, Any]:
        def held(labels: list[np.ndarray]) -> dict[str, Any]:
            return quality_of(
                [tasks[i] for i in some],
                [scores[i] for i in some],
                [labels[i] for i in some],
                threshold=threshold_of(run),
            )

        return held(by_execution) | ({"by_oracle": held(by_oracle)} if by_oracle else {})

    return quality_on(range(len(responses))) | {
        **_calibration(run, scores, responses),
        "by_checkpoint": {
            str(step): quality_on([i for i, r in enumerate(responses) if r.checkpoint == step])
            for step in sorted({r.checkpoint for r in responses})
        },
    }


def _calibration(
    run: Run, scores: list[np.ndarray], responses: list[LabelledResponse]
) -> dict[str, Any]:
    """Scores as probabilities against the targets, each weighing as in the PRM's loss up to the
    first -1; neutral steps are left out."""
    flat_scores, successes = [np.zeros(0)], [np.zeros(0)]
    for score, response in zip(scores, responses, strict=True):
        targets, weights = prm_targets(
            response.steps,
            response.passed,
            target=run.config.prm.target,
            loss_on="first_error",
        )
        times = np.where(np.array(response.steps.labels) == 0, 0, weights).astype(np.int64)
        flat_scores.append(np.repeat(score, times))
        successes.append(np.repeat((targets + 1) / 2, times))
    return calibration_rows(np.concatenate(flat_scores), np.concatenate(successes))


def calibration_rows(scores: np.ndarray, successes: np.ndarray) -> dict[str, Any]:
    """(score + 1) / 2 as a probability against the share of successes, in bins; and the ECE."""
    table = calibration(scores, successes, CALIBRATION_BINS)
    return {
        "calibration": [
            {
                "low": float(table.low[i]),
                "high": float(table.high[i]),
                "mean_score": or_none(table.predicted[i]),
                "success": or_none(table.observed[i]),
                "n": int(table.count[i]),
            }
            for i in range(CALIBRATION_BINS)
        ],
        "ece": or_none(table.error),
    }


def judge_reranking(run: Run, params: Any, candidates: list[Candidate]) -> dict[str, Any]:
    """How well the PRM chooses among the responses that the label stage kept for it (`reranking`).

    They are the same for every PRM of these labels, so that PRMs can be compared, and an outcome
    model (prm.loss_on) with a PRM.
    """
    by_id = {problem.task_id: problem for problem in run.problems.validation}
    problems = [by_id[c.task_id] for c in candidates]
    scores = step_scores(run, params, problems, [(c.ids, c.end_token) for c in candidates])
    return reranking(scores, np.array([c.passed for c in candidates]), CANDIDATES)


def reranking(scores: Sequence[np.ndarray], passed: np.ndarray, n: int) -> dict[str, Any]:
    """What comes of choosing one of the `n` responses to each problem, which come side by side.

    `pass_rate` of all; `any_of_n`, problems that one of them solves; `best_of_n`, problems solved
    where the scores of its steps choose: the highest `lowest`, or the highest `last`.
    """
    by_problem = passed.reshape(-1, n)
    keys = {
        "lowest": [s.min() if len(s) else NO_STEP for s in scores],
        "last": [s[-1] if len(s) else NO_STEP for s in scores],
    }
    return {
        "responses_per_problem": n,
        "pass_rate": float(passed.mean()),
        "any_of_n": float(by_problem.any(axis=1).mean()),
        "best_of_n": {
            name: float(best_of_n(np.array(by).reshape(-1, n), by_problem, n).mean())
            for name, by in keys.items()
        },
    }


def quality_of(
    task_ids: Sequence[str],
    scores: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    *,
    threshold: float,
) -> dict[str, Any]:
    """What the scores of the responses' steps say of labels that they are held against.

    AUC reads the steps up to and including the first -1 (later steps are "already dead" and flatter
    any model); neutral steps are left out. Undefined numbers are None.
    """
    report = first_error_report(scores, labels, threshold=threshold)
    counted = [loss_support(label, "first_error") & (label != 0) for label in labels]
    flat_scores = np.concatenate([s[c] for s, c in zip(scores, counted, strict=True)])
    flat_labels = np.concatenate([s[c] for s, c in zip(labels, counted, strict=True)])
    sizes = [int(c.sum()) for c in counted]
    by_problem = np.repeat(task_ids, sizes)
    by_response = np.repeat(np.arange(len(task_ids)), sizes)
    within_problem, _ = auc_within_groups(flat_scores, flat_labels, by_problem.tolist())
    within_response, _ = auc_within_groups(flat_scores, flat_labels, by_response)
    return {
        "n_responses": len(task_ids),
        "auc_within_problem": or_none(within_problem),
        "auc_within_response": or_none(within_response),
        "first_error": {
            "n_error": report.n_error,
            "n_ok": report.n_ok,
            "f1": or_none(report.f1),
            "acc_error": or_none(report.acc_error),
            "acc_ok": or_none(report.acc_ok),
            "exact": or_none(report.exact),
            "too_early": or_none(report.too_early),
            "too_late": or_none(report.too_late),
            "missed": or_none(report.missed),
            "localised": or_none(report.localised),
            "threshold": threshold,
        },
    }


def or_none(value: float) -> float | None:
    """JSON has no NaN: an undefined number is null."""
    return None if math.isnan(value) else float(value)
