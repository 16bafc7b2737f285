"""Stage `sft`: the policy learns to answer from (prompt, solution) pairs.

Reads the problems; leaves `sft/policy` (parameters) for every later stage.
"""

import jax
import numpy as np

from prm_jax.checkpoint import Checkpoints
from prm_jax.config import ConfigError
from prm_jax.metrics import Progress
from prm_jax.sharding import batch_sharding, init_params
from prm_jax.stages.batches import Batches, right_pad
from prm_jax.stages.run import Run, Stream
from prm_jax.steps.sft import make_sft_step
from prm_jax.steps.state import adamw_cosine, new_state
from prm_jax.types import TokenBatch


def sft(run: Run) -> None:
    config = run.config.sft
    rows, prompt_lengths = _encode(run)
    batches = Batches(
        [len(row) for row in rows],
        config.batch_size,
        lambda epoch: run.order(Stream.SFT_ORDER, len(rows), epoch),
        run.config.seed,
    )
    tx = adamw_cosine(
        steps=config.steps,
        learning_rate=config.learning_rate,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
    )
    params = init_params(run.policy, run.mesh, run.key(Stream.POLICY_INIT))
    state = new_state(params, tx, run.mesh)
    step_fn = make_sft_step(run.policy, tx, run.mesh, jax.tree.map(lambda x: x.sharding, state))
    rows_sharding = batch_sharding(run.mesh)

    with (
        Checkpoints(run.workdir / "sft/state", keep=1) as states,
        Checkpoints(run.workdir / "sft/policy") as policies,
    ):
        start = states.steps()[-1] if states.steps() else 0
        if start:
            state = states.restore(start, state)
        run.log.rewind("sft", start)
        with Progress(config.steps, "sft", initial=start) as progress:
            for step in range(start, config.steps):
                index = batches[step]
                tokens, valid = right_pad([rows[i] for i in index], run.tokenizer.pad_id)
                is_solution = np.arange(tokens.shape[1]) >= prompt_lengths[index][:, None]
                batch = TokenBatch(
                    *jax.device_put((tokens, valid, valid & is_solution), rows_sharding)
                )
                state, metrics = step_fn(state, batch)
                run.log.log("sft", step, metrics)
                progress.update(1, **metrics)
                if (step + 1) % config.checkpoint_every == 0 and step + 1 < config.steps:
                    run.log.flush()
                    states.save(step + 1, state)
        run.log.flush()
        policies.save(config.steps, state.params)
    left_out = len(run.problems.sft) - len(rows)
    run.finish("sft", {"steps": config.steps, "pairs": len(rows), "left_out": left_out})


def _encode(run: Run) -> tuple[list[list[int]], np.ndarray]:
    """Token rows of prompt, solution and EOS, and the length of each prompt.

    Prompt and solution are encoded apart, as they are when the policy samples. Pairs that do not
    fit the grid are left out: a solution that is cut off would teach to go on for ever.
    """
    tokenizer, config = run.tokenizer, run.config
    rows, prompt_lengths = [], []
    pairs = list(run.problems.sft)
    prompts = tokenizer.encode_batch([prompt for prompt, _ in pairs])
    solutions = tokenizer.encode_batch([solution for _, solution in pairs])
    for prompt_ids, solution_ids in zip(prompts, solutions, strict=True):
        solution_ids = [*solution_ids, tokenizer.eos_id]
        if (
            len(prompt_ids) <= config.max_prompt_tokens
            and len(solution_ids) <= config.max_completion_tokens
        ):
            rows.append(prompt_ids + solution_ids)
            prompt_lengths.append(len(prompt_ids))
    if not rows:
        raise ConfigError(
            f"max_prompt_tokens = {config.max_prompt_tokens} and max_completion_tokens = "
            f"{config.max_completion_tokens} leave no SFT pair: raise them"
        )
    return rows, np.array(prompt_lengths)
