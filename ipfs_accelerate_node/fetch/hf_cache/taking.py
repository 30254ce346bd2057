"""One snapshot of a user's cache into the store: every file that is there, by its oid, then the model that they make.

All of a commit's files are its model. Some of them are kept one by one, noted as files of that commit, so that a pin
need not fetch them again; only where the CIDs of all the others are known from before are they an incomplete model, of
the commit's own root. A root is never made of some of the files.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ipfs_accelerate_node.content.build import tree_dag
from ipfs_accelerate_node.content.names import check_tree
from ipfs_accelerate_node.errors import BadRequest, IntegrityError, NodeError, NotFound, UnsafeContent
from ipfs_accelerate_node.fetch.hf_cache.folder import Folder
from ipfs_accelerate_node.fetch.hf_cache.found import Found, blob_name
from ipfs_accelerate_node.fetch.hub_gathering import same_bytes
from ipfs_accelerate_node.fetch.hub_hidden import MAX_BYTES
from ipfs_accelerate_node.fetch.hub_nearby import hub_provenance, stamped
from ipfs_accelerate_node.fetch.hub_selection import commit_tree, supersede
from ipfs_accelerate_node.fetch.hub_shelf import CACHE, HubShelf, KeptCommit
from ipfs_accelerate_node.sources.hub_answers import HubFile
from ipfs_accelerate_node.sources.hub_names import is_hidden
from ipfs_accelerate_node.store import Reservation, Store, StoredFile, StoredModel, disk
from ipfs_accelerate_node.store.copying import copy_in
from ipfs_accelerate_node.store.single import in_profile
from ipfs_accelerate_node.store.types import SourceShare

log = logging.getLogger(__name__)

Outcome = Literal["stored", "here", "incomplete", "refused"]
_REFUSED = (IntegrityError, UnsafeContent, NotFound, BadRequest)


@dataclass(frozen=True, slots=True)
class Refusal:
    """path: of a file, "" where it is about the whole. code: hash_mismatch, unsafe_file, wrong_blob, …"""

    path: str
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of one snapshot. root: of its model; of an incomplete one only where the CIDs of all its files are
    known. files, size_bytes: that are in the store now; copied_bytes: what was taken out of the cache for that, the
    rest was there already. public: the Hub says that everybody may have it. absent: files that neither the cache has
    nor the store."""

    repo: str
    commit: str
    outcome: Outcome
    root: str | None = None
    files: int = 0
    size_bytes: int = 0
    copied_bytes: int = 0
    public: bool = False
    absent: tuple[str, ...] = ()
    refused: tuple[Refusal, ...] = ()


class Taking:
    """Blocks; worker threads only."""

    def __init__(self, store: Store, shelf: HubShelf) -> None:
        self._store = store
        self._shelf = shelf

    def take(self, cache_dir: Path, item: Found, kept: KeptCommit) -> tuple[StoredModel | None, Imported]:
        """kept: what is known of the commit. Raises QuotaExceeded, StorageError, UnsafeContent, Conflict."""
        files = kept.shown()
        check_tree(file.path for file in files)
        found = self._here(item, kept, files)
        lacking = {file.oid: file for file in files if file.path in item.paths and file.path not in found}
        with self._store.reserve(sum(file.size for file in lacking.values())) as room:
            with Folder.open(cache_dir) as cache, disk.storing(f"cannot read {cache_dir}"):
                refused, copied_bytes = self._copy_all(cache, item, files, found, room)
                self._see_hidden(cache, item, kept)
            wrong = {why.path for why in refused}
            absent = tuple(file.path for file in files if file.path not in found and file.path not in wrong)
            self._note(item, kept, found)
            model = None
            if not refused:
                share = SourceShare(CACHE, "local", copied_bytes, len(lacking), 0)
                model = self._model(kept, found, share, whole=not absent)
        whole: Outcome = "stored" if copied_bytes or lacking else "here"
        return model, Imported(
            str(item.repo),
            item.commit,
            "refused" if refused else "incomplete" if absent else whole,
            None if model is None else str(model.root),
            len(found),
            sum(file.size for file in found.values()),
            copied_bytes,
            model is not None and model.public,
            absent,
            tuple(refused),
        )

    # private

    def _here(self, item: Found, kept: KeptCommit, files: list[HubFile]) -> dict[str, StoredFile]:
        """What the store has, by path. For a commit that everybody may have only what everybody may have, or what was
        stored as this very commit's file."""
        known = self._shelf.commit(item.repo, kept.commit)
        noted = known.cids if known is not None and known.same_files(kept) and not known.claimed else {}
        stored = ((f.path, same_bytes(self._store, kept.snapshot, f, noted.get(f.path))) for f in files)
        return {path: file for path, file in stored if file is not None}

    def _copy_all(
        self, cache: Folder, item: Found, files: list[HubFile], found: dict[str, StoredFile], room: Reservation
    ) -> tuple[list[Refusal], int]:
        """Adds to found. Why the others are refused, and the bytes that were copied."""
        copied: dict[str, StoredFile] = {}
        refused = []
        for file in files:
            if file.path in found or (file.path not in item.paths and file.oid not in copied):
                continue
            try:
                if file.oid not in copied:  # else the same bytes are at another path of the commit
                    copied[file.oid] = self._copy(cache, item, file, room)
                found[file.path] = copied[file.oid]
            except _REFUSED as exc:
                refused.append(Refusal(file.path, exc.code, str(exc)))
        return refused, sum(file.size for file in copied.values())

    def _copy(self, cache: Folder, item: Found, file: HubFile, room: Reservation) -> StoredFile:
        """Raises one of `_REFUSED`, with what is wrong about the file, or StorageError."""
        place = item.place(file.path)
        named = blob_name(cache, place)
        if named is not None and named != file.oid:
            raise BadRequest(f"its blob is {named}, the commit has {file.oid} there", code="wrong_blob")
        fd = cache.open_file(place)
        try:
            if (size := os.fstat(fd).st_size) != file.size:
                raise BadRequest(f"it has {size} bytes, the commit has {file.size}", code="hash_mismatch")
            return copy_in(self._store, fd, file.oid, f"{cache.path / place}", room)
        finally:
            os.close(fd)

    def _see_hidden(self, cache: Folder, item: Found, kept: KeptCommit) -> None:
        for entry in kept.entries:
            if entry.folder or not is_hidden(entry.path) or entry.path not in item.paths or entry.size > MAX_BYTES:
                continue
            try:
                fd = cache.open_file(item.place(entry.path))
                try:
                    data = disk.read_exactly(fd, entry.size, 0)
                finally:
                    os.close(fd)
            except (OSError, NodeError) as exc:
                log.info("hf_cache.hidden_unread path=%s reason=%s", ascii(entry.path[:200]), exc)
            else:
                self._shelf.hidden.keep(entry.file, data)

    def _note(self, item: Found, kept: KeptCommit, found: Mapping[str, StoredFile]) -> None:
        """On the shelf: the commit, its CIDs, and names that nothing was known of."""
        self._shelf.keep(kept)
        for ref in item.refs:
            if self._shelf.ref(item.repo, ref) is None:
                self._shelf.keep(kept, ref)
        self._shelf.note_cids(item.repo, kept.commit, {path: str(file.cid) for path, file in found.items()})

    def _model(
        self, kept: KeptCommit, found: Mapping[str, StoredFile], share: SourceShare, *, whole: bool
    ) -> StoredModel | None:
        """None for some files of a commit whose root is not known."""
        built = {path: in_profile(self._store, file.cid) for path, file in found.items()}
        if whole:
            tree = tree_dag(built)
        else:
            known = self._shelf.commit(kept.of_repo, kept.commit)
            part = None if known is None or not found else commit_tree(self._store, known, built)
            if part is None:
                return None
            tree = part
        claimed_by = None if kept.confirmed else kept.source
        model = self._store.commit(
            tree.plan,
            tree.nodes,
            public=not kept.restricted,
            provenance=hub_provenance(str(kept.of_repo), kept.commit, share, claimed_by=claimed_by),
            paths=None if whole else frozenset(found),
        )
        if whole:
            cids = {file.path: str(file.cid) for file in tree.plan.files}
            self._shelf.note_cids(kept.of_repo, kept.commit, cids, str(model.root))
            supersede(self._store, str(kept.of_repo), kept.commit, model.root)
        return stamped(self._store, model, kept) if kept.confirmed else model


def unread(item: Found, reason: str, code: str, outcome: Outcome) -> Imported:
    """Of a snapshot nothing of which was taken."""
    return replace(Imported(str(item.repo), item.commit, outcome), refused=(Refusal("", code, reason),))
