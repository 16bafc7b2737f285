"""A program through the TPU's own compiler, on a machine that has no TPU."""

import contextlib
import dataclasses
import os
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from prm_jax.config import ConfigError
from prm_jax.plan.arithmetic import flops
from prm_jax.plan.hlo import cost_of
from prm_jax.plan.programs import Program, bytes_per_chip
from prm_jax.plan.slices import Slice
from prm_jax.process import LIBTPU_FLAGS

INSTALL = "pip install 'prm_jax[tpu]'"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one program takes on each chip of a slice; bytes and seconds are per execution."""

    name: str
    hbm_bytes: int  # arguments, temporaries, and outputs that are not written over arguments
    argument_bytes: int
    temp_bytes: int
    kept_bytes: int  # other arrays of the run that are on the chip meanwhile
    available_bytes: int
    modelled_s: float | None  # by the compiler's cycles; None where it refused the program
    floor_s: float
    bytes_moved: Mapping[str, float]  # by mesh axis
    fits: bool
    largest: tuple[tuple[str, int], ...]  # (what, bytes), the largest first
    mend: str  # "" if it fits
    unbounded_loops: int  # counted at their most trips
    compile_s: float


def tpu_devices(slice_: Slice, slices: int = 1) -> list[Any]:
    """The chips of equal slices, for compiling only.

    Raises ConfigError without the TPU's compiler.
    """
    # Only a TPU machine can answer what the compiler asks; and no TPU is driven here, so others may
    # use theirs, or this compiler, at the same time.
    for name, value in (
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_ACCELERATOR_TYPE", slice_.name),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_MIN_LOG_LEVEL", "3"),
        ("LIBTPU_INIT_ARGS", LIBTPU_FLAGS),  # as in a run
    ):
        os.environ.setdefault(name, value)
    try:
        import libtpu  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError(
            "the TPU's compiler is not installed: it comes with libtpu, which needs no TPU; "
            f"{INSTALL}"
        ) from None
    settings: dict[str, Any] = {}
    if slice_.chips == 1:
        settings["chips_per_host_bounds"] = (1, 1, 1)
    if slices > 1:
        settings["num_slices"] = slices
    description = topologies.get_topology_desc(
        platform="tpu", topology_name=slice_.topology, **settings
    )
    return list(description.devices)


def plan(program: Program, mesh: Mesh, slice_: Slice) -> Plan:
    """Compiles a program for a mesh of one or more slices, and reads what a chip will take."""
    begun_s = time.perf_counter()
    with jax.set_mesh(mesh):
        traced = program.function.trace(*program.arguments)
        total = flops(traced.jaxpr.jaxpr, most_trips=program.most_trips)
        lowered = traced.lower()
        with _errors_kept() as error:
            compiled = lowered.compile()
    chip = slice_.chip
    kept = {name: bytes_per_chip(tree) for name, tree in program.kept.items()}
    kept_bytes = sum(kept.values())
    floor_s = total / mesh.size / chip.peak_flops
    arguments = bytes_per_chip(program.arguments)
    if error:
        used, largest = out_of_memory(error[0])
        return Plan(
            name=program.name,
            hbm_bytes=used,
            argument_bytes=arguments,
            temp_bytes=max(used - arguments, 0),
            kept_bytes=kept_bytes,
            available_bytes=chip.hbm_bytes,
            modelled_s=None,
            floor_s=floor_s,
            bytes_moved={},
            fits=False,
            largest=tuple(largest),
            mend=program.mend,
            unbounded_loops=0,
            compile_s=time.perf_counter() - begun_s,
        )
    memory = compiled.memory_analysis()
    within = dict(mesh.shape) | {"data": mesh.shape["data"] * slice_.chips // mesh.size}
    cost = cost_of(compiled.as_text(), within, most_trips=program.most_trips)
    hbm = (
        memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
    )
    fits = hbm + kept_bytes <= chip.hbm_bytes
    parts = kept | {
        "temporaries (activations, gradients)": memory.temp_size_in_bytes,
        "arguments of the program": memory.argument_size_in_bytes,
    }
    return Plan(
        name=program.name,
        hbm_bytes=hbm,
        argument_bytes=memory.argument_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
        kept_bytes=kept_bytes,
        available_bytes=chip.hbm_bytes,
        modelled_s=cost.cycles / chip.clock_hz,
        floor_s=floor_s,
        bytes_moved=cost.moved,
        fits=fits,
        largest=tuple(sorted(parts.items(), key=lambda part: -part[1])),
        mend="" if fits else program.mend,
        unbounded_loops=cost.unbounded,
        compile_s=time.perf_counter() - begun_s,
    )


@contextlib.contextmanager
def _errors_kept() -> Iterator[list[str]]:
    """Takes the error of a program that does not fit, and lets all others pass."""
    kept: list[str] = []
    try:
        yield kept
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        kept.append(str(error))


_UNITS = {"B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def out_of_memory(message: str) -> tuple[int, list[tuple[str, int]]]:
    """Bytes that the compiler would have used, and the largest arrays, from its own message.

    0 bytes and no arrays if the message does not say.
    """
    used = re.search(r"[Uu]sed ([\d.]+)([BKMGT])i?B? of", message)
    largest = []
    for size, unit, rest in re.findall(
        r"\d+\. Size: ([\d.]+)([BKMGT])\n(.*?)(?=\n\s*=====|\Z)", message, re.DOTALL
    ):
        shape = re.search(r"Shape: (\S+)", rest)
        made = re.search(r'op_name="([^"]*)"', rest)
        label = " ".join(part[1] for part in (shape, made) if part)
        largest.append((label, int(float(size) * _UNITS[unit])))
    return (int(float(used[1]) * _UNITS[used[2]]) if used else 0), largest
