"""A PRM that learns while RL runs, from labels of the policy's own responses (`dense.prm_updates`).

The policy that a PRM pays moves to where the PRM is blind, and labels of its responses say where
that is. With dense.source = `prm` it goes on from what stage `prm` left, and every batch is half of
that stage's responses, so that it forgets none of them; with `labels` policy, critic and PRM begin
together.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prm_jax.model.lora import join, split_trainable
from prm_jax.stages.labelled import LabelledResponse
from prm_jax.stages.prm import label_batch, prompts_of, select_responses
from prm_jax.stages.run import Run, Stream
from prm_jax.stages.supervised import optimizer
from prm_jax.steps.prm import make_prm_step
from prm_jax.steps.state import new_state
from prm_jax.types import TrainState


class LearningPRM:
    """The PRM's state and what it has to learn from.

    Its optimizer is that of stage `prm`, over all updates of the run. A batch is drawn from all
    responses that were labelled so far, each as likely as another.
    """

    state: TrainState

    def __init__(self, run: Run, params: Any, before: Sequence[LabelledResponse] = ()):
        """Begins with `params`; `before` are what stage `prm` learned from."""
        self._run = run
        updates = run.config.ppo.steps * run.config.dense.prm_updates
        config = dataclasses.replace(run.config.prm, steps=updates)
        tx = optimizer(config, run.config.model)
        trained, self._frozen = split_trainable(params)
        self.state = new_state(trained, tx, run.mesh)
        self._step = make_prm_step(
            run.scalar, tx, run.mesh, jax.tree.map(lambda x: x.sharding, self.state),
            run.config.mesh.rows_at_once,
        )  # fmt: skip
        self._before = _Pool(run, before)
        self._own = _Pool(run)

    @property
    def params(self) -> Any:
        """What scores the lines now."""
        return join(self.state.params, self._frozen)

    def resume(self, state: TrainState, labelled: Iterable[LabelledResponse]) -> None:
        """Goes on from a checkpoint; `labelled` are all responses that were learned of before."""
        self.state = state
        by_step: dict[int, list[LabelledResponse]] = {}
        for response in labelled:
            by_step.setdefault(response.checkpoint, []).append(response)
        for _, some in sorted(by_step.items()):
            self._own.add(select_responses(self._run, some))

    def learn(self, step: int, labelled: Sequence[LabelledResponse]) -> dict[str, jax.Array]:
        """Takes the labels of a step of PPO in, and makes its updates; their mean metrics.

        It makes no update, and has no metrics, as long as there is nothing to learn from.
        """
        self._own.add(select_responses(self._run, labelled))
        pools = [pool for pool in (self._own, self._before) if pool.responses]
        if not pools:
            return {}
        size = self._run.config.prm.batch_size
        parts = [size // len(pools)] * len(pools)
        parts[0] += size - sum(parts)
        found = []
        for update in range(self._run.config.dense.prm_updates):
            seed = [self._run.config.seed, int(Stream.PRM_ONLINE), step, update]
            rng = np.random.default_rng(seed)
            prompts, responses = [], []
            for pool, n in zip(pools, parts, strict=True):
                for i in rng.integers(len(pool.responses), size=n):
                    prompts.append(pool.prompts[i])
                    responses.append(pool.responses[i])
            batch = label_batch(self._run, prompts, responses)
            self.state, metrics = self._step(self.state, self._frozen, batch)
            found.append(metrics)
        means = jax.tree.map(lambda *x: jnp.mean(jnp.stack(x)), *found)
        return means | {"prm/responses": jnp.float32(len(self._own.responses))}


class _Pool:
    """Responses with their prompts."""

    def __init__(self, run: Run, responses: Sequence[LabelledResponse] = ()):
        self._run = run
        self.prompts: list[list[int]] = []
        self.responses: list[LabelledResponse] = []
        self.add(responses)

    def add(self, responses: Sequence[LabelledResponse]) -> None:
        self.prompts += prompts_of(self._run, responses)
        self.responses += responses
