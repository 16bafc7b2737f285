"""PPO's update of `configs/tiny.py`: few rows at a time, and no columns that none of them fills.

    python -m benchmarks.update

128 responses of about 42 of the 68 tokens that are allowed, as the built-in problems have them, in
two minibatches. All ways compute the same update; they take turns. Three minutes on two cores, most
of them for compiling.
"""

import statistics
from typing import Any
from unittest import mock

from benchmarks import reference, turns

WAYS = {
    "all rows of a minibatch at once": (0, False),
    "16 rows at once": (16, False),
    "8 rows at once": (8, False),
    "16 rows at once, by length and cut": (16, True),
    "8 rows at once, by length and cut": (8, True),
}


def main() -> None:
    parser = turns.parser(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=10, help="times that each is measured (10)")
    options = parser.parse_args()
    ways = {name: _Update(*way) for name, way in WAYS.items()}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            taken[name].append(reference.timed(way.step)[1]["cpu_s"])
    figures = {name: statistics.median(seconds) for name, seconds in taken.items()}
    whole = figures["all rows of a minibatch at once"]
    rows = [[name, seconds, seconds / whole] for name, seconds in figures.items()]
    turns.finish(turns.table(["update", "CPU s", "of the first"], rows), figures, options)


class _Update:
    """An update and the states that it goes on from."""

    def __init__(self, rows_at_once: int, cut: bool) -> None:
        import jax

        from prm_jax.config import Config
        from prm_jax.model.heads import PolicyModel, ScalarModel
        from prm_jax.sharding import init_params, make_mesh
        from prm_jax.steps import columns
        from prm_jax.steps.ppo import make_update
        from prm_jax.steps.state import adam, new_state, scalar_params

        config = Config()
        vocab, ppo = config.tokenizer.vocab_size, config.ppo
        prompt, self._batch = config.max_prompt_tokens, _batch(config)
        policy, scalar = PolicyModel(config.model, vocab, 0), ScalarModel(config.model, vocab)
        mesh = make_mesh(config.mesh, jax.devices()[:1])
        params = init_params(policy, mesh, jax.random.key(0))
        tx = adam(learning_rate=1e-4, max_grad_norm=1.0)
        critic = scalar_params(scalar, params["trunk"], mesh)
        self._states: Any = [new_state(params, tx, mesh), new_state(critic, tx, mesh)]
        self._update = make_update(
            policy, scalar, tx, tx, mesh,
            *(jax.tree.map(lambda x: x.sharding, state) for state in self._states),
            prompt_tokens=prompt, epochs=1, minibatches=ppo.minibatches, temperature=1.0,
            clip_low=0.2, clip_high=0.2, value_clip=0.2, rows_at_once=rows_at_once,
        )  # fmt: skip
        whole = (prompt + config.max_completion_tokens,)
        widths = columns.widths if cut else lambda *_: whole
        with mock.patch.object(columns, "widths", widths):  # read while the update is traced
            jax.block_until_ready(self.step())

    def step(self) -> Any:
        import jax

        *self._states, metrics = self._update(
            *self._states, ({}, {}), self._batch, jax.random.key(0)
        )
        return self._states, metrics


def _batch(config: Any) -> Any:
    import jax.numpy as jnp
    import numpy as np

    from prm_jax.types import PPOBatch

    rng = np.random.default_rng(0)
    rows, prompt = config.ppo.rollouts, config.max_prompt_tokens
    longest = config.max_completion_tokens
    lengths = np.clip(rng.normal(42.5, 7.0, rows).round(), 20, longest)
    lengths[rng.random(rows) < 0.02] = longest  # cut off
    column = np.arange(prompt + longest)[None, :]
    mask = (column >= prompt) & (column < prompt + lengths[:, None])
    prompts = (column < prompt) & (column >= prompt - rng.integers(30, prompt, rows)[:, None])

    def numbers() -> Any:
        return jnp.asarray(rng.normal(size=mask.shape) / 10, jnp.float32)

    return PPOBatch(
        tokens=jnp.asarray(rng.integers(2, config.tokenizer.vocab_size, mask.shape), jnp.int32),
        valid=jnp.asarray(mask | prompts),
        completion_mask=jnp.asarray(mask),
        logp=numbers() - 5,
        values=numbers(),
        advantages=numbers(),
        returns=numbers(),
    )


if __name__ == "__main__":
    main()
