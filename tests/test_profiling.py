"""A trace holds the steps that were asked for, and ends with a stage that has fewer."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from prm_jax.metrics import MetricsLog
from prm_jax.profiling import SKIPPED, Profiler


def steps_in(folder) -> int:
    """How often the program `one_step` ran in the trace; a call may hold another of its name."""
    (path,) = folder.rglob("*.trace.json.gz")
    with gzip.open(path, "rt") as file:
        events = json.load(file)["traceEvents"]
    calls = [e for e in events if "PjitFunction(one_step)" in e.get("name", "")]
    found, end = 0, -1.0
    for call in sorted(calls, key=lambda call: call["ts"]):
        found += call["ts"] > end
        end = max(end, call["ts"] + call["dur"])
    return found


@pytest.mark.parametrize(("steps", "ran", "traced"), [(3, 9, 3), (3, 4, 2), (0, 5, None)])
def test_the_steps_after_the_first_are_traced(tmp_path, steps, ran, traced):
    @jax.jit
    def one_step(x):
        return x * 2

    with MetricsLog(tmp_path, Profiler(tmp_path / "profile", steps)) as log:
        for stage in ("sft", "rl"):
            log.rewind(stage, 0)  # as every stage begins
            for step in range(ran):
                log.log(stage, step, {"x": one_step(jnp.float32(step))})
    for stage in ("sft", "rl"):
        if traced is None:
            assert not (tmp_path / "profile").exists()
        else:
            assert steps_in(tmp_path / "profile" / stage) == min(traced, ran - SKIPPED)
