"""`hf:org/name[@revision]`: here already, or from peers who have a map of that commit, or from the Hub.

Files come one by one (`hub_gathering`), each checked against its oid, and are stored as they come: what was fetched
stays when the fetch fails or the process dies, and a second try asks only for the rest. When all of them are here they
are the model; of some of them `hub_selection` tells. What the Hub itself said decides which bytes are right, whoever
sends them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from ipfs_accelerate_node.content.build import tree_dag
from ipfs_accelerate_node.content.selection import ALL_FILES, Choice, meant
from ipfs_accelerate_node.errors import (
    AuthRequired,
    BadContent,
    IntegrityError,
    ModelUnsupported,
    NodeError,
    NotFound,
    SourceUnavailable,
    UnsafeContent,
)
from ipfs_accelerate_node.fetch.hub_chain import Chain
from ipfs_accelerate_node.fetch.hub_gathering import Gathering, content_of
from ipfs_accelerate_node.fetch.hub_here import Paths, already_here, having
from ipfs_accelerate_node.fetch.hub_nearby import Nearby, confirmed, hub_provenance, merged, stamped
from ipfs_accelerate_node.fetch.hub_needs import MAX_GUIDE_BYTES, guides, needed
from ipfs_accelerate_node.fetch.hub_receive import Receiver, reserved
from ipfs_accelerate_node.fetch.hub_selection import commit_tree, left_out, paths_here, selections, supersede
from ipfs_accelerate_node.fetch.hub_shelf import HubShelf, KeptCommit
from ipfs_accelerate_node.fetch.outcome import Fetched, Progress
from ipfs_accelerate_node.fetch.threads import in_thread
from ipfs_accelerate_node.sources.hub import HubSource
from ipfs_accelerate_node.sources.hub_names import DEFAULT_REVISION, HubRepo, is_commit
from ipfs_accelerate_node.sources.hub_snapshot import Snapshot
from ipfs_accelerate_node.store import Store
from ipfs_accelerate_node.store.single import in_profile
from ipfs_accelerate_node.store.types import StoredFile, StoredModel

log = logging.getLogger(__name__)

Report = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Which:
    """Of a commit's files those that are wanted. choice: what the user chose; needed: where nothing was chosen, what a
    loader needs, not all."""

    choice: Choice = ALL_FILES
    needed: bool = False


ALL = Which()


async def fetch_hub(
    store: Store,
    hub: HubSource,
    repo: str,
    revision: str | None,
    *,
    name: str | None,
    progress: Report,
    which: Which = ALL,
    shelf: HubShelf | None = None,
    receiver: Receiver | None = None,
    nearby: Nearby | None = None,
) -> Fetched:
    """The commit that revision means now (default: main), stored like any `add`; hidden files are left out. which: some
    of its files: an incomplete model under the commit's root where that is known, else a selection under a root of its
    own. shelf: what the Hub said is kept there, and is the answer while it cannot be asked. receiver: shares its
    transfers. nearby: who else may have it; None asks nobody but the Hub.

    A private or gated repository's model is stored as not public. Raises BadRequest, NotFound (also code no_match),
    AuthRequired, SourceUnavailable, UnsafeContent, ModelUnsupported (a loader could not use it),
    IntegrityError (the Hub sent other bytes twice), QuotaExceeded, StorageError, all
    with the chain of what was tried in their detail. Cancelling it keeps what is there for the next try.
    """
    progress(Progress(None, 0, "walking", hub.name))
    fetch = _Fetch(store, hub, HubRepo.named(repo), progress, shelf, receiver or Receiver(store), nearby)
    try:
        fetched = await fetch.run(revision or DEFAULT_REVISION, name, which)
    except NodeError as exc:
        raise fetch.chain.told(exc) from exc.__cause__
    return replace(fetched, chain=fetch.chain.steps)


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

    async def run(self, revision: str, name: str | None, which: Which) -> Fetched:
        began = time.perf_counter()
        if (fetched := await self._at_once(revision, name, which)) is not None:
            return fetched
        said = await self._resolve(revision)
        gathering = Gathering(self._store, self._hub, self._receiver, said.kept, self._progress)
        async with reserved(self._store, 0):  # what is stored on the way is no litter
            paths = await self._wanted(said, which, gathering)
            fetched = await self._here(said, paths, name)
            if fetched is None:
                paths = await in_thread(self._joined, said, paths)
                fetched = await self._from_peers(said, paths, name)
            if fetched is None:
                fetched = await self._from_hub(said, paths, name, gathering)
        gone = await in_thread(supersede, self._store, str(self._repo), said.snapshot.commit, fetched.model.root)
        log.info("hub.fetched repo=%s commit=%s root=%s", self._repo, said.snapshot.commit, fetched.model.root)
        share = gathering.share()
        return replace(
            fetched,
            model=await in_thread(lambda: self._store.model(fetched.model.root) or fetched.model),
            sources=merged(fetched.sources, share) if share.requests else fetched.sources,
            bytes_fetched=min(fetched.bytes_total, fetched.bytes_fetched + share.bytes),
            already_here=fetched.already_here and not share.bytes,
            seconds=time.perf_counter() - began,
            replaced=gone,
        )

    async def _at_once(self, revision: str, name: str | None, which: Which) -> Fetched | None:
        """What is here of a commit that is known, which never changes: nobody is asked."""
        if self._shelf is None or not is_commit(revision):
            return None
        kept = await in_thread(self._shelf.commit, self._repo, revision)
        if kept is None or not kept.confirmed:
            return None
        gathering = Gathering(self._store, self._hub, self._receiver, kept, self._progress)
        files = kept.shown()
        if which.needed and not which.choice:
            named = guides(file.path for file in files)
            if not await gathering.has(file for file in files if file.path in named):
                return None
        said = _Said(kept, kept.snapshot, asked=True)
        paths = await self._wanted(said, which, gathering)
        model = await in_thread(having, self._store, kept, paths)
        return None if model is None else await self._taken(said, model, paths, name)

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

    async def _wanted(self, said: _Said, which: Which, gathering: Gathering) -> Paths:
        """Raises NotFound (code no_match), and as `needed`."""
        every = frozenset(file.path for file in said.snapshot.files)
        if which.choice:
            paths = meant(every, which.choice, f"{self._repo}@{said.snapshot.commit}")
        elif which.needed:
            texts = await self._texts(said, guides(every), gathering)
            paths = needed(every, texts, str(self._repo)) or every
        else:
            return None
        return None if paths == every else paths

    async def _texts(self, said: _Said, paths: frozenset[str], gathering: Gathering) -> dict[str, bytes]:
        """What stands in the guides, fetched if need be."""
        files = [file for file in said.snapshot.files if file.path in paths]
        if large := next((file for file in files if file.size > MAX_GUIDE_BYTES), None):
            raise ModelUnsupported(f"{large.path} has {large.size} bytes: it is no index", code="bad_weights")
        try:
            found = await gathering.bring(files)
        except AuthRequired:
            raise
        except SourceUnavailable as exc:
            self.chain.note("hub", "failed", exc)
            if await self._from_peers(said, paths, None, again=True) is None:
                raise
            found = await gathering.bring(files)
        return {path: await in_thread(content_of, file) for path, file in found.items()}

    async def _here(self, said: _Said, paths: Paths, name: str | None) -> Fetched | None:
        model = await in_thread(having, self._store, said.kept, paths)
        if model is not None and (said.asked or not said.kept.claimed):
            return await self._taken(said, model, paths, name)
        what = "whole" if paths is None else "with all that is wanted of it"
        self.chain.note("here", "absent", f"commit {said.snapshot.commit} is not stored {what}")
        return None

    async def _taken(self, said: _Said, model: StoredModel, paths: Paths, name: str | None) -> Fetched:
        model = await in_thread(confirmed, self._store, model, said.kept)
        fetched = await in_thread(already_here, self._store, model, name)
        self.chain.note("here", "used")
        return replace(fetched, bytes_total=_size(said.snapshot, paths))

    def _joined(self, said: _Said, paths: Paths) -> Paths:
        """With what was chosen earlier: it is to be part of the same model."""
        if paths is None:
            return None
        for part in selections(self._store, str(self._repo), said.snapshot.commit):
            if part.provenance.shared_at is None:
                paths |= paths_here(self._store, part)
        every = {file.path for file in said.snapshot.files}
        return None if paths >= every else paths & every

    async def _from_peers(self, said: _Said, paths: Paths, name: str | None, *, again: bool = False) -> Fetched | None:
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
                only=paths,
            )
            label = partial(self._label, said, claim, fetched, paths, name)
            model = await in_thread(label)
        except (SourceUnavailable, IntegrityError, BadContent, UnsafeContent, NotFound) as exc:
            self.chain.note("map", "refused" if isinstance(exc, IntegrityError) else "failed", exc)
            if not said.asked:
                raise
            return None
        whose = "as the Hub's own oids say" if said.asked else f"as {claim.source} claims: the Hub could not be asked"
        self.chain.note("map", "used", f"root {claim.root} by {claim.source}, {whose}")
        return replace(fetched, model=model)

    def _label(self, said: _Said, claim: KeptCommit, fetched: Fetched, paths: Paths, name: str | None) -> StoredModel:
        self._store.pin(fetched.model.root)
        if name is not None:
            self._store.set_name(fetched.model.root, name)
        if self._shelf is not None:
            came = [file for file in fetched.plan.files if paths is None or file.path in paths]
            cids = {file.path: str(file.cid) for file in came}
            self._shelf.note_cids(self._repo, said.snapshot.commit, cids, str(fetched.model.root))
        model = self._store.model(fetched.model.root)
        if model is None:
            raise NotFound(f"{fetched.model.root} was removed meanwhile", cid=str(fetched.model.root))
        return stamped(self._store, model, said.kept)

    async def _from_hub(self, said: _Said, paths: Paths, name: str | None, gathering: Gathering) -> Fetched:
        """From the Hub alone; when it goes away on the way, the rest from whoever has it."""
        snapshot = said.snapshot
        files = [file for file in snapshot.files if paths is None or file.path in paths]
        try:
            found = await gathering.bring(files)
            gathering.tell("committing")
            fetched = await in_thread(self._commit, said.kept, found, name, gathering)
        except AuthRequired as exc:
            self.chain.note("hub", "refused", exc)
            raise
        except SourceUnavailable as exc:
            self.chain.note("hub", "failed", exc)
            nearby = await self._from_peers(said, paths, name, again=True)
            if nearby is None:
                raise
            return nearby
        except NodeError as exc:
            self.chain.note("hub", "refused", exc)
            raise
        self.chain.note("hub", "used")
        return fetched

    def _commit(
        self, kept: KeptCommit, found: dict[str, StoredFile], name: str | None, gathering: Gathering
    ) -> Fetched:
        """Under the commit's root if all its files are here, or their CIDs known; else as a selection."""
        snapshot = kept.snapshot
        built = {path: in_profile(self._store, file.cid) for path, file in found.items()}
        whole = len(found) == len(snapshot.files)
        tree = None if whole else commit_tree(self._store, kept, built)
        is_part = tree is None and not whole
        if tree is None:
            tree = tree_dag(built)
        provenance = hub_provenance(str(snapshot.of_repo), snapshot.commit, gathering.share())
        model = self._store.commit(
            tree.plan,
            tree.nodes,
            name=name,
            public=not snapshot.restricted,
            provenance=replace(provenance, selection=left_out(snapshot, found) if is_part else None),
            paths=None if whole or is_part else frozenset(found),
        )
        if self._shelf is not None:
            cids = {path: str(file.cid) for path, file in built.items()}
            self._shelf.note_cids(self._repo, snapshot.commit, cids, None if is_part else str(model.root))
        return Fetched(
            model=model if is_part else stamped(self._store, model, kept),
            plan=tree.plan,
            nodes=tuple(tree.nodes),
            bytes_total=sum(file.size for file in found.values()),
            bytes_fetched=0,  # but for what the gathering counts
            bytes_copied=0,
            seconds=0.0,
            sources=(),
            already_here=False,
            bytes_here=gathering.here_bytes,
        )


def _size(snapshot: Snapshot, paths: Paths) -> int:
    return sum(file.size for file in snapshot.files if paths is None or file.path in paths)
