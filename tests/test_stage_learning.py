"""A PRM that learns while RL runs: from what, when, and that a kill changes nothing."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_up_online import POLICY, REAL, SCALAR, config, run_of, some_pass, trained
from made_up_stage import ONE, RIGHT, TOKENIZER, WRONG_2, WRONG_3, problem

from prm_jax.checkpoint import Checkpoints
from prm_jax.config import ConfigError, PRMConfig
from prm_jax.model.score import prefix_scores
from prm_jax.sharding import init_params
from prm_jax.stages import learning, online, truth
from prm_jax.stages.attempts import Attempt
from prm_jax.stages.labelled import LabelledResponse
from prm_jax.stages.learning import LearningPRM
from prm_jax.stages.rollouts import Rollouts
from prm_jax.stages.search import make_response
from prm_jax.stages.step_lines import StepLines
from prm_jax.steps.state import scalar_params

PRM = PRMConfig(batch_size=6, warmup_steps=1, selection="full")
ALONE = {"prm_updates": 3}  # policy, critic and PRM begin together
ON_TOP = {"source": "prm", "prm_updates": 3}


def settings(dense, **fields):
    ppo = {"rollouts": 24, "steps": 3} | fields.pop("ppo", {})
    return config(**REAL | {"prm": PRM} | fields, ppo=ppo, dense={"completions": 16} | dense)


def labelled(text: str, m_star: int, task: str = "p", step: int = 0) -> LabelledResponse:
    """A response whose first m* steps can be saved; it passes if all can."""
    run = run_of(config(), some_pass)
    ids = TOKENIZER.response(text)
    response = make_response(
        run, problem(task, "append 3"), "train", step,
        Attempt(ids, "passed" if text == RIGHT else "failed", True, len(ids)),
    )  # fmt: skip
    response.m_star = m_star
    return LabelledResponse.of(response, neutral_comments=True)


BEFORE = [labelled("    return [1]\n", 0, "p0"), labelled("    return [2]\n", 0, "p1")]


def learner_of(dense, prm=PRM, before=()):
    problems = SimpleNamespace(train=[problem(name, "append 3") for name in ("p", "p0", "p1")])
    run = run_of(
        settings(dense, prm=prm), some_pass, policy=POLICY, scalar=SCALAR, problems=problems
    )
    trunk = init_params(POLICY, ONE, jax.random.key(0))["trunk"]
    return run, LearningPRM(run, scalar_params(SCALAR, trunk, ONE), before)


def scores_of(run, prm, response: LabelledResponse) -> np.ndarray:
    prompt = run.prompt_ids(run.problems.train[0])
    tokens = jnp.asarray([prompt + list(response.ids)], jnp.int32)
    scores = prefix_scores(SCALAR, prm.params, tokens, jnp.ones_like(tokens, bool))
    return np.asarray(scores)[0, len(prompt) + np.array(response.end_token)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a stage that nobody disturbed, and the metrics of its steps."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, trained(folder, settings(ALONE))


def kept(folder, kind: str) -> dict[int, list[np.ndarray]]:
    with Checkpoints(folder / kind) as checkpoints, jax.set_mesh(ONE):
        like = scalar_params(SCALAR, init_params(POLICY, ONE, jax.random.key(1))["trunk"], ONE)
        return {
            step: [np.asarray(x) for x in jax.tree.leaves(checkpoints.restore(step, like))]
            for step in checkpoints.steps()
        }


# ------------------------------------------------------------------------------------- the learner


def test_it_comes_to_say_what_labels_say():
    prm = PRMConfig(batch_size=6, warmup_steps=1, learning_rate=0.02)
    run, learner = learner_of({"prm_updates": 20}, prm)
    some = [labelled(RIGHT, 3), labelled(WRONG_2, 1), labelled(WRONG_3, 2)]
    assert not scores_of(run, learner, some[0]).any()  # a fresh head
    first, *_, last = [learner.learn(step, some)["prm/loss"] for step in range(3)]
    assert last < 0.1 < first
    found = [np.sign(scores_of(run, learner, one)).tolist() for one in some]
    # Up to the first error: the loss reads no line behind it.
    assert (found[0], found[1][:2], found[2]) == ([1, 1, 1], [1, -1], [1, 1, -1])


def test_without_labels_nothing_is_learned():
    run, learner = learner_of(ALONE)
    before = jax.tree.map(np.asarray, learner.params)
    assert learner.learn(0, []) == {}
    jax.tree.map(np.testing.assert_array_equal, before, learner.params)
    assert int(learner.state.step) == 0
    assert float(learner.learn(1, [labelled(WRONG_2, 1)])["prm/responses"]) == 1
    assert int(learner.state.step) == 3


@pytest.mark.parametrize(
    ("passed", "searched", "beside"),
    [
        ("..+..+.+", {0, 1}, {2}),  # two of five were searched: 1.2 of three
        ("..+..+.+", {0, 1, 3}, {2, 5}),
        ("..+..+.+", {0, 1, 3, 4, 6}, {2, 5, 7}),
        ("..+..+.+", set(), set()),
        ("+++", set(), {0, 1, 2}),
        ("...", {1}, set()),
    ],
)
def test_passing_responses_keep_their_share(passed, searched, beside):
    responses = [SimpleNamespace(passed=mark == "+") for mark in passed]
    assert online._passing_beside(searched, responses) == beside  # type: ignore[arg-type]


def test_it_learns_of_what_the_selection_keeps():
    """remove_hard leaves out what nobody came near to, step by step."""
    _, learner = learner_of(ALONE, PRMConfig(batch_size=6, selection="remove_hard"))
    found = learner.learn(0, [labelled(WRONG_2, 0, "p0"), labelled(WRONG_3, 2, "p1")])
    assert float(found["prm/responses"]) == 1
    assert learner.learn(1, [labelled(WRONG_2, 0, "p0")])["prm/responses"] == 1


@pytest.mark.parametrize(("before", "own"), [((), 7), (BEFORE, 4)])
def test_half_of_a_batch_is_of_the_label_stage(monkeypatch, before, own):
    _, learner = learner_of(ON_TOP, PRMConfig(batch_size=7, selection="full"), before)
    batches = []
    batch = learning.label_batch

    def seen(run, prompts, responses):
        batches.append([r.task_id for r in responses])
        return batch(run, prompts, responses)

    monkeypatch.setattr(learning, "label_batch", seen)
    learner.learn(0, [labelled(WRONG_2, 1), labelled(WRONG_3, 2)])
    assert len(batches) == 3
    assert all(tasks.count("p") == own and len(tasks) == 7 for tasks in batches)


# --------------------------------------------------------------------------------- the whole stage


def test_policy_critic_and_prm_learn_at_once(whole):
    folder, rows = whole
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert all(row["prm/loss"] > 0 for row in rows)
    assert rows[0]["prm/responses"] < rows[1]["prm/responses"] < rows[2]["prm/responses"]
    lines = [
        json.loads(line) for line in (folder / "rl_prm/labels.jsonl").read_text().split("\n")[:-1]
    ]
    assert {line["checkpoint"] for line in lines} == {0, 1, 2}
    assert sum(len(line["labels"]) > 0 for line in lines) == rows[2]["prm/responses"]
    # It is kept beside the checkpoint of the policy, and has learned.
    (found,) = kept(folder, "rl_prm/prm").values()
    assert any(x.any() for x in found[:2])
    with Checkpoints(folder / "rl_prm/policy") as policies:
        assert policies.steps() == [3]


CHECKPOINTS = {"checkpoints": 2}  # a PRM is kept at step 2 of 3, too


@pytest.mark.parametrize(
    ("dense", "before", "selection"),
    [(ALONE, (), "remove_hard"), (ON_TOP, BEFORE, "full")],
    ids=["alone", "on top"],
)
def test_a_kill_changes_nothing(tmp_path, dense, before, selection):
    prm = PRMConfig(batch_size=6, warmup_steps=1, selection=selection)
    same = settings(dense, prm=prm, label=REAL["label"] | CHECKPOINTS)
    one, two = tmp_path / "whole", tmp_path / "killed"
    rows = trained(one, same, labelled=before)
    # A step takes at most 24 programs: it is killed in the third one.
    assert trained(two, same, stop_after=54, late=True, labelled=before) == rows
    assert (one / "rl_prm/labels.jsonl").read_text() == (two / "rl_prm/labels.jsonl").read_text()
    ours, theirs = (kept(folder, "rl_prm/prm") for folder in (one, two))
    assert ours.keys() == theirs.keys() == {2, 3}
    for step, leaves in ours.items():
        for x, y in zip(leaves, theirs[step], strict=True):
            np.testing.assert_array_equal(x, y)


def test_labels_and_prms_are_on_disk_before_the_state_that_counts_on_them(monkeypatch, tmp_path):
    events = []

    def spied(kind, name):
        real = getattr(kind, name)

        def spy(self, *args):
            path = getattr(self, "_path", None) or self._manager.directory
            events.append((name, path.name))
            return real(self, *args)

        monkeypatch.setattr(kind, name, spy)

    spied(StepLines, "flush")
    spied(Checkpoints, "save")
    spied(Checkpoints, "wait")
    trained(tmp_path / "run", settings(ALONE))
    saved = [i for i, event in enumerate(events) if event == ("save", "state")]
    assert len(saved) == 2
    for before, i in zip([0, *saved], saved, strict=False):
        assert {("flush", "labels.jsonl"), ("wait", "prm")} <= set(events[before:i])


def test_lines_are_paid_by_the_prm_that_has_learned_of_them(monkeypatch, tmp_path):
    """Scores are those of the PRM after the updates of the step, for completions too."""
    learned, paid = [], []
    learn, assemble = LearningPRM.learn, Rollouts.assemble

    def learning_spied(self, step, labelled):
        metrics = learn(self, step, labelled)
        learned.append(jax.tree.map(jnp.copy, self.params))  # they are donated later
        return metrics

    def assembling(self, samples, completions, outcome, ref_logp, values, scores):
        paid.append((samples, np.asarray(scores)))
        return assemble(self, samples, completions, outcome, ref_logp, values, scores)

    monkeypatch.setattr(LearningPRM, "learn", learning_spied)
    monkeypatch.setattr(Rollouts, "assemble", assembling)
    trained(tmp_path / "run", settings(ON_TOP), labelled=BEFORE)
    assert len(learned) == len(paid) == 3
    for prm, (samples, scores) in zip(learned, paid, strict=True):
        expected = np.asarray(prefix_scores(SCALAR, prm, samples.tokens, samples.valid))
        mask = np.asarray(samples.completion_mask)
        np.testing.assert_allclose(scores[mask], expected[mask], rtol=1e-4, atol=1e-5)
        assert scores[:8][mask[:8]].any() and scores[8:][mask[8:]].any()


def test_value_init_goes_with_a_prm_of_its_own(tmp_path):
    rows = trained(tmp_path / "run", settings(ON_TOP, value_init=True), labelled=BEFORE)
    assert len(rows) == 3
    done = json.loads((tmp_path / "run/rl_prm/done.json").read_text())
    # One more rollout recalibrates the PRM.
    assert done["programs_generated"] == 24 + sum(8 + r["labels/completions"] for r in rows)


# ---------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        ("dense.prm_updates = 2 .* 'oracle'", {"dense": {"source": "oracle", "prm_updates": 2}}),
        ("dense.prm_updates = -1", {"dense": {"prm_updates": -1}}),
        ("dense.form = 'progress' .* dense.prm_updates = 3", {
            "dense": ON_TOP | {"form": "progress"}}),
        ("dense.completions = 24 .* dense.prm_updates = 3", {
            "dense": ON_TOP | {"completions": 24}}),
        ("value_init = True .* dense.source = 'labels'", {"dense": ALONE, "value_init": True}),
        ("ppo.critic_warmup_steps = 2 .* dense.prm_updates = 3", {
            "dense": ON_TOP, "ppo": {"critic_warmup_steps": 2}}),
    ],
)  # fmt: skip
def test_settings_that_go_against_it_are_refused(message, fields):
    with pytest.raises(ConfigError, match=message):
        settings(**fields)


def test_it_labels_rollouts_and_reads_a_prm_where_it_goes_on_from_one():
    alone, on_top = settings(ALONE), settings(ON_TOP)
    assert alone.dense.labels_online and on_top.dense.labels_online
    assert not truth.reads_prm(alone) and truth.reads_prm(on_top)
    assert not settings(ON_TOP | {"enabled": False}).dense.labels_online


def test_several_hosts_are_refused(monkeypatch):
    run = run_of(settings(ON_TOP), some_pass)
    monkeypatch.setattr(truth.hosts, "count", lambda: 2)
    with pytest.raises(ConfigError, match="dense.prm_updates = 3 .* 2 hosts"):
        truth.check_source(run)
