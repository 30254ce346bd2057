"""One file into the store by itself, before the model that it belongs to is known.

It counts as a file of no model: kept until room is needed or `gc`, unless a commit takes it into a model first.
"""

from __future__ import annotations

import os
from pathlib import Path

from ipfs_accelerate_node.content.build import BuiltFile, file_dag
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.plan import FilePlan
from ipfs_accelerate_node.errors import NotFound
from ipfs_accelerate_node.store import disk
from ipfs_accelerate_node.store.blobs import Incoming
from ipfs_accelerate_node.store.hashing import HashedFile, Hasher
from ipfs_accelerate_node.store.quota import Reservation
from ipfs_accelerate_node.store.store import Store
from ipfs_accelerate_node.store.types import StoredFile


def take_over(store: Store, path: Path, reservation: Reservation) -> StoredFile:
    """A file on the store's device that is whole and synced: hashed, then moved in. reservation: holds its size.

    Raises BadRequest (code source_changed), StorageError. Blocks.
    """
    with disk.storing(f"cannot store {path.name}"):
        folder = disk.open_directory(path.parent)
        try:
            fd = disk.open_read(path.name, dir_fd=folder)
            try:
                hashed = _hashed(fd)
                os.fchmod(fd, 0o400)
                os.fsync(fd)
            finally:
                os.close(fd)
            file = file_dag(hashed.leaves)
            incoming = Incoming(_plan(file), hashed.hashes, path.name, folder)
            store.blobs.admit([incoming], landed=lambda: reservation.spend(file.size))
        finally:
            os.close(folder)
    return _found(store, file.cid)


def empty(store: Store, folder: Path) -> StoredFile:
    """The file without a byte, which nobody need send. folder: of the caller alone, on the store's device. Blocks."""
    with disk.storing("cannot store an empty file"):
        path = folder / "empty"
        path.unlink(missing_ok=True)
        path.touch(mode=0o600)
    with store.reserve(0) as reservation:
        return take_over(store, path, reservation)


def in_profile(store: Store, cid: Cid) -> BuiltFile:
    """A stored file as the import profile builds it: the same CID mostly. Where it was imported with other settings it
    is hashed again, and is in the store under both. Raises NotFound. Blocks."""
    leaves = store.leaves(cid)
    try:
        built = file_dag(leaves)
    except ValueError:  # leaves that the profile never makes
        built = None
    if built is not None and built.cid.canonical == cid.canonical:
        return built
    name = str(_found(store, cid).cid.canonical)
    with disk.storing(f"cannot read {name}"):
        fd = store.blobs.open(cid)
        try:
            hashed = _hashed(fd)
        finally:
            os.close(fd)
        built = file_dag(hashed.leaves)
        store.blobs.admit([Incoming(_plan(built), hashed.hashes, name, store.layout.blobs, keep=True)])
    return built


def _hashed(fd: int) -> HashedFile:
    with Hasher() as hasher:
        return hasher.hash(fd, os.fstat(fd).st_size)


def _plan(file: BuiltFile) -> FilePlan:
    return FilePlan("", file.cid, file.size, file.leaves)


def _found(store: Store, cid: Cid) -> StoredFile:
    found = store.file(cid)
    if found is None:
        raise NotFound(f"{cid} is not in the store any more", cid=str(cid))
    return found
