"""What a compiled program says of itself: cycles, and bytes that its collectives move.

The text is optimised HLO as the TPU compiler prints it. It has a cost in cycles beside most
instructions, counted once for the body of a loop; here every body counts as often as it runs.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

_UNKNOWN_CYCLES = 1 << 62  # stands where the compiler has no estimate
_ITEM_BITS = {"pred": 8, "bf16": 16}  # other types carry their bits in their names: f32, s4, u8
_COLLECTIVE = re.compile(
    r" (all-gather|all-reduce|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute)"
    r"(-start)?\("
)
_BETWEEN_SLICES = re.compile(r" send\(.*xla_megascale_runtime")
_CALLED = re.compile(r"(?:to_apply|calls)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+)")
_SHAPE = re.compile(r"\b(pred|bf16|[fsuc]\d+\w*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one execution on one chip."""

    cycles: float
    moved: Mapping[str, float]  # bytes sent, by mesh axis: "fsdp", or "data+fsdp" for both
    unbounded: int  # loops whose trips the program decides while it runs


class HLOError(ValueError):
    """A text is not a program of the kind that the TPU compiler prints."""


def cost_of(text: str, mesh: Mapping[str, int], *, most_trips: int = 1) -> Cost:
    """Cycles and bytes of a program that was compiled for a mesh of these axes, in this order.

    A loop that runs until its data say so counts as `most_trips`, and one around it once. Cycles
    are the compiler's estimates, which leave out collectives and kernels that are not XLA's own. A
    collective counts as what each chip sends on a ring: all-gather and reduce-scatter (n - 1) / n
    of the larger side, all-reduce twice that, collective-permute its operand. Over several slices
    the program is that of one, `mesh` are its axes, and what each chip hands to the network between
    slices is counted as `between slices`.

    Raises HLOError if the text has no entry computation, or groups of chips that are no axes.
    """
    computations, entry = _split(text)
    counter = _Counter(computations, mesh, most_trips)
    return counter.cost(entry)


class _Counter:
    def __init__(self, computations: dict[str, list[str]], mesh: Mapping[str, int], most: int):
        self._computations = computations
        self._mesh = mesh
        self._most_trips = most
        self._known: dict[str, Cost] = {}

    def cost(self, name: str) -> Cost:
        """Of a computation with all that it runs."""
        if name not in self._known:
            self._known[name] = self._count(name)
        return self._known[name]

    def _count(self, name: str) -> Cost:
        cycles, unbounded = 0.0, 0
        moved: dict[str, float] = collections.defaultdict(float)
        seen: set[str] = set()
        lines = self._computations.get(name, [])
        for line in lines:
            estimate = re.search(r'"estimated_cycles":"(\d+)"', line)
            if estimate and int(estimate[1]) < _UNKNOWN_CYCLES:
                cycles += int(estimate[1])
            self._add_collectives(line, moved, seen)
            loop = re.search(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)", line)
            if loop:
                trips = _trips(
                    line, lines, *(self._computations.get(name, []) for name in loop.groups())
                )
                unbounded += trips is None
                body = self.cost(loop[2])
                if trips is None:
                    trips = 1 if body.unbounded else self._most_trips
                cycles += trips * body.cycles
                unbounded += body.unbounded
                for axis, n in body.moved.items():
                    moved[axis] += trips * n
            elif re.search(r" (call|conditional)\(", line):
                branches = [self.cost(called) for called in _called(line)]
                if branches:
                    worst = max(branches, key=lambda cost: cost.cycles)
                    cycles += worst.cycles
                    unbounded += worst.unbounded
                    for axis, n in worst.moved.items():
                        moved[axis] += n
        return Cost(cycles, dict(moved), unbounded)

    def _add_collectives(self, line: str, moved: dict[str, float], seen: set[str]) -> None:
        """Adds what a line moves; a collective that is spread over several fusions counts once."""
        found = _COLLECTIVE.search(line)
        if found:
            channel = re.search(r"channel_id=(\d+)", line)
            key = channel[1] if channel else line
            if key not in seen:
                seen.add(key)
                axis, n = _axis(line, self._mesh)
                moved[axis] += _bytes_sent(found[1], line, n)
        elif _BETWEEN_SLICES.search(line):
            # The result is (what is sent, context, token).
            moved["between slices"] += _sizes(line.split(" = ", 1)[1])[0]
        elif re.search(r" (fusion|async-start|custom-call)\(", line):
            scattered = "reduce-scatter" in line.split(" = ")[0]
            for called in _CALLED.findall(line):
                for inner in self._computations.get(called, []):
                    before = dict(moved)
                    self._add_collectives(inner, moved, seen)
                    if scattered and " all-reduce(" in inner:
                        # A reduce-scatter is written as an all-reduce whose rest is cut away.
                        for axis in moved:
                            moved[axis] -= (moved[axis] - before.get(axis, 0)) / 2


def _split(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation, and the name of the entry."""
    computations: dict[str, list[str]] = {}
    current, entry = None, None
    for line in text.splitlines():
        if not line.startswith(" ") and line.rstrip().endswith("{"):
            head = re.match(r"(ENTRY )?%?([\w.\-]+) ?\(", line)
            if head:
                current = computations.setdefault(head[2], [])
                entry = head[2] if head[1] else entry
        elif current is not None and line.startswith("  "):
            current.append(line)
    if entry is None:
        raise HLOError("no ENTRY computation: is this the text of a compiled program?")
    return computations, entry


def _called(line: str) -> list[str]:
    names = _CALLED.findall(line)
    for several, one in _BRANCHES.findall(line):
        names += [name.strip().lstrip("%") for name in several.split(",")] if several else [one]
    return names


def _trips(
    line: str, siblings: Sequence[str], condition: Sequence[str], body: Sequence[str]
) -> int | None:
    """How often a loop runs: (bound - start) / step of its counter, rounded up; or None.

    The bound is the constant that the condition compares with, the step the constant that the body
    adds (the compiler may have unrolled it), the start the constant in the tuple that enters.
    """
    root = next((inner for inner in condition if inner.lstrip().startswith("ROOT")), "")
    compared = re.search(r" compare\(%?([\w.\-]+), %?([\w.\-]+)\), direction=(LT|LE)", root)
    if not compared:
        return None
    bound = _constant(compared[2], condition)
    index = re.search(r"index=(\d+)", _defined(compared[1], condition))
    if bound is None or index is None:
        return None
    entered = re.search(r" while\(%?([\w.\-]+)\)", line)
    start = step = None
    if entered:
        start = _constant(_element(_defined(entered[1], siblings), int(index[1])), siblings)
    last = next((inner for inner in body if inner.lstrip().startswith("ROOT")), "")
    added = re.search(
        r" add\(%?([\w.\-]+), %?([\w.\-]+)\)", _defined(_element(last, int(index[1])), body)
    )
    if added:
        found = [_constant(name, body) for name in added.groups()]
        step = next((n for n in found if n is not None), None)
    distance = bound - (start or 0) + (compared[3] == "LE")
    return max(0, -(-distance // (step or 1)))


def _element(line: str, index: int) -> str:
    """The name of an element of a tuple; nothing if the line makes none."""
    values = re.search(r" tuple\((.*?)\)(?:,|$)", line)
    names = re.findall(r"%([\w.\-]+)", values[1]) if values else []
    return names[index] if index < len(names) else ""


def _constant(name: str, lines: Sequence[str]) -> int | None:
    """The integer that a name stands for, also through copies; None if it is none."""
    for _ in range(4):
        value = _defined(name, lines)
        constant = re.search(r" [su]\d+\[\][^ ]* constant\((-?\d+)\)", value)
        if constant:
            return int(constant[1])
        copied = re.search(r" copy\(%?([\w.\-]+)\)", value)
        if not copied:
            return None
        name = copied[1]
    return None


def _defined(name: str, lines: Sequence[str]) -> str:
    """The line that defines a name, or nothing."""
    if not name:
        return ""
    pattern = re.compile(rf"\s*(?:ROOT )?%?{re.escape(name)} = ")
    return next((line for line in lines if pattern.match(line)), "")


# ------------------------------------------------------------------------------- collectives


def _bytes_sent(kind: str, line: str, n: int) -> float:
    """What each of the n chips of a group sends on a ring."""
    result, _, rest = line.split(" = ", 1)[1].partition(f" {kind}")
    size = max(_sizes(result) or [0])
    if kind == "reduce-scatter":
        operands = _sizes(rest.split("),")[0])
        size = max([size * n if not operands else max(operands)])
    share = (n - 1) / n
    match kind:
        case "all-reduce":
            # Several arrays may be reduced together.
            return 2 * share * (size if rest.startswith("-start") else sum(_sizes(result)))
        case "collective-permute":
            return size
        case "all-to-all" | "ragged-all-to-all":
            return share * sum(_sizes(result))
    return share * size


def _sizes(text: str) -> list[float]:
    """Bytes of each array type in a text."""
    sizes = []
    for kind, dims in _SHAPE.findall(text):
        bits = _ITEM_BITS.get(kind) or int(re.findall(r"\d+", kind)[0])
        sizes.append(math.prod(int(d) for d in dims.split(",") if d) * bits / 8)
    return sizes


def _axis(line: str, mesh: Mapping[str, int]) -> tuple[str, int]:
    """The mesh axes that a collective runs along, and how many chips take part in each group."""
    n_chips = math.prod(mesh.values())
    pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", line)
    if pairs:
        group = [[int(a), int(b)] for a, b in re.findall(r"(\d+),(\d+)", pairs[1])]
        return _varying(group, mesh), len(group)
    groups = _groups(line, n_chips)
    return _varying(groups, mesh), len(groups[0])


def _groups(line: str, n_chips: int) -> list[list[int]]:
    """Which chips talk to each other, by their place in the mesh."""
    named = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line)
    if named:
        sizes = {axis: int(n) for axis, n in re.findall(r"'([^']+)'=(\d+)", named[1])}
        along = re.findall(r"'([^']+)'", named[2])
        ids = np.arange(math.prod(sizes.values())).reshape(list(sizes.values()))
        axes = list(sizes)
        order = [axes.index(a) for a in axes if a not in along] + [axes.index(a) for a in along]
        return ids.transpose(order).reshape(-1, math.prod(sizes[a] for a in along)).tolist()
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    if iota:
        dims = [int(d) for d in iota[3].split(",")]
        ids = np.arange(math.prod(dims)).reshape(dims)
        if iota[4]:
            ids = ids.transpose([int(d) for d in iota[4].split(",")])
        return ids.reshape(int(iota[1]), int(iota[2])).tolist()
    listed = re.search(r"replica_groups=\{(\{.*?\})\}", line)
    if listed:
        return [
            [int(i) for i in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", listed[1])
        ]
    return [list(range(n_chips))]


def _varying(groups: Sequence[Sequence[int]], mesh: Mapping[str, int]) -> str:
    """The axes along which the members of a group differ, joined by +."""
    sizes = list(mesh.values())
    varying: set[int] = set()
    for group in groups:
        places = np.array(np.unravel_index(list(group), sizes))
        varying |= set(np.flatnonzero((places != places[:, :1]).any(axis=1)).tolist())
    return "+".join(axis for i, axis in enumerate(mesh) if i in varying) or "none"
