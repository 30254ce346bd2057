"""Which names a file may have on our disk: safe on every file system, and no two that one of them would confuse."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from ipfs_accelerate_node.content.cid import shown
from ipfs_accelerate_node.errors import UnsafeContent

MAX_NAME_BYTES = 255
_DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$"}
_DEVICES |= {f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789¹²³"}
_DRIVE = re.compile(r"[A-Za-z]:")


def check_name(name: str) -> None:
    """One component of a path. Raises UnsafeContent (code invalid_path) that says what is wrong with it."""
    reason = _fault(name)
    if reason is not None:
        raise UnsafeContent(f"file name {shown(name)} is refused: {reason}", code="invalid_path")


def check_tree(paths: Iterable[str], directories: Iterable[str] = ()) -> None:
    """File paths (and further directories) of one model, relative and "/"-separated, each component checked too.

    Raises UnsafeContent (code invalid_path) for two that a case-insensitive or Unicode-normalising file system takes
    for one, for a file listed twice, and for a file that is also a directory.
    """
    seen: dict[str, tuple[str, bool]] = {}
    for path in paths:
        _enter(seen, path, is_file=True)
    for directory in directories:
        _enter(seen, directory, is_file=False)


def _enter(seen: dict[str, tuple[str, bool]], path: str, *, is_file: bool) -> None:
    """Adds a path and its parents to seen: folded path -> (path, whether it is a file)."""
    parts = path.split("/")
    for depth, part in enumerate(parts, 1):
        check_name(part)
        whole, leaf = "/".join(parts[:depth]), is_file and depth == len(parts)
        folded = _folded(whole)
        if folded not in seen:
            seen[folded] = (whole, leaf)
            continue
        other, other_is_file = seen[folded]
        if other != whole:
            raise _clash(whole, other, "a file system may take them for the same name")
        if other_is_file != leaf:
            raise _clash(whole, other, "one is a file, the other a directory")
        if leaf:
            raise _clash(whole, other, "the same file is listed twice")


def _clash(path: str, other: str, reason: str) -> UnsafeContent:
    return UnsafeContent(f"{shown(path)} and {shown(other)} are refused: {reason}", code="invalid_path")


def _folded(path: str) -> str:
    """Equal for paths that differ in letter case or Unicode normalisation only (Unicode's canonical caseless match)."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", path).casefold())


def _fault(name: str) -> str | None:
    if name in ("", ".", ".."):
        return "it does not name a file"
    if "/" in name or "\\" in name:
        return "it holds a path separator"
    if any(unicodedata.category(letter) == "Cc" for letter in name):
        return "it holds a control character"
    try:
        size_bytes = len(name.encode())
    except UnicodeEncodeError:
        return "it is not valid UTF-8"
    if size_bytes > MAX_NAME_BYTES:
        return f"it has {size_bytes} bytes, {MAX_NAME_BYTES} are possible"
    if _DRIVE.match(name):
        return "it starts with a drive letter"
    if name.split(".")[0].rstrip(" ").lower() in _DEVICES:
        return "it is the name of a device on Windows"
    return None
