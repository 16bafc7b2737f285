"""From what children sent to a verdict: one generator per kind of test.

A generator yields the children that it needs (`Spec`) and is sent what became of them
(`Outcome`); its return value is the verdict as a dict. It runs in the broker, the only process
that holds the expected values and the only one whose word counts.
"""

import collections
import dataclasses
import marshal
import re
import signal
import types
from collections.abc import Callable, Generator
from typing import Any

from prm_jax.sandbox.core import asserts, compare, frames, identifiers, values
from prm_jax.sandbox.core.compiling import compiled

Verdict = dict[str, Any]
_Code = types.CodeType | str
_MAX_CACHED_TESTS, _MAX_CACHED_BYTES = 1024, 1 << 18
_UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError)  # what reading code raises
_MAX_MESSAGE = 1000
_TESTER_CPU_S = 5.0  # over the program's own limit


class BadTests(ValueError):
    """The tests themselves cannot be used; no program is to blame."""


@dataclasses.dataclass(frozen=True)
class Limits:
    cpu_s: float
    memory_bytes: int
    output_bytes: int


@dataclasses.dataclass
class Spec:
    """A child to fork: what it does, what it reads, what it may use."""

    mode: str  # calls, stdio, candidate, tester
    job: dict[str, Any]
    limits: Limits
    numpy: bool = False
    stdin: bytes = b""


@dataclasses.dataclass
class Outcome:
    """What became of a child."""

    exit_code: int | None  # None if a signal ended it
    signal: int
    cpu_s: float
    wall_s: float
    frames: list[Any]  # well-formed ones, up to the first that is not
    stdout: bytes = b""
    stopped_for: str = ""  # timeout, memory, output, or done: why the broker killed it

    @property
    def left_alone(self) -> bool:
        """Of a tester: whether the program's process ended before the tests did."""
        return bool(self.frames) and self.frames[-1][:1] == ["gone"]


Steps = Generator[list[Spec], list[Outcome], Verdict]

_NUMPY = re.compile(r"\bnumpy\b|\bnp\.")


def judge(program: str, tests: dict[str, Any], limits: Limits) -> Steps:
    """The generator for these tests; raises BadTests at its first step."""
    kind = tests["kind"]
    if kind == "stdio":
        return _stdio(program, tests, limits)
    if kind == "check":
        plan, tolerance = _cached(_check_plan, tests["code"], tests["entry_point"]), 0.0
    else:
        plan = _cached(_call_plan, tests["setup"], *tests["asserts"])
        tolerance = tests["float_tolerance"]
    if plan.conditions is None:
        return _proxied(program, plan, limits)
    return _calls(program, plan, tolerance, limits)


_plans: "collections.OrderedDict[tuple[Any, ...], _Plan]" = collections.OrderedDict()


def _cached(make: Callable[..., "_Plan"], *texts: str) -> "_Plan":
    """The plan for these tests, kept unless it is so large that many would fill the memory."""
    key = (make, *texts)
    plan = _plans.get(key)
    if plan is not None:
        _plans.move_to_end(key)
        return plan
    plan = make(*texts)
    if sum(map(len, texts)) + plan.size() < _MAX_CACHED_BYTES:
        _plans[key] = plan
        if len(_plans) > _MAX_CACHED_TESTS:
            _plans.popitem(last=False)
    return plan


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Tests as children get them: compiled once, however many programs are judged by them.

    Code that is still text is compiled by the child, under the limits of the program.
    """

    setup: _Code | None
    expressions: list[_Code]
    conditions: list[asserts.Condition] | None  # None: the tests run whole, in a tester
    tests: list[_Code]
    names: dict[str, Any]
    stop_at_first: bool
    numpy: bool

    def size(self) -> int:
        """Bytes of its code and of what the tests expect, roughly."""
        expected = [
            operand.value
            for condition in self.conditions or []
            for part in condition
            if isinstance(part, asserts.Comparison)
            for operand in part.operands
            if isinstance(operand, asserts.Literal)
        ]
        return len(marshal.dumps([self.setup, self.expressions, self.tests, expected]))


def _call_plan(setup: str, *statements: str) -> _Plan:
    if not statements:
        raise BadTests("there are no tests: a program cannot pass or fail")
    numpy = any(_NUMPY.search(text) for text in (setup, *statements))
    try:
        before = compiled(setup, "<setup>") if setup else None
        try:
            expressions, conditions = asserts.split(list(statements), setup)
        except asserts.NotSplit:
            names = _names("\n".join([setup, *statements]))
            tests = [compiled(s, "<tests>") for s in statements]
            return _Plan(before, [], None, tests, names, False, numpy)
        codes = [compiled(e, "<test>") for e in expressions]
        return _Plan(before, codes, conditions, [], {}, False, numpy)
    except _UNREADABLE as error:
        raise BadTests(f"the tests cannot be read: {error}") from error


def _check_plan(code: str, entry_point: str) -> _Plan:
    if not entry_point.strip():
        raise BadTests("entry_point is empty: name the function that check() is to be given")
    test = f"{code}\ncheck(__candidate__)"
    names = _names(test)
    if "check" in names:
        raise BadTests("the test code does not define check(candidate)")
    names["__candidate__"] = entry_point
    numpy = bool(_NUMPY.search(code))
    try:
        expressions, conditions = asserts.split_check(code, entry_point)
        codes = [compiled(e, "<test>") for e in expressions]
        return _Plan(None, codes, conditions, [], {}, True, numpy)
    except (asserts.NotSplit, *_UNREADABLE):
        pass
    try:
        tests = [compiled(test, "<tests>")]
    except _UNREADABLE as error:
        raise BadTests(f"the tests cannot be read: {error}") from error
    return _Plan(None, [], None, tests, names, True, numpy)


def _names(code: str) -> dict[str, Any]:
    """For each free name: an expression for the program, or the (module, attribute) it means."""
    try:
        return {name: name for name in identifiers.free_names(code)} | identifiers.sources(code)
    except _UNREADABLE as error:
        raise BadTests(f"the tests cannot be read: {error}") from error


def _calls(program: str, plan: _Plan, tolerance: float, limits: Limits) -> Steps:
    job = {
        "program": program,
        "setup": plan.setup,
        "expressions": plan.expressions,
        "output_bytes": limits.output_bytes,
    }
    numpy = plan.numpy or bool(_NUMPY.search(program))
    (outcome,) = yield [Spec("calls", job, limits, numpy)]
    results, errors = _results(outcome, len(plan.expressions))
    conditions = plan.conditions or []
    passed, trouble = 0, None
    for condition in conditions:
        error = _error_of(condition, results, errors) or _own_error(outcome)
        if error is None:
            try:
                if asserts.holds(condition, results, tolerance):
                    passed += 1
                    continue
                error = ("failed", "a value is not the expected one")
            except values.Malformed as malformed:
                error = ("failed", f"a value cannot be compared: {malformed}")
        trouble = trouble or error
    if trouble is None and outcome.stopped_for:
        trouble = _death(outcome)
    return _verdict(trouble, passed, len(conditions), [outcome])


def _results(outcome: Outcome, count: int) -> tuple[list[Any], dict[int, tuple[str, str]]]:
    """Values and errors by expression, in the order in which a true child sends them."""
    results: list[Any] = [None] * count
    errors: dict[int, tuple[str, str]] = {}
    got = 0
    for frame in outcome.frames:
        match frame:
            case ["v", int(i), data] if i == got < count:
                results[i] = data
            case ["x", int(i), str(status), str(message)] if i == got < count:
                errors[i] = _own_status(status), message
            case _:
                break
        got += 1
    for i in range(got, count):
        errors[i] = _death(outcome)
    return results, errors


def _error_of(
    condition: asserts.Condition, results: list[Any], errors: dict[int, tuple[str, str]]
) -> tuple[str, str] | None:
    for part in condition:
        operands = part.operands if isinstance(part, asserts.Comparison) else (part.operand,)
        for operand in operands:
            if isinstance(operand, asserts.Computed) and operand.index in errors:
                return errors[operand.index]
    return None


def _own_error(outcome: Outcome) -> tuple[str, str] | None:
    return _death(outcome) if outcome.stopped_for == "output" else None


def _own_status(status: str) -> str:
    """A status that a child says about itself: whatever it says, it does not pass."""
    return status if status in ("error", "memory", "forbidden") else "error"


def _death(outcome: Outcome) -> tuple[str, str]:
    """Status and message of a child that did not do all that it was asked."""
    match outcome.stopped_for:
        case "timeout":
            return "timeout", f"the time limit was reached after {outcome.cpu_s:.2f} s of CPU"
        case "memory":
            return "memory", "the memory limit was reached"
        case "output":
            return "error", "the output limit was reached"
    for frame in outcome.frames:
        match frame:
            case ["load", str(status), str(message)]:
                return _own_status(status), message
    if outcome.signal == signal.SIGSYS:
        return "forbidden", "killed for a system call that is not allowed"
    if outcome.signal:
        return "error", f"killed by signal {outcome.signal}"
    if outcome.exit_code:
        return "error", f"the program ended with exit status {outcome.exit_code}"
    return "error", "the program ended before its tests did"


def _proxied(program: str, plan: _Plan, limits: Limits) -> Steps:
    candidate = {"program": program, "output_bytes": limits.output_bytes}
    tester = {
        "tests": ([plan.setup] if plan.setup else []) + plan.tests,
        "names": plan.names,
        "stop_at_first": plan.stop_at_first,
        "output_bytes": limits.output_bytes,
    }
    numpy = plan.numpy or bool(_NUMPY.search(program))
    larger = dataclasses.replace(limits, cpu_s=limits.cpu_s + _TESTER_CPU_S)
    ours, theirs = yield [
        Spec("candidate", candidate, limits, numpy),
        Spec("tester", tester, larger, numpy),
    ]
    count = len(tester["tests"])
    passes, trouble, got = 0, None, 0
    for frame in theirs.frames:
        match frame:
            case ["pass", int()]:
                passes += 1
            case ["fail", int(), str(status), str(message)]:
                trouble = trouble or (status if status in _STATUSES else "error", message)
            case _:
                break
        got += 1
    if got < count and not (plan.stop_at_first and trouble):
        trouble = trouble or _death(ours if theirs.left_alone else theirs)
    if ours.stopped_for not in ("", "done"):
        trouble = _death(ours)
    if plan.setup and passes:
        passes, count = passes - 1, count - 1
    elif plan.setup:
        count -= 1
    return _verdict(trouble, passes, count, [ours, theirs])


_STATUSES = ("failed", "error", "memory", "forbidden")


def _stdio(program: str, tests: dict[str, Any], limits: Limits) -> Steps:
    cases = tests["cases"]
    if not cases:
        raise BadTests("there are no cases: a program cannot pass or fail")
    numpy = bool(_NUMPY.search(program))
    outcomes: list[Outcome] = []
    passed, trouble = 0, None
    for stdin, expected in cases:
        spec = Spec("stdio", {"program": program}, limits, numpy, stdin.encode("utf-8", "replace"))
        (outcome,) = yield [spec]
        outcomes.append(outcome)
        if outcome.stopped_for or outcome.signal or outcome.exit_code:
            trouble = trouble or _death(outcome)
            if outcome.stopped_for:
                break  # what took too long once would do so again
        elif compare.lines_equal(
            outcome.stdout.decode("utf-8", "replace"), expected, tests["float_tolerance"]
        ):
            passed += 1
        else:
            trouble = trouble or ("failed", f"case {len(outcomes)}: the output is not as expected")
    return _verdict(trouble, passed, len(cases), outcomes)


def _verdict(
    trouble: tuple[str, str] | None, passed: int, total: int, outcomes: list[Outcome]
) -> Verdict:
    status, message = trouble or ("passed", "")
    if status == "passed" and passed != total:
        status, message = "failed", "not every test was passed"
    return {
        "status": status,
        "tests_passed": passed,
        "tests_total": total,
        "cpu_s": round(sum(o.cpu_s for o in outcomes), 6),
        "wall_s": round(sum(o.wall_s for o in outcomes), 6),
        "message": _printable(message[:_MAX_MESSAGE]),
    }


def _printable(text: str) -> str:
    """A program's words without what would steer a terminal or fit in no UTF-8 file."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text
    )


def parse_frames(data: bytes | bytearray) -> list[Any]:
    """The frames of a child's report after its "ready", up to the first that is malformed."""
    found = []
    for body in frames.split(data)[0]:
        try:
            frame = frames.unpack(body)
        except frames.BadFrame:
            break
        if type(frame) is not list:
            break
        found.append(frame)
    return found
