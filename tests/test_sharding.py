import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from prm_jax.config import ConfigError, MeshConfig, ModelConfig
from prm_jax.model.heads import PolicyModel, ScalarModel
from prm_jax.model.score import token_logps
from prm_jax.rl.stops import stop_table
from prm_jax.sharding import (
    ACTIVATION_RULES,
    PARAM_RULES,
    ShardingError,
    abstract_params,
    batch_sharding,
    batch_shards,
    constrain,
    init_params,
    make_mesh,
    optimizer_shardings,
    parameter_table,
    partition_spec,
    replicated,
)
from prm_jax.steps import sample
from prm_jax.steps.prefixes import prefix_programs
from prm_jax.steps.sample import Choice, make_sampler

CONFIG = ModelConfig(
    layers=2, embed=32, heads=4, kv_heads=2, head_dim=8, mlp=48, qkv_bias=True, qk_norm=True
)
VOCAB, PAD, P, C, N, K = 40, 0, 6, 5, 8, 2
POLICY = PolicyModel(CONFIG, VOCAB, PAD)
MESHES = {
    "one": MeshConfig(1, 1, 1),
    "fsdp": MeshConfig(1, 8, 1),
    "mixed": MeshConfig(2, 2, 2),
}


@functools.cache
def mesh(name):
    sizes = MESHES[name]
    return make_mesh(sizes, jax.devices()[: sizes.data * sizes.fsdp * sizes.tensor])


@functools.cache
def params(name):
    return init_params(POLICY, mesh(name), jax.random.key(0))


def names_and_leaves(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


# ------------------------------------------------------------------------------------- the mesh


def test_one_axis_takes_the_devices_that_are_left():
    assert len(jax.devices()) == 8
    assert dict(make_mesh(MeshConfig(2, -1, 2)).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert batch_shards(make_mesh(MeshConfig(2, -1, 2))) == 4


@pytest.mark.parametrize("sizes", [MeshConfig(3, -1, 1), MeshConfig(1, 4, 1), MeshConfig(4, 4, 1)])
def test_a_mesh_that_does_not_fit_the_devices_is_refused(sizes):
    with pytest.raises(ConfigError, match=r"mesh = .* 8 devices.*-1"):
        make_mesh(sizes)


@dataclasses.dataclass(frozen=True)
class Chip:
    """What the layout reads of a device."""

    id: int
    slice_index: int
    platform: str = "tpu"
    device_kind: str = "TPU of no known kind"

    core_on_chip: int = 0

    @property
    def process_index(self) -> int:
        return self.id // 2

    @property
    def coords(self) -> tuple[int, int, int]:
        """Of 2 x 4 chips in each of two slices."""
        return self.id // 2 % 2, self.id // 4, 0


def test_slices_are_laid_along_data():
    chips = [Chip(i, i % 2) for i in range(16)]  # in no order that helps
    mesh = make_mesh(MeshConfig(4, -1, 2), chips)
    assert mesh.devices.shape == (4, 2, 2) and len(set(mesh.devices.flat)) == 16
    slices = np.vectorize(lambda chip: chip.slice_index)(mesh.devices)
    assert (slices == np.array([0, 0, 1, 1])[:, None, None]).all()
    for sizes in (MeshConfig(1, -1, 1), MeshConfig(1, 8, 2)):
        with pytest.raises(ConfigError, match=r"mesh.data = 1 .* 2 slices.*multiple of 2"):
            make_mesh(sizes, chips)


# ------------------------------------------------------------------------------------ the rules


def spec(names, shape, rules=PARAM_RULES):
    return partition_spec(names, shape, rules, mesh("mixed"), "trunk/kernel")


def test_names_become_mesh_axes():
    assert spec(("vocab", "embed"), (4, 4)) == PartitionSpec("tensor", "fsdp")
    assert spec(("embed", None, "mlp"), (4, 3, 4)) == PartitionSpec("fsdp", None, "tensor")
    assert spec(("norm",), (3,)) == PartitionSpec(None)
    assert spec((), ()) == PartitionSpec()
    batch = spec(("batch", "time", "vocab"), (4, 3, 2), ACTIVATION_RULES)
    assert batch == PartitionSpec(("data", "fsdp"), None, "tensor")


@pytest.mark.parametrize(
    ("names", "shape", "words"),
    [
        (("embed", "hedas"), (4, 4), ["hedas", "trunk/kernel", "table"]),
        (("heads", "mlp"), (4, 4), ["heads", "mlp", "tensor", "trunk/kernel"]),
        (("embed", "embed"), (4, 4), ["embed", "fsdp", "trunk/kernel"]),
        (("embed", "mlp"), (4, 7), ["trunk/kernel", "mlp", "7", "mesh.tensor = 2"]),
        (("embed",), (4, 4), ["trunk/kernel", "shape"]),
    ],
)
def test_unknown_colliding_and_indivisible_names_are_refused(names, shape, words):
    with pytest.raises(ShardingError) as error:
        spec(names, shape)
    assert all(word in str(error.value) for word in words)


class Nameless(nn.Module):
    @nn.compact
    def __call__(self, tokens, valid):
        return self.param("kernel", nn.initializers.ones, (8,)).sum()


class Misnamed(nn.Module):
    @nn.compact
    def __call__(self, tokens, valid):
        init = nn.with_logical_partitioning(nn.initializers.ones, ("experts",))
        kernel: Any = self.param("kernel", init, (8,))
        return kernel.sum()


@pytest.mark.parametrize("module", [Nameless(), Misnamed()])
def test_a_parameter_without_a_known_name_is_never_replicated_silently(module):
    with pytest.raises(ShardingError, match="kernel"):
        init_params(module, mesh("mixed"), jax.random.key(0))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (ModelConfig(kv_heads=1), ["key_kernel", "kv_heads", "mesh.tensor"]),
        (ModelConfig(embed=63), ["embedding", "embed", "63", "mesh.fsdp"]),
    ],
)
def test_a_model_that_does_not_divide_is_refused_by_parameter(config, words):
    with pytest.raises(ShardingError) as error:
        abstract_params(PolicyModel(config, VOCAB, PAD), mesh("mixed"))
    assert all(word in str(error.value) for word in words)


def test_activations_are_constrained_under_a_mesh_and_untouched_without():
    x = jnp.ones((8, 4, 6))
    assert constrain(x, "batch", "time", "anything") is x
    with jax.set_mesh(mesh("mixed")):
        y = jax.jit(lambda x: constrain(2 * x, "batch", "time", "mlp"))(x)
        with pytest.raises(ShardingError, match="anything"):
            constrain(x, "batch", "time", "anything")
        with pytest.raises(ShardingError, match="batch"):
            constrain(x[:3], "batch", "time", "mlp")
    assert y.sharding.shard_shape(y.shape) == (2, 4, 3)


# ------------------------------------------------------------------- parameters, optimizer state


@pytest.mark.parametrize("name", ["fsdp", "mixed"])
def test_every_kernel_is_split_and_each_device_holds_its_share(name):
    leaves = names_and_leaves(params(name))
    sizes = mesh(name).shape
    split = sizes["fsdp"] * sizes["tensor"]
    for path, leaf in leaves.items():
        shard = leaf.addressable_shards[0].data
        assert len({s.device for s in leaf.addressable_shards}) == 8
        if leaf.ndim >= 2 and "bias" not in path:
            assert shard.size * split == leaf.size, path
        else:
            assert "scale" in path or "bias" in path
    on_first = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves.values())
    small = sum(x.nbytes for path, x in leaves.items() if "scale" in path or "bias" in path)
    total = sum(leaf.nbytes for leaf in leaves.values())
    assert on_first <= (total - small) / split + small


def test_parameters_do_not_depend_on_the_mesh():
    for name in ("fsdp", "mixed"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), params("one"), params(name)
        )


def test_abstract_params_are_what_init_makes():
    def same(shape, array):
        assert (shape.shape, shape.dtype) == (array.shape, array.dtype)
        assert shape.sharding.is_equivalent_to(array.sharding, array.ndim)

    jax.tree.map(same, abstract_params(POLICY, mesh("mixed")), params("mixed"))


def test_moments_lie_as_their_parameters_and_counts_everywhere():
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    shardings = optimizer_shardings(tx, params("mixed"), mesh("mixed"))
    state = jax.jit(tx.init, out_shardings=shardings)(params("mixed"))
    adam = state[1][0]
    for moments in (adam.mu, adam.nu):
        jax.tree.map(
            lambda m, p: m.sharding.is_equivalent_to(p.sharding, p.ndim) or pytest.fail(str(m)),
            moments,
            params("mixed"),
        )
    assert adam.count.sharding.is_equivalent_to(replicated(mesh("mixed")), 0)
    held = [x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state)]
    of_params = [x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(params("mixed"))]
    counts = [x for x in jax.tree.leaves(state) if x.ndim == 0]
    assert sum(held) == 2 * sum(of_params) + sum(x.nbytes for x in counts)
    abstract = optimizer_shardings(tx, abstract_params(POLICY, mesh("mixed")), mesh("mixed"))
    assert abstract == shardings


def test_optimizer_state_without_a_rule_is_refused():
    with pytest.raises(ShardingError, match="optimizer state"):
        optimizer_shardings(
            optax.adafactor(1e-3, min_dim_size_to_factor=2), params("one"), mesh("one")
        )


def test_the_table_adds_up():
    lines = parameter_table(params("mixed")).splitlines()
    leaves = names_and_leaves(params("mixed"))
    assert len(lines) == len(leaves) + 2
    rows = {line.split()[0]: line for line in lines[1:]}
    embedding = rows["trunk/embedding"]
    assert "40 x 32" in embedding and "(tensor, fsdp)" in embedding
    assert embedding.split()[-2:] == ["5,120", "1,280"]
    total = sum(x.nbytes for x in leaves.values())
    held = sum(math.prod(x.sharding.shard_shape(x.shape)) * 4 for x in leaves.values())
    assert rows["total"].split()[1:] == [f"{total:,}", f"{held:,}"]


# --------------------------------------------------------------------------- the compiled programs


@functools.cache
def batch():
    rng = np.random.default_rng(0)
    valid = np.arange(P) >= rng.integers(0, P, (N, 1))
    tokens = np.where(valid, rng.integers(1, VOCAB, (N, P)), PAD).astype(np.int32)
    return tokens, valid, np.full(N, C, np.int32)


@functools.cache
def sampled(name, rows=None):
    run = make_sampler(
        POLICY, mesh(name), completion_tokens=C, samples_per_prompt=K, temperature=1.0,
        eos_ids=(1,), rows=rows,
    )  # fmt: skip
    return run(params(name), *batch(), jax.random.key(1))


@functools.cache
def scored(name):
    """Log-probs, and their gradient, of what the one device sampled."""

    def total(params, tokens, valid):
        logp, entropy = token_logps(POLICY, params, tokens, valid, temperature=1.0)
        return logp.sum(), (logp, entropy)

    shardings = jax.tree.map(lambda x: x.sharding, params(name))
    rows = batch_sharding(mesh(name))
    program = jax.jit(jax.grad(total, has_aux=True), in_shardings=(shardings, rows, rows))
    one = sampled("one")
    with jax.set_mesh(mesh(name)):
        return program(params(name), np.asarray(one.tokens), np.asarray(one.valid))


@pytest.mark.parametrize(("name", "rows"), [("fsdp", None), ("mixed", None), ("mixed", 4)])
@pytest.mark.parametrize("read_tokens", [1 << 13, 1])
def test_eight_devices_sample_what_one_does(name, rows, read_tokens, monkeypatch):
    """With fewer rows than completions, and reading one prompt at a time, as well."""
    monkeypatch.setattr(sample, "READ_TOKENS", read_tokens)
    one, many = sampled("one"), sampled.__wrapped__(name, rows)
    for field in ("tokens", "valid", "completion_mask"):
        np.testing.assert_array_equal(getattr(one, field), getattr(many, field))
    np.testing.assert_allclose(one.logp, many.logp, atol=1e-5)
    shards = batch_shards(mesh(name))
    for x in jax.tree.leaves(many):
        assert x.sharding.is_equivalent_to(batch_sharding(mesh(name)), 2)
        assert x.addressable_shards[0].data.shape == (N * K // shards, P + C)


@pytest.mark.parametrize(
    ("name", "changes", "vocab", "block"),
    [
        ("fsdp", {"mlp": 44, "tied_embeddings": False}, 42, 1024),
        ("mixed", {"mlp": 46}, 42, 1024),  # as tensor can split them, but not fsdp as well
        ("mixed", {"mlp_bias": True, "out_bias": True, "tied_embeddings": False}, VOCAB, 8),
        ("mixed", {"lora_rank": 2}, VOCAB, 1024),
    ],
)
def test_eight_devices_sample_what_one_does_with_any_sizes(
    name, changes, vocab, block, monkeypatch
):
    monkeypatch.setattr(sample, "BLOCK", block)
    model = PolicyModel(dataclasses.replace(CONFIG, layers=1, **changes), vocab, PAD)
    found = []
    for where in ("one", name):
        weights = init_params(model, mesh(where), jax.random.key(0))
        # Biases and adapters start at 0 and would hide what is done with them.
        weights = jax.tree.map(lambda x: x + 0.1 * jnp.cos(jnp.arange(x.shape[-1])), weights)
        run = make_sampler(
            model, mesh(where), completion_tokens=C, samples_per_prompt=K, temperature=1.0,
            eos_ids=(1,),
        )  # fmt: skip
        found.append(run(weights, *batch(), jax.random.key(1)))
    np.testing.assert_array_equal(found[0].tokens, found[1].tokens)
    np.testing.assert_allclose(found[0].logp, found[1].logp, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_decoding_leaves_the_parameters_where_they_are(tied):
    """Only hidden states travel: no device holds a whole kernel, be it for a moment."""
    model = PolicyModel(dataclasses.replace(CONFIG, tied_embeddings=tied), VOCAB, PAD)
    programs = prefix_programs(
        model, mesh("fsdp"), places=N, width=P, positions=P + C, completion_tokens=C, samples=3,
        rows=3 * N, choice=Choice(1.0), eos_ids=(1,),
    )  # fmt: skip
    weights, n = abstract_params(model, mesh("fsdp")), jax.ShapeDtypeStruct((N,), jnp.int32)
    numbers = jax.ShapeDtypeStruct((N, 3), jnp.uint32)
    with jax.set_mesh(mesh("fsdp")):
        bank = jax.eval_shape(programs.empty)
        lowered = programs.sample.lower(
            weights, bank, n, n, n, jax.random.key(0), numbers, None, None
        )
        text = lowered.compile().as_text()
    c = CONFIG
    wholes = {
        "query": (c.embed, c.heads, c.head_dim), "out": (c.heads, c.head_dim, c.embed),
        "key or value": (c.embed, c.kv_heads, c.head_dim), "gate and up": (c.embed, 2, c.mlp),
        "down": (c.mlp, c.embed), "embedding": (VOCAB, c.embed), "head": (c.embed, VOCAB),
    }  # fmt: skip
    for name, whole in wholes.items():
        flat = {whole, (whole[0], math.prod(whole[1:])), (math.prod(whole[:-1]), whole[-1])}
        for shape in flat:
            assert f"f32[{','.join(map(str, shape))}]" not in text, name
    parts = {"gate and up": (c.embed, 2, c.mlp // 8), "head": (c.embed, VOCAB // 8)}
    for name, part in parts.items():
        assert f"f32[{','.join(map(str, part))}]" in text, name


def test_each_device_reads_responses_for_its_own_places():
    programs = prefix_programs(
        POLICY, mesh("fsdp"), places=4 * N, width=P, positions=P + C, completion_tokens=C,
        samples=K, rows=N * K, choice=Choice(1.0), eos_ids=(1,),
    )  # fmt: skip
    n, grid = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((N,), (N, P)))
    with jax.set_mesh(mesh("fsdp")):
        bank = jax.eval_shape(programs.empty)
        valid = jax.ShapeDtypeStruct((N, P), jnp.bool)
        lowered = programs.read.lower(params("fsdp"), bank, n, grid, valid)
        text = lowered.compile().as_text()

    def values(rows):
        return f"f32[{rows},{CONFIG.kv_heads},{P},{CONFIG.head_dim}]"

    assert values(4) in text  # of the places
    assert values(4 * N) not in text and values(N) not in text


def test_eight_devices_stop_where_one_does():
    stops = stop_table([b"aba"], [b"ab"[i % 2 :][:1] for i in range(VOCAB)])
    state = np.array([stops.start([b"ab"[: i % 3]]) for i in range(N)], np.int32)
    found = []
    for name in ("one", "mixed"):
        run = make_sampler(
            POLICY, mesh(name), completion_tokens=C, samples_per_prompt=K, temperature=1.0,
            eos_ids=(), stops=stops,
        )  # fmt: skip
        found.append(run(params(name), *batch(), jax.random.key(1), state))
    one, many = found
    np.testing.assert_array_equal(one.tokens, many.tokens)
    np.testing.assert_array_equal(one.completion_mask, many.completion_mask)
    lengths = np.asarray(one.completion_mask).sum(axis=1)
    assert lengths.min() < C  # some rows stop


@pytest.mark.parametrize("name", ["fsdp", "mixed"])
def test_eight_devices_compute_the_log_probs_and_gradients_of_one(name):
    (one_grads, one), (grads, many) = scored("one"), scored(name)
    for a, b in zip(one, many, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
        assert b.sharding.is_equivalent_to(batch_sharding(mesh(name)), 2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), one_grads, grads)


@pytest.mark.parametrize("name", ["fsdp", "mixed"])
def test_the_cache_and_the_logits_are_split_inside_the_sampler(name, monkeypatch):
    programs, jit = [], jax.jit
    monkeypatch.setattr(jax, "jit", lambda *a, **k: programs.append(jit(*a, **k)) or programs[-1])
    make_sampler(
        POLICY, mesh(name), completion_tokens=C, samples_per_prompt=K, temperature=1.0, eos_ids=(1,)
    )
    with jax.set_mesh(mesh(name)):
        lowered = programs[-1].lower(params(name), *batch(), jax.random.key(1), None, None)
        text = lowered.compile().as_text()
    shards, tensor = batch_shards(mesh(name)), mesh(name).shape["tensor"]

    def cache(rows, heads):
        return f"f32[{rows},{heads},{C},{CONFIG.head_dim}]"

    def logits(rows, vocab):
        return f"f32[{rows},1,{vocab}]"

    assert cache(N * K // shards, 2 // tensor) in text and cache(N * K, 2) not in text
    assert cache(N * K // shards, 2) not in text or tensor == 1
    assert logits(N * K, VOCAB) not in text


def test_prompts_that_do_not_divide_over_the_devices_are_refused_with_the_mend():
    run = make_sampler(
        POLICY,
        mesh("fsdp"),
        completion_tokens=C,
        samples_per_prompt=K,
        temperature=1.0,
        eos_ids=(1,),
    )
    with pytest.raises(ValueError, match=r"6 prompts .*8 devices.*budget 0"):
        run(params("fsdp"), *(x[:6] for x in batch()), jax.random.key(0))


def test_the_critic_is_laid_out_as_the_policy():
    scalar = abstract_params(ScalarModel(CONFIG, VOCAB), mesh("mixed"))
    policy = abstract_params(POLICY, mesh("mixed"))
    assert scalar["trunk"] == policy["trunk"]
    assert scalar["head"]["kernel"].sharding.spec == PartitionSpec("fsdp")
