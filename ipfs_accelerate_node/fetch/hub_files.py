"""Files of the Hub one by one, as clients of the endpoint ask for them; all of a commit together are a model.

A file is staged and checked against its oid like those of a whole fetch, then stored by itself. What arrives here is
given to nobody before it is whole and verified.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack

from ipfs_accelerate_node.content.build import CHUNK_BYTES, tree_dag
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import (
    AuthRequired,
    BadContent,
    IntegrityError,
    NodeError,
    NotFound,
    SourceUnavailable,
    UnsafeContent,
)
from ipfs_accelerate_node.fetch.hub_nearby import Nearby, hub_provenance, stamped
from ipfs_accelerate_node.fetch.hub_receive import Receiver, reserved
from ipfs_accelerate_node.fetch.hub_shelf import HubShelf, KeptCommit
from ipfs_accelerate_node.fetch.threads import in_thread
from ipfs_accelerate_node.sources.hub import HubSource
from ipfs_accelerate_node.sources.hub_answers import HubFile, TreeEntry
from ipfs_accelerate_node.sources.hub_names import is_hidden
from ipfs_accelerate_node.sources.hub_snapshot import Traffic
from ipfs_accelerate_node.store import Store, StoredFile, StoredModel
from ipfs_accelerate_node.store.copying import copy_in
from ipfs_accelerate_node.store.single import empty, in_profile

log = logging.getLogger(__name__)

TOGETHER_BYTES = 32 << 20  # of smaller files a peer alone is as good, and the Hub is spared the requests

SourceFor = Callable[[str | None], HubSource]
Landed = Callable[[StoredModel], None]


class HubFiles:
    """source_for: the Hub with a caller's token. nearby: who else may have a file. is_reachable: whether the Hub has
    answered of late. landed: told of each model that became complete, on the loop."""

    def __init__(
        self,
        store: Store,
        shelf: HubShelf,
        receiver: Receiver,
        source_for: SourceFor,
        nearby: Nearby,
        is_reachable: Callable[[], bool],
        landed: Landed,
    ) -> None:
        self._store = store
        self._receiver = receiver
        self._emptying = asyncio.Lock()
        self._shelf = shelf
        self._source_for = source_for
        self._nearby = nearby
        self._is_reachable = is_reachable
        self._landed = landed
        self._lacking: dict[tuple[str, str], str] = {}  # of a commit: a file that was not here when last looked for

    def here(self, kept: KeptCommit, entry: TreeEntry) -> StoredFile | None:
        """The file if it is stored, whoever brought it: found by its oid, so whatever CIDs a map names. Of what only a
        peer claims, public files alone: else it could name any file of ours by its hash and so have it given away.
        Hidden ones that were seen before are taken into the store again. Blocks."""
        stored = self._store.of_oid(bytes.fromhex(entry.file.oid), entry.size, public_only=kept.claimed)
        if stored is None and is_hidden(entry.path) and not kept.claimed:
            return self._hidden(entry.file)
        return stored

    def _hidden(self, file: HubFile) -> StoredFile | None:
        seen = self._shelf.hidden.find(file)
        if seen is None:
            return None
        try:
            with self._store.reserve(file.size) as room, seen.open("rb") as source:
                return copy_in(self._store, source.fileno(), file.oid, file.path, room)
        except (OSError, NodeError) as exc:
            log.info("hub.hidden_not_taken path=%s reason=%s", ascii(file.path[:200]), exc)
            return None

    async def bring(self, kept: KeptCommit, entry: TreeEntry, token: str | None) -> StoredFile:
        """Into the store: by CID from peers and the Hub together where a map leads to it, else from the Hub; when that
        goes away on the way, the rest from whoever has it. Raises as `fetch_hub`."""
        async with self._source_for(token) as hub:
            stored = await self._by_cid(kept, entry, hub)
            if stored is not None:
                return stored
            try:
                return await self._from_hub(kept, entry, hub)
            except AuthRequired:
                raise
            except SourceUnavailable as exc:
                log.info("hub.left repo=%s path=%s code=%s", kept.repo, entry.path, exc.code)
                stored = await self._by_cid(kept, entry, None)
                if stored is None:
                    raise
                return stored

    async def _by_cid(self, kept: KeptCommit, entry: TreeEntry, hub: HubSource | None) -> StoredFile | None:
        """None where no map leads to it, or nobody has it. What comes counts only if it has the Hub's oid (of a claim,
        the oid that it claims): a map that lies is found out here. hub: None where it has failed."""
        if kept.restricted or is_hidden(entry.path):
            return None
        lost = hub is None or not self._is_reachable()
        try:
            claim = await self._nearby.map_of(kept, search=lost, again=hub is None)
            if claim is None or claim.root is None or not (claim is kept or entry.path in claim.cids):
                return None
            helper = None if lost else hub
            if helper is not None and entry.size <= TOGETHER_BYTES:
                try:
                    return await self._mapped(kept, entry, claim, None, everyone=False)
                except SourceUnavailable:
                    if claim is not kept or entry.size <= CHUNK_BYTES:  # nothing is gained by knowing its leaves
                        raise
            return await self._mapped(kept, entry, claim, helper, everyone=lost)
        except (SourceUnavailable, IntegrityError, BadContent, UnsafeContent, NotFound) as exc:
            log.info("hub.not_nearby repo=%s path=%s code=%s", kept.repo, entry.path, exc.code)
            return None

    async def _mapped(
        self, kept: KeptCommit, entry: TreeEntry, claim: KeptCommit, hub: HubSource | None, *, everyone: bool
    ) -> StoredFile | None:
        cid = claim.cids.get(entry.path)
        async with AsyncExitStack() as stack:
            arrival = None
            if cid is not None:
                arrival = await stack.enter_async_context(
                    self._receiver.mapped(entry.file, Cid.parse(cid), is_sure=claim is kept and kept.confirmed)
                )
            fetched = await self._nearby.fetch(
                claim,
                kept.snapshot,
                hub,
                lambda _: None if arrival is None else arrival.stir(),
                everyone=everyone,
                only=frozenset((entry.path,)),
            )
            stored = await in_thread(self.here, kept, entry)
            if stored is None:
                return None
            if arrival is not None:
                arrival.outcome = stored
        cids, root = {entry.path: str(stored.cid)}, str(fetched.model.root)
        await in_thread(self._shelf.note_cids, kept.of_repo, kept.commit, cids, root)
        if fetched.model.complete:
            await in_thread(stamped, self._store, fetched.model, kept)
        elif (model := await in_thread(self._assembled, kept)) is not None:
            self._landed(model)
        return stored

    async def _from_hub(self, kept: KeptCommit, entry: TreeEntry, hub: HubSource) -> StoredFile:
        traffic = Traffic()
        async with reserved(self._store, 0):  # it is no litter until its caller has looked
            stored = await self._receiver.bring(hub, kept.snapshot, entry.file, traffic)
            if any(other.size == 0 for other in kept.shown()):  # clients make those themselves
                async with self._emptying:
                    await in_thread(empty, self._store)
            if is_hidden(entry.path):
                await in_thread(self._shelf.hidden.keep_file, entry.file, stored.path)
            log.info("hub.file repo=%s path=%s bytes=%d", kept.repo, entry.path, traffic.bytes)
            await in_thread(self._shelf.note_cids, kept.of_repo, kept.commit, {entry.path: str(stored.cid)})
            model = await in_thread(self._assembled, kept)
        if model is not None:
            self._landed(model)
        return stored

    def _assembled(self, kept: KeptCommit) -> StoredModel | None:
        """The commit's model, if this was the last of its files. A failure is no failure of the file that was asked
        for."""
        found = self._all(kept)
        if not found:
            return None
        try:
            with self._store.reserve(0):
                built = tree_dag({path: in_profile(self._store, file.cid) for path, file in found.items()})
                model = self._store.commit(
                    built.plan,
                    built.nodes,
                    pinned=False,
                    public=not kept.restricted,
                    provenance=hub_provenance(str(kept.of_repo), kept.commit),
                )
        except NodeError as exc:
            log.warning("hub.not_assembled repo=%s commit=%s reason=%s", kept.repo, kept.commit, exc)
            return None
        cids = {planned.path: str(planned.cid) for planned in built.plan.files}
        stamped(self._store, model, kept)
        self._shelf.note_cids(kept.of_repo, kept.commit, cids, str(model.root))
        log.info("hub.assembled repo=%s commit=%s root=%s", kept.repo, kept.commit, model.root)
        return model

    def _all(self, kept: KeptCommit) -> dict[str, StoredFile]:
        """Every file of the commit's root by path; none while one is lacking, or of a claim."""
        if kept.claimed:
            return {}
        shown = {file.path: file for file in kept.shown()}
        key = (kept.repo, kept.commit)
        lacking = self._lacking.pop(key, None)
        found: dict[str, StoredFile] = {}
        for path in [*([lacking] if lacking in shown else []), *shown]:
            stored = self._store.of_oid(bytes.fromhex(shown[path].oid), shown[path].size)
            if stored is None:
                self._lacking[key] = path
                return {}
            found[path] = stored
        return found
