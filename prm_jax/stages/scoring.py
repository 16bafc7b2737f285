"""A PRM's scores of programs that it did not see in training, its own or another model's."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prm_jax.config import ConfigError
from prm_jax.metrics import say
from prm_jax.rl.lines import step_ends
from prm_jax.stages.attempts import Attempt
from prm_jax.stages.chosen import Asking, ModelChoice, choose_config, find_scalar, open_run
from prm_jax.stages.prm import step_scores
from prm_jax.stages.run import Run
from prm_jax.tokenizer import Tokenizer
from prm_jax.types import LineKind, Problem

WORST = -1.0  # of a response without code: no line speaks for it


def open_scorer(
    run: Run, path: Path, asking: Asking, problems: Sequence[Problem]
) -> tuple[Run, str]:
    """The run of a PRM, with its own tokenizer and prompts, and which parameters to read.

    Of `asking` it takes the lengths that are given. Raises ConfigError if there is none, or if it
    cannot be asked about these problems.
    """
    given = (asking.max_prompt_tokens, asking.max_completion_tokens)
    lengths = Asking(max_prompt_tokens=given[0], max_completion_tokens=given[1])
    choice = ModelChoice(path, asking=lengths)
    scorer = open_run(choice, choose_config(choice), run.problems, None, run.log)
    found = find_scalar(scorer, choice)
    if scorer.config.prompts.plan and not run.config.prompts.plan:
        raise ConfigError(
            f"{path} is not allowed here: it scores programs by the plan that they open with, and "
            "the responses of this model have none (prompts.plan); choose a PRM without plans"
        )
    longest, limit = max(len(scorer.prompt_ids(p)) for p in problems), scorer.config
    if longest > limit.max_prompt_tokens:
        raise ConfigError(
            f"max_prompt_tokens = {limit.max_prompt_tokens} is not allowed with {path}, for which "
            f"the longest prompt has {longest} tokens; give --max-prompt-tokens {longest}"
        )
    if 0 < limit.model.max_positions <= longest:
        raise ConfigError(
            f"model.max_positions = {limit.model.max_positions} of {path} is too few: the longest "
            f"prompt has {longest} tokens; choose another model, or problems that fit"
        )
    return scorer, found


def as_response(scorer: Run, writer: Run, problem: Problem, ids: Sequence[int]) -> tuple[int, ...]:
    """The response of `writer` in the tokens of `scorer`, whose prompts it must fit.

    The tokens stay as they are if both have one tokenizer and one way to ask; if not, the code is
    written as a response of the scorer's and encoded. Between two chat styles it is the code alone,
    which writes the whole function: the problem's own beginning was never part of a response.
    """
    if (
        _same_vocabulary(scorer.tokenizer, writer.tokenizer)
        and scorer.config.prompts == writer.config.prompts
    ):
        return tuple(ids)
    styles = (scorer.config.prompts.style, writer.config.prompts.style)
    if "completion" in styles:
        program = writer.program(problem, ids)
    else:
        program = writer.prompts.code(b"".join(writer.tokenizer.pieces(ids)))
    text = scorer.prompts.response(problem, program)
    if scorer.config.prompts.plan:
        written = b"".join(writer.tokenizer.pieces(ids))
        plan = written[slice(*writer.prompts.plan_span(written))]
        text = plan.decode("utf-8", errors="replace") + text
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


def _fits(scorer: Run, problem: Problem, ids: Sequence[int]) -> bool:
    room = scorer.config.model.max_positions
    return len(ids) <= scorer.config.max_completion_tokens and (
        room == 0 or len(scorer.prompt_ids(problem)) + len(ids) <= room
    )


def program_scores(
    scorer: Run,
    params: Any,
    writer: Run,
    problems: Sequence[Problem],
    attempts: Sequence[Sequence[Attempt]],
) -> dict[str, np.ndarray]:
    """One score `[N, S]` per response by each rule: of its last line, the mean, its worst line.

    A response that exceeds the scorer's max_completion_tokens or positions is not read, and has the
    score of one without code.
    """
    asked = [problem for problem, row in zip(problems, attempts, strict=True) for _ in row]
    responses = [
        as_response(scorer, writer, problem, attempt.ids)
        for problem, row in zip(problems, attempts, strict=True)
        for attempt in row
    ]
    fits = [_fits(scorer, p, ids) for p, ids in zip(asked, responses, strict=True)]
    if not all(fits):
        limit = scorer.config.max_completion_tokens
        say(
            f"{fits.count(False)} of {len(fits)} answers are too long for {scorer.workdir} "
            f"(max_completion_tokens = {limit}, model.max_positions = "
            f"{scorer.config.model.max_positions}) and have the score {WORST}"
        )
    responses = [ids if fit else () for ids, fit in zip(responses, fits, strict=True)]
    steps = [step_ends(scorer.lines(ids)) for ids in responses]
    # A plan alone is no code: nothing of it is read.
    ends = [end if (kind != LineKind.PLAN).any() else end[:0] for end, kind in steps]
    scores = step_scores(scorer, params, asked, list(zip(responses, ends, strict=True)))
    rules = {"last": lambda row: row[-1], "mean": np.mean, "min": np.min}
    return {
        name: np.array([rule(row) if len(row) else WORST for row in scores]).reshape(
            len(problems), -1
        )
        for name, rule in rules.items()
    }
