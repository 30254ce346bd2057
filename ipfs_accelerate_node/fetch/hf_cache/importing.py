"""`import-hf-cache`: what lies in a user's Hugging Face cache becomes models of the store, without a download.

Files are copied, sharing disk blocks where the file system can, and never linked: the client leaves its blobs writable,
and making them read-only would change what is not ours. Each is hashed on the way and must have the oid that the
commit's tree gives it, which must be its blob's name. The tree is the Hub's own answer where the Hub can be asked, else
the one that was kept here, else the one that the client noted. A commit becomes a model only if all of its files are
there; it is private unless the Hub says that everybody may have it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ipfs_accelerate_node.content.build import tree_dag
from ipfs_accelerate_node.content.names import check_tree
from ipfs_accelerate_node.content.reference import DEFAULT_REVISION, HubRef, parse_reference
from ipfs_accelerate_node.errors import (
    AuthRequired,
    BadRequest,
    IntegrityError,
    NodeError,
    NotFound,
    SourceUnavailable,
    UnsafeContent,
)
from ipfs_accelerate_node.fetch.hf_cache.folder import Folder
from ipfs_accelerate_node.fetch.hf_cache.found import Found, Unreadable, blob_name, look
from ipfs_accelerate_node.fetch.hub_nearby import hub_provenance
from ipfs_accelerate_node.fetch.hub_shelf import HubShelf, KeptCommit
from ipfs_accelerate_node.fetch.threads import in_thread
from ipfs_accelerate_node.sources.hub import HubSource
from ipfs_accelerate_node.sources.hub_answers import HubFile
from ipfs_accelerate_node.store import Reservation, Store, StoredFile, StoredModel, disk
from ipfs_accelerate_node.store.copying import copy_in
from ipfs_accelerate_node.store.single import in_profile
from ipfs_accelerate_node.store.types import SourceShare

log = logging.getLogger(__name__)

SOURCE = "huggingface cache"
Outcome = Literal["stored", "here", "incomplete", "refused"]


@dataclass(frozen=True, slots=True)
class Refusal:
    """path: of a file, "" where it is about the whole. code: hash_mismatch, unsafe_file, wrong_blob, …"""

    path: str
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of one snapshot. files, size_bytes: of the model; copied_bytes: what was taken out of the cache, the
    rest was in the store already. public: the Hub says that everybody may have it. absent: files that the cache lacks.
    """

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


class Importing:
    """hub: the configured upstream with the user's token, to be entered. landed: told of each model, on the loop."""

    def __init__(
        self,
        store: Store,
        shelf: HubShelf,
        hub: Callable[[], HubSource],
        landed: Callable[[StoredModel], None],
    ) -> None:
        self._store = store
        self._shelf = shelf
        self._hub = hub
        self._landed = landed

    async def run(self, cache_dir: Path, ref: str | None = None) -> list[Imported]:
        """ref: a repository of the Hub, all of whose snapshots are meant, or one of them (``@revision``); None is all.

        Raises NotFound (no such folder, or nothing of ref in it), BadRequest, Forbidden, UnsafeContent, StorageError.
        """
        wanted = _wanted(ref)
        found = [item for item in await in_thread(_listed, cache_dir) if _is_wanted(item, wanted)]
        if wanted is not None and not found:
            raise NotFound(f"there is nothing of {ref} in {cache_dir}", code="model_not_found")
        done: list[Imported] = []
        async with self._hub() as hub:
            asker = _Asker(hub)
            for item in found:
                done.append(await self._one(cache_dir, item, asker))
        return done

    async def _one(self, cache_dir: Path, item: Found | Unreadable, asker: _Asker) -> Imported:
        if isinstance(item, Unreadable):
            return Imported(item.folder, "", "refused", refused=(Refusal("", item.code, item.reason),))
        done = Imported(str(item.repo), item.commit, "incomplete")
        kept = await self._known(item, asker)
        if kept is None:
            reason = "which files the commit has is not known: the cache does not say, and the Hub cannot be asked"
            return replace(done, refused=(Refusal("", "no_tree", reason),))
        shown = kept.shown()
        if absent := tuple(file.path for file in shown if file.path not in item.paths):
            return replace(done, absent=absent)
        try:
            model, done = await asyncio.to_thread(self._take, cache_dir, item, kept, done)
        except NodeError as exc:
            return replace(done, outcome="refused", refused=(Refusal("", exc.code, str(exc)),))
        if model is not None:
            self._landed(model)
        log.info("hf_cache.import repo=%s commit=%s outcome=%s", item.repo, item.commit, done.outcome)
        return done

    async def _known(self, item: Found, asker: _Asker) -> KeptCommit | None:
        """The commit's tree; restricted unless the Hub said otherwise, now or when it was kept."""
        answer = await asker.ask(item)
        if answer is not None:
            return answer
        kept = await in_thread(self._shelf.commit, item.repo, item.commit)
        if kept is not None and not kept.claimed:
            return replace(kept, restricted=True) if asker.denied else kept
        if item.tree is None:
            return None
        return KeptCommit(item.repo.kind, item.repo.id, item.commit, True, {}, item.tree, SOURCE)

    def _take(
        self, cache_dir: Path, item: Found, kept: KeptCommit, done: Imported
    ) -> tuple[StoredModel | None, Imported]:
        """Every file into the store, then the model. Raises QuotaExceeded, StorageError, UnsafeContent, Conflict."""
        files = kept.shown()
        check_tree(file.path for file in files)
        here = {file.path: self._stored(file) for file in files}
        lacking = [file for file in files if here[file.path] is None]
        with self._store.reserve(sum({file.oid: file.size for file in lacking}.values())) as room:
            with Folder.open(cache_dir) as cache, disk.storing(f"cannot read {cache_dir}"):
                refused = [r for file in lacking if (r := self._copy(cache, item, file, room)) is not None]
            if refused:
                return None, replace(done, outcome="refused", refused=tuple(refused))
            found = {file.path: self._stored(file) for file in files}
            model = self._commit(kept, {path: file for path, file in found.items() if file is not None}, done, lacking)
        self._note(item, kept, model)
        return model, replace(
            done,
            outcome="stored" if lacking else "here",
            root=str(model.root),
            files=model.file_count,
            size_bytes=model.size_bytes,
            copied_bytes=sum({file.oid: file.size for file in lacking}.values()),
            public=model.public,
        )

    def _stored(self, file: HubFile) -> StoredFile | None:
        return self._store.of_oid(bytes.fromhex(file.oid), file.size)

    def _copy(self, cache: Folder, item: Found, file: HubFile, room: Reservation) -> Refusal | None:
        """Why a file is refused, None if it is in the store now."""
        if self._stored(file) is not None:  # under another path of the same commit
            return None
        place = item.place(file.path)
        try:
            named = blob_name(cache, place)
            if named is not None and named != file.oid:
                reason = f"its blob is {named}, the commit has {file.oid} there"
                return Refusal(file.path, "wrong_blob", reason)
            fd = cache.open_file(place)
            try:
                if os.fstat(fd).st_size != file.size:
                    reason = f"it has {os.fstat(fd).st_size} bytes, the commit has {file.size}"
                    return Refusal(file.path, "hash_mismatch", reason)
                copy_in(self._store, fd, file.oid, f"{cache.path / place}", room)
            finally:
                os.close(fd)
        except (IntegrityError, UnsafeContent, NotFound, BadRequest) as exc:
            return Refusal(file.path, exc.code, str(exc))
        return None

    def _commit(
        self, kept: KeptCommit, files: dict[str, StoredFile], done: Imported, copied: list[HubFile]
    ) -> StoredModel:
        built = tree_dag({path: in_profile(self._store, file.cid) for path, file in files.items()})
        share = SourceShare(SOURCE, "local", sum(file.size for file in copied), len(copied), 0)
        return self._store.commit(
            built.plan,
            built.nodes,
            public=not kept.restricted,
            provenance=hub_provenance(str(kept.of_repo), kept.commit, share),
        )

    def _note(self, item: Found, kept: KeptCommit, model: StoredModel) -> None:
        """On the shelf: the commit, its CIDs, and names that nothing was known of."""
        self._shelf.keep(kept)
        for ref in item.refs:
            if self._shelf.ref(item.repo, ref) is None:
                self._shelf.keep(kept, ref)
        plan = self._store.plan(model.root)
        cids = {} if plan is None else {file.path: str(file.cid) for file in plan.files}
        self._shelf.note_cids(item.repo, kept.commit, cids, str(model.root))


class _Asker:
    """Asks the Hub about one commit after the other, until it does not answer. denied: it did not let this user have
    the one that was asked for last."""

    def __init__(self, hub: HubSource) -> None:
        self._hub = hub
        self._reachable = True
        self.denied = False

    async def ask(self, item: Found) -> KeptCommit | None:
        self.denied = False
        if not self._reachable:
            return None
        try:
            return KeptCommit.of(item.repo, await self._hub.commit(item.repo, item.commit), self._hub.name)
        except (AuthRequired, NotFound) as exc:
            self.denied = True
            log.info("hf_cache.denied repo=%s code=%s", item.repo, exc.code)
        except SourceUnavailable as exc:
            self._reachable = False
            log.info("hf_cache.hub_unreachable code=%s", exc.code)
        return None


def _listed(cache_dir: Path) -> list[Found | Unreadable]:
    return list(look(cache_dir))


def _wanted(ref: str | None) -> HubRef | None:
    if ref is None:
        return None
    reference = parse_reference(ref)
    if not isinstance(reference, HubRef):
        raise BadRequest(f"{ref} is no repository of the Hub: hf:org/name", code="invalid_reference", param="ref")
    return reference


def _is_wanted(item: Found | Unreadable, wanted: HubRef | None) -> bool:
    if wanted is None or isinstance(item, Unreadable):
        return wanted is None
    if str(item.repo) != wanted.named:
        return False
    return wanted.revision in (DEFAULT_REVISION, item.commit, *item.refs)
