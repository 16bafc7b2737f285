"""Which model evaluate, label and score take, and how: what does not fit is found before work."""

import dataclasses
import json
import types
from pathlib import Path

import chats
import numpy as np
import pytest
import scripted
import tiny_checkpoints

from prm_jax import evaluate, export, label, score
from prm_jax.config import Config, ConfigError, MeshConfig, PromptsConfig, to_json
from prm_jax.metrics import MetricsLog
from prm_jax.problems import ProblemSets
from prm_jax.sharding import ShardingError
from prm_jax.stages import scoring
from prm_jax.stages.attempts import Attempt
from prm_jax.stages.chosen import (
    Asking,
    ModelChoice,
    choose_config,
    journal_name,
    open_run,
)
from prm_jax.types import CallTests, Problem

HEAD = "import math\n\ndef f(x):\n"
CODE = "def f(x):\n    return x\n"
PROBLEM = {
    "task_id": "a", "prompt": HEAD, "program_prefix": HEAD, "solution": "    return x\n",
    "tests": ["assert f(1) == 1"],
}  # fmt: skip
TOOLS = {"evaluate": evaluate, "label": label, "score": score}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    Path("problems.jsonl").write_text(json.dumps(PROBLEM) + "\n")
    Path("programs.jsonl").write_text('{"task_id": "a", "completion": "    return x\\n"}\n')


def refusal(capsys, tool: str, model: Path, **options: str) -> str:
    options = {"model": str(model), "problems": "problems.jsonl", "out": "out"} | options
    if tool != "evaluate":
        options = {"programs": "programs.jsonl"} | options
    argv = [x for name, value in options.items() for x in (f"--{name.replace('_', '-')}", value)]
    assert TOOLS[tool].main(argv) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    return said


def no_sandbox(*arguments, **options):
    raise AssertionError("work began before the refusal")


@pytest.fixture
def opened(tmp_path):
    """Opens the run of a model's folder, asked in some way."""
    with MetricsLog(tmp_path / "log") as log:

        def open_model(model: Path, **asking):
            choice = ModelChoice(model, asking=Asking(**asking))
            sets = ProblemSets((), (), (), {}, ())
            return open_run(choice, choose_config(choice), sets, None, log)

        yield open_model


# --------------------------------------------------------------------- what is no PRM at all


@pytest.mark.parametrize("option", ["prm", "orm"])
def test_weights_that_are_no_prm_are_refused_before_sampling(capsys, monkeypatch, option):
    monkeypatch.setattr(evaluate, "Sandbox", no_sandbox)
    policy = scripted.model(Path("policy"))
    said = refusal(capsys, "evaluate", policy, **{option: str(policy)})
    assert "score.weight is missing" in said
    assert "score.weight is missing" in refusal(capsys, "score", policy)


def test_the_prompts_must_fit_the_chooser(capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "Sandbox", no_sandbox)
    policy, small = (
        scripted.model(Path("policy")),
        scripted.model(Path("s"), prm=True, positions=20),
    )
    said = refusal(capsys, "evaluate", policy, prm=str(small))
    assert "model.max_positions = 20 of s is too few" in said
    prm = scripted.model(Path("prm"), prm=True)
    asking = {"prompts": dataclasses.asdict(PromptsConfig()), "max_prompt_tokens": 9,
              "max_completion_tokens": 9}  # fmt: skip
    (prm / "prm_jax.json").write_text(json.dumps(asking))
    said = refusal(capsys, "evaluate", policy, prm=str(prm))
    assert "max_prompt_tokens = 9" in said and f"give --max-prompt-tokens {len(HEAD)}" in said


def test_a_chooser_that_reads_plans_is_given_plans(capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "Sandbox", no_sandbox)
    policy, prm = scripted.model(Path("policy")), scripted.model(Path("prm"), prm=True)
    asking = {"prompts": dataclasses.asdict(PromptsConfig(plan=True)), "max_prompt_tokens": 900,
              "max_completion_tokens": 9}  # fmt: skip
    (prm / "prm_jax.json").write_text(json.dumps(asking))
    said = refusal(capsys, "evaluate", policy, prm=str(prm))
    assert "prm is not allowed here" in said and "choose a PRM without plans" in said


@pytest.mark.parametrize("tool", ["label", "score"])
def test_programs_beyond_the_positions_of_the_model_are_refused(capsys, monkeypatch, tool):
    monkeypatch.setattr(label, "Sandbox", no_sandbox)
    monkeypatch.setattr(score, "read_scalar", no_sandbox)
    prompt, response = len(HEAD), len("    return x\n") + 1
    model = scripted.model(Path("model"), prm=tool == "score", positions=prompt + response - 1)
    said = refusal(capsys, tool, model)
    assert f"model.max_positions = {prompt + response - 1} is too few for 1 of" in said
    assert "programs.jsonl, line 1" in said and "leave them out" in said
    if tool == "label":  # completions may be as long as the setting says
        model = scripted.model(Path("larger"), positions=prompt + response + 5)
        assert f"give --max-completion-tokens {response + 5}" in refusal(capsys, tool, model)


@pytest.mark.parametrize("tool", TOOLS)
def test_a_model_that_no_mesh_holds_is_refused(capsys, monkeypatch, tool):
    def make(*arguments):
        raise ShardingError("trunk/embedding: dimension 'embed' does not divide")

    monkeypatch.setattr(TOOLS[tool], "open_run", make)
    assert "does not divide" in refusal(capsys, tool, scripted.model(Path("m"), prm=True))


def test_export_refuses_what_cannot_be_laid_out(capsys, monkeypatch):
    def make(*arguments):
        raise ShardingError("trunk/embedding: dimension 'embed' does not divide")

    monkeypatch.setattr(export, "export", make)
    monkeypatch.setattr(export.jax.config, "update", lambda *_: None)
    assert export.main(["--run", "run", "--out", "out"]) == 2
    assert capsys.readouterr().err == "error: trunk/embedding: dimension 'embed' does not divide\n"


def test_a_run_with_plans_is_asked_for_plans():
    run = Path("run")
    run.mkdir()
    (run / "versions.json").write_text("{}")
    (run / "config.json").write_text(to_json(Config(prompts=PromptsConfig(plan=True))))
    assert choose_config(ModelChoice(run)).prompts.plan
    with pytest.raises(ConfigError, match="prompts.plan = True is not allowed"):
        choose_config(ModelChoice(run, asking=Asking(style="chat_fence")))


def test_a_run_of_another_mesh_is_read_with_the_devices_that_are_here():
    Path("run").mkdir()
    config = Config(mesh=MeshConfig(data=3, fsdp=5, tensor=7))
    Path("run/config.json").write_text(to_json(config))
    Path("run/versions.json").write_text("{}")
    assert choose_config(ModelChoice(Path("run"))).mesh == MeshConfig()


# ----------------------------------------------------------------------- what a chooser reads


CHAT = chats.TEMPLATES["chatml"]
ASKED = Problem("a", HEAD, CallTests(()), program_prefix=HEAD, instruction="The identity, please.")


@pytest.mark.parametrize("ours", ["chat", "chat_fence"])
@pytest.mark.parametrize("theirs", ["chat", "chat_fence", "completion"])
def test_a_chooser_reads_the_code_that_was_written_and_no_more(tmp_path, opened, ours, theirs):
    """In the chat styles the problem's own beginning is no part of a response."""
    scorer = opened(scripted.model(tmp_path / "a", template=CHAT, prm=True), style=ours,
                    system="Score." if ours == theirs else "")  # fmt: skip
    writer = opened(scripted.model(tmp_path / "b", template=CHAT), style=theirs)
    text = {"chat": f"Sure:\n```python\n{CODE}```\nDone.", "chat_fence": f"{CODE}```",
            "completion": "    return x\n"}[theirs]  # fmt: skip
    ids = [*writer.tokenizer.encode(text), writer.tokenizer.eos_id]
    read = scorer.tokenizer.decode(scoring.as_response(scorer, writer, ASKED, ids))
    wanted = HEAD + "    return x\n" if theirs == "completion" else CODE
    assert read == (wanted + "```" if ours == "chat_fence" else f"```python\n{wanted}```")


def test_answers_that_the_chooser_cannot_take_have_the_worst_score(
    tmp_path, opened, monkeypatch, capsys
):
    """One is beyond its positions, one beyond max_completion_tokens too."""
    prm = scripted.model(tmp_path / "prm", prm=True, positions=len(HEAD) + 60)
    scorer = opened(prm, max_completion_tokens=80)
    short, long, longer = (f"    return {'1' * n}\n" for n in (1, 50, 90))
    attempts = [[Attempt(tuple(scorer.tokenizer.encode(text)), "failed", False, 0)
                 for text in (short, long, longer)]]  # fmt: skip
    read = []

    def scores(run, params, problems, responses):
        read.extend(len(ids) for ids, _ in responses)
        return [np.full(len(ends), 0.5) for _, ends in responses]

    monkeypatch.setattr(scoring, "step_scores", scores)
    found = scoring.program_scores(scorer, None, scorer, [ASKED], attempts)
    assert read == [len(short), 0, 0]
    for rule in ("last", "mean", "min"):
        assert found[rule].tolist() == [[0.5, -1, -1]]
    assert "2 of 3 answers are too long" in capsys.readouterr().err


# ------------------------------------------------------------------------ what a journal is of


def test_a_journal_is_of_one_vocabulary(tmp_path, opened):
    run = opened(scripted.model(tmp_path / "m"))
    problem = dataclasses.replace(ASKED, prompt="", program_prefix="")

    def name(**changes) -> str:
        kept = {"vocab_size": run.tokenizer.vocab_size, "eos_ids": run.tokenizer.eos_ids,
                "pad_id": run.tokenizer.pad_id, "pieces": run.tokenizer.pieces,
                "encode": run.tokenizer.encode}  # fmt: skip
        other = types.SimpleNamespace(**kept | changes)
        return journal_name(dataclasses.replace(run, tokenizer=other), "w", [problem])

    eos = (*run.tokenizer.eos_ids, 3)
    others = [name(), name(eos_ids=eos), name(pad_id=5),
              name(pieces=lambda ids: [b"x" + p for p in run.tokenizer.pieces(ids)])]  # fmt: skip
    assert len(set(others)) == 4 and others[0] == name()


@pytest.mark.parametrize("style", ["chat", "completion"])
def test_a_completion_of_a_chat_is_the_whole_code(tmp_path, opened, style):
    """samples.jsonl of one chat style, read in another."""
    run = opened(scripted.model(tmp_path / "m", template=CHAT), style="chat_fence")
    row = {"task_id": "a", "style": style, "response": "?", "completion": CODE}
    Path("p.jsonl").write_text(json.dumps(row))
    (program,) = label.read_programs(Path("p.jsonl"), {"a": ASKED}, run, tests=True)
    wanted = CODE if style == "chat" else HEAD + CODE
    assert run.tokenizer.decode(program.ids) == wanted + "```"


def test_a_chooser_with_missing_weights_is_named(tmp_path, opened):
    """A PRM of which one tensor was lost."""
    config = tiny_checkpoints.CONFIGS["llama 3, grouped, tied"]
    config = config | {"architectures": ["LlamaForTokenClassification"]}
    weights = tiny_checkpoints.tensors(config)
    del weights["model.layers.1.mlp.up_proj.weight"]
    prm = tiny_checkpoints.write(scripted.model(tmp_path / "m", prm=True), config, weights)
    run = opened(scripted.model(tmp_path / "policy"))
    with pytest.raises(ConfigError, match=r"layers\.1\.mlp\.up_proj\.weight is missing"):
        scoring.open_scorer(run, prm, Asking(), [ASKED])
