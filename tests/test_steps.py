"""The compiled steps: held against independent references, on one device and on eight."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

from prm_jax.config import MeshConfig, ModelConfig
from prm_jax.model.heads import PolicyModel, ScalarModel
from prm_jax.model.score import prefix_scores, state_values, token_logps
from prm_jax.sharding import init_params, make_mesh
from prm_jax.steps.experience import make_experience, make_recalibration, make_score
from prm_jax.steps.ppo import make_update
from prm_jax.steps.prm import make_prefix_scores, make_prm_step
from prm_jax.steps.sample import make_sampler
from prm_jax.steps.sft import make_sft_step
from prm_jax.steps.state import adam, adamw_cosine, new_state, scalar_params
from prm_jax.types import LabelBatch, Rollout, Samples, TokenBatch

MODEL = ModelConfig(layers=1, embed=16, heads=4, kv_heads=2, head_dim=8, mlp=32)
VOCAB, EOS, PAD = 24, 1, 0
P, C, B = 6, 10, 16
TEMPERATURE = 0.7  # far enough from 1 that a step which forgets it gives other numbers
POLICY = PolicyModel(MODEL, VOCAB, PAD)
SCALAR = ScalarModel(MODEL, VOCAB)
ONE = make_mesh(MeshConfig(), jax.devices()[:1])
EIGHT = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), jax.devices())
CLIPS = dict(clip_low=0.2, clip_high=0.2, value_clip=0.2)
EPOCHS, MINIBATCHES = 2, 2


def shardings(state):
    return jax.tree.map(lambda x: x.sharding, state)


# Nearly all time goes into compiling, so each compiled program and each model is made once.

NOTHING = ({}, {})  # frozen: all parameters train


@functools.cache
def policy_params(mesh: Mesh) -> dict:
    params = init_params(POLICY, mesh, jax.random.key(0))
    embedding = params["trunk"]["embedding"]
    # Twice a fresh embedding: a policy that has preferences, and is certain of nothing.
    return params | {"trunk": params["trunk"] | {"embedding": 2 * embedding}}


@functools.cache
def critic_and_prm(mesh: Mesh) -> tuple[dict, dict]:
    """Two scalar models that differ in their heads, neither of them 0 everywhere."""
    critic = scalar_params(SCALAR, policy_params(mesh)["trunk"], mesh)

    def with_head(seed: int, bias: float) -> dict:
        kernel = 0.3 * jax.random.normal(jax.random.key(seed), (MODEL.embed,))
        head = {"kernel": kernel, "bias": jnp.float32(bias)}
        return critic | {"head": jax.device_put(head, shardings(critic["head"]))}

    return with_head(2, bias=0.5), with_head(3, bias=-0.1)


@functools.cache
def sampled(mesh: Mesh) -> Samples:
    rng = np.random.default_rng(0)
    valid = np.arange(P)[None, :] >= rng.integers(0, P - 1, B)[:, None]
    tokens = np.where(valid, rng.integers(2, VOCAB, (B, P)), PAD).astype(np.int32)
    budget = np.arange(B, dtype=np.int32) % C + 1  # completions of all lengths
    sampler = make_sampler(
        POLICY,
        mesh,
        completion_tokens=C,
        samples_per_prompt=1,
        temperature=TEMPERATURE,
        eos_ids=(EOS,),
    )
    return sampler(policy_params(mesh), tokens, valid, budget, jax.random.key(5))


@functools.cache
def scored(mesh: Mesh) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What `make_score` says of the samples, with the policy itself as the reference."""
    score = make_score(POLICY, SCALAR, mesh, prompt_tokens=P, temperature=TEMPERATURE)
    with jax.set_mesh(mesh):
        return score(policy_params(mesh), *critic_and_prm(mesh), sampled(mesh))


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
def logits_on_one_device():
    return jax.jit(lambda params, *inputs: POLICY.apply({"params": params}, *inputs))


def log_probs(params, tokens, valid, temperature: float) -> np.ndarray:
    """log softmax(logits / temperature) of each token by NumPy, in float64; column 0 is NaN."""
    logits = logits_on_one_device()(params, jnp.asarray(tokens), jnp.asarray(valid))
    logits = np.asarray(logits, np.float64) / temperature
    logits -= logits.max(axis=-1, keepdims=True)
    table = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    chosen = np.take_along_axis(table[:, :-1], np.asarray(tokens)[:, 1:, None], axis=-1)[..., 0]
    return np.pad(chosen, ((0, 0), (1, 0)), constant_values=np.nan)


@functools.cache
def scalars_on_one_device():
    return jax.jit(
        lambda params, tokens, valid: (
            state_values(SCALAR, params, tokens, valid),
            prefix_scores(SCALAR, params, tokens, valid),
        )
    )


@functools.cache
def run_ppo(mesh: Mesh):
    """One whole iteration: sample, score, experience, update."""
    samples, (ref_logp, values, scores) = sampled(mesh), scored(mesh)
    rollout = rollout_of(samples, ref_logp=ref_logp - 0.1, values=values, prm_scores=scores)
    experience = make_experience(
        mesh, lam_fail=0.4, lam_pass=0.4, kl_coef=0.1, gamma=1.0, gae_lambda=0.95
    )
    tx = adam(learning_rate=1e-2, max_grad_norm=1.0)
    policy = new_state(policy_params(mesh), tx, mesh)
    critic = new_state(critic_and_prm(mesh)[0], tx, mesh)
    update = make_update(
        POLICY, SCALAR, tx, tx, mesh, shardings(policy), shardings(critic), prompt_tokens=P,
        temperature=TEMPERATURE, epochs=EPOCHS, minibatches=MINIBATCHES, **CLIPS,
    )  # fmt: skip
    with jax.set_mesh(mesh):
        batch, reward_metrics = experience(rollout)
        policy, critic, metrics = update(policy, critic, NOTHING, batch, jax.random.key(9))
    return samples, rollout, batch, policy, critic, reward_metrics | metrics


@functools.cache
def sgd_update():
    """One SGD step on the whole batch, on one device: a function of the batch."""
    tx = optax.sgd(0.1)

    def states():
        return new_state(policy_params(ONE), tx, ONE), new_state(critic_and_prm(ONE)[0], tx, ONE)

    update = make_update(
        POLICY, SCALAR, tx, tx, ONE, *map(shardings, states()), prompt_tokens=P,
        temperature=TEMPERATURE, epochs=1, minibatches=1, **CLIPS,
    )  # fmt: skip
    return lambda batch: update(*states(), NOTHING, batch, jax.random.key(0))


@functools.cache
def first_update():
    """A batch of fresh samples, and what the update makes of policy and critic."""
    samples, (ref_logp, values, _) = sampled(ONE), scored(ONE)
    experience = make_experience(
        ONE, lam_fail=0.0, lam_pass=0.0, kl_coef=0.0, gamma=1.0, gae_lambda=1.0
    )
    batch, _ = experience(rollout_of(samples, ref_logp=ref_logp, values=values))
    return batch, *sgd_update()(batch)


def assert_close(a, b, tolerance: float):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=tolerance, atol=tolerance)


# ------------------------------------------------------------------------------------------- PPO


def test_the_samplers_log_probs_are_of_the_distribution_at_its_temperature():
    samples = sampled(ONE)
    mask = np.asarray(samples.completion_mask)
    logp = np.asarray(samples.logp)[mask]
    assert mask.sum() > 4 * B and len(set(mask.sum(axis=1).tolist())) >= C // 2
    # Certain choices have log-prob 0 at every temperature, and would hide all that follows.
    assert np.std(logp) > 0.5 and (logp < -0.05).mean() > 0.5
    wanted = log_probs(policy_params(ONE), samples.tokens, samples.valid, TEMPERATURE)
    np.testing.assert_allclose(logp, wanted[mask], atol=2e-5)
    other = log_probs(policy_params(ONE), samples.tokens, samples.valid, 1.0)
    assert np.abs(logp - other[mask]).mean() > 0.1


def test_scores_of_a_rollout_are_read_from_the_model_they_are_named_for():
    samples, (ref_logp, values, scores) = sampled(ONE), scored(ONE)
    mask = np.asarray(samples.completion_mask)
    # The reference is the policy that sampled: log-probs agree if the temperatures do.
    np.testing.assert_allclose(
        np.asarray(ref_logp)[mask], np.asarray(samples.logp)[mask], atol=2e-5
    )
    critic, prm = critic_and_prm(ONE)
    wanted_values, of_critic = scalars_on_one_device()(critic, samples.tokens, samples.valid)
    _, wanted_scores = scalars_on_one_device()(prm, samples.tokens, samples.valid)
    for found, wanted, other in (
        (values, wanted_values, of_critic),
        (scores, wanted_scores, of_critic),
    ):
        np.testing.assert_allclose(np.asarray(found)[mask], np.asarray(wanted)[mask], atol=1e-5)
        assert np.abs(np.asarray(found) - np.asarray(other))[mask].mean() > 0.1
    by_prm_step = make_prefix_scores(SCALAR, ONE)(prm, samples.tokens, samples.valid)
    assert_close(by_prm_step, wanted_scores, 1e-5)


def test_without_prm_the_scores_are_zero_and_rewards_are_the_outcomes():
    samples = sampled(ONE)
    critic, _ = critic_and_prm(ONE)
    score = make_score(POLICY, SCALAR, ONE, prompt_tokens=P, temperature=TEMPERATURE)
    ref_logp, values, scores = score(policy_params(ONE), critic, None, samples)
    assert not np.asarray(scores).any() and np.asarray(values).any()
    experience = make_experience(
        ONE, lam_fail=0.4, lam_pass=0.4, kl_coef=0.5, gamma=1.0, gae_lambda=1.0
    )
    batch, metrics = experience(
        rollout_of(samples, ref_logp=ref_logp, values=values, prm_scores=scores)
    )
    # The reference is the policy itself, so no KL; returns are the outcomes at every token.
    outcome = np.arange(B) % 2
    wanted = np.where(np.asarray(samples.completion_mask), outcome[:, None], 0)
    np.testing.assert_allclose(np.asarray(batch.returns), wanted, atol=1e-4)
    assert float(metrics["reward/line"]) == 0.0


def test_the_first_ratio_to_the_sampling_policy_is_one():
    """The loss takes the sampler's temperature: else the ratio is wrong before anything moved."""
    _, policy, critic, metrics = first_update()
    assert int(policy.step) == int(critic.step) == 1
    np.testing.assert_allclose(float(metrics["policy/ratio_mean"]), 1.0, atol=1e-5)
    np.testing.assert_allclose(float(metrics["policy/approx_kl"]), 0.0, atol=1e-8)
    assert float(metrics["policy/clip_fraction"]) == float(metrics["value/clip_fraction"]) == 0.0


def test_a_first_update_is_a_step_along_the_policy_gradient_and_the_value_error():
    """At ratio 1 the gradients are those of -mean(A logp) and of mean((V - G)^2) / 2."""
    batch, policy, critic, _ = first_update()
    mask = batch.completion_mask

    def policy_loss(params):
        logp, _ = token_logps(POLICY, params, batch.tokens, batch.valid, temperature=TEMPERATURE)
        return -jnp.where(mask, logp * batch.advantages, 0).sum() / mask.sum()

    def value_loss(params):
        values = state_values(SCALAR, params, batch.tokens, batch.valid)
        return 0.5 * jnp.where(mask, (values - batch.returns) ** 2, 0).sum() / mask.sum()

    @jax.jit
    def stepped(policy, critic):
        grads = jax.grad(policy_loss)(policy), jax.grad(value_loss)(critic)
        return jax.tree.map(lambda p, g: p - 0.1 * g, (policy, critic), grads)

    before = policy_params(ONE), critic_and_prm(ONE)[0]
    wanted = stepped(*before)
    assert_close((policy.params, critic.params), wanted, 1e-5)
    for trees in zip(before, wanted, strict=True):  # far more than the tolerance
        moved = jax.tree.map(lambda p, q: float(jnp.abs(p - q).max()), *trees)
        assert max(jax.tree.leaves(moved)) > 1e-2, moved


def test_the_critic_is_judged_by_the_whole_rollout_before_it_learns():
    _, rollout, batch, *_, metrics = run_ppo(ONE)
    mask = np.asarray(rollout.completion_mask)
    returns, values = np.asarray(batch.returns)[mask], np.asarray(rollout.values)[mask]
    wanted = 1 - np.var(returns - values) / np.var(returns)
    assert abs(wanted) > 0.01
    np.testing.assert_allclose(metrics["value/explained_variance"], wanted, rtol=1e-4)


def test_ratios_and_value_steps_are_taken_from_the_rollouts_own_numbers():
    """Policy and values that moved since the rollout: log pi by log 2, V by 0.5 down."""
    batch, *_ = first_update()
    moved = dataclasses.replace(batch, logp=batch.logp - jnp.log(2.0), values=batch.values + 0.5)
    _, _, metrics = sgd_update()(moved)
    mask = np.asarray(batch.completion_mask)
    advantages, values, returns = (
        np.asarray(x, np.float64)[mask] for x in (batch.advantages, batch.values, batch.returns)
    )
    free, clipped = (values - returns) ** 2, (values + 0.3 - returns) ** 2  # 0.5 less the clip
    assert 0 < (clipped > free).mean() < 1 and 0 < (advantages > 0).mean() < 1
    for name, wanted in {
        "policy/ratio_mean": 2.0,
        "policy/approx_kl": 2 - 1 - np.log(2),
        "policy/clip_fraction": (advantages > 0).mean(),
        "policy/loss": -np.where(advantages > 0, 1.2 * advantages, 2 * advantages).mean(),
        "value/clip_fraction": (clipped > free).mean(),
        "value/loss": 0.5 * np.maximum(free, clipped).mean(),
    }.items():
        np.testing.assert_allclose(float(metrics[name]), wanted, rtol=1e-4, err_msg=name)


def test_epochs_and_minibatches_count_as_steps_and_metrics_are_finite():
    *_, policy, critic, metrics = run_ppo(ONE)
    assert int(policy.step) == int(critic.step) == EPOCHS * MINIBATCHES
    assert all(np.isfinite(float(value)) for value in metrics.values())


def test_a_batch_of_one_row_is_kept():
    one = jax.tree.map(lambda x: x[-1:], sampled(ONE))
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


def test_recalibration_brings_scores_to_the_scale_of_returns():
    """Least squares by NumPy over the completion tokens: the outcome on the PRM read as value."""
    samples = sampled(ONE)
    _, prm = critic_and_prm(ONE)
    mask = np.asarray(samples.completion_mask)
    values, _ = scalars_on_one_device()(prm, samples.tokens, samples.valid)
    values = np.asarray(values)
    row_means = np.where(mask, values, 0).sum(axis=1) / mask.sum(axis=1)
    outcome = (row_means > np.median(row_means)).astype(np.float32)  # so that the slope is positive
    scale, shift = make_recalibration(SCALAR, ONE, gamma=1.0)(
        prm, rollout_of(samples, outcome=jnp.asarray(outcome))
    )
    returns = np.broadcast_to(outcome[:, None], mask.shape)[mask]
    slope, intercept = np.polyfit(values[mask], returns, 1)
    assert slope > 0.1
    np.testing.assert_allclose((float(scale), float(shift)), (slope, intercept), rtol=1e-3)


# --------------------------------------------------------------------------------- SFT and PRM


@functools.cache
def text_batch() -> TokenBatch:
    rng = np.random.default_rng(1)
    valid = np.arange(P + C)[None, :] < rng.integers(P + 2, P + C, B)[:, None]
    tokens = np.where(valid, rng.integers(2, VOCAB, (B, P + C)), PAD).astype(np.int32)
    return TokenBatch(tokens, valid, valid & (np.arange(P + C) >= P))


@functools.cache
def run_sft(mesh: Mesh, moments: str = "float32"):
    """The parameters after three steps, and the losses of ten."""
    tx = adamw_cosine(
        steps=10, learning_rate=1e-2, warmup_steps=2, weight_decay=0.1, max_grad_norm=1.0,
        moments=moments,
    )  # fmt: skip
    state = new_state(policy_params(mesh), tx, mesh)
    step = make_sft_step(POLICY, tx, mesh, shardings(state))
    losses, after_three = [], None
    with jax.set_mesh(mesh):
        for _ in range(10):
            state, metrics = step(state, {}, text_batch())
            losses.append(float(metrics["sft/loss"]))
            if len(losses) == 3:
                after_three = jax.tree.map(np.array, state.params)
    return after_three, losses


def test_sft_loss_is_the_cross_entropy_of_the_solutions_and_falls():
    batch = text_batch()
    terms = -log_probs(policy_params(ONE), batch.tokens, batch.valid, 1.0)[np.asarray(batch.mask)]
    _, losses = run_sft(ONE)
    np.testing.assert_allclose(losses[0], np.mean(terms), rtol=1e-5)
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("make", [adam, functools.partial(adamw_cosine, warmup_steps=1)])
def test_first_moments_alone_may_be_bfloat16(make):
    settings = {"learning_rate": 1e-2, "max_grad_norm": 1.0, "steps": 4}
    if make is not adam:
        settings["weight_decay"] = 0.1
    tx = make(**settings, moments="bfloat16")
    state = new_state(policy_params(ONE), tx, ONE)
    found = jax.tree.leaves(
        state.opt_state, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState)
    )
    (moments,) = (x for x in found if isinstance(x, optax.ScaleByAdamState))
    assert {x.dtype for x in jax.tree.leaves(moments.mu)} == {jnp.dtype("bfloat16")}
    rest = jax.tree.leaves((moments.nu, state.params))
    assert {x.dtype for x in rest} == {jnp.dtype("float32")}
    assert sum(x.nbytes for x in jax.tree.leaves((moments.mu, rest))) == pytest.approx(
        10 / 12 * 3 * sum(x.nbytes for x in jax.tree.leaves(state.params))
    )


def test_training_with_bfloat16_moments_is_nearly_that_with_float32_ones():
    (_, wanted), (_, found) = run_sft(ONE), run_sft(ONE, "bfloat16")
    assert found != wanted  # so they were used
    # The first rate of the warm-up is 0: what moves first is a moment that is stored after it.
    np.testing.assert_array_equal(found[:2], wanted[:2])
    np.testing.assert_allclose(found, wanted, rtol=5e-3)


def test_prm_regresses_on_labels_at_masked_line_ends_only():
    text = text_batch()
    ends = text.mask & (text.tokens % 3 == 0)
    labels = np.where(text.tokens % 2 == 0, 1.0, -1.0).astype(np.float32)
    batch = LabelBatch(text.tokens, text.valid, ends.astype(np.float32), labels)
    n_steps = 100
    tx = adamw_cosine(
        steps=n_steps, learning_rate=1e-2, warmup_steps=2, weight_decay=0.0, max_grad_norm=1.0
    )
    trunk = policy_params(ONE)["trunk"]
    state = new_state(scalar_params(SCALAR, trunk, ONE), tx, ONE)
    step = make_prm_step(SCALAR, tx, ONE, shardings(state))
    losses = []
    for _ in range(n_steps):
        state, metrics = step(state, {}, batch)
        losses.append(float(metrics["prm/loss"]))
    assert abs(losses[0] - 1.0) < 1e-6  # the head starts at 0 and labels are -1 and +1
    assert losses[-1] < 0.05
    _, scores = scalars_on_one_device()(state.params, *map(jnp.asarray, (text.tokens, text.valid)))
    assert (np.sign(np.asarray(scores)[ends]) == labels[ends]).mean() > 0.95


def test_critic_and_policy_never_share_the_buffers_that_they_start_from():
    params = policy_params(ONE)
    tx = optax.sgd(0.1)
    critic_params = scalar_params(SCALAR, params["trunk"], ONE)
    trees = (
        params,
        {"head": critic_params["head"]},  # its trunk is the policy's own until it has a state
        new_state(params, tx, ONE).params,
        new_state(critic_params, tx, ONE).params,
    )
    pointers = [x.unsafe_buffer_pointer() for tree in trees for x in jax.tree.leaves(tree)]
    assert len(set(pointers)) == len(pointers)


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
    (params_one, losses_one), (params_eight, losses_eight) = run_sft(ONE), run_sft(EIGHT)
    np.testing.assert_allclose(losses_one, losses_eight, rtol=1e-4)
    assert_close(params_one, params_eight, 1e-3)


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
