"""Unsigned varints (little-endian base 128) of multiformats and CAR: at most nine bytes, shortest form only."""

from __future__ import annotations

MAX_BYTES = 9  # the multiformats limit: values below 2**63


class BadVarint(ValueError):
    """truncated: the bytes end inside the varint, so more of them could still make it good."""

    def __init__(self, message: str, *, truncated: bool = False) -> None:
        super().__init__(message)
        self.truncated = truncated


def read(data: bytes | bytearray | memoryview, offset: int = 0) -> tuple[int, int]:
    """(value, offset of the byte after it). Raises BadVarint: truncated, longer than nine bytes, or padded."""
    value = 0
    for index in range(MAX_BYTES):
        if offset + index >= len(data):
            raise BadVarint("varint ends early", truncated=True)
        byte = data[offset + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            if byte == 0 and index > 0:
                raise BadVarint("varint is not in its shortest form")
            return value, offset + index + 1
    raise BadVarint("varint is longer than nine bytes")


def write(value: int) -> bytes:
    """The shortest form. Raises ValueError outside 0 … 2**63-1."""
    if not 0 <= value < 1 << 63:
        raise ValueError(f"{value} does not fit a varint")
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
