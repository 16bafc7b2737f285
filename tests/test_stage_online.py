"""Labels while RL runs: which responses are searched, what trains on it, and a whole stage."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_up_online import (
    POLICY,
    PROBLEM,
    REAL,
    ROOM,
    WIDTH,
    config,
    run_of,
    some_pass,
    trained,
)
from made_up_stage import ONE, RIGHT, TOKENIZER, WRONG_2, WRONG_3

from prm_jax.config import ConfigError, MeshConfig, PRMConfig, PromptsConfig
from prm_jax.model.score import token_logps
from prm_jax.rl.rewards import token_rewards
from prm_jax.sharding import make_mesh
from prm_jax.stages import online, truth
from prm_jax.stages.online import OnlineLabels
from prm_jax.stages.rl import rl, rl_prm
from prm_jax.stages.rollouts import Rollouts
from prm_jax.types import Samples

GOES_ON = {  # what the scripted policy writes after a prefix: its first and its second sample
    "    b = a + [3]\n": (RIGHT.split("\n", 1)[1], "    return b"),
    "    b = a + [3]\n    c = b * 2\n": ("    return c", "    return c + [5]"),
    "    b = a + [3]\n    c = b * 3\n": ("    return c", "    return c + [5]"),
}


class Scripted:
    """In the place of the completer: GOES_ON says what follows."""

    def __init__(self, model, mesh, key, *, places, width, choice, **_):
        self.places = places
        self.calls: list[list[str]] = []
        assert (width, choice.temperature) == (96, 0.7)  # room for 72 tokens

    def use(self, params) -> None:
        assert params == "policy"

    def forget(self) -> None:
        pass

    def complete_with_logps(self, asked):
        kept = [TOKENIZER.decode(a.prefix)[len(PROBLEM.prompt) :] for a in asked]
        self.calls.append(kept)
        assert all(a.numbers[0] == 3 and a.budget == ROOM - len(a.prefix) + WIDTH for a in asked)
        rows = [[TOKENIZER.response(text) for text in GOES_ON[prefix]] for prefix in kept]
        return [[(ids, np.full(len(ids), -0.25, np.float32)) for ids in row] for row in rows]


def extended(monkeypatch, folder, texts, **settings):
    """What comes of a step with these responses, and what the completer was asked."""
    monkeypatch.setattr(online, "PrefixCompleter", Scripted)
    run = run_of(config(**settings), lambda program: program.endswith(RIGHT))
    rows = [TOKENIZER.response(text) for text in texts]
    tokens = np.zeros((len(rows), WIDTH + ROOM), np.int32)
    valid = np.zeros(tokens.shape, bool)
    prompt = TOKENIZER.encode(PROBLEM.prompt)
    tokens[:, :WIDTH], valid[:, :WIDTH] = prompt, True
    for row, ids in enumerate(rows):
        tokens[row, WIDTH : WIDTH + len(ids)] = ids
        valid[row, WIDTH : WIDTH + len(ids)] = True
    mask = valid & (np.arange(WIDTH + ROOM) >= WIDTH)
    samples = Samples(tokens, valid, mask, np.where(mask, np.float32(-1), np.float32(0)))
    passed = np.array([text == RIGHT for text in texts], np.float32)
    labels = OnlineLabels(run, folder, WIDTH)
    problems = [PROBLEM] * len(rows)
    with labels:
        labels.go_on(3, ())
        found = labels.extend("policy", 3, problems, rows, samples, passed, 2 * passed)
    return found, labels._completer.calls  # type: ignore[attr-defined]


def scores_at_steps(found, row: int) -> list[float]:
    """The scores at the line ends of a row."""
    text = TOKENIZER.pieces(found.completions[row])
    ends = [i for i, piece in enumerate(text) if piece.endswith(b"\n") or piece == b""]
    scores = found.scores[row]
    assert np.count_nonzero(scores) == np.count_nonzero(scores[WIDTH + np.array(ends, int)])
    return scores[WIDTH + np.array(ends, int)].tolist()


def test_failing_responses_are_labelled_and_what_labelled_them_is_trained_on(monkeypatch, tmp_path):
    found, calls = extended(monkeypatch, tmp_path, [RIGHT, WRONG_2, WRONG_3])
    # One search at a time: 8 completions last four rounds of two.
    first, second = "    b = a + [3]\n", "    b = a + [3]\n    c = b * 3\n"
    assert calls == [[first], [second], [first], [second.replace("3\n", "2\n")]]
    assert [scores_at_steps(found, row) for row in range(3)] == [[1, 1, 1], [1, -1, -1], [1, 1, -1]]
    assert found.metrics == {
        "labels/responses": 2.0, "labels/completions": 8.0, "labels/completions_passed": 3 / 8,
    }  # fmt: skip
    # Each completion is a row: its whole text, of which the loss reads what follows the prefix.
    given = [prefix for (prefix,) in calls for _ in range(2)]
    follows = [text for (prefix,) in calls for text in GOES_ON[prefix]]
    for row, (prefix, text) in enumerate(zip(given, follows, strict=True), start=3):
        ids = (*TOKENIZER.encode(prefix), *TOKENIZER.response(text))
        assert found.completions[row] == ids and found.problems[row] is PROBLEM
        tokens, valid, mask = (
            np.asarray(x)[row]
            for x in (found.samples.tokens, found.samples.valid, found.samples.completion_mask)
        )
        assert TOKENIZER.decode(tokens[valid]) == PROBLEM.prompt + prefix + text
        assert TOKENIZER.decode(tokens[mask]) == text and tokens[mask][-1] == TOKENIZER.eos_id
        passes = prefix + text == RIGHT
        assert (found.passed[row], found.outcome[row]) == (passes, passes)
        steps = 1 + (prefix + text).count("\n")
        assert scores_at_steps(found, row) == ([1] * steps if passes else [0] * steps)
    assert found.outcome[:3].tolist() == [2, 0, 0]  # of whole responses: as it was
    # The sampler's log-probs, of whole responses and of completions.
    of_row = np.where(np.arange(11) < 3, -1, -0.25)[:, None]
    assert (
        np.asarray(found.samples.logp) == of_row * np.asarray(found.samples.completion_mask)
    ).all()


def test_a_completion_is_paid_for_the_lines_that_it_wrote(monkeypatch, tmp_path):
    found, _ = extended(monkeypatch, tmp_path, [RIGHT, WRONG_2, WRONG_3])
    mask = found.samples.completion_mask
    scores, zeros = jnp.asarray(found.scores), jnp.zeros(mask.shape)
    rewards, metrics = token_rewards(
        jnp.asarray(found.outcome), scores, scores != 0, mask, zeros, zeros,
        lam_fail=0.4, lam_pass=0.2, kl_coef=0.0,
    )  # fmt: skip
    rewards, mask = np.asarray(rewards), np.asarray(mask)
    assert float(metrics["reward/unplaced"]) == 0
    assert not rewards[~mask].any()
    # WRONG_2 is right in one line of three; the first completion of its first line passes, with two
    # lines of its own.
    np.testing.assert_allclose(rewards[1].sum(), 0.4 * (1 - 1 - 1) / 3, rtol=1e-6)
    np.testing.assert_allclose(rewards[3].sum(), 1 + 0.2, rtol=1e-6)
    assert np.count_nonzero(rewards[3]) == 2
    assert not rewards[4].any()


def test_a_search_that_runs_out_of_completions_leaves_no_label(monkeypatch, tmp_path):
    found, calls = extended(
        monkeypatch,
        tmp_path,
        [RIGHT, WRONG_2, WRONG_3],
        dense={"completions": 7},
        ppo={"rollouts": 10},
    )
    assert len(calls) == 3  # a wave of two does not fit the last one
    assert [scores_at_steps(found, row) for row in range(3)] == [[1, 1, 1], [1, -1, -1], [0, 0, 0]]
    assert found.metrics["labels/responses"] == 1 and found.metrics["labels/completions"] == 6
    # The row that is left over has a prompt and nothing else.
    assert found.completions[9] == () and not np.asarray(found.samples.completion_mask)[9].any()
    valid = np.asarray(found.samples.valid)[9]
    assert TOKENIZER.decode(np.asarray(found.samples.tokens)[9][valid]) == PROBLEM.prompt
    assert (found.passed[9], found.outcome[9]) == (0, 0)
    run = run_of(config(ppo={"rollouts": 10}), some_pass, policy=POLICY)
    rollouts = Rollouts(run, n=10)
    asked, solved = rollouts.solved(found.problems, found.completions, found.passed)
    assert asked == ["p"] * 9 and len(solved) == found.passed.sum() == 3


def test_of_the_samples_of_a_prompt_the_first_are_searched_first(monkeypatch, tmp_path):
    found, calls = extended(
        monkeypatch, tmp_path, [WRONG_2, WRONG_3, WRONG_2, RIGHT], dense={"completions": 8},
        ppo={"rollouts": 12, "samples_per_prompt": 2},
    )  # fmt: skip
    assert len(calls) == 4
    assert [bool(found.scores[row].any()) for row in range(4)] == [True, False, True, True]


def test_without_failures_nothing_is_searched(monkeypatch, tmp_path):
    found, calls = extended(monkeypatch, tmp_path, [RIGHT, RIGHT, RIGHT])
    assert calls == [] and found.metrics == {
        "labels/responses": 0, "labels/completions": 0, "labels/completions_passed": 0,
    }  # fmt: skip
    assert not np.asarray(found.samples.completion_mask)[3:].any()
    assert len(found.problems) == len(found.completions) == len(found.passed) == 11


def test_what_cannot_be_gone_on_with_is_labelled_for_nothing(monkeypatch, tmp_path):
    found, calls = extended(monkeypatch, tmp_path, ["    return a", RIGHT, RIGHT])
    assert calls == [] and scores_at_steps(found, 0) == [-1]
    assert found.metrics["labels/responses"] == 1


def test_prefixes_that_have_no_room_are_not_searched(monkeypatch, tmp_path):
    monkeypatch.setattr(type(TOKENIZER), "prefix_ids", lambda self, ids, n: [5] * ROOM)
    found, calls = extended(monkeypatch, tmp_path, [RIGHT, WRONG_2, WRONG_3])
    assert calls == [] and not found.scores[1:].any()


# ---------------------------------------------------------------------------------- a real policy


SETTINGS = config(**REAL, ppo={"rollouts": 24, "steps": 3}, dense={"completions": 16})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a stage that nobody disturbed, and the metrics of its steps."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, trained(folder, SETTINGS)


def test_a_stage_that_was_killed_ends_with_the_same_numbers_whenever_verdicts_come(whole, tmp_path):
    _, rows = whole
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert all(row["labels/completions"] > 4 and row["labels/responses"] > 0 for row in rows)
    assert len({row["policy/loss"] for row in rows}) == 3
    # A step takes 24 programs at most: the second one is interrupted in its searches.
    assert trained(tmp_path / "killed", SETTINGS, stop_after=36, late=True) == rows


def test_completions_come_from_the_policy_of_their_step(monkeypatch, tmp_path):
    """Their log-probs are those of the policy as it is then, at the temperature of the rollouts."""
    seen = []
    used = online.PrefixCompleter.use

    def use(self, params):
        used(self, params)
        seen.append([jax.tree.map(jnp.array, params)])  # they are donated later

    extend = OnlineLabels.extend

    def kept(self, *args):
        found = extend(self, *args)
        seen[-1].append(found.samples)
        return found

    monkeypatch.setattr(online.PrefixCompleter, "use", use)
    monkeypatch.setattr(OnlineLabels, "extend", kept)
    first, *_ = trained(tmp_path / "run", SETTINGS)
    assert abs(first["policy/ratio_mean"] - 1) < 1e-5 and first["policy/clip_fraction"] == 0
    for params, samples in seen:
        logp, _ = token_logps(
            POLICY, params, samples.tokens, samples.valid, temperature=0.7, prompt_tokens=WIDTH
        )
        mask = np.asarray(samples.completion_mask)
        assert mask[8:].any(axis=1).sum() > 4
        np.testing.assert_allclose(
            np.asarray(samples.logp)[mask], np.asarray(logp)[mask], rtol=1e-4, atol=1e-5
        )
    for (before, _), (after, _) in itertools.pairwise(seen):
        moved = jax.tree.map(lambda x, y: bool((x != y).any()), before, after)
        assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize("change", ["decode_rows", "mesh"])
def test_labels_hang_neither_on_rows_nor_on_devices(whole, tmp_path, change):
    folder, ours = whole
    other, mesh = SETTINGS, ONE
    if change == "decode_rows":
        other = dataclasses.replace(SETTINGS, decode_rows=1)
    else:
        mesh = make_mesh(MeshConfig(data=8), jax.devices()[:8])
    theirs = trained(tmp_path / "run", other, mesh=mesh)
    for one, two in zip(ours, theirs, strict=True):
        numbers = [{k: v for k, v in row.items() if k != "stage"} for row in (one, two)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-3, abs=1e-4)
    solved = "rl_prm/solved.jsonl"
    assert (folder / solved).read_text() == (tmp_path / "run" / solved).read_text()


def test_programs_are_counted_as_they_were_written(whole):
    folder, rows = whole
    done = json.loads((folder / "rl_prm/done.json").read_text())
    assert done["programs_generated"] == sum(8 + row["labels/completions"] for row in rows)


# ---------------------------------------------------------------------------------------- settings


def test_the_baseline_is_never_labelled(monkeypatch):
    seen = {}
    monkeypatch.setattr("prm_jax.stages.rl._ppo", lambda run, stage, **how: seen.update(how))
    run = run_of(config(), some_pass)
    rl(run)
    assert seen == {"prm": None}
    rl_prm(run)
    assert seen == {"prm": None, "truth": False, "online": True}
    assert run.config.dense.labels_online and run.config.whole_responses == 3
    off = config(dense={"enabled": False})
    assert not off.dense.labels_online and off.whole_responses == 11


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        ("dense.completions = 11 .* ppo.rollouts = 11", {"dense": {"completions": 11}}),
        ("dense.completions = 9 .* ppo.samples_per_prompt = 2", {
            "dense": {"completions": 9}, "ppo": {"rollouts": 12, "samples_per_prompt": 2}}),
        ("dense.completions = 1 .* label.wave = 2", {"dense": {"completions": 1}}),
        ("dense.form = 'good_prefix' .* choose 'value' or 'min'", {
            "dense": {"form": "good_prefix"}}),
        ("dense.form = 'plan' .* choose 'value' or 'min'", {
            "dense": {"form": "plan"}, "prompts": PromptsConfig(plan=True),
            "prm": PRMConfig(loss_on="all")}),
        ("dense.form = 'progress' .* choose 'value' or 'min'", {"dense": {"form": "progress"}}),
        ("value_init = True .* set it to False", {"value_init": True}),
        ("ppo.critic_warmup_steps = 2 .* set it to 0", {"ppo": {"critic_warmup_steps": 2}}),
        ("ppo.advantage = 'group' .* set it to 'gae'", {
            "ppo": {"advantage": "group", "samples_per_prompt": 2, "rollouts": 12}}),
    ],
)  # fmt: skip
def test_settings_that_go_against_it_are_refused(message, fields):
    with pytest.raises(ConfigError, match=message):
        config(**fields)


def test_several_hosts_are_refused(monkeypatch):
    run = run_of(config(), some_pass)
    truth.check_source(run)
    monkeypatch.setattr(truth.hosts, "count", lambda: 2)
    with pytest.raises(ConfigError, match="dense.source = 'labels' .* 2 hosts"):
        truth.check_source(run)
