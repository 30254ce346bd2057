"""A commit of the Hub by CID: from whoever has it, and from the Hub together, where a map says which CIDs it has.

A map only leads to bytes. Which bytes are right the oids decide: the Hub's own where it could be asked.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ipfs_accelerate_node.content.build import PROFILE_NAME
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.plan import ModelPlan
from ipfs_accelerate_node.content.selection import Only, selected
from ipfs_accelerate_node.errors import IntegrityError, NoSource, NotFound
from ipfs_accelerate_node.fetch.engine import Fetcher
from ipfs_accelerate_node.fetch.hub_shelf import KeptCommit
from ipfs_accelerate_node.fetch.origins import Discover
from ipfs_accelerate_node.fetch.outcome import Fetched, Progress
from ipfs_accelerate_node.fetch.threads import in_thread
from ipfs_accelerate_node.sources import Source
from ipfs_accelerate_node.sources.hub import HubSource
from ipfs_accelerate_node.sources.hub_answers import HubFile
from ipfs_accelerate_node.sources.hub_files import HubFileSource
from ipfs_accelerate_node.sources.hub_names import HubRepo
from ipfs_accelerate_node.sources.hub_snapshot import Snapshot
from ipfs_accelerate_node.store import Store, StoredFile, StoredModel
from ipfs_accelerate_node.store.disk import storing
from ipfs_accelerate_node.store.types import Provenance, SourceShare

if TYPE_CHECKING:  # which needs `oid_of`
    from ipfs_accelerate_node.fetch.hub_claims import Claims

log = logging.getLogger(__name__)

Open = Callable[[AsyncExitStack, bool], Sequence[Source]]


class Nearby:
    """open_: those who may have the blocks of a root, with the flag all of them, else those that are quick to say so.
    discover: finds more."""

    def __init__(
        self, store: Store, fetcher: Fetcher, claims: Claims, open_: Open, discover: Discover | None = None
    ) -> None:
        self._store = store
        self._fetcher = fetcher
        self._claims = claims
        self._open = open_
        self._discover = discover

    async def map(self, repo: HubRepo, revision: str) -> KeptCommit | None:
        """What a peer says that the Hub said; whoever has a map is looked for."""
        return await self._claims.ask(repo, revision, search=True)

    async def map_of(self, kept: KeptCommit, *, search: bool = False, again: bool = False) -> KeptCommit | None:
        """The commit with the CIDs of its files and its root: as known here, else by a peer. search: also looks for
        peers that nobody named; again: also if there was none a moment ago."""
        return (
            kept
            if kept.root is not None
            else await self._claims.ask(kept.of_repo, kept.commit, again=again, search=search)
        )

    async def fetch(
        self,
        claim: KeptCommit,
        snapshot: Snapshot,
        hub: HubSource | None,
        progress: Callable[[Progress], None],
        *,
        everyone: bool,
        only: Only | None = None,
    ) -> Fetched:
        """The commit's model by the root that claim names, unpinned; each of its files has the oid that snapshot says.
        What came of a file before its CID was known counts, as far as its leaves match. hub: helps, if it is given.
        everyone: also who has to be searched for. only: as `Fetcher`.

        Raises NoSource if there is nobody to ask, IntegrityError for a map that leads to other files (nothing of it
        stays), else as `Fetcher.fetch`.
        """
        assert claim.root is not None, "the caller looked"
        root = Cid.parse(claim.root)
        cids = {path: Cid.parse(cid).canonical for path, cid in claim.cids.items()}
        files = {cids[file.path]: file for file in snapshot.files if file.path in cids}
        before = await in_thread(self._store.model, root)
        async with AsyncExitStack() as stack:
            sources = list(self._open(stack, everyone))
            if not sources and hub is None and not (everyone and self._discover):
                raise NoSource("no peer is configured", source="peers", attempts=[])
            await in_thread(self._take_over, files)
            helper = [] if hub is None else [HubFileSource(hub, snapshot, files)]
            fetched = await self._fetcher.fetch(
                root,
                [*sources, *helper],
                reference=f"hf:{snapshot.of_repo}@{snapshot.commit}",
                pinned=False,
                progress=progress,
                only=only,
                discover=self._discover if everyone else None,
            )
        if claim.confirmed:
            await in_thread(self._learn, fetched.plan, files, only)
        wrong = await in_thread(self._wrong, fetched.plan, snapshot, only is None)
        if wrong is not None:
            log.warning("hub.false_map source=%s repo=%s path=%s", claim.source, snapshot.repo, wrong.path)
            reason = "its oid is another"
            await self._claims.refuted(snapshot.of_repo, snapshot.commit, wrong.path, reason, root=root)
            if before is None:
                await in_thread(self._store.remove, root, force=True)
            raise IntegrityError(expected=wrong.oid, actual=f"another {wrong.path!a} under {root}", origin=claim.source)
        return fetched

    def _take_over(self, files: dict[Cid, HubFile]) -> None:
        """Bytes that came before the CID was known: still nothing that is proven."""
        for cid, file in files.items():
            if self._store.unnamed.name(file.oid, cid):
                log.info("hub.named path=%s cid=%s", file.path, cid)

    def _learn(self, plan: ModelPlan, files: dict[Cid, HubFile], only: Only | None) -> None:
        """Which oid has which CID was found out here: nothing is hashed as a whole to find it out again."""
        for planned in selected(plan, only):
            file = files.get(planned.cid.canonical)
            if file is not None and len(file.oid) == 64:
                self._store.hashing.learned(planned.cid, bytes.fromhex(file.oid))

    def _wrong(self, plan: ModelPlan, snapshot: Snapshot, whole: bool) -> HubFile | None:
        """A file that is not what the oid says, or is missing in the root or too many."""
        expected = {file.path: file for file in snapshot.files}
        found = {file.path: file for file in plan.files}
        if strange := sorted(found.keys() ^ expected.keys()):
            return expected.get(strange[0]) or HubFile(strange[0], 0, "no such file")
        for path, file in expected.items():
            stored = self._store.file(found[path].cid)
            if stored is None and not whole:
                continue
            if stored is None or stored.size != file.size or oid_of(self._store, stored, file) != file.oid:
                return file
        return None


def oid_of(store: Store, stored: StoredFile, like: HubFile) -> str:
    """What the Hub calls the oid of a stored file, of the same kind as that of like. Reads the file if it has to."""
    hashes = store.digests(stored.cid)
    if len(like.oid) == 64:
        return hashes.sha256.hex()
    if hashes.git_sha1:
        return hashes.git_sha1.hex()
    digest = hashlib.sha1(b"blob %d\0" % stored.size, usedforsecurity=False)
    try:
        with storing(f"cannot read {stored.cid}"), stored.path.open("rb") as file:
            while data := file.read(1 << 20):
                digest.update(data)
    except FileNotFoundError as exc:
        raise NotFound(f"{stored.cid} is not in the store any more", cid=str(stored.cid)) from exc
    return digest.hexdigest()


def hub_provenance(repo: str, commit: str, *shares: SourceShare, claimed_by: str | None = None) -> Provenance:
    """Of a model that was made here, now, of a commit's files. repo: as `HubRepo` is written. shares: what each
    source gave. claimed_by: who says that these are its files, where the Hub did not."""
    by = "" if claimed_by is None else f" as {claimed_by} claims"
    return Provenance(
        kind="hf",
        reference=f"hf:{repo}@{commit}{by}",
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        sources=shares,
        profile=PROFILE_NAME,
        hub_repo=repo,
        hub_commit=commit if claimed_by is None else None,
        claimed_commit=None if claimed_by is None else commit,
    )


def stamped(store: Store, model: StoredModel, kept: KeptCommit) -> StoredModel:
    """A model that came by CID, or by a claim before, as that commit's. That it is this very commit only the Hub can
    say: of anybody else it is noted as the claim that it is."""
    known, repo, sure = model.provenance, str(kept.of_repo), kept.confirmed
    if known.selection is not None and sure:  # of another commit's files: of this one they are all
        known = replace(known, kind="cid", hub_commit=None, selection=None)
    if known.hub_commit is not None or (not sure and (known.hub_repo, known.claimed_commit) == (repo, kept.commit)):
        return model
    by = "" if sure else f" as {kept.source} claims"
    is_ours = known.kind == "cid" or known.claimed_commit is not None
    changed = replace(
        known,
        kind="hf" if is_ours else known.kind,
        reference=f"hf:{repo}@{kept.commit}{by}" if is_ours else known.reference,
        hub_repo=repo,
        hub_commit=kept.commit if sure else None,
        claimed_commit=None if sure else kept.commit,
    )
    return store.set_provenance(model.root, changed)


def confirmed(store: Store, model: StoredModel, kept: KeptCommit) -> StoredModel:
    """A stored model of that root, which so far was somebody's claim, once the Hub itself has said what the commit is:
    no claim any more, and for everybody if the Hub says so."""
    if model.provenance.claimed_commit is None or not kept.confirmed:
        return model
    if not kept.restricted:
        store.set_public(model.root, True)
    return stamped(store, model, kept)


def merged(shares: Iterable[SourceShare], further: SourceShare) -> tuple[SourceShare, ...]:
    """What each source gave, one line for each."""
    found = {share.source: share for share in shares}
    same = found.get(further.source)
    if same is None:
        return (*found.values(), further)
    found[further.source] = SourceShare(
        same.source,
        same.kind,
        same.bytes + further.bytes,
        same.requests + further.requests,
        same.rejected + further.rejected,
        same.seconds + further.seconds,
    )
    return tuple(found.values())
