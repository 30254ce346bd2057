"""`Store`: verified model files on disk, the one door to all that this package keeps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Self

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.plan import FilePlan, Leaf, ModelPlan
from ipfs_accelerate_node.errors import BadRequest, NodeError, NotFound
from ipfs_accelerate_node.store import disk, reading
from ipfs_accelerate_node.store.digests import Digests
from ipfs_accelerate_node.store.eviction import Eviction
from ipfs_accelerate_node.store.failpoints import Failpoints
from ipfs_accelerate_node.store.index import Index
from ipfs_accelerate_node.store.layout import Layout, OwnerLock
from ipfs_accelerate_node.store.models import Departure, Models
from ipfs_accelerate_node.store.partial import PartialFile
from ipfs_accelerate_node.store.partials import Partials
from ipfs_accelerate_node.store.quota import Ledger, Reservation
from ipfs_accelerate_node.store.ranges import Ranges
from ipfs_accelerate_node.store.reading import Scope
from ipfs_accelerate_node.store.rebuild import Reconciliation, open_index
from ipfs_accelerate_node.store.record import recorded
from ipfs_accelerate_node.store.scrub import Scrub
from ipfs_accelerate_node.store.sidecar import Hashes, Label
from ipfs_accelerate_node.store.source_records import SourceRecords
from ipfs_accelerate_node.store.types import (
    GcReport,
    LeafPlace,
    Provenance,
    StoredFile,
    StoredModel,
    VerifyReport,
)
from ipfs_accelerate_node.store.underway import Underway
from ipfs_accelerate_node.store.unnameds import Unnameds

MAX_NAME_LETTERS = 200


class Store:
    """Blocking and thread-safe. CIDs may be given in any spelling; those that come back are version 1.

    Every method may raise StorageError (the disk refused) or Unavailable (out of file descriptors).
    """

    def __init__(self, layout: Layout, owner: OwnerLock, index: Index, quota_bytes: int | None, fail: Failpoints):
        self.root = layout.root
        self.layout = layout
        self.failpoints = fail
        self._owner = owner
        self._index = index
        self._lock = threading.RLock()
        self._ledger = Ledger(
            quota_bytes=quota_bytes, disk_fd=layout.root_fd, lock=self._lock, stored_bytes=index.stored_bytes
        )
        self._models = Models(layout, index, self._lock, fail)
        self.blobs = self._models.blobs
        self._partials = Partials(layout, self.blobs, self._ledger, fail, self._models.quarantine)
        self.unnamed = Unnameds(layout, self.blobs, self._ledger, fail)
        self.source_records = SourceRecords(index)
        self.hashing = Digests(index, self._models, self._lock)
        self.blobs.may_equal, self.blobs.hash_alike = self.hashing.distinguish, self.hashing.hash_alike
        self.blobs.on_unhashed = lambda: self.hashing.on_unhashed()
        self.underway = Underway(index, self._models, self._partials)
        eviction = Eviction(index, self._models, self._partials, self.unnamed)
        self._eviction = eviction
        self.evicted = eviction.evicted
        self._ledger.evictable, self._ledger.evict = eviction.evictable_bytes, eviction.evict
        self.blobs.guarded = self._ledger.guards
        self._ledger.all_released = self.blobs.forget_touches

    @classmethod
    def open(cls, root: Path, *, quota_bytes: int | None = None, failpoints: str = "") -> Self:
        """Owns the cache at root until `close`; makes it if it is not there, and puts right what a crash left.

        quota_bytes: None is all that the disk has, less a reserve. failpoints: as `Failpoints`, for tests.
        Raises AlreadyRunning, StorageError.
        """
        layout = Layout.open(root)
        owner = OwnerLock(layout.root)
        index = None
        try:
            owner.acquire()
            index = open_index(layout)
            store = cls(layout, owner, index, quota_bytes, Failpoints(failpoints))
            Reconciliation(layout, index, store._models, store._partials).run()
            with disk.storing("cannot look through unnamed files"):
                store.unnamed.scan()
        except NodeError:
            if index is not None:
                index.close()
            owner.release()
            layout.close()
            raise
        return store

    def close(self) -> None:
        """Partial files stay for the next time. May be called again."""
        with self._lock:
            if self.layout.root_fd < 0:
                return
            self._partials.close()
            self.unnamed.close()
            self._index.close()
            self.layout.close()
            self._owner.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # models

    def models(self) -> list[StoredModel]:
        """By last use, latest last."""
        return self._models.shelf.models()

    def model(self, root: Cid) -> StoredModel | None:
        return self._models.shelf.model(root)

    def damaged(self) -> list[Label]:
        """Models that lost a file to quarantine: to be fetched again; a commit gives them names and pin back."""
        return self._models.damaged()

    def named(self, name: str) -> Cid | None:
        return self._models.shelf.named(name)

    def set_name(self, root: Cid, name: str) -> None:
        """A further name. Raises NotFound, Conflict if it means another root, BadRequest if it cannot be one."""
        _check_model_name(name)
        self._models.set_name(root, name)

    def drop_name(self, name: str) -> None:
        """Raises NotFound."""
        self._models.drop_name(name)

    def pin(self, root: Cid) -> None:
        """Raises NotFound."""
        self._models.relabel(root, pinned=True)

    def unpin(self, root: Cid) -> None:
        """Raises NotFound."""
        self._models.relabel(root, pinned=False)

    def set_public(self, root: Cid, public: bool) -> None:
        """Whether strangers are served its blocks. Raises NotFound."""
        self._models.relabel(root, public=public)

    def share(self, root: Cid, at: str | None) -> StoredModel:
        """The user's own word that strangers are served it, given at that time (ISO 8601, UTC); None: that they are
        not, nor told of it. Part of where it came from. Raises NotFound."""
        with self._lock:
            came = replace(self._models.get(root).provenance, shared_at=at)
            announce = None if at else False
            return self._models.relabel(root, public=at is not None, announce=announce, provenance=came)

    def set_announce(self, root: Cid, announce: bool) -> None:
        """Whether others may be told that it is here. Raises NotFound."""
        self._models.relabel(root, announce=announce)

    def set_provenance(self, root: Cid, provenance: Provenance) -> StoredModel:
        """What was found out later about where a model comes from. Raises NotFound."""
        return self._models.relabel(root, provenance=provenance)

    def on_departure(self, call: Departure) -> None:
        """call: for each model that is removed, evicted or quarantined, in the removing thread, before its files go."""
        self._models.on_departure = call

    def use(self, root: Cid) -> AbstractContextManager[StoredModel]:
        """While it is entered, the model is not removed; counts as a use. Raises NotFound."""
        return self._models.use(root)

    def remove(self, root: Cid, *, force: bool = False) -> int:
        """Returns the bytes freed. force: also if pinned. Raises NotFound, Conflict if it is pinned or in use."""
        return self._models.remove(root, force=force)

    def loose(self) -> list[tuple[StoredFile, bool]]:
        """Files of no model, the longest unused first, and whether a transfer under way counts on it, so that it stays
        whatever room is needed."""
        with self._lock:
            rows = [row for _, row in self._index.loose()]
            return [(self.blobs.stored(row, public=False), self.blobs.is_guarded(row.cid)) for row in rows]

    def gc(self) -> GcReport:
        """Removes every model that is neither pinned nor in use, and what failed transfers left behind."""
        with self._lock:
            return self._eviction.collect()

    def plan(self, root: Cid) -> ModelPlan | None:
        """Every file and leaf of a stored model, also files that an incomplete one lacks; reads its whole plan."""
        return self._models.read_plan(root).plan if self._models.shelf.model(root) is not None else None

    def absent(self, root: Cid) -> tuple[FilePlan, ...]:
        """The files that an incomplete model lacks. Raises NotFound if the model itself is not here."""
        model = self._models.get(root)
        return () if model.complete else tuple(self._models.read_plan(root).absent)

    def nodes(self, root: Cid) -> list[tuple[Cid, bytes]]:
        """Node blocks of a stored model. Raises NotFound."""
        return self._models.read_plan(self._models.get(root).root).nodes

    def commit(
        self,
        plan: ModelPlan,
        nodes: Iterable[tuple[Cid, bytes]],
        *,
        name: str | None = None,
        pinned: bool = True,
        public: bool = True,
        announce: bool = False,
        provenance: Provenance,
        paths: Collection[str] | None = None,
    ) -> StoredModel:
        """Makes a model of files that are blobs already; durable before it returns.

        paths: only the files there need to be blobs, and belong to the model; it is then incomplete, until later
        commits have added the others. One that is here keeps its provenance and files, and gains name, pin, visibility
        and these files. Raises NotFound if a file or the root's own block is missing or a path is not the plan's,
        IntegrityError, UnsafeContent, Conflict if the name means another root.
        """
        if name is not None:
            _check_model_name(name)
        nodes = list(nodes)
        names = () if name is None else (name,)
        label = Label(plan.root, names, pinned, public, provenance, announce=announce)
        with self._lock:
            self.blobs.touch(file.cid for file in plan.files if paths is None or file.path in paths)
            with self._ledger.reserve(sum(len(block) for _, block in nodes)):
                return self._models.commit(plan, nodes, label, paths)

    def verify(self, root: Cid | None = None, progress: Callable[[int], None] | None = None) -> VerifyReport:
        """Hashes every byte of one model, or of all and of files outside any; quarantines and names what is corrupt.

        progress: called with the bytes checked so far. Raises NotFound.
        """
        return Scrub(self.layout, self._index, self._models, self.hashing).run(root, progress)

    # room

    @property
    def quota_bytes(self) -> int | None:
        return self._ledger.quota_bytes

    def used_bytes(self) -> int:
        """Stored, reserved and partial together; never more than the quota."""
        return self._ledger.used_bytes()

    def room_bytes(self) -> int:
        """What may be written without evicting anything."""
        return max(0, self._ledger.room_bytes())

    def evictable_bytes(self) -> int:
        """What a reservation may free beyond `room_bytes`."""
        with self._lock:
            return self._eviction.evictable_bytes()

    def relieve(self, size_bytes: int) -> bool:
        """The disk is full in spite of a reservation: evicts once more. False if nothing could go."""
        with self._lock:
            return self._ledger.evict(size_bytes) > 0

    def reserve(self, size_bytes: int) -> Reservation:
        """Room for what is about to be written; evicts unpinned models if need be. Raises QuotaExceeded."""
        return self._ledger.reserve(size_bytes)

    # bringing files

    def partial(self, cid: Cid, size: int, *, reservation: Reservation | None = None) -> PartialFile:
        """The file of that CID as far as it was brought, now or in an earlier run; the same object while it is open.

        Its size comes out of the reservation (or any that is open), else out of free room. Raises QuotaExceeded.
        """
        return self._partials.open(cid, size, reservation)

    def brought(self, cid: Cid, size: int) -> Ranges:
        """Bytes of a file that is not whole yet, which an earlier or present transfer has made durable; changes
        nothing."""
        with disk.storing(f"cannot read the record of {cid}"):
            return recorded(self.layout, cid, size)

    def keep_node(self, cid: Cid, block: bytes) -> None:
        """A node block of a model that is not complete yet; survives a restart.

        Raises IntegrityError, QuotaExceeded.
        """
        cid.check(block, "a node block")
        with self._lock:
            if self._index.node(cid) is None:
                with self._ledger.reserve(len(block)):
                    self._index.add_node(cid, block)

    # blocks and files

    def block(self, cid: Cid, *, public_only: bool = False) -> bytes | None:
        """A node block or leaf, hashed before it is returned; None if it is not here.

        public_only: only if a public model holds it. A file whose bytes turn out wrong is quarantined.
        """
        return reading.block(self._index, self._models, cid, public_only=public_only)

    def partial_block(self, cid: Cid) -> bytes | None:
        """A leaf that is in a file still being brought, hashed."""
        return self._partials.block(cid)

    def leaf_at(self, cid: Cid) -> LeafPlace | None:
        return self.blobs.place(cid)

    def has(self, cid: Cid, *, public_only: bool = False) -> bool:
        """Whether `block` would find it; reads no file."""
        return reading.has(self._index, cid, public_only=public_only)

    def held(self, cids: Iterable[Cid]) -> set[Cid]:
        """Those of them (canonical) that are a file or a node block of a stored model, not merely on disk. Waits for a
        removal that is under way."""
        with self._lock:
            return {cid.canonical for cid in cids if reading.roots(self._index, cid)}

    def file(self, cid: Cid, *, public_only: bool = False) -> StoredFile | None:
        """A whole file by its CID. public_only: only if a public model holds it."""
        return self.blobs.file(cid, public_only=public_only)

    def of_oid(self, oid: bytes, size: int, *, public_only: bool = False) -> StoredFile | None:
        """A whole file by what Hugging Face calls its oid: sha256, or git's blob sha1. public_only: as `file`. Hashes
        files of that size that were not hashed as a whole yet."""
        found = self.blobs.of_oid(oid, size, public_only=public_only)
        if found is None and len(oid) == 32 and self.hashing.of_size(size):
            found = self.blobs.of_oid(oid, size, public_only=public_only)
        return found

    def digests(self, cid: Cid) -> Hashes:
        """sha256 and git's sha1 (empty over 16 MiB) of a whole file; hashes it now if that was left for later. Raises
        NotFound."""
        return self.hashing.of(cid)

    @property
    def transferring(self) -> bool:
        """Whether anybody brings files."""
        return self._ledger.transferring

    def leaves(self, cid: Cid) -> list[Leaf]:
        """Of a whole file, in file order; none if it is not here."""
        return self.blobs.leaves(cid)

    def resolve(self, cid: Cid, path: str = "") -> Cid:
        """What path means below cid, through directories. Raises NotFound, BadContent for what is no directory."""
        if not self.has(cid):
            raise NotFound(f"{cid} is not stored here", cid=str(cid))
        return reading.resolve(self.block, cid, path)

    def blocks(self, cid: Cid, *, scope: Scope = "all") -> Iterator[tuple[Cid, bytes]]:
        """Depth-first, each block once, CIDs as their parent spells them. scope: all; entity (a file whole, a directory
        without what is in it); block. Raises NotFound (code missing_block) at the first one that is not here."""
        return reading.blocks(self.block, cid, scope)


def _check_model_name(name: str) -> None:
    if not name or len(name) > MAX_NAME_LETTERS or not name.isprintable() or name != name.strip():
        raise BadRequest(
            f"a name has 1 to {MAX_NAME_LETTERS} printable letters, got {name[:80]!a}", code="invalid_reference"
        )
