"""The loops of the training stages: what they train on, and in which order they leave traces.

The compiled steps are replaced by ones that only take notes, so that nothing is compiled here.
"""

import dataclasses
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from characters import Characters, Completions

from prm_jax.config import (
    Config,
    DenseConfig,
    LabelConfig,
    MeshConfig,
    PPOConfig,
    PRMConfig,
    SFTConfig,
)
from prm_jax.sharding import make_mesh
from prm_jax.stages import prm as prm_stage
from prm_jax.stages import rl as rl_stage
from prm_jax.stages import rollouts as rollouts_room
from prm_jax.stages import sft as sft_stage
from prm_jax.stages import supervised
from prm_jax.stages.labelled import LabelledResponse
from prm_jax.stages.run import Run
from prm_jax.types import CallTests, LineKind, PrefixLabels, Problem, Samples, Verdict

TOKENIZER = Characters()
ONE = make_mesh(MeshConfig(), jax.devices()[:1])
STEPS, EVERY = 7, 2
LAMBDAS = DenseConfig(lam_fail=0.3, lam_pass=0.2)
PAIRS = [
    ("add 3\n", "    return a"),
    ("a longer prompt\nof two lines\n", "    b = a\n    return b"),
    ("?", "#\n"),
    ("!", "x" * 60),  # its EOS does not fit: left out
    ("repeat\n", "    return a * 2"),
]
SFT = [Problem("", prompt, CallTests(()), solution) for prompt, solution in PAIRS]
CONFIG = Config(
    max_prompt_tokens=48,
    max_completion_tokens=60,
    sft=SFTConfig(steps=STEPS, batch_size=2, checkpoint_every=EVERY),
    prm=PRMConfig(steps=STEPS, batch_size=2, checkpoint_every=EVERY),
    ppo=PPOConfig(
        steps=STEPS, rollouts=4, minibatches=1, temperature=0.7, gamma=0.99, gae_lambda=0.9,
        kl_coef=0.04, checkpoint_every=EVERY,
    ),
    dense=LAMBDAS,
    label=LabelConfig(checkpoints=2),
)  # fmt: skip


class Traces:
    """Stands for the log and for all checkpoints, and notes what they were told, in order."""

    def __init__(self, resume_at: int = 0):
        self.events: list[tuple] = []
        self._resume_at = resume_at

    def log(self, stage: str, step: int, metrics) -> None:
        self.events.append(("log", step))

    def flush(self) -> None:
        self.events.append(("flush",))

    def rewind(self, stage: str, step: int) -> None:
        self.events.append(("rewind", step))

    def exploration(self, folder: Path, start: int) -> "TracedExploration":
        self.events.append(("explore", start))
        return TracedExploration(self.events, start)

    def checkpoints(self, directory: Path, *, keep: int | None = None) -> "TracedCheckpoints":
        return TracedCheckpoints(self.events, directory.name, self._resume_at)


class TracedCheckpoints:
    def __init__(self, events: list, kind: str, resume_at: int):
        self._events, self._kind = events, kind
        self._steps = [resume_at] if kind == "state" and resume_at else []

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        pass

    def steps(self) -> list[int]:
        return self._steps

    def restore(self, step: int, like):
        self._events.append(("restore", self._kind, step))
        return like

    def wait(self) -> None:
        self._events.append(("wait", self._kind))

    def save(self, step: int, tree) -> None:
        self._events.append(("save", self._kind, step))


class State(SimpleNamespace):
    """A train state that is only a name."""

    sharding = None


class Params(str):
    """Parameters that are only a name."""

    def __getitem__(self, part):
        return f"{part} of {self}"


class TracedExploration:
    def __init__(self, events: list[tuple], start: int):
        self._events, self._start = events, start

    def add(self, step: int, asked: list[str], solved: list[tuple[str, str]]) -> None:
        self._events.append(("solved", step, asked, solved))

    def flush(self) -> None:
        self._events.append(("write solved",))

    def __enter__(self) -> "TracedExploration":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def counts(self, n_problems: int) -> dict[str, int]:
        return {"problems": n_problems}

    def programs(self) -> int:
        asked = [len(event[2]) for event in self._events if event[0] == "solved"]
        return sum(asked) + self._start * asked[0]  # the file has the steps before a kill too


class TracedRun(Run):
    def restore(self, kind, model, step=None):
        return Params(kind)

    def starting_params(self):
        return None

    def finish(self, stage, summary):
        self.log.events.append(("finish", summary))

    def judge_here(self, problem: Problem, program: str) -> Future:
        future: Future = Future()
        # Problem p1 is solved by "1": a verdict for another row would be another verdict.
        future.set_result(Verdict("passed" if problem.task_id[1:] == program else "failed", 0, 1))
        return future


def run_with(monkeypatch, stage, config: Config, traces: Traces, problems) -> TracedRun:
    for module in (stage, supervised):
        if hasattr(module, "Checkpoints"):
            monkeypatch.setattr(module, "Checkpoints", traces.checkpoints)
        if hasattr(module, "new_state"):
            monkeypatch.setattr(module, "new_state", lambda params, tx, mesh: State(params=params))
    for module in (stage, supervised):
        if hasattr(module, "join"):
            monkeypatch.setattr(module, "split_trainable", lambda params: (params, None))
            monkeypatch.setattr(module, "join", lambda trained, frozen: trained)
    if hasattr(stage, "scalar_params"):
        monkeypatch.setattr(
            stage, "scalar_params", lambda scalar, trunk, mesh: f"scalar on {trunk}"
        )
    return TracedRun(
        config=config,
        workdir=Path("nowhere"),
        mesh=ONE,
        tokenizer=TOKENIZER,
        prompts=Completions(),
        problems=problems,
        sandbox=None,
        log=traces,
        policy=None,
        scalar=None,
    )


# ----------------------------------------------------------------------------- three stages to run


def run_sft(monkeypatch, traces: Traces) -> list:
    """Runs the stage; the batches that it trained on."""
    batches = []

    def make_sft_step(model, tx, mesh, shardings, rows_at_once):
        def step(state, frozen, batch):
            batches.append(jax.tree.map(np.asarray, batch))
            return state, {}

        return step

    run = run_with(monkeypatch, sft_stage, CONFIG, traces, SimpleNamespace(sft=SFT))
    monkeypatch.setattr(sft_stage, "make_sft_step", make_sft_step)
    sft_stage.sft(run)
    return batches


def run_prm(monkeypatch, traces: Traces) -> list:
    """Runs the stage on five responses of one line; where its parameters come from, its batches."""
    seen: list = []

    def make_prm_step(model, tx, mesh, shardings, rows_at_once):
        def step(state, frozen, batch):
            seen.append((state.params, jax.tree.map(np.asarray, batch)))
            return state, {}

        return step

    def labelled(number: int, split: str) -> LabelledResponse:
        ids = TOKENIZER.response(str(number))
        steps = PrefixLabels((LineKind.CODE,), (number % 2 * 2 - 1,), (0,), (0,))
        return LabelledResponse(f"p{number}", split, 1, False, "revised", ids, (1,), steps)

    responses = [labelled(i, "train" if i < 5 else "validation") for i in range(8)]
    problems = SimpleNamespace(train=[Problem(f"p{i}", f"{i}?", CallTests(())) for i in range(5)])
    run = run_with(monkeypatch, prm_stage, CONFIG, traces, problems)
    monkeypatch.setattr(prm_stage, "make_prm_step", make_prm_step)
    monkeypatch.setattr(prm_stage, "read_labels", lambda run: responses)
    monkeypatch.setattr(prm_stage, "read_candidates", lambda run: ["candidates"])
    monkeypatch.setattr(
        prm_stage,
        "judge_prm",
        lambda run, params, found: {"responses": [int(r.task_id[1:]) for r in found]},
    )
    monkeypatch.setattr(prm_stage, "judge_reranking", lambda run, params, found: found)
    monkeypatch.setattr(prm_stage, "style_probes", lambda run, score, threshold: {})
    prm_stage.prm(run)
    return seen


def run_rl(monkeypatch, traces: Traces, stage: str = "rl", config: Config = CONFIG) -> dict:
    """Runs the stage: three problems, whose sampler answers each row with its number, 0 ... 3."""
    seen: dict = {"sampled": [], "scored": [], "rollouts": [], "updates": [], "settings": {}}

    def make_sampler(policy, mesh, **settings):
        seen["settings"]["sampler"] = settings

        def sampler(params, tokens, valid, budget, key, stop_state=None):
            seen["sampled"].append(params)
            tokens, valid = (x.repeat(settings["samples_per_prompt"], 0) for x in (tokens, valid))
            new = np.array([TOKENIZER.response(str(i)) for i in range(len(tokens))])
            chosen = np.ones(new.shape, bool)
            return Samples(
                tokens=np.concatenate([tokens, new], axis=1),
                valid=np.concatenate([valid, chosen], axis=1),
                completion_mask=np.concatenate([valid & False, chosen], axis=1),
                logp=np.zeros((len(tokens), tokens.shape[1] + 2), np.float32),
            )

        return sampler

    def make_score(policy, scalar, mesh, **settings):
        seen["settings"]["score"] = settings

        def score(reference, critic, prm, samples):
            seen["scored"].append((reference, critic, prm))
            return "ref_logp", "values", "prm_scores"

        return score

    def make_experience(mesh, **settings):
        seen["settings"]["experience"] = settings

        def experience(rollout):
            seen["rollouts"].append(rollout)
            return "batch", {}

        return experience

    def make_update(policy, scalar, policy_tx, critic_tx, mesh, *shardings, **settings):
        seen["settings"]["update"] = settings

        def update(policy, critic, frozen, batch, key):
            seen["updates"].append(batch)
            trained = None if critic is None else State(params=f"{critic.params}+")
            return State(params=f"{policy.params}+"), trained, {}

        return update

    problems = SimpleNamespace(
        train=[Problem(f"p{i}", "?" * (1 + 4 * i), CallTests(())) for i in range(3)]
    )
    run = run_with(monkeypatch, rl_stage, config, traces, problems)
    monkeypatch.setattr(rollouts_room, "make_sampler", make_sampler)
    monkeypatch.setattr(rl_stage, "Exploration", traces.exploration)
    for make in (make_score, make_experience, make_update):
        monkeypatch.setattr(rl_stage, make.__name__, make)
    monkeypatch.setattr(
        rl_stage, "_recalibrated", lambda run, rollouts, policy, prm: f"recalibrated {prm}"
    )
    {"rl": rl_stage.rl, "rl_prm": rl_stage.rl_prm}[stage](run)
    return seen


RUNS = {
    "sft": run_sft,
    "prm": run_prm,
    "rl": run_rl,
    "rl_prm": lambda monkeypatch, traces: run_rl(monkeypatch, traces, "rl_prm"),
}


# ----------------------------------------------------------------------- the order of their traces


@pytest.mark.parametrize("resume_at", [0, 4])
@pytest.mark.parametrize("stage", RUNS)
def test_what_happened_before_a_checkpoint_is_written_before_it(monkeypatch, stage, resume_at):
    """A run that resumes there does not log these steps again, nor save these policies."""
    traces = Traces(resume_at)
    RUNS[stage](monkeypatch, traces)
    events = traces.events
    assert events.count(("rewind", resume_at)) == 1
    assert (("restore", "state", resume_at) in events) == bool(resume_at)
    saved = [event[2] for event in events if event[:2] == ("save", "state")]
    assert saved == [step for step in range(EVERY, STEPS, EVERY) if step > resume_at]

    logged, unwritten, unsaved, unexplored = [], 0, 0, 0
    for event in events:
        match event:
            case ("rewind", _):
                assert not logged
            case ("log", step):
                logged.append(step)
                unwritten += 1
            case ("flush",):
                unwritten = 0
            case ("save", "state", step):
                assert logged == list(range(resume_at, step)), "a state of another step"
                assert unwritten == 0, f"the log of {unwritten} steps could be lost"
                assert unexplored == 0, "what was solved could be lost"
                assert unsaved == 0, "a policy that a later stage needs could be lost"
            case ("save", "policy" | "model", step):
                assert logged[-1] == step - 1
                unsaved += 1
            case ("wait", "policy"):
                unsaved = 0
            case ("solved", step, _, _):
                assert step == len(logged) + resume_at
                unexplored += 1
            case ("write solved",):
                unexplored = 0
            case ("explore", step):
                assert step == resume_at
            case ("finish", _):
                assert unwritten == 0
    assert logged == list(range(resume_at, STEPS)) and events[-1][0] == "finish"


# ------------------------------------------------------------------------------ what they train on


def test_sft_imitates_solutions_and_their_eos_and_never_a_prompt(monkeypatch):
    traces = Traces()
    batches = run_sft(monkeypatch, traces)
    assert len(batches) == STEPS
    seen = []
    for batch in batches:
        for tokens, valid, mask in zip(batch.tokens, batch.valid, batch.mask, strict=True):
            imitated = tokens[mask].tolist()
            assert imitated[-1] == TOKENIZER.eos_id and TOKENIZER.eos_id not in imitated[:-1]
            assert valid[mask].all()
            seen.append((TOKENIZER.decode(tokens[valid & ~mask]), TOKENIZER.decode(imitated)))
            assert (tokens[~valid] == TOKENIZER.pad_id).all()
            assert len(imitated) == len(TOKENIZER.response(seen[-1][1]))
    fitting = [pair for pair in PAIRS if len(pair[1]) < 60]
    assert len(fitting) == 4 and set(seen) == set(fitting)
    assert traces.events[-1][1] == {"steps": STEPS, "pairs": 4, "left_out": 1}


def test_the_prm_starts_from_the_sft_trunk_and_learns_training_labels_only(monkeypatch):
    traces = Traces()
    seen = run_prm(monkeypatch, traces)
    found = set()
    for params, batch in seen:
        assert params == "scalar on trunk of sft/policy"
        assert batch.tokens[batch.weights > 0].tolist() == [TOKENIZER.eos_id] * 2
        for tokens, valid, label in zip(
            batch.tokens, batch.valid, batch.labels[batch.weights > 0], strict=True
        ):
            found.add((TOKENIZER.decode(tokens[valid]), int(label)))
    assert found == {(f"{i}?{i}", i % 2 * 2 - 1) for i in range(5)}
    summary = traces.events[-1][1]
    assert summary["responses"] == 5
    quality = summary["quality"]
    assert quality == {"responses": [5, 6, 7], "reranking": ["candidates"]}  # the validation ones


def test_each_rl_step_learns_from_its_own_rollout(monkeypatch):
    traces = Traces()
    seen = run_rl(monkeypatch, traces)
    assert seen["updates"] == ["batch"] * STEPS
    # The policy of the step samples; the reference stays the SFT policy.
    assert seen["sampled"][:3] == ["sft/policy", "sft/policy+", "sft/policy++"]
    assert seen["scored"][1] == ("sft/policy", "scalar on trunk of sft/policy+", None)
    outcomes = []
    for rollout in seen["rollouts"]:
        assert (rollout.ref_logp, rollout.values, rollout.prm_scores) == (
            "ref_logp", "values", "prm_scores",
        )  # fmt: skip
        prompts = [
            TOKENIZER.decode(tokens[valid & ~mask])
            for tokens, valid, mask in zip(
                rollout.tokens, rollout.valid, rollout.completion_mask, strict=True
            )
        ]
        # Row i answers "i", which is right if it is asked problem i, the one of 1 + 4 i marks.
        wanted = [float(len(prompt) == 1 + 4 * row) for row, prompt in enumerate(prompts)]
        assert np.asarray(rollout.outcome).tolist() == wanted
        outcomes += wanted
    assert 0 < sum(outcomes) < len(outcomes)
    kept = [event[2] for event in traces.events if event[:2] == ("save", "policy")]
    assert kept == [4, 7]  # two, evenly spaced
    assert traces.events[-1][1]["programs_generated"] == STEPS * 4
    assert traces.events[-1][1]["exploration"] == {"problems": 3}
    explored = [event[2:] for event in traces.events if event[0] == "solved"]
    by_step = np.split(np.array(outcomes), STEPS)
    for (asked, solved), passed in zip(explored, by_step, strict=True):
        assert len(asked) == 4 and set(asked) <= {"p0", "p1", "p2"}
        assert [task for task, _ in solved] == [t for t, p in zip(asked, passed, strict=True) if p]
        # Row i says i, which solves problem i: a solution of each problem and no other.
        assert len({digest for _, digest in solved}) == len({task for task, _ in solved})


def test_the_three_programs_of_ppo_share_the_samplers_temperature_and_the_width(monkeypatch):
    settings = run_rl(monkeypatch, Traces())["settings"]
    ppo = CONFIG.ppo
    assert settings["sampler"]["temperature"] == ppo.temperature
    for name in ("score", "update"):
        assert settings[name]["temperature"] == ppo.temperature
        assert settings[name]["prompt_tokens"] == 16  # the longest prompt has 9 tokens
    assert settings["sampler"]["eos_ids"] == TOKENIZER.eos_ids
    assert settings["sampler"]["completion_tokens"] == CONFIG.max_completion_tokens
    for name in ("epochs", "minibatches", "clip_low", "clip_high", "value_clip", "sampler_cap"):
        assert settings["update"][name] == getattr(ppo, name)
    for name in ("kl_coef", "gamma", "gae_lambda"):
        assert settings["experience"][name] == getattr(ppo, name)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("value_init", [False, True])
def test_dense_reward_and_value_init_are_two_switches(monkeypatch, dense, value_init):
    lambdas = dataclasses.replace(LAMBDAS, enabled=dense)
    config = dataclasses.replace(CONFIG, dense=lambdas, value_init=value_init)
    seen = run_rl(monkeypatch, Traces(), "rl_prm", config)
    critic = "recalibrated prm/model" if value_init else "scalar on trunk of sft/policy"
    assert seen["scored"][0] == ("sft/policy", critic, "prm/model" if dense else None)
    used = seen["settings"]["experience"]
    assert (used["lam_fail"], used["lam_pass"]) == ((0.3, 0.2) if dense else (0.0, 0.0))
    # The baseline has neither, whatever the settings say.
    seen = run_rl(monkeypatch, Traces(), "rl", config)
    assert seen["scored"][0] == ("sft/policy", "scalar on trunk of sft/policy", None)
    used = seen["settings"]["experience"]
    assert used["lam_fail"] == used["lam_pass"] == 0.0
