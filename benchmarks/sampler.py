"""Tokens per CPU second of samplers on the reference model, ours beside Tunix's and Hugging Face's.

    python -m benchmarks.sampler --tunix ENV/bin/python --trl ENV/bin/python [--plot FILE.png]

Three loads: all rows at full length; 256 rows that end early, whose useful tokens count; and eight
completions of each of eight prefixes of 512 tokens. `--plot` draws how ours changes with rows,
prefix, completions of a prefix, vocabulary and width. Some ten minutes on two cores.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from benchmarks import reference, turns

AIMS = {"full length": 2, "ends early": 4, "eight of each prefix": 6}  # times the peer's rate
ROWS = 64


@dataclasses.dataclass(frozen=True)
class Load:
    prompts: int
    prompt_tokens: int
    completions: int
    tokens: int
    ends: tuple[int, ...] = (reference.VOCAB,)  # never chosen
    rows: int = ROWS


LOADS = {
    "full length": Load(64, 64, 1, 128),
    "ends early": Load(256, 64, 1, 128, reference.ENDS),
    "eight of each prefix": Load(8, 512, 8, 64),
}


def main() -> None:
    parser = turns.paired_parser(__doc__ or "", 3, "rounds of each harness, twice")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw how ours grows, and no more"
    )
    options = parser.parse_args()
    if options.ours:
        for name, load in LOADS.items():
            for row in measure(load, options.rounds):
                turns.say(workload=name, **row)
        return
    if options.plot:
        from benchmarks import scaling

        scaling.draw(options.plot)
        return
    found = turns.take_turns("benchmarks.sampler", "sampler", options)
    figures: dict[str, dict[str, float]] = {}
    lines: list[list[Any]] = []
    for load, aim in AIMS.items():
        rates = {}
        for name, rows in found.items():
            of_load = [row | {"rate": row["tokens"] / row["cpu_s"]} for row in rows
                       if row["workload"] == load]  # fmt: skip
            rates[name] = turns.median(of_load, "rate")
        figures[load] = rates
        ratios = [f"{rates['ours'] / rate:.1f}" for name, rate in rates.items() if name != "ours"]
        lines.append([load, *rates.values(), *ratios, aim])
    peers = [name for name in found if name != "ours"]
    head = ["tokens per CPU s", *found, *(f"ours / {name}" for name in peers), "aim"]
    turns.finish(turns.table(head, lines), figures, options)


def measure(load: Load, rounds: int, **changes: int) -> list[dict[str, float]]:
    """Tokens, CPU and wall seconds of each round, without the one that compiles."""
    import jax
    import numpy as np

    from prm_jax.sharding import init_params
    from prm_jax.steps.sample import make_sampler

    policy, _, mesh = reference.models(**changes)
    params = init_params(policy, mesh, jax.random.key(0))
    sample = make_sampler(
        policy, mesh, completion_tokens=load.tokens, samples_per_prompt=load.completions,
        temperature=1.0, eos_ids=load.ends, rows=load.rows,
    )  # fmt: skip
    ids, valid = reference.prompts(load.prompts, load.prompt_tokens)
    budget = np.full(load.prompts, load.tokens, np.int32)
    found = []
    for i in range(rounds + 1):
        samples, seconds = reference.timed(
            lambda i=i: sample(params, ids, valid, budget, jax.random.key(i))
        )
        found.append({"tokens": int(samples.completion_mask.sum()), **seconds})
    return found[1:]


if __name__ == "__main__":
    sys.exit(main())
