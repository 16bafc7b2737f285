"""The whole method on a model that someone brings, with its chat template and their problems."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_checkpoints
from test_train import arrays

from prm_jax import train
from prm_jax.config import Config, ConfigError, ModelConfig
from prm_jax.stages.opening import with_architecture
from prm_jax.tokenizer import Tokenizer

ROOT = Path(__file__).parents[1]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = {"double": "x * 2", "triple": "x * 3", "negate": "-x", "square": "x * x"}


def problem(split: str, number: int) -> dict:
    word = list(WORDS)[number % len(WORDS)]
    name = f"{word}_{number}"
    return {
        "task_id": f"{split}/{number}",
        "split": split,
        "prompt": f"# {word}\n",
        "instruction": f"{word} x, as {name}",
        "solution": f"def {name}(x):\n    y = {WORDS[word]}\n    return y\n",
        "tests": [f"assert {name}({x}) == {eval(WORDS[word], {'x': x})}" for x in (3, 5)],
        "difficulty": word,
    }


@pytest.fixture(scope="module")
def brought(tmp_path_factory) -> Path:
    """A folder with a model in Hugging Face layout and a problem set."""
    folder = tmp_path_factory.mktemp("brought")
    rows = [problem(s, n) for s, size in (("train", 12), ("test", 4)) for n in range(size)]
    rows[0]["instruction"] *= 40  # a prompt that is too long to train on
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [row["instruction"] + row["solution"] for row in rows]
    Tokenizer.train(texts, 300, folder / "model/tokenizer.json")
    (folder / "model/tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<eos>", "pad_token": "<pad>", "chat_template": CHAT})
    )
    size = Tokenizer.load(folder / "model/tokenizer.json").vocab_size
    qwen = tiny_checkpoints.CONFIGS["qwen2, one key head, tied"]
    config = qwen | {"vocab_size": size, "max_position_embeddings": 256, "rope_theta": 10_000.0}
    tiny_checkpoints.write(folder / "model", config)
    return folder


CONFIG = """
from prm_jax.config import *

def get_config():
    return Config(
        max_prompt_tokens=96, max_completion_tokens=48, device_batch=16,
        problems=ProblemsConfig(name={name!r}, validation=3),
        prompts=PromptsConfig(style="chat_fence"),
        model=ModelConfig(path={path!r}, lora_rank=4),
        sft=SFTConfig(steps=4, batch_size=8, warmup_steps=1, checkpoint_every=2),
        ppo=PPOConfig(
            steps=2, rollouts=16, samples_per_prompt=2, minibatches=2, checkpoint_every=1
        ),
        label=LabelConfig(
            checkpoints=1, prompts=4, validation_prompts=2, samples_per_prefix=2, wave=2
        ),
        prm=PRMConfig(
            steps=2, batch_size=8, warmup_steps=1, checkpoint_every=1, selection="full"
        ),
        evaluate=EvaluateConfig(samples=1, temperature=0.0, bootstrap=20),
    )
"""


@pytest.fixture(scope="module")
def workdir(brought) -> Path:
    """The workdir of a finished run."""
    workdir, config = brought / "run", brought / "config.py"
    config.write_text(CONFIG.format(name=str(brought / "mine.jsonl"), path=str(brought / "model")))
    done = subprocess.run(
        [sys.executable, "-m", "prm_jax.train", "--config", config, "--workdir", workdir],
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(brought / "compiled")},
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "left out: 1 of 9 training problems" in done.stderr
    return workdir


def test_every_stage_runs_on_it(workdir):
    found = json.loads((workdir / "results.json").read_text())
    assert set(found["arms"]) == {"sft", "rl", "rl_prm"}
    assert all(arm["pass_at_1"]["n"] == 4 for arm in found["arms"].values())
    assert "oracle_first_error_exact" not in found["labels"]  # only the built-in problems have one
    config = json.loads((workdir / "config.json").read_text())
    assert config["model"]["embed"] == 16 and config["model"]["qkv_bias"]
    assert (workdir / "report.html").exists()


def test_adapters_are_all_that_is_trained_and_kept(workdir):
    before, after = arrays(workdir / "sft/policy/4"), arrays(workdir / "rl_prm/policy/2")
    assert before.keys() == after.keys() and len(before) > 10
    assert all("_lora_" in name for name in before)
    assert any((before[name] != after[name]).any() for name in before)
    prm = arrays(workdir / "prm/model/2")
    assert {n for n in prm if "_lora_" not in n} == {"head.kernel", "head.bias"}
    assert prm["head.kernel"].any()
    assert before.keys() == {name for name in prm if "_lora_" in name}


def test_an_architecture_that_contradicts_the_weights_is_refused(brought):
    path = str(brought / "model")
    found = with_architecture(Config(model=ModelConfig(path=path, lora_rank=2))).model
    assert (found.layers, found.lora_rank, found.path) == (2, 2, path)
    with pytest.raises(ConfigError, match=r"model\.layers = 7 is not allowed: .* have 2"):
        with_architecture(Config(model=ModelConfig(path=path, layers=7)))
    assert with_architecture(Config()) == Config()
    spelled = Config(model=ModelConfig(path=f"{brought}/./model/"))
    assert with_architecture(spelled).model.embed == 16
    with pytest.raises(ConfigError, match=r"model\.lora_rank = 2 .* without model\.path"):
        with_architecture(Config(model=ModelConfig(lora_rank=2)))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("--model.path=nowhere", "model.path = 'nowhere'"),
        ("--max-completion-tokens=8", "max_completion_tokens = 8"),
        ("--max-prompt-tokens=240", "made for 256 positions"),
        ("--problems.train-prompt-tokens=3", "problems.train_prompt_tokens = 3"),
        ("--problems.name=human_eval", "training needs splits train and test"),
        ("--problems.validation=12", "problems.validation = 12"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(brought, tmp_path, capsys, override, said):
    config = brought / "config.py"
    config.write_text(CONFIG.format(name=str(brought / "mine.jsonl"), path=str(brought / "model")))
    argv = ["--config", str(config), "--workdir", str(tmp_path / "run"), override]
    assert train.main(argv) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run/sft").exists()


def test_full_training_starts_from_the_weights_as_they_are(brought, tmp_path):
    """sft.steps = 0 leaves the imported policy, bit for bit."""
    config = brought / "config.py"
    config.write_text(CONFIG.format(name=str(brought / "mine.jsonl"), path=str(brought / "model")))
    argv = ["--config", str(config), "--workdir", str(tmp_path / "run"), "--stages", "sft"]
    assert train.main([*argv, "--model.lora-rank=0", "--sft.steps=0"]) == 0
    kept = arrays(tmp_path / "run/sft/policy/1")
    weights = tiny_checkpoints.tensors(json.loads((brought / "model/config.json").read_text()))
    np.testing.assert_array_equal(kept["trunk.embedding"], weights["model.embed_tokens.weight"])
