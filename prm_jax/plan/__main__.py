"""What a run takes on a TPU slice, found out by the TPU's compiler on any machine.

    python -m prm_jax.plan --config configs/qwen_7b.py --topology v5e-64
    python -m prm_jax.plan --config X.py --topology v5p-64 --stage ppo --json plan.json

It compiles every program of the run, which takes a minute or more each for large models, and runs
none. docs/tpu.md explains the table.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro

from prm_jax.config import Config, ConfigError
from prm_jax.config_file import load_config
from prm_jax.metrics import say
from prm_jax.plan.compiling import Plan, plan, tpu_devices
from prm_jax.plan.programs import programs
from prm_jax.plan.slices import find_slice
from prm_jax.plan.table import table, verdict
from prm_jax.pretrained import PretrainedError
from prm_jax.sharding import ShardingError, make_mesh
from prm_jax.stages.opening import with_architecture

_FITS, _DOES_NOT_FIT, _UNUSABLE = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Compiles every program of a run for a TPU slice, and says what each takes on a chip.

    Exit status: 0 if every program fits, 1 if one does not, 2 for what cannot be planned.
    """

    config_file: Annotated[Path, tyro.conf.arg(name="config")]
    """The config file; its fields are the options below."""
    topology: str
    """The slice, as gcloud names its accelerator type: v5e-64 (or v5litepod-64), v4-128, v5p-64."""
    config: Annotated[Config, tyro.conf.arg(name="")]
    slices: int = 1
    """Of that kind, joined by the network between them (Multislice); mesh.data is laid over it."""
    stage: Literal["ppo", "prm", "sft", "sample", "all"] = "all"
    """Whose programs; sample is sampling outside of PPO, for labels and evaluation."""
    json: Path | None = None
    """A file that gets the table as well."""


def parse(argv: Sequence[str]) -> Arguments:
    """Arguments with the config file's values as defaults, so that overrides win over the file.

    Raises ConfigError for a bad config file or value; exits with 2 on an unknown option.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path)
    path = first.parse_known_args(argv)[0].config
    config = Config() if path is None else load_config(path)
    missing: Any = tyro.MISSING
    default = Arguments(config_file=path or missing, topology=missing, config=config)
    return tyro.cli(Arguments, args=list(argv), default=default, prog="python -m prm_jax.plan")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 if every program fits, 1 if one does not, 2 on unusable input."""
    try:
        arguments = parse(sys.argv[1:] if argv is None else argv)
        plans = make_plans(arguments)
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(as_json(plans), indent=2) + "\n")
    except (ConfigError, ShardingError, PretrainedError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return _UNUSABLE
    return _FITS if all(each.fits for each in plans) else _DOES_NOT_FIT


def make_plans(arguments: Arguments) -> list[Plan]:
    """Plans of a config's programs, printed one after the other as they are compiled."""
    slice_ = find_slice(arguments.topology)
    config = architecture(arguments.config)
    if arguments.slices < 1:
        raise ConfigError(f"--slices = {arguments.slices} is not allowed: it must be at least 1")
    mesh = make_mesh(config.mesh, tpu_devices(slice_, arguments.slices))
    several = f"{arguments.slices} x " if arguments.slices > 1 else ""
    say(
        f"{arguments.config_file} on {several}{slice_.name}: {several}{slice_.chips} chips "
        f"({slice_.shape}) of "
        f"{slice_.chip.hbm_bytes / 2**30:.2f} GiB, mesh {dict(mesh.shape)}"
    )
    plans = []
    for program in programs(config, mesh, arguments.stage):
        made = plan(program, mesh, slice_)
        say(f"{made.name}: compiled in {made.compile_s:.0f} s")
        plans.append(made)
    print(table(plans), *map(verdict, plans), sep="\n")
    return plans


def architecture(config: Config) -> Config:
    """The config with the architecture of its weights where they are here, else with its own.

    Raises ConfigError for weights that are not here and a model that says nothing of itself.
    """
    if not config.model.path or Path(config.model.path).exists():
        return with_architecture(config)
    if not config.model.vocab_size:
        raise ConfigError(
            f"model.path = {config.model.path!r} is not here, and model.vocab_size = 0 leaves the "
            "size of the vocabulary to it: give the architecture in the config (as configs/qwen_7b."
            "py does), or the path of the weights"
        )
    return config


def as_json(plans: Sequence[Plan]) -> dict[str, list[dict]]:
    """The table as JSON values."""
    return {"programs": [dataclasses.asdict(each) for each in plans]}


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # a TPU that is here is left alone
    jax.config.update("jax_enable_compilation_cache", False)  # only a TPU could read it back
    sys.exit(main())
