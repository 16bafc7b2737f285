"""Plans as people read them: a line per program, and what to change where one does not fit."""

from collections.abc import Sequence

from prm_jax.plan.compiling import Plan

GIB = 1 << 30


def table(plans: Sequence[Plan]) -> str:
    """One row per program: GiB per chip, seconds, and GiB that each chip sends per mesh axis."""
    axes = sorted({axis for plan in plans for axis in plan.bytes_moved})
    rows = [
        ["program", "HBM GiB", "arguments", "temporaries", "others", "of", "fits", "modelled s",
         "floor s", *(f"GiB over {axis}" for axis in axes)],
    ]  # fmt: skip
    for plan in plans:
        rows.append(
            [
                plan.name,
                *(
                    f"{size / GIB:.2f}"
                    for size in (
                        plan.hbm_bytes,
                        plan.argument_bytes,
                        plan.temp_bytes,
                        plan.kept_bytes,
                        plan.available_bytes,
                    )
                ),
                "yes" if plan.fits else "NO",
                "-" if plan.modelled_s is None else _seconds(plan),
                f"{plan.floor_s:.4g}",
                *(f"{plan.bytes_moved.get(axis, 0) / GIB:.3g}" for axis in axes),
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _seconds(plan: Plan) -> str:
    """With a mark where a loop was counted at the most that it can run."""
    return f"{'<= ' if plan.unbounded_loops else ''}{plan.modelled_s:.4g}"


def verdict(plan: Plan) -> str:
    """Whether a program fits; if not, what is largest and which setting to change."""
    needed = plan.hbm_bytes + plan.kept_bytes
    if plan.fits:
        return f"{plan.name} fits: {_gib(needed)} of {_gib(plan.available_bytes)} on each chip"
    lines = [
        f"{plan.name} does NOT fit: it needs {_gib(needed)} of the {_gib(plan.available_bytes)} on "
        f"each chip ({_gib(plan.kept_bytes)} of it for other arrays of the run). Largest:"
    ]
    lines += [f"  {_gib(size)}  {what}" for what, size in plan.largest[:4]]
    return "\n".join([*lines, f"  {plan.mend}"])


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"
