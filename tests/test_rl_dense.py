"""The forms of the dense reward by hand, by a loop, and the bound that protects the outcome."""

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_jax.config import Config, ConfigError, DenseConfig, PPOConfig
from prm_jax.rl.dense import dense_rewards
from prm_jax.rl.rewards import process_reward_bounds, token_rewards

FORMS = ("value", "progress", "min", "good_prefix", "plan")
B, T = 3, 6
jitted = jax.jit(dense_rewards, static_argnames=("form", "length_normalised"))
jitted_rewards = jax.jit(token_rewards, static_argnames=("form", "length_normalised"))


def bits(*rows):
    return jnp.array([[c == "1" for c in row] for row in rows])


def dense(scores, step, lam=(1.0,), **kind):
    return np.asarray(jitted(jnp.array(scores, jnp.float32), step, jnp.array(lam), **kind))


# Two steps pass, the third is the first error, and the PRM is in two minds about the last.
SCORES = [[9, 0.8, 9, 0.4, -0.6, 0.2]]
STEPS = "010111"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (dict(form="value"), [0, 0.2, 0, 0.1, -0.15, 0.05]),  # over four steps
        (dict(form="value", length_normalised=False), [0, 0.8, 0, 0.4, -0.6, 0.2]),
        (dict(form="progress"), [0, 0.8, 0, -0.4, -1.0, 0.8]),  # from 0 to 0.2
        (dict(form="good_prefix"), [0, 0, 0, 1, 0, 0]),
        (dict(form="good_prefix", error_threshold=0.5), [0, 1, 0, 0, 0, 0]),
        (dict(form="good_prefix", error_threshold=-0.7), [0, 0, 0, 0, 0, 1]),  # no error found
        (dict(form="good_prefix", error_threshold=0.9), [0, 0, 0, 0, 0, 0]),  # the first step
        (dict(form="plan"), [0, 0.8, 0, -0.4 / 3, -1.4 / 3, -0.6 / 3]),  # 0.8 is the plan's
    ],
)
def test_each_form_by_hand(kind, expected):
    np.testing.assert_allclose(dense(SCORES, bits(STEPS), **kind), [expected], atol=1e-6)
    doubled = dense(SCORES, bits(STEPS), lam=[2.0], **kind)
    np.testing.assert_allclose(doubled, 2 * np.array([expected]), atol=1e-6)


def test_min_form_by_hand():
    # tau = 1 / log 2: weights 2^(-R) over their sum. Scores 1, 0, -1: weights 1/7, 2/7, 4/7.
    found = dense([[1, 0, -1]], bits("111"), form="min", tau=1 / np.log(2))
    np.testing.assert_allclose(found, [[1 / 7, 0, -4 / 7]], atol=1e-6)


def loop(scores, step, lam, form, tau, threshold):
    """Row by row, from the definition."""
    rewards = np.zeros(step.shape)
    for b in range(len(step)):
        ends = np.flatnonzero(step[b])
        r = np.clip(scores[b, ends].astype(np.float64), -1, 1)
        if not len(r):
            continue
        match form:
            case "value":
                rewards[b, ends] = r / len(r)
            case "progress":
                rewards[b, ends] = [x - y for x, y in zip(r, [0.0, *r[:-1]], strict=True)]
            case "min":
                weight = np.exp(-(r - r.min()) / tau)
                rewards[b, ends] = weight / weight.sum() * r
            case "good_prefix":
                n_good = next((m for m, x in enumerate(r) if x < threshold), len(r))
                if n_good:
                    rewards[b, ends[n_good - 1]] = 1
            case "plan":
                rewards[b, ends[0]] = r[0]
                rewards[b, ends[1:]] = (r[1:] - r[0]) / max(len(r) - 1, 1)
    return rewards * lam[:, None]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_matches_a_loop(form):
    rng = np.random.default_rng(0)
    scores = 1.5 * rng.normal(size=(64, 9)).astype(np.float32)
    step = rng.random((64, 9)) < rng.random((64, 1))
    assert (~step.any(axis=1)).any()  # rows without a step as well
    lam = rng.random(64).astype(np.float32)
    found = dense(scores, jnp.array(step), lam, form=form, tau=0.3, error_threshold=-0.2)
    np.testing.assert_allclose(found, loop(scores, step, lam, form, 0.3, -0.2), atol=1e-6)


def test_progress_telescopes_to_the_last_score_however_many_lines_there_are():
    rng = np.random.default_rng(1)
    scores = rng.uniform(-1, 1, (32, 12))
    step = rng.random((32, 12)) < 0.5
    step[:, -1] = True
    total = dense(scores, jnp.array(step), np.ones(32, np.float32), form="progress").sum(axis=1)
    np.testing.assert_allclose(total, scores[:, -1], atol=1e-5)


def test_min_form_pays_about_the_worst_score_and_exactly_so_in_the_limit():
    rng = np.random.default_rng(2)
    scores = rng.uniform(-1, 1, (32, 8))
    every = jnp.ones((32, 8), bool)
    ones = np.ones(32, np.float32)
    for tau, tolerance in ((0.1, 0.3), (1e-3, 1e-4), (1e-30, 1e-6)):
        total = dense(scores, every, ones, form="min", tau=tau).sum(axis=1)
        assert (total >= scores.min(axis=1) - 1e-6).all()
        np.testing.assert_allclose(total, scores.min(axis=1), atol=tolerance)


def test_lines_of_a_lost_plan_earn_nothing_and_a_response_earns_the_mean_of_its_lines():
    every = jnp.ones((2, 4), bool)
    found = dense([[-1, -1, -1, -1], [1, 1, -1, -1]], every, np.ones(2, np.float32), form="plan")
    np.testing.assert_allclose(found, [[-1, 0, 0, 0], [1, 0, -2 / 3, -2 / 3]], atol=1e-6)
    scores = np.random.default_rng(3).uniform(-1, 1, (32, 8))
    step = np.random.default_rng(4).random((32, 8)) < 0.6
    total = dense(scores, jnp.array(step), np.ones(32, np.float32), form="plan").sum(axis=1)
    for row in np.flatnonzero(step.sum(axis=1) > 1):
        lines = scores[row][step[row]][1:]
        np.testing.assert_allclose(total[row], lines.mean(), atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_more_lines_of_the_same_score_earn_nothing(form):
    totals = [
        dense(np.full((1, T), 0.5), jnp.arange(T)[None] < n, form=form).sum() for n in (1, 2, 5)
    ]
    np.testing.assert_allclose(totals, totals[0], rtol=1e-5)
    assert totals[0] > 0


def test_without_the_length_more_lines_do_earn_more():
    totals = [
        dense(np.full((1, T), 0.5), jnp.arange(T)[None] < n, length_normalised=False).sum()
        for n in (1, 2, 5)
    ]
    np.testing.assert_allclose(totals, [0.5, 1.0, 2.5], rtol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_not_a_step_is_not_read_and_a_nan_at_a_step_is_not_hidden(form):
    scores = np.array([[np.nan, 0.5, np.inf, -0.5], [0.5, np.nan, 0.5, 0.5]], np.float32)
    found = dense(scores, bits("0101", "1111"), [1.0, 1.0], form=form)
    assert np.isfinite(found[0]).all() and found[0].any()
    assert np.isnan(found[1]).any()


# ------------------------------------------------------------------------------------ the bound


@pytest.mark.parametrize("form", FORMS)
@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    scores=hnp.arrays(np.float32, (B, T), elements=st.floats(width=32, allow_nan=False)),
    line_end=hnp.arrays(bool, (B, T)),
    length=hnp.arrays(np.int32, B, elements=st.integers(1, T)),
    lam_fail=st.floats(0, 0.999),
    share=st.floats(0, 1),
)
def test_no_failing_response_outranks_a_passing_one(
    form, scores, line_end, length, lam_fail, share
):
    # Weights just inside what the settings accept, for each form.
    lam_pass = share if form == "good_prefix" else (0.999 - lam_fail) * share
    DenseConfig(form=form, lam_fail=lam_fail, lam_pass=lam_pass)
    mask = np.arange(T) < length[:, None]
    totals = {}
    for outcome in (0.0, 1.0):
        rewards, _ = jitted_rewards(
            jnp.full(B, outcome), jnp.array(scores), jnp.array(line_end), jnp.array(mask),
            jnp.zeros((B, T)), jnp.zeros((B, T)),
            lam_fail=lam_fail, lam_pass=lam_pass, kl_coef=0.0, form=form,
        )  # fmt: skip
        totals[outcome] = np.asarray(rewards).sum(axis=1, dtype=np.float64)
    assert totals[0.0].max() < totals[1.0].min()
    bounds = process_reward_bounds(lam_fail=lam_fail, lam_pass=lam_pass, form=form)
    assert (totals[0.0] >= bounds.fail_low - 1e-6).all()
    assert (totals[0.0] <= bounds.fail_high + 1e-6).all()
    assert (totals[1.0] >= bounds.pass_low - 1e-6).all()
    assert (totals[1.0] <= bounds.pass_high + 1e-6).all()


@pytest.mark.parametrize(
    "kind", [*(dict(form=form) for form in FORMS), dict(form="value", length_normalised=False)]
)
def test_the_bounds_are_reached_and_the_settings_state_the_same(kind):
    """Scores of +1 in a failing response and of -1 in a passing one: the worst PRM there is."""
    mask = bits("1111", "1111")
    extreme = jnp.array([[jnp.inf] * 4, [-jnp.inf] * 4])
    rewards, _ = jitted_rewards(
        jnp.array([0.0, 1.0]), extreme, mask, mask, jnp.zeros((2, 4)), jnp.zeros((2, 4)),
        lam_fail=0.6, lam_pass=0.5, kl_coef=0.0, **kind,
    )  # fmt: skip
    bounds = process_reward_bounds(lam_fail=0.6, lam_pass=0.5, max_steps=4, **kind)
    failing, passing = np.asarray(rewards.sum(axis=1))
    np.testing.assert_allclose(failing, bounds.fail_high, atol=1e-6)
    np.testing.assert_allclose(passing, bounds.pass_low, atol=1e-6)
    config = DenseConfig(lam_fail=0.6, lam_pass=0.5, allow_rank_inversion=True, **kind)
    favour = config.advantage_of_failing(max_lines=4)
    np.testing.assert_allclose(favour, bounds.fail_high - bounds.pass_low + 1, atol=1e-6)
    assert (failing > passing) == (favour > 1)


def test_a_weight_of_0_is_a_gate():
    mask = bits("11", "11")
    scores = jnp.full((2, 2), -0.5)
    zeros = jnp.zeros((2, 2))
    totals = {}
    for gate, lams in {"fail": (0.4, 0.0), "pass": (0.0, 0.3), "both": (0.4, 0.3)}.items():
        rewards, _ = token_rewards(
            jnp.array([0.0, 1.0]), scores, mask, mask, zeros, zeros,
            lam_fail=lams[0], lam_pass=lams[1], kl_coef=0.0,
        )  # fmt: skip
        totals[gate] = np.asarray(rewards.sum(axis=1))
    np.testing.assert_allclose(totals["fail"], [-0.2, 1], atol=1e-6)
    np.testing.assert_allclose(totals["pass"], [0, 0.85], atol=1e-6)
    np.testing.assert_allclose(totals["both"], [-0.2, 0.85], atol=1e-6)


# --------------------------------------------------------------------------------- the settings


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: DenseConfig(form="sum"), "dense.form = 'sum'"),  # type: ignore[arg-type]
        (lambda: DenseConfig(tau=0.0), "dense.tau = 0.0"),
        (lambda: DenseConfig(error_threshold=-1.0), "dense.error_threshold = -1.0"),
        (lambda: DenseConfig(form="min", length_normalised=False), "dense.length_normalised"),
        (lambda: DenseConfig(form="progress", lam_fail=0.5, lam_pass=0.5), "rank_inversion"),
        (lambda: DenseConfig(form="min", lam_fail=0.5, lam_pass=0.5), "rank_inversion"),
        (lambda: DenseConfig(form="good_prefix", lam_fail=1.0, lam_pass=0.0), "rank_inversion"),
        # 68 tokens may be 68 lines, of 0.45 + 0.45 each.
        (lambda: Config(dense=DenseConfig(length_normalised=False)), "by 61.2"),
        (lambda: Config(ppo=PPOConfig(gamma=0.99)), "ppo.gamma = 0.99"),
    ],
)  # fmt: skip
def test_settings_that_break_the_bound_are_refused(make, said):
    with pytest.raises(ConfigError, match="is not allowed|are not allowed") as error:
        make()
    assert said in str(error.value)


def test_settings_that_keep_the_bound_are_accepted():
    DenseConfig(form="good_prefix", lam_fail=0.5, lam_pass=0.0)  # VPPO's alpha
    DenseConfig(form="good_prefix", lam_fail=0.9, lam_pass=3.0)  # passing ones are only lifted
    per_line = DenseConfig(length_normalised=False, lam_fail=0.007, lam_pass=0.007)
    Config(max_completion_tokens=68, dense=per_line)
    free = DenseConfig(length_normalised=False, allow_rank_inversion=True)
    Config(dense=free)
    Config(dense=DenseConfig(enabled=False, length_normalised=False))
