"""The options of the RL stages: partial credit, groups without a critic, a critic's warm-up."""

import dataclasses
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from test_stage_loops import CONFIG, ONE, STEPS, State, Traces, run_rl

from prm_jax.checkpoint import Checkpoints
from prm_jax.config import Config, ConfigError, DenseConfig, PPOConfig
from prm_jax.stages import rl as rl_stage
from prm_jax.stages.rollouts import earned as earned_by
from prm_jax.types import CallTests, CheckTests, Problem, StdioTests, Verdict


def with_ppo(**changes) -> Config:
    return dataclasses.replace(CONFIG, ppo=dataclasses.replace(CONFIG.ppo, **changes))


# --------------------------------------------------------------------------------- partial credit


@pytest.mark.parametrize(
    ("outcome", "wanted"), [("pass", [1, 0, 0]), ("partial", [1, -0.3 + 1.3 / 2, -0.6])]
)
def test_a_program_earns_what_the_settings_say_and_passes_or_not(outcome, wanted):
    verdicts = [Verdict("passed", 2, 2), Verdict("failed", 1, 2), Verdict("timeout", 0, 2)]
    passed, earned = earned_by(verdicts, outcome).T
    assert passed.tolist() == [1, 0, 0]
    np.testing.assert_allclose(earned, wanted, rtol=1e-6)
    assert passed.dtype == earned.dtype == np.float32


def test_rollouts_carry_partial_credit(monkeypatch):
    """The programs of this file fail their only test or pass it."""
    seen = run_rl(monkeypatch, Traces(), "rl", with_ppo(outcome="partial"))
    outcomes = np.concatenate([np.asarray(r.outcome) for r in seen["rollouts"]])
    assert set(np.round(outcomes, 3).tolist()) == {np.float32(-0.3).round(3), 1.0}


def asks(tests, outcome="partial", gamma=1.0, **dense) -> SimpleNamespace:
    config = Config(
        max_completion_tokens=11,
        ppo=PPOConfig(outcome=outcome, gamma=gamma),
        dense=DenseConfig(**dense),
    )
    train = [Problem("one", "", CallTests(("a",))), Problem("more", "", tests)]
    return SimpleNamespace(config=config, problems=SimpleNamespace(train=train))


@pytest.mark.parametrize(
    ("tests", "most"),
    [
        (CallTests(("a",) * 5), 5),
        (StdioTests((("", ""),) * 4), 4),
        (CheckTests("def check(f):\n    assert f(1)\n    assert f(2)\n    assert f(3)\n", "f"), 3),
    ],
)
def test_line_rewards_that_outweigh_a_test_are_refused(tests, most):
    gap = 1.3 / most
    below, above = 0.49 * gap, 0.51 * gap
    rl_stage.check_outcome(asks(tests, lam_fail=below, lam_pass=below))
    refused = asks(tests, lam_fail=above, lam_pass=above)
    with pytest.raises(ConfigError, match=f"dense.lam_fail = .* one of {most} tests .* {gap:.3g}"):
        rl_stage.check_outcome(refused)
    for fine in (
        asks(tests, "pass", lam_fail=above, lam_pass=above),
        asks(tests, lam_fail=above, lam_pass=above, enabled=False),
        asks(tests, lam_fail=above, lam_pass=above, allow_rank_inversion=True),
    ):
        rl_stage.check_outcome(fine)


def test_a_discount_may_take_the_last_test_away():
    # 0.99 ** 10 = 0.904 of a pass, and 0.74 for four of five tests: 0.16 are between.
    tests = CallTests(("a",) * 5)
    rl_stage.check_outcome(asks(tests, gamma=0.99, lam_fail=0.08, lam_pass=0.08))
    with pytest.raises(ConfigError, match="0.164 behind"):
        rl_stage.check_outcome(asks(tests, gamma=0.99, lam_fail=0.09, lam_pass=0.08))


# -------------------------------------------------------------------------------- without a critic


@pytest.mark.parametrize("stage", ["rl", "rl_prm"])
def test_groups_have_no_critic(monkeypatch, stage):
    ppo = dataclasses.replace(CONFIG.ppo, advantage="group", samples_per_prompt=2)
    config = dataclasses.replace(CONFIG, ppo=ppo, value_init=False)
    traces = Traces()
    seen = run_rl(monkeypatch, traces, stage, config)
    assert seen["settings"]["experience"]["group_size"] == 2
    assert {critic for _, critic, _ in seen["scored"]} == {None}
    assert {prm for *_, prm in seen["scored"]} == {None if stage == "rl" else "prm/model"}
    assert seen["sampled"][-1] == "sft/policy" + "+" * (STEPS - 1)
    assert traces.events[-1][1]["programs_generated"] == STEPS * 4


def test_a_state_without_a_critic_is_saved_and_restored(tmp_path):
    policy = {"kernel": jnp.arange(4.0)}
    with Checkpoints(tmp_path / "state", keep=1) as states:
        states.save(2, (policy, None))
    with Checkpoints(tmp_path / "state", keep=1) as states:
        restored, none = states.restore(2, ({"kernel": jnp.zeros(4)}, None))
    assert none is None
    np.testing.assert_array_equal(restored["kernel"], policy["kernel"])


# ------------------------------------------------------------------------------- critic warm-up


@pytest.mark.parametrize("stage", ["rl", "rl_prm"])
@pytest.mark.parametrize("resume_at", [0, 4])
def test_a_critic_is_warmed_up_on_the_fixed_policy_before_ppo(monkeypatch, stage, resume_at):
    updates = []

    def make_critic_update(scalar, critic_tx, mesh, shardings, **settings):
        assert mesh is ONE and settings["prompt_tokens"] == 16

        def update(critic, frozen, batch, key):
            updates.append(batch)
            return State(params=f"{critic.params}!"), {}

        return update

    monkeypatch.setattr(rl_stage, "make_critic_update", make_critic_update)
    traces = Traces(resume_at)
    seen = run_rl(monkeypatch, traces, stage, with_ppo(critic_warmup_steps=3))
    start = "scalar on trunk of sft/policy" if stage == "rl" else "recalibrated prm/model"
    critics = [critic for _, critic, _ in seen["scored"]]
    summary = traces.events[-1][1]
    assert summary["programs_generated"] == (STEPS + (stage == "rl_prm") + 3) * 4
    if resume_at:  # PPO has begun: the critic comes from its state
        assert not updates and ("rewind", 0) not in traces.events
        return
    assert updates == ["batch"] * 3
    assert critics[:5] == [start, f"{start}!", f"{start}!!", f"{start}!!!", f"{start}!!!+"]
    assert seen["sampled"][:5] == ["sft/policy"] * 4 + ["sft/policy+"]
    first_log = traces.events.index(("log", 0))
    assert traces.events.index(("rewind", 0)) < first_log
    # What it learns from are Monte-Carlo returns of all the rewards that PPO will see.
    used = seen["settings"]["experience"]
    assert used["gae_lambda"] == 1.0 and used.get("critic_lambda") is None
    assert (used["lam_fail"], used["lam_pass"]) == ((0.3, 0.2) if stage == "rl_prm" else (0, 0))


def test_the_lambdas_reach_the_experience(monkeypatch):
    config = with_ppo(critic_lambda=1.0, lambda_alpha=0.5)
    used = run_rl(monkeypatch, Traces(), "rl", config)["settings"]["experience"]
    assert (used["gae_lambda"], used["critic_lambda"], used["lambda_alpha"]) == (0.9, 1.0, 0.5)
    assert used["group_size"] == 0


def test_the_form_of_the_dense_reward_reaches_the_arm_with_the_prm_alone(monkeypatch):
    dense = DenseConfig(form="min", tau=0.2, error_threshold=-0.1, lam_fail=0.3, lam_pass=0.2)
    config = dataclasses.replace(CONFIG, dense=dense)
    for stage, form, tau in (("rl_prm", "min", 0.2), ("rl", "value", 0.1)):
        used = run_rl(monkeypatch, Traces(), stage, config)["settings"]["experience"]
        assert (used["form"], used["tau"]) == (form, tau)
