"""Canonical dag-cbor for records: one value has one encoding, and anything else is refused.

Own code rather than libipld, for one reason: libipld hands a link out as plain ``bytes`` and writes any bytes that look
like a CID as a link, so a signature or key of the wrong first bytes would come back as something else. A record needs
the two kept apart. libipld stays the test's second opinion. Records have no floats (a number that two machines print
differently is a number two signatures disagree about).
"""

from __future__ import annotations

from typing import TypeAlias

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import BadContent, InvalidCid

Value: TypeAlias = "bool | int | str | bytes | Cid | list[Value] | dict[str, Value] | None"

MAX_BYTES = 64 * 1024
MAX_DEPTH = 32

_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _LIST, _MAP, _TAG, _SIMPLE = range(8)
_LINK_TAG = b"\xd8\x2a"
_FALSE, _TRUE, _NULL = 0xF4, 0xF5, 0xF6


def bad(reason: str) -> BadContent:
    return BadContent(f"not a canonical record block: {reason}", code="bad_record")


def encode(value: Value, *, max_bytes: int = MAX_BYTES) -> bytes:
    """The one canonical encoding: shortest heads, definite lengths, map keys by length, then bytes.

    Raises BadContent(bad_record): a float or foreign type, an integer outside 64 bits (plus sign), text that is not
    valid Unicode, more than MAX_DEPTH levels, more than max_bytes.
    """
    out = bytearray()
    _write(out, value, 0)
    if len(out) > max_bytes:
        raise bad(f"{len(out)} bytes, at most {max_bytes} are allowed")
    return bytes(out)


def decode(data: bytes, *, max_bytes: int = MAX_BYTES) -> Value:
    """The value of a canonical block; ``encode(decode(data)) == data`` always holds.

    Raises BadContent(bad_record), before parsing when there are more than max_bytes.
    """
    if len(data) > max_bytes:
        raise bad(f"{len(data)} bytes, at most {max_bytes} are allowed")
    reader = _Reader(data)
    value = reader.value(0)
    if reader.at != len(data):
        raise bad(f"{len(data) - reader.at} bytes after the end")
    if encode(value, max_bytes=max_bytes) != data:
        raise bad("the same value has another encoding")
    return value


def _head(out: bytearray, major: int, argument: int) -> None:
    if argument < 24:
        out.append(major << 5 | argument)
        return
    for minor, width in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if argument < 1 << (8 * width):
            out.append(major << 5 | minor)
            out += argument.to_bytes(width, "big")
            return
    raise bad("an integer of more than 64 bits")


def _text(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as exc:
        raise bad("text with a lone surrogate") from exc


def _write(out: bytearray, value: Value, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise bad(f"more than {MAX_DEPTH} levels")
    match value:
        case None:
            out.append(_NULL)
        case bool():
            out.append(_TRUE if value else _FALSE)
        case int():
            _head(out, _UNSIGNED, value) if value >= 0 else _head(out, _NEGATIVE, -1 - value)
        case str():
            _write_string(out, _TEXT, _text(value))
        case bytes():
            _write_string(out, _BYTES, value)
        case Cid():
            out += _LINK_TAG
            _write_string(out, _BYTES, b"\0" + bytes(value))
        case list():
            _head(out, _LIST, len(value))
            for item in value:
                _write(out, item, depth + 1)
        case dict():
            _write_map(out, value, depth)
        case _:
            raise bad(f"a {type(value).__name__} has no place in a record")


def _write_string(out: bytearray, major: int, payload: bytes) -> None:
    _head(out, major, len(payload))
    out += payload


def _write_map(out: bytearray, value: dict[str, Value], depth: int) -> None:
    if not all(isinstance(key, str) for key in value):
        raise bad("a map key that is not text")
    keyed = sorted(((_text(k), v) for k, v in value.items()), key=lambda pair: (len(pair[0]), pair[0]))
    _head(out, _MAP, len(keyed))
    for key, item in keyed:
        _write_string(out, _TEXT, key)
        _write(out, item, depth + 1)


class _Reader:
    """One pass over a block. Never reads past its end, never allocates by a declared length alone."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def value(self, depth: int) -> Value:
        if depth > MAX_DEPTH:
            raise bad(f"more than {MAX_DEPTH} levels")
        major, argument = self._head()
        match major:
            case 0:
                return argument
            case 1:
                return -1 - argument
            case 2:
                return self._take(argument)
            case 3:
                return self._text(argument)
            case 4:
                return [self.value(depth + 1) for _ in range(self._count(argument))]
            case 5:
                return self._map(argument, depth)
            case 6:
                return self._link(argument)
            case _:
                return self._simple(argument)

    def _take(self, length: int) -> bytes:
        if length > len(self._data) - self.at:
            raise bad("ends too early")
        self.at += length
        return self._data[self.at - length : self.at]

    def _count(self, declared: int) -> int:
        if declared > len(self._data) - self.at:  # each item takes a byte at least
            raise bad("more items declared than bytes left")
        return declared

    def _head(self) -> tuple[int, int]:
        first = self._take(1)[0]
        major, minor = first >> 5, first & 0x1F
        if major == _SIMPLE:
            return major, first
        if minor < 24:
            return major, minor
        if minor > 27:
            raise bad("an indefinite or reserved length")
        return major, int.from_bytes(self._take(1 << (minor - 24)), "big")

    def _text(self, length: int) -> str:
        try:
            return self._take(length).decode()
        except UnicodeDecodeError as exc:
            raise bad("text that is not UTF-8") from exc

    def _map(self, declared: int, depth: int) -> dict[str, Value]:
        found: dict[str, Value] = {}
        for _ in range(self._count(declared)):
            major, argument = self._head()
            if major != _TEXT:
                raise bad("a map key that is not text")
            key = self._text(argument)
            if key in found:
                raise bad("a map key twice")
            found[key] = self.value(depth + 1)
        return found

    def _link(self, tag: int) -> Cid:
        major, length = self._head() if tag == 42 else (-1, 0)
        if major != _BYTES:
            raise bad("a tag that is not a link")
        payload = self._take(length)
        if payload[:1] != b"\0":
            raise bad("a link without its leading zero")
        try:
            return Cid.decode(payload[1:])
        except InvalidCid as exc:
            raise bad(f"a link that is no CID ({exc})") from exc

    @staticmethod
    def _simple(first: int) -> Value:
        if first not in (_FALSE, _TRUE, _NULL):
            raise bad("a float or another simple value")
        return None if first == _NULL else first == _TRUE
