"""Import: logits are transformers' (recorded in tests/data), and what does not fit is named."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tiny_checkpoints
from safetensors.numpy import save_file
from tiny_checkpoints import CONFIGS, VOCAB

from prm_jax.config import ConfigError, MeshConfig, RopeConfig
from prm_jax.model.attention import Cache
from prm_jax.model.heads import PolicyModel, ScalarModel
from prm_jax.model.rope import rotary_angles, rotary_frequencies
from prm_jax.pretrained import PretrainedError, load_params, read_model_config
from prm_jax.sharding import make_mesh

PAD = 0  # no row of the batch has it
RECORDED = json.loads(
    Path(__file__).with_name("data").joinpath("transformers_logits.json").read_text()
)
LLAMA = CONFIGS["llama 2, full attention, untied"]


def one_device():
    return make_mesh(MeshConfig(), jax.devices()[:1])


@functools.cache
def imported(name, folder):
    path = tiny_checkpoints.write(Path(folder) / name, CONFIGS[name])
    model = PolicyModel(read_model_config(path), VOCAB, PAD)
    return model, load_params(path, model, one_device())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tmp_path_factory.mktemp("checkpoints"))


def assert_logits(got, row, name):
    expected = np.array(RECORDED[name][row])
    np.testing.assert_allclose(got[:, 1:], expected[:, 1:], atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_transformers_with_padding_on_either_side(name, folder):
    model, params = imported(name, folder)
    rows = RECORDED["tokens"]
    assert rows == tiny_checkpoints.batch()
    width = max(map(len, rows)) + 2
    apply = jax.jit(model.apply)
    for left in (True, False):
        tokens, valid = np.full((2, width), PAD), np.zeros((2, width), bool)
        places = [slice(width - len(row), width) if left else slice(0, len(row)) for row in rows]
        for i, (row, place) in enumerate(zip(rows, places, strict=True)):
            tokens[i, place], valid[i, place] = row, True
        logits = np.asarray(apply({"params": params}, jnp.asarray(tokens), jnp.asarray(valid)))
        for i, place in enumerate(places):
            assert_logits(logits[i, place], i, name)


@pytest.mark.parametrize("name", CONFIGS)
def test_cached_decoding_gives_the_logits_of_transformers(name, folder):
    model, params = imported(name, folder)
    apply = functools.partial(model.apply, {"params": params})
    row, p = RECORDED["tokens"][0], 4
    prompt = jnp.asarray([[PAD, PAD, *row[:p]]])
    valid = prompt != PAD
    hidden, read = apply(prompt, valid, method="hidden")
    found = list(np.asarray(apply(hidden, method="logits"))[0, 2:])
    c = model.config
    empty = jnp.zeros((1, c.kv_heads, len(row) - p, c.head_dim))
    written = ((empty, empty),) * c.layers

    @jax.jit
    def decode(written, token, t):
        cache = Cache(read, valid, written, t[None], 2 + len(row))
        hidden, written = apply(token, token != PAD, cache, method="hidden")
        return apply(hidden, method="logits")[0, 0], written

    for t, token in enumerate(row[p:]):
        logits, written = decode(written, jnp.asarray([[token]]), jnp.int32(t))
        found.append(np.asarray(logits))
    assert_logits(np.array(found), 0, name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", np.float16])
def test_every_dtype_of_a_file_is_read_and_cast(tmp_path, dtype):
    path = tiny_checkpoints.write(tmp_path, LLAMA, dtype=dtype)
    model = PolicyModel(read_model_config(path), VOCAB, PAD)
    stored = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    for wanted in ("float32", "bfloat16"):
        params = load_params(path, model, one_device(), dtype=wanted)
        assert {x.dtype.name for x in jax.tree.leaves(params)} == {wanted}
        exact = tiny_checkpoints.tensors(LLAMA)["model.embed_tokens.weight"].astype(stored)
        np.testing.assert_array_equal(params["trunk"]["embedding"], exact.astype(wanted))


@pytest.mark.parametrize("mesh", [MeshConfig(1, 8, 1), MeshConfig(1, 2, 4), MeshConfig(2, 2, 2)])
def test_shards_on_a_mesh_are_the_pieces_of_the_whole(folder, monkeypatch, mesh):
    name = "llama 2, full attention, untied"
    model, whole = imported(name, folder)
    mesh = make_mesh(mesh)
    # Blocks of a few rows, so that shards and blocks cross in every way.
    monkeypatch.setattr("prm_jax.pretrained.load.BLOCK_BYTES", 3 * 16 * 4)
    params = load_params(Path(folder) / name, model, mesh)
    for piece, all_of_it in zip(*map(jax.tree.leaves, (params, whole)), strict=True):
        np.testing.assert_array_equal(piece, all_of_it)
    kernel = params["trunk"]["layers_0"]["attention"]["query_kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // (
        mesh.shape["fsdp"] * mesh.shape["tensor"]
    )


def test_a_checkpoint_in_many_files_reads_as_in_one(tmp_path, folder):
    name = "qwen3, tied"
    model, whole = imported(name, folder)
    weights = tiny_checkpoints.tensors(CONFIGS[name])
    path = tiny_checkpoints.write(tmp_path, CONFIGS[name], weights={})
    (path / "model.safetensors").unlink()
    names = sorted(weights)
    weight_map = {}
    for i in range(3):
        part = f"model-{i}.safetensors"
        save_file({n: weights[n] for n in names[i::3]}, path / part)
        weight_map |= dict.fromkeys(names[i::3], part)
    index = path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    params = load_params(path, model, one_device())
    for a, b in zip(*map(jax.tree.leaves, (params, whole)), strict=True):
        np.testing.assert_array_equal(a, b)
    (path / "model-1.safetensors").unlink()
    with pytest.raises(PretrainedError, match=r"lacks model-1\.safetensors"):
        load_params(path, model, one_device())


def test_all_tensors_that_do_not_fit_are_named_at_once(tmp_path):
    weights = tiny_checkpoints.tensors(LLAMA)
    del weights["model.norm.weight"], weights["model.layers.1.mlp.up_proj.weight"]
    weights["model.layers.0.self_attn.q_proj.weight"] = np.zeros((16, 17), np.float32)
    weights["model.layers.2.mlp.up_proj.weight"] = np.zeros((20, 16), np.float32)
    path = tiny_checkpoints.write(tmp_path, LLAMA, weights)
    model = PolicyModel(read_model_config(path), VOCAB, PAD)
    with pytest.raises(PretrainedError) as error:
        load_params(path, model, one_device())
    for line in (
        "4 tensors differ",
        "model.norm.weight is missing",
        "model.layers.1.mlp.up_proj.weight is missing",
        "model.layers.0.self_attn.q_proj.weight has shape (16, 17), the model needs (16, 16)",
        "model.layers.2.mlp.up_proj.weight is not in the model",
    ):
        assert line in str(error.value)


def test_buffers_of_old_checkpoints_and_a_tied_head_are_left_out(tmp_path):
    config = CONFIGS["qwen3, tied"]
    weights = tiny_checkpoints.tensors(config)
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    path = tiny_checkpoints.write(tmp_path, config, weights)
    model = PolicyModel(read_model_config(path), VOCAB, PAD)
    params = load_params(path, model, one_device())
    assert "head" not in params


def test_a_vocabulary_that_is_padded_has_mean_rows_at_its_end(tmp_path):
    path = tiny_checkpoints.write(tmp_path, LLAMA)
    model = PolicyModel(read_model_config(path), VOCAB + 8, VOCAB)
    weights = tiny_checkpoints.tensors(LLAMA)
    for mesh in (one_device(), make_mesh(MeshConfig(1, 2, 4))):
        params = load_params(path, model, mesh)
        embedding, head = params["trunk"]["embedding"], params["head"].T
        for ours, name in ((embedding, "model.embed_tokens.weight"), (head, "lm_head.weight")):
            np.testing.assert_array_equal(ours[:VOCAB], weights[name])
            mean = np.broadcast_to(weights[name].mean(axis=0, dtype=np.float64), (8, 16))
            np.testing.assert_allclose(ours[VOCAB:], mean, atol=1e-7)
    small = PolicyModel(read_model_config(path), VOCAB - 1, 0)
    with pytest.raises(PretrainedError, match=r"embed_tokens.weight has shape \(24, 16\)"):
        load_params(path, small, one_device())


def test_a_token_classifier_is_a_scalar_model(tmp_path):
    config = LLAMA | {"architectures": ["LlamaForTokenClassification"]}
    path = tiny_checkpoints.write(tmp_path, config)
    params = load_params(path, ScalarModel(read_model_config(path), VOCAB), one_device())
    weights = tiny_checkpoints.tensors(config)
    np.testing.assert_array_equal(params["head"]["kernel"], weights["score.weight"][0])
    assert params["head"]["bias"] == weights["score.bias"][0]


# ------------------------------------------------------------------------------- config.json


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["GemmaForCausalLM"]}, "GemmaForCausalLM is not supported; supported"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding-window"),
        (
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
            "sliding-window",
        ),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "'longrope'"),
        (
            {"rope_scaling": {"rope_type": "yarn"}, "max_position_embeddings": None},
            "'yarn' has no factor",
        ),
        (
            {"rope_scaling": {"rope_type": "linear"}, "max_position_embeddings": None},
            "'linear' has no factor",
        ),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary"),
        ({"hidden_size": None}, "hidden_size = None"),
        ({"num_key_value_heads": 3}, "model.kv_heads = 3"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(tmp_path, changes, words):
    tiny_checkpoints.write(tmp_path, LLAMA | changes, weights={})
    with pytest.raises(PretrainedError) as error:
        read_model_config(tmp_path)
    assert words in str(error.value) and "config.json" in str(error.value)


def test_a_window_that_no_layer_uses_is_no_window(tmp_path):
    unused = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
    tiny_checkpoints.write(tmp_path, LLAMA | unused, weights={})
    assert read_model_config(tmp_path).layers == 2


def test_settings_that_the_weights_do_not_decide_are_the_callers(tmp_path):
    tiny_checkpoints.write(tmp_path, LLAMA, weights={})
    config = read_model_config(tmp_path, dtype="bfloat16", lora_rank=4)
    assert (config.dtype, config.lora_rank, config.path) == ("bfloat16", 4, str(tmp_path))


def test_positions_of_transformers_4_and_5_read_alike(tmp_path):
    scaling = CONFIGS["llama 3, grouped, tied"]["rope_scaling"]
    old = LLAMA | {"rope_scaling": scaling, "rope_theta": 5e5}
    new = {k: v for k, v in LLAMA.items() if k != "rope_theta"}
    new |= {"rope_parameters": scaling | {"rope_theta": 5e5}}
    found = []
    for config in (old, new):
        tiny_checkpoints.write(tmp_path, config, weights={})
        found.append(read_model_config(tmp_path).rope)
    assert found[0] == found[1]
    assert found[0] == RopeConfig(5e5, "llama3", factor=8.0, original_positions=48)


@pytest.mark.parametrize("missing", ["folder", "config", "weights", "torch weights"])
def test_a_folder_without_a_model_says_what_it_lacks(tmp_path, missing):
    path = tiny_checkpoints.write(tmp_path / "model", LLAMA)
    model = PolicyModel(read_model_config(path), VOCAB, PAD)
    if missing == "folder":
        with pytest.raises(PretrainedError, match="neither a folder"):
            read_model_config(tmp_path / "other")
        return
    if missing == "config":
        (path / "config.json").unlink()
        with pytest.raises(PretrainedError, match=r"config\.json is not there"):
            read_model_config(path)
        return
    (path / "model.safetensors").unlink()
    words = "has no safetensors file"
    if missing == "torch weights":
        (path / "pytorch_model.bin").write_bytes(b"")
        words = "pytorch_model.bin must be converted to safetensors"
    with pytest.raises(PretrainedError, match=words):
        load_params(path, model, one_device())


@pytest.mark.parametrize("keep", [4, 100, -200])
def test_a_file_that_was_cut_off_is_named(tmp_path, keep):
    path = tiny_checkpoints.write(tmp_path, LLAMA)
    model = PolicyModel(read_model_config(path), VOCAB, PAD)
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(PretrainedError, match=r"model\.safetensors"):
        load_params(path, model, one_device())


@pytest.mark.parametrize("change", ["dtype", "shape", "data_offsets", "bytes", "null", "negative"])
def test_a_header_that_contradicts_itself_is_named_with_its_tensor(tmp_path, change):
    path = tiny_checkpoints.write(tmp_path, LLAMA)
    model = PolicyModel(read_model_config(path), VOCAB, PAD)
    file, name = path / "model.safetensors", "model.layers.1.mlp.up_proj.weight"
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    entry = header[name]
    if change in entry:
        del entry[change]
    elif change == "null":
        entry["shape"] = None
    else:
        begin, end = entry["data_offsets"]
        entry["data_offsets"] = [begin, end - 4] if change == "bytes" else [begin - end, 0]
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])
    with pytest.raises(PretrainedError) as error:
        load_params(path, model, one_device())
    assert str(file) in str(error.value) and name in str(error.value)


# ---------------------------------------------------------------------------- rotary positions


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scaling": "ntk"}, "model.rope.scaling = 'ntk'"),
        ({"scaling": "yarn", "factor": 2.0}, "model.rope.original_positions = 0"),
        ({"scaling": "linear", "factor": 0.5}, "model.rope.factor = 0.5"),
        ({"high_freq_factor": 1.0}, "greater than model.rope.low_freq_factor = 1.0"),
        ({"theta": 0.0}, "model.rope.theta = 0.0"),
    ],
)
def test_positions_that_make_no_sense_are_refused(settings, words):
    with pytest.raises(ConfigError) as error:
        RopeConfig(**settings)
    assert words in str(error.value)


def test_llama_3_stretches_long_waves_only():
    # theta = 10^4, 8 dimensions: 1, 0.1, 0.01, 0.001 radians per position, so within 300 positions
    # 47.7, 4.77, 0.477 and 0.0477 turns. High 4 and low 0.4: the third lies between the two.
    rope = RopeConfig(
        1e4, "llama3", factor=8.0, original_positions=300, low_freq_factor=0.4, high_freq_factor=4.0
    )
    keep = (300 * 0.01 / (2 * np.pi) - 0.4) / 3.6
    third = keep * 0.01 + (1 - keep) * 0.01 / 8
    np.testing.assert_allclose(rotary_frequencies(rope, 8), [1, 0.1, third, 0.001 / 8], rtol=1e-12)


def test_yarn_scales_queries_and_keys_and_keeps_fast_pairs():
    rope = RopeConfig(1e4, "yarn", factor=4.0, original_positions=1000, beta_fast=30.0)
    # Pair i turns 1000 * 10^-i / 2 pi times: 159, 15.9, 1.59, 0.159. 30 turns are at
    # i = log10(1000 / 60 pi) = 0.72, floored to 0; one turn at log10(1000 / 2 pi) = 2.2, so 3.
    keep = 1 - np.arange(4) / 3
    plain = 10.0 ** -np.arange(4)
    np.testing.assert_allclose(rotary_frequencies(rope, 8), plain * (keep + (1 - keep) / 4))
    cos, _ = rotary_angles(jnp.array([[0]]), 1, 8, rope)
    np.testing.assert_allclose(cos, 0.1 * np.log(4) + 1, rtol=1e-6)


def test_dynamic_scaling_is_refused_beyond_its_original_context():
    rope = RopeConfig(1e4, "dynamic", factor=2.0, original_positions=8)
    rotary_angles(jnp.zeros((1, 8), jnp.int32), 8, 8, rope)
    with pytest.raises(ValueError, match="9 tokens are too many"):
        rotary_angles(jnp.zeros((1, 9), jnp.int32), 9, 8, rope)
