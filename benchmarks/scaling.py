"""How the sampler's rate changes with its load: `python -m benchmarks.sampler --plot FILE`."""

import dataclasses
from pathlib import Path
from typing import Any

from benchmarks import sampler

START = sampler.Load(8, 64, 8, 64)
SWEEPS: dict[str, list[tuple[int, dict[str, Any], dict[str, int]]]] = {
    "rows at once": [(n, {"rows": n}, {}) for n in (8, 16, 32, 64)],
    "tokens of a prefix": [(n, {"prompt_tokens": n}, {}) for n in (64, 128, 256, 512)],
    "completions of a prefix (K)": [(n, {"completions": n}, {}) for n in (1, 2, 4, 8, 16)],
    "vocabulary": [(n, {}, {"vocab": n}) for n in (1024, 4096, 16384)],
    "width": [(n, {}, {"embed": n}) for n in (128, 256, 512)],
}


def draw(path: Path) -> None:
    """One panel a size, all others as in START."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(SWEEPS), figsize=(3.2 * len(SWEEPS), 3), sharey=True)
    for axis, (name, points) in zip(axes, SWEEPS.items(), strict=True):
        rates = []
        for value, load, model in points:
            found = sampler.measure(dataclasses.replace(START, **load), 3, **model)
            rates.append(max(row["tokens"] / row["cpu_s"] for row in found))
            print(f"{name} {value}: {rates[-1]:.0f} tokens per CPU second", flush=True)
        axis.plot([value for value, *_ in points], rates, "o-", color="#2f6f9f")
        axis.set(xscale="log", yscale="log", xlabel=name)
        axis.set_xticks([v for v, *_ in points], [str(v) for v, *_ in points])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("tokens per CPU second")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
