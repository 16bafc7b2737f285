"""A PRM's scores of programs that it did not see in training, its own or another model's."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from prm_jax.rl.lines import step_ends
from prm_jax.stages.attempts import Attempt
from prm_jax.stages.prm import step_scores
from prm_jax.stages.run import Run
from prm_jax.tokenizer import Tokenizer
from prm_jax.types import Problem

WORST = -1.0  # of a response without code: no line speaks for it


def as_response(scorer: Run, writer: Run, problem: Problem, ids: Sequence[int]) -> tuple[int, ...]:
    """The response of `writer` in the tokens of `scorer`, whose prompts it must fit.

    The tokens stay as they are if both have one tokenizer and one way to ask; if not, the code is
    written as a response of the scorer's and encoded.
    """
    if (
        _same_vocabulary(scorer.tokenizer, writer.tokenizer)
        and scorer.config.prompts == writer.config.prompts
    ):
        return tuple(ids)
    text = scorer.prompts.response(problem, writer.program(problem, ids))
    return (*scorer.tokenizer.encode(text), scorer.tokenizer.eos_id)


@functools.lru_cache(maxsize=1)
def _same_vocabulary(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether each token id stands for the same bytes in both."""
    sizes = {one.vocab_size, other.vocab_size}
    everything = range(one.vocab_size)
    return (
        len(sizes) == 1
        and one.eos_ids == other.eos_ids
        and one.pieces(everything) == other.pieces(everything)
    )


def program_scores(
    scorer: Run,
    params: Any,
    writer: Run,
    problems: Sequence[Problem],
    attempts: Sequence[Sequence[Attempt]],
) -> dict[str, np.ndarray]:
    """One score `[N, S]` per response by each rule: of its last line, the mean, its worst line."""
    asked = [problem for problem, row in zip(problems, attempts, strict=True) for _ in row]
    responses = [
        as_response(scorer, writer, problem, attempt.ids)
        for problem, row in zip(problems, attempts, strict=True)
        for attempt in row
    ]
    ends = [step_ends(scorer.lines(ids))[0] for ids in responses]
    scores = step_scores(scorer, params, asked, list(zip(responses, ends, strict=True)))
    rules = {"last": lambda row: row[-1], "mean": np.mean, "min": np.min}
    return {
        name: np.array([rule(row) if len(row) else WORST for row in scores]).reshape(
            len(problems), -1
        )
        for name, rule in rules.items()
    }
