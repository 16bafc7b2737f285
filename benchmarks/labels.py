"""What a line label costs, ours beside the naive way.

    python -m benchmarks.labels --run runs/tiny        # the run that `make demo` leaves

A checkpoint of the run's baseline answers training problems; the prefixes of the failing responses
are completed by it, ours as the stage `label` does under several settings, and the naive way: every
line, all K completions, each prefix read anew for each of them, rows that wait for the longest, and
every program executed. Some minutes on two cores.
"""

import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import turns

AIMS = {"sampled_tokens": 4, "executions": 5}  # times less than the naive way
ROWS = 32
# (search, wave, settle), for each K
WAYS = {
    8: [("binary", 4, 0.0), ("cheapest", 2, 0.0), ("cheapest", 1, 0.0), ("cheapest", 2, 0.05)],
    20: [("binary", 4, 0.0), ("cheapest", 2, 0.0), ("cheapest", 1, 0.0), ("cheapest", 2, 0.05)],
}
FIELDS = ("completions", "sampled_tokens", "executions")


def main() -> None:
    parser = turns.parser(__doc__ or "")
    parser.add_argument("--run", type=Path, default=Path("runs/tiny"), help="workdir (runs/tiny)")
    parser.add_argument("--prompts", type=int, default=64, help="problems to answer (64)")
    options = parser.parse_args()
    if not (options.run / "rl/done.json").exists():
        sys.exit(
            f"{options.run} has no finished baseline: `make demo` makes runs/tiny, or name one"
        )
    figures = measure(options.run, options.prompts)
    head = ["search", "wave", "settle", "K", *FIELDS, "m* as the naive way's"]
    rows: list[list[Any]] = [
        [
            *(row["way"][name] for name in ("search", "wave", "settle", "samples_per_prefix")),
            *(f"1/{row['naive'][field] / row['ours'][field]:.1f}" for field in FIELDS),
            f"{row['same']:.0%}",
        ]
        for row in figures["rows"]
    ]
    aims = ", ".join(f"1/{aim} of the {name}" for name, aim in AIMS.items())
    text = (
        f"{turns.table(head, rows)}\n\nof the naive way's; {figures['failing']} failing responses "
        f"with {figures['labels']} lines; aims: {aims}"
    )
    turns.finish(text, figures, options)


def measure(workdir: Path, prompts: int) -> dict[str, Any]:
    """What each way and the naive one with the same K cost, on the same failing responses."""
    import jax

    from prm_jax.config import ConfigError
    from prm_jax.config_file import read_config
    from prm_jax.metrics import MetricsLog
    from prm_jax.process import settle_process
    from prm_jax.sandbox import Sandbox
    from prm_jax.sharding import make_mesh
    from prm_jax.stages.attempts import Memo, Sampling, Start
    from prm_jax.stages.journal import Journal
    from prm_jax.stages.opening import make_run
    from prm_jax.stages.rl import evenly_spaced
    from prm_jax.stages.run import Stream
    from prm_jax.stages.search import make_response

    settle_process()
    try:
        config = read_config(workdir / "config.json")
    except ConfigError as error:
        sys.exit(f"error: {error}")
    with (
        Sandbox(jobs=config.sandbox.jobs, min_tier=config.sandbox.min_tier) as sandbox,
        tempfile.TemporaryDirectory() as folder,
        MetricsLog(folder) as log,
        Journal(Path(folder) / "journal.jsonl") as journal,
    ):
        run = make_run(config, workdir, make_mesh(config.mesh, jax.devices()[:1]), sandbox, log)
        step = evenly_spaced(config.ppo.steps, config.label.checkpoints)[0]
        params = run.restore("rl/policy", run.policy, step)
        sampling = Sampling(run, Memo(), samples=1, temperature=config.label.temperature)
        problems = run.problems.train[:prompts]
        key = run.key(Stream.RESPOND, step)
        attempts = sampling.run(params, [Start(p) for p in problems], key, journal, "respond")
        responses = [
            make_response(run, problem, "train", step, row[0])
            for problem, row in zip(problems, attempts, strict=True)
            if not row[0].passed
        ]
        rows = []
        for k, ways in WAYS.items():
            label = dataclasses.replace(
                config.label, samples_per_prefix=k, wave=1, search="binary", settle=0.0
            )
            naive_run = dataclasses.replace(run, config=dataclasses.replace(config, label=label))
            naive, expected = _naive(naive_run, params, responses)
            for search, wave, settle in ways:
                way = {
                    "search": search, "wave": wave, "settle": settle, "samples_per_prefix": k
                }  # fmt: skip
                label = dataclasses.replace(config.label, **way)
                ours_run = dataclasses.replace(run, config=dataclasses.replace(config, label=label))
                ours, found = _ours(ours_run, params, responses)
                same = sum(a == b for a, b in zip(found, expected, strict=True)) / len(found)
                rows.append({"way": way, "ours": ours, "naive": naive, "same": same})
    n_labels = sum(r.n_steps for r in responses)
    return {"failing": len(responses), "labels": n_labels, "rows": rows}


def _ours(run: Any, params: Any, responses: list[Any]) -> tuple[dict[str, int | float], list[int]]:
    """What the searches cost, and each m*."""
    from prm_jax.stages.attempts import Memo
    from prm_jax.stages.journal import Journal
    from prm_jax.stages.search import Searcher

    fresh = [dataclasses.replace(r, passes=r.passes * 0, samples=r.samples * 0) for r in responses]
    searcher = Searcher(run, Memo(), fresh)
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "j.jsonl") as journal:
        searcher.run(params, 0, fresh, journal)
    return dataclasses.asdict(searcher.spent), [r.m_star for r in fresh]


def _naive(run: Any, params: Any, responses: list[Any]) -> tuple[dict[str, int | float], list[int]]:
    """The same for the naive way."""
    naive = Naive(run, params)
    found = naive.search(responses)
    return {**naive.spent}, found


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
        self.spent: dict[str, int] = {}  # by the last search

    def search(self, responses: list[Any]) -> list[int]:
        """m* of each: how many lines there are before the first prefix with no pass."""
        self.spent = dict.fromkeys(("completions", "sampled_tokens", "executions"), 0)
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
