"""JSON that came with a model: read under a size cap, without what parsers disagree about."""

from __future__ import annotations

import json
import math
from pathlib import Path

from ipfs_accelerate_node.errors import ModelUnsupported

JsonObject = dict[str, object]

MAX_CONFIG_BYTES = 8 << 20


class _Refused(ValueError):
    pass


def _unique(pairs: list[tuple[str, object]]) -> JsonObject:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _Refused(f"key {twice[:80]!r} occurs twice")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _Refused(f"number {text[:20]} is not finite")
    return value


def _no_constant(text: str) -> object:
    raise _Refused(f"{text} is not JSON")


def parse_object(data: bytes, *, what: str, code: str) -> JsonObject:
    """The object that ``data`` holds.

    Raises ModelUnsupported(code) naming ``what``: not UTF-8, not JSON, not an object, duplicate keys, NaN, infinite
    numbers, numbers of thousands of digits, nesting beyond the parser's stack.
    """
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_float=_finite,
            parse_constant=_no_constant,
        )
    except RecursionError:
        raise ModelUnsupported(f"{what}: nested too deeply", code=code) from None
    except ValueError as exc:  # UnicodeDecodeError, JSONDecodeError and ours
        raise ModelUnsupported(f"{what}: {str(exc)[:160]}", code=code) from exc
    if not isinstance(value, dict):
        raise ModelUnsupported(f"{what}: holds a {type(value).__name__}, not an object", code=code)
    return value


def read_bytes(path: Path, *, max_bytes: int, code: str) -> bytes:
    """A regular file's bytes. Raises ModelUnsupported(code): missing, a link, unreadable, or longer than max_bytes."""
    if path.is_symlink() or not path.is_file():
        raise ModelUnsupported(f"{path.name}: not a regular file in the model's directory", code=code)
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as exc:
        raise ModelUnsupported(f"{path.name}: {exc.strerror}", code=code) from exc
    if len(data) > max_bytes:
        raise ModelUnsupported(f"{path.name}: longer than {max_bytes:,} bytes", code=code)
    return data


def read_object(path: Path, *, max_bytes: int = MAX_CONFIG_BYTES, code: str = "bad_config") -> JsonObject:
    """``parse_object`` of a file."""
    return parse_object(read_bytes(path, max_bytes=max_bytes, code=code), what=path.name, code=code)
