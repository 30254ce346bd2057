"""`audit`: a map recomputed. Its list of files against the Hub's, its CIDs against the bytes, its root against both.

What the Hub says is asked now; while it cannot be asked, what it said last will do, and the report says so. A map is
confirmed when nothing in it is wrong and nothing is left unchecked; it is refused at the first path that is wrong, and
its signer is then not believed any more. A signature, or a form, that is wrong raises: it is no map at all.
"""

from __future__ import annotations

import glob
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Literal

from ipfs_accelerate_node.content.build import tree_dag
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
from ipfs_accelerate_node.fetch.engine import Fetcher
from ipfs_accelerate_node.fetch.hub_claims import MAX_PARCELS, Claims, MapAnswer
from ipfs_accelerate_node.fetch.hub_map_shelf import KeptMap, MapShelf, Parcel
from ipfs_accelerate_node.fetch.hub_maps import Fault, MapMaker, fault, same_cid, stored_as
from ipfs_accelerate_node.fetch.hub_nearby import oid_of
from ipfs_accelerate_node.fetch.hub_shelf import HubShelf, KeptCommit
from ipfs_accelerate_node.fetch.origins import Origins
from ipfs_accelerate_node.fetch.threads import in_thread
from ipfs_accelerate_node.kubo import KuboClient
from ipfs_accelerate_node.records.hub_map import MAX_SHARDS, map_links
from ipfs_accelerate_node.sources.hub import HubSource
from ipfs_accelerate_node.sources.hub_answers import HubFile
from ipfs_accelerate_node.sources.hub_names import HubRepo, is_hidden
from ipfs_accelerate_node.store import Store
from ipfs_accelerate_node.store.single import in_profile

log = logging.getLogger(__name__)

BLOCK_TIMEOUT_S = 30.0
Outcome = Literal["confirmed", "refused", "unchecked"]


@dataclass(frozen=True, slots=True)
class Asked:
    """Which map is audited: that of a peer (URL or PeerID), the one of an envelope's CID, or one that is handed over.
    None of them: the node's own, else the best that a peer has. fetch: bytes that are not here are fetched by CID."""

    peer: str | None = None
    envelope: Cid | None = None
    handed: MapAnswer | Parcel | None = None
    fetch: bool = False


@dataclass(frozen=True, slots=True)
class Audit:
    """path, reason: what is wrong, or the first file that is unchecked. tree: who said which files the commit has, the
    Hub just now, or the shelf (what it said last). checked: files whose CID was computed of bytes that are here."""

    repo: str
    commit: str
    outcome: Outcome
    signer: str
    own: bool
    envelope_cid: str
    root: str | None
    tree: Literal["hub", "shelf"]
    files: int
    checked: int
    path: str | None = None
    reason: str | None = None


class Auditor:
    """hub: the configured upstream, to be entered; kubo: its client, raises Unavailable."""

    def __init__(
        self,
        store: Store,
        shelf: HubShelf,
        maker: MapMaker,
        claims: Claims,
        fetcher: Fetcher,
        origins: Origins,
        *,
        own: str,
        hub: Callable[[], HubSource],
        kubo: Callable[[], Awaitable[KuboClient]],
    ) -> None:
        self._store = store
        self._shelf = shelf
        self._maker = maker
        self._claims = claims
        self._fetcher = fetcher
        self._origins = origins
        self._own = own
        self._hub = hub
        self._kubo = kubo

    async def audit(self, repo: HubRepo, revision: str, asked: Asked) -> Audit:
        """Raises NotFound where there is no map, BadContent and IntegrityError for what is no signed map, AuthRequired,
        SourceUnavailable where neither the Hub nor the shelf says what the commit is, or the map cannot be had."""
        kept, tree = await self._said(repo, revision)
        found = await self._map(kept, asked)
        opened = found.opened
        report = Audit(
            str(repo),
            kept.commit,
            "confirmed",
            opened.signer,
            opened.signer == self._own,
            str(opened.envelope_cid),
            None if opened.map.root is None else str(opened.map.root),
            tree,
            files=len(opened.map.files),
            checked=0,
        )
        wrong = await in_thread(fault, opened.map, kept)
        if wrong is not None:
            return await self._refused(report, found, wrong)
        return await self._compared(report, found, asked)

    # private

    async def _said(self, repo: HubRepo, revision: str) -> tuple[KeptCommit, Literal["hub", "shelf"]]:
        try:
            async with self._hub() as hub:
                answer = await hub.commit(repo, revision)
                return await in_thread(self._shelf.keep, KeptCommit.of(repo, answer, hub.name), revision), "hub"
        except AuthRequired:
            raise
        except SourceUnavailable:
            ref = await in_thread(self._shelf.ref, repo, revision)
            kept = None if ref is None else await in_thread(self._shelf.commit, repo, ref[0])
            if kept is None or not kept.confirmed:
                raise
            return kept, "shelf"

    async def _map(self, kept: KeptCommit, asked: Asked) -> KeptMap:
        repo, commit = kept.of_repo, kept.commit
        if asked.handed is not None:
            return await in_thread(_handed, asked.handed)
        if asked.envelope is not None:
            return await self._by_cid(asked.envelope)
        if asked.peer is not None:
            answer = await self._claims.ask_one(asked.peer, repo, commit)
            if answer is None:
                raise NotFound(f"{asked.peer} has no map of {repo}@{commit}", code="no_map")
            return await in_thread(_handed, answer)
        if (own := await in_thread(lambda: self._maker.own(kept, thorough=True))) is not None:
            return own
        await self._claims.ask(repo, commit, again=True)
        found = await in_thread(self._maker.maps.of, repo, commit)
        if not found:
            raise NotFound(f"there is no map of {repo}@{commit} here, nor with a peer", code="no_map")
        return found[0]

    async def _by_cid(self, envelope: Cid) -> KeptMap:
        """Kept here, or by Kubo from anywhere."""
        try:
            return await in_thread(self._maker.maps.find, envelope)
        except NotFound:
            client = await self._kubo()
        blocks: dict[Cid, bytes] = {}
        signed = await _block(client, envelope)
        wanted = map_links(signed)
        for cid in wanted:
            blocks[cid] = await _block(client, cid)
        for cid in map_links(signed, blocks[wanted[0]])[:MAX_SHARDS]:
            blocks[cid] = await _block(client, cid)
        return await in_thread(_handed, Parcel(signed, list(blocks.values())))

    async def _compared(self, report: Audit, found: KeptMap, asked: Asked) -> Audit:
        """Against the bytes."""
        lacking, wrong = await in_thread(self._bytes, found)
        if wrong is None and lacking and asked.fetch and found.opened.map.root is not None:
            return await self._fetched(report, found, asked, lacking)
        if wrong is not None:
            return await self._refused(report, found, wrong)
        checked = found.opened.map.known - len(lacking)
        if lacking:
            why = "its bytes are not here: fetch them with the audit (--fetch), or pin the commit first"
            return replace(report, outcome="unchecked", checked=checked, path=lacking[0], reason=why)
        if checked == 0:
            return replace(report, outcome="unchecked", reason="it names no CID")
        log.info("audit.confirmed repo=%s commit=%s signer=%s", report.repo, report.commit, report.signer)
        return replace(report, checked=checked)

    async def _fetched(self, report: Audit, found: KeptMap, asked: Asked, lacking: list[str]) -> Audit:
        """By the root that the map names; what it leads to goes again if it is wrong."""
        root = found.opened.map.root
        assert root is not None, "the caller looked"
        before = await in_thread(self._store.model, root)
        try:
            async with AsyncExitStack() as stack:
                sources = self._origins.open(stack, None)
                if asked.peer is not None and all(source.name != asked.peer for source in sources):
                    sources = [*self._origins.open(stack, asked.peer), *sources]
                await self._fetcher.fetch(
                    root,
                    sources,
                    reference=f"hf:{report.repo}@{report.commit}",
                    pinned=False,
                    only=tuple(glob.escape(path) for path in lacking),
                    discover=self._origins.discovery(None),
                )
        except (BadContent, UnsafeContent) as exc:
            return await self._refused(report, found, Fault("", f"its root cannot be read: {exc}"))
        except NotFound as exc:
            if exc.code != "no_match":
                raise
            return await self._refused(report, found, Fault(lacking[0], "its root has no such file"))
        done = await self._compared(report, found, replace(asked, fetch=False))
        if done.outcome == "refused" and before is None:
            await in_thread(lambda: self._store.remove(root, force=True))
        return done

    def _bytes(self, found: KeptMap) -> tuple[list[str], Fault | None]:
        """Paths whose bytes are not here, and the first fault. The root is computed anew when all of them are."""
        lacking: list[str] = []
        built = {}
        for mapped in found.opened.map.files:
            if mapped.cid is None:
                continue
            like = HubFile(mapped.path, mapped.size, mapped.oid)
            stored = stored_as(self._store, like, mapped.cid)
            if stored is None:
                if (other := self._store.file(mapped.cid)) is not None:
                    oid = oid_of(self._store, other, like)
                    return [], Fault(mapped.path, f"the bytes of {mapped.cid} have the oid {oid}, not {mapped.oid}")
                lacking.append(mapped.path)
                continue
            file = in_profile(self._store, stored.cid)
            if not same_cid(file.cid, mapped.cid):
                return [], Fault(mapped.path, f"its bytes have the CID {file.cid.canonical}, not {mapped.cid}")
            built[mapped.path] = file
        root = found.opened.map.root
        shown = {path: file for path, file in built.items() if not is_hidden(path)}
        if root is not None and not lacking and not same_cid(tree := tree_dag(shown).plan.root, root):
            return [], Fault("", f"its files make the root {tree}, not {root}")
        return lacking, None

    async def _refused(self, report: Audit, found: KeptMap, wrong: Fault) -> Audit:
        await in_thread(self._claims.refute, found, wrong.path, wrong.reason)
        return replace(report, outcome="refused", path=wrong.path or None, reason=wrong.reason)


async def _block(client: KuboClient, cid: Cid) -> bytes:
    block = await client.block_get(cid, timeout_s=BLOCK_TIMEOUT_S)
    cid.check(block, "kubo")
    return block


def _handed(said: MapAnswer | Parcel) -> KeptMap:
    """The first map that verifies, whoever signed it. Blocks. Raises the fault of the last one where none does."""
    parcels = [said] if isinstance(said, Parcel) else said.maps[:MAX_PARCELS]
    failure: NodeError = NotFound("the answer holds no map", code="no_map")
    for parcel in parcels:
        try:
            return MapShelf.verified(parcel)
        except (BadContent, IntegrityError) as exc:
            failure = exc
    raise failure
