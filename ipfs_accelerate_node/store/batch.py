"""Whole files become blobs, any number in one go: their syncs run side by side, and renames, directory sync and rows
are one step for all. A model of thousands of small files would else wait for the disk four times for each.

Until then they are partial files like any other: a crash before the renames leaves them in ``partial/``, one between
them leaves blobs without rows, and both are taken up again at the next start.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.plan import FilePlan, Leaf

if TYPE_CHECKING:
    from ipfs_accelerate_node.store.partial import PartialFile

SYNCS_AT_ONCE = 8


def commit_all(items: Sequence[tuple[PartialFile, FilePlan]]) -> list[Leaf]:
    """Makes each file a blob, as `PartialFile.commit`; all parts are of one store. Returns the leaves that became
    durable by this call. Blocks.

    Raises BadContent (code incomplete) if a leaf of one is missing, and then commits none; StorageError.
    """
    parts: dict[Cid, tuple[PartialFile, FilePlan]] = {part.cid: (part, file) for part, file in items}
    with ExitStack() as held:
        for cid in sorted(parts, key=bytes):  # in one order, as another batch may share some of them
            held.enter_context(parts[cid][0].ending())
        ready = [part for part, file in parts.values() if part.prepare(file)]
        if not ready:
            return []
        _sync(ready)
        owner = ready[0].owner
        incoming = [part.incoming(parts[part.cid][1]) for part in ready]
        owner.blobs.admit(incoming, landed=partial(_release, ready))
        return [leaf for part in ready for leaf in part.became_blob()]


def _release(parts: Sequence[PartialFile]) -> None:
    for part in parts:
        part.drop_hold()


def _sync(parts: Sequence[PartialFile]) -> None:
    """All of them, whatever becomes of each; then raises the first failure."""
    if len(parts) == 1:
        parts[0].make_durable()
        return
    with ThreadPoolExecutor(min(SYNCS_AT_ONCE, len(parts)), thread_name_prefix="sync") as threads:
        syncs = [threads.submit(part.make_durable) for part in parts]
    for sync in syncs:
        sync.result()
