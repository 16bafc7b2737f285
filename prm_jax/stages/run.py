"""What all stages of one run share: settings, devices, problems, sandbox, logs, randomness.

A stage is a function `stage(run) -> None` that leaves its results in `run.workdir/<stage>`, and
marks itself finished by writing `done.json` there, last of all.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from enum import IntEnum
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from prm_jax import hosts
from prm_jax.checkpoint import Checkpoints
from prm_jax.config import Config, to_json
from prm_jax.metrics import MetricsLog
from prm_jax.model.heads import PolicyModel, ScalarModel
from prm_jax.model.lora import fresh_adapters, join, split_trainable
from prm_jax.pretrained import load_params
from prm_jax.problems import ProblemSets
from prm_jax.prompts import Prompts
from prm_jax.rl.lines import Lines, split_lines
from prm_jax.rl.stops import StopTable
from prm_jax.sandbox import Sandbox
from prm_jax.sharding import abstract_params, init_params
from prm_jax.stages.judging import SharedSandbox
from prm_jax.tokenizer import Tokenizer
from prm_jax.types import Problem, Verdict


class Stream(IntEnum):
    """What randomness is for: each purpose has its own stream below the run's seed."""

    POLICY_INIT = 0
    SFT_ORDER = 1
    RL_ORDER = 3
    RL_SAMPLE = 4
    RL_SHUFFLE = 5
    RECALIBRATE = 6
    RESPOND = 7
    PROBE = 8
    PRM_ORDER = 10
    EVALUATE = 11
    CRITIC_WARMUP = 12
    PLANS = 13
    INSPECT = 14
    CANDIDATES = 15
    LABELS_ONLINE = 16
    PRM_ONLINE = 17


@dataclasses.dataclass(frozen=True)
class Run:
    config: Config
    workdir: Path
    mesh: Mesh
    tokenizer: Tokenizer
    prompts: Prompts
    problems: ProblemSets
    sandbox: Sandbox | None  # none, where nothing is executed
    log: MetricsLog
    policy: PolicyModel
    scalar: ScalarModel  # critic and PRM

    # -------------------------------------------------------------------------- randomness

    def key(self, stream: Stream, *numbers: int) -> jax.Array:
        """The key of one event: the seed's, folded with its stream and its place in it."""
        key = jax.random.fold_in(jax.random.key(self.config.seed), stream)
        for number in numbers:
            key = jax.random.fold_in(key, number)
        return key

    def order(self, stream: Stream, n: int, epoch: int) -> np.ndarray:
        """A permutation of n items for one pass over them, the same on every host."""
        return np.random.default_rng([self.config.seed, int(stream), epoch]).permutation(n)

    # ---------------------------------------------------------- between tokens and programs

    def prompt_ids(self, problem: Problem) -> list[int]:
        return self.prompts.ids(problem)

    def lines(self, ids: Sequence[int]) -> Lines:
        """The lines of the code in a response, and its plan before them."""
        pieces = self.tokenizer.pieces(ids)
        response = b"".join(pieces)
        return split_lines(
            pieces, self.prompts.code_span(response), self.prompts.plan_span(response)
        )

    def program(self, problem: Problem, ids: Sequence[int]) -> str:
        """The whole program that a response stands for."""
        return self.prompts.program(problem, b"".join(self.tokenizer.pieces(ids)))

    @functools.cached_property
    def stops(self) -> StopTable | None:
        """What ends a response beside an EOS, for the sampler."""
        if not self.prompts.stops:
            return None
        return self.tokenizer.stop_table(self.prompts.stops)

    def judge_here(self, problem: Problem, program: str) -> Future[Verdict]:
        """Starts judging one program in the sandbox of this host."""
        assert self.sandbox is not None
        return self.sandbox.submit(program, problem.tests, problem.limits)

    def judge(self, problem: Problem, program: str) -> Future[Verdict]:
        """Starts judging one program, which all hosts bring, in the sandbox of one of them."""
        if hosts.count() == 1:
            return self.judge_here(problem, program)
        return self._shared_sandbox.submit(problem, program)

    def await_some(self, verdicts: Collection[Future[Verdict]]) -> None:
        """Waits until one more of these futures of `judge` is done."""
        if hosts.count() == 1:
            concurrent.futures.wait(verdicts, return_when=concurrent.futures.FIRST_COMPLETED)
        else:
            self._shared_sandbox.exchange(wait_for_all=False)

    @functools.cached_property
    def _shared_sandbox(self) -> SharedSandbox:
        return SharedSandbox(self.judge_here, self.config.sandbox.deadline_s)

    def digest(self) -> str:
        """A short name for the settings that decide this run's numbers."""
        settings = deciding(json.loads(to_json(self.config)))
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]

    # ------------------------------------------------------------------------- finished stages

    def done(self, stage: str) -> dict[str, Any] | None:
        """The summary that a finished stage left, or None."""
        path = self.workdir / stage / "done.json"
        return hosts.first(lambda: json.loads(path.read_text()) if path.exists() else None)

    def finish(self, stage: str, summary: dict[str, Any]) -> None:
        """Marks a stage finished."""
        write_atomically(self.workdir / stage / "done.json", json.dumps(summary, indent=2))

    # ---------------------------------------------------------------------------- parameters

    def starting_params(self) -> Any:
        """The policy before any training: the weights of `model.path`, or fresh ones."""
        key = self.key(Stream.POLICY_INIT)
        if self.config.model.lora_rank:
            return join(fresh_adapters(self.policy, self.mesh, key), self.frozen)
        if self.config.model.path:
            return load_params(self.config.model.path, self.policy, self.mesh)
        return init_params(self.policy, self.mesh, key)

    @functools.cached_property
    def frozen(self) -> Any:
        """The policy's parameters that no stage trains; none, unless LoRA adapters do.

        They are kept in the dtype of computation: in bfloat16 they take half the memory.
        """
        config = self.config.model
        if not config.lora_rank:
            return {}
        params = load_params(
            config.path, self.policy, self.mesh, dtype=config.dtype,
            key=self.key(Stream.POLICY_INIT),
        )  # fmt: skip
        return split_trainable(params)[1]

    def restore(self, kind: str, model: PolicyModel | ScalarModel, step: int | None = None) -> Any:
        """Parameters that a stage left, for example kind `rl/policy`; the last ones by default."""
        trained, _ = split_trainable(abstract_params(model, self.mesh))
        with Checkpoints(self.workdir / kind) as checkpoints:
            trained = checkpoints.restore(step or checkpoints.steps()[-1], trained)
        # A scalar model has the policy's trunk, and a head that is always trained.
        frozen = {name: self.frozen[name] for name in self.frozen.keys() & {"trunk"}}
        return join(trained, self.frozen if isinstance(model, PolicyModel) else frozen)


def deciding(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings without those that say where a run computes and not what, or what is told of it.

    A run with other values of these is the same run.
    """
    idle = {
        "sandbox": ("jobs", "min_tier", "deadline_s"),
        "evaluate": ("inspect",),  # changes no number, but says whether some are there
    }
    where = ("mesh", "decode_rows")
    kept = {k: v for k, v in settings.items() if k not in where}
    for section, names in idle.items():
        kept[section] = {k: v for k, v in settings[section].items() if k not in names}
    return kept


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
    """Writes a file whole or not at all; of several hosts, the first writes it."""
    if hosts.index():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def whole_lines(path: Path) -> list[str]:
    """The lines of a file; one that a kill tore is left out."""
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def write_json_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))
