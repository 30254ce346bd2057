"""Files of one commit from the Hub into the store: what is here under its oid is used, only the rest is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.fetch.hub_receive import Receiver, reserved
from ipfs_accelerate_node.fetch.hub_shelf import KeptCommit
from ipfs_accelerate_node.fetch.outcome import Progress
from ipfs_accelerate_node.fetch.threads import in_thread
from ipfs_accelerate_node.fetch.together import together
from ipfs_accelerate_node.sources.hub import HubSource
from ipfs_accelerate_node.sources.hub_answers import HubFile
from ipfs_accelerate_node.sources.hub_snapshot import Snapshot, Traffic
from ipfs_accelerate_node.store import Store
from ipfs_accelerate_node.store.disk import storing
from ipfs_accelerate_node.store.types import SourceShare, StoredFile

FILES_AT_ONCE = 6


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


class Gathering:
    """Brings files of the commit that kept tells of. found: by path, those that were brought, or were here. traffic:
    what it cost. here_bytes: of what was asked for, what was here before."""

    def __init__(
        self,
        store: Store,
        hub: HubSource,
        receiver: Receiver,
        kept: KeptCommit,
        progress: Callable[[Progress], None],
    ) -> None:
        self.found: dict[str, StoredFile] = {}
        self.traffic = Traffic()
        self.here_bytes = 0
        self._store = store
        self._hub = hub
        self._receiver = receiver
        self._kept = kept
        self._snapshot = kept.snapshot
        self._progress = progress
        self._done: dict[str, int] = {}  # of each file the bytes that are here
        self._total = 0

    async def bring(self, files: Iterable[HubFile]) -> dict[str, StoredFile]:
        """These, verified and stored, by path. The room for all is held first; the caller's reservation keeps them.
        Raises as `Receiver.bring`."""
        files = list(files)
        new = [file for file in files if file.path not in self._done]
        self._total += sum(file.size for file in new)
        known = await in_thread(self._known, new)
        self.found |= known
        self._done |= {path: file.size for path, file in known.items()}
        lacking = {file.oid: file for file in files if file.path not in self.found}
        brought = await in_thread(lambda: sum(self._store.unnamed.brought(f.oid, f.size) for f in lacking.values()))
        self.here_bytes += sum(file.size for file in known.values()) + brought
        left = sum(file.size for file in lacking.values())
        async with reserved(self._store, max(0, left - brought)):
            self.tell()
            await together((partial(self._bring, file) for file in lacking.values()), FILES_AT_ONCE)
        for file in files:  # the same bytes at another path came once
            if file.path not in self.found:
                self.found[file.path] = self.found[lacking[file.oid].path]
                self.here_bytes += file.size
        return {file.path: self.found[file.path] for file in files}

    async def has(self, files: Iterable[HubFile]) -> bool:
        """Whether all of these are here."""
        wanted = list(files)
        return len(await in_thread(self._known, wanted)) == len(wanted)

    def tell(self, phase: str = "fetching") -> None:
        self._progress(Progress(self._total, sum(self._done.values()), phase, self._hub.name))

    def share(self) -> SourceShare:
        """What the Hub gave."""
        traffic = self.traffic
        return SourceShare(self._hub.name, self._hub.kind, traffic.bytes, traffic.requests, traffic.rejected)

    def _known(self, files: Iterable[HubFile]) -> dict[str, StoredFile]:
        noted = self._kept.cids
        stored = ((f.path, same_bytes(self._store, self._snapshot, f, noted.get(f.path))) for f in files)
        return {path: file for path, file in stored if file is not None}

    async def _bring(self, file: HubFile) -> None:
        def report(file_bytes: int) -> None:
            self._done[file.path] = file_bytes
            self.tell()

        self.found[file.path] = await self._receiver.bring(self._hub, self._snapshot, file, self.traffic, report)
        self._done[file.path] = file.size
        self.tell()


def content_of(file: StoredFile) -> bytes:
    """Blocks. Raises StorageError."""
    with storing(f"cannot read {file.cid}"):
        return file.path.read_bytes()
