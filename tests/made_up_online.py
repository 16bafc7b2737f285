"""A stage that labels its own rollouts, made small: its settings, its sandbox, and a whole run."""

import dataclasses
import json
import random
import threading
from concurrent.futures import Future
from types import SimpleNamespace

import jax
import pytest
from characters import Completions
from made_up_stage import ONE, TOKENIZER, problem

from prm_jax.checkpoint import Checkpoints
from prm_jax.config import Config, DenseConfig, LabelConfig, ModelConfig, PPOConfig
from prm_jax.metrics import MetricsLog
from prm_jax.model.heads import PolicyModel, ScalarModel
from prm_jax.sharding import init_params
from prm_jax.stages.rl import rl_prm
from prm_jax.stages.run import Run
from prm_jax.steps.state import scalar_params
from prm_jax.types import Verdict

WIDTH, ROOM = 8, 64
PROBLEM = problem("p", "append 3")


def config(**fields) -> Config:
    dense = {"source": "labels", "completions": 8} | fields.pop("dense", {})
    label = {"samples_per_prefix": 2, "wave": 2, "search": "binary"} | fields.pop("label", {})
    ppo = {"rollouts": 11, "minibatches": 1, "steps": 4, "checkpoint_every": 1, "temperature": 0.7}
    return Config(
        **{
            "value_init": False,
            "max_prompt_tokens": WIDTH,
            "max_completion_tokens": ROOM,
            "dense": DenseConfig(**dense),
            "label": LabelConfig(**{"checkpoints": 1} | label),
            "ppo": PPOConfig(**ppo | fields.pop("ppo", {})),
        }
        | fields
    )


class Sandbox:
    """Passes what `right` says, some time later and in any order."""

    def __init__(self, right, late: bool = False):
        self.asked: list[str] = []
        self._right, self._late = right, late

    def submit(self, program, tests, limits) -> Future:
        self.asked.append(program)
        future: Future = Future()
        verdict = Verdict("passed" if self._right(program) else "failed", 0, 1)
        if self._late:
            threading.Timer(random.random() / 50, future.set_result, (verdict,)).start()
        else:
            future.set_result(verdict)
        return future


def run_of(config: Config, right, workdir=None, late=False, **parts) -> Run:
    return Run(
        **{
            "config": config,
            "workdir": workdir,
            "mesh": ONE,
            "tokenizer": TOKENIZER,
            "prompts": Completions(),
            "problems": SimpleNamespace(train=[PROBLEM], asked={}),
            "sandbox": Sandbox(right, late),
            "log": None,
            "policy": None,
            "scalar": None,
        }
        | parts
    )


MODEL = ModelConfig(layers=1, embed=16, heads=2, kv_heads=1, head_dim=8, mlp=24)
POLICY = PolicyModel(MODEL, TOKENIZER.vocab_size, TOKENIZER.pad_id)
SCALAR = ScalarModel(MODEL, TOKENIZER.vocab_size)
REAL = {"max_completion_tokens": 16, "decode_rows": 8, "label": {"search": "cheapest"}}


def some_pass(program: str) -> bool:
    return sum(program.encode()) % 3 == 0


def trained(
    folder, config: Config, stop_after: int = 0, late: bool = False, mesh=ONE, labelled=()
) -> list[dict]:
    """Runs stage rl_prm in a folder from an untrained policy; the metrics of its steps.

    Killed once so many programs were asked about, if so, and started again. With `labelled`, what
    the label stage left, there is a PRM too, which knows nothing.
    """
    config = dataclasses.replace(config, model=MODEL)
    folder.mkdir(exist_ok=True)
    with jax.set_mesh(mesh):
        params = init_params(POLICY, mesh, jax.random.key(0))
        with Checkpoints(folder / "sft/policy") as checkpoints:
            checkpoints.save(1, params)
        if labelled:
            with Checkpoints(folder / "prm/model") as checkpoints:
                checkpoints.save(1, scalar_params(SCALAR, params["trunk"], mesh))
            (folder / "label").mkdir(exist_ok=True)
            text = "".join(f"{one.to_json()}\n" for one in labelled)
            (folder / "label/labels.jsonl").write_text(text)
        problems = SimpleNamespace(train=[problem(f"p{i}", "?" * (i + 1)) for i in range(4)])

        def run_stage(stop_after: int) -> None:
            with MetricsLog(folder) as log:
                run = run_of(
                    config, some_pass, folder, late,
                    problems=problems, policy=POLICY, scalar=SCALAR, log=log, mesh=mesh,
                )  # fmt: skip
                if stop_after:
                    judged = run.judge_here

                    def judge_here(problem, program):
                        done = len(run.sandbox.asked)  # type: ignore[union-attr]
                        if done >= stop_after:
                            raise KeyboardInterrupt
                        return judged(problem, program)

                    object.__setattr__(run, "judge_here", judge_here)
                rl_prm(run)

        if stop_after:
            with pytest.raises(KeyboardInterrupt):
                run_stage(stop_after)
        run_stage(0)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time")} for row in rows]
