"""What the stages hand from text to arrays and back: every number at the token it is about."""

import json
from concurrent.futures import Future
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_up_stage import (
    CHAIN,
    ONE,
    RIGHT,
    TOKENIZER,
    WRONG_2,
    WRONG_3,
    labelled,
    problem,
    run_with,
)

from prm_jax.config import (
    Config,
    DenseConfig,
    EvaluateConfig,
    MeshConfig,
    ModelConfig,
    PPOConfig,
    SFTConfig,
)
from prm_jax.model.heads import ScalarModel
from prm_jax.model.score import state_values
from prm_jax.sharding import init_params
from prm_jax.stages import evaluate as evaluate_stage
from prm_jax.stages import prm as prm_stage
from prm_jax.stages import rl as rl_stage
from prm_jax.stages import rollouts as rollouts_room
from prm_jax.stages.attempts import Attempt, completion_ids
from prm_jax.stages.opening import check_fit
from prm_jax.types import Problem, Samples, Verdict

# ------------------------------------------------------------------------------------- rl: rollouts

C = 16  # columns of the grid for completions

# Responses, and the last characters of their lines that are not blank, in order. "$" is the EOS.
RESPONSES = [
    ("a=1\nb\n#c$", ["1\n", "b\n", "$"]),  # the EOS ends the last line
    ("x\n\n  \nyz\n$", ["x\n", "z\n"]),  # blank lines are no steps; after a newline EOS ends none
    ("p;\nq", [";\n", "q"]),  # cut off: the last token ends the last line
    ("$", []),
    ("\n\n\nif$", ["$"]),
]


def samples_of(prompts: list[str], texts: list[str], width: int) -> Samples:
    """The grid as the sampler leaves it."""
    shape = (len(texts), width + C)
    tokens, valid, mask = np.zeros(shape, np.int32), np.zeros(shape, bool), np.zeros(shape, bool)
    for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        before = TOKENIZER.encode(prompt)
        ids = TOKENIZER.encode(text.removesuffix("$")) + [TOKENIZER.eos_id] * text.endswith("$")
        tokens[row, width - len(before) : width + len(ids)] = before + ids
        valid[row, width - len(before) : width + len(ids)] = True
        mask[row, width : width + len(ids)] = True
    logp = np.where(mask, -np.arange(mask.size).reshape(shape) / mask.size, 0)
    return Samples(*map(jnp.asarray, (tokens, valid, mask, logp.astype(np.float32))))


def rollouts_of(monkeypatch, config: Config, prompts: list[str], texts: list[str], passed):
    """`Rollouts` whose sampler answers with `texts`; it judges row i as passed[i]."""
    calls = []

    def make_sampler(policy, mesh, **settings):
        def sampler(params, tokens, valid, budget, key, stop_state=None):
            calls.append((params, np.asarray(tokens), np.asarray(budget), key))
            return samples_of(prompts, texts, tokens.shape[1])

        return sampler

    verdicts = iter(passed)

    def judge(problem: Problem, program: str) -> Future:
        future: Future = Future()
        future.set_result(Verdict("passed" if next(verdicts) else "failed", 0, 1))
        return future

    monkeypatch.setattr(rollouts_room, "make_sampler", make_sampler)
    train = [problem(f"p{i}", prompt) for i, prompt in enumerate(prompts)]
    run = run_with(
        config,
        policy=None,
        problems=SimpleNamespace(train=train),
        order=lambda stream, n, epoch: np.arange(n),
        key=lambda *numbers: numbers,
        judge_here=judge,
    )
    return run, rollouts_room.Rollouts(run), calls


def test_a_rollout_marks_the_ends_of_lines_and_keeps_every_number_in_its_field(monkeypatch):
    texts = [text for text, _ in RESPONSES]
    prompts = ["?", "add 3\n", "longer than 8\n", "ab", "!"]
    config = Config(max_completion_tokens=C, ppo=PPOConfig(rollouts=len(texts), minibatches=1))
    run, rollouts, calls = rollouts_of(monkeypatch, config, prompts, texts, [])
    assert rollouts.width == 16  # 13 tokens, in steps of 8
    asked, samples = rollouts.sample("policy", 0)
    assert [p.prompt for p in asked] == prompts
    ((params, tokens, budget, _),) = calls
    assert params == "policy" and budget.tolist() == [C] * len(texts)
    assert [TOKENIZER.decode(row) for row in tokens] == prompts
    assert all(row[-1] != TOKENIZER.pad_id for row in tokens)

    completions = completion_ids(samples)
    assert [TOKENIZER.decode(ids) for ids in completions] == [t.rstrip("$") for t in texts]
    rng = np.random.default_rng(0)
    ref_logp, values, scores = (
        jnp.asarray(rng.normal(size=samples.tokens.shape), jnp.float32) for _ in range(3)
    )
    passed = np.array([1, 0, 0, 1, 0], np.float32)
    rollout = rollouts.assemble(samples, completions, passed, ref_logp, values, scores)
    for row, (_, ends) in enumerate(RESPONSES):
        line_end = np.asarray(rollout.line_end[row])
        assert not line_end[: rollouts.width].any()
        found = [int(t) for t in np.asarray(rollout.tokens[row])[line_end]]
        wanted = [TOKENIZER.eos_id if e == "$" else TOKENIZER.encode(e)[0] for e in ends]
        assert found == wanted, texts[row]
    for name, wanted in {
        "tokens": samples.tokens, "valid": samples.valid, "logp": samples.logp,
        "completion_mask": samples.completion_mask, "ref_logp": ref_logp, "values": values,
        "prm_scores": scores, "outcome": passed,
    }.items():  # fmt: skip
        np.testing.assert_array_equal(np.asarray(getattr(rollout, name)), np.asarray(wanted), name)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_a_recalibrated_critic_predicts_the_returns_as_well_as_a_line_can(monkeypatch, gamma):
    """Least squares: residuals have mean 0, and do not go with the predictions."""
    rng = np.random.default_rng(3)
    prompts = ["ab"] * 8
    texts = ["".join(rng.choice(list("abcdef"), 3 + row)) + "$" for row in range(8)]
    config = Config(
        max_completion_tokens=C,
        ppo=PPOConfig(rollouts=8, minibatches=1, gamma=gamma),
        dense=DenseConfig(enabled=False),
    )
    model = ModelConfig(layers=1, embed=8, heads=1, kv_heads=1, head_dim=8, mlp=8)
    scalar = ScalarModel(model, TOKENIZER.vocab_size)
    prm = init_params(scalar, ONE, jax.random.key(0))
    kernel = jax.random.normal(jax.random.key(1), prm["head"]["kernel"].shape)
    prm = prm | {"head": {"kernel": kernel, "bias": jnp.float32(-0.7)}}
    samples = samples_of(prompts, texts, 8)
    read = jax.jit(lambda params: state_values(scalar, params, samples.tokens, samples.valid))
    mask = np.asarray(samples.completion_mask)
    length = mask.sum(axis=1)
    of_prm = np.where(mask, np.asarray(read(prm)), 0).sum(axis=1) / length
    passed = of_prm > np.median(of_prm)  # the PRM knows something, or its scale would be 0

    run, rollouts, _ = rollouts_of(monkeypatch, config, prompts, texts, passed)
    run.scalar = scalar
    critic = rl_stage._recalibrated(run, rollouts, "policy", prm)
    to_go = length[:, None] - 1 - (np.cumsum(mask, axis=1) - 1)  # tokens after this one
    returns = (passed[:, None] * gamma**to_go)[mask]
    predicted = np.asarray(read(critic), np.float64)[mask]
    assert predicted.std() > 0.05
    residual = predicted - returns
    np.testing.assert_allclose(residual.mean(), 0, atol=1e-5)
    np.testing.assert_allclose((residual * predicted).mean(), 0, atol=1e-5)
    assert np.corrcoef(predicted, np.asarray(read(prm))[mask])[0, 1] > 0.999
    for before, after in zip(
        jax.tree.leaves(prm["trunk"]), jax.tree.leaves(critic["trunk"]), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(before), np.asarray(after))


# ----------------------------------------------------------------------------------------- evaluate


def test_labels_are_held_against_the_oracle_line_by_line():
    assert CHAIN.solution() == RIGHT
    responses = [
        # What the labels say, and in how many steps the oracle agrees up to its first error.
        labelled(WRONG_2, ("]\n", 1), ("3\n", -1), ("$", -1)),  # exact; 2 of 2
        labelled(WRONG_2, ("]\n", 1), ("3\n", 1), ("$", -1)),  # too late; 1 of 2
        labelled(WRONG_2, ("]\n", -1), ("3\n", -1), ("$", -1)),  # too early; 1 of 2
        labelled(WRONG_2, ("]\n", 1), ("3\n", 1), ("$", 1)),  # no error found; 1 of 2
        # Blank lines are lines of the text, and no steps; comments are steps without a label.
        labelled("\n    # no\n\n" + WRONG_2, ("o\n", 0), ("]\n", 1), ("3\n", -1), ("$", -1)),
        labelled(WRONG_3, ("]\n", 1), ("2\n", -1), ("$", -1)),  # in line 3; too early; 2 of 3
        # None of these counts: it passed, rightly or not, or the oracle finds no error.
        labelled(RIGHT, ("]\n", 1), ("2\n", 1), ("$", 1), passed=True),
        labelled(WRONG_2, ("]\n", 1), ("3\n", 1), ("$", 1), passed=True),
        labelled(RIGHT, ("]\n", -1), ("2\n", -1), ("$", -1)),
    ]
    problems = SimpleNamespace(train=[problem("p")], asked={"p": CHAIN})
    run = run_with(Config(), problems=problems)
    found = evaluate_stage._oracle_agreement(run, responses)
    assert found["oracle_first_error_exact"] == pytest.approx(2 / 6)
    assert found["oracle_line_agreement"] == pytest.approx((2 + 1 + 1 + 1 + 2 + 2) / (5 * 2 + 3))
    assert set(evaluate_stage._oracle_agreement(run, responses[-3:]).values()) == {None}


def test_scored_programs_carry_the_score_of_each_line_and_the_oracles_first_error(
    monkeypatch, tmp_path
):
    monkeypatch.setattr(
        prm_stage,
        "make_prefix_scores",
        lambda model, mesh: lambda params, tokens, valid: jnp.where(valid, tokens / 200, np.nan),
    )
    run = run_with(
        Config(),
        workdir=tmp_path,
        scalar=None,
        problems=SimpleNamespace(asked={"p": CHAIN, "q": CHAIN}),
        restore=lambda kind, model: kind,
    )
    wrong = "    # d\n\n" + WRONG_2
    attempts = {
        "sft": [
            [Attempt(TOKENIZER.response(text), status, True, 1) for text, status in row]
            for row in (
                [(wrong, "failed"), (RIGHT, "passed")],  # only the first sample is shown
                [(RIGHT, "passed"), (wrong, "failed")],
            )
        ],
        "rl": [
            [Attempt(TOKENIZER.response(text), "error", True, 1)] for text in (WRONG_3, "    b =")
        ],
    }
    problems = [problem("p", "one", horizon=3), problem("q", "two", horizon=4)]
    found = evaluate_stage._scored(run, "prm/model", problems, attempts)
    rows = {(row["arm"], row["task_id"]): row for row in json.loads(json.dumps(found))}
    assert len(found) == len(rows) == 4

    def shown(arm: str, name: str) -> list[tuple]:
        row = rows[arm, name]
        assert row["prompt"] == {"p": "one", "q": "two"}[name]
        assert row["horizon"] == {"p": 3, "q": 4}[name]
        assert row["program_prefix"] == "def f(a):\n" and row["split"] == "test"
        assert "\n".join(line["text"] for line in row["lines"]) == row["completion"]
        return [row["status"], row["passed"], row["first_error"]] + [
            (line["kind"], None if line["score"] is None else round(line["score"] * 200))
            for line in row["lines"]
        ]

    def ends(token: str) -> int:
        return TOKENIZER.encode(token)[0]

    assert shown("sft", "p") == [
        "failed", False, 3, ("comment", ends("d\n")), ("blank", None), ("code", ends("]\n")),
        ("code", ends("3\n")), ("code", TOKENIZER.eos_id),
    ]  # fmt: skip
    code = [("code", ends("]\n")), ("code", ends("2\n")), ("code", TOKENIZER.eos_id)]
    assert shown("sft", "q") == ["passed", True, None, *code]
    assert shown("rl", "p") == ["error", False, 2, *code]
    assert shown("rl", "q") == ["error", False, 0, ("code", TOKENIZER.eos_id)]


def test_a_prm_that_learned_beside_a_policy_scores_its_programs(tmp_path):
    done: dict[str, dict] = {}
    run = run_with(Config(), workdir=tmp_path, done=done.get)
    assert evaluate_stage._scorers(run, ["sft", "rl_prm"]) == {}
    (tmp_path / "rl_prm/prm").mkdir(parents=True)
    assert evaluate_stage._scorers(run, ["sft", "rl_prm"]) == {"rl_prm": "rl_prm/prm"}
    done["prm"] = {}
    found = evaluate_stage._scorers(run, ["sft", "rl", "rl_prm"])
    assert found == {"sft": "prm/model", "rl": "prm/model", "rl_prm": "rl_prm/prm"}
    assert evaluate_stage._scorers(run, ["sft"]) == {"sft": "prm/model"}


def test_pass_rates_by_hand():
    def row(passes: int) -> list[Attempt]:
        return [Attempt((), "passed" if i < passes else "error", True, 0) for i in range(4)]

    problems = [problem("p", horizon=3), problem("q", horizon=5), problem("r", horizon=3)]
    run = run_with(Config(evaluate=EvaluateConfig(samples=4, bootstrap=10)))
    found = evaluate_stage._pass_rates(run, problems, [row(1), row(4), row(2)])
    assert found["pass_at_1"]["value"] == pytest.approx((1 / 4 + 1 + 2 / 4) / 3)
    # Two of four without a pass: 3 of 6 pairs for p, none for q, 1 of 6 for r.
    assert list(found["pass_at_k"]) == ["2"]
    assert found["pass_at_k"]["2"]["value"] == pytest.approx((3 / 6 + 1 + 5 / 6) / 3)
    by_horizon = {h: (e["value"], e["n"]) for h, e in found["by_horizon"].items()}
    assert by_horizon == {"3": (pytest.approx(3 / 8), 2), "5": (pytest.approx(1.0), 1)}


# ------------------------------------------------------------------------- batches and their parts


@pytest.mark.parametrize(
    ("rows", "at_once", "taken"),
    [(62, 8, 2), (61, 8, 1), (64, 8, None), (6, 8, None), (62, 0, None)],
)
def test_batches_that_few_rows_at_a_time_hardly_divide_are_told(capsys, rows, at_once, taken):
    config = Config(sft=SFTConfig(batch_size=rows), mesh=MeshConfig(rows_at_once=at_once))
    none = SimpleNamespace(train=[], validation=[], held_out={}, asked={})
    check_fit(run_with(config, problems=none))
    said = capsys.readouterr()
    wanted = f"sft.batch_size = {rows} is {rows} on each device, taken {taken} at a time"
    assert (wanted in said.out + said.err) == (taken is not None)
    assert "rows_at_once" in said.out + said.err or taken is None
