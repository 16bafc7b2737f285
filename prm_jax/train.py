"""The whole method from one command: SFT, PPO, line labels, PRM, PPO with the PRM, evaluation.

    python -m prm_jax.train                                        # configs/tiny.py, on a laptop
    python -m prm_jax.train --config configs/X.py --workdir runs/X --ppo.clip-low=0.1

Each stage leaves its results in the workdir. The same command again goes on where it stopped.
"""

import argparse
import contextlib
import dataclasses
import difflib
import fcntl
import json
import platform
import re
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import jax
import tyro

from prm_jax import __version__, hosts
from prm_jax.config import Config, ConfigError, to_json
from prm_jax.config_file import differences, load_config, read_config
from prm_jax.metrics import MetricsLog, NonFiniteMetric, duration, say
from prm_jax.process import give_back_memory, settle_process, verdicts_file
from prm_jax.profiling import Profiler
from prm_jax.report import ReportError, write_report
from prm_jax.sandbox import Sandbox, SandboxError, SandboxRefused
from prm_jax.sharding import (
    ShardingError,
    abstract_params,
    make_mesh,
    parameter_table,
)
from prm_jax.stages.evaluate import evaluate
from prm_jax.stages.label import label
from prm_jax.stages.opening import TOKENIZER, check_fit, make_run, with_architecture
from prm_jax.stages.prm import prm
from prm_jax.stages.rl import check_outcome, rl, rl_prm
from prm_jax.stages.run import Run, deciding, write_atomically
from prm_jax.stages.sft import sft
from prm_jax.stages.truth import check_source, reads_prm

STAGES = ("sft", "rl", "label", "prm", "rl_prm", "evaluate", "report")
NEEDS = {
    "sft": (),
    "rl": ("sft",),
    "label": ("rl",),
    "prm": ("label",),
    "rl_prm": ("prm",),
    "evaluate": ("sft",),
    "report": (),
}
# The first stage that reads a section of the settings, where it is not the first of all.
READ_FIRST_BY = {
    "ppo": "rl",
    "label": "rl",  # how many checkpoints to keep
    "device_batch": "label",
    "prm": "prm",
    "dense": "rl_prm",
    "value_init": "rl_prm",
    "evaluate": "evaluate",
}
DEFAULT_CONFIG = Path("configs/tiny.py")
PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "tokenizers",
    "numpy",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Trains a policy for code with process supervision, stage by stage.

    Stages: sft (imitate solutions), rl (PPO on unit tests), label (which line broke a program,
    found by execution), prm (the process reward model), rl_prm (PPO with it), evaluate (held-out
    problems, results.json), report (report.html). What is finished is not done again.
    """

    config_file: Annotated[Path, tyro.conf.arg(name="config")]
    """The config file; its fields are the options below."""
    workdir: Path
    """Where the run keeps everything; the default is runs/<name of the config>."""
    stages: str
    """Which stages to run, separated by commas; they always run in the order above."""
    profile_steps: int
    """Trace so many steps of each training stage, for TensorBoard or ui.perfetto.dev, into
    WORKDIR/profile; 0: none."""
    config: Annotated[Config, tyro.conf.arg(name="")]


def parse(argv: Sequence[str]) -> Arguments:
    """Arguments with the config file's values as defaults, so that overrides win over the file.

    Raises ConfigError for a bad config file or value; exits with 2 on an unknown option.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path)
    path = first.parse_known_args(argv)[0].config
    if path is None:
        beside_package = Path(__file__).parents[1] / DEFAULT_CONFIG
        path = DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else beside_package
    default = Arguments(
        config_file=path,
        workdir=Path("runs") / path.stem,
        stages=",".join(STAGES),
        profile_steps=0,
        config=load_config(path),
    )
    return tyro.cli(Arguments, args=list(argv), default=default, prog="python -m prm_jax.train")


def parse_stages(text: str) -> list[str]:
    """Stage names in running order; raises ConfigError for an unknown one."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in STAGES:
            near = difflib.get_close_matches(name, STAGES, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"--stages = {name!r} is not a stage{hint} (the stages are {', '.join(STAGES)})"
            )
    if not names:
        raise ConfigError(f"--stages = {text!r} names no stage: choose from {', '.join(STAGES)}")
    return [stage for stage in STAGES if stage in names]


def needs(stage: str, config: Config) -> tuple[str, ...]:
    """The stages that a stage builds upon under these settings."""
    if stage == "rl_prm" and not reads_prm(config):
        return ("sft",)
    return NEEDS[stage]


def check_order(stages: Sequence[str], workdir: Path, config: Config) -> None:
    """Raises ConfigError if a stage needs another that is neither finished nor asked for."""
    for stage in stages:
        for needed in needs(stage, config):
            if needed not in stages and not (workdir / needed / "done.json").exists():
                raise ConfigError(
                    f"--stages: {stage!r} needs {needed!r}, which is not finished in {workdir}; "
                    f"add it: --stages {needed},{','.join(stages)}"
                )


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Keeps the workdir to this run; raises ConfigError if another one is at work in it.

    Of several hosts, the first one keeps it.
    """
    if hosts.index():
        yield
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--workdir = {str(workdir)!r} cannot be made: {error}") from error
    with (workdir / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"--workdir = {str(workdir)!r} is in use by another process: wait for it, or "
                "choose another"
            ) from None
        yield


def open_workdir(workdir: Path, config: Config) -> None:
    """Writes config and versions, or checks that the run in the workdir can go on with them.

    Raises ConfigError naming the settings that differ from those that a stage has already read;
    settings that no stage has read yet may change, and so may those that decide no number.
    """
    resolved = json.loads(to_json(config))
    path = workdir / "config.json"
    if path.exists():
        began = json.loads(to_json(read_config(path)))
        used = [
            line
            for line in differences(deciding(began), deciding(resolved))
            if _has_been_read(re.split("[.:]", line)[0], workdir)
        ]
        if used:
            raise ConfigError(
                f"{workdir} holds a run with other settings:\n  "
                + "\n  ".join(used)
                + "\nuse another --workdir, or the settings that it began with"
            )
    if not (workdir / STAGES[0]).exists():
        (workdir / TOKENIZER).unlink(
            missing_ok=True
        )  # trained under settings that may have changed
    versions = {name: version(name) for name in PACKAGES}
    versions |= {
        "prm_jax": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    write_atomically(workdir / "versions.json", json.dumps(versions, indent=2))
    write_atomically(path, json.dumps(resolved, indent=2))


def _has_been_read(section: str, workdir: Path) -> bool:
    """Whether the first stage that reads a section of the settings, or a later one, has begun."""
    first = STAGES.index(READ_FIRST_BY.get(section, STAGES[0]))
    return any((workdir / stage).exists() for stage in STAGES[first:])


def run_stages(arguments: Arguments) -> None:
    """Checks what can be checked, then runs the stages that are asked for and not finished."""
    config, workdir = with_architecture(arguments.config), arguments.workdir
    stages = parse_stages(arguments.stages)
    if arguments.profile_steps < 0:
        raise ConfigError(
            f"--profile-steps = {arguments.profile_steps} is not allowed: it must be at least 0"
        )
    hosts.first(lambda: check_order(stages, workdir, config))
    if stages == ["report"]:
        _report(workdir)
        return
    # The sandbox starts its processes first: JAX's threads must never be forked.
    with (
        locked(workdir),
        Sandbox(config.sandbox.jobs, config.sandbox.min_tier, memo=verdicts_file()) as sandbox,
        MetricsLog(workdir, Profiler(workdir / "profile", arguments.profile_steps)) as log,
    ):
        hosts.first(lambda: open_workdir(workdir, config))
        say(f"prm_jax: {arguments.config_file} in {workdir}, seed {config.seed}")
        say(f"stages: {', '.join(stages)}")
        mesh = make_mesh(config.mesh)
        machines = f"{hosts.count()} hosts, " if hosts.count() > 1 else ""
        say(
            f"sandbox tier {sandbox.tier}; {machines}{len(jax.devices())} device(s), mesh "
            f"{dict(mesh.shape)}"
        )
        run = make_run(config, workdir, mesh, sandbox, log)
        check_fit(run)
        if "rl_prm" in stages:
            check_outcome(run)
            check_source(run)
        params = abstract_params(run.policy, mesh)
        write_atomically(workdir / "parameters.txt", parameter_table(params) + "\n")
        say(f"policy: {sum(x.size for x in jax.tree.leaves(params)):,} parameters")
        with jax.set_mesh(mesh):
            for stage in stages:
                hosts.check_stop()
                _run_stage(stage, run)


def _run_stage(stage: str, run: Run) -> None:
    if stage not in ("report", "evaluate") and run.done(stage) is not None:
        say(f"{stage}: finished before")
        return
    begun_s = time.perf_counter()
    match stage:
        case "sft":
            sft(run)
        case "rl":
            rl(run)
        case "label":
            label(run)
        case "prm":
            prm(run)
        case "rl_prm":
            rl_prm(run)
        case "evaluate":
            evaluate(run)
        case "report":
            _report(run.workdir)
    give_back_memory()
    say(f"{stage}: done in {duration(time.perf_counter() - begun_s)}")


def _report(workdir: Path) -> None:
    say(f"report: open {hosts.first(lambda: str(write_report(workdir)))}")


def main(argv: Sequence[str] | None = None) -> int:
    settle_process()
    try:
        arguments = parse(sys.argv[1:] if argv is None else argv)
        hosts.join()
    except ConfigError as error:
        return hosts.end(2, f"error: {error}")
    with hosts.watched(), hosts.stoppable():
        try:
            run_stages(arguments)
        except (ConfigError, SandboxRefused, ShardingError, ReportError) as error:
            return hosts.end(2, f"error: {error}")
        except KeyboardInterrupt:
            return hosts.end(130, "interrupted: the same command goes on from the last checkpoint")
        except hosts.Stopped:
            say("stopped as asked: the same command goes on from here")
            return hosts.TEMPORARY
        except NonFiniteMetric as error:
            return hosts.end(1, f"error: {error}\nlower the learning rate of that stage")
        except SandboxError as error:
            return hosts.end(1, f"error: {error}\nrun the same command again to go on")
    return 0


if __name__ == "__main__":
    sys.exit(main())
