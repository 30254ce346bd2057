"""The Range header (RFC 9110), as far as this node serves it: one range; a list of them is answered in full."""

from __future__ import annotations

import re
from dataclasses import dataclass

_ONE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes start … stop-1 of a file of ``size`` bytes. partial: the answer is a 206."""

    start: int
    stop: int
    size: int
    partial: bool

    @property
    def length(self) -> int:
        return self.stop - self.start

    @property
    def content_range(self) -> str:
        return f"bytes {self.start}-{self.stop - 1}/{self.size}"


def requested(header: str | None, size: int) -> Span | None:
    """What a Range header asks of a file; the whole file when it asks nothing we serve or is malformed (which the RFC
    wants ignored); None when it cannot be satisfied (416)."""
    whole = Span(0, size, size, partial=False)
    found = _ONE.fullmatch(header.strip()) if header is not None else None
    if found is None or found.groups() == ("", ""):
        return whole
    first, last = found.groups()
    if first == "":
        length = min(int(last), size)
        return Span(size - length, size, size, partial=True) if length else None
    start, stop = int(first), min(int(last) + 1 if last else size, size)
    if last and int(last) < start:
        return whole
    return Span(start, stop, size, partial=True) if start < size else None


def matches(header: str | None, etag: str) -> bool:
    """Does an If-None-Match header name this entity tag (weak comparison)?"""
    if header is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in header.split(",")]
    return "*" in tags or etag.removeprefix("W/") in tags
