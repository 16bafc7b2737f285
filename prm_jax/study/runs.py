"""The runs of a study, and which finished stages one run may take from another.

A stage has a key: a digest of all settings that it or a stage before it reads. Runs whose keys of
a stage are equal would compute the same, so the first one computes it and the others link to its
files. `train.READ_FIRST_BY` says which stage reads which settings.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from prm_jax.config import Config, ConfigError, PPOConfig, to_json
from prm_jax.stages.run import deciding
from prm_jax.study.arms import POLICIES, Arm, Study, with_settings
from prm_jax.train import READ_FIRST_BY, STAGES, needs

# Of a section that several stages read, what the first of them reads.
READ_BY_FIRST = {"label": {"checkpoints"}}
SECOND_READER = {"label": "label"}
FINAL = {"problems.held_out": "final"}


@dataclasses.dataclass(frozen=True)
class StudyRun:
    """One arm with one seed: a workdir, what happens in it, and what it may take from others."""

    arm: Arm
    seed: int
    config: Config
    before: Config  # the settings under which what comes before the measured stage is made
    baseline: PPOConfig  # of the run that writes the responses to be labelled
    stages: tuple[str, ...]  # those that lead to what is measured, in order
    keys: Mapping[str, str]  # of what each stage must be
    made: frozenset[str]  # the stages that this run's own settings make so
    final: bool = False  # judged on the final problems

    @functools.cached_property
    def digest(self) -> str:
        """As in results.json: of the settings that decide the numbers."""
        return _digest(deciding(json.loads(to_json(self.config))))

    @property
    def name(self) -> str:
        """Names the workdir: changed settings, or other stages taken over, begin another run."""
        last = self.keys[self.stages[-1]][:4]
        final = "-final" if self.final else ""
        return f"{self.arm.name}-s{self.seed}{final}-{self.digest[:8]}{last}"

    @property
    def set_name(self) -> str:
        held_out = self.config.problems.held_out if self.final else "test"
        return f"{self.config.problems.name}/{held_out}"

    @functools.cached_property
    def evaluation_key(self) -> str:
        """Equal where the same policy would be judged by the same samples."""
        settings = json.loads(to_json(self.config))
        return _digest(
            [settings["seed"], settings["evaluate"], settings["device_batch"],
             settings["problems"], settings["sandbox"], settings["ppo"]["temperature"]]
        )  # fmt: skip


def study_runs(study: Study, *, final: bool = False) -> list[StudyRun]:
    """All runs, seed by seed, so that whole comparisons are finished early.

    On the final problems: those of policies, and others only where they alone make a stage that a
    policy takes.

    Raises ConfigError if a stage that a run must share is made by no run of the study.
    """
    runs = [
        _run(study, arm, seed, final)
        for seed in study.seeds
        for arm in study.arms
        if _has(study, arm, seed)
    ]
    makers = {run.keys[stage] for run in runs for stage in run.made}
    for run in runs:
        for stage in run.stages:
            if run.keys[stage] not in makers:
                raise ConfigError(
                    f"arm {run.arm.name!r} takes {stage!r} from another, and no arm makes it: "
                    f"list an arm with these settings that runs {stage!r}"
                )
    if not final:
        return runs
    policies = [run for run in runs if run.arm.measure in POLICIES]
    taken = {key for run in policies for key in run.keys.values()}
    taken -= {run.keys[stage] for run in policies for stage in run.made}
    return [
        run
        for run in runs
        if run.arm.measure in POLICIES or taken & {run.keys[stage] for stage in run.made}
    ]


def _has(study: Study, arm: Arm, seed: int) -> bool:
    """Whether an arm has a seed; without the arm whose stages it takes it cannot."""
    own = not arm.seeds or seed in arm.seeds
    return own and (not arm.shares or _has(study, study.arm(arm.shares), seed))


def _run(study: Study, arm: Arm, seed: int, final: bool) -> StudyRun:
    config = study.config_of(arm, seed)
    stages = _stages(arm, config)
    read = {stage: _read(_stage_config(study, arm, seed, stage), stage) for stage in stages}
    made = frozenset(stage for stage in stages if read[stage] == _read(config, stage))
    if final:
        config = with_settings(config, FINAL)
    return StudyRun(
        arm=arm,
        seed=seed,
        config=config,
        before=_stage_config(study, arm, seed, (stages[-2:-1] or stages)[0]),
        baseline=_stage_config(study, arm, seed, "rl").ppo,
        stages=stages,
        keys=_keys(read),
        made=made,
        final=final,
    )


def _stages(arm: Arm, config: Config) -> tuple[str, ...]:
    wanted = {arm.measure}
    for stage in reversed(STAGES):
        if stage in wanted:
            wanted |= set(needs(stage, config))
    return tuple(stage for stage in STAGES if stage in wanted)


def _stage_config(study: Study, arm: Arm, seed: int, stage: str) -> Config:
    """The settings under which a stage of a run is made."""
    before = stage != arm.measure
    if before and study.redraw == "rl":
        seed = study.seeds[0]
    if before and arm.shares and STAGES.index(stage) <= STAGES.index(arm.through):
        return _stage_config(study, study.arm(arm.shares), seed, stage)
    return study.config_of(arm, seed)


def _keys(read: Mapping[str, Any]) -> dict[str, str]:
    """Of each stage, from the settings that it reads and from the stages before it."""
    keys: dict[str, str] = {}
    for stage, settings in read.items():
        keys[stage] = _digest([settings, list(keys.items())])
    return keys


def _read(config: Config, stage: str) -> dict[str, Any]:
    """The settings that a stage, or a stage before it, reads."""
    here = STAGES.index(stage)
    settings = deciding(json.loads(to_json(config)))
    read: dict[str, Any] = {}
    for name, value in settings.items():
        if STAGES.index(READ_FIRST_BY.get(name, STAGES[0])) > here:
            continue
        if name in READ_BY_FIRST and STAGES.index(SECOND_READER[name]) > here:
            value = {k: v for k, v in value.items() if k in READ_BY_FIRST[name]}
        read[name] = value
    # Which problems judge the policies in the end concerns no stage that trains.
    read["problems"] = {k: v for k, v in read["problems"].items() if k != "held_out"}
    return read


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
