"""Our own look at safetensors files before any library opens them.

The library accepts duplicate names and leading space in the header, so two readers may see two models in one file; here
a file has one reading or is refused. Only headers are read: the cost does not grow with the weights.
Source: the format's description, 8 bytes little-endian header length N, N bytes of JSON, then the tensors without gaps.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NoReturn, TypeGuard

from ipfs_accelerate_node.errors import ModelUnsupported
from ipfs_accelerate_node.inference.strict_json import JsonObject, parse_object, read_object

MAX_HEADER_BYTES = 100_000_000  # the library's own limit
MAX_INDEX_BYTES = 64 << 20
MAX_NAME_BYTES = 512

DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip

_FOREIGN = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.h5", "*.ckpt", "*.onnx", "*.msgpack", "*.gguf", "*.npz")
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}\.safetensors")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """file: the file that holds it. dtype: the format's own word (``F32``, …). start, stop: bytes after the header."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def _bad(message: str) -> NoReturn:
    raise ModelUnsupported(message, code="bad_weights")


def weights_of(directory: Path) -> Mapping[str, TensorEntry]:
    """Every tensor of a model directory by name: of ``model.safetensors``, else of the shards that the index names.

    Raises ModelUnsupported. bad_weights: see ``read_header``; shards that are missing, lie elsewhere or share a name.
    format_refused: there are weights, but none that can be read without running code.
    """
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if os.path.lexists(single):
        return read_header(single)
    if os.path.lexists(index):
        return _read_shards(directory, index)
    foreign = sorted({p.name for pattern in _FOREIGN for p in directory.glob(pattern)})
    if foreign:
        raise ModelUnsupported(
            f"{foreign[0]}: only safetensors and OpenVINO files are loaded, pickles and other formats are not; "
            "convert the model to model.safetensors",
            code="format_refused",
            files=foreign[:20],
        )
    _bad("neither model.safetensors nor model.safetensors.index.json is in the model's directory")


def _read_shards(directory: Path, index: Path) -> dict[str, TensorEntry]:
    weight_map = read_object(index, max_bytes=MAX_INDEX_BYTES, code="bad_weights").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        _bad(f"{index.name}: no weight_map")
    shards = sorted({name for name in weight_map.values() if isinstance(name, str)})
    if not all(isinstance(name, str) for name in weight_map.values()):
        _bad(f"{index.name}: a shard's name is not a string")
    for name in shards:
        if not _SHARD.fullmatch(name):
            _bad(f"{index.name}: shard {name[:80]!r} is not the name of a .safetensors file in the same directory")
    tensors: dict[str, TensorEntry] = {}
    for name in shards:
        for tensor, entry in read_header(directory / name).items():
            if tensor in tensors:
                _bad(f"tensor {tensor!r} is in both {tensors[tensor].file.name} and {name}")
            tensors[tensor] = entry
    for tensor, name in weight_map.items():
        if tensor not in tensors or tensors[tensor].file.name != name:
            _bad(f"{index.name}: {name} does not hold tensor {tensor[:80]!r}")
    if unlisted := tensors.keys() - weight_map.keys():
        _bad(f"{index.name} does not list tensor {min(unlisted)!r}")
    return tensors


def read_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors of one file, in file order. Raises ModelUnsupported(bad_weights): the file has no single reading."""
    header, body_bytes = _header_of(path)
    header.pop("__metadata__", None)
    tensors: dict[str, TensorEntry] = {}
    for name, described in header.items():
        _check_name(path, name)
        tensors[name] = _entry(path, name, described)
    in_order = sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop))
    reached = 0
    for name, entry in in_order:
        if entry.start != reached:
            _bad(f"{path.name}: tensor {name!r} begins at byte {entry.start}, expected {reached} (hole or overlap)")
        reached = entry.stop
    if reached != body_bytes:
        _bad(f"{path.name}: tensors take {reached} bytes, the file has {body_bytes} (truncated, or more than tensors)")
    return dict(in_order)


def _header_of(path: Path) -> tuple[JsonObject, int]:
    """The header, and how many bytes follow it."""
    if path.is_symlink() or not path.is_file():
        _bad(f"{path.name}: missing, or not a regular file")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(64)
            _check_magic(path, start)
            length = int.from_bytes(start[:8], "little")
            if size < 8 or length > MAX_HEADER_BYTES or 8 + length > size:
                _bad(f"{path.name}: {size} bytes with a header of {length}: not a safetensors file, or cut off")
            file.seek(8)
            text = file.read(length)
    except OSError as exc:
        raise ModelUnsupported(f"{path.name}: {exc.strerror}", code="bad_weights") from exc
    if not text.startswith(b"{"):
        _bad(f"{path.name}: the header does not begin with '{{'")
    header = parse_object(text, what=f"header of {path.name}", code="bad_weights")
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        _bad(f"{path.name}: __metadata__ is not a map of strings")
    return header, size - 8 - length


def _check_magic(path: Path, start: bytes) -> None:
    """Name what the file really is, where that is plain to see."""
    if start.startswith(b"version https://git-lfs"):
        _bad(f"{path.name} is a git-lfs pointer, not the weights: run `git lfs pull` and add the directory again")
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")) and start[7:8] != b"\0":
        _bad(f"{path.name} is a pickle or zip archive, not safetensors")
    if start.lstrip()[:1] == b"<":
        _bad(f"{path.name} is an HTML or XML page, not safetensors")


def _check_name(path: Path, name: str) -> None:
    if not name or _CONTROL.search(name) or len(name.encode()) > MAX_NAME_BYTES:
        _bad(f"{path.name}: tensor name {name[:40]!r} is empty, not printable or over {MAX_NAME_BYTES} bytes")


def _entry(path: Path, name: str, described: object) -> TensorEntry:
    where = f"{path.name}: tensor {name!r}"
    if not isinstance(described, dict) or described.keys() != {"dtype", "shape", "data_offsets"}:
        _bad(f"{where} is not described by dtype, shape and data_offsets alone")
    dtype, shape, offsets = described["dtype"], described["shape"], described["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        _bad(f"{where} has unknown dtype {str(dtype)[:40]!r}")
    if not _naturals(shape) or len(shape) > 32:
        _bad(f"{where} has a shape that is not a list of whole numbers")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        _bad(f"{where} has no valid data_offsets")
    bits = prod(shape) * DTYPE_BITS[dtype]
    if bits % 8 or bits // 8 != offsets[1] - offsets[0]:
        _bad(f"{where}: {dtype} {shape} does not take {offsets[1] - offsets[0]} bytes")
    return TensorEntry(path, dtype, tuple(shape), offsets[0], offsets[1])


def _naturals(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 1 << 63 for v in value)
