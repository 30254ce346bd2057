"""`hf:org/name[@revision]`: here already, or from peers who have a map of that commit, or from the Hub.

Files come one by one (`hub_receive`), each checked against its oid, and are stored as they come: what was fetched stays
when the fetch fails or the process dies, and a second try asks only for the rest. When all of them are here they are
the model. What the Hub itself said decides which bytes are right, whoever sends them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from ipfs_accelerate_node.content.build import BuiltTree, tree_dag
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import (
    AuthRequired,
    BadContent,
    Conflict,
    IntegrityError,
    NodeError,
    NotFound,
    SourceUnavailable,
    UnsafeContent,
)
from ipfs_accelerate_node.fetch.hub_chain import Chain
from ipfs_accelerate_node.fetch.hub_nearby import Nearby, hub_provenance, merged, stamped
from ipfs_accelerate_node.fetch.hub_receive import Receiver, reserved
from ipfs_accelerate_node.fetch.hub_shelf import HubShelf, KeptCommit
from ipfs_accelerate_node.fetch.outcome import Fetched, Progress
from ipfs_accelerate_node.fetch.threads import in_thread
from ipfs_accelerate_node.fetch.together import together
from ipfs_accelerate_node.sources.hub import HubSource
from ipfs_accelerate_node.sources.hub_answers import HubFile
from ipfs_accelerate_node.sources.hub_names import DEFAULT_REVISION, HubRepo
from ipfs_accelerate_node.sources.hub_snapshot import Snapshot, Traffic
from ipfs_accelerate_node.store import Store
from ipfs_accelerate_node.store.single import in_profile
from ipfs_accelerate_node.store.types import SourceShare, StoredFile, StoredModel

log = logging.getLogger(__name__)

FILES_AT_ONCE = 6
Report = Callable[[Progress], None]


async def fetch_hub(
    store: Store,
    hub: HubSource,
    repo: str,
    revision: str | None,
    *,
    name: str | None,
    progress: Report,
    shelf: HubShelf | None = None,
    receiver: Receiver | None = None,
    nearby: Nearby | None = None,
) -> Fetched:
    """The commit that revision means now (default: main), stored like any `add`; hidden files are left out. shelf: what
    the Hub said is kept there, and is the answer while it cannot be asked. receiver: shares its transfers. nearby: who
    else may have it; None asks nobody but the Hub.

    A private or gated repository's model is stored as not public. Raises BadRequest, NotFound, AuthRequired,
    SourceUnavailable, UnsafeContent, IntegrityError (the Hub sent other bytes twice), QuotaExceeded, StorageError, all
    with the chain of what was tried in their detail. Cancelling it keeps what is there for the next try.
    """
    progress(Progress(None, 0, "walking", hub.name))
    fetch = _Fetch(store, hub, HubRepo.named(repo), progress, shelf, receiver or Receiver(store), nearby)
    try:
        fetched = await fetch.run(revision or DEFAULT_REVISION, name)
    except NodeError as exc:
        raise fetch.chain.told(exc) from exc.__cause__
    return replace(fetched, chain=fetch.chain.steps)


def stored_commit(store: Store, snapshot: Snapshot, root: str | None = None) -> StoredModel | None:
    """root: of its model as far as known from elsewhere."""
    if root is not None and (known := store.model(Cid.parse(root))) is not None:
        return known
    for model in store.models():
        provenance = model.provenance
        if (provenance.hub_repo, provenance.hub_commit) == (str(snapshot.of_repo), snapshot.commit):
            return model
    return None


def same_bytes(store: Store, snapshot: Snapshot, file: HubFile, noted: str | None = None) -> StoredFile | None:
    """A stored file with the oid that the Hub names. For a repository that all may read only one that all may read
    here: what is private does not become public because a repository names its hash. noted: the CID under which it was
    stored as this very commit's file, so that one of no model counts too."""
    oid = bytes.fromhex(file.oid)
    stored = store.of_oid(oid, file.size, public_only=not snapshot.restricted)
    if stored is None and noted is not None:
        own = store.of_oid(oid, file.size)
        return own if own is not None and own.cid.canonical == Cid.parse(noted).canonical else None
    return stored


@dataclass(slots=True)
class _Said:
    """What is known of the commit. asked: by the Hub itself, just now."""

    kept: KeptCommit
    snapshot: Snapshot
    asked: bool


class _Fetch:
    """One reference, once."""

    def __init__(
        self,
        store: Store,
        hub: HubSource,
        repo: HubRepo,
        progress: Report,
        shelf: HubShelf | None,
        receiver: Receiver,
        nearby: Nearby | None,
    ) -> None:
        self.chain = Chain()
        self._store = store
        self._hub = hub
        self._repo = repo
        self._progress = progress
        self._shelf = shelf
        self._receiver = receiver
        self._nearby = nearby
        self._traffic = Traffic()
        self._copied = 0
        self._here: dict[str, int] = {}  # of each file the bytes that are here

    async def run(self, revision: str, name: str | None) -> Fetched:
        began = time.perf_counter()
        said = await self._resolve(revision)
        model = await in_thread(stored_commit, self._store, said.snapshot, said.kept.root)
        if model is not None and model.complete and (said.asked or not said.kept.claimed):
            self.chain.note("here", "used")
            return await in_thread(_already_here, self._store, model, name)
        self.chain.note("here", "absent", f"commit {said.snapshot.commit} is not stored whole")
        fetched = await self._from_peers(said, name)
        if fetched is None:
            fetched = await self._from_hub(said, name)
        shares = merged(fetched.sources, self._share()) if self._traffic.requests else fetched.sources
        log.info("hub.fetched repo=%s commit=%s root=%s", self._repo, said.snapshot.commit, fetched.model.root)
        return replace(
            fetched,
            sources=shares,
            seconds=time.perf_counter() - began,
            bytes_copied=max(fetched.bytes_copied, self._copied),
        )

    async def _resolve(self, revision: str) -> _Said:
        """The Hub's answer; else what it said last, else what a peer says that it said."""
        try:
            answer = await self._hub.commit(self._repo, revision)
        except AuthRequired as exc:
            self.chain.note("hub", "refused", exc)
            raise
        except SourceUnavailable as exc:
            self.chain.note("hub", "failed", exc)
            kept = await self._without_hub(revision)
            if kept is None:
                raise
            return _Said(kept, kept.snapshot, asked=False)
        except NodeError as exc:
            self.chain.note("hub", "refused", exc)
            raise
        kept = KeptCommit.of(self._repo, answer, self._hub.name)
        if self._shelf is not None:
            kept = await in_thread(self._shelf.keep, kept, revision)
        return _Said(kept, Snapshot.of(self._repo, answer), asked=True)

    async def _without_hub(self, revision: str) -> KeptCommit | None:
        if self._shelf is not None:
            ref = await in_thread(self._shelf.ref, self._repo, revision)
            kept = None if ref is None else await in_thread(self._shelf.commit, self._repo, ref[0])
            if kept is not None:
                return kept
        claim = None if self._nearby is None else await self._nearby.map(self._repo, revision)
        if claim is None:
            self.chain.note("here", "absent", "nothing is known of it here")
            self.chain.note("map", "absent", "no peer that is configured has a map of it")
            return None
        return claim if self._shelf is None else await in_thread(self._shelf.keep, claim, revision)

    async def _from_peers(self, said: _Said, name: str | None, *, again: bool = False) -> Fetched | None:
        """By CID, from peers and the Hub together. None where no map leads to it, or one that turned out false."""
        snapshot = said.snapshot
        if self._nearby is None or snapshot.restricted:
            self.chain.note("map", "skipped", "no maps are asked for" if self._nearby is None else "it is not public")
            return None
        claim = await self._nearby.map_of(said.kept, search=not said.asked, again=again)
        if claim is None or claim.root is None:
            self.chain.note("map", "absent", "no map has its root")
            return None
        try:
            fetched = await self._nearby.fetch(
                claim,
                snapshot,
                None if again or not said.asked else self._hub,
                self._progress,
                everyone=again or not said.asked,
            )
            label = partial(self._label, said, claim, fetched, name)
            model = await in_thread(label)
        except (SourceUnavailable, IntegrityError, BadContent, UnsafeContent, NotFound) as exc:
            self.chain.note("map", "refused" if isinstance(exc, IntegrityError) else "failed", exc)
            if not said.asked:
                raise
            return None
        whose = "as the Hub's own oids say" if said.asked else f"as {claim.source} claims: the Hub could not be asked"
        self.chain.note("map", "used", f"root {claim.root} by {claim.source}, {whose}")
        return replace(fetched, model=model)

    def _label(self, said: _Said, claim: KeptCommit, fetched: Fetched, name: str | None) -> StoredModel:
        self._store.pin(fetched.model.root)
        if name is not None:
            self._store.set_name(fetched.model.root, name)
        if self._shelf is not None:
            cids = {file.path: str(file.cid) for file in fetched.plan.files}
            self._shelf.note_cids(self._repo, said.snapshot.commit, cids, str(fetched.model.root))
        model = self._store.model(fetched.model.root)
        if model is None:
            raise NotFound(f"{fetched.model.root} was removed meanwhile", cid=str(fetched.model.root))
        return stamped(self._store, model, said.kept)

    async def _from_hub(self, said: _Said, name: str | None) -> Fetched:
        """From the Hub alone; when it goes away on the way, the rest from whoever has it."""
        snapshot = said.snapshot
        try:
            async with reserved(self._store, 0):  # what is stored on the way is no litter
                found = await self._gather(said.kept, snapshot)
                self._tell(snapshot, "committing")
                built, model = await in_thread(self._commit, said.kept, found, name)
        except AuthRequired as exc:
            self.chain.note("hub", "refused", exc)
            raise
        except SourceUnavailable as exc:
            self.chain.note("hub", "failed", exc)
            fetched = await self._from_peers(said, name, again=True)
            if fetched is None:
                raise
            return fetched
        except NodeError as exc:
            self.chain.note("hub", "refused", exc)
            raise
        self.chain.note("hub", "used")
        if self._shelf is not None:
            cids = {file.path: str(file.cid) for file in built.plan.files}
            await in_thread(self._shelf.note_cids, self._repo, snapshot.commit, cids, str(model.root))
        return Fetched(
            model=model,
            plan=built.plan,
            nodes=tuple(built.nodes),
            bytes_total=built.plan.size_bytes,
            bytes_fetched=self._traffic.bytes,
            bytes_copied=self._copied,
            seconds=0.0,
            sources=(),
            already_here=False,
        )

    async def _gather(self, kept: KeptCommit, snapshot: Snapshot) -> dict[str, StoredFile]:
        """Every file of snapshot, verified and stored, by path. The room for all of them is held first."""
        found: dict[str, StoredFile] = {}
        known = await in_thread(self._known, kept, snapshot)
        lacking = {file.oid: file for file in snapshot.files if file.path not in known}
        for file in (file for file in snapshot.files if file.path in known):
            found[file.path] = known[file.path]
            self._here[file.path] = file.size
        self._copied = sum(file.size for file in known.values())
        left = sum(file.size for file in lacking.values())
        brought = await in_thread(lambda: sum(self._store.unnamed.brought(f.oid, f.size) for f in lacking.values()))
        async with reserved(self._store, max(0, left - brought)):
            self._tell(snapshot)
            await together((partial(self._bring, snapshot, file, found) for file in lacking.values()), FILES_AT_ONCE)
        for file in snapshot.files:  # the same bytes at another path came once
            if file.path not in found:
                found[file.path] = found[lacking[file.oid].path]
        return found

    def _known(self, kept: KeptCommit, snapshot: Snapshot) -> dict[str, StoredFile]:
        noted = kept.cids
        stored = ((f.path, same_bytes(self._store, snapshot, f, noted.get(f.path))) for f in snapshot.files)
        return {path: file for path, file in stored if file is not None}

    async def _bring(self, snapshot: Snapshot, file: HubFile, found: dict[str, StoredFile]) -> None:
        def report(file_bytes: int) -> None:
            self._here[file.path] = file_bytes
            self._tell(snapshot)

        found[file.path] = await self._receiver.bring(self._hub, snapshot, file, self._traffic, report)
        self._here[file.path] = file.size
        self._tell(snapshot)

    def _tell(self, snapshot: Snapshot, phase: str = "fetching") -> None:
        self._progress(Progress(snapshot.size_bytes, sum(self._here.values()), phase, self._hub.name))

    def _commit(
        self, kept: KeptCommit, found: dict[str, StoredFile], name: str | None
    ) -> tuple[BuiltTree, StoredModel]:
        snapshot = kept.snapshot
        built = tree_dag({path: in_profile(self._store, file.cid) for path, file in found.items()})
        model = self._store.commit(
            built.plan,
            built.nodes,
            name=name,
            public=not snapshot.restricted,
            provenance=hub_provenance(str(snapshot.of_repo), snapshot.commit, self._share()),
        )
        return built, stamped(self._store, model, kept)

    def _share(self) -> SourceShare:
        traffic = self._traffic
        return SourceShare(self._hub.name, "hub", traffic.bytes, traffic.requests, traffic.rejected)


def _already_here(store: Store, model: StoredModel, name: str | None) -> Fetched:
    plan = store.plan(model.root)
    if plan is None:
        raise Conflict(f"{model.root} has just been removed; ask again")
    if name is not None:
        store.set_name(model.root, name)
        model = store.model(model.root) or model
    return Fetched(
        model=model,
        plan=plan,
        nodes=tuple(store.nodes(model.root)),
        bytes_total=plan.size_bytes,
        bytes_fetched=0,
        bytes_copied=0,
        seconds=0.0,
        sources=(),
        already_here=True,
    )
