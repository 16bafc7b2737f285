"""Frames on a pipe: four bytes of length, then JSON. Whoever reads sets the largest size."""

import json
import os
import struct
from typing import Any

_LENGTH = struct.Struct("<I")


class BadFrame(ValueError):
    """A frame is too long or is no JSON."""


def dump(message: Any) -> bytes:
    """The JSON of a message, without a length before it."""
    return _encode(message).encode()


def pack(message: Any) -> bytes:
    return _framed(dump(message))


def numbered(number: int, body: bytes) -> bytes:
    """A frame of the list [number, message] from the message's JSON."""
    return _framed(b"[%d,%b]" % (number, body))


def _framed(body: bytes) -> bytes:
    return _LENGTH.pack(len(body)) + body


def unpack(body: bytes) -> Any:
    """The JSON of one frame; raises BadFrame, whatever the bytes are."""
    try:
        return _decode(body.decode())
    except (ValueError, RecursionError) as error:
        raise BadFrame(str(error)[:200]) from None


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


# `json.dumps` and `json.loads` would make these anew for each frame.
_encode = json.JSONEncoder(separators=(",", ":")).encode
_decode = json.JSONDecoder(parse_constant=_refuse).decode


def split(data: bytes | bytearray) -> tuple[list[bytes], int]:
    """Bodies of the whole frames at the start of `data`, and how many bytes they take."""
    bodies, start = [], 0
    while start + 4 <= len(data):
        (length,) = _LENGTH.unpack_from(data, start)
        if start + 4 + length > len(data):
            break
        bodies.append(bytes(data[start + 4 : start + 4 + length]))
        start += 4 + length
    return bodies, start


def write(fd: int, message: Any) -> None:
    """Write one frame, waiting for room in the pipe."""
    data = memoryview(pack(message))
    while data:
        data = data[os.write(fd, data) :]


def read(fd: int, max_bytes: int) -> Any:
    """Wait for one frame; None at the end of the pipe; raises BadFrame."""
    head = _read_exactly(fd, 4)
    if len(head) < 4:
        return None
    (length,) = _LENGTH.unpack(head)
    if length > max_bytes:
        raise BadFrame(f"a frame of {length} bytes")
    body = _read_exactly(fd, length)
    return unpack(body) if len(body) == length else None


def _read_exactly(fd: int, count: int) -> bytes:
    parts = []
    while count:
        part = os.read(fd, min(count, 1 << 20))
        if not part:
            break
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
