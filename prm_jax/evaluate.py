"""pass@k of any model on any problem set, and what a PRM is worth in choosing among its answers.

    python -m prm_jax.evaluate --model runs/tiny --problems chains
    python -m prm_jax.evaluate --model DIR --problems human_eval --samples 20 --k 1,10
    python -m prm_jax.evaluate --model runs/a --problems mbpp:PATH --prm runs/a --best-of 8

Leaves `samples.jsonl` (a response and its verdict a line, in the layout that human-eval's tools
read) and `results.json` in `--out`. The same command again goes on where it stopped.
"""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from prm_jax.config import ConfigError, EvaluateConfig
from prm_jax.metrics import MetricsLog, Progress, say
from prm_jax.process import settle_process
from prm_jax.rl.statistics import best_of_n, pass_at_k
from prm_jax.sandbox import Sandbox, SandboxError, SandboxRefused
from prm_jax.stages.attempts import Attempt, Memo, Sampling, Start
from prm_jax.stages.chosen import (
    ModelChoice,
    choose_config,
    open_policy,
    open_run,
    open_scalar,
    read_split,
)  # fmt: skip
from prm_jax.stages.evaluate import counts, interval
from prm_jax.stages.journal import Journal
from prm_jax.stages.run import Run, Stream, write_atomically, write_json_lines
from prm_jax.stages.scoring import program_scores
from prm_jax.types import Limits, Problem

LENGTHS = (50, 100, 200, 400)  # bounds between bins of response length, in tokens


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Samples answers to problems, runs their tests, and prints pass@k with intervals.

    With --prm: how often the answer that the PRM likes best among N passes, beside the first
    answer, a random one, an outcome model's choice (--orm) and the best there is (pass@N).
    """

    choice: Annotated[ModelChoice, tyro.conf.arg(name="")]
    problems: str
    """chains (the held-out problems of the run), human_eval, NAME:PATH, or a file
    (docs/problems.md)."""
    split: str = "test"
    """Of the problem set."""
    first: int = 0
    """Only so many problems of the split, the first ones; 0 takes all."""
    samples: int = 10
    """Answers per problem."""
    temperature: float = 0.2
    """Of sampling; 0 is greedy, and then one sample says it all."""
    top_p: float = 1.0
    """Nucleus sampling; 1 keeps all."""
    k: str = ""
    """The k of pass@k, separated by commas; empty takes 1, and 10 where there are enough."""
    prm: Path | None = None
    """A run whose PRM chooses among the answers."""
    orm: Path | None = None
    """A run whose PRM is an outcome model (prm.loss_on = outcome), to compare with."""
    best_of: int = 0
    """N of best-of-N; 0 takes all samples."""
    out: Path = Path("runs/evaluate")
    """Where samples and results go."""
    seed: int = 0
    """Of sampling and of the intervals."""
    jobs: int = 0
    """Programs at once; 0 takes the cores that this process may use."""
    min_tier: Literal["T0", "T1", "T2", "T3", "T4"] = "T3"
    """The weakest isolation that is accepted (docs/sandbox.md)."""
    cpu_s: float = 2.0
    """CPU seconds that a program may use, where its problem does not say."""
    memory_mib: int = 256
    """Memory that a program may use, in MiB, where its problem does not say."""

    def ks(self) -> tuple[int, ...]:
        """The k of pass@k; raises ConfigError for what cannot be estimated."""
        if not self.k:
            return (1, 10) if self.samples >= 10 else (1,)
        try:
            ks = tuple(sorted({int(k) for k in self.k.split(",")}))
        except ValueError:
            raise ConfigError(f"k = {self.k!r} is not allowed: give numbers, as in 1,10") from None
        if not 1 <= ks[0] <= ks[-1] <= self.samples:
            raise ConfigError(
                f"k = {self.k!r} is not allowed: each must be in 1..{self.samples}, the samples"
            )
        return ks

    def n(self) -> int:
        """N of best-of-N."""
        n = self.best_of or self.samples
        if not 1 <= n <= self.samples:
            raise ConfigError(
                f"best_of = {n} is not allowed: it must be in 1..{self.samples}, the samples"
            )
        return n


def evaluate(arguments: Arguments) -> dict[str, Any]:
    """Samples, judges, counts and writes; returns what `results.json` holds."""
    ks, n = arguments.ks(), arguments.n()
    out = arguments.out
    config = dataclasses.replace(
        choose_config(arguments.choice),
        seed=arguments.seed,
        evaluate=EvaluateConfig(
            samples=arguments.samples, temperature=arguments.temperature, top_p=arguments.top_p
        ),
    )
    sets = read_split(
        arguments.choice, config, arguments.problems, arguments.split, out,
        Limits(cpu_s=arguments.cpu_s, memory_mib=arguments.memory_mib),
    )  # fmt: skip
    problems = list(sets.held_out[arguments.split])[: arguments.first or None]
    with contextlib.ExitStack() as stack:
        sandbox = stack.enter_context(Sandbox(jobs=arguments.jobs, min_tier=arguments.min_tier))
        log = stack.enter_context(MetricsLog(out))
        run = open_run(arguments.choice, config, sets, sandbox, log)
        check_prompts(run, problems)
        stack.enter_context(jax.set_mesh(run.mesh))
        params, name = open_policy(run, arguments.choice)
        say(f"{name}: {len(problems)} problems of {arguments.problems}, {arguments.split}")
        attempts = sample(run, params, name, problems, out)
        write_json_lines(out / "samples.jsonl", sample_rows(run, problems, attempts))
        results = {
            "schema": 1,
            "model": name,
            "problems": arguments.problems,
            "split": arguments.split,
            "n_problems": len(problems),
            "seed": arguments.seed,
            "samples": arguments.samples,
            "temperature": arguments.temperature,
            "top_p": arguments.top_p,
            "style": run.config.prompts.style,
            "confidence": run.config.evaluate.confidence,
            "tier": sandbox.tier,
            **rates(run, problems, attempts, ks),
        }
        if arguments.prm is not None:
            results["best_of_n"] = choices(run, arguments, problems, attempts, n)
    write_atomically(out / "results.json", json.dumps(results, indent=2))
    return results


def check_prompts(run: Run, problems: Sequence[Problem]) -> None:
    """Raises ConfigError if a prompt does not fit."""
    if not problems:
        raise ConfigError("problems: there is none to ask")
    longest = max(problems, key=lambda problem: len(run.prompt_ids(problem)))
    tokens = len(run.prompt_ids(longest))
    if tokens > run.config.max_prompt_tokens:
        raise ConfigError(
            f"max_prompt_tokens = {run.config.max_prompt_tokens} is not allowed: "
            f"{longest.task_id} needs {tokens}"
        )
    room = run.config.model.max_positions
    if 0 < room < tokens + run.config.max_completion_tokens:
        raise ConfigError(
            f"max_completion_tokens = {run.config.max_completion_tokens} is not allowed: the model "
            f"was made for {room} positions, and {longest.task_id} takes {tokens}"
        )


def sample(
    run: Run, params: Any, name: str, problems: Sequence[Problem], out: Path
) -> list[list[Attempt]]:
    """Judged answers to every problem; finished batches are kept, so a killed call goes on."""
    config = run.config.evaluate
    # What decides the numbers is in the name of each unit: another call never reads them.
    about = f"{name}/{run.digest()}"
    with (
        Journal(out / "journal.jsonl") as journal,
        Progress(len(problems), "evaluate", "problems") as progress,
    ):
        sampling = Sampling(
            run, Memo(), samples=config.samples, temperature=config.temperature, top_p=config.top_p
        )
        starts = [Start(problem) for problem in problems]
        key = run.key(Stream.EVALUATE)
        return sampling.run(params, starts, key, journal, about, progress)


def sample_rows(
    run: Run, problems: Sequence[Problem], attempts: Sequence[Sequence[Attempt]]
) -> list[dict[str, Any]]:
    """Lines of samples.jsonl; prompt + completion is a whole program where the prompt is code."""
    return [
        {
            "task_id": problem.task_id,
            "completion": run.program(problem, attempt.ids).removeprefix(problem.program_prefix),
            "response": run.tokenizer.decode(attempt.ids),
            "status": attempt.status,
            "passed": attempt.passed,
            "tokens": len(attempt.ids),
        }
        for problem, row in zip(problems, attempts, strict=True)
        for attempt in row
    ]


def rates(
    run: Run,
    problems: Sequence[Problem],
    attempts: Sequence[Sequence[Attempt]],
    ks: Sequence[int],
) -> dict[str, Any]:
    """pass@k, by difficulty, and by the length of the response."""
    n, c = counts(attempts)
    statuses = [attempt.status for row in attempts for attempt in row]
    difficulty = np.array([problem.difficulty for problem in problems])
    found: dict[str, Any] = {
        "pass_at_k": {str(k): interval(run, pass_at_k(n, c, k)) for k in ks},
        "statuses": {status: statuses.count(status) for status in sorted(set(statuses))},
        "tokens": float(np.mean([len(a.ids) for row in attempts for a in row])),
    }
    if len(names := sorted(set(difficulty.tolist()) - {""})) > 1:
        found["by_difficulty"] = {
            name: interval(run, pass_at_k(n[difficulty == name], c[difficulty == name], 1))
            for name in names
        }
    found["by_length"] = {}
    for low, high in zip((0, *LENGTHS), (*LENGTHS, sys.maxsize), strict=True):
        inside = [[a.passed for a in row if low <= len(a.ids) < high] for row in attempts]
        means = np.array([np.mean(row) for row in inside if row], np.float64)
        if len(means):
            name = f"{low}-{high - 1}" if high < sys.maxsize else f"{low}+"
            found["by_length"][name] = interval(run, means)
    return found


def choices(
    run: Run,
    arguments: Arguments,
    problems: Sequence[Problem],
    attempts: Sequence[Sequence[Attempt]],
    n: int,
) -> dict[str, Any]:
    """How often the answer that is chosen among N passes, for each way to choose."""
    passed = np.array([[a.passed for a in row] for row in attempts])
    count, passes = counts(attempts)
    found = {
        "n": n,
        "first": interval(run, passed[:, 0].astype(np.float64)),
        "random": interval(run, pass_at_k(count, passes, 1)),
        "oracle": interval(run, pass_at_k(count, passes, n)),
    }
    for who, path in (("prm", arguments.prm), ("orm", arguments.orm)):
        if path is None:
            continue
        for rule, scores in program_scores(
            *_open_scorer(run, path), run, problems, attempts
        ).items():
            if who == "prm" or rule == "last":
                found[f"{who}_{rule}"] = interval(run, best_of_n(scores, passed, n))
    return found


def _open_scorer(run: Run, path: Path) -> tuple[Run, Any]:
    """The run of a PRM, with its own tokenizer and prompts, and the PRM."""
    choice = ModelChoice(path)
    scorer = open_run(choice, choose_config(choice), run.problems, run.sandbox, run.log)
    return scorer, open_scalar(scorer, choice)[0]


def table(results: dict[str, Any]) -> str:
    """The results for people."""

    def line(name: str, found: dict[str, Any]) -> str:
        low, high = 100 * found["low"], 100 * found["high"]
        return (
            f"  {name:<24}{100 * found['value']:6.1f} %   ({low:.1f}-{high:.1f})   n = {found['n']}"
        )

    lines = [
        f"{results['model']} on {results['problems']} ({results['split']}), "
        f"{results['samples']} samples at temperature {results['temperature']}",
        *(line(f"pass@{k}", found) for k, found in results["pass_at_k"].items()),
    ]
    for title, key in (("pass@1 by difficulty", "by_difficulty"),
                       ("passing, by tokens of the response", "by_length")):  # fmt: skip
        if results.get(key):
            lines += [title, *(line(name, found) for name, found in results[key].items())]
    if best := results.get("best_of_n"):
        names = {"prm_last": "PRM, last line", "prm_mean": "PRM, mean of lines",
                 "prm_min": "PRM, worst line", "orm_last": "outcome model"}  # fmt: skip
        lines += [
            f"passing, of the answer chosen among {best['n']}",
            *(line(names.get(k, k), v) for k, v in best.items() if k != "n"),
        ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    settle_process()
    arguments = tyro.cli(Arguments, args=argv, prog="python -m prm_jax.evaluate")
    try:
        print(table(evaluate(arguments)))
    except (ConfigError, SandboxRefused) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except SandboxError as error:
        print(f"error: {error}\nrun the same command again to go on", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the last batch", file=sys.stderr)
        return 130
    say(f"samples and results: {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
