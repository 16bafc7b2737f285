"""One PPO iteration on the reference workload, ours beside Tunix's and TRL's.

    python -m benchmarks.ppo_iteration --tunix ENV/bin/python --trl ENV/bin/python

CPU seconds (user and system of the whole process) and peak memory, and how near the update comes to
the rate at which this machine multiplies matrices. Some ten minutes on two cores.
"""

import sys

from benchmarks import reference, roofline, turns

TARGETS = {"Tunix": (0.5, 0.5), "TRL": (0.85, 0.5)}  # of their CPU time and of their memory


def main() -> None:
    options = turns.paired_parser(
        __doc__ or "", 4, "iterations of each harness, twice"
    ).parse_args()
    if options.ours:
        ppo = reference.PPO()
        for step in range(options.rounds + 1):  # the first compiles
            parts = ppo.iteration(step)
            total = {
                field: sum(part[field] for part in parts.values()) for field in ("cpu_s", "wall_s")
            }
            turns.say(iteration=step, **total, parts=parts)
        turns.say(peak_gib=reference.peak_gib())
        return
    rate, flops = roofline.best_product_rate(), reference.PPO().flops()
    found = {
        name: [row for row in rows if row.get("iteration") != 0]
        for name, rows in turns.take_turns("benchmarks.ppo_iteration", "ppo", options).items()
    }
    figures = {
        name: {field: turns.median(rows, field) for field in ("cpu_s", "wall_s", "peak_gib")}
        for name, rows in found.items()
    }
    ours, lines = figures["ours"], []
    for name, its in figures.items():
        ratios = ["", ""]
        if name != "ours":
            aims = TARGETS[name]
            ratios = [
                f"{ours[field] / its[field]:.2f} (aim {aim})"
                for field, aim in zip(("cpu_s", "peak_gib"), aims, strict=True)
            ]
        lines.append([name, its["cpu_s"], its["wall_s"], ratios[0], its["peak_gib"], ratios[1]])
    head = ["", "CPU s", "wall s", "ours / its CPU", "peak GiB", "ours / its memory"]
    by_part = [row["parts"] for row in found["ours"] if "parts" in row]
    parts = {name: turns.median([p[name] for p in by_part], "cpu_s") for name in by_part[0]}
    reached = flops["update"] / parts["update"] / rate
    text = (
        f"{turns.table(head, lines)}\n\nours by part, CPU s: "
        + ", ".join(f"{name} {seconds:.2f}" for name, seconds in parts.items())
        + f"\nthe update computes at {reached:.0%} of the best matrix product's "
        f"{rate / 1e9:.0f} GFLOP per CPU second (aim 45%)"
    )
    turns.finish(text, figures | {"update_of_matrix_rate": reached, "parts": parts}, options)


if __name__ == "__main__":
    sys.exit(main())
