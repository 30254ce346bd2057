"""Files in the store that no model holds, with the names that the shelf has for them.

They come from clients of the endpoint that take single files, from imports of incomplete snapshots, and from fetches
that failed. They count as used room, go with `gc`, and when room is needed, longest unused first; unless a fetch under
way counts on them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.fetch.hub_shelf import HubShelf, KeptCommit
from ipfs_accelerate_node.store import Store, StoredFile

MAX_COMMITS = 1000  # that are looked through for names, those that were written last


@dataclass(frozen=True, slots=True)
class LooseFile:
    """name: repository@commit/path as the shelf knows it, None for a file of no known commit. needed: a fetch under way
    counts on it."""

    cid: Cid
    size_bytes: int
    name: str | None
    needed: bool


def loose_files(store: Store, shelf: HubShelf) -> list[LooseFile]:
    """The longest unused first. Blocks; what a fetch left to be hashed later is named by its CID alone."""
    found = store.loose()
    names = _names(shelf, [file for file, _ in found])
    return [LooseFile(file.cid, file.size, names.get(file.cid.canonical), needed) for file, needed in found]


def _names(shelf: HubShelf, files: Iterable[StoredFile]) -> dict[Cid, str]:
    """By CID, of the commit that was written last."""
    by_oid: dict[str, Cid] = {}
    for file in files:
        by_oid |= {digest.hex(): file.cid.canonical for digest in (file.sha256, file.git_sha1) if digest}
    names: dict[Cid, str] = {}
    if not by_oid:
        return names
    for kept in shelf.recent(MAX_COMMITS):
        for path, cid in _of(kept, by_oid):
            names.setdefault(cid, f"{kept.of_repo}@{kept.commit[:8]}/{path}")
        if len(names) == len(set(by_oid.values())):
            break
    return names


def _of(kept: KeptCommit, by_oid: dict[str, Cid]) -> Iterable[tuple[str, Cid]]:
    for entry in kept.entries:
        if not entry.folder and (cid := by_oid.get(entry.file.oid)) is not None:
            yield entry.path, cid
