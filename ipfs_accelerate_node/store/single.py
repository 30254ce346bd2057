"""One file into the store by itself, before the model that it belongs to is known.

It counts as a file of no model: kept until room is needed or `gc`, unless a commit takes it into a model first.
"""

from __future__ import annotations

import hashlib
import os

from ipfs_accelerate_node.content.build import BuiltFile, file_dag
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.plan import FilePlan
from ipfs_accelerate_node.errors import NotFound
from ipfs_accelerate_node.store import disk
from ipfs_accelerate_node.store.blobs import Incoming
from ipfs_accelerate_node.store.hashing import HashedFile, Hasher, leaves_of
from ipfs_accelerate_node.store.store import Store
from ipfs_accelerate_node.store.types import StoredFile
from ipfs_accelerate_node.store.unnamed import store_all

EMPTY_OID = hashlib.sha256(b"").hexdigest()


def empty(store: Store) -> StoredFile:
    """The file without a byte, which nobody need send. Blocks. Raises Conflict while another does the same."""
    stored = store.of_oid(bytes.fromhex(EMPTY_OID), 0)
    if stored is not None:
        return stored
    with store.reserve(0) as reservation, store.unnamed.open(EMPTY_OID, 0, reservation) as file:
        store_all([file])
    return _found(store, file_dag(leaves_of([], 0)).cid)


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
