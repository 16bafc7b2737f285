"""The evaluation of an arm, its difference to the baseline, and the choice of programs to show."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_jax.config import Config, EvaluateConfig
from prm_jax.rl.statistics import bootstrap_interval
from prm_jax.stages import evaluate as stage
from prm_jax.stages.attempts import Attempt
from prm_jax.stages.run import Run
from prm_jax.types import CallTests, Problem


def attempts(passes, samples):
    """One row per problem, the first `passes[i]` of its samples pass."""
    return [
        [Attempt((1,), "passed" if i < n else "failed", True, 1) for i in range(samples)]
        for n in passes
    ]


def settings_only(**evaluate):
    return SimpleNamespace(config=Config(evaluate=EvaluateConfig(**evaluate)))


# ------------------------------------------------------------------------------------ difference


def test_the_difference_of_two_problems_by_hand():
    ours, theirs = attempts([3, 4], 4), attempts([1, 3], 4)
    # pass@1 is 3/4, 4/4 against 1/4, 3/4: differences 1/2 and 1/4, with a mean of 3/8.
    # A resample of two is (1/2, 1/2), (1/4, 1/4) or, half of the time, one of each: its mean is
    # 1/2, 1/4, 3/8 in 25, 25 and 50 % of cases. The middle 40 % are 3/8, the middle 95 % all.
    narrow = stage._difference(settings_only(samples=4, confidence=0.4), ours, theirs)
    assert narrow == {"value": 0.375, "low": 0.375, "high": 0.375, "n": 2}
    wide = stage._difference(settings_only(samples=4, confidence=0.95), ours, theirs)
    assert wide == {"value": 0.375, "low": 0.25, "high": 0.5, "n": 2}


def test_pairing_takes_out_how_hard_the_problems_are():
    base = np.tile([0, 2, 5, 7], 10)
    found = stage._difference(settings_only(samples=10), attempts(base + 2, 10), attempts(base, 10))
    # Every problem gains two of ten: nothing is left to vary, though each arm alone does.
    for key in ("value", "low", "high"):
        assert found[key] == pytest.approx(0.2, abs=1e-12)
    low, high = bootstrap_interval(base / 10, resamples=200, confidence=0.95, seed=0)
    assert high - low > 0.1


# ---------------------------------------------------------------------------- the stage as a whole


class ScriptedSampling:
    """Knows how often every arm solves every problem; keeps what it was asked for."""

    made: list[dict] = []
    asked: list[tuple] = []
    passes = {"sft": [0, 2, 5, 9], "rl": [4, 4, 10, 3], "rl_prm": [8, 4, 20, 2]}

    def __init__(self, run, memo, **options):
        ScriptedSampling.made.append(options)

    def run(self, params, starts, key, journal, name, progress):
        ScriptedSampling.asked.append((params, key, name, [s.problem.task_id for s in starts]))
        return attempts(self.passes[name], 20)[: len(starts)]


class BareRun(Run):
    """A run without models: its parameters are their names, its keys what they are for."""

    def restore(self, kind, like, step=None):
        return kind

    def key(self, stream, *numbers):
        return (stream, *numbers)


def evaluated(monkeypatch, workdir, arms, first=0):
    monkeypatch.setattr(stage, "Sampling", ScriptedSampling)
    monkeypatch.setattr(ScriptedSampling, "made", [])
    monkeypatch.setattr(ScriptedSampling, "asked", [])
    problems = [Problem(f"p{i}", "", CallTests(()), horizon=3 + i % 2) for i in range(4)]
    run = BareRun(
        config=Config(evaluate=EvaluateConfig(first=first, samples=20, bootstrap=100)),
        workdir=workdir,
        mesh=None,
        tokenizer=SimpleNamespace(decode=lambda ids: "    return a"),
        prompts=None,
        problems=SimpleNamespace(
            held_out={"test": problems[:3], "test_long": problems[3:]}, validation=[], asked={}
        ),
        sandbox=None,
        log=None,
        policy=None,
        scalar=None,
    )
    (workdir / "versions.json").write_text("{}")
    for arm in arms:
        run.finish(arm, {})
    stage.evaluate(run)
    return json.loads((workdir / "results.json").read_text())["arms"]


def test_arms_share_one_sampler_and_one_stream(monkeypatch, tmp_path):
    evaluated(monkeypatch, tmp_path, ("sft", "rl", "rl_prm"))
    assert ScriptedSampling.made == [{"samples": 20, "temperature": 0.2, "top_p": 1.0}]
    ids = ["p0", "p1", "p2", "p3"]
    assert ScriptedSampling.asked == [
        (f"{arm}/policy", (stage.Stream.EVALUATE,), arm, ids) for arm in ("sft", "rl", "rl_prm")
    ]


def test_the_results_of_every_arm(monkeypatch, tmp_path):
    arms = evaluated(monkeypatch, tmp_path, ("sft", "rl", "rl_prm"))
    assert arms["rl"]["pass_at_1"]["value"] == pytest.approx((4 + 4 + 10) / 60)
    assert arms["rl"]["test_long"]["pass_at_1"]["value"] == pytest.approx(3 / 20)
    assert {h: e["n"] for h, e in arms["rl"]["by_horizon"].items()} == {"3": 2, "4": 1}
    # No k above the 20 samples; at k = 20 the one subset is all of them.
    assert list(arms["rl"]["pass_at_k"]) == ["2", "5", "10", "20"]
    assert arms["sft"]["pass_at_k"]["20"]["value"] == pytest.approx(2 / 3)
    assert arms["rl_prm"]["difference_to_rl"]["value"] == pytest.approx((4 + 0 + 10) / 60)
    assert arms["rl_prm"]["difference_to_rl"]["n"] == 3
    assert arms["sft"]["difference_to_rl"]["value"] == pytest.approx((-4 - 2 - 5) / 60)
    assert "difference_to_rl" not in arms["rl"]


def test_without_the_baseline_there_is_no_difference(monkeypatch, tmp_path):
    arms = evaluated(monkeypatch, tmp_path, ("sft",))
    assert list(arms) == ["sft"] and "difference_to_rl" not in arms["sft"]


# ----------------------------------------------------------------------- which programs are shown


def test_shown_programs_spread_over_horizons_that_come_in_turns():
    horizons = [3 + i % 5 for i in range(100)]  # a stride of 100 / 5 would meet 3 only
    assert [horizons[i] for i in stage._spread(horizons, 5)] == [3, 4, 5, 6, 7]
    assert [horizons[i] for i in stage._spread(horizons, 2)] == [4, 6]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 9), max_size=40), st.integers(1, 8))
def test_shown_programs_are_different_and_follow_the_shares_of_horizons(horizons, wanted):
    chosen = stage._spread(horizons, wanted)
    assert len(set(chosen)) == len(chosen) == min(wanted, len(horizons))
    for horizon in set(horizons):
        share = horizons.count(horizon) * len(chosen) / len(horizons)
        assert abs([horizons[i] for i in chosen].count(horizon) - share) < 1.001


def test_the_first_problems_of_each_set_can_be_enough(monkeypatch, tmp_path):
    arms = evaluated(monkeypatch, tmp_path, ("sft",), first=1)
    assert ScriptedSampling.asked[0][-1] == ["p0", "p3"]
    assert arms["sft"]["pass_at_1"]["n"] == arms["sft"]["test_long"]["pass_at_1"]["n"] == 1
