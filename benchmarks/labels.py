"""What a line label costs, ours beside the naive way.

    python -m benchmarks.labels --run runs/tiny        # the run that `make demo` leaves

A checkpoint of the run's baseline answers training problems; the prefixes of the failing responses
are completed by it, ours as the stage `label` does, and the naive way: every line, all K
completions, each prefix read anew for each of them, rows that wait for the longest, and every
program executed. Some minutes on two cores.
"""

import dataclasses
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import turns
from benchmarks.sandbox import tree_cpu_s

AIMS = {"sampled_tokens": 4, "executions": 5}  # times less than the naive way
ROWS = 32


def main() -> None:
    parser = turns.parser(__doc__ or "", 1, "unused")
    parser.add_argument("--run", type=Path, default=Path("runs/tiny"), help="workdir (runs/tiny)")
    parser.add_argument("--prompts", type=int, default=96, help="problems to answer (96)")
    options = parser.parse_args()
    if not (options.run / "rl/done.json").exists():
        sys.exit(
            f"{options.run} has no finished baseline: `make demo` makes runs/tiny, or name one"
        )
    figures = measure(options.run, options.prompts)
    ours, naive = figures["ours"], figures["naive"]
    rows: list[list[Any]] = []
    for field in ("completions", "sampled_tokens", "executions", "cpu_s", "wall_s"):
        aim = AIMS.get(field, "")
        rows.append([field, ours[field], naive[field], f"{naive[field] / ours[field]:.1f}", aim])
    labels = figures["labels"]
    text = turns.table(["", "ours", "naive", "naive / ours", "aim"], rows) + (
        f"\n\n{figures['failing']} failing responses, {labels} lines, K = {figures['k']}; m* is "
        f"the same in {figures['same']:.0%}, where both draw other completions; "
        f"{1000 * ours['cpu_s'] / labels:.0f} CPU ms for each label"
    )
    turns.finish(text, figures, options)


def measure(workdir: Path, prompts: int) -> dict[str, Any]:
    import os

    import jax

    from prm_jax.config import ConfigError
    from prm_jax.config_file import read_config
    from prm_jax.metrics import MetricsLog
    from prm_jax.process import settle_process
    from prm_jax.sandbox import Sandbox
    from prm_jax.sharding import make_mesh
    from prm_jax.stages.attempts import Memo, Sampling, Start
    from prm_jax.stages.journal import Journal
    from prm_jax.stages.label import make_response
    from prm_jax.stages.opening import make_run
    from prm_jax.stages.rl import evenly_spaced
    from prm_jax.stages.run import Stream
    from prm_jax.stages.search import Searcher

    settle_process()
    try:
        config = read_config(workdir / "config.json")
    except ConfigError as error:
        sys.exit(f"error: {error}")
    label = config.label
    with (
        Sandbox(jobs=config.sandbox.jobs, min_tier=config.sandbox.min_tier) as sandbox,
        tempfile.TemporaryDirectory() as folder,
        MetricsLog(folder) as log,
        Journal(Path(folder) / "journal.jsonl") as journal,
    ):
        mesh = make_mesh(config.mesh, jax.devices()[:1])
        run = make_run(config, workdir, mesh, sandbox, log)
        step = evenly_spaced(config.ppo.steps, label.checkpoints)[0]
        params = run.restore("rl/policy", run.policy, step)

        def spent(work) -> dict[str, float]:
            start_s, start_cpu_s = time.perf_counter(), tree_cpu_s(os.getpid())
            work()
            cpu_s = tree_cpu_s(os.getpid()) - start_cpu_s
            return {"cpu_s": cpu_s, "wall_s": time.perf_counter() - start_s}

        sampling = Sampling(run, Memo(), samples=1, temperature=label.temperature)
        problems = run.problems.train[:prompts]
        key = run.key(Stream.RESPOND, step)
        attempts = sampling.run(params, [Start(p) for p in problems], key, journal, "respond")
        responses = [
            make_response(run, problem, "train", step, row[0])
            for problem, row in zip(problems, attempts, strict=True)
        ]
        failing = [r for r in responses if not r.passed]
        warm, measured = failing[:2], failing[2:]
        searcher = Searcher(run, Memo(), failing)
        searcher.run(params, 0, warm, journal)  # compiles
        before = dataclasses.replace(searcher.spent)
        ours = spent(lambda: searcher.run(params, 1, measured, journal))
        after = dataclasses.asdict(searcher.spent)
        ours |= {k: after[k] - getattr(before, k) for k in after if k != "seconds"}
        naive = Naive(run, params)
        naive.search(warm[:1])
        naive.reset()
        found: list[int] = []
        theirs = spent(lambda: found.extend(naive.search(measured)))
    return {
        "ours": ours,
        "naive": theirs | naive.spent,
        "failing": len(measured),
        "labels": sum(r.n_steps for r in measured),
        "k": label.samples_per_prefix,
        "same": sum(r.m_star == m for r, m in zip(measured, found, strict=True)) / len(measured),
    }


class Naive:
    """Every line of every failing response, K completions each."""

    def __init__(self, run: Any, params: Any):
        from prm_jax.steps.sample import make_sampler

        self._run, self._params = run, params
        longest = max(len(run.prompt_ids(p)) for p in run.problems.train)
        self._width = longest + run.config.max_completion_tokens
        self._sample = make_sampler(
            run.policy, run.mesh, completion_tokens=run.config.max_completion_tokens,
            samples_per_prompt=1, temperature=run.config.label.temperature,
            eos_ids=run.tokenizer.eos_ids, stops=run.stops,
        )  # fmt: skip
        self.reset()

    def reset(self) -> None:
        self.spent = dict.fromkeys(("completions", "sampled_tokens", "executions"), 0)

    def search(self, responses: list[Any]) -> list[int]:
        """m* of each: how many lines there are before the first prefix with no pass."""
        k = self._run.config.label.samples_per_prefix
        probes = [
            (number, response, step)
            for number, response in enumerate(responses)
            for step in range(1, response.open_steps + 1)
        ]
        rows = [probe for probe in probes for _ in range(k)]
        passed: dict[tuple[int, int], bool] = {}
        for start in range(0, len(rows), ROWS):
            batch = rows[start : start + ROWS]
            for (number, _, step), verdict in zip(batch, self._judged(batch), strict=True):
                passed[number, step] = passed.get((number, step), False) or verdict
        return [
            next((s - 1 for s in range(1, r.open_steps + 1) if not passed[n, s]), r.open_steps)
            for n, r in enumerate(responses)
        ]

    def _judged(self, batch: Any) -> list[bool]:
        import jax
        import numpy as np

        from prm_jax.stages.attempts import completion_ids
        from prm_jax.stages.batches import left_pad
        from prm_jax.stages.search import prefix_of

        run = self._run
        prefixes = [prefix_of(run, response, step) for _, response, step in batch]
        prompts = [
            [*run.prompt_ids(response.problem), *prefix]
            for (_, response, _), prefix in zip(batch, prefixes, strict=True)
        ]
        padding = [prompts[0]] * (ROWS - len(prompts))
        tokens, valid = left_pad(prompts + padding, run.tokenizer.pad_id, self._width)
        limit = run.config.max_completion_tokens
        budget = [limit - len(prefix) for prefix in prefixes] + [0] * len(padding)
        key = jax.random.key(self.spent["completions"])
        samples = self._sample(self._params, tokens, valid, np.array(budget, np.int32), key)
        new = completion_ids(samples)[: len(batch)]
        programs = [
            (response.problem, run.program(response.problem, prefix + ids))
            for (_, response, _), prefix, ids in zip(batch, prefixes, new, strict=True)
        ]
        # A remark makes equal programs different ones to the sandbox, which would join them.
        futures = [
            run.judge(problem, f"{program.rstrip()}\n# {self.spent['executions'] + i}\n")
            for i, (problem, program) in enumerate(programs)
        ]
        self.spent["completions"] += len(batch)
        self.spent["executions"] += len(batch)
        self.spent["sampled_tokens"] += sum(map(len, new))
        return [future.result().passed for future in futures]


if __name__ == "__main__":
    main()
