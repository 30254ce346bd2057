"""How large a file's DAG is under the import profile, of the file's size alone: all its CIDs are of one length."""

from __future__ import annotations

from ipfs_accelerate_node.content import unixfs
from ipfs_accelerate_node.content.build import UNIXFS_V1_2025, Profile
from ipfs_accelerate_node.content.cid import Cid

_ANY = Cid.of(b"")
_Part = tuple[int, int]  # bytes of the file, bytes of the DAG


def dag_bytes(size: int, profile: Profile = UNIXFS_V1_2025) -> int:
    """Bytes of leaves and nodes together: `BuiltFile.dag_bytes` of a file of that size. Quick for any size: on each
    level all nodes but the last are alike."""
    whole, rest = divmod(size, profile.chunk_bytes)
    full: _Part = (profile.chunk_bytes, profile.chunk_bytes)
    last: _Part | None = (rest, rest) if rest or not size else None
    while whole + (last is not None) > 1:
        groups, over = divmod(whole, profile.width)
        tail = [full] * over + ([last] if last is not None else [])
        last = _node(tail) if tail else None
        full = _node([full] * profile.width) if groups else full
        whole = groups
    return full[1] if last is None else last[1]


def _node(parts: list[_Part]) -> _Part:
    block, length = unixfs.file_node([(_ANY, file_bytes, below) for file_bytes, below in parts])
    return length, len(block) + sum(below for _, below in parts)
