"""PRM and critics against what policies do: what is sampled, and what is made of it."""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from characters import Characters
from made_up_stage import CHAIN, ONE, RIGHT, WRONG_2, problem, run_with

from prm_jax.checkpoint import Checkpoints
from prm_jax.config import Config, EvaluateConfig, ModelConfig, PRMConfig
from prm_jax.model.heads import ScalarModel
from prm_jax.model.score import state_values
from prm_jax.rl.lines import step_ends
from prm_jax.rl.statistics import value_error
from prm_jax.sharding import init_params
from prm_jax.stages import inspection as stage
from prm_jax.stages.attempts import Attempt
from prm_jax.stages.inspection import COMPLETIONS, RESPONSES, Inspection, against_completions
from prm_jax.stages.prm import scalars_at
from prm_jax.types import Problem

TOKENIZER = Characters()
LINES = "ab\nc\ndef"  # steps end at tokens 1, 2 and, with the EOS, 6


class Sampling:
    """Writes `texts[problem]` from each prompt; completions of a prefix pass as `passes` says."""

    texts: dict[str, list[str]] = {}
    asked: list[tuple] = []

    def __init__(self, run, memo, *, samples, temperature):
        assert temperature == run.config.ppo.temperature
        self.samples = samples

    def run(self, params, starts, key, journal, name):
        starts = list(starts)
        Sampling.asked.append((params, key, name, [s.problem.task_id for s in starts], starts))
        if self.samples == COMPLETIONS:
            return [[attempt("", i < len(s.prefix)) for i in range(COMPLETIONS)] for s in starts]
        return [
            [attempt(text, text in (RIGHT, "pass")) for text in self.texts[s.problem.task_id]]
            for s in starts
        ]


def attempt(text: str, passed: bool) -> Attempt:
    return Attempt(TOKENIZER.response(text), "passed" if passed else "failed", True, 1)


def inspected(
    monkeypatch,
    workdir,
    texts,
    scalars,
    asked=None,
    target="binary",
):
    """An inspection of policies at steps 2 and 4, and the responses that it wants scores of."""
    monkeypatch.setattr(stage, "Sampling", Sampling)
    monkeypatch.setattr(Sampling, "texts", texts)
    monkeypatch.setattr(Sampling, "asked", [])
    monkeypatch.setattr(stage, "scalars_at", scalars)
    monkeypatch.setattr(
        stage, "step_scores", lambda *a: [np.clip(row, -1, 1) for row in scalars(*a)]
    )
    for arm in ("rl", "rl_prm"):
        with Checkpoints(workdir / arm / "policy") as policies:
            for step in (2, 4):
                policies.save(step, {"x": jnp.zeros(1)})
    run = run_with(
        Config(seed=2, evaluate=EvaluateConfig(inspect=2), prm=PRMConfig(target=target)),
        workdir=workdir,
        problems=SimpleNamespace(
            validation=[problem(task) for task in [*texts, "left out"]], asked=asked or {}
        ),
        restore=lambda kind, model, step=None: (kind, step),
        key=lambda *numbers: tuple(int(n) for n in numbers),
        policy=None,
        scalar=None,
    )
    return Inspection(run, None, None)  # type: ignore[arg-type]


def test_each_checkpoint_is_asked_and_the_prm_chooses(monkeypatch, tmp_path):
    texts = {"p": ["pass", "no"] * 4, "q": ["no"] * RESPONSES}

    def scores(run, params, problems: list[Problem], responses):
        """The PRM likes what passes at its last step, and dislikes the first steps of all."""
        assert params == "prm" and len(problems) == 2 * 2 * RESPONSES
        found = []
        for ids, ends in responses:
            assert ends.tolist() == [len(ids) - 1]  # one line, with its EOS
            found.append(np.array([3.0 if TOKENIZER.decode(ids) == "pass" else -0.5]))
        return found

    found = inspected(monkeypatch, tmp_path, texts, scores).prm("rl_prm", "prm")
    assert [(params, name, tasks) for params, _, name, tasks, _ in Sampling.asked] == [
        (("rl_prm/policy", step), f"rl_prm/respond/{step}", ["p", "q"]) for step in (2, 4)
    ]
    assert len({key for _, key, *_ in Sampling.asked}) == 2
    assert found["2"] == found["4"] == {
        "responses": 16,
        "responses_per_problem": 8,
        "pass_rate": 0.25,
        "any_of_n": 0.5,
        "best_of_n": {"lowest": 0.5, "last": 0.5},
        "auc_passed": 1.0,
        "mean_score": {"passing": 1.0, "failing": -0.5},  # clipped, as rewards are
    }  # fmt: skip


def test_the_lowest_score_and_the_last_can_choose_otherwise(monkeypatch, tmp_path):
    texts = {"p": ["a\npass", "b\nno", *[""] * 6], "q": ["b\nno", *[""] * 7]}

    def scores(run, params, problems, responses):
        """Of p, the one that passes ends well after a bad beginning; an empty one has no step."""
        rows = {"a\npass": [-0.9, 0.9], "b\nno": [0.2, 0.1]}
        return [np.array(rows.get(TOKENIZER.decode(ids), [])) for ids, _ in responses]

    inspection = inspected(monkeypatch, tmp_path, texts, scores)
    monkeypatch.setattr(Attempt, "passed", property(lambda a: TOKENIZER.decode(a.ids) == "a\npass"))
    found = inspection.prm("rl_prm", "prm")["2"]
    assert found["best_of_n"] == {"lowest": 0.0, "last": 0.5}
    # Its lowest score is above those of the six without a step and below that of b.
    assert found["auc_passed"] == pytest.approx(6 / 7)
    assert found["mean_score"] == {"passing": pytest.approx(0.0), "failing": pytest.approx(0.15)}


def test_a_prm_that_learned_beside_the_policy_judges_as_it_was_then(monkeypatch, tmp_path):
    texts = {"p": ["pass"] * RESPONSES, "q": ["no"] * RESPONSES}

    def scores(run, params, problems, responses):
        kind, step = params
        assert kind == "rl_prm/prm" and len(problems) == len(responses) == 2 * RESPONSES
        return [np.array([step / 10])] * len(responses)

    found = inspected(monkeypatch, tmp_path, texts, scores).prm("rl_prm", None)
    assert {step: row["mean_score"]["passing"] for step, row in found.items()} == {
        "2": 0.2, "4": 0.4,
    }  # fmt: skip


def test_a_prm_is_held_against_many_completions_of_each_prefix(monkeypatch, tmp_path):
    """Of a response by each checkpoint, where a step ends and something can follow."""
    texts = {"p": [LINES] * RESPONSES, "q": ["# says\n" + LINES] * RESPONSES}
    seen = []

    def scores(run, params, problems, responses):
        assert params == "prm" and [p.task_id for p in problems] == ["p", "q"]
        seen.extend(ends.tolist() for _, ends in responses)
        return [np.array([1.0, -1.0]), np.array([-1.0, 1.0])]

    found = inspected(monkeypatch, tmp_path, texts, scores).calibration("prm")
    (first, _, one, of_p, _), (second, _, two, of_q, _), (whole, _, name, tasks, starts) = (
        Sampling.asked
    )
    assert (first, second, whole) == (("rl/policy", 2), ("rl/policy", 4), ("rl/policy", 4))
    assert (one, two, name) == ("prm/respond/2", "prm/respond/4", "prm/complete")
    assert (of_p, of_q, tasks) == (["p"], ["q"], ["p", "p", "q", "q"])
    # The comment is no step to judge, and nothing can follow the last one.
    assert seen == [[1, 2], [7, 8]]
    assert [len(start.prefix) for start in starts] == [2, 3, 8, 9]
    # As many of 16 pass as the prefix has tokens, and a label has eight completions.
    assert (found["prefixes"], found["completions"], found["k"]) == (4, COMPLETIONS, 8)
    assert found["pass_rate"] == pytest.approx((2 + 3 + 8 + 9) / 64)
    saved = [1 - math.comb(16 - c, 8) / math.comb(16, 8) for c in (2, 3, 8, 9)]
    assert found["saved"] == pytest.approx(sum(saved) / 4)
    # Scores are 1, -1, -1, 1.
    bins = {(row["low"], row["n"]): row["success"] for row in found["calibration"] if row["n"]}
    assert bins == {
        (0.0, 2): pytest.approx((saved[1] + saved[2]) / 2),
        (0.9, 2): pytest.approx((saved[0] + saved[3]) / 2),
    }


def test_what_learned_shares_is_held_against_shares(monkeypatch, tmp_path):
    texts = {"p": [LINES] * RESPONSES, "q": [LINES] * RESPONSES}
    scores = [np.array([0.5, 0.5])] * 2
    found = inspected(monkeypatch, tmp_path, texts, lambda *a: scores, target="counts")
    found = found.calibration("prm")
    assert (found["k"], found["saved"]) == (1, pytest.approx(found["pass_rate"]))


def test_prefixes_behind_the_first_lost_one_are_left_out():
    def passes(*counts):
        return np.arange(4) < np.array(counts)[:, None]

    found = against_completions(
        [np.array([0.5, -0.5, 0.9]), np.array([0.25]), np.zeros(0)],
        [passes(2, 0, 4), passes(4), np.zeros((0, 4), bool)],
        k=4,
    )
    assert (found["prefixes"], found["saved"], found["pass_rate"]) == (3, 2 / 3, 6 / 12)
    # p = .75, .25 and .625, each in a bin of its own.
    assert found["ece"] == pytest.approx((0.25 + 0.25 + 0.375) / 3)
    error = value_error(np.array([0.5, -0.5, 0.25]), passes(2, 0, 4))
    assert found["correlation"] == pytest.approx(error.correlation)
    none = against_completions([np.zeros(0)], [np.zeros((0, 4), bool)], k=1)
    assert none["prefixes"] == 0
    assert all(none[name] is None for name in ("saved", "pass_rate", "correlation", "ece"))


def test_the_oracle_says_where_the_errors_are(monkeypatch, tmp_path):
    texts = {"p": [WRONG_2] * 7 + [RIGHT], "q": [RIGHT] * 8}

    def scores(run, params, problems, responses):
        """Sees the second line of a wrong program, and nothing wrong in a right one."""
        wrong = [TOKENIZER.decode(ids) == WRONG_2 for ids, _ in responses]
        return [np.array([0.5, -0.5 if w else 0.5, 0.5]) for w in wrong]

    asked = {"p": CHAIN, "q": CHAIN}
    found = inspected(monkeypatch, tmp_path, texts, scores, asked).prm("rl", "prm")["4"]
    report = found["by_oracle"]["first_error"]
    assert (report["n_error"], report["exact"], report["acc_ok"]) == (7, 1.0, 1.0)
    assert "calibration" not in found["by_oracle"]


def test_a_critic_is_held_against_completions_from_the_same_prefix(monkeypatch, tmp_path):
    texts = {"p": [LINES] * RESPONSES, "q": [LINES] * RESPONSES}
    places = []

    def values(run, params, problems, responses):
        assert params == "critic" and [p.task_id for p in problems] == ["p", "q"]
        places.extend(responses)
        # As many of 16 completions pass as the prefix has tokens.
        return [(end + 1) / COMPLETIONS + 0.25 for _, end in responses]

    found = inspected(monkeypatch, tmp_path, texts, values).critic("rl", "critic")
    (_, _, name, _, _), (params, _, completing, _, starts) = Sampling.asked
    assert (name, completing) == ("rl/respond/4", "rl/complete/4")
    assert params == ("rl/policy", None)
    ids = TOKENIZER.response(LINES)
    ends = step_ends(run_with(Config()).lines(ids))[0]
    for start, (whole, end) in zip(starts, places, strict=True):
        assert whole == ids and start.prefix == ids[: end[0] + 1]
        assert end[0] in (-1, *ends[:-1])  # nothing follows the last step
    assert len({len(start.prefix) for start in starts}) > 1  # drawn for each problem
    # Values follow the shares that pass, shifted.
    assert found["correlation"] == 1.0 and found["rmse"] == 0.0
    means = np.array([len(start.prefix) for start in starts]) / COMPLETIONS
    noise = (means * (1 - means) / (COMPLETIONS - 1)).mean()
    assert found["rmse_of_mean"] == pytest.approx(np.sqrt(max(means.var(ddof=1) - noise, 0)))
    assert (found["prefixes"], found["completions"]) == (2, COMPLETIONS)


def test_a_scalar_at_the_end_of_the_prompt_is_the_value_of_the_first_token():
    config = Config(
        model=ModelConfig(layers=1, embed=16, heads=2, kv_heads=1, head_dim=8, mlp=32),
        device_batch=2,
    )
    scalar = ScalarModel(config.model, vocab_size=TOKENIZER.vocab_size)
    params = init_params(scalar, ONE, jax.random.key(3))
    params["head"] = jax.tree.map(lambda x: x + 1, params["head"])  # it begins with zeros
    run = run_with(config, scalar=scalar)
    problems, ids = [problem("p", "ab"), problem("q", "abcd")], TOKENIZER.response("x\ny")
    found = scalars_at(run, params, problems, [(ids, np.array([-1, 0, len(ids) - 1]))] * 2)  # type: ignore[arg-type]
    for asked, row in zip(problems, found, strict=True):
        whole = jnp.array([[*TOKENIZER.encode(asked.prompt), *ids]])
        values = state_values(scalar, params, whole, jnp.ones_like(whole, bool))[0]
        first = len(asked.prompt)
        np.testing.assert_allclose(row[:2], values[first : first + 2], rtol=1e-5)
    assert np.ptp([row[0] for row in found]) > 0
