"""Whether a problem set is sound: do its references pass, always and in time, and only once?

Every reference solution is judged in the sandbox, several times over, by the tests and limits
that judge a policy's programs.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait

from prm_jax.metrics import Progress
from prm_jax.problems.benchmarks import Benchmark
from prm_jax.problems.duplicates import Pair, duplicates, member
from prm_jax.sandbox import Sandbox, SandboxError, SandboxRefused
from prm_jax.sandbox.core import identifiers
from prm_jax.types import CheckTests, Limits, Problem, Tests, Verdict

_SLOW = 0.5  # of its limit
_UNDER_WAY = 256  # programs; their texts may be large


@dataclasses.dataclass(frozen=True)
class Run:
    """One judgement of a reference; `infrastructure` where the tests themselves can't be run."""

    status: str
    message: str
    cpu_s: float


@dataclasses.dataclass(frozen=True)
class Reference:
    """What came of one problem's reference; no runs where the problem has none."""

    split: str
    task_id: str
    runs: tuple[Run, ...]
    slow: bool = False  # needs more than half of its limit
    borrowed: tuple[str, ...] = ()  # names that the test code takes from the program

    @property
    def passed(self) -> bool:
        return bool(self.runs) and all(run.status == "passed" for run in self.runs)

    @property
    def flaky(self) -> bool:
        return len({run.status for run in self.runs}) > 1


def references(benchmark: Benchmark, *, repeat: int, jobs: int, min_tier: str) -> list[Reference]:
    """Judges every reference `repeat` times. Raises SandboxRefused.

    Each time has a sandbox of its own, for one sandbox judges equal work once. A reference is slow
    if it runs out of time with half of its limit.
    """
    places = [
        (split, i) for split, problems in benchmark.splits.items() for i in range(len(problems))
    ]
    runs: dict[tuple[str, int], list[Run]] = {place: [] for place in places}
    names: dict[tuple[str, int], tuple[str, tuple[str, ...]]] = {}
    late: list[tuple[str, int]] = []  # that may be slow

    def works(chosen: Iterable[tuple[str, int]], share: float) -> Iterator[_Work]:
        for place in chosen:
            problem = benchmark.splits[place[0]][place[1]]
            if place not in names:
                names[place] = problem.task_id, borrowed_names(problem.tests)
            if problem.solution:
                yield _Work(place, problem, _share(problem.limits, share))

    with Progress(len(places) * repeat, f"check {benchmark.name}", "references") as progress:
        for time in range(repeat):
            done = 0
            with Sandbox(jobs, min_tier) as sandbox:
                for work, run in _judged(sandbox, works(places, 1.0)):
                    runs[work.place].append(run)
                    if time == 0 and run.cpu_s > _SLOW * work.limits.cpu_s:
                        late.append(work.place)
                    progress.update()
                    done += 1
            if done < len(places):
                progress.update(len(places) - done)  # those that have no reference
    slow = set()
    if late:
        with Sandbox(jobs, min_tier) as sandbox:
            for work, run in _judged(sandbox, works(late, _SLOW)):
                if run.status == "timeout":
                    slow.add(work.place)
    return [
        Reference(place[0], names[place][0], tuple(runs[place]), place in slow, names[place][1])
        for place in places
    ]


def shared_problems(benchmark: Benchmark, others: Mapping[str, Benchmark]) -> list[Pair]:
    """Problems that two splits of the set share, and those that the set shares with others.

    The set's own problems have "" for the name of their set, the others the name they come by.
    """
    sets = {"": benchmark, **others}
    total = sum(len(problems) for found in sets.values() for problems in found.splits.values())
    members = []
    with Progress(total, "compare", "problems") as progress:
        for name, found in sets.items():
            for split, problems in found.splits.items():
                for problem in problems:
                    members.append(member(name, split, problem))
                    progress.update()
    return duplicates(
        members, lambda a, b: "" in (a.set, b.set) and (a.set, a.split) != (b.set, b.split)
    )


def borrowed_names(tests: Tests) -> tuple[str, ...]:
    """Names that test code takes from the program beside its entry point: these can be forged."""
    if not isinstance(tests, CheckTests):
        return ()
    try:
        names = set(identifiers.free_names(tests.code)) - identifiers.sources(tests.code).keys()
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ()  # the sandbox says what is wrong with them
    return tuple(sorted(names - {tests.entry_point}))


@dataclasses.dataclass(frozen=True)
class _Work:
    place: tuple[str, int]
    problem: Problem
    limits: Limits


def _share(limits: Limits, share: float) -> Limits:
    return dataclasses.replace(limits, cpu_s=share * limits.cpu_s)


def _judged(sandbox: Sandbox, works: Iterator[_Work]) -> Iterator[tuple[_Work, Run]]:
    """Verdicts as they come, with a bounded number of programs under way."""
    open_: dict[Future[Verdict], list[_Work]] = {}
    for work in works:
        problem = work.problem
        program = problem.program(problem.solution)
        future = sandbox.submit(program, problem.tests, work.limits)
        open_.setdefault(future, []).append(work)
        if len(open_) >= _UNDER_WAY:
            yield from _settled(open_)
    while open_:
        yield from _settled(open_)


def _settled(open_: dict[Future[Verdict], list[_Work]]) -> Iterator[tuple[_Work, Run]]:
    done, _ = wait(open_, return_when=FIRST_COMPLETED)
    for future in done:
        try:
            verdict = future.result()
            run = Run(verdict.status, verdict.message, verdict.cpu_s)
        except SandboxRefused:
            raise
        except SandboxError as error:
            run = Run("infrastructure", str(error), 0.0)
        for work in open_.pop(future):
            yield work, run


def by_split(found: Sequence[Reference]) -> Mapping[str, tuple[int, int]]:
    """(passing, with a reference) of every split."""
    splits: dict[str, tuple[int, int]] = {}
    for reference in found:
        passing, total = splits.get(reference.split, (0, 0))
        total += bool(reference.runs)
        splits[reference.split] = passing + reference.passed, total
    return splits
