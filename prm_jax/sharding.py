"""Where arrays live: the device mesh, and two tables from logical axis names to mesh axes.

Parameters name their axes beside their shape, activations where they are made; the tables below are
the only place that says which mesh axis a name is laid over. A name that is not in its table, two
names that want the same mesh axis, and a dimension that does not divide are refused: nothing is
replicated unless a table says so.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from prm_jax.config import ConfigError, MeshConfig

AXES = ("data", "fsdp", "tensor")
Rules: TypeAlias = Mapping[str, str | tuple[str, ...] | None]

PARAM_RULES: Rules = {
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "lora": None,  # the rank of adapters: a few rows
    "norm": None,  # scales of norms: a few kilobytes
}

ACTIVATION_RULES: Rules = {
    "batch": ("data", "fsdp"),
    "data_batch": "data",  # with embed_shard: fsdp lies over the embedding here
    "embed_shard": "fsdp",
    "mlp_shard": ("tensor", "fsdp"),  # with data_batch, too
    "vocab_shard": ("tensor", "fsdp"),
    "time": None,
    "embed": None,  # gathered: fsdp lies over the batch here
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "vocab": "tensor",
}


class ShardingError(ValueError):
    """An array cannot be laid over the mesh; names the array, the dimension and the axis."""


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh (data, fsdp, tensor) over all `devices`; raises ConfigError if they do not fit.

    TPU slices that are only joined by the network of their data centre are laid along `data`, where
    nothing but gradients travels.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {axis: getattr(config, axis) for axis in AXES}
    fixed = math.prod(size for size in sizes.values() if size != -1)
    for axis, size in sizes.items():
        if size == -1:
            sizes[axis] = len(devices) // fixed
    if math.prod(sizes.values()) != len(devices):
        wanted = " x ".join(f"{axis} {getattr(config, axis)}" for axis in AXES)
        raise ConfigError(
            f"mesh = {wanted} does not fit {len(devices)} devices: the sizes must multiply to "
            f"{len(devices)}; set one axis to -1 to take all that are left"
        )
    # Linen's activations carry constraints, which need Auto axes; the default became Explicit.
    types = (AxisType.Auto,) * len(AXES)
    # GPUs have a slice_index too, one for each host or group of links; TPUs of one slice may not.
    slices = len({getattr(d, "slice_index", 0) if d.platform == "tpu" else 0 for d in devices})
    if slices == 1:
        return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=types, devices=devices)
    if sizes["data"] % slices:
        raise ConfigError(
            f"mesh.data = {sizes['data']} is not allowed over {slices} slices: it must be a "
            f"multiple of {slices}, since fsdp and tensor would be slow between slices"
        )
    within = (sizes["data"] // slices, sizes["fsdp"], sizes["tensor"])
    laid = mesh_utils.create_hybrid_device_mesh(
        within, (slices, 1, 1), devices, allow_split_physical_axes=True
    )
    return Mesh(laid, AXES, axis_types=types)


def partition_spec(
    names: Sequence[str | None],
    shape: Sequence[int],
    rules: Rules,
    mesh: Mesh | AbstractMesh,
    array: str,
) -> PartitionSpec:
    """The mesh axes of each dimension of `array`; None names a dimension that is not split.

    Raises ShardingError if a name has no rule, if two dimensions want one mesh axis, or if a
    dimension does not divide by the devices on its axis.
    """
    if len(names) != len(shape):
        raise ShardingError(f"{array} has shape {tuple(shape)} but axis names {tuple(names)}")
    used: dict[str, str] = {}
    entries = []
    for name, size in zip(names, shape, strict=True):
        if name is None:
            entries.append(None)
            continue
        if name not in rules:
            raise ShardingError(
                f"{array} has an axis {name!r} without a rule: add it to the table in "
                f"prm_jax/sharding.py (it has {', '.join(rules)})"
            )
        rule = rules[name]
        axes = _axes(rule)
        for axis in axes:
            if axis in used:
                raise ShardingError(
                    f"{array}: its axes {used[axis]!r} and {name!r} both want mesh axis {axis!r}; "
                    "rename one of them or change its rule"
                )
            used[axis] = name
        devices = math.prod(mesh.shape[axis] for axis in axes)
        if size % devices:
            wanted = " x ".join(f"mesh.{axis} = {mesh.shape[axis]}" for axis in axes)
            raise ShardingError(
                f"{array}: dimension {name!r} of size {size} does not divide by {wanted}; change "
                f"the mesh or make {name!r} a multiple of {devices}"
            )
        entries.append(rule)
    return PartitionSpec(*entries)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """`x`, laid over the mesh of `jax.set_mesh` by its activation names; without a mesh, `x`."""
    return _constrain(x, names, ACTIVATION_RULES, "activation")


def constrain_as_parameter(x: jax.Array, *names: str | None) -> jax.Array:
    """What `constrain` does, by the rules of parameters: for copies of them in another shape."""
    return _constrain(x, names, PARAM_RULES, "copy of a parameter")


def splits(name: str, size: int) -> bool:
    """Whether `size` of the activation name `name` divides over the mesh of `jax.set_mesh`."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return True
    return size % math.prod(mesh.shape[axis] for axis in _axes(ACTIVATION_RULES[name])) == 0


def _axes(rule: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return () if rule is None else (rule,) if isinstance(rule, str) else rule


def _constrain(x: jax.Array, names: Sequence[str | None], rules: Rules, kind: str) -> jax.Array:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    spec = partition_spec(names, x.shape, rules, mesh, f"{kind} {tuple(names)}")
    return jax.lax.with_sharding_constraint(x, spec)


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts a batch is split; batch sizes must be multiples of it."""
    return 1 if mesh.empty else mesh.shape["data"] * mesh.shape["fsdp"]


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of `[B, ...]`: the first dimension over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def parted_rows(x: jax.Array, parts: int, mesh: Mesh) -> jax.Array:
    """`[rows, ...]` as `[parts, rows / parts, ...]`, without moving a row to another device.

    Each part has as many rows of every device.
    """
    shards = batch_shards(mesh)
    x = x.reshape(shards, parts, -1, *x.shape[1:]).swapaxes(0, 1)
    x = x.reshape(parts, -1, *x.shape[3:])
    spec = PartitionSpec(None, *batch_sharding(mesh).spec)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def count_parts(rows: int, mesh: Mesh, rows_at_once: int) -> int:
    """In how many equal parts each device takes its rows, at most `rows_at_once` in each; 0: all.

    A part has the largest number of rows that divides the device's.
    """
    rows //= batch_shards(mesh)
    at_most = min(rows, rows_at_once) or rows
    return rows // next(n for n in range(at_most, 0, -1) if rows % n == 0)


def map_rows(function: Callable[[Any], Any], batch: Any, mesh: Mesh, rows_at_once: int) -> Any:
    """`function(batch)` for a function of rows, in the parts of `count_parts`.

    The arrays of `batch` and of the result are `[rows, ...]`. Fewer rows at a time need less
    memory.
    """
    shards = batch_shards(mesh)
    rows = jax.tree.leaves(batch)[0].shape[0]
    parts = count_parts(rows, mesh, rows_at_once)
    if parts == 1:
        return function(batch)

    def joined(x: jax.Array) -> jax.Array:
        x = x.reshape(parts, shards, -1, *x.shape[2:]).swapaxes(0, 1)
        return x.reshape(rows, *x.shape[3:])

    found = jax.lax.map(function, jax.tree.map(lambda x: parted_rows(x, parts, mesh), batch))
    return jax.tree.map(joined, found)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


# --------------------------------------------------------------- parameters and optimizer state


def abstract_params(model: nn.Module, mesh: Mesh) -> Any:
    """The tree of `model`'s parameters as ShapeDtypeStructs that know their sharding.

    Raises ShardingError if a parameter lacks axis names or cannot be laid over the mesh.
    """
    boxes = jax.eval_shape(lambda key: _init(model, mesh, key), jax.random.key(0))

    def shape(path: Any, box: Any) -> jax.ShapeDtypeStruct:
        name = _path_name(path)
        if not _is_box(box):
            raise ShardingError(
                f"{name} of shape {box.shape} has no axis names: declare it with "
                "nn.with_logical_partitioning"
            )
        value = box.value
        spec = partition_spec(box.names, value.shape, PARAM_RULES, mesh, name)
        return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map_with_path(shape, boxes, is_leaf=_is_box)


def init_params(model: nn.Module, mesh: Mesh, key: jax.Array) -> Any:
    """Fresh parameters, made where they live: no device ever holds a whole sharded array."""
    shardings = jax.tree.map(lambda x: x.sharding, abstract_params(model, mesh))
    init = jax.jit(lambda key: nn.meta.unbox(_init(model, mesh, key)), out_shardings=shardings)
    with jax.set_mesh(mesh):
        return init(key)


def optimizer_shardings(tx: optax.GradientTransformation, params: Any, mesh: Mesh) -> Any:
    """Shardings of `tx.init(params)`: moments lie as their parameter does, scalars everywhere.

    `params` are arrays or the shapes of `abstract_params`. Raises ShardingError for an array that
    is neither a scalar nor shaped as its parameter.
    """

    def moment(leaf: Any, param: Any) -> NamedSharding:
        if leaf.shape != param.shape:
            raise ShardingError(
                f"optimizer state of shape {leaf.shape} belongs to a parameter of shape "
                f"{param.shape}: there is no rule for where it lies"
            )
        return param.sharding

    def other(leaf: Any) -> NamedSharding:
        if leaf.ndim:
            raise ShardingError(
                f"optimizer state of shape {leaf.shape} belongs to no parameter: there is no rule "
                "for where it lies"
            )
        return replicated(mesh)

    state = jax.eval_shape(tx.init, params)
    return optax.tree.map_params(tx, moment, state, params, transform_non_params=other)


def parameter_table(params: Any) -> str:
    """One line per parameter: name, shape, spec, bytes in all and bytes on each device."""
    rows = [("parameter", "shape", "spec", "bytes", "bytes/device")]
    total = per_device = 0
    for path, value in jax.tree_util.tree_leaves_with_path(params):
        size = value.size * value.dtype.itemsize
        shard_size = math.prod(value.sharding.shard_shape(value.shape)) * value.dtype.itemsize
        total, per_device = total + size, per_device + shard_size
        layout = f"({', '.join(str(entry) for entry in value.sharding.spec)})"
        shape = " x ".join(map(str, value.shape))
        rows.append((_path_name(path), shape, layout, f"{size:,}", f"{shard_size:,}"))
    rows.append(("total", "", "", f"{total:,}", f"{per_device:,}"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i >= 3 else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _init(model: nn.Module, mesh: Mesh, key: jax.Array) -> Any:
    # The smallest batch that the mesh can split; only the parameters are computed.
    tokens = jnp.zeros((batch_shards(mesh), 1), jnp.int32)
    return model.init(key, tokens, jnp.ones_like(tokens, bool))["params"]


def _is_box(x: Any) -> bool:
    return isinstance(x, nn.LogicallyPartitioned)


def _path_name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
