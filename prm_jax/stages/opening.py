"""How a run is put together: weights, tokenizer, prompts and problems that fit each other.

What does not fit is refused here, before any work is done.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from jax.sharding import Mesh

from prm_jax import hosts
from prm_jax.config import Config, ConfigError, ModelConfig
from prm_jax.metrics import MetricsLog, say
from prm_jax.model.heads import PolicyModel, ScalarModel
from prm_jax.pretrained import read_model_config
from prm_jax.problems import ProblemSets, data_folder, load_problems
from prm_jax.prompts import Prompts, plan_block
from prm_jax.sandbox import Sandbox
from prm_jax.sharding import batch_shards, count_parts
from prm_jax.stages.run import Run
from prm_jax.tokenizer import Tokenizer, TokenizerError
from prm_jax.types import Problem

TOKENIZER = "tokenizer.json"
SOLUTIONS_CUT = 0.25  # share of reference solutions that may be too long for the grid


def make_run(config: Config, workdir: Path, mesh: Mesh, sandbox: Sandbox, log: MetricsLog) -> Run:
    """The run of a workdir, with those of its problems that fit."""

    @functools.cache
    def load() -> ProblemSets:
        folder = data_folder(config.problems.name, workdir / "problems")
        return load_problems(config.problems, folder, config.sandbox.limits())

    def parts() -> tuple[Tokenizer, ProblemSets]:
        return load_tokenizer(config, workdir, load), load()

    tokenizer, problems = hosts.in_turn(parts)  # the first makes what is not there yet
    run = assemble(config, workdir, mesh, tokenizer, problems, sandbox, log)
    return dataclasses.replace(run, problems=without_long_prompts(run))


def assemble(
    config: Config,
    workdir: Path,
    mesh: Mesh,
    tokenizer: Tokenizer,
    problems: ProblemSets,
    sandbox: Sandbox | None,
    log: MetricsLog,
) -> Run:
    """A Run of these parts."""
    vocab_size = max(tokenizer.vocab_size, config.model.vocab_size)
    return Run(
        config=config,
        workdir=workdir,
        mesh=mesh,
        tokenizer=tokenizer,
        prompts=Prompts(config.prompts, tokenizer, problems.stop_strings),
        problems=problems,
        sandbox=sandbox,
        log=log,
        policy=PolicyModel(config.model, vocab_size, tokenizer.pad_id),
        scalar=ScalarModel(config.model, vocab_size),
    )


def with_architecture(config: Config) -> Config:
    """The config with the architecture of the weights at `model.path`, if it names any.

    Raises ConfigError for weights that cannot be used, and for an architecture that contradicts
    them.
    """
    asked = config.model
    if not asked.path:
        if asked.lora_rank:
            raise ConfigError(
                f"model.lora_rank = {asked.lora_rank} is not allowed without model.path: adapters "
                "are trained beside weights that are kept, and fresh ones are not; set it to 0"
            )
        return config
    ours = (
        "dtype",
        "moments",
        "remat",
        "scan_layers",
        "lora_rank",
        "lora_alpha",
    )  # not the weights'
    found = read_model_config(asked.path, **{name: getattr(asked, name) for name in ours})
    default = ModelConfig()
    for field in dataclasses.fields(ModelConfig):
        if field.name == "path":  # may be spelled in other ways
            continue
        value, theirs = getattr(asked, field.name), getattr(found, field.name)
        if value not in (getattr(default, field.name), theirs):
            raise ConfigError(
                f"model.{field.name} = {value!r} is not allowed: the weights at {asked.path} have "
                f"{theirs!r}; leave it out"
            )
    return dataclasses.replace(config, model=found)


def without_long_prompts(run: Run) -> ProblemSets:
    """The problems without those training problems whose prompts do not fit, and says how many."""
    limits = {
        "max_prompt_tokens": run.config.max_prompt_tokens,
        "problems.train_prompt_tokens": run.config.problems.train_prompt_tokens,
    }
    field, limit = min((item for item in limits.items() if item[1]), key=lambda item: item[1])

    def fitting(split: Sequence[Problem], name: str) -> list[Problem]:
        tokens = [len(run.prompt_ids(problem)) for problem in split]
        kept = [problem for problem, n in zip(split, tokens, strict=True) if n <= limit]
        if not kept:
            raise ConfigError(
                f"{field} = {limit} is not allowed: it leaves none of the {len(split)} "
                f"{name} problems; all need --{field.replace('_', '-')} {max(tokens)}"
            )
        if len(kept) < len(split):
            say(
                f"left out: {len(split) - len(kept)} of {len(split)} {name} problems, whose "
                f"prompts are longer than {field} = {limit}"
            )
        return kept

    return dataclasses.replace(
        run.problems,
        train=fitting(run.problems.train, "training"),
        validation=fitting(run.problems.validation, "validation"),
    )


def check_fit(run: Run) -> None:
    """Raises ConfigError for what only the data or the devices can tell, before any work."""
    config, shards = run.config, batch_shards(run.mesh)
    held_out = [problem for problems in run.problems.held_out.values() for problem in problems]
    long_solutions, prompt_tokens, completion_tokens = 0, 0, 0
    cut: list[str] = []
    for problem in [*run.problems.train, *run.problems.validation, *held_out]:
        prompt_tokens = max(prompt_tokens, len(run.prompt_ids(problem)))
        if not problem.solution:
            continue
        solution = run.prompts.solution(problem)
        ids = run.tokenizer.encode(solution)
        if run.tokenizer.decode(ids) != solution:
            raise ConfigError(
                f"tokenizer.path = {config.tokenizer.path!r} cannot spell the solution of "
                f"{problem.task_id}: {solution!r} becomes {run.tokenizer.decode(ids)!r}; "
                "choose a tokenizer that keeps every byte"
            )
        if not run.prompts.keeps_solution(problem):
            cut.append(problem.task_id)
        long_solutions += len(ids) + 1 > config.max_completion_tokens
        completion_tokens = max(completion_tokens, len(ids) + 1)
    if prompt_tokens > config.max_prompt_tokens:
        raise ConfigError(
            f"max_prompt_tokens = {config.max_prompt_tokens} is not allowed: the held-out "
            f"problems need --max-prompt-tokens {prompt_tokens}"
        )
    n = len(run.problems.train) + len(run.problems.validation) + len(held_out)
    if long_solutions > SOLUTIONS_CUT * n:
        raise ConfigError(
            f"max_completion_tokens = {config.max_completion_tokens} is not allowed: "
            f"{long_solutions} of {n} reference solutions are longer; all need "
            f"--max-completion-tokens {completion_tokens}"
        )
    if cut:
        say(
            f"{len(cut)} of {n} reference solutions are cut by a stop string of {run.prompts.stops}"
            f", {cut[0]} the first"
        )
    if long_solutions:
        say(
            f"{long_solutions} of {n} reference solutions are longer than max_completion_tokens = "
            f"{config.max_completion_tokens}"
        )
    longest, positions = config.max_prompt_tokens + config.max_completion_tokens, config.model
    if 0 < positions.max_positions < longest:
        raise ConfigError(
            f"max_prompt_tokens + max_completion_tokens = {longest} is not allowed: the weights "
            f"at {positions.path} were made for {positions.max_positions} positions"
        )
    if config.prompts.plan and config.sft.steps:
        without = next((problem for problem in run.problems.sft if not problem.plan), None)
        if without is not None:
            raise ConfigError(
                f"prompts.plan = True is not allowed: the solution of {without.task_id} has no "
                "plan for SFT to imitate; give its problem one (docs/problems.md), or set "
                "sft.steps to 0 for a model that follows instructions"
            )
    for name, rows in (
        ("sft.batch_size", config.sft.batch_size),
        ("prm.batch_size", config.prm.batch_size),
        ("ppo.rollouts / ppo.minibatches", config.ppo.rollouts // config.ppo.minibatches),
        (
            "ppo.rollouts / ppo.samples_per_prompt",
            config.ppo.rollouts // config.ppo.samples_per_prompt,
        ),
        (
            "ppo.rollouts less dense.completions, over ppo.samples_per_prompt",
            config.whole_responses // config.ppo.samples_per_prompt,
        ),
    ):
        if rows % shards:
            raise ConfigError(
                f"{name} = {rows} is not allowed: it must be a multiple of the {shards} devices "
                "on the mesh axes data and fsdp"
            )
        here = rows // shards
        taken = here // count_parts(rows, run.mesh, config.mesh.rows_at_once)
        trains = name.endswith(("batch_size", "minibatches"))
        if trains and 2 * taken < min(here, config.mesh.rows_at_once):
            say(
                f"{name} = {rows} is {here} on each device, taken {taken} at a time: multiples of "
                f"mesh.rows_at_once = {config.mesh.rows_at_once} take less time"
            )


def load_tokenizer(config: Config, workdir: Path, problems: Callable[[], ProblemSets]) -> Tokenizer:
    """The tokenizer of the config or of the model, or a BPE trained on the SFT pairs once per
    workdir.
    """
    if given := config.tokenizer.path or config.model.path:
        return read_tokenizer(Path(given), config.tokenizer.eos)
    path = workdir / TOKENIZER
    if path.exists():
        return Tokenizer.load(path)
    texts = [
        text
        for pair in problems().sft
        for text in (pair.prompt, (plan_block(pair) if config.prompts.plan else "") + pair.solution)
    ]
    return Tokenizer.train(texts, config.tokenizer.vocab_size, path)


def read_tokenizer(path: Path, eos: str = "") -> Tokenizer:
    """A tokenizer file or a model's folder; raises ConfigError if it cannot be used."""
    try:
        return Tokenizer.load(path, eos)
    except (FileNotFoundError, TokenizerError) as error:
        raise ConfigError(str(error)) from error
