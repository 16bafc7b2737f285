"""Weights of a Hugging Face folder or a GGUF file, brought straight to where they live.

Tensor after tensor is read a few rows at a time into the pieces that this host's devices hold, so
that the host never has a second copy of the model. Everything that is missing, superfluous or of
another shape is named before the first byte is read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from prm_jax.config import ModelConfig
from prm_jax.model.heads import PolicyModel, ScalarModel
from prm_jax.model.lora import fresh_adapters, is_adapter
from prm_jax.pretrained.errors import PretrainedError
from prm_jax.pretrained.huggingface import parse_config, read_json
from prm_jax.pretrained.layout import Layout, layout_of
from prm_jax.pretrained.safetensors import SafetensorsFolder
from prm_jax.sharding import abstract_params

BLOCK_BYTES = 1 << 25  # of a tensor that is read at a time: 32 MiB


class Source(Protocol):
    """Tensors by their Hugging Face names."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def rows(self, name: str, start: int, stop: int) -> np.ndarray: ...


def read_model_config(path: str | Path, **settings: Any) -> ModelConfig:
    """The ModelConfig of a folder in Hugging Face layout, or of a .gguf file.

    `settings` are fields that the weights do not decide (dtype, lora_rank, lora_alpha); `path` is
    kept in it. Raises PretrainedError for weights that are not there or not supported.
    """
    path = Path(path)
    settings = {"path": str(path)} | settings
    if path.suffix == ".gguf":
        from prm_jax.pretrained.gguf import GGUFFile

        return GGUFFile(path).config(**settings)
    if not path.is_dir():
        raise PretrainedError(
            f"model.path = {str(path)!r} is neither a folder with config.json and safetensors "
            "files nor a .gguf file"
        )
    config = path / "config.json"
    return parse_config(read_json(config), str(config), **settings)


def load_params(
    path: str | Path,
    model: PolicyModel | ScalarModel,
    mesh: Mesh,
    *,
    dtype: Literal["float32", "bfloat16"] = "float32",
    key: jax.Array | None = None,
) -> Any:
    """The parameters of `model` from a folder or .gguf file, each in its sharding and in `dtype`.

    Rows of the vocabulary that the file lacks become the mean of those it has. Adapters
    (`lora_rank`) are fresh ones from `key`, always float32. Raises PretrainedError that names every
    tensor which is missing, superfluous or misshapen.
    """
    source = _open(Path(path))
    wanted, tree = _wanted(model, mesh)
    _check(source, [item for item in wanted if item is not None], str(path))
    adapters = iter(())
    if None in wanted:
        key = jax.random.key(0) if key is None else key
        adapters = iter(jax.tree.leaves(fresh_adapters(model, mesh, key)))
    arrays = [
        next(adapters) if item is None else _read(source, *item, np.dtype(dtype)) for item in wanted
    ]
    return jax.tree.unflatten(tree, arrays)


def check_weights(path: str | Path, model: PolicyModel | ScalarModel, mesh: Mesh) -> None:
    """Refuses what `load_params` would refuse, by names and shapes: no weight is read."""
    wanted, _ = _wanted(model, mesh)
    _check(_open(Path(path)), [item for item in wanted if item is not None], str(path))


Wanted = list[tuple[Layout, jax.ShapeDtypeStruct] | None]


def _wanted(model: PolicyModel | ScalarModel, mesh: Mesh) -> tuple[Wanted, Any]:
    """What each parameter is made of, None for an adapter, and the tree that they belong to."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(abstract_params(model, mesh))
    paths = [jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in leaves]
    wanted = [
        None if is_adapter(name) else (layout_of(name), shape)
        for name, (_, shape) in zip(paths, leaves, strict=True)
    ]
    return wanted, tree


def _open(path: Path) -> Source:
    if path.suffix == ".gguf":
        from prm_jax.pretrained.gguf import GGUFFile

        return GGUFFile(path)
    return SafetensorsFolder(path)


def _check(source: Source, wanted: list[tuple[Layout, jax.ShapeDtypeStruct]], where: str) -> None:
    """Raises PretrainedError unless the source has exactly the tensors of `wanted`."""
    problems = []
    known: set[str] = set()
    for layout, like in wanted:
        shape = layout.stored_shape(layout.sizes(like.shape))
        known.update(layout.tensors)
        for name in layout.tensors:
            found = source.shapes.get(name)
            if found is None:
                problems.append(f"{name} is missing")
            elif found != shape and not (
                "vocab" in layout.axes and found[0] < shape[0] and found[1:] == shape[1:]
            ):
                problems.append(f"{name} has shape {found}, the model needs {shape}")
    # Old checkpoints keep the frequencies of the rotary positions; a tied head is the embedding.
    spare = {name for name in source.shapes if name.endswith("rotary_emb.inv_freq")}
    tied = not any(layout.path.startswith("head") for layout, _ in wanted)
    spare |= {"lm_head.weight"} if tied else set()
    problems += [
        f"{name} is not in the model" for name in sorted(source.shapes.keys() - known - spare)
    ]
    if problems:
        shown = "\n  ".join(problems[:40])
        more = f"\n  and {len(problems) - 40} more" if len(problems) > 40 else ""
        raise PretrainedError(
            f"{where} does not hold the weights of this model ({len(problems)} tensors differ):"
            f"\n  {shown}{more}"
        )


def _read(source: Source, layout: Layout, like: jax.ShapeDtypeStruct, dtype: np.dtype) -> jax.Array:
    """One parameter: blocks of rows of its tensors, copied into the shards of this host."""
    places = like.sharding.addressable_devices_indices_map(like.shape)
    ranges = {device: _ranges(index, like.shape) for device, index in places.items()}
    shards = {
        key: np.empty([stop - start for start, stop in key], dtype) for key in ranges.values()
    }
    sizes = layout.sizes(like.shape)
    for part, name in enumerate(layout.tensors):
        for block, begin, end in _blocks(source, layout, name, sizes):
            for key, shard in shards.items():
                _copy_overlap(layout, block, (begin, end), part, key, shard)
    arrays = []
    left = list(ranges.values())
    for device, key in ranges.items():
        arrays.append(jax.device_put(shards[key], device).block_until_ready())
        left.remove(key)
        if key not in left:
            del shards[key]
    return jax.make_array_from_single_device_arrays(like.shape, like.sharding, arrays)


Range = tuple[int, int]


def _ranges(index: Any, shape: tuple[int, ...]) -> tuple[Range, ...]:
    return tuple(s.indices(size)[:2] for s, size in zip(index, shape, strict=True))


def _blocks(source: Source, layout: Layout, name: str, sizes: Mapping[str, int]):
    """Blocks of a tensor with our axes, and the range of the leading axis that each covers."""
    lead, *inner = layout.lead()
    if lead == "1":
        yield layout.read(source.rows(name, 0, 1), sizes), 0, 0
        return
    per_entry = int(np.prod([sizes[axis] for axis in inner], dtype=int))  # rows
    shape = source.shapes[name]
    n = shape[0] // per_entry  # fewer than sizes[lead] where the vocabulary is padded
    entry_bytes = per_entry * int(np.prod(shape[1:], dtype=int)) * 4
    step = max(1, BLOCK_BYTES // entry_bytes)
    padded = n < sizes[lead]
    total: Any = 0
    for begin in range(0, n, step):
        end = min(n, begin + step)
        rows = source.rows(name, begin * per_entry, end * per_entry)
        if padded:
            total = total + rows.astype(np.float32).sum(axis=0, dtype=np.float64)
        yield layout.read(rows, dict(sizes) | {lead: end - begin}), begin, end
    if padded:
        rows = np.broadcast_to(total / n, (sizes[lead] - n, *shape[1:]))
        yield layout.read(rows, dict(sizes) | {lead: sizes[lead] - n}), n, sizes[lead]


def _copy_overlap(
    layout: Layout,
    block: np.ndarray,
    covered: Range,
    part: int,
    key: tuple[Range, ...],
    shard: np.ndarray,
) -> None:
    """Copies what a block and a shard have in common."""
    lead = layout.lead()[0]
    to: list[slice | int] = []
    of: list[slice] = []
    for axis, (start, stop) in zip(layout.axes, key, strict=True):
        if axis == "part":
            if not start <= part < stop:
                return
            to.append(part - start)
        elif axis == lead:
            low, high = max(start, covered[0]), min(stop, covered[1])
            if low >= high:
                return
            to.append(slice(low - start, high - start))
            of.append(slice(low - covered[0], high - covered[0]))
        else:
            to.append(slice(None))
            of.append(slice(start, stop))
    shard[tuple(to)] = block[tuple(of)]
