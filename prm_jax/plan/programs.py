"""The programs of a run, with the shapes and shardings of what goes in, and nothing computed.

They are the very functions that the stages call, so what the compiler says of them holds for the
run. Beside each stand the arrays that the run keeps on the chips while it executes.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from prm_jax.config import Config, ConfigError
from prm_jax.model.heads import PolicyModel, ScalarModel
from prm_jax.model.linear import as_computed
from prm_jax.model.lora import join, split_trainable
from prm_jax.sharding import (
    ACTIVATION_RULES,
    abstract_params,
    batch_sharding,
    batch_shards,
    partition_spec,
    replicated,
)
from prm_jax.stages.probing import probe_sizes
from prm_jax.stages.supervised import optimizer
from prm_jax.steps.experience import make_experience, make_score
from prm_jax.steps.ppo import make_critic_update, make_policy_update
from prm_jax.steps.prefixes import prefix_programs
from prm_jax.steps.prm import make_prm_step
from prm_jax.steps.sample import Choice, sampling_program
from prm_jax.steps.sft import make_sft_step
from prm_jax.steps.state import abstract_state, adam
from prm_jax.types import LabelBatch, PPOBatch, Rollout, Samples, TokenBatch

STAGES = ("sft", "prm", "ppo", "sample")


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled program of a run, ready to be traced."""

    name: str  # ppo/policy_update
    function: Any  # jitted
    arguments: tuple[Any, ...]  # ShapeDtypeStructs that know their shardings
    kept: Mapping[str, Any]  # what else is on the chips meanwhile, by its name for people
    mend: str  # which setting makes it smaller
    most_trips: int = 1  # of a loop that ends when its data say so


def programs(config: Config, mesh: Mesh, stage: str) -> Iterator[Program]:
    """The programs of a stage, or of all.

    Raises ConfigError for batches that do not divide over the mesh, ShardingError for models.
    """
    parts = _Parts(config, mesh)
    makers: dict[str, Callable[[_Parts], Iterator[Program]]] = {
        "sft": _sft, "prm": _prm, "ppo": _ppo, "sample": _sample,
    }  # fmt: skip
    for name in STAGES if stage == "all" else (stage,):
        yield from makers[name](parts)


class _Parts:
    """What the programs are made of."""

    def __init__(self, config: Config, mesh: Mesh):
        self.config = config
        self.mesh = mesh
        vocab = max(config.model.vocab_size, 0 if _whole(config) else config.tokenizer.vocab_size)
        # Which ids end and pad a row changes no shape.
        self.policy = PolicyModel(config.model, vocab, vocab - 1)
        self.scalar = ScalarModel(config.model, vocab)
        self.eos_ids = (vocab - 2,)
        self.prompt = -(-config.max_prompt_tokens // 8) * 8
        self.tokens = self.prompt + config.max_completion_tokens

    @functools.cached_property
    def policy_params(self) -> Any:
        return abstract_params(self.policy, self.mesh)

    @functools.cached_property
    def scalar_params(self) -> Any:
        return abstract_params(self.scalar, self.mesh)

    def low(self, params: Any) -> Any:
        """What `as_computed` would make of them, in the same shardings."""
        shapes = jax.eval_shape(lambda p: as_computed(p, self.config.model), params)
        return jax.tree.map(
            lambda x, like: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=like.sharding),
            shapes,
            params,
        )

    @functools.cached_property
    def ppo_policy(self) -> Any:
        return abstract_state(split_trainable(self.policy_params)[0], _adam(self.config), self.mesh)

    @functools.cached_property
    def ppo_critic(self) -> Any:
        return abstract_state(split_trainable(self.scalar_params)[0], _adam(self.config), self.mesh)

    def rows(self, field: str, n: int) -> int:
        shards = batch_shards(self.mesh)
        if n % shards:
            raise ConfigError(
                f"{field} = {n} is not allowed: it must be a multiple of the {shards} devices on "
                "the mesh axes data and fsdp"
            )
        return n

    def array(self, dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        """A batch's array: rows over the devices."""
        return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(self.mesh))

    def bank(self, dtype: Any, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
        """Keys or values of prefixes, `[places, kv_heads, P, head_dim]`."""
        names = ("batch", "kv_heads", "time", "head_dim")
        spec = partition_spec(names, shape, ACTIVATION_RULES, self.mesh, "keys and values")
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(self.mesh, spec))

    def key(self) -> jax.ShapeDtypeStruct:
        key = jax.eval_shape(lambda: jax.random.key(0))
        return jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated(self.mesh))

    def grid(self, kind: type, rows: int) -> Any:
        """A Samples, Rollout, batch ... of this many rows on the whole grid."""
        types = {"tokens": jnp.int32, "outcome": jnp.float32}
        types |= dict.fromkeys(("valid", "mask", "completion_mask", "line_end"), jnp.bool)
        arrays = {}
        for field in dataclasses.fields(kind):
            shape = (rows,) if field.name == "outcome" else (rows, self.tokens)
            arrays[field.name] = self.array(types.get(field.name, jnp.float32), *shape)
        return kind(**arrays)


def _whole(config: Config) -> bool:
    """Whether the size of the vocabulary is the model's own."""
    return config.model.vocab_size > 0


def _adam(config: Config):
    return adam(
        learning_rate=config.ppo.learning_rate,
        max_grad_norm=config.ppo.max_grad_norm,
        moments=config.model.moments,
    )


def _supervised(parts: _Parts, section: Any, name: str, model: Any, params: Any, make, kind: type):
    tx = optimizer(section, parts.config.model)
    trained, frozen = split_trainable(params)
    state = abstract_state(trained, tx, parts.mesh)
    rows = parts.rows(f"{name}.batch_size", section.batch_size)
    return Program(
        f"{name}/step",
        make(
            model,
            tx,
            parts.mesh,
            jax.tree.map(lambda x: x.sharding, state),
            parts.config.mesh.rows_at_once,
        ),
        (state, frozen, parts.grid(kind, rows)),
        {},
        _fewer_activations(parts, f"{name}.batch_size", rows),
    )


def _sft(parts: _Parts) -> Iterator[Program]:
    section = parts.config.sft
    if section.steps:
        yield _supervised(
            parts, section, "sft", parts.policy, parts.policy_params, make_sft_step, TokenBatch
        )


def _prm(parts: _Parts) -> Iterator[Program]:
    yield _supervised(
        parts, parts.config.prm, "prm", parts.scalar, parts.scalar_params, make_prm_step, LabelBatch
    )


def _sampler(parts: _Parts, name: str, params: Any, prompts: int, samples: int, kept: Any, mend):
    config = parts.config
    function = sampling_program(
        parts.policy,
        parts.mesh,
        completion_tokens=config.max_completion_tokens,
        samples_per_prompt=samples,
        rows=config.decode_rows,
        temperature=1.0,
        eos_ids=parts.eos_ids,
    )
    arguments = (
        params,
        parts.array(jnp.int32, prompts, parts.prompt),
        parts.array(jnp.bool, prompts, parts.prompt),
        parts.array(jnp.int32, prompts),
        parts.key(),
        None,
        None,
    )
    steps = _most_steps(prompts * samples, config.decode_rows, config)
    return Program(name, function, arguments, kept, mend, steps)


def _ppo(parts: _Parts) -> Iterator[Program]:
    config, mesh = parts.config.ppo, parts.mesh
    rollouts = parts.rows("ppo.rollouts / ppo.minibatches", config.rollouts // config.minibatches)
    rollouts *= config.minibatches
    prompts = parts.rows(
        "ppo.rollouts / ppo.samples_per_prompt", config.rollouts // config.samples_per_prompt
    )
    has_critic = config.advantage != "group"
    policy, critic = parts.ppo_policy, parts.ppo_critic if has_critic else None
    policy_frozen = split_trainable(parts.policy_params)[1]
    critic_frozen = split_trainable(parts.scalar_params)[1] if has_critic else {}
    shares = parts.config.model.lora_rank > 0  # one copy of the frozen parameters for all
    reference = parts.policy_params if shares else parts.low(parts.policy_params)
    prm = None
    if parts.config.dense.labels_online:
        raise ConfigError(
            f"dense.{parts.config.dense.labels_for} is not planned, nor its searches: leave it out"
        )
    if parts.config.dense.enabled and parts.config.dense.source == "prm":
        prm = parts.scalar_params if shares else parts.low(parts.scalar_params)
    lives = {
        "the policy and its optimizer": policy,
        "the critic and its optimizer": critic,
        "the policy's frozen parameters": policy_frozen,
        "the reference": split_trainable(reference)[0],
        "the PRM": None if prm is None else split_trainable(prm)[0],
    }

    def without(*names: str) -> dict[str, Any]:
        return {name: tree for name, tree in lives.items() if name not in names}

    yield _sampler(
        parts,
        "ppo/sample",
        join(policy.params, policy_frozen),
        prompts,
        config.samples_per_prompt,
        without("the policy's frozen parameters")
        | {"the policy and its optimizer": policy.opt_state},
        "lower ppo.rollouts or max_completion_tokens, or split the model with mesh.tensor",
    )
    yield Program(
        "ppo/score",
        make_score(
            parts.policy,
            parts.scalar,
            mesh,
            prompt_tokens=parts.prompt,
            temperature=1.0,
            rows_at_once=parts.config.mesh.rows_at_once,
        ),  # fmt: skip
        (
            reference,
            None if critic is None else join(critic.params, critic_frozen),
            prm,
            parts.grid(Samples, rollouts),
        ),
        without("the reference", "the PRM")
        | {"the critic and its optimizer": None if critic is None else critic.opt_state},
        "lower ppo.rollouts",
    )
    yield Program(
        "ppo/experience",
        make_experience(
            mesh,
            lam_fail=parts.config.dense.lam_fail,
            lam_pass=parts.config.dense.lam_pass,
            kl_coef=config.kl_coef,
            gamma=config.gamma,
            gae_lambda=config.gae_lambda,
            group_size=0 if has_critic else config.samples_per_prompt,
        ),
        (parts.grid(Rollout, rollouts),),
        lives,
        "lower ppo.rollouts",
    )
    steps: Any = {
        "prompt_tokens": parts.prompt, "epochs": config.epochs, "minibatches": config.minibatches,
        "rows_at_once": parts.config.mesh.rows_at_once,
    }  # fmt: skip
    batch = parts.grid(PPOBatch, rollouts)
    smaller = _fewer_activations(
        parts, "ppo.rollouts / ppo.minibatches", rollouts // config.minibatches
    )
    yield Program(
        "ppo/policy_update",
        make_policy_update(
            parts.policy,
            _adam(parts.config),
            mesh,
            jax.tree.map(lambda x: x.sharding, policy),
            temperature=config.temperature,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            sampler_cap=config.sampler_cap,
            **steps,
        ),
        (policy, policy_frozen, batch, parts.key()),
        without("the policy and its optimizer", "the policy's frozen parameters"),
        smaller,
    )
    if critic is not None:
        yield Program(
            "ppo/critic_update",
            make_critic_update(
                parts.scalar,
                _adam(parts.config),
                mesh,
                jax.tree.map(lambda x: x.sharding, critic),
                value_clip=config.value_clip,
                **steps,
            ),
            (critic, critic_frozen, batch, parts.key()),
            without("the critic and its optimizer"),
            smaller,
        )


def _sample(parts: _Parts) -> Iterator[Program]:
    """Sampling outside of PPO: responses, and the label search's completions of prefixes."""
    config = parts.config
    answers = config.label.responses_per_prompt
    shards = batch_shards(parts.mesh)
    prompts = -(-max(1, config.device_batch // answers) // shards) * shards
    smaller = "lower {} or max_completion_tokens, or split the model with mesh.tensor"
    params, mend = parts.policy_params, smaller.format("device_batch")
    yield _sampler(parts, "label/respond", params, prompts, answers, {}, mend)

    asked = config.label.checkpoints * config.label.prompts * answers
    made = prefix_programs(
        parts.policy,
        parts.mesh,
        **probe_sizes(config, searches=asked, prompt=parts.prompt, longest=parts.tokens),
        choice=Choice(1.0),
        eos_ids=parts.eos_ids,
    )
    with jax.set_mesh(parts.mesh):
        bank = jax.eval_shape(made.empty)
    rows = functools.partial(parts.array, jnp.int32)
    bank = jax.tree.map(lambda x: parts.bank(x.dtype, x.shape), bank)
    tokens = made.at_once, bank[0][0].shape[2]
    yield Program(
        "label/read",
        made.read,
        (params, bank, rows(made.at_once), rows(*tokens), parts.array(jnp.bool, *tokens)),
        {},
        smaller.format("decode_rows"),
    )
    numbers = parts.array(jnp.uint32, made.places, 3)
    n = rows(made.places)
    yield Program(
        "label/sample",
        made.sample,
        (params, bank, n, n, n, parts.key(), numbers, None, None),
        {},
        smaller.format("decode_rows"),
        _most_steps(made.places * config.label.wave, config.decode_rows, config),
    )


def _most_steps(completions: int, rows: int, config: Config) -> int:
    """Of the loop that decodes, if every completion is as long as it may be."""
    return -(-completions // min(rows, completions)) * config.max_completion_tokens


def _fewer_activations(parts: _Parts, field: str, rows: int) -> str:
    """How a training step can be made smaller, the first thing to try."""
    if parts.config.model.remat == "none":
        return "set model.remat = 'full'"
    if not parts.config.model.scan_layers:
        return "set model.scan_layers = True"
    per_chip = rows // batch_shards(parts.mesh)
    if per_chip > 1 and parts.config.mesh.rows_at_once != 1:
        return (
            f"set mesh.rows_at_once = 1: {field} = {rows} is {per_chip} sequences on a chip; or "
            "lower it"
        )
    return (
        "split the model over more chips (a larger slice, or mesh.tensor), or set model.lora_rank"
    )


def bytes_per_chip(tree: Any) -> int:
    """What the shards of these arrays take on one chip."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
        if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    )
