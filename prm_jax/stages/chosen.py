"""A model that a person names on the command line, opened for the tools that stand alone.

It is the workdir of a run, a folder in Hugging Face layout or a GGUF file; whatever it is, it
becomes a Run whose parameters can be read. What cannot be used is refused before any weights are.
"""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from prm_jax.config import Config, ConfigError, MeshConfig, PromptsConfig, SandboxConfig
from prm_jax.config_file import read_asking, read_config
from prm_jax.metrics import MetricsLog, say
from prm_jax.pretrained import check_weights, load_params, read_model_config
from prm_jax.problems import (
    BUILT_IN,
    ProblemSets,
    data_folder,
    load_problems,
    read_problems,
)
from prm_jax.sandbox import Sandbox
from prm_jax.sharding import make_mesh
from prm_jax.stages.opening import assemble, load_tokenizer, read_tokenizer
from prm_jax.stages.run import Run
from prm_jax.types import Limits, Problem


@dataclasses.dataclass(frozen=True)
class Asking:
    """How a model is asked, and how much memory it may take."""

    style: Literal["", "completion", "chat", "chat_fence"] = ""
    """How it is asked (prompts.style). Empty: as the run was; chat_fence for a model with a chat
    template, completion for others."""
    system: str = ""
    """System message of the chat styles."""
    stop: tuple[str, ...] = ()
    """Strings that end a response, beside those of the problem set."""
    max_prompt_tokens: int = 0
    """0: as the run had it, or 1,024."""
    max_completion_tokens: int = 0
    """0: as the run had it, or 512."""
    device_batch: int = 0
    """Responses at once: fewer need less memory. 0: as the run had it, or 64."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations, for a model that is no run."""


@dataclasses.dataclass(frozen=True)
class Judging:
    """Where programs run."""

    jobs: int = 0
    """Programs at once; 0 takes the cores that this process may use."""
    min_tier: Literal["T0", "T1", "T2", "T3", "T4"] = "T3"
    """The weakest isolation that is accepted (docs/sandbox.md)."""
    cpu_s: float = 0.0
    """CPU seconds that a program may use, where its problem does not say. 0: as the run had it, or
    2."""
    memory_mib: int = 0
    """Memory that a program may use, in MiB, where its problem does not say. 0: as the run had it,
    or 256."""


@dataclasses.dataclass(frozen=True)
class ModelChoice:
    """Which model, and how it is asked."""

    model: Path
    """Workdir of a run of prm_jax.train, a folder in Hugging Face layout, or a .gguf file."""
    checkpoint: str = ""
    """Of a run: KIND or KIND@STEP, such as rl/policy@100. Empty takes what the run ended with."""
    asking: Asking = Asking()


def is_run(path: Path) -> bool:
    """Whether a path is the workdir of a run, and not a model's folder or file."""
    return (path / "versions.json").is_file() and (path / "config.json").is_file()


def choose_config(choice: ModelChoice, judging: Judging | None = None) -> Config:
    """The settings under which the chosen model is asked; raises ConfigError if there is none."""
    asking = choice.asking
    if is_run(choice.model):
        config = read_config(choice.model / "config.json")
        if asking.dtype != Asking.dtype:
            raise ConfigError(
                f"dtype = {asking.dtype!r} is not allowed: {choice.model} is a run, and has "
                f"model.dtype = {config.model.dtype!r}"
            )
        defaults = (config.max_prompt_tokens, config.max_completion_tokens, config.device_batch)
        style: Any = asking.style or config.prompts.style
        system = asking.system or ("" if style == "completion" else config.prompts.system)
        stop, plan = config.prompts.stop, config.prompts.plan
    elif not choice.model.exists():
        raise ConfigError(
            f"model = {str(choice.model)!r} does not exist: give a run, a folder in Hugging Face "
            "layout, or a .gguf file"
        )
    else:
        if choice.checkpoint:
            raise ConfigError(
                f"checkpoint = {choice.checkpoint!r} is not allowed: {choice.model} is not a run"
            )
        config = Config(model=read_model_config(choice.model, dtype=asking.dtype))
        chats = read_tokenizer(choice.model).chat_template is not None
        asked = PromptsConfig("chat_fence" if chats else "completion")
        lengths = (1024, 512)
        if (written := read_asking(choice.model)) is not None:  # by prm_jax.export
            asked, lengths = written
        defaults = (*lengths, 64)
        style = asking.style or asked.style
        system = asking.system or ("" if style == "completion" else asked.system)
        stop, plan = asked.stop, asked.plan
    given = (asking.max_prompt_tokens, asking.max_completion_tokens, asking.device_batch)
    prompt, completion, batch = (a or b for a, b in zip(given, defaults, strict=True))
    sandbox = config.sandbox
    if judging is not None:
        sandbox = SandboxConfig(
            jobs=judging.jobs,
            min_tier=judging.min_tier,
            cpu_s=judging.cpu_s or sandbox.cpu_s,
            memory_mib=judging.memory_mib or sandbox.memory_mib,
        )
    return dataclasses.replace(
        config,
        mesh=MeshConfig(),  # this machine need not have the devices that a run was trained on
        prompts=PromptsConfig(style, system, plan, (*stop, *asking.stop)),
        max_prompt_tokens=prompt,
        max_completion_tokens=completion,
        device_batch=batch,
        decode_rows=min(batch, config.decode_rows),
        sandbox=sandbox,
    )


# ------------------------------------------------------------------------------ folder and problems


def out_folder(
    given: Path | None, kind: str, choice: ModelChoice, source: str, without: Collection[str]
) -> Path:
    """The folder that was given, or `runs/KIND/MODEL-SOURCE-DIGEST`, made if it is not there.

    The digest is over all settings of the command but those in `without`, which decide nothing that
    is expensive: the same command finds its folder again, and two evaluations never share one.
    Raises ConfigError if it cannot be made.
    """
    folder = given
    if folder is None:
        settings = dataclasses.asdict(choice)
        for group in ("asking", "judging"):
            settings |= settings.pop(group, {})
        idle = {"out", "jobs", "min_tier", *without}
        deciding = {name: str(value) for name, value in settings.items() if name not in idle}
        digest = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:6]
        source = Path(source.partition(":")[0]).name.split(".")[0]
        folder = Path("runs") / kind / f"{choice.model.resolve().name}-{source}-{digest}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out = {str(folder)!r} cannot be made: {error.strerror}") from error
    return folder


def read_split(
    choice: ModelChoice, config: Config, problems: str, split: str, out: Path
) -> ProblemSets:
    """One split of a problem set, or all of them if `split` is empty, and nothing to train on.

    The sandbox's limits hold where a problem does not say. Raises ConfigError if there is no such
    split.
    """
    limits = config.sandbox.limits()
    splits: dict[str, Sequence[Problem]] = {}
    stop_strings: tuple[str, ...] = ()
    if problems in BUILT_IN:
        data_dir = data_folder(problems, out / "problems")
        if not is_run(choice.model):
            say(f"{problems}: those of the default settings, since {choice.model} is no run")
        sets = load_problems(dataclasses.replace(config.problems, name=problems), data_dir, limits)
        splits = {"train": sets.train, "validation": sets.validation, **sets.held_out}
    elif problems:
        found = read_problems(problems, out / "problems")
        splits, stop_strings = dict(found.splits), found.stop_strings
    if split and split not in splits:
        raise ConfigError(f"split = {split!r} is not allowed: {problems} has {', '.join(splits)}")
    asked = {
        name: [dataclasses.replace(p, limits=limits) if p.limits == Limits() else p for p in rows]
        for name, rows in splits.items()
        if split in ("", name)
    }
    return ProblemSets((), (), (), asked, stop_strings)


# ----------------------------------------------------------------------------------- model and name


def open_run(
    choice: ModelChoice, config: Config, sets: ProblemSets, sandbox: Sandbox | None, log: MetricsLog
) -> Run:
    """A Run that reads the chosen model; `config` is `choose_config`'s, perhaps changed."""
    tokenizer = load_tokenizer(config, choice.model, lambda: sets)
    return assemble(config, choice.model, make_mesh(config.mesh), tokenizer, sets, sandbox, log)


def find_policy(run: Run, choice: ModelChoice) -> str:
    """KIND@STEP of the chosen policy, "" if the model is no run; raises ConfigError."""
    stages = ("rl_prm", "rl", "sft")
    kinds = [f"{stage}/policy" for stage in stages if run.done(stage) is not None]
    return _find(choice, kinds, "/policy", "a policy: run prm_jax.train with --stages sft")


def find_scalar(run: Run, choice: ModelChoice) -> str:
    """KIND@STEP of the chosen PRM, "" if the model is no run.

    Raises ConfigError if there is none, or if the weights are not those of a PRM.
    """
    if not is_run(choice.model):
        check_weights(choice.model, run.scalar, run.mesh)
    kinds = ["prm/model"] if run.done("prm") is not None else []
    wanted = "a PRM: run prm_jax.train with --stages sft,rl,label,prm"
    return _find(choice, kinds, ("prm/model", "/critic"), wanted)


def _find(
    choice: ModelChoice, kinds: list[str], fitting: str | tuple[str, ...], wanted: str
) -> str:
    if not is_run(choice.model):
        return ""
    kind, _, step = choice.checkpoint.partition("@")
    if not kind and not kinds:
        raise ConfigError(f"model = {str(choice.model)!r} has not finished {wanted}")
    kind = kind or kinds[0]
    there = {}
    for path in choice.model.glob("*/*"):
        found = f"{path.parent.name}/{path.name}"
        steps = [int(p.name) for p in path.iterdir() if p.name.isdigit()] if path.is_dir() else []
        if steps and found.endswith(fitting):
            there[found] = sorted(steps)
    if kind not in there or (step and (not step.isdigit() or int(step) not in there[kind])):
        has = "; ".join(f"{k} at {', '.join(map(str, v))}" for k, v in sorted(there.items()))
        raise ConfigError(
            f"checkpoint = {choice.checkpoint or kind!r} is not allowed: give KIND or KIND@STEP of "
            f"what {choice.model} has: {has or 'nothing yet'}"
        )
    return f"{kind}@{step or there[kind][-1]}"


def read_policy(run: Run, found: str) -> Any:
    """Parameters of the policy that `find_policy` found."""
    if not found:
        return run.starting_params()
    kind, _, step = found.partition("@")
    return run.restore(kind, run.policy, int(step))


def read_scalar(run: Run, found: str) -> Any:
    """Parameters of the PRM that `find_scalar` found."""
    if not found:
        return load_params(run.workdir, run.scalar, run.mesh)
    kind, _, step = found.partition("@")
    return run.restore(kind, run.scalar, int(step))


def name_of(choice: ModelChoice, found: str) -> str:
    """What a model is called in results."""
    return f"{choice.model}/{found}" if found else str(choice.model)


def fingerprint(params: Any) -> str:
    """A digest of the weights themselves, the same on any mesh.

    The bits and the place of every value are mixed (MurmurHash3's finalizer) and summed modulo
    2^32: order does not change a sum of integers. It costs one pass over the weights.
    """

    def checksum(x: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
        place = jnp.uint32(0)
        for axis, size in enumerate(x.shape):
            place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        h = bits.astype(jnp.uint32) ^ (place * jnp.uint32(0x9E3779B1))
        h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
        h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
        return jnp.sum(h ^ (h >> 16), dtype=jnp.uint32)

    leaves = jax.tree_util.tree_leaves_with_path(params)
    sums = jax.jit(lambda arrays: [checksum(x) for x in arrays])([x for _, x in leaves])
    text = [
        (jax.tree_util.keystr(path), x.shape, str(x.dtype), int(np.asarray(value)))
        for (path, x), value in zip(leaves, sums, strict=True)
    ]
    return hashlib.sha256(repr(text).encode()).hexdigest()[:16]


def journal_name(run: Run, weights: str, problems: Sequence[Problem]) -> str:
    """A digest of all that decides what is sampled and how it is judged.

    It is in the name of every journaled unit: a model that was replaced, a problem file that was
    edited or another setting never reads what an earlier call left.
    """
    about = hashlib.sha256(f"{weights} {run.digest()} {run.prompts.stops}".encode())
    tokenizer = run.tokenizer  # one that was replaced may give other texts to the same tokens
    pieces = tokenizer.pieces(range(tokenizer.vocab_size))
    about.update(repr((tokenizer.eos_ids, tokenizer.pad_id, pieces)).encode())
    for p in problems:
        about.update(repr((run.prompt_ids(p), p.program_prefix, p.tests, p.limits)).encode())
    return about.hexdigest()[:16]
