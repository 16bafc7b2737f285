"""How each parameter is stored in Hugging Face checkpoints and in GGUF files: one table.

A stored matrix is [out, in] with heads flattened, ours are [in, heads, head_dim]. Each row of the
table gives the axes of both, so that import and export are one description read in two directions.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

_LAYER = "model.layers.{i}."
_ATTENTION, _MLP = _LAYER + "self_attn.", _LAYER + "mlp."


@dataclasses.dataclass(frozen=True)
class Layout:
    """One parameter: its path and axes, and the tensors that hold it.

    `stored` are the axes of each tensor; "heads*head_dim" is two of ours in one, "1" is none of
    them. Where ours has the axis "part", each of its entries is a tensor of its own.
    """

    path: str
    axes: tuple[str, ...]
    stored: tuple[str, ...]
    tensors: tuple[str, ...]  # names in a Hugging Face checkpoint
    gguf: tuple[str, ...]

    def sizes(self, shape: Sequence[int]) -> dict[str, int]:
        """The size of each axis of a parameter of this shape."""
        return dict(zip(self.axes, shape, strict=True))

    def stored_shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape of each of the tensors."""
        return tuple(math.prod(_size(axis, sizes) for axis in _split(d)) for d in self.stored)

    def read(self, tensor: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
        """A tensor (or some of its rows: `sizes` then says so) with our axes, but without "part".

        The result is a view.
        """
        flat = [axis for group in self.stored for axis in _split(group)]
        ours = tensor.reshape([_size(axis, sizes) for axis in flat])
        kept = [axis for axis in self.axes if axis != "part"]
        ours = ours.transpose([flat.index(axis) for axis in kept] + _ones(flat))
        return ours.reshape([sizes[axis] for axis in kept])

    def write(self, parameter: np.ndarray) -> list[np.ndarray]:
        """The stored tensors of a parameter, in the order of `tensors`; the inverse of `read`."""
        sizes = self.sizes(parameter.shape)
        parts = [parameter]
        if "part" in self.axes:
            parts = list(np.moveaxis(parameter, self.axes.index("part"), 0))
        kept = [axis for axis in self.axes if axis != "part"]
        flat = [axis for group in self.stored for axis in _split(group) if axis != "1"]
        order = [kept.index(axis) for axis in flat]
        return [part.transpose(order).reshape(self.stored_shape(sizes)) for part in parts]

    def lead(self) -> tuple[str, ...]:
        """Our axes that the rows of a tensor run over."""
        return _split(self.stored[0])


def _split(group: str) -> tuple[str, ...]:
    return tuple(group.split("*"))


def _size(axis: str, sizes: Mapping[str, int]) -> int:
    return 1 if axis == "1" else sizes[axis]


def _ones(flat: Sequence[str]) -> list[int]:
    return [i for i, axis in enumerate(flat) if axis == "1"]


def _layout(
    path: str, axes: str, stored: str, tensors: str | tuple[str, ...], gguf: str | tuple[str, ...]
) -> Layout:
    def names(x: str | tuple[str, ...]) -> tuple[str, ...]:
        return (x,) if isinstance(x, str) else x

    return Layout(path, tuple(axes.split()), tuple(stored.split()), names(tensors), names(gguf))


# Our parameter, its axes, the axes of a tensor, Hugging Face's name, GGUF's name.
_IN = "trunk/layers_{i}/"
TABLE = (
    _layout(
        "trunk/embedding", "vocab embed", "vocab embed",
        "model.embed_tokens.weight", "token_embd.weight",
    ),
    _layout("head", "embed vocab", "vocab embed", "lm_head.weight", "output.weight"),
    _layout("head/kernel", "embed", "1 embed", "score.weight", "cls.output.weight"),
    _layout("head/bias", "", "1", "score.bias", "cls.output.bias"),
    _layout("trunk/final_norm/scale", "norm", "norm", "model.norm.weight", "output_norm.weight"),
    _layout(
        _IN + "attention_norm/scale", "norm", "norm",
        _LAYER + "input_layernorm.weight", "blk.{i}.attn_norm.weight",
    ),
    _layout(
        _IN + "mlp_norm/scale", "norm", "norm",
        _LAYER + "post_attention_layernorm.weight", "blk.{i}.ffn_norm.weight",
    ),
    *(
        _layout(
            _IN + f"attention/{ours}_kernel", f"embed {heads} head_dim", f"{heads}*head_dim embed",
            _ATTENTION + f"{letter}_proj.weight", f"blk.{{i}}.attn_{letter}.weight",
        )
        for ours, letter, heads in (
            ("query", "q", "heads"), ("key", "k", "kv_heads"), ("value", "v", "kv_heads"),
        )
    ),
    *(
        _layout(
            _IN + f"attention/{ours}_bias", f"{heads} head_dim", f"{heads}*head_dim",
            _ATTENTION + f"{letter}_proj.bias", f"blk.{{i}}.attn_{letter}.bias",
        )
        for ours, letter, heads in (
            ("query", "q", "heads"), ("key", "k", "kv_heads"), ("value", "v", "kv_heads"),
        )
    ),
    *(
        _layout(
            _IN + f"attention/{ours}_norm/scale", "norm", "norm",
            _ATTENTION + f"{letter}_norm.weight", f"blk.{{i}}.attn_{letter}_norm.weight",
        )
        for ours, letter in (("query", "q"), ("key", "k"))
    ),
    _layout(
        _IN + "attention/out_kernel", "heads head_dim embed", "embed heads*head_dim",
        _ATTENTION + "o_proj.weight", "blk.{i}.attn_output.weight",
    ),
    _layout(
        _IN + "attention/out_bias", "embed", "embed",
        _ATTENTION + "o_proj.bias", "blk.{i}.attn_output.bias",
    ),
    _layout(
        _IN + "mlp/gate_up_kernel", "embed part mlp", "mlp embed",
        (_MLP + "gate_proj.weight", _MLP + "up_proj.weight"),
        ("blk.{i}.ffn_gate.weight", "blk.{i}.ffn_up.weight"),
    ),
    _layout(
        _IN + "mlp/gate_up_bias", "part mlp", "mlp",
        (_MLP + "gate_proj.bias", _MLP + "up_proj.bias"),
        ("blk.{i}.ffn_gate.bias", "blk.{i}.ffn_up.bias"),
    ),
    _layout(
        _IN + "mlp/down_kernel", "mlp embed", "embed mlp",
        _MLP + "down_proj.weight", "blk.{i}.ffn_down.weight",
    ),
    _layout(
        _IN + "mlp/down_bias", "embed", "embed", _MLP + "down_proj.bias", "blk.{i}.ffn_down.bias",
    ),
)  # fmt: skip
_BY_PATH = {layout.path: layout for layout in TABLE}


def layout_of(path: str) -> Layout:
    """The row of the table for one of our parameters, its layer filled in.

    Raises KeyError for a parameter that no checkpoint holds.
    """
    layer = re.match(r"trunk/layers_(\d+)/", path)
    if layer is None:
        return _BY_PATH[path]
    row = _BY_PATH[_IN + path[layer.end() :]]

    def filled(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name.replace("{i}", layer[1]) for name in names)

    return dataclasses.replace(row, path=path, tensors=filled(row.tensors), gguf=filled(row.gguf))
