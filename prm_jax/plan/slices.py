"""TPU slices by the names that gcloud gives them, and what one chip of each kind can do."""

import dataclasses
import difflib

from prm_jax.config import ConfigError

GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip, as its makers describe it. The clock follows from the peak and the matrix units."""

    kind: str  # as the compiler names the topology: v5e
    hbm_bytes: int
    peak_flops: float  # bfloat16, per second
    flops_per_cycle: int  # 2 x matrix units x rows x columns

    @property
    def clock_hz(self) -> float:
        return self.peak_flops / self.flops_per_cycle


# What a program may use: each chip holds back a part of its memory.
_V4 = Chip("v4", int(30.75 * GIB), 275e12, 2 * 8 * 128 * 128)
_V5E = Chip("v5e", int(15.75 * GIB), 197e12, 2 * 4 * 128 * 128)
_V5P = Chip("v5p", int(95.74 * GIB), 459e12, 2 * 8 * 128 * 128)
_V6E = Chip("v6e", int(31.25 * GIB), 918e12, 2 * 4 * 256 * 256)

# The number in a name counts chips (v5e, v6e) or TensorCores, two to a chip (v4, v5p).
_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_DEEP = {
    8: "2x2x1", 16: "2x2x2", 32: "2x2x4", 64: "2x4x4", 128: "4x4x4", 256: "4x4x8", 512: "4x8x8",
    1024: "8x8x8", 1536: "8x8x12", 2048: "8x8x16", 4096: "8x16x16",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Slice:
    """Chips that are created together and can all reach each other."""

    name: str
    chip: Chip
    shape: str  # 8x8

    @property
    def chips(self) -> int:
        n = 1
        for size in self.shape.split("x"):
            n *= int(size)
        return n

    @property
    def topology(self) -> str:
        """The compiler's name for it."""
        return f"{self.chip.kind}:{self.shape}"


SLICES = {
    f"{prefix}-{n}": Slice(f"{prefix}-{n}", chip, shape)
    for prefix, chip, shapes in (
        ("v4", _V4, _DEEP),
        ("v5e", _V5E, _FLAT),
        ("v5p", _V5P, _DEEP | {8192: "16x16x16", 12288: "16x16x24"}),
        ("v6e", _V6E, _FLAT),
    )
    for n, shape in shapes.items()
}


def find_slice(name: str) -> Slice:
    """The slice of an accelerator type; `v5litepod-N` is v5e-N.

    Raises ConfigError for an unknown name: it lists those of the same kind, or all.
    """
    plain = name.replace("v5litepod-", "v5e-")
    if plain in SLICES:
        return SLICES[plain]
    kind = plain.split("-")[0]
    known = [known for known in SLICES if known.split("-")[0] == kind] or list(SLICES)
    near = difflib.get_close_matches(plain, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ConfigError(
        f"--topology = {name!r} is not a TPU slice{hint} (the slices are {', '.join(known)}; "
        "v4 and v5p count TensorCores, two to a chip, v5e and v6e count chips)"
    )
