"""What all stages of one run share: settings, devices, problems, sandbox, logs, randomness.

A stage is a function `stage(run) -> None` that leaves its results in `run.workdir/<stage>`, and
marks itself finished by writing `done.json` there, last of all.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import Future
from enum import IntEnum
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from prm_jax.checkpoint import Checkpoints
from prm_jax.config import Config, to_json
from prm_jax.metrics import MetricsLog
from prm_jax.model.heads import PolicyModel, ScalarModel
from prm_jax.problems import ProblemSets
from prm_jax.sandbox import Sandbox
from prm_jax.tokenizer import Tokenizer
from prm_jax.types import Problem, Verdict


class Stream(IntEnum):
    """What randomness is for: each purpose has its own stream below the run's seed."""

    POLICY_INIT = 0
    SFT_ORDER = 1
    CRITIC_INIT = 2
    RL_ORDER = 3
    RL_SAMPLE = 4
    RL_SHUFFLE = 5
    RECALIBRATE = 6
    RESPOND = 7
    PROBE = 8
    PRM_INIT = 9
    PRM_ORDER = 10
    EVALUATE = 11
    CRITIC_WARMUP = 12


@dataclasses.dataclass(frozen=True)
class Run:
    config: Config
    workdir: Path
    mesh: Mesh
    tokenizer: Tokenizer
    problems: ProblemSets
    sandbox: Sandbox
    log: MetricsLog
    policy: PolicyModel
    scalar: ScalarModel  # critic and PRM

    def key(self, stream: Stream, *numbers: int) -> jax.Array:
        """The key of one event: the seed's, folded with its stream and its place in it."""
        key = jax.random.fold_in(jax.random.key(self.config.seed), stream)
        for number in numbers:
            key = jax.random.fold_in(key, number)
        return key

    def order(self, stream: Stream, n: int, epoch: int) -> np.ndarray:
        """A permutation of n items for one pass over them, the same on every host."""
        return np.random.default_rng([self.config.seed, int(stream), epoch]).permutation(n)

    def judge(self, problem: Problem, completion: str) -> Future[Verdict]:
        """Starts judging one completion in the sandbox."""
        return self.sandbox.submit(problem.program(completion), problem.tests, problem.limits)

    def prompt_ids(self, problem: Problem) -> list[int]:
        return self.tokenizer.encode(problem.prompt)

    def digest(self) -> str:
        """A short name for the settings that decide this run's numbers."""
        settings = deciding(json.loads(to_json(self.config)))
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]

    # ------------------------------------------------------------------------- finished stages

    def done(self, stage: str) -> dict[str, Any] | None:
        """The summary that a finished stage left, or None."""
        path = self.workdir / stage / "done.json"
        return json.loads(path.read_text()) if path.exists() else None

    def finish(self, stage: str, summary: dict[str, Any]) -> None:
        """Marks a stage finished."""
        write_atomically(self.workdir / stage / "done.json", json.dumps(summary, indent=2))

    def restore(self, kind: str, like: Any, step: int | None = None) -> Any:
        """Parameters that a stage left, for example kind `rl/policy`; the last ones by default."""
        with Checkpoints(self.workdir / kind) as checkpoints:
            return checkpoints.restore(step or checkpoints.steps()[-1], like)


def deciding(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings without those that say where a run computes and not what."""
    sandbox = {k: v for k, v in settings["sandbox"].items() if k not in ("jobs", "min_tier")}
    return {k: v for k, v in settings.items() if k != "mesh"} | {"sandbox": sandbox}


def take_cycled(order_of_epoch, n: int, start: int, count: int) -> list[int]:
    """Items `start .. start + count` of an endless stream of epochs over n items.

    `order_of_epoch(epoch)` is the epoch's permutation; the same numbers give the same items.
    """
    items: list[int] = []
    while len(items) < count:
        epoch, offset = divmod(start + len(items), n)
        items += [int(i) for i in order_of_epoch(epoch)[offset : offset + count - len(items)]]
    return items


def write_atomically(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def write_json_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))
