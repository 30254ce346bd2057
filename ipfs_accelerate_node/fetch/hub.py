"""`hf:org/name[@revision]`, first form: the Hub's files one after another, each checked against its oid, then stored.

Files gather in ``<cache>/hub/…``, a directory for each repository and commit, on the store's device. What was fetched
stays there when the fetch fails or the process dies, and is hashed again before it counts: a second try asks only for
the rest. The directory ends when its files have moved into the store. One fetch at a time owns it (a lock on it).
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import logging
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from ipfs_accelerate_node.content.build import PROFILE_NAME
from ipfs_accelerate_node.errors import Conflict, IntegrityError, SourceUnavailable
from ipfs_accelerate_node.fetch.hub_shelf import SHELF, HubShelf, KeptCommit
from ipfs_accelerate_node.fetch.outcome import Fetched, Progress
from ipfs_accelerate_node.sources.hub import CHUNK_BYTES, HubSource
from ipfs_accelerate_node.sources.hub_answers import HubFile
from ipfs_accelerate_node.sources.hub_names import DEFAULT_REVISION, HubRepo
from ipfs_accelerate_node.sources.hub_snapshot import OidHash, Snapshot, Traffic
from ipfs_accelerate_node.store import Store
from ipfs_accelerate_node.store.disk import clone, open_directory, open_read, storing, write_all
from ipfs_accelerate_node.store.ingest import Ingested, ingest
from ipfs_accelerate_node.store.types import Provenance, SourceShare, StoredFile, StoredModel

log = logging.getLogger(__name__)

_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


async def fetch_hub(
    store: Store,
    hub: HubSource,
    repo: str,
    revision: str | None,
    *,
    name: str | None,
    progress: Callable[[Progress], None],
    shelf: HubShelf | None = None,
) -> Fetched:
    """The commit that revision means now (default: main), stored like any `add`; hidden files are left out. shelf: what
    the Hub said is kept there.

    A private or gated repository's model is stored as not public. Raises BadRequest, NotFound, AuthRequired,
    SourceUnavailable, UnsafeContent, IntegrityError (the Hub sent other bytes twice), QuotaExceeded, StorageError, and
    Conflict while the same commit is being fetched already. Cancelling it keeps what is there for the next try.
    """
    started = time.monotonic()
    progress(Progress(None, 0, "walking", hub.name))
    asked = HubRepo(repo)
    answer = await hub.commit(asked, revision or DEFAULT_REVISION)
    snapshot = Snapshot.of(asked, answer)
    if shelf is not None:
        await asyncio.to_thread(shelf.keep, KeptCommit.of(asked, answer, hub.name), revision or DEFAULT_REVISION)
    here = await asyncio.to_thread(stored_commit, store, snapshot)
    if here is not None:
        return await asyncio.to_thread(_already_here, store, here, name)
    traffic = Traffic()
    with staging(store, f"{snapshot.repo}@{snapshot.commit}") as folder:
        copied = await _gather(store, hub, snapshot, folder, traffic, progress)
        progress(Progress(snapshot.size_bytes, snapshot.size_bytes, "committing", hub.name))
        ingested = await asyncio.to_thread(_commit, store, snapshot, folder, name, _provenance(hub, snapshot, traffic))
    if shelf is not None:
        cids = {file.path: str(file.cid) for file in ingested.plan.files}
        await asyncio.to_thread(shelf.note_cids, asked, snapshot.commit, cids, str(ingested.plan.root))
    seconds = time.monotonic() - started
    log.info("hub.fetched repo=%s commit=%s bytes=%d s=%.2f", repo, snapshot.commit, traffic.bytes, seconds)
    return Fetched(
        model=ingested.model,
        plan=ingested.plan,
        nodes=tuple(ingested.nodes),
        bytes_total=ingested.plan.size_bytes,
        bytes_fetched=traffic.bytes,
        bytes_copied=copied,
        seconds=seconds,
        sources=ingested.model.provenance.sources,
        already_here=False,
    )


def stored_commit(store: Store, snapshot: Snapshot) -> StoredModel | None:
    for model in store.models():
        provenance = model.provenance
        if (provenance.hub_repo, provenance.hub_commit) == (snapshot.repo, snapshot.commit):
            return model
    return None


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


def _provenance(hub: HubSource, snapshot: Snapshot, traffic: Traffic) -> Provenance:
    return Provenance(
        kind="hf",
        reference=f"hf:{snapshot.repo}@{snapshot.commit}",
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        sources=(SourceShare(hub.name, "hub", traffic.bytes, traffic.requests, traffic.rejected),),
        profile=PROFILE_NAME,
        hub_repo=snapshot.repo,
        hub_commit=snapshot.commit,
    )


def staging_folder(store: Store, what: str) -> Path:
    """Where the files of what gather; it need not be there."""
    return store.root / "hub" / hashlib.sha256(what.encode()).hexdigest()[:32]


@contextmanager
def staging(store: Store, what: str) -> Iterator[Path]:
    """The directory where the files of what gather, ours alone inside the context."""
    directory = staging_folder(store, what)
    with storing(f"cannot stage {what}"):
        directory.parent.mkdir(mode=0o700, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
        handle = open_directory(directory)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise Conflict(f"{what} is being fetched already") from exc
        yield directory
    finally:
        os.close(handle)


def drop_staged(store: Store) -> int:
    """Deletes what failed fetches left and nobody resumes now; the bytes freed. Blocks."""
    freed = 0
    with storing("cannot clear the Hub's staging folders"):
        for directory in [path for path in (store.root / "hub").glob("*") if path.name != SHELF]:
            handle = open_directory(directory)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                freed += sum(path.lstat().st_blocks * 512 for path in directory.rglob("*") if not path.is_dir())
                shutil.rmtree(directory)
            except BlockingIOError:
                continue  # under way
            finally:
                os.close(handle)
    return freed


async def _gather(
    store: Store,
    hub: HubSource,
    snapshot: Snapshot,
    staging: Path,
    traffic: Traffic,
    progress: Callable[[Progress], None],
) -> int:
    """Every file of snapshot below staging, verified; the bytes that were copied from files of the store. The room for
    all of them is held first."""
    done = copied = 0
    reservation = await asyncio.to_thread(store.reserve, snapshot.size_bytes)
    with reservation:
        for file in snapshot.files:

            def report(file_bytes: int, before: int = done) -> None:
                progress(Progress(snapshot.size_bytes, before + file_bytes, "fetching", hub.name))

            part = Part(file, staging.joinpath(*file.path.split("/")))
            try:
                await asyncio.to_thread(part.open)
                if await asyncio.to_thread(_borrowed, store, snapshot, part):
                    copied += file.size
                report(part.have)
                await deliver(hub, snapshot, part, traffic, report)
            finally:
                part.close()
            done += file.size
    return copied


def same_bytes(store: Store, snapshot: Snapshot, file: HubFile) -> StoredFile | None:
    """A stored file with the oid that the Hub names. For a repository that all may read only one that all may read
    here: what is private does not become public because a repository names its hash."""
    return store.of_oid(bytes.fromhex(file.oid), file.size, public_only=not snapshot.restricted)


def _borrowed(store: Store, snapshot: Snapshot, part: Part) -> bool:
    """Whether a part that lacked bytes has them all now, from a stored file."""
    if part.whole or (stored := same_bytes(store, snapshot, part.file)) is None:
        return False
    return part.borrow(stored.path)


async def deliver(
    hub: HubSource,
    snapshot: Snapshot,
    part: Part,
    traffic: Traffic,
    report: Callable[[int], None],
) -> None:
    """One whole, verified file. A wrong one is deleted and asked for once more (table F4h), then named."""
    distrusted = False
    while not part.whole:
        await _receive(hub, snapshot, part, traffic, report)
        if await asyncio.to_thread(part.settle):
            return
        traffic.rejected += 1
        wrong = part.oid
        await asyncio.to_thread(part.clear)
        if distrusted:
            raise IntegrityError(expected=part.file.oid, actual=wrong, origin=hub.name)
        distrusted = True


async def _receive(
    hub: HubSource, snapshot: Snapshot, part: Part, traffic: Traffic, report: Callable[[int], None]
) -> None:
    """The rest of part's bytes, over as many attempts as bring it forward."""
    attempt = 0
    while True:
        before = part.have
        try:
            async with hub.open(snapshot, part.file, part.have, traffic) as (begins, runs):
                if begins != part.have:  # the server knows no ranges
                    await asyncio.to_thread(part.clear)
                async for run in runs:
                    await asyncio.to_thread(part.append, run)
                    report(part.have)
            return
        except SourceUnavailable as exc:
            if exc.code == "range_refused" and part.have:
                await asyncio.to_thread(part.clear)
                continue
            attempt = 0 if part.have - before >= CHUNK_BYTES else attempt
            await hub.pause(attempt, exc)
            attempt += 1


class Part:
    """One file as far as it is here, and the hash of that. Blocks: worker threads only.

    A cancelled fetch closes it while its last `append` may still run in a thread, hence the lock.
    """

    def __init__(self, file: HubFile, path: Path) -> None:
        self.file = file
        self.have = 0
        self.whole = False  # verified and durable
        self._path = path
        self._handle = -1
        self._hash = OidHash(file)
        self._lock = threading.Lock()

    @property
    def oid(self) -> str:
        return self._hash.oid

    def open(self) -> None:
        """Takes over what an earlier try left, if it is or may become this file, and starts anew otherwise."""
        with storing(f"cannot stage {self.file.path}"):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._left_by_a_commit():
                return
            self._handle = os.open(self._path, _FLAGS | os.O_RDWR | os.O_CREAT, 0o600)
            self._read()
        if self.have >= self.file.size and not self.settle():
            self.clear()

    def _left_by_a_commit(self) -> bool:
        """A file that was on its way into the store when the process died may be a blob by now (read-only, a second
        link): never to be written to. True if it is whole; else it is let go."""
        try:
            self._handle = os.open(self._path, _FLAGS | os.O_RDONLY)
        except FileNotFoundError:
            return False
        found = os.fstat(self._handle)
        ours = stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_mode & stat.S_IWUSR
        if not ours:
            self._read()
            if self.settle():
                return True
            self._path.unlink()
        self.close()
        self._hash, self.have = OidHash(self.file), 0
        return False

    def _read(self) -> None:
        while chunk := os.pread(self._handle, CHUNK_BYTES, self.have):
            self._hash.update(chunk)
            self.have += len(chunk)

    def append(self, payload: bytes) -> None:
        with self._lock, storing(f"cannot stage {self.file.path}"):
            if self._handle < 0:
                return
            write_all(self._handle, payload, self.have)
            self._hash.update(payload)
            self.have += len(payload)

    def borrow(self, path: Path) -> bool:
        """Takes the bytes of another file of this machine, sharing its disk blocks where that is possible, and hashes
        them. False, and nothing is here, if that file is gone or not what it was."""
        self.clear()
        try:
            source = open_read(path)
        except FileNotFoundError:
            return False
        with self._lock, storing(f"cannot stage {self.file.path}"):
            try:
                if not clone(self._handle, source):
                    while os.sendfile(self._handle, source, None, CHUNK_BYTES):
                        pass
            finally:
                os.close(source)
            self._read()
        if self.settle():
            return True
        self.clear()
        return False

    def settle(self) -> bool:
        """Whether all bytes are here, match the oid and are on disk."""
        if self.have != self.file.size or self.oid != self.file.oid:
            return False
        with storing(f"cannot stage {self.file.path}"):
            os.fdatasync(self._handle)
        self.whole = True
        return True

    def clear(self) -> None:
        with self._lock, storing(f"cannot stage {self.file.path}"):
            os.ftruncate(self._handle, 0)
            self._hash, self.have = OidHash(self.file), 0

    def close(self) -> None:
        with self._lock:
            if self._handle >= 0:
                os.close(self._handle)
            self._handle = -1


def _commit(store: Store, snapshot: Snapshot, staging: Path, name: str | None, provenance: Provenance) -> Ingested:
    """The staged files become a model; nothing else may lie among them, and of them only the directory is left."""
    _drop_strangers(staging, {file.path for file in snapshot.files})
    ingested = ingest(
        store,
        staging,
        move=True,
        name=name,
        pinned=True,
        public=not snapshot.restricted,
        provenance=provenance,
        progress=None,
    )
    shutil.rmtree(staging, ignore_errors=True)
    return ingested


def _drop_strangers(staging: Path, wanted: set[str]) -> None:
    with storing(f"cannot stage in {staging}"):
        for folder, _, names in os.walk(staging):
            for entry in names:
                path = Path(folder, entry)
                if path.relative_to(staging).as_posix() not in wanted:
                    path.unlink()
