"""Tensors of KServe's protocol, between their two spellings and numpy: numbers in JSON, nested or flat, and bytes after
it. Pure functions over bytes that strangers wrote: no size is believed before it was compared with what is there.

BYTES: elements of any length, each 4 bytes of length (little-endian) and its content. BF16: upper half of a float32.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ipfs_accelerate_node.api.kserve_wire import InputTensor
from ipfs_accelerate_node.content.cid import shown
from ipfs_accelerate_node.errors import InvalidInput

MAX_ELEMENTS = 1 << 24
_TYPES: dict[str, str] = {
    "BOOL": "?", "UINT8": "<u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "<i1", "INT16": "<i2",
    "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "BF16": "<u2",
}  # fmt: skip
_LENGTH = struct.Struct("<I")
Array = NDArray[np.generic]


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """values: an array of the shape; of BYTES a flat list. datatype: as it was said."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: Array | list[bytes]

    def texts(self) -> list[str]:
        """Raises InvalidInput: no BYTES, or not UTF-8."""
        if not isinstance(self.values, list):
            raise refused(self.name, f"is {self.datatype}, BYTES is expected")
        found = []
        for index, value in enumerate(self.values):
            try:
                found.append(value.decode())
            except UnicodeDecodeError as exc:
                raise refused(self.name, f"element {index} is not UTF-8", index=index) from exc
        return found

    def data(self) -> list[bytes]:
        """Raises InvalidInput: no BYTES."""
        if not isinstance(self.values, list):
            raise refused(self.name, f"is {self.datatype}, BYTES is expected")
        return self.values

    def numbers(self) -> Array:
        """Raises InvalidInput: BYTES."""
        if isinstance(self.values, list):
            raise refused(self.name, "is BYTES, numbers are expected")
        return self.values


def refused(name: str, why: str, *, index: int | None = None) -> InvalidInput:
    return InvalidInput(f"input {shown(name)} {why}", param="inputs", index=index)


def from_json(tensor: InputTensor) -> Tensor:
    """Of its field ``data``. Raises InvalidInput."""
    shape = checked_shape(tensor)
    flat = list(_flat(tensor.data or [], tensor.name, shape))
    if len(flat) != math.prod(shape):
        raise refused(tensor.name, f"has {len(flat)} elements, its shape {list(shape)} has {math.prod(shape)}")
    if tensor.datatype == "BYTES":
        if not all(isinstance(value, str) for value in flat):
            raise refused(tensor.name, "is BYTES, whose elements in JSON are texts")
        return Tensor(tensor.name, "BYTES", shape, [value.encode() for value in flat if isinstance(value, str)])
    return Tensor(tensor.name, tensor.datatype, shape, _numbers(tensor, flat).reshape(shape))


def from_bytes(tensor: InputTensor, raw: memoryview) -> Tensor:
    """Of what follows the JSON. Raises InvalidInput."""
    shape = checked_shape(tensor)
    count = math.prod(shape)
    if tensor.datatype == "BYTES":
        elements = list(_elements(raw, tensor.name, count))
        if len(elements) != count:
            raise refused(tensor.name, f"has {len(elements)} elements, its shape has {count}")
        return Tensor(tensor.name, "BYTES", shape, elements)
    kind = np.dtype(_TYPES[tensor.datatype])
    if len(raw) != count * kind.itemsize:
        raise refused(tensor.name, f"has {len(raw)} bytes, its shape and type have {count * kind.itemsize}")
    values = np.frombuffer(raw, dtype=kind)
    if tensor.datatype == "BOOL" and values.view(np.uint8).max(initial=0) > 1:
        raise refused(tensor.name, "is BOOL, whose bytes are 0 and 1")
    if tensor.datatype == "BF16":
        values = (values.astype("<u4") << 16).view("<f4")
    return Tensor(tensor.name, tensor.datatype, shape, values.reshape(shape))


def checked_shape(tensor: InputTensor) -> tuple[int, ...]:
    if math.prod(tensor.shape) > MAX_ELEMENTS:
        raise refused(tensor.name, f"has a shape of over {MAX_ELEMENTS:,} elements")
    return tuple(tensor.shape)


def _flat(data: Sequence[object], name: str, shape: tuple[int, ...]) -> Iterator[object]:
    """Elements in row-major order, without recursion. Nested lists must be of the shape; a flat one need not."""
    if not any(isinstance(one, list) for one in data):
        yield from data
        return
    level: list[object] = [list(data)]
    for size in shape:
        below: list[object] = []
        for one in level:
            if not isinstance(one, list) or len(one) != size:
                raise refused(name, f"has data that are not of its shape {list(shape)}")
            below += one
        level = below
    if any(isinstance(one, list) for one in level):
        raise refused(name, f"has data that are nested deeper than its shape {list(shape)}")
    yield from level


def _numbers(tensor: InputTensor, flat: Sequence[object]) -> Array:
    kind = tensor.datatype
    wanted = bool if kind == "BOOL" else (int, float) if kind.startswith(("FP", "BF")) else int
    for index, value in enumerate(flat):
        if not isinstance(value, wanted) or (isinstance(value, bool) and kind != "BOOL"):
            raise refused(tensor.name, f"element {index} is no {kind}", index=index)
    target = np.dtype("<f4" if kind == "BF16" else _TYPES[kind])
    try:
        with np.errstate(over="raise"):
            return np.array(flat, dtype=target)
    except (OverflowError, FloatingPointError, ValueError) as exc:
        raise refused(tensor.name, f"holds a number that is no {kind}") from exc


def _elements(raw: memoryview, name: str, count: int) -> Iterator[bytes]:
    at = 0
    while at < len(raw):
        if count == 0 or len(raw) - at < _LENGTH.size:
            raise refused(name, "has bytes after its last element")
        (length,) = _LENGTH.unpack_from(raw, at)
        at += _LENGTH.size
        if length > len(raw) - at:
            raise refused(name, f"has an element of {length} bytes where {len(raw) - at} are left")
        yield bytes(raw[at : at + length])
        at += length
        count -= 1


def to_bytes(values: Array | Sequence[bytes]) -> bytes:
    """As they follow the JSON of a reply."""
    if isinstance(values, np.ndarray):
        return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).tobytes()
    return b"".join(_LENGTH.pack(len(one)) + one for one in values)


def to_json(values: Array | Sequence[bytes]) -> list[object]:
    """Flat. Raises InvalidInput: bytes that no JSON can hold."""
    if isinstance(values, np.ndarray):
        listed: list[object] = values.reshape(-1).tolist()
        return listed
    try:
        return [one.decode() for one in values]
    except UnicodeDecodeError as exc:
        raise InvalidInput("an output of bytes needs binary_data", param="outputs") from exc
