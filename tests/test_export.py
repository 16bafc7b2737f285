"""Export: what is written is what was trained, in the layout that other libraries read."""

import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tiny_checkpoints
from safetensors import safe_open
from safetensors.numpy import load_file
from tiny_checkpoints import CONFIGS, VOCAB

from prm_jax.checkpoint import Checkpoints
from prm_jax.config import (
    Config,
    ConfigError,
    DenseConfig,
    LabelConfig,
    MeshConfig,
    ModelConfig,
    PPOConfig,
    PRMConfig,
    PromptsConfig,
    RopeConfig,
    TokenizerConfig,
    to_json,
)
from prm_jax.export import main, model_card
from prm_jax.model.heads import PolicyModel, ScalarModel
from prm_jax.model.lora import join, merge_lora, split_trainable
from prm_jax.pretrained import (
    PretrainedError,
    load_params,
    read_model_config,
    save,
    save_policy,
    save_scalar,
)
from prm_jax.pretrained.safetensors import INDEX, SafetensorsFolder, write_safetensors
from prm_jax.pretrained.save import whole_folder
from prm_jax.sharding import abstract_params, make_mesh
from prm_jax.stages.chosen import Asking, ModelChoice, choose_config
from prm_jax.tokenizer import Tokenizer

TINY = ModelConfig(layers=2, embed=16, heads=2, kv_heads=1, head_dim=8, mlp=24)


def one_device():
    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    Tokenizer.train(["def f(x):\n    return x + 1\n"], 300, path)
    return path


def random_params(model):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jax.device_put(rng.normal(size=x.shape).astype(np.float32)),
        abstract_params(model, one_device()),
    )


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_was_read_is_written_again_bit_by_bit(tmp_path, name, tokenizer):
    read = tiny_checkpoints.write(tmp_path / "read", CONFIGS[name] | {"vocab_size": VOCAB})
    config = read_model_config(read)
    # The tokenizer is larger than the model: rows are added, and written, as it needs them.
    vocab_size = Tokenizer.load(tokenizer).vocab_size
    model = PolicyModel(config, vocab_size, 0)
    params = load_params(read, model, one_device())
    out = tmp_path / "written"
    beside = tmp_path / "tokenizer.json"
    beside.write_bytes(tokenizer.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    save_policy(params, model, out, tokenizer_from=beside, card="# A card\n")
    written = load_file(out / "model.safetensors")
    weights = tiny_checkpoints.tensors(CONFIGS[name])
    assert written.keys() == weights.keys()
    for key, value in weights.items():
        np.testing.assert_array_equal(written[key][: len(value)], value)
    again = read_model_config(out)
    assert dataclasses.replace(again, path=config.path, vocab_size=VOCAB) == config
    assert again.vocab_size == vocab_size
    assert_same(load_params(out, PolicyModel(again, vocab_size, 0), one_device()), params)
    with safe_open(out / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
    assert (out / "README.md").read_text() == "# A card\n"


def test_rows_of_a_padding_token_that_no_tokenizer_has_are_cut(tmp_path, tokenizer):
    spec = json.loads(tokenizer.read_text())
    size = 1 + max(spec["model"]["vocab"].values())
    config = dataclasses.replace(TINY, vocab_size=size, tied_embeddings=False)
    model = PolicyModel(config, size + 1, size)
    params = random_params(model)
    out = tmp_path / "out"
    save_policy(params, model, out, tokenizer_from=tokenizer, card="")
    written = load_file(out / "model.safetensors")
    for name, ours in (
        ("model.embed_tokens.weight", params["trunk"]["embedding"]),
        ("lm_head.weight", params["head"].T),
    ):
        np.testing.assert_array_equal(written[name], ours[:size])


def test_a_scalar_model_is_a_token_classifier_with_one_label(tmp_path, tokenizer):
    model = ScalarModel(TINY, Tokenizer.load(tokenizer).vocab_size)
    params = random_params(model)
    out = tmp_path / "out"
    save_scalar(params, model, out, tokenizer_from=tokenizer, card="")
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["LlamaForTokenClassification"]
    assert config["id2label"] == {"0": "score"}
    written = load_file(out / "model.safetensors")
    np.testing.assert_array_equal(written["score.weight"], params["head"]["kernel"][None])
    np.testing.assert_array_equal(written["score.bias"], params["head"]["bias"][None])
    assert not (out / "generation_config.json").exists()
    again = ScalarModel(read_model_config(out), model.vocab_size)
    assert_same(load_params(out, again, one_device()), params)


def test_adapters_are_folded_in(tmp_path, tokenizer):
    lora = dataclasses.replace(TINY, lora_rank=2)
    model = PolicyModel(lora, Tokenizer.load(tokenizer).vocab_size, 0)
    params = random_params(model)
    save_policy(params, model, tmp_path / "out", tokenizer_from=tokenizer, card="")
    plain = PolicyModel(TINY, model.vocab_size, 0)
    read = load_params(tmp_path / "out", plain, one_device())
    assert_merged(read, jax.device_get(params), scale=lora.lora_alpha / 2)


def assert_merged(merged, params, scale):
    """W + alpha / rank A B, in NumPy; gate and up are two such kernels in one."""
    for name, value in params.items():
        if isinstance(value, dict):
            assert_merged(merged[name], value, scale)
        elif name.endswith("_kernel"):
            a, b = (params[name.removesuffix("kernel") + end] for end in ("lora_a", "lora_b"))
            if name == "gate_up_kernel":
                product = np.stack([a[:, part] @ b[part] for part in (0, 1)], axis=1)
            else:
                rank = a.shape[-1]
                product = (a.reshape(-1, rank) @ b.reshape(rank, -1)).reshape(value.shape)
            np.testing.assert_allclose(merged[name], value + scale * product, rtol=1e-5, atol=1e-4)
        elif "_lora_" not in name:
            np.testing.assert_array_equal(merged[name], value)


def test_adapters_are_folded_in_one_kernel_at_a_time(tmp_path, tokenizer, monkeypatch):
    """A second copy of all kernels would not fit beside a large model."""
    model = PolicyModel(dataclasses.replace(TINY, layers=6, lora_rank=2), 300, 0)
    params = random_params(model)
    largest = max(x.nbytes for x in jax.tree.leaves(params))

    def n_bytes():
        return sum(x.nbytes for x in jax.live_arrays())

    before, seen = n_bytes(), []

    def write(folder, shapes, dtype, tensors):
        seen.extend(n_bytes() for _ in tensors)

    monkeypatch.setattr(save, "write_safetensors", write)
    save_policy(params, model, tmp_path / "out", tokenizer_from=tokenizer, card="")
    assert max(seen) - before <= 2 * largest


def test_bfloat16_weights_are_the_float32_ones_rounded(tmp_path, tokenizer):
    model = PolicyModel(TINY, Tokenizer.load(tokenizer).vocab_size, 0)
    params = random_params(model)
    out = tmp_path / "out"
    save_policy(params, model, out, tokenizer_from=tokenizer, card="", dtype="bfloat16")
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"
    source = SafetensorsFolder(out)
    rows = source.rows("model.embed_tokens.weight", 0, model.vocab_size)
    assert rows.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(rows, params["trunk"]["embedding"].astype(jnp.bfloat16))


@pytest.mark.parametrize(
    ("settings", "tokenizer_class", "family", "zeros"),
    [
        ({}, "", "llama", ()),
        ({"qkv_bias": True}, "Qwen2TokenizerFast", "qwen2", ()),
        ({"qkv_bias": True}, "", "llama", ("out",)),  # transformers' Qwen2 has its own tokenizer
        ({"qkv_bias": True, "out_bias": True}, "Qwen2Tokenizer", "llama", ()),
        ({"mlp_bias": True}, "", "llama", ()),
        ({"qkv_bias": True, "mlp_bias": True}, "", "llama", ("out",)),
        ({"out_bias": True}, "", "llama", ("query", "key", "value")),
        ({"qk_norm": True}, "", "qwen3", ()),
        ({"qk_norm": True, "qkv_bias": True, "out_bias": True}, "", "qwen3", ()),
        ({"qk_norm": True, "qkv_bias": True}, "", "qwen3", ("out",)),
        ({"qk_norm": True, "mlp_bias": True}, "", None, ()),
    ],
)
def test_a_family_that_can_hold_the_model_is_chosen(
    tmp_path, tokenizer, settings, tokenizer_class, family, zeros
):
    config = dataclasses.replace(TINY, max_positions=64, **settings)
    model = PolicyModel(config, Tokenizer.load(tokenizer).vocab_size, 0)
    params = random_params(model)
    folder, out = tmp_path / "tokenizer", tmp_path / "out"
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    names = {"eos_token": "<eos>", "tokenizer_class": tokenizer_class}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    if family is None:
        with pytest.raises(PretrainedError, match="cannot be exported"):
            save_policy(params, model, out, tokenizer_from=folder, card="")
        assert not out.exists()
        return
    save_policy(params, model, out, tokenizer_from=folder, card="")
    assert json.loads((out / "config.json").read_text())["model_type"] == family
    again = read_model_config(out)
    read = load_params(out, PolicyModel(again, model.vocab_size, 0), one_device())
    attention = read["trunk"]["layers_1"]["attention"]
    for name in zeros:
        assert not attention.pop(f"{name}_bias").any()
    assert attention.keys() == params["trunk"]["layers_1"]["attention"].keys()
    added = {"out_bias": "out" in zeros, "qkv_bias": "query" in zeros}
    expected = dataclasses.replace(config, **{name: True for name, is_so in added.items() if is_so})
    assert dataclasses.replace(again, path="", vocab_size=0) == expected


@pytest.mark.parametrize(
    "rope",
    [
        RopeConfig(5e5),
        RopeConfig(scaling="linear", factor=2.0),
        RopeConfig(scaling="dynamic", factor=2.0, original_positions=64),
        RopeConfig(
            scaling="llama3", factor=8.0, original_positions=32, low_freq_factor=0.5,
            high_freq_factor=3.0,
        ),
        RopeConfig(scaling="yarn", factor=4.0, original_positions=16, attention_factor=1.2),
        RopeConfig(scaling="yarn", factor=4.0, original_positions=16, truncate=False),
    ],
)  # fmt: skip
def test_every_rope_scaling_survives_the_way_out_and_in(tmp_path, tokenizer, rope):
    config = dataclasses.replace(TINY, max_positions=64, rope=rope)
    model = PolicyModel(config, Tokenizer.load(tokenizer).vocab_size, 0)
    params = random_params(model)
    save_policy(params, model, tmp_path / "out", tokenizer_from=tokenizer, card="")
    assert read_model_config(tmp_path / "out").rope == rope


def test_tensors_beyond_the_size_of_a_file_go_to_the_next(tmp_path):
    shapes = {name: (3, 4) for name in "abcde"} | {"large": (100,)}
    arrays = {name: np.random.default_rng(0).random(shape) for name, shape in shapes.items()}
    write_safetensors(tmp_path, shapes, np.dtype(np.float32), arrays.items(), shard_bytes=100)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert files == [f"model-{i:05d}-of-00004.safetensors" for i in (1, 2, 3, 4)]
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == 4 * (5 * 12 + 100)
    for name, value in arrays.items():
        file = load_file(tmp_path / index["weight_map"][name])
        np.testing.assert_array_equal(file[name], value.astype(np.float32))
    source = SafetensorsFolder(tmp_path)
    np.testing.assert_array_equal(source.rows("d", 1, 3), arrays["d"][1:].astype(np.float32))


def test_a_folder_that_was_not_finished_is_never_seen(tmp_path):
    class Stopped(BaseException):
        pass

    out = tmp_path / "out"
    with pytest.raises(Stopped), whole_folder(out) as part:
        (part / "model.safetensors").write_bytes(b"half")
        raise Stopped
    assert os.listdir(tmp_path) == []
    out.mkdir()  # an empty folder may be there
    with whole_folder(out) as part:
        (part / "whole").write_text("")
    assert os.listdir(tmp_path) == ["out"] and os.listdir(out) == ["whole"]
    with pytest.raises(PretrainedError, match="is not an empty folder"), whole_folder(out):
        pass


# -------------------------------------------------------------------------------- of a whole run


@pytest.fixture(scope="module")
def run(tmp_path_factory, tokenizer):
    """The workdir of a run that got as far as its PRM."""
    workdir = tmp_path_factory.mktemp("run")
    (workdir / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    (workdir / "config.json").write_text(to_json(Config(model=TINY)))
    text = Tokenizer.load(tokenizer)
    policy, scalar = (
        PolicyModel(TINY, text.vocab_size, text.pad_id),
        ScalarModel(TINY, text.vocab_size),
    )
    trained = {}
    for kind, model, steps in (
        ("sft/policy", policy, (600,)),
        ("rl/policy", policy, (50, 100)),
        ("prm/model", scalar, (600,)),
    ):
        with Checkpoints(workdir / kind) as checkpoints:
            for step in steps:
                trained[kind, step] = jax.tree.map(lambda x, n=step: x + n, random_params(model))
                checkpoints.save(step, trained[kind, step])
        done = {"steps": steps[-1], "quality": {"auc_within_problem": 0.75, "calibration": [{}]}}
        (workdir / kind).with_name("done.json").write_text(json.dumps(done))
    return workdir, trained


@pytest.mark.parametrize(
    ("checkpoint", "kind", "step"),
    [
        ("", "rl/policy", 100),
        ("rl/policy@50", "rl/policy", 50),
        ("sft/policy", "sft/policy", 600),
        ("prm/model", "prm/model", 600),
    ],
)
def test_the_command_takes_the_checkpoint_that_was_asked_for(tmp_path, run, checkpoint, kind, step):
    workdir, trained = run
    out = tmp_path / "out"
    options = ["--checkpoint", checkpoint] if checkpoint else []
    assert main(["--run", str(workdir), "--out", str(out), *options]) == 0
    config = read_model_config(out)
    model_class = (lambda c, v: PolicyModel(c, v, 0)) if kind.endswith("policy") else ScalarModel
    params = load_params(out, model_class(config, config.vocab_size), one_device())
    assert_same(params, trained[kind, step])
    card = (out / "README.md").read_text()
    assert f"`{kind}` at step {step}" in card
    assert ("score of the program up to and including that line" in card) == (kind == "prm/model")
    if kind == "prm/model":
        for words in ("### label", "samples_per_prefix = 8", "quality.auc_within_problem = 0.75"):
            assert words in card
    # Its length is the run's grid, its tokens the run's.
    assert config.max_positions == Config().max_prompt_tokens + Config().max_completion_tokens
    assert Tokenizer.load(out).encode("def f(x):\n") == Tokenizer.load(workdir).encode(
        "def f(x):\n"
    )
    settings = json.loads((out / "config.json").read_text())
    text = Tokenizer.load(workdir / "tokenizer.json")
    assert (settings["eos_token_id"], settings["pad_token_id"]) == (text.eos_id, text.pad_id)
    if kind != "prm/model":
        generation = json.loads((out / "generation_config.json").read_text())
        assert generation["suppress_tokens"] == [text.pad_id]
        assert generation["eos_token_id"] == text.eos_id


CARDS = [
    ({}, ("sft", "rl", "label", "prm", "rl_prm"),
     ("line rewards of the process reward model", "critic starts from the process reward model"),
     ("oracle", "without line rewards")),
    ({"value_init": False}, ("sft", "rl", "label", "prm", "rl_prm"),
     ("line rewards of the process reward model", "critic starts from the fine-tuned policy"), ()),
    ({"dense": DenseConfig(enabled=False)}, ("sft", "rl", "label", "prm", "rl_prm"),
     ("without line rewards", "critic starts from the process reward model"), ()),
    ({"dense": DenseConfig(enabled=False), "value_init": False}, ("sft", "rl_prm"),
     ("without line rewards", "critic starts from the fine-tuned policy"),
     ("process reward model",)),
    ({"dense": DenseConfig(source="oracle"), "value_init": False}, ("sft", "rl_prm"),
     ("line rewards of an exact oracle", "ppo.steps = "), ("process reward model",)),
    ({"dense": DenseConfig(source="oracle")}, ("sft", "rl", "label", "prm", "rl_prm"),
     ("line rewards of an exact oracle", "critic starts from the process reward model"), ()),
    ({"dense": DenseConfig(source="labels"), "value_init": False}, ("sft", "rl_prm"),
     ("labels of its own failing responses", "label.samples_per_prefix = 8"),
     ("process reward model",)),
    ({"dense": DenseConfig(source="labels", prm_updates=2), "value_init": False}, ("sft", "rl_prm"),
     ("process reward model that learned on the way", "prm.batch_size = 64",
      "label.samples_per_prefix = 8"), ()),
    ({"value_init": False, "ppo": PPOConfig(advantage="group", samples_per_prompt=4)},
     ("sft", "rl", "label", "prm", "rl_prm"), ("there is no critic",), ("critic starts",)),
    ({"prm": PRMConfig(loss_on="outcome"), "label": LabelConfig(search="dense")},
     ("sft", "rl", "label", "prm", "rl_prm"), ("An outcome model", "every prefix"),
     ("binary search", "squared error on these labels")),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "stages", "said", "unsaid"), CARDS)
def test_a_card_says_what_the_settings_made_happen(tmp_path, settings, stages, said, unsaid):
    card = model_card(tmp_path, Config(**settings), "rl_prm/policy", 3)
    found = [line.removeprefix("### ") for line in card.split("\n") if line.startswith("### ")]
    assert tuple(found) == stages
    story = card[card.index("## How it was trained") :]
    assert all(words in story for words in said) and not any(words in story for words in unsaid)


@pytest.mark.parametrize("checkpoint", ["rl/policy", "prm/model"])
def test_an_export_says_how_it_is_asked_and_the_tools_listen(tmp_path, tokenizer, run, checkpoint):
    """Its tokenizer has a chat template, and it was trained to complete all the same."""
    folder = tmp_path / "open"
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    workdir = tmp_path / "run"
    workdir.mkdir()
    config = Config(
        model=TINY, tokenizer=TokenizerConfig(path=str(folder / "tokenizer.json")),
        prompts=PromptsConfig(stop=("\n\n",)), max_prompt_tokens=33, max_completion_tokens=44,
    )  # fmt: skip
    (workdir / "config.json").write_text(to_json(config))
    for kind in ("rl", "prm"):
        (workdir / kind).symlink_to(run[0] / kind)
    out = tmp_path / "out"
    assert main(["--run", str(workdir), "--out", str(out), "--checkpoint", checkpoint]) == 0
    asked = choose_config(ModelChoice(out))
    assert asked.prompts == config.prompts
    assert (asked.max_prompt_tokens, asked.max_completion_tokens) == (33, 44)
    given = choose_config(ModelChoice(out, asking=Asking(style="chat", max_completion_tokens=7)))
    assert (given.prompts.style, given.max_completion_tokens) == ("chat", 7)
    for text, words in (("[", "is not JSON"), ("{}", "must hold"), ("[1]", "must hold")):
        (out / "prm_jax.json").write_text(text)
        with pytest.raises(ConfigError, match=words):
            choose_config(ModelChoice(out))
    (out / "prm_jax.json").unlink()  # as any other model
    assert choose_config(ModelChoice(out)).prompts.style == "chat_fence"


def test_what_lies_beside_the_tokenizer_goes_along(tmp_path, run, tokenizer):
    folder = tmp_path / "open-model"
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    names = {"eos_token": {"content": "<eos>"}, "chat_template": "{{ messages }}", "odd": 1}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 7, "top_p": 0.8}))
    (folder / "chat_template.jinja").write_text("{{ messages[0] }}")
    model = PolicyModel(TINY, Tokenizer.load(tokenizer).vocab_size, 0)
    out = tmp_path / "out"
    save_policy(random_params(model), model, out, tokenizer_from=folder, card="")
    written = json.loads((out / "tokenizer_config.json").read_text())
    assert written.items() >= names.items()
    assert (out / "chat_template.jinja").read_text() == "{{ messages[0] }}"
    eos = Tokenizer.load(tokenizer).eos_id
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation == {"eos_token_id": [eos, 7], "top_p": 0.8}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--checkpoint", "rl_prm/policy"],
            "choose one that is (sft/policy, rl/policy, prm/model)",
        ),
        (["--checkpoint", "rl/policy@60"], "rl/policy has steps 50, 100"),
        (["--checkpoint", "rl/policy@last"], "rl/policy has steps 50, 100"),
        (["--run", "nowhere"], "nowhere/config.json is not there"),
        (["--out", "full"], "--out = 'full' is not an empty folder"),
    ],
)
def test_what_the_command_cannot_do_it_says(tmp_path, run, capsys, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("")
    given = {"--run": str(run[0]), "--out": "out"} | dict([options])
    assert main([x for pair in given.items() for x in pair]) == 2
    assert words in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["full"]


def test_a_tokenizer_from_elsewhere_goes_with_the_export(tmp_path, run, tokenizer):
    workdir = tmp_path / "run"
    config = Config(model=TINY, tokenizer=TokenizerConfig(path=str(tokenizer), eos="x"))
    (workdir / "sft").mkdir(parents=True)
    (workdir / "config.json").write_text(to_json(config))
    (workdir / "sft/policy").symlink_to(run[0] / "sft/policy")
    assert main(["--run", str(workdir), "--out", str(tmp_path / "out")]) == 0
    names = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert names["eos_token"] == "x"


def test_a_run_of_adapters_leaves_as_its_open_model_with_them_folded_in(tmp_path, tokenizer):
    text = Tokenizer.load(tokenizer)
    settings = CONFIGS["qwen3, tied"] | {"vocab_size": text.vocab_size}
    base = tiny_checkpoints.write(tmp_path / "base", settings)
    (base / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    lora = read_model_config(base, lora_rank=2)
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "config.json").write_text(to_json(Config(model=lora)))
    policy = PolicyModel(lora, text.vocab_size, text.pad_id)
    scalar = ScalarModel(lora, text.vocab_size)
    for kind, model in (("rl/policy", policy), ("prm/model", scalar)):
        trained, _ = split_trainable(random_params(model))
        with Checkpoints(workdir / kind) as checkpoints:
            checkpoints.save(1, trained)
        out = tmp_path / kind.replace("/", "-")
        command = ["--run", str(workdir), "--out", str(out), "--checkpoint", kind]
        assert main(command) == 0
        plain = model.clone(config=read_model_config(out))
        whole = load_params(base, policy, one_device())
        expected = merge_lora(join(trained, {"trunk": whole["trunk"]}), lora)
        assert_same(load_params(out, plain, one_device()), expected)
        assert "from the weights `base`" in (out / "README.md").read_text()
