"""Starting the broker: find the strongest isolation that this host gives, or refuse to start.

A tier counts only if a zygote has put on all its layers and then judged programs whose verdicts
are known, among them one that looks for holes.
"""

import dataclasses
import os
import resource
import signal
import socket
import time
from typing import Any

from prm_jax.sandbox.core import cgroup, frames, linux, pool, tiers, verdicts
from prm_jax.sandbox.core.broker import Broker
from prm_jax.sandbox.core.pool import Infrastructure, Run, Setting, Zygote
from prm_jax.sandbox.core.selftest import self_tests
from prm_jax.sandbox.core.verdicts import Limits, Outcome

_TRIES = 3  # of one tier
_START_S = 60.0
_STACK_BYTES = 256 << 20
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER


def first_zygote(
    config: dict[str, Any],
) -> tuple[Zygote | None, Setting, list[tuple[tiers.Attempt, str]]]:
    """The strongest tier that works here, and why those above it do not."""
    failures: list[tuple[tiers.Attempt, str]] = []
    interpreter, folders = pool.base_interpreter(), pool.numpy_folders(config["path"])
    setting = Setting(tiers.Attempt("", frozenset()), interpreter, folders)
    attempts = tiers.attempts(os.geteuid() == 0, frozenset(config["without"]))
    if "layers" in config:  # a broker that replaces another keeps its tier
        attempts = [tiers.Attempt(config["tier"], frozenset(config["layers"]))]
    for attempt in attempts:
        setting = dataclasses.replace(setting, attempt=attempt)
        reason = ""
        for _ in range(_TRIES):
            try:
                return _try_zygote(setting), setting, failures
            except (Infrastructure, OSError) as error:
                reason = str(error)
                if isinstance(error, pool.LayerMissing):
                    break  # anything else may be an accident, and says nothing about the host
        failures.append((attempt, reason))
    return None, setting, failures


def _try_zygote(setting: Setting) -> Zygote:
    zygote = Zygote(setting, False, 0)
    try:
        _wait_until_ready(zygote)
    except (Infrastructure, OSError):
        zygote.end()
        pool.reap()
        if zygote.group:
            zygote.group.remove()
        raise
    return zygote


def _wait_until_ready(zygote: Zygote) -> None:
    zygote.socket.settimeout(_START_S)
    while not zygote.ready:
        zygote.receive()
    for request, expected in self_tests(zygote.layers):
        steps = verdicts.judge(request["program"], request["tests"], Limits(**request["limits"]))
        outcomes: list[Outcome] | None = None
        try:
            while True:
                (spec,) = steps.send(outcomes) if outcomes else next(steps)
                run = Run(spec)
                zygote.start(run, [])
                while run.outcome is None:
                    zygote.receive()
                run.close()
                outcomes = [run.outcome]
        except StopIteration as stop:
            if stop.value["status"] != expected:
                raise pool.LayerMissing(
                    f"self-test: {stop.value['status']} instead of {expected}: "
                    f"{stop.value['message']}"
                ) from None
    zygote.checked = time.monotonic()
    zygote.socket.settimeout(None)


def main() -> None:
    """Started by exec with the client's socket as standard input."""
    client = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    config = frames.read(client.fileno(), 1 << 20)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the trainer's Ctrl-C is the trainer's
    linux.prctl(_SUBREAPER, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    unlimited = hard == resource.RLIM_INFINITY
    stack = _STACK_BYTES if unlimited else min(_STACK_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_STACK, (stack, hard))
    if os.geteuid() == 0:
        cgroup.sweep()
    zygote, setting, failures = first_zygote(config)
    tier = setting.attempt.tier if zygote else None
    if zygote is None or not tiers.strong_enough(setting.attempt.tier, config["min_tier"]):
        text = tiers.refusal(config["min_tier"], tier, failures)
        frames.write(client.fileno(), {"refused": text})
        if zygote:
            zygote.end()
        return
    layers = sorted(setting.attempt.layers)
    frames.write(client.fileno(), {"tier": tier, "layers": layers})
    broker = Broker(client, config["jobs"], setting)
    broker.adopt(zygote)
    try:
        broker.serve()
    finally:
        broker.close()
