"""google-tunix 0.1.7: `python with_tunix.py ppo|sampler ROUNDS`.

python3.12 -m venv ENV && ENV/bin/pip install jax==0.10.2 google-tunix==0.1.7
"""

import json
import os
import resource
import sys
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.generate import sampler as sampling
from tunix.models.qwen2 import model as qwen2
from tunix.rl import rl_cluster, utils
from tunix.rl.ppo import ppo_learner
from tunix.rl.rollout import base_rollout

VOCAB, WIDTH, LAYERS, HEADS, KV_HEADS, MLP = 1024, 256, 4, 4, 2, 1024
PAD, NEVER, ENDS = VOCAB - 1, VOCAB + 7, list(range(1, 21))


class Numbers:
    """A tokenizer whose text is the ids themselves."""

    def encode(self, text, **_):
        return [int(word) for word in text.split()]

    def decode(self, ids, **_):
        return " ".join(str(int(i)) for i in ids)

    def bos_id(self):
        return 0

    def eos_id(self):
        return NEVER

    def pad_id(self):
        return PAD


def say(**fields):
    print(json.dumps(fields), flush=True)


def cpu_s():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def prompts(n, tokens, seed):
    rng = np.random.default_rng(seed)
    return [" ".join(map(str, [0, *rng.integers(1, PAD, tokens - 1)])) for _ in range(n)]


def model():
    config = qwen2.ModelConfig(
        num_layers=LAYERS, vocab_size=VOCAB, embed_dim=WIDTH, hidden_dim=MLP, num_heads=HEADS,
        head_dim=WIDTH // HEADS, num_kv_heads=KV_HEADS, rope_theta=1_000_000, norm_eps=1e-6,
        use_tied_embedding=False, dtype=jnp.float32, param_dtype=jnp.float32,
    )  # fmt: skip
    made = qwen2.Qwen2(config, rngs=nnx.Rngs(params=0))
    # Tunix leaves the MLP at zero, for weights that a checkpoint brings.
    for i, layer in enumerate(made.layers):
        for kernel in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj):
            shape = kernel.kernel.value.shape
            kernel.kernel.value = 0.02 * jax.random.normal(jax.random.key(i), shape)
    made.embedder.input_embedding.value = 0.02 * made.embedder.input_embedding.value
    return made


def ppo(iterations, b=64, p=64, c=128):
    actor = model()
    graph, state = nnx.split(actor)
    reference = nnx.merge(graph, jax.tree.map(jnp.copy, state))
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(1, -1), ("fsdp", "tp"))
    roles = rl_cluster.Role
    cluster = rl_cluster.RLCluster(
        actor=actor,
        critic=utils.create_critic_model(actor),
        reference=reference,
        tokenizer=Numbers(),
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh={
                role: mesh for role in (roles.ACTOR, roles.CRITIC, roles.REFERENCE, roles.ROLLOUT)
            },
            rollout_engine="vanilla",
            training_config=rl_cluster.RLTrainingConfig(
                actor_optimizer=optax.adamw(1e-4),
                critic_optimizer=optax.adamw(1e-4),
                eval_every_n_steps=10**9,
                max_steps=10**6,
            ),
            rollout_config=base_rollout.RolloutConfig(
                max_tokens_to_generate=c, max_prompt_length=p, kv_cache_size=p + c,
                temperature=1.0, top_p=1.0,
            ),
        ),
    )  # fmt: skip
    learner = ppo_learner.PPOLearner(
        rl_cluster=cluster,
        ppo_config=ppo_learner.PPOConfig(num_iterations=1, beta=0.04),
        reward_fns=lambda prompts, completions, **_: [
            float(2 * (i % 2) - 1) for i in range(len(completions))
        ],
    )
    models = cluster.actor_trainer.model, cluster.critic_trainer.model

    def data():
        before = None
        for step in range(iterations + 2):
            jax.block_until_ready([jax.tree.leaves(nnx.state(m)) for m in models])
            now = cpu_s(), time.perf_counter()
            if before is not None:
                say(iteration=step - 1, cpu_s=now[0] - before[0], wall_s=now[1] - before[1])
            before = now
            if step <= iterations:  # iteration 0 compiles
                yield {"prompts": np.array(prompts(b, p, step))}

    learner.train(data())
    say(peak_gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def sampler(rounds):
    made = model()

    def run(name, b, p, c, batches, **settings):
        sample = sampling.Sampler(
            made, Numbers(),
            sampling.CacheConfig(
                cache_size=p + c, num_layers=LAYERS, num_kv_heads=KV_HEADS,
                head_dim=WIDTH // HEADS,
            ),
        )  # fmt: skip
        for round_number in range(rounds + 1):
            start_cpu_s, start_s, tokens = cpu_s(), time.perf_counter(), 0
            for batch in range(batches):
                found = sample(
                    input_strings=prompts(b, p, batch), max_generation_steps=c,
                    max_prompt_length=p, temperature=1.0, top_p=1.0,
                    seed=100 * round_number + batch, return_logprobs=True, **settings,
                )  # fmt: skip
                tokens += sum(len(row) for row in found.tokens)
            if round_number:  # the first compiles
                say(workload=name, tokens=tokens, cpu_s=cpu_s() - start_cpu_s,
                    wall_s=time.perf_counter() - start_s)  # fmt: skip

    run("full length", 64, 64, 128, 1)
    run("ends early", 64, 64, 128, 4, eos_tokens=ENDS)
    run("eight of each prefix", 64, 512, 64, 1)


if __name__ == "__main__":
    {"ppo": ppo, "sampler": sampler}[sys.argv[1]](int(sys.argv[2]))
