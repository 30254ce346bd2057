"""One file of somebody else's folder into the store by itself: copied or reflinked, hashed on the way, never linked.

What is linked would change when its owner writes to it; a copy in ``partial/`` is ours alone, and goes when the process
dies before it is a blob.
"""

from __future__ import annotations

import os
import secrets

from ipfs_accelerate_node.content.build import file_dag
from ipfs_accelerate_node.content.plan import FilePlan
from ipfs_accelerate_node.errors import IntegrityError, NotFound
from ipfs_accelerate_node.store import disk
from ipfs_accelerate_node.store.blobs import Incoming
from ipfs_accelerate_node.store.hashing import HashedFile, Hasher
from ipfs_accelerate_node.store.partials import INGEST_PREFIX
from ipfs_accelerate_node.store.quota import Reservation
from ipfs_accelerate_node.store.store import Store
from ipfs_accelerate_node.store.types import StoredFile


def copy_in(store: Store, source: int, oid: str, origin: str, reservation: Reservation) -> StoredFile:
    """source: a descriptor of a plain file, at any position. oid: what its bytes must have, sha256 (64 hex digits) or
    git's blob sha1 (40). origin: for the error. reservation: holds its size. Blocks.

    Raises IntegrityError (then nothing is stored), BadRequest (code source_changed), StorageError.
    """
    name = f"{INGEST_PREFIX}{secrets.token_hex(8)}"
    folder = store.layout.partial
    with disk.storing(f"cannot copy {origin}"):
        target = disk.create(name, dir_fd=folder)
        try:
            try:
                hashed = _copied(source, target)
                _check(hashed, oid, origin)
                os.fchmod(target, 0o400)
                os.fsync(target)
            finally:
                os.close(target)
            built = file_dag(hashed.leaves)
            plan = FilePlan("", built.cid, built.size, built.leaves)
            incoming = Incoming(plan, hashed.hashes, name, folder)
            store.blobs.admit([incoming], landed=lambda: reservation.spend(built.size))
        finally:
            disk.unlink_if_there(name, dir_fd=folder)
    stored = store.file(built.cid)
    if stored is None:
        raise NotFound(f"{built.cid} has just left the store", cid=str(built.cid))
    return stored


def _copied(source: int, target: int) -> HashedFile:
    size = os.fstat(source).st_size
    with Hasher() as hasher:
        if disk.clone(target, source):
            return hasher.hash(target, size)
        return hasher.hash(source, size, lambda part, offset: disk.write_all(target, part, offset))


def _check(hashed: HashedFile, oid: str, origin: str) -> None:
    found = hashed.hashes.sha256 if len(oid) == 64 else hashed.hashes.git_sha1
    if found.hex() != oid:
        raise IntegrityError(expected=oid, actual=found.hex() or f"{hashed.size} bytes", origin=origin)
