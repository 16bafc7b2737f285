"""What the stages hand from text to arrays and back: every number at the token it is about."""

import dataclasses
import json
from concurrent.futures import Future
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from characters import Characters

from prm_jax.config import (
    Config,
    DenseConfig,
    EvaluateConfig,
    LabelConfig,
    MeshConfig,
    ModelConfig,
    PPOConfig,
    PRMConfig,
    SFTConfig,
)
from prm_jax.model.heads import ScalarModel
from prm_jax.model.score import state_values
from prm_jax.problems.chains.generator import Chain
from prm_jax.problems.chains.operations import Step
from prm_jax.rl.lines import split_lines
from prm_jax.sharding import init_params, make_mesh
from prm_jax.stages import evaluate as evaluate_stage
from prm_jax.stages import prm as prm_stage
from prm_jax.stages import rl as rl_stage
from prm_jax.stages import rollouts as rollouts_room
from prm_jax.stages.attempts import Attempt, completion_ids
from prm_jax.stages.label import Candidate, LabelledResponse
from prm_jax.stages.opening import check_fit
from prm_jax.types import CallTests, LineKind, PrefixLabels, Problem, Samples, Verdict

TOKENIZER = Characters()
ONE = make_mesh(MeshConfig(), jax.devices()[:1])


def problem(name: str, prompt: str = "?", horizon: int = 3) -> Problem:
    return Problem(name, prompt, CallTests(()), program_prefix="def f(a):\n", horizon=horizon)


def run_with(config: Config, **parts) -> SimpleNamespace:
    return SimpleNamespace(
        config=config,
        mesh=ONE,
        tokenizer=TOKENIZER,
        prompt_ids=lambda problem: TOKENIZER.encode(problem.prompt),
        stops=None,
        lines=lambda ids: split_lines(TOKENIZER.pieces(ids)),
        program=lambda problem, ids: problem.program(TOKENIZER.decode(ids)),
        **parts,
    )


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


# --------------------------------------------------------------------------------- prm: its batches


def labelled(text: str, *ends: tuple[str, int], **fields) -> LabelledResponse:
    """A failing response to problem "p"; `ends` are (token that ends a step, its label)."""
    ids = TOKENIZER.response(text)
    tokens = [TOKENIZER.eos_id if e == "$" else TOKENIZER.encode(e)[0] for e, _ in ends]
    end_token = tuple(ids.index(token) for token in tokens)
    labels = tuple(label for _, label in ends)
    kinds = tuple(LineKind.CODE if label else LineKind.COMMENT for label in labels)
    return LabelledResponse(
        **dict(task_id="p", split="train", checkpoint=1, passed=False, response_class="revised")
        | fields,
        ids=ids,
        end_token=end_token,
        steps=PrefixLabels(kinds, labels, (0,) * len(labels), (0,) * len(labels)),
    )


def test_a_batch_of_the_prm_has_each_label_at_the_token_that_ends_its_step():
    prompts = ["?", "a longer prompt\n", "pq\n"]
    responses = [
        labelled("a1\nb2\n#3\nd4\ne5", ("1\n", 1), ("2\n", 1), ("3\n", 0), ("4\n", -1), ("$", -1)),
        labelled("f6\n\n\ng7", ("6\n", -1), ("$", -1)),
        labelled("h8\ni9", ("8\n", 1), ("$", 1), passed=True),
    ]
    wanted = {
        "all": ["1\n+", "2\n+", "3\n0", "4\n-", "$-", "6\n-", "$-", "8\n+", "$+"],
        "first_error": ["1\n+", "2\n+", "3\n0", "4\n-", "6\n-", "8\n+", "$+"],
    }
    for loss_on, items in wanted.items():
        run = run_with(Config(prm=PRMConfig(loss_on=loss_on)))
        batch = prm_stage._batch(run, [TOKENIZER.encode(p) for p in prompts], responses)
        tokens, mask = np.asarray(batch.tokens), np.asarray(batch.weights) > 0
        found = [
            ("$" if t == TOKENIZER.eos_id else TOKENIZER.decode([t])) + "-0+"[int(label) + 1]
            for t, label in zip(tokens[mask], np.asarray(batch.labels)[mask], strict=True)
        ]
        assert found == items, loss_on
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            text = tokens[row][np.asarray(batch.valid)[row]].tolist()
            assert text == [*TOKENIZER.encode(prompt), *response.ids]


def test_a_batch_of_the_prm_may_hold_rates_or_outcomes():
    failing = labelled("a1\nb2\nc3", ("1\n", 1), ("2\n", 1), ("$", -1))
    counts = dataclasses.replace(failing.steps, passes=(0, 3, 0), samples=(0, 4, 8))
    responses = [
        dataclasses.replace(failing, steps=counts),
        labelled("h8\ni9", ("8\n", 1), ("$", 1), passed=True),
    ]
    for config, wanted, weights in (
        (PRMConfig(target="rate"), [1, 0.5, -1, 1, 1], [1] * 5),
        (PRMConfig(target="counts"), [1, 0.5, -1, 1, 1], [1, 4, 8, 1, 1]),
        (PRMConfig(loss_on="outcome"), [-1, 1], [1, 1]),
    ):
        run = run_with(Config(prm=config, label=LabelConfig(wave=8)))
        batch = prm_stage._batch(run, [TOKENIZER.encode("?")] * 2, responses)
        mask = np.asarray(batch.weights) > 0
        assert np.asarray(batch.labels)[mask].tolist() == wanted
        assert np.asarray(batch.weights)[mask].tolist() == weights
        assert (np.asarray(batch.tokens)[mask][-1]) == TOKENIZER.eos_id


@pytest.mark.parametrize("n", [1, 4, 10])
def test_the_score_of_a_step_is_read_at_its_token_and_clipped(monkeypatch, n):
    """A stand-in for the PRM says of each token its own id, so that it shows what was read."""
    seen = []

    def make_prefix_scores(model, mesh):
        def score(params, tokens, valid):
            seen.append((params, tokens.shape[0]))
            return jnp.where(valid, (tokens - 50) / 40, np.nan)

        return score

    monkeypatch.setattr(prm_stage, "make_prefix_scores", make_prefix_scores)
    problems = [problem(f"p{i}", "?" * (1 + 3 * i)) for i in range(n)]
    ids = [TOKENIZER.response("0\n" * (i % 3) + "A~\nz"[i % 2 :]) for i in range(n)]
    ends = [
        np.flatnonzero([i == 1 or b"\n" in TOKENIZER.pieces([i])[0] for i in row]) for row in ids
    ]
    ends[0] = ends[0][:0]  # a response without steps
    found = prm_stage.step_scores(
        run_with(Config(device_batch=4), scalar=None),
        "prm",
        problems,
        list(zip(ids, ends, strict=True)),
    )
    assert len(found) == n and seen == [("prm", 4)] * -(-n // 4)
    raw = [(np.array(row)[end] - 50) / 40 for row, end in zip(ids, ends, strict=True)]
    for scores, wanted in zip(found, raw, strict=True):
        np.testing.assert_allclose(scores, np.clip(wanted, -1, 1), rtol=1e-6)
    if n > 1:
        assert np.concatenate(raw).min() < -1 and np.concatenate(raw).max() > 1


def test_the_prm_is_judged_up_to_the_first_error(monkeypatch):
    """Steps 4 and 5 of p are behind its error, and the neutral step of q has no say."""
    responses = [
        labelled("a1\nb2\nc3\nd4\ne5", ("1\n", 1), ("2\n", 1), ("3\n", -1), ("4\n", -1), ("$", -1)),
        labelled("#6\ng7", ("6\n", 0), ("$", 1), passed=True, task_id="q", checkpoint=2),
    ]
    scores = [np.array([0.8, -0.2, -0.6, 1.0, 1.0]), np.array([-1.0, 0.4])]
    monkeypatch.setattr(prm_stage, "step_scores", lambda *arguments: scores)
    validation = [problem("p"), problem("q")]
    run = run_with(Config(), problems=SimpleNamespace(validation=validation, asked={}))
    found = prm_stage.judge_prm(run, "prm", responses)
    assert found["n_responses"] == 2 and "by_oracle" not in found
    assert found["auc_within_problem"] == 1.0  # 0.8 and -0.2 above -0.6; q has one class only
    # The first score below 0 is step 2, one before the error; q is rightly left alone.
    report = found["first_error"]
    assert (report["exact"], report["too_early"], report["acc_ok"]) == (0.0, 1.0, 1.0)
    # p = 0.9, 0.4, 0.2 and 0.7 against 1, 1, 0 and 1: a bin each.
    assert found["ece"] == pytest.approx((0.1 + 0.6 + 0.2 + 0.3) / 4)
    assert sum(row["n"] for row in found["calibration"]) == 4
    # p was written by checkpoint 1, q by 2.
    first, second = (found["by_checkpoint"][step] for step in ("1", "2"))
    assert (first["first_error"]["too_early"], first["auc_within_problem"]) == (1.0, 1.0)
    assert (second["first_error"]["acc_ok"], second["auc_within_problem"]) == (1.0, None)
    assert first["n_responses"] == second["n_responses"] == 1 and "calibration" not in first


def test_the_prm_is_held_against_the_oracle_where_labels_are_wrong(monkeypatch):
    """Labels say that the first line is lost; the error is in the second, where the PRM sees it."""
    one = labelled(WRONG_2, ("3]\n", -1), ("* 3\n", -1), ("$", -1))
    monkeypatch.setattr(prm_stage, "step_scores", lambda *arguments: [np.array([0.5, -0.5, 1.0])])
    run = run_with(
        Config(), problems=SimpleNamespace(validation=[problem("p")], asked={"p": CHAIN})
    )
    found = prm_stage.judge_prm(run, "prm", [one])
    assert (found["first_error"]["exact"], found["first_error"]["too_late"]) == (0.0, 1.0)
    assert found["by_oracle"]["first_error"]["exact"] == 1.0
    assert found["by_oracle"]["auc_within_problem"] == 1.0


def test_prms_choose_among_the_same_candidates(monkeypatch):
    """p has one that passes, best by its last step and worst by its lowest; q has none."""
    passing, failing = "a1\nb2", "c3\nd4"
    candidates = [
        Candidate(task, text == passing, TOKENIZER.response(text), (2, 5))
        for task, texts in (("p", [failing] * 7 + [passing]), ("q", [failing] * 8))
        for text in texts
    ]

    def scores(run, params, problems, responses):
        assert params == "prm" and [p.task_id for p in problems] == ["p"] * 8 + ["q"] * 8
        assert all(ends == (2, 5) for _, ends in responses)
        return [np.array([-0.9, 0.9] if c.passed else [0.1, 0.2]) for c in candidates]

    monkeypatch.setattr(prm_stage, "step_scores", scores)
    run = run_with(
        Config(), problems=SimpleNamespace(validation=[problem("p"), problem("q")], asked={})
    )
    assert prm_stage.judge_choosing(run, "prm", candidates) == {
        "responses_per_problem": 8,
        "pass_rate": 1 / 16,
        "any_of_n": 0.5,
        "best_of_n": {"lowest": 0.0, "last": 0.5},
    }


# ----------------------------------------------------------------------------------------- evaluate

CHAIN = Chain(
    (Step("append", 3, "easy"), Step("repeat", 2, "easy"), Step("append", 5, "easy")), "abc"
)
RIGHT = "    b = a + [3]\n    c = b * 2\n    return c + [5]"
WRONG_2 = "    b = a + [3]\n    c = b * 3\n    return c + [5]"
WRONG_3 = "    b = a + [3]\n    c = b * 2\n    return c + [6]"


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
    evaluate_stage._write_scored(run, problems, attempts)
    text = (tmp_path / "evaluate/scored.jsonl").read_text()
    rows = {(row["arm"], row["task_id"]): row for row in map(json.loads, text.splitlines())}
    assert len(text.splitlines()) == len(rows) == 4

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
