"""Where the time of a PPO iteration goes, beside what this machine can do.

    python -m benchmarks.roofline

Measures the rate of matrix products, of the sizes that the reference workload has as well, and of
copying memory; then, for each part of an iteration, the operations of its matrix products and the
share of the best rate at which they were done. A minute on two cores.
"""

import statistics
import sys
from collections.abc import Callable
from typing import Any

from benchmarks import reference, turns

BEST = (2048, 2048, 2048)
SIZES = {
    "square": BEST,
    "an update's MLP": (12288, 256, 2048),
    "a decoding step's MLP": (64, 256, 2048),
    "a decoding step's head": (64, 256, 1024),
}  # rows, summed, columns
COPIED_MIB = 256


def best_product_rate() -> float:
    """Operations per CPU second of a large product of float32 matrices."""
    return _product_rate(*BEST)["cpu_s"]


def main() -> None:
    parser = turns.parser(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=5, help="times that each is measured (5)")
    options = parser.parse_args()
    rows: list[list[Any]] = []
    rates = {name: _product_rate(*size, rounds=options.rounds) for name, size in SIZES.items()}
    for name, size in SIZES.items():
        rate = rates[name]
        what = "product, " + name + " " + " x ".join(map(str, size))
        rows.append([what, rate["cpu_s"] / 1e9, rate["wall_s"] / 1e9, ""])
    copied = _copy_rate(options.rounds)
    rows.append(
        [f"copying {COPIED_MIB} MiB, GB", copied["cpu_s"] / 1e9, copied["wall_s"] / 1e9, ""]
    )
    ppo = reference.PPO()
    flops = ppo.flops()
    ppo.iteration(0)
    taken = [ppo.iteration(step) for step in range(1, options.rounds + 1)]
    best = rates["square"]["cpu_s"]
    figures: dict[str, Any] = {"product": rates, "copy": copied, "parts": {}}
    for part, operations in flops.items():
        cpu_s, wall_s = (
            statistics.median(i[part][field] for i in taken) for field in ("cpu_s", "wall_s")
        )
        share = operations / cpu_s / best
        what = f"{part}: {operations / 1e9:.0f} GFLOP in {cpu_s:.2f} CPU s"
        rows.append([what, operations / cpu_s / 1e9, operations / wall_s / 1e9, f"{share:.0%}"])
        figures["parts"][part] = {
            "flops": operations, "cpu_s": cpu_s, "wall_s": wall_s, "share": share
        }  # fmt: skip
    head = ["GFLOP, except where it says GB", "per CPU s", "per wall s", "of the best product"]
    turns.finish(turns.table(head, rows), figures, options)


def _rate(work: Callable[[], Any], amount: float, rounds: int) -> dict[str, float]:
    work()
    seconds = [reference.timed(work)[1] for _ in range(rounds)]
    return {field: amount / statistics.median(s[field] for s in seconds) for field in seconds[0]}


def _product_rate(rows: int, summed: int, columns: int, rounds: int = 5) -> dict[str, float]:
    import jax
    import jax.numpy as jnp

    a, b = jnp.ones((rows, summed)), jnp.ones((summed, columns))
    times = max(1, int(4e10 / (2 * rows * summed * columns)))

    @jax.jit
    def work(a, b):
        # Each turn's matrix is another, so that none is left out.
        return jax.lax.fori_loop(
            0, times, lambda i, sum_: sum_ + (a + i) @ b, jnp.zeros((rows, columns))
        )

    return _rate(lambda: work(a, b), 2.0 * rows * summed * columns * times, rounds)


def _copy_rate(rounds: int) -> dict[str, float]:
    """Bytes read and written."""
    import jax
    import jax.numpy as jnp

    x = jnp.ones(COPIED_MIB << 18)
    work = jax.jit(lambda x: x + 1)
    return _rate(lambda: work(x), 2.0 * x.nbytes, rounds)


if __name__ == "__main__":
    sys.exit(main())
