"""Who scores the lines in the PRM's place, and the exact oracle: a ceiling for comparisons.

`dense.source = "oracle"` pays each line what a search without fault would have labelled it. Only
the built-in problems have an oracle; it knows the solution, so this is no method.
"""

import numpy as np

from prm_jax import hosts
from prm_jax.config import Config, ConfigError
from prm_jax.problems import first_error
from prm_jax.problems.oracle import Asked
from prm_jax.prompts import PLAN_CLOSES, PLAN_OPENS
from prm_jax.rl.lines import Lines, step_ends
from prm_jax.stages.run import Run
from prm_jax.types import LineKind, Problem


def asks_oracle(config: Config) -> bool:
    """Whether the oracle scores the lines in stage `rl_prm`."""
    return config.dense.enabled and config.dense.source == "oracle"


def reads_prm(config: Config) -> bool:
    """Whether `rl_prm` needs a PRM: not if others score the lines for a critic of its own.

    With both options off it is the baseline again, and still runs after the PRM.
    """
    return config.value_init or not config.dense.enabled or config.dense.source == "prm"


def check_source(run: Run) -> None:
    """Raises ConfigError if the lines cannot be scored as asked: by an oracle that does not know
    the problems, or by labels that several hosts would have to search for."""
    if asks_oracle(run.config) and not run.problems.asked:
        raise ConfigError(
            f"dense.source = 'oracle' is not allowed with problems.name = "
            f"{run.config.problems.name!r}: only the built-in problems have an exact oracle; "
            "use dense.source = 'prm'"
        )
    if run.config.dense.labels_online and hosts.count() > 1:
        raise ConfigError(
            f"dense.{run.config.dense.labels_for} is not allowed on {hosts.count()} hosts: labels "
            "of rollouts are searched for by one; start one process, or use dense.source = 'prm' "
            "alone"
        )


def true_labels(
    run: Run, problem: Problem, ids: tuple[int, ...], *, passed: bool
) -> tuple[np.ndarray, np.ndarray]:
    """`(end_token, label)` of each step of a response, as a search without fault would label it.

    +1 before the first wrong line and -1 from there on, 0 for comments; all +1 if the program
    passes. A program that fails without an error that the oracle can name is wrong in its last
    step.
    """
    ends, kinds = step_ends(run.lines(ids))
    labels = np.ones(len(ends), np.float32)
    if not passed and len(ends):
        wrong = first_wrong_step(run, problem, ids)
        labels[len(ends) - 1 if wrong is None else wrong :] = -1
    return ends, np.where(kinds == LineKind.COMMENT, np.float32(0), labels)


def first_wrong_step(run: Run, problem: Problem, ids: tuple[int, ...]) -> int | None:
    """The step in which the oracle's first wrong line ends; None if it can name none."""
    lines = run.lines(ids)
    wrong = first_wrong_line(problem, run.problems.asked[problem.task_id], lines)
    if wrong is None or wrong >= lines.n_lines:  # of a program without lines
        return None
    ends, _ = step_ends(lines)
    # Tokens may end more than one line.
    return int(np.searchsorted(ends, lines.end_token[wrong]))


def first_wrong_line(problem: Problem, asked: Asked, lines: Lines) -> int | None:
    """The oracle's first wrong line of a response, its plan counted as one; None without any.

    A plan is wrong if it is not the problem's own: whoever keeps to it does something else.
    """
    n_plan = int(LineKind.PLAN in lines.kind)
    code = b"".join(lines.text[n_plan:]).decode("utf-8", errors="replace")
    error = first_error(asked, code)
    if error is not None and n_plan and problem.plan.split("\n") != plan_lines(lines.text[0]):
        return 0
    return None if error is None else error + n_plan


def plan_lines(block: bytes) -> list[str]:
    """What the lines of a plan say, its delimiters left out."""
    lines = [line.strip() for line in block.decode("utf-8", errors="replace").split("\n")]
    return [line for line in lines if line and f"{line}\n" not in (PLAN_OPENS, PLAN_CLOSES)]
