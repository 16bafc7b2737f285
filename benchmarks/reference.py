"""The workload that all harnesses share, and ours on it.

A model of Qwen2's kind with 4,460,800 float32 parameters: vocabulary 1,024, width 256, 4 layers of
4 heads of 64 with 2 key heads, an MLP of 1,024, untied. 64 prompts of 64 tokens, 128 new tokens
each at temperature 1, AdamW at 1e-4, one epoch of one minibatch, a reference and a critic.
"""

import functools
import resource
import time
from collections.abc import Callable
from typing import Any

VOCAB, PAD = 1024, 1023
B, P, C = 64, 64, 128
ROWS_AT_ONCE = 8  # of our forward and backward passes
ENDS = tuple(range(1, 21))  # with 20 ends of 1,024 a random model writes some 50 tokens


def cpu_s() -> float:
    """Of this process, user and system."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def peak_gib() -> float:
    """The most memory that this process had at once."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def timed(function: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What a function returns once all is computed, with its CPU and wall seconds."""
    import jax

    start_s, start_cpu_s = time.perf_counter(), cpu_s()
    out = jax.block_until_ready(function())
    return out, {"cpu_s": cpu_s() - start_cpu_s, "wall_s": time.perf_counter() - start_s}


@functools.cache
def models(vocab: int = VOCAB, embed: int = 256) -> tuple[Any, Any, Any]:
    """The policy, the scalar model and the mesh of one device."""
    import jax

    from prm_jax.config import MeshConfig, ModelConfig
    from prm_jax.model.heads import PolicyModel, ScalarModel
    from prm_jax.sharding import make_mesh

    config = ModelConfig(
        layers=4, embed=embed, heads=4, kv_heads=2, head_dim=embed // 4, mlp=4 * embed,
        qkv_bias=True, tied_embeddings=False,
    )  # fmt: skip
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    return PolicyModel(config, vocab, PAD), ScalarModel(config, vocab), mesh


def prompts(n: int = B, tokens: int = P, seed: int = 0) -> tuple[Any, Any]:
    """`[n, tokens]` random ids, and the mask that says all are valid."""
    import numpy as np

    ids = np.random.default_rng(seed).integers(1, PAD, (n, tokens)).astype(np.int32)
    return ids, np.ones((n, tokens), bool)


class PPO:
    """Our programs for an iteration, as the stage `rl` puts them together, and their state."""

    def __init__(self) -> None:
        import jax
        import jax.numpy as jnp
        import numpy as np

        from prm_jax.sharding import init_params
        from prm_jax.steps.experience import make_experience, make_score
        from prm_jax.steps.ppo import make_update
        from prm_jax.steps.sample import make_sampler
        from prm_jax.steps.state import adam, new_state, scalar_params

        policy, scalar, mesh = models()
        self.reference = init_params(policy, mesh, jax.random.key(0))
        tx = adam(learning_rate=1e-4, max_grad_norm=1.0)
        self.states = [
            new_state(jax.tree.map(jnp.copy, self.reference), tx, mesh),
            new_state(scalar_params(scalar, self.reference["trunk"], mesh), tx, mesh),
        ]
        self.sample = make_sampler(
            policy, mesh, completion_tokens=C, samples_per_prompt=1, temperature=1.0,
            eos_ids=(VOCAB,),
        )  # fmt: skip
        self.score = make_score(
            policy, scalar, mesh, prompt_tokens=P, temperature=1.0, rows_at_once=ROWS_AT_ONCE
        )
        self.experience = make_experience(
            mesh, lam_fail=0.0, lam_pass=0.0, kl_coef=0.04, gamma=1.0, gae_lambda=0.95
        )
        self.update = make_update(
            policy, scalar, tx, tx, mesh,
            *(jax.tree.map(lambda x: x.sharding, state) for state in self.states),
            prompt_tokens=P, epochs=1, minibatches=1, temperature=1.0, clip_low=0.2,
            clip_high=0.2, value_clip=0.2, rows_at_once=ROWS_AT_ONCE,
        )  # fmt: skip
        self._outcome = jnp.asarray(np.arange(B) % 2, jnp.float32)
        self._budget = np.full(B, C, np.int32)

    def iteration(self, step: int) -> dict[str, dict[str, float]]:
        """Seconds of each part."""
        key = self._key(step)
        samples, sampling = timed(
            lambda: self.sample(self.states[0].params, *prompts(seed=step), self._budget, key)
        )
        scores, scoring = timed(
            lambda: self.score(self.reference, self.states[1].params, None, samples)
        )
        (batch, _), estimating = timed(lambda: self.experience(self._rollout(samples, *scores)))
        (*self.states, _), updating = timed(lambda: self.update(*self.states, ({}, {}), batch, key))
        return {"sample": sampling, "score": scoring, "estimate": estimating, "update": updating}

    def flops(self) -> dict[str, float]:
        """Of the matrix products of each part."""
        import jax

        from prm_jax.plan.arithmetic import flops
        from prm_jax.steps.sample import sampling_program

        policy, _, mesh = models()
        sample = sampling_program(
            policy, mesh, completion_tokens=C, samples_per_prompt=1, temperature=1.0,
            eos_ids=(VOCAB,),
        )  # fmt: skip
        key = self._key(0)
        inputs = self.states[0].params, *prompts(), self._budget, key, None, None

        def of(function: Any, *arguments: Any) -> float:
            return flops(jax.make_jaxpr(function)(*arguments).jaxpr, most_trips=C)

        with jax.set_mesh(mesh):
            samples = jax.eval_shape(sample, *inputs)
            scoring = self.reference, self.states[1].params, None, samples
            scores = jax.eval_shape(self.score, *scoring)
            batch, _ = jax.eval_shape(
                lambda *x: self.experience(self._rollout(*x)), samples, *scores
            )
            return {
                "sample": of(sample, *inputs),
                "score": of(self.score, *scoring),
                "update": of(self.update, *self.states, ({}, {}), batch, key),
            }

    def _key(self, step: int) -> Any:
        import jax

        return jax.random.key(step)

    def _rollout(self, samples: Any, ref_logp: Any, values: Any, prm_scores: Any) -> Any:
        import jax.numpy as jnp

        from prm_jax.types import Rollout

        return Rollout(
            tokens=samples.tokens, valid=samples.valid, completion_mask=samples.completion_mask,
            line_end=jnp.zeros(samples.valid.shape, bool), logp=samples.logp, ref_logp=ref_logp,
            values=values, prm_scores=prm_scores, outcome=self._outcome,
        )  # fmt: skip
