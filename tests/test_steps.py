"""The compiled steps: held against eager references, on one device and on eight."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prm_jax.config import MeshConfig, ModelConfig
from prm_jax.model.heads import PolicyModel, ScalarModel
from prm_jax.model.score import prefix_scores, state_values, token_logps
from prm_jax.sharding import init_params, make_mesh
from prm_jax.steps.ppo import make_experience, make_recalibration, make_score, make_update
from prm_jax.steps.prm import make_prefix_scores, make_prm_step
from prm_jax.steps.sample import make_sampler
from prm_jax.steps.sft import make_sft_step
from prm_jax.steps.state import adam, adamw_cosine, new_state, scalar_params
from prm_jax.types import LabelBatch, Rollout, Samples, TokenBatch

MODEL = ModelConfig(layers=2, embed=16, heads=4, kv_heads=2, head_dim=8, mlp=32)
VOCAB, EOS, PAD = 24, 1, 0
P, C, B = 6, 10, 16
POLICY = PolicyModel(MODEL, VOCAB, PAD)
SCALAR = ScalarModel(MODEL, VOCAB)
ONE = make_mesh(MeshConfig(), jax.devices()[:1])
EIGHT = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), jax.devices())
PPO = dict(epochs=2, minibatches=2, clip_low=0.2, clip_high=0.2, value_clip=0.2)


def shardings(state):
    return jax.tree.map(lambda x: x.sharding, state)


def prompts() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    valid = np.arange(P)[None, :] >= rng.integers(0, P - 1, B)[:, None]
    return np.where(valid, rng.integers(2, VOCAB, (B, P)), PAD).astype(np.int32), valid


@functools.cache
def sampled(mesh, temperature: float) -> tuple[dict, Samples]:
    params = init_params(POLICY, mesh, jax.random.key(0))
    trunk = params["trunk"]
    trunk["embedding"] = 40 * trunk["embedding"]  # a policy that has preferences
    sampler = make_sampler(
        POLICY, mesh, completion_tokens=C, samples_per_prompt=1, temperature=temperature, eos_id=EOS
    )
    budget = np.full(B, C, np.int32)
    return params, sampler(params, *prompts(), budget, jax.random.key(5))


def rollout_of(samples: Samples, **changes) -> Rollout:
    zeros = jnp.zeros_like(samples.logp)
    rollout = Rollout(
        **{field.name: getattr(samples, field.name) for field in dataclasses.fields(Samples)}
        | dict(
            line_end=samples.completion_mask & (samples.tokens % 5 == 0),
            ref_logp=samples.logp,
            values=zeros,
            prm_scores=zeros,
            outcome=(jnp.arange(B) % 2).astype(jnp.float32),
        )
        | changes
    )
    return jax.device_put(rollout, samples.tokens.sharding)


@functools.cache
def run_ppo(mesh, temperature: float = 0.7):
    """One whole iteration: sample, score, experience, update."""
    params, samples = sampled(mesh, temperature)
    policy = new_state(params, adam(learning_rate=1e-2, max_grad_norm=1.0), mesh)
    critic_params = scalar_params(SCALAR, params["trunk"], mesh, jax.random.key(1))
    critic = new_state(critic_params, adam(learning_rate=1e-2, max_grad_norm=1.0), mesh)
    prm = init_params(SCALAR, mesh, jax.random.key(2))
    prm["head"]["kernel"] = jnp.ones_like(prm["head"]["kernel"])
    score = make_score(POLICY, SCALAR, mesh, prompt_tokens=P, temperature=temperature)
    with jax.set_mesh(mesh):
        ref_logp, values, scores = score(params, critic.params, prm, samples)
        rollout = rollout_of(samples, ref_logp=ref_logp, values=values, prm_scores=scores)
        experience = make_experience(
            mesh, lam_fail=0.4, lam_pass=0.4, kl_coef=0.1, gamma=1.0, gae_lambda=0.95
        )
        batch, reward_metrics = experience(rollout)
        update = make_update(
            POLICY, SCALAR, adam(learning_rate=1e-2, max_grad_norm=1.0),
            adam(learning_rate=1e-2, max_grad_norm=1.0), mesh, shardings(policy), shardings(critic),
            prompt_tokens=P, temperature=temperature, **PPO,
        )  # fmt: skip
        policy, critic, metrics = update(policy, critic, batch, jax.random.key(9))
    return samples, rollout, batch, policy, critic, reward_metrics | metrics


def assert_close(a, b, tolerance: float):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=tolerance, atol=tolerance)


# ------------------------------------------------------------------------------------------- PPO


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_the_samplers_log_probs_are_the_losss_at_any_temperature(temperature):
    """The loss must take the sampling temperature, or the first ratio is not 1."""
    params, samples = sampled(ONE, temperature)
    logp, _ = token_logps(
        POLICY, params, samples.tokens, samples.valid, temperature=temperature, prompt_tokens=P
    )
    mask = np.asarray(samples.completion_mask)
    assert mask.sum() > B
    np.testing.assert_allclose(np.asarray(logp)[mask], np.asarray(samples.logp)[mask], atol=2e-5)
    if temperature != 1.0:
        other, _ = token_logps(POLICY, params, samples.tokens, samples.valid, temperature=1.0)
        assert np.abs(np.asarray(other) - np.asarray(samples.logp))[mask].max() > 0.1


def test_update_on_one_minibatch_is_the_eager_gradient_step():
    """One epoch of one minibatch at ratio 1: loss gradients are -mean(A grad logp) and mean(V - G)."""
    params, samples = sampled(ONE, 1.0)
    rollout = rollout_of(samples)
    experience = make_experience(
        ONE, lam_fail=0.0, lam_pass=0.0, kl_coef=0.0, gamma=1.0, gae_lambda=1.0
    )
    batch, _ = experience(rollout)
    tx = optax.sgd(0.1)
    critic_params = scalar_params(SCALAR, params["trunk"], ONE, jax.random.key(1))
    policy, critic = new_state(params, tx, ONE), new_state(critic_params, tx, ONE)
    mask = samples.completion_mask

    def policy_loss(p):
        logp, _ = token_logps(POLICY, p, samples.tokens, samples.valid, temperature=1.0)
        return -(jnp.where(mask, logp * batch.advantages, 0)).sum() / mask.sum()

    def value_loss(p):
        values = state_values(SCALAR, p, samples.tokens, samples.valid)
        return 0.5 * jnp.where(mask, (values - batch.returns) ** 2, 0).sum() / mask.sum()

    wanted_policy = jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(policy_loss)(params))
    wanted_critic = jax.tree.map(
        lambda p, g: p - 0.1 * g, critic_params, jax.grad(value_loss)(critic_params)
    )
    update = make_update(
        POLICY, SCALAR, tx, tx, ONE, shardings(policy), shardings(critic), prompt_tokens=P,
        temperature=1.0, **PPO | dict(epochs=1, minibatches=1),
    )  # fmt: skip
    policy, critic, metrics = update(policy, critic, batch, jax.random.key(0))
    assert_close(policy.params, wanted_policy, 1e-5)
    assert_close(critic.params, wanted_critic, 1e-5)
    assert float(metrics["policy/clip_fraction"]) == 0.0
    assert int(policy.step) == 1


def test_epochs_and_minibatches_count_as_steps_and_metrics_are_finite():
    *_, policy, critic, metrics = run_ppo(ONE)
    assert int(policy.step) == int(critic.step) == PPO["epochs"] * PPO["minibatches"]
    assert all(np.isfinite(float(value)) for value in metrics.values())


def test_without_prm_the_scores_are_zero_and_rewards_are_the_outcomes():
    params, samples = sampled(ONE, 1.0)
    critic = scalar_params(SCALAR, params["trunk"], ONE, jax.random.key(1))
    score = make_score(POLICY, SCALAR, ONE, prompt_tokens=P, temperature=1.0)
    ref_logp, values, scores = score(params, critic, None, samples)
    assert not np.asarray(scores).any()
    experience = make_experience(
        ONE, lam_fail=0.4, lam_pass=0.4, kl_coef=0.5, gamma=1.0, gae_lambda=1.0
    )
    batch, metrics = experience(rollout_of(samples, ref_logp=ref_logp, prm_scores=scores))
    # The reference is the policy itself, so no KL; returns are the outcomes at every token.
    outcome = np.arange(B) % 2
    wanted = np.where(np.asarray(samples.completion_mask), outcome[:, None], 0)
    np.testing.assert_allclose(np.asarray(batch.returns), wanted, atol=1e-4)
    assert float(metrics["reward/line"]) == 0.0


def test_a_batch_of_one_row_is_kept():
    _, samples = sampled(ONE, 1.0)
    one = jax.tree.map(lambda x: x[:1], samples)
    zeros = jnp.zeros_like(one.logp)
    rollout = Rollout(
        tokens=one.tokens, valid=one.valid, completion_mask=one.completion_mask,
        line_end=one.completion_mask, logp=one.logp, ref_logp=one.logp, values=zeros,
        prm_scores=zeros, outcome=jnp.ones(1),
    )  # fmt: skip
    experience = make_experience(
        ONE, lam_fail=0.0, lam_pass=0.0, kl_coef=0.0, gamma=1.0, gae_lambda=1.0
    )
    batch, metrics = experience(rollout)
    assert float(metrics["reward/outcome"]) == 1.0
    assert np.asarray(batch.returns).sum() == np.asarray(one.completion_mask).sum()


# --------------------------------------------------------------------------------- SFT and PRM


def text_batch() -> TokenBatch:
    rng = np.random.default_rng(1)
    valid = np.arange(P + C)[None, :] < rng.integers(P + 2, P + C, B)[:, None]
    tokens = np.where(valid, rng.integers(2, VOCAB, (B, P + C)), PAD).astype(np.int32)
    return TokenBatch(tokens, valid, valid & (np.arange(P + C) >= P))


def run_sft(mesh, steps: int = 3):
    tx = adamw_cosine(
        steps=10, learning_rate=1e-2, warmup_steps=2, weight_decay=0.1, max_grad_norm=1.0
    )
    state = new_state(init_params(POLICY, mesh, jax.random.key(0)), tx, mesh)
    step = make_sft_step(POLICY, tx, mesh, shardings(state))
    losses = []
    with jax.set_mesh(mesh):
        for _ in range(steps):
            state, metrics = step(state, text_batch())
            losses.append(float(metrics["sft/loss"]))
    return state, losses


def label_batch() -> LabelBatch:
    text = text_batch()
    ends = text.mask & (text.tokens % 3 == 0)
    labels = np.where(text.tokens % 2 == 0, 1.0, -1.0).astype(np.float32)
    return LabelBatch(text.tokens, text.valid, ends, labels)


def test_sft_loss_is_the_cross_entropy_of_the_solutions_and_falls():
    batch = text_batch()
    params = init_params(POLICY, ONE, jax.random.key(0))
    logits = np.asarray(POLICY.apply({"params": params}, batch.tokens, batch.valid), np.float64)
    total = np.log(np.exp(logits).sum(axis=-1))
    terms = [
        total[b, t - 1] - logits[b, t - 1, batch.tokens[b, t]]
        for b, t in zip(*np.nonzero(batch.mask), strict=True)
    ]
    _, losses = run_sft(ONE, steps=10)
    np.testing.assert_allclose(losses[0], np.mean(terms), rtol=1e-5)
    assert losses[-1] < losses[0] - 0.1


def test_prm_regresses_on_labels_at_masked_line_ends_only():
    batch = label_batch()
    tx = adamw_cosine(
        steps=300, learning_rate=3e-3, warmup_steps=2, weight_decay=0.0, max_grad_norm=1.0
    )
    trunk = init_params(POLICY, ONE, jax.random.key(0))["trunk"]
    state = new_state(scalar_params(SCALAR, trunk, ONE, jax.random.key(1)), tx, ONE)
    step = make_prm_step(SCALAR, tx, ONE, shardings(state))
    losses = []
    for _ in range(300):
        state, metrics = step(state, batch)
        losses.append(float(metrics["prm/loss"]))
    assert abs(losses[0] - 1.0) < 1e-6  # the head starts at 0 and labels are -1 and +1
    assert losses[-1] < 0.05
    scores = np.asarray(make_prefix_scores(SCALAR, ONE)(state.params, batch.tokens, batch.valid))
    mask = np.asarray(batch.mask)
    assert (np.sign(scores[mask]) == np.asarray(batch.labels)[mask]).mean() > 0.95


def test_critic_and_prm_never_share_the_policys_buffers():
    params, _ = sampled(ONE, 1.0)
    tx = adam(learning_rate=1e-2, max_grad_norm=1.0)
    critic = new_state(scalar_params(SCALAR, params["trunk"], ONE, jax.random.key(1)), tx, ONE)
    policy = new_state(params, tx, ONE)

    def pointers(tree):
        return {x.unsafe_buffer_pointer() for x in jax.tree.leaves(tree)}

    assert not pointers(policy.params) & pointers(params)
    assert not pointers(critic.params) & pointers(params)
    assert not pointers(critic.params) & pointers(policy.params)


def test_recalibration_brings_scores_to_the_scale_of_returns():
    """Least squares by NumPy, over the completion tokens, of the outcome on the PRM read as value."""
    _, samples = sampled(ONE, 1.0)
    prm = init_params(SCALAR, ONE, jax.random.key(2))
    prm["head"]["kernel"] = jax.random.normal(jax.random.key(3), prm["head"]["kernel"].shape)
    outcome = (jnp.arange(B) < 5).astype(jnp.float32)
    rollout = rollout_of(samples, outcome=outcome)
    scale, shift = make_recalibration(SCALAR, ONE, gamma=1.0)(prm, rollout)
    mask = np.asarray(samples.completion_mask)
    scores = np.asarray(state_values(SCALAR, prm, samples.tokens, samples.valid))[mask]
    returns = np.broadcast_to(np.asarray(outcome)[:, None], mask.shape)[mask]
    slope, intercept = np.polyfit(scores, returns, 1)
    wanted = (slope, intercept) if slope > 0 else (0.0, returns.mean())
    np.testing.assert_allclose((float(scale), float(shift)), wanted, rtol=1e-3, atol=1e-4)


# ------------------------------------------------------------------------- one device and eight


def test_ppo_is_the_same_on_one_device_and_on_eight():
    one, eight = run_ppo(ONE), run_ppo(EIGHT)
    np.testing.assert_array_equal(np.asarray(one[0].tokens), np.asarray(eight[0].tokens))
    assert_close(one[2], eight[2], 1e-4)  # the batch: advantages, returns, values
    assert_close(one[3].params, eight[3].params, 1e-3)
    assert_close(one[4].params, eight[4].params, 1e-3)
    for name in one[5]:
        np.testing.assert_allclose(float(one[5][name]), float(eight[5][name]), rtol=1e-3, atol=1e-4)


def test_sft_is_the_same_on_one_device_and_on_eight():
    (state_one, losses_one), (state_eight, losses_eight) = run_sft(ONE), run_sft(EIGHT)
    np.testing.assert_allclose(losses_one, losses_eight, rtol=1e-5)
    assert_close(state_one.params, state_eight.params, 1e-3)


def test_everything_is_really_sharded():
    samples, rollout, batch, policy, critic, _ = run_ppo(EIGHT)
    for array in jax.tree.leaves((samples, rollout.line_end, batch)):
        assert array.sharding.shard_shape(array.shape)[0] == B // 4, array.sharding
    for state in (policy, critic):
        moments = state.opt_state[1][0]
        for tree in (state.params, moments.mu, moments.nu):
            for path, array in jax.tree_util.tree_leaves_with_path(tree):
                name = jax.tree_util.keystr(path)
                if array.ndim >= 2:  # every matrix; norms and biases are whole on each device
                    shard = np.prod(array.sharding.shard_shape(array.shape))
                    assert array.size == 4 * shard, (name, array.sharding)
    embedding = policy.params["trunk"]["embedding"]
    assert embedding.sharding.shard_shape(embedding.shape) == (VOCAB // 2, MODEL.embed // 2)


def test_prefix_scores_of_a_step_read_the_token_that_ends_it():
    batch = label_batch()
    params = init_params(SCALAR, ONE, jax.random.key(2))
    params["head"]["kernel"] = jnp.ones_like(params["head"]["kernel"])
    whole = prefix_scores(SCALAR, params, jnp.array(batch.tokens), jnp.array(batch.valid))
    cut = prefix_scores(
        SCALAR, params, jnp.array(batch.tokens[:, :9]), jnp.array(batch.valid[:, :9])
    )
    np.testing.assert_allclose(np.asarray(whole)[:, :9], np.asarray(cut), atol=1e-5)
