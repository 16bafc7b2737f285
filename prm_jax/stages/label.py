"""Stage `label`: which line of a response was the first that could not be saved, by execution.

Checkpoints of the baseline answer training (and validation) prompts; each failing response is
searched for its transition line by completing prefixes and running the tests (paper, section 3.1,
Algorithm 1). Leaves `label/labels.jsonl`, one response a line, `label/repairs.jsonl`, completions
that passed in the same form, `label/candidates.jsonl`, many responses to each validation prompt for
a PRM to choose from, and the cost in `done.json`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from prm_jax.metrics import Progress
from prm_jax.rl.labels import response_class
from prm_jax.rl.lines import step_ends
from prm_jax.stages.attempts import Attempt, Memo, Sampling, Start
from prm_jax.stages.journal import Journal
from prm_jax.stages.labelled import CANDIDATES, Candidate, LabelledResponse
from prm_jax.stages.rl import evenly_spaced
from prm_jax.stages.run import Run, Stream, write_atomically, write_json_lines
from prm_jax.stages.search import (
    Response,
    Searcher,
    Spent,
    Split,
    against_binary_search,
    make_response,
)
from prm_jax.types import Problem


def label(run: Run) -> None:
    config = run.config.label
    memo = Memo()
    steps = evenly_spaced(run.config.ppo.steps, config.checkpoints)
    sampling = Sampling(
        run, memo, samples=config.responses_per_prompt, temperature=config.temperature
    )
    with Journal(run.workdir / "label/journal.jsonl") as journal:
        responses = _responses(run, sampling, journal, steps)
        seconds = sampling.seconds
        candidates = _candidates(run, sampling, _best(responses, steps), journal)
        searcher = Searcher(run, memo, [r for r in responses if not r.passed])
        for completer, group in _groups(run, responses, steps).items():
            searcher.run(_policy(run, completer), completer, group, journal)

    train = [r for r in responses if r.split == "train"]
    for name, some in (("labels", responses), ("repairs", _repairs(run, train))):
        found = [LabelledResponse.of(r, neutral_comments=config.neutral_comments) for r in some]
        text = "".join(r.to_json() + "\n" for r in found)
        write_atomically(run.workdir / f"label/{name}.jsonl", text)
    write_json_lines(run.workdir / "label/candidates.jsonl", [c._asdict() for c in candidates])
    summary: dict[str, Any] = {
        "cost": _cost(train, searcher.spent, seconds),
        "classes": {
            name: sum(response_class(r.passed, r.m_star).name.lower() == name for r in train)
            for name in ("correct", "revised", "wrong")
        },
    }
    if config.search == "dense":
        summary["dense_search"] = against_binary_search(train)
    run.finish("label", summary)


def _responses(run: Run, sampling: Sampling, journal: Journal, steps: list[int]) -> list[Response]:
    """Judged responses of every checkpoint to training and validation prompts."""
    config = run.config.label
    responses = []
    n = config.prompts + config.validation_prompts
    with Progress(n * len(steps), "label: responses", "prompts") as progress:
        for number, step in enumerate(steps):
            params = _policy(run, step)
            prompts: list[tuple[Split, Problem]] = [
                *(("train", p) for p in _slice(run.problems.train, number, config.prompts)),
                *(
                    ("validation", p)
                    for p in _slice(run.problems.validation, number, config.validation_prompts)
                ),
            ]
            starts = [Start(problem) for _, problem in prompts]
            key = run.key(Stream.RESPOND, step)
            attempts = sampling.run(params, starts, key, journal, f"respond/{step}", progress)
            for (split, problem), row in zip(prompts, attempts, strict=True):
                responses += [make_response(run, problem, split, step, a) for a in row]
    return responses


def _candidates(run: Run, sampling: Sampling, step: int, journal: Journal) -> list[Candidate]:
    """Judged responses of one checkpoint to validation prompts, those to a prompt side by side."""
    asked = _slice(run.problems.validation, 0, run.config.label.validation_prompts)
    times = -(-CANDIDATES // run.config.label.responses_per_prompt)
    starts = [Start(problem) for problem in asked for _ in range(times)]
    key = run.key(Stream.CANDIDATES)
    rows = sampling.run(_policy(run, step), starts, key, journal, f"candidates/{step}")
    found = []
    for i, problem in enumerate(asked):
        attempts = [a for row in rows[i * times : (i + 1) * times] for a in row]
        for a in attempts[:CANDIDATES]:
            ends = tuple(step_ends(run.lines(a.ids))[0].tolist())
            found.append(Candidate(problem.task_id, a.passed, a.ids, ends))
    return found


def _policy(run: Run, step: int) -> Any:
    """The baseline's policy at one of its checkpoints."""
    return run.restore("rl/policy", run.policy, step)


def _slice(problems: Sequence[Problem], number: int, n: int) -> list[Problem]:
    """The number-th slice of n problems; it goes round, so slices overlap only if they must."""
    return [problems[(number * n + i) % len(problems)] for i in range(n)]


def _repairs(run: Run, responses: Sequence[Response]) -> list[Response]:
    """The failing responses with what follows their last saved line replaced by what passed."""
    return [
        make_response(run, r.problem, r.split, r.checkpoint, Attempt(r.repair, "passed", False, 0))
        for r in responses
        if r.repair and r.repaired_from <= r.m_star
    ]


def _groups(run: Run, responses: list[Response], steps: list[int]) -> dict[int, list[Response]]:
    """Failing responses by the checkpoint that completes their prefixes."""
    failing = [r for r in responses if not r.passed]
    if run.config.label.completer == "policy":
        return {step: [r for r in failing if r.checkpoint == step] for step in steps}
    return {_best(responses, steps): failing}


def _best(responses: list[Response], steps: list[int]) -> int:
    """The checkpoint most of whose responses to training prompts pass; the first of equals."""
    train = [r for r in responses if r.split == "train"]
    return max(steps, key=lambda step: sum(r.passed for r in train if r.checkpoint == step))


def _cost(train: list[Response], spent: Spent, response_seconds: float) -> dict[str, float]:
    failing = sum(not r.passed for r in train)
    labels = sum(r.n_steps for r in train)
    return {
        "responses": len(train),
        "failing": failing,
        "labels": labels,
        **dataclasses.asdict(spent),
        "completions_per_label": spent.completions / max(labels, 1),
        "executions_per_label": spent.executions / max(labels, 1),
        "completions_per_failing_response": spent.completions / max(failing, 1),
        "seconds": response_seconds + spent.seconds,
    }
