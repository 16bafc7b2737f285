"""Stage `sft`: the policy learns to answer from (prompt, solution) pairs.

Reads the problems; leaves `sft/policy` (parameters) for every later stage.
"""

import numpy as np

from prm_jax import hosts
from prm_jax.checkpoint import Checkpoints
from prm_jax.config import ConfigError
from prm_jax.model.lora import split_trainable
from prm_jax.sharding import batch_sharding
from prm_jax.stages.batches import Batches, right_pad
from prm_jax.stages.run import Run, Stream
from prm_jax.stages.supervised import fit
from prm_jax.steps.sft import make_sft_step
from prm_jax.types import TokenBatch


def sft(run: Run) -> None:
    config = run.config.sft
    if config.steps == 0:
        _save_untrained(run)
        return
    rows, prompt_lengths = _encode(run)
    batches = Batches(
        [len(row) for row in rows],
        config.batch_size,
        lambda epoch: run.order(Stream.SFT_ORDER, len(rows), epoch),
        run.config.seed,
    )
    rows_sharding = batch_sharding(run.mesh)

    def batch_at(step: int) -> TokenBatch:
        index = batches[step]
        tokens, valid = right_pad([rows[i] for i in index], run.tokenizer.pad_id)
        is_solution = np.arange(tokens.shape[1]) >= prompt_lengths[index][:, None]
        return TokenBatch(*hosts.place((tokens, valid, valid & is_solution), rows_sharding))

    fit(
        run,
        "sft",
        "policy",
        config,
        run.starting_params(),
        lambda tx, shardings: make_sft_step(
            run.policy, tx, run.mesh, shardings, run.config.mesh.rows_at_once
        ),
        batch_at,
    )
    left_out = len(run.problems.sft) - len(rows)
    run.finish("sft", {"steps": config.steps, "pairs": len(rows), "left_out": left_out})


def _save_untrained(run: Run) -> None:
    """Leaves the policy as it came, for RL to start from."""
    trained, _ = split_trainable(run.starting_params())
    with Checkpoints(run.workdir / "sft/policy") as checkpoints:
        checkpoints.save(1, trained)
    run.finish("sft", {"steps": 0, "pairs": 0, "left_out": 0})


def _encode(run: Run) -> tuple[list[list[int]], np.ndarray]:
    """Token rows of prompt, solution and EOS, and the length of each prompt.

    Prompt and solution are encoded apart, as they are when the policy samples. Pairs that do not
    fit the grid are left out: a solution that is cut off would teach to go on for ever. So are
    those that a stop string cuts, which can't be said in this style.
    """
    tokenizer, config = run.tokenizer, run.config
    rows, prompt_lengths = [], []
    pairs = list(run.problems.sft)
    solutions = tokenizer.encode_batch([run.prompts.solution(problem) for problem in pairs])
    for problem, solution_ids in zip(pairs, solutions, strict=True):
        prompt_ids = run.prompt_ids(problem)
        solution_ids = [*solution_ids, tokenizer.eos_id]
        if (
            len(prompt_ids) <= config.max_prompt_tokens
            and len(solution_ids) <= config.max_completion_tokens
            and run.prompts.keeps_solution(problem)
        ):
            rows.append(prompt_ids + solution_ids)
            prompt_lengths.append(len(prompt_ids))
    if not rows:
        raise ConfigError(
            f"max_prompt_tokens = {config.max_prompt_tokens} and max_completion_tokens = "
            f"{config.max_completion_tokens} leave no SFT pair: raise them"
        )
    return rows, np.array(prompt_lengths)
