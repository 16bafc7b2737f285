"""Safetensors files, read and written a few rows at a time: a header of JSON, then raw bytes.

Files are read and not mapped into memory: mapped pages would count as a second copy of the model.
The format: 8 bytes with the length of the header, the header, the tensors one after another.
"""

import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from prm_jax.pretrained.errors import PretrainedError

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000  # as Hugging Face cuts


class SafetensorsFolder:
    """The tensors of all safetensors files of a folder, by name."""

    def __init__(self, folder: Path):
        """Reads the headers only; raises PretrainedError for files that are missing or broken."""
        self._where: dict[str, tuple[Path, int, np.dtype]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in _files(folder):
            self._read_header(path)

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop` of a tensor in the dtype that it is stored in."""
        path, offset, dtype = self._where[name]
        shape = self.shapes[name]
        block = np.empty((stop - start, *shape[1:]), dtype)
        row_bytes = block[:1].nbytes
        with path.open("rb", buffering=0) as file:
            file.seek(offset + start * row_bytes)
            view = memoryview(block.view(np.uint8).reshape(-1).data)
            done = 0
            while done < block.nbytes:
                n = file.readinto(view[done:])
                if not n:
                    raise PretrainedError(f"{path} ends before its tensor {name}: copy it again")
                done += n
        return block

    def _read_header(self, path: Path) -> None:
        size = path.stat().st_size
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(length)) if length < size else None
            if not isinstance(header, dict):
                raise ValueError("its header is not a JSON object")
        except (ValueError, struct.error) as error:
            raise PretrainedError(f"{path} is not a safetensors file: {error}") from error
        header.pop("__metadata__", None)
        for name, entry in header.items():
            try:
                code, shape = str(entry["dtype"]), tuple(int(n) for n in entry["shape"])
                begin, end = (int(n) for n in entry["data_offsets"])
            except (KeyError, TypeError, ValueError) as error:
                raise PretrainedError(
                    f"{path}: its header does not say dtype, shape and data_offsets of {name}: "
                    "copy it again"
                ) from error
            dtype = DTYPES.get(code)
            if dtype is None:
                raise PretrainedError(
                    f"{path}: {name} is stored as {code}; supported are "
                    f"{', '.join(DTYPES)}: bring the weights as they were before quantisation"
                )
            if (
                begin < 0
                or min(shape, default=0) < 0
                or (end - begin != math.prod(shape) * dtype.itemsize)
            ):
                raise PretrainedError(
                    f"{path}: {name} has shape {shape} in {code} and the bytes {begin} to {end}, "
                    f"which are not {math.prod(shape) * dtype.itemsize}: copy it again"
                )
            if 8 + length + end > size:
                raise PretrainedError(f"{path} ends before its tensor {name}: copy it again")
            self.shapes[name] = shape
            self._where[name] = (path, 8 + length + begin, dtype)


def _files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise PretrainedError(f"{index} has no weight_map: {error}") from error
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise PretrainedError(
                f"{folder} lacks {', '.join(missing)}, which {INDEX} names: copy the whole folder"
            )
        return [folder / name for name in names]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        others = sorted(path.name for path in folder.glob("*.bin"))
        has = f" (its {', '.join(others)} must be converted to safetensors)" if others else ""
        raise PretrainedError(f"{folder} has no safetensors file{has}")
    return files


def write_safetensors(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: np.dtype,
    tensors: Iterable[tuple[str, np.ndarray]],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes tensors as they come, in the order of `shapes`, in files of at most `shard_bytes`.

    A tensor that is larger has a file for itself; more than one file have an index beside them.
    """
    n_bytes = {name: int(np.prod(shape)) * dtype.itemsize for name, shape in shapes.items()}
    shards: list[list[str]] = [[]]
    for name in shapes:
        if shards[-1] and sum(n_bytes[n] for n in shards[-1]) + n_bytes[name] > shard_bytes:
            shards.append([])
        shards[-1].append(name)
    code = next(code for code, known in DTYPES.items() if known == dtype)
    one = len(shards) == 1
    arrays = iter(tensors)
    weight_map: dict[str, str] = {}
    for i, names in enumerate(shards):
        file_name = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        file_name = "model.safetensors" if one else file_name
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
        end = 0
        for name in names:
            begin, end = end, end + n_bytes[name]
            header[name] = {
                "dtype": code,
                "shape": list(shapes[name]),
                "data_offsets": [begin, end],
            }
            weight_map[name] = file_name
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8
        with (folder / file_name).open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name in names:
                got, array = next(arrays)
                if got != name or array.shape != shapes[name]:
                    raise ValueError(f"expected {name} {shapes[name]}, not {got} {array.shape}")
                file.write(np.ascontiguousarray(array, dtype).view(np.uint8).data)
            file.flush()
            os.fsync(file.fileno())
    if not one:
        index = {"metadata": {"total_size": sum(n_bytes.values())}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
