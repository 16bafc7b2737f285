"""A study of micro size, and how it is run with a stand-in for the trainer."""

import dataclasses
import sys
from pathlib import Path

from micro import get_config

from prm_jax.config import Config
from prm_jax.study import Arm, Study, with_settings
from prm_jax.study.records import read_records
from prm_jax.study.runner import Runner
from prm_jax.study.runs import study_runs

FAKE = (sys.executable, str(Path(__file__).with_name("fake_trainer.py")))
BASE = with_settings(get_config(), {"value_init": False, "problems.chains.final": 4})
ARMS = (
    Arm("sft", measure="sft"),
    Arm("ppo", measure="rl"),
    Arm("dense"),
    Arm("progress", {"dense.form": "progress"}),
    Arm("warm", {"ppo.critic_warmup_steps": 2}, shares="dense"),
    Arm("perfect", {"dense.source": "oracle"}),
)


def study(**changes) -> Study:
    return Study(
        **{"name": "s", "config": BASE, "arms": ARMS, "seeds": (0, 1), "baseline": "ppo"} | changes
    )


def runs_of(a_study: Study) -> dict:
    return {(run.arm.name, run.seed): run for run in study_runs(a_study)}


def go(a_study: Study, tmp_path: Path, *, final: bool = False, **more) -> tuple[bool, list[dict]]:
    runner = Runner(
        a_study,
        study_runs(a_study, final=final),
        records=tmp_path / "results/runs.jsonl",
        workdirs=tmp_path / "runs",
        jobs=2,
        command=FAKE,
        poll_s=0.02,
        **more,
    )
    return runner.run(), read_records(tmp_path / "results/runs.jsonl")


def of_seed_0() -> tuple[Arm, ...]:
    """All arms, dense and progress for seed 0 alone."""
    few = ("dense", "progress", "warm")
    return tuple(dataclasses.replace(a, seeds=(0,)) if a.name in few else a for a in ARMS)


def few(**changes) -> tuple[Arm, ...]:
    """Some of the arms; `changes` of settings concern `perfect`."""
    perfect = next(arm for arm in ARMS if arm.name == "perfect")
    return (*ARMS[:2], dataclasses.replace(perfect, settings={**perfect.settings, **changes}))


def other_problems() -> Config:
    return with_settings(BASE, {"problems.chains.seed": 99})


def no_final() -> Config:
    return with_settings(BASE, {"problems.chains.final": 0})


def other() -> Config:
    return with_settings(BASE, {"ppo.kl_coef": 0.3})
