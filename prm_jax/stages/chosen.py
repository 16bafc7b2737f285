"""A model that a person names on the command line, opened for the tools that stand alone.

It is the workdir of a run, a folder in Hugging Face layout or a GGUF file; whatever it is, it
becomes a Run whose parameters can be read.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from prm_jax.config import Config, ConfigError, PromptsConfig
from prm_jax.config_file import read_config
from prm_jax.metrics import MetricsLog
from prm_jax.pretrained import load_params, read_model_config
from prm_jax.problems import ProblemSets, load_problems, read_problems
from prm_jax.sandbox import Sandbox
from prm_jax.sharding import make_mesh
from prm_jax.stages.opening import assemble, load_tokenizer, read_tokenizer
from prm_jax.stages.run import Run
from prm_jax.types import Limits, Problem


@dataclasses.dataclass(frozen=True)
class ModelChoice:
    """Which model, how it is asked, and how much memory it may take."""

    model: Path
    """Workdir of a run of prm_jax.train, a folder in Hugging Face layout, or a .gguf file."""
    checkpoint: str = ""
    """Of a run: KIND or KIND@STEP, such as rl/policy@100. Empty takes what the run ended with."""
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


def is_run(path: Path) -> bool:
    """Whether a path is the workdir of a run, and not a model's folder or file."""
    return (path / "versions.json").is_file() and (path / "config.json").is_file()


def choose_config(choice: ModelChoice) -> Config:
    """The settings under which the chosen model is asked; raises ConfigError if there is none."""
    if is_run(choice.model):
        config = read_config(choice.model / "config.json")
        defaults = (config.max_prompt_tokens, config.max_completion_tokens, config.device_batch)
        style: Any = choice.style or config.prompts.style
        system = choice.system or config.prompts.system
        stop = config.prompts.stop
    elif not choice.model.exists():
        raise ConfigError(f"model = {str(choice.model)!r} does not exist: give a run, a folder in "
                          "Hugging Face layout, or a .gguf file")  # fmt: skip
    else:
        if choice.checkpoint:
            raise ConfigError(
                f"checkpoint = {choice.checkpoint!r} is not allowed: {choice.model} is not a run"
            )
        config = Config(model=read_model_config(choice.model, dtype=choice.dtype))
        defaults = (1024, 512, 64)
        chats = read_tokenizer(choice.model).chat_template is not None
        style = choice.style or ("chat_fence" if chats else "completion")
        system, stop = choice.system, ()
    given = (choice.max_prompt_tokens, choice.max_completion_tokens, choice.device_batch)
    prompt, completion, batch = (a or b for a, b in zip(given, defaults, strict=True))
    return dataclasses.replace(
        config,
        prompts=PromptsConfig(style=style, system=system, stop=(*stop, *choice.stop)),
        max_prompt_tokens=prompt,
        max_completion_tokens=completion,
        device_batch=batch,
    )


def read_split(
    choice: ModelChoice, config: Config, problems: str, split: str, out: Path, limits: Limits
) -> ProblemSets:
    """One split of a problem set, or all of them if `split` is empty, and nothing to train on.

    `limits` hold where a problem does not say. Raises ConfigError if there is no such split.
    """
    splits: dict[str, Sequence[Problem]] = {}
    stop_strings: tuple[str, ...] = ()
    if problems == "chains":
        data_dir = (choice.model if is_run(choice.model) else out) / "problems"
        sets = load_problems(dataclasses.replace(config.problems, name="chains"), data_dir, limits)
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


def open_run(
    choice: ModelChoice, config: Config, sets: ProblemSets, sandbox: Sandbox | None, log: MetricsLog
) -> Run:
    """A Run that reads the chosen model; `config` is `choose_config`'s, perhaps changed."""
    tokenizer = load_tokenizer(config, choice.model, lambda: sets)
    return assemble(config, choice.model, make_mesh(config.mesh), tokenizer, sets, sandbox, log)


def open_policy(run: Run, choice: ModelChoice) -> tuple[Any, str]:
    """The chosen policy's parameters, and the name of what they are."""
    if not is_run(choice.model):
        return run.starting_params(), str(choice.model)
    kinds = [f"{stage}/policy" for stage in ("rl_prm", "rl", "sft") if run.done(stage) is not None]
    return _restore(run, choice, run.policy, kinds)


def open_scalar(run: Run, choice: ModelChoice) -> tuple[Any, str]:
    """The chosen PRM's parameters, and the name of what they are."""
    if not is_run(choice.model):
        return load_params(choice.model, run.scalar, run.mesh), str(choice.model)
    kinds = ["prm/model"] if run.done("prm") is not None else []
    return _restore(run, choice, run.scalar, kinds)


def _restore(run: Run, choice: ModelChoice, model: Any, kinds: list[str]) -> tuple[Any, str]:
    kind, _, step = choice.checkpoint.partition("@")
    if not kind and not kinds:
        raise ConfigError(f"{choice.model} has not finished a stage that leaves what is asked for")
    kind = kind or kinds[0]
    if not (choice.model / kind).is_dir() or (step and not step.isdigit()):
        there = sorted(
            str(p.relative_to(choice.model)) for p in choice.model.glob("*/*") if p.name != "state"
            if p.is_dir()
        )  # fmt: skip
        raise ConfigError(
            f"checkpoint = {choice.checkpoint!r} is not allowed: {choice.model} has "
            f"{', '.join(there)}, and a step follows an @"
        )
    try:
        params = run.restore(kind, model, int(step) if step else None)
    except FileNotFoundError as error:
        raise ConfigError(f"checkpoint = {choice.checkpoint!r}: {error}") from error
    return params, f"{choice.model}/{choice.checkpoint or kind}"
