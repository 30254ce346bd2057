"""The path of a gateway URL, decoded once and strictly."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote, unquote_to_bytes

from ipfs_accelerate_node.content.cid import Cid, shown
from ipfs_accelerate_node.errors import BadRequest

PREFIX = "/ipfs/"
MAX_PATH_BYTES = 4096


@dataclass(frozen=True, slots=True)
class ContentPath:
    """root: as it was spelled. parts: names below it, decoded."""

    root: Cid
    parts: tuple[str, ...]

    @property
    def below(self) -> str:
        return "/".join(self.parts)

    def __str__(self) -> str:
        """As X-Ipfs-Path has it: canonical, percent-encoded."""
        return PREFIX + "/".join([str(self.root.canonical), *(quote(part, safe="") for part in self.parts)])


def content_path(raw: str) -> ContentPath:
    """From the raw request target. One slash at the end is tolerated.

    Raises InvalidCid, and BadRequest (code invalid_path) for an empty name, ``.``, ``..``, and whatever decodes to a
    separator, NUL or bytes that are not UTF-8.
    """
    target = raw.partition("?")[0].removeprefix(PREFIX)
    if len(target) > MAX_PATH_BYTES:
        raise BadRequest(f"the path is over {MAX_PATH_BYTES} letters", code="invalid_path")
    first, *rest = target.removesuffix("/").split("/")
    return ContentPath(Cid.parse(_decoded(first)), tuple(_name(part) for part in rest))


def _name(part: str) -> str:
    name = _decoded(part)
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise BadRequest(f"{shown(part)} is no name in a path", code="invalid_path")
    return name


def _decoded(part: str) -> str:
    try:
        return unquote_to_bytes(part).decode("utf-8")
    except UnicodeError as exc:
        raise BadRequest(f"{shown(part)} is not UTF-8", code="invalid_path") from exc
