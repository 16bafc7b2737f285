"""What evaluate, label and score refuse: by name, with the mend, before weights are read."""

import json
from pathlib import Path

import chats
import pytest
import scripted

from prm_jax import evaluate, label, score

HEAD = "def f(x):\n"
PROBLEM = {
    "task_id": "a",
    "prompt": HEAD,
    "program_prefix": HEAD,
    "solution": "    return x\n",
    "tests": ["assert f(1) == 1"],
}
GOOD = {"task_id": "a", "completion": "    return x\n"}
TOOLS = {"evaluate": evaluate, "label": label, "score": score}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return scripted.model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    return scripted.model(folder, template=chats.TEMPLATES["chatml"], prm=True)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """In an empty folder, and whatever reads weights or starts a sandbox comes too late."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")

    def late(*arguments, **options):
        raise AssertionError("work began before the refusal")

    for tool, names in (
        (evaluate, ("Sandbox", "read_policy", "read_scalar")),
        (label, ("Sandbox", "read_policy")),
        (score, ("read_scalar",)),
    ):
        for name in names:
            monkeypatch.setattr(tool, name, late)
    Path("problems.jsonl").write_text(json.dumps(PROBLEM) + "\n")
    Path("programs.jsonl").write_text(json.dumps(GOOD) + "\n")
    Path("file").write_text("")
    Path("empty").mkdir()


def refusal(capsys, tool: str, chosen: Path | str, /, **options: str) -> str:
    """The error of a tool under these options, which replace usable ones."""
    options = {"model": str(chosen), "problems": "problems.jsonl", "out": "out"} | options
    if tool != "evaluate":
        options = {"programs": "programs.jsonl"} | options
    argv = [x for name, value in options.items() for x in (f"--{name.replace('_', '-')}", value)]
    assert TOOLS[tool].main(argv) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    return said


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "nowhere"}, ["model = 'nowhere' does not exist", "Hugging Face"]),
        ({"model": "empty"}, ["empty"]),
        ({"model": "file"}, ["file"]),
        ({"checkpoint": "rl/policy"}, ["checkpoint = 'rl/policy'", "is not a run"]),
        ({"problems": "nowhere.jsonl"}, ["'nowhere.jsonl'", "neither a file nor a problem set"]),
        ({"problems": "mbpp"}, ["mbpp needs its files", "mbpp:PATH"]),
        ({"style": "chat"}, ["prompts.style = 'chat'", "no chat template", "use 'completion'"]),
        ({"system": "Be brief."}, ["prompts.system = 'Be brief.'"]),
        ({"device_batch": "-1"}, ["device_batch = -1", "greater than 0"]),
        ({"max_prompt_tokens": "5"}, ["max_prompt_tokens = 5", "give --max-prompt-tokens 10"]),
        ({"out": "file/out"}, ["out = 'file/out' cannot be made"]),
    ],
)
def test_every_tool_refuses(model, capsys, tool, options, words):
    said = refusal(capsys, tool, model, **options)
    assert all(word in said for word in words), said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"split": "training"}, ["split = 'training'", "problems.jsonl has test"]),
        ({"k": "1,x"}, ["k = '1,x'", "as in 1,10"]),
        ({"k": "0,1"}, ["k = '0,1'", "1..10"]),
        ({"k": "11"}, ["k = '11'", "1..10"]),
        ({"best_of": "11"}, ["best_of = 11", "1..10"]),
        ({"best_of": "-1"}, ["best_of = -1"]),
        ({"samples": "0"}, ["evaluate.samples = 0"]),
        ({"temperature": "-1"}, ["evaluate.temperature = -1"]),
        ({"top_p": "0"}, ["evaluate.top_p = 0"]),
        ({"first": "-3"}, ["first = -3"]),
        ({"seed": "-1"}, ["seed = -1"]),
        ({"jobs": "-1"}, ["sandbox.jobs = -1"]),
        ({"cpu_s": "-1"}, ["sandbox.cpu_s = -1"]),
        ({"memory_mib": "-1"}, ["sandbox.memory_mib = -1"]),
        ({"prm": "nowhere"}, ["'nowhere' does not exist"]),
        ({"orm": "nowhere"}, ["'nowhere' does not exist"]),
    ],
)
def test_evaluate_refuses(model, capsys, options, words):
    said = refusal(capsys, "evaluate", model, **options)
    assert all(word in said for word in words), said


def test_a_chooser_that_cannot_be_asked_is_refused_before_sampling(model, chat_model, capsys):
    """Its own chat template asks in its own words, and this file has none."""
    said = refusal(capsys, "evaluate", model, prm=str(chat_model))
    assert "a has no instruction" in said and "'chat_fence'" in said and "'completion'" in said


def test_a_chat_model_needs_instructions(chat_model, capsys):
    for tool in TOOLS:
        said = refusal(capsys, tool, chat_model)
        assert "prompts.style = 'chat_fence'" in said and "no instruction" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k": "0"}, ["k = 0", "above 0"]),
        ({"k": "7"}, ["k = 7 is not allowed with wave = 2", "multiple"]),
        ({"wave": "0"}, ["wave = 0"]),
        ({"temperature": "0"}, ["label.temperature = 0"]),
        ({"jobs": "-1"}, ["sandbox.jobs = -1"]),
    ],
)
def test_label_refuses(model, capsys, options, words):
    said = refusal(capsys, "label", model, **options)
    assert all(word in said for word in words), said


MALFORMED = [
    ("not json", "is not JSON"),
    ("[1]", "must be an object"),
    ('"text"', "must be an object"),
    ("[" * 100_000, "is not JSON"),
    ('{"task_id": "a", "completion": "x", "id": NaN}', "NaN is no value of JSON"),
    ('{"task_id": "a"}', "response, program and completion are missing"),
    ('{"task_id": "b", "program": "x"}', "task_id = 'b' is not among the 1 problems"),
    ('{"program": "x"}', "task_id"),
    ('{"task_id": "a", "program": 5}', "program = 5 must be a string"),
    ('{"task_id": "a", "response": null}', "response = None must be a string"),
    ('{"task_id": "a", "completion": ["x"]}', "completion = ['x'] must be a string"),
    ('{"task_id": "a", "completion": "\\ud800"}', "completion is no text"),
    ('{"task_id": "a", "completion": "x = <|im_end|>"}', "has '<|im_end|>', which the model's"),
    ('{"task_id": "a", "response": "x", "style": "chat"}', "style = 'chat'"),
]


@pytest.mark.parametrize("tool", ["label", "score"])
@pytest.mark.parametrize(("line", "words"), MALFORMED, ids=range(len(MALFORMED)))
def test_a_line_that_is_wrong_is_named(model, capsys, tool, line, words):
    Path("programs.jsonl").write_text(f"{json.dumps(GOOD)}\n\n{line}\n")
    said = refusal(capsys, tool, model)
    assert said.startswith("error: programs.jsonl, line 3") and words in said, said


@pytest.mark.parametrize("tool", ["label", "score"])
def test_files_and_programs_that_cannot_be_used_are_named(model, capsys, tool):
    assert "programs = 'nowhere' cannot be read" in refusal(capsys, tool, model, programs="nowhere")
    assert "programs = 'file' is empty" in refusal(capsys, tool, model, programs="file")
    Path("bytes").write_bytes(b"\xff\xfe")
    assert "programs = 'bytes' cannot be read" in refusal(capsys, tool, model, programs="bytes")
    lengths = (10, 600, 20, 900)
    rows = [GOOD | {"completion": "    # " + "x" * (n - 6)} for n in lengths]
    Path("long").write_text("\n".join(map(json.dumps, rows)))
    said = refusal(capsys, tool, model, programs="long")
    assert "long, line 2: max_completion_tokens = 512" in said
    assert "2 of the programs need more; give --max-completion-tokens 900" in said


@pytest.mark.parametrize("tool", ["label", "score"])
def test_a_program_that_a_stop_string_would_cut_is_refused(model, capsys, tool):
    Path("programs.jsonl").write_text(json.dumps(
        {"task_id": "a", "program": HEAD + "    return g(x)\n\ndef g(x):\n    return x\n"}
    ))  # fmt: skip
    said = refusal(capsys, tool, model, stop="\ndef")
    assert "line 1: program would be cut off" in said and "'\\ndef'" in said


def test_score_needs_a_prompt_or_a_problem(model, capsys):
    Path("programs.jsonl").write_text('{"program": "x"}')
    said = refusal(capsys, "score", model, problems="")
    assert "task_id or prompt is missing" in said
    Path("programs.jsonl").write_text('{"program": "x", "prompt": 1}')
    assert "prompt = 1 must be a string" in refusal(capsys, "score", model, problems="")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, ["has not finished a policy: run prm_jax.train with --stages sft"]),
        ({"checkpoint": "rl/policy"}, ["checkpoint = 'rl/policy'", "sft/policy at 3, 20"]),
        ({"checkpoint": "sft/policy@4"}, ["checkpoint = 'sft/policy@4'", "sft/policy at 3, 20"]),
        ({"checkpoint": "sft/policy@x"}, ["checkpoint = 'sft/policy@x'"]),
        ({"checkpoint": "prm/model"}, ["checkpoint = 'prm/model'", "sft/policy at 3, 20"]),
        ({"checkpoint": "sft/policy", "dtype": "bfloat16"}, ["dtype = 'bfloat16'", "is a run"]),
        ({"checkpoint": "sft/policy", "prm": "run"}, ["has not finished a PRM", "label,prm"]),
    ],
)
def test_checkpoints_that_a_run_does_not_have(model, capsys, options, words):
    """The workdir of a run that was stopped early; its weights are never reached."""
    from prm_jax.config import Config, TokenizerConfig, to_json

    config = Config(tokenizer=TokenizerConfig(path=str(model / "tokenizer.json")))
    for folder in ("sft/policy/3", "sft/policy/20", "sft/state/20", "prm/model/7"):
        Path("run", folder).mkdir(parents=True)
    Path("run/config.json").write_text(to_json(config))
    Path("run/versions.json").write_text("{}")
    said = refusal(capsys, "evaluate", "run", **options)
    assert all(word in said for word in words), said


@pytest.mark.parametrize("tool", ["label", "score"])
def test_a_program_that_no_completion_can_be_is_refused(model, capsys, tool):
    """After the problem's open beginning it would be another program, and a broken one."""
    program = HEAD.replace(":\n", ":  # mine\n") + "    return x\n"
    assert program != HEAD + "    return x\n"
    Path("programs.jsonl").write_text(json.dumps({"task_id": "a", "program": program}))
    said = refusal(capsys, tool, model)
    assert "line 1: program does not begin with the problem's program_prefix" in said
    assert repr(HEAD) in said and "as completion" in said
