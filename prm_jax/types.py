"""The nouns of the project: what flows from a problem to a trained policy.

Host-side nouns (problems, tests, verdicts, labels of lines) are frozen dataclasses of plain Python
values. Device-side nouns (rollouts, train states) are pytrees of arrays on one grid: every
per-token array is `[B, T]`, aligned to the token that it is about, with T = P + C, the prompt
left-padded to P and the completion right-padded to C.
"""

import dataclasses
from enum import IntEnum
from typing import Any, Literal

import jax
from jaxtyping import Bool, Float, Int

# --------------------------------------------------------------------------- problems and verdicts


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one program may use. CPU time is the program's own; wall time is derived from it."""

    cpu_s: float = 2.0
    memory_mib: int = 256
    output_bytes: int = 1 << 20


@dataclasses.dataclass(frozen=True)
class CallTests:
    """Assert statements, each one test; `setup` runs after the program and before the asserts."""

    asserts: tuple[str, ...]
    setup: str = ""
    float_tolerance: float = 0.0  # absolute and relative, as in math.isclose; 0 compares exactly


@dataclasses.dataclass(frozen=True)
class CheckTests:
    """Test code that defines `check(candidate)`, called with the program's `entry_point`."""

    code: str
    entry_point: str


@dataclasses.dataclass(frozen=True)
class StdioTests:
    """Cases of (standard input, expected standard output); the program runs as `__main__`."""

    cases: tuple[tuple[str, str], ...]
    float_tolerance: float = 0.0


Tests = CallTests | CheckTests | StdioTests


@dataclasses.dataclass(frozen=True)
class Problem:
    """One task: what the policy reads, what its program must pass, and one known solution."""

    task_id: str
    prompt: str  # the text that a completion follows
    tests: Tests
    solution: str = ""  # a completion that passes
    plan: str = ""  # what the solution does, in words, where responses open with a plan
    program_prefix: str = ""  # text before the completion that makes it a whole program
    instruction: str = ""  # what a chat model is asked; empty where the set has no such form
    horizon: int = 0  # lines of the reference solution
    difficulty: str = ""
    limits: Limits = Limits()

    def program(self, completion: str) -> str:
        """The whole program that a completion stands for."""
        return self.program_prefix + completion


Status = Literal["passed", "failed", "error", "timeout", "memory", "forbidden"]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the sandbox found out about one program. Always a verdict, never a failure of ours."""

    status: Status
    tests_passed: int
    tests_total: int
    cpu_s: float = 0.0
    wall_s: float = 0.0
    tier: str = ""  # the isolation it ran under, see docs/sandbox.md
    message: str = ""  # the tail of the program's own error, for people

    @property
    def passed(self) -> bool:
        return self.status == "passed"


# --------------------------------------------------------------------------------- lines and labels


class LineKind(IntEnum):
    """What a line is. Blank lines are no steps; comments are steps with the neutral label 0.

    PLAN is the block that a response may open with (prompts.plan): one step, whatever its lines.
    """

    BLANK = 0
    CODE = 1
    COMMENT = 2
    PLAN = 3


@dataclasses.dataclass(frozen=True)
class PrefixLabels:
    """Labels of the prefixes of one response, one entry per step (a line that is not blank).

    A plan is the first step: its label says whether any program that goes on from it passes. The
    label of step m is +1 if the response's first m lines can still be completed, -1 if not, 0 for
    comments. `passes[m]` of `samples[m]` completions from that prefix passed; samples is 0 where
    the search inferred the label without probing. A probe ends with the first wave that has a pass,
    so passes / samples estimates the rate of success too high.
    """

    kinds: tuple[LineKind, ...]
    labels: tuple[int, ...]
    passes: tuple[int, ...]
    samples: tuple[int, ...]


# ------------------------------------------------------------------------------------------ pytrees


# They are all in this module, which the shape checks of the tests leave out: a pytree must also
# hold shardings and abstract shapes.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Samples:
    """What the sampler returns, N prompts x K samples in B adjacent rows."""

    tokens: Int[jax.Array, "B T"]
    valid: Bool[jax.Array, "B T"]  # not padding
    completion_mask: Bool[jax.Array, "B T"]  # chosen by the policy, the EOS included
    logp: Float[jax.Array, "B T"]  # of the distribution it was sampled from


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rollout:
    """Samples, what the models say of them, and what the tests said. Masks: True counts."""

    tokens: Int[jax.Array, "B T"]
    valid: Bool[jax.Array, "B T"]
    completion_mask: Bool[jax.Array, "B T"]
    line_end: Bool[jax.Array, "B T"]  # a line of the response that is not blank ends in this token
    logp: Float[jax.Array, "B T"]
    ref_logp: Float[jax.Array, "B T"]
    values: Float[jax.Array, "B T"]  # of the state before the token was chosen
    prm_scores: Float[jax.Array, "B T"]  # of the prefix that includes the token; read at line_end
    outcome: Float[jax.Array, "B"]  # what the verdict earns: 1 for a pass, else 0 or partial credit


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PPOBatch:
    """A rollout as the update needs it: advantages whitened over the whole rollout."""

    tokens: Int[jax.Array, "B T"]
    valid: Bool[jax.Array, "B T"]
    completion_mask: Bool[jax.Array, "B T"]
    logp: Float[jax.Array, "B T"]
    values: Float[jax.Array, "B T"]
    advantages: Float[jax.Array, "B T"]
    returns: Float[jax.Array, "B T"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenBatch:
    """Text to imitate: SFT reads the tokens that `mask` marks, the solution and its EOS."""

    tokens: Int[jax.Array, "B T"]
    valid: Bool[jax.Array, "B T"]
    mask: Bool[jax.Array, "B T"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LabelBatch:
    """Responses with a label where a line ends; `weights` are 0 elsewhere in the PRM's loss."""

    tokens: Int[jax.Array, "B T"]
    valid: Bool[jax.Array, "B T"]
    weights: Float[jax.Array, "B T"]
    labels: Float[jax.Array, "B T"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """One model in training; policy, critic and PRM have one each."""

    step: Int[jax.Array, ""]
    params: Any
    opt_state: Any
