"""Where the verified leaves of one fetch land: partial files, made durable in steps, turned into blobs when complete.

Owns every open partial file of the fetch; `close` gives them all back and keeps what was verified. Everything here
blocks, but `durable`, and may be called from several threads at once.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ipfs_accelerate_node.content.cid import Buffer, Cid
from ipfs_accelerate_node.content.plan import FilePlan, Leaf
from ipfs_accelerate_node.errors import IntegrityError, NodeError, NotFound
from ipfs_accelerate_node.store import LeafPlace, PartialFile, Store, commit_all

log = logging.getLogger(__name__)

MAX_OPEN_FILES = 128  # two descriptors each; what is idle beyond that is closed, and opened again when needed
SMALL_BYTES = 2 << 20  # files up to this size become blobs together, so many …
BATCH_FILES = 64
BATCH_BYTES = 16 << 20  # … or of so many bytes at once
COPY_AT_ONCE = 32  # leaves copied in one call, so that a cancel waits for tens of MiB at most …
COPY_THREADS = 2  # … at a time
CHECKED_AT_ONCE = 256  # the same for leaves that are only hashed


@dataclass(slots=True)
class _Slot:
    part: PartialFile
    users: int = 0


class Landing:
    """finished: files that became blobs here, not before, or that are whole and become blobs with the next batch."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()  # of the slots; never held while a disk is waited for, but to open or close
        self._ending = threading.Lock()  # a file is synced, or made a blob and closed: one at a time
        self._slots: OrderedDict[Cid, _Slot] = OrderedDict()
        self._durable: deque[Leaf] = deque()
        self._whole: dict[Cid, FilePlan] = {}
        self.finished: set[Cid] = set()

    def stored(self, file: Cid) -> bool:
        """Whether the whole file is a blob already, or whole."""
        return file in self._whole or self._store.file(file) is not None

    def missing(self, file: FilePlan, leaves: Iterable[Leaf]) -> list[Leaf]:
        """Those of its leaves that are not here yet; claims room for the file. Raises QuotaExceeded, StorageError."""
        with self._part(file.cid, file.size) as part:
            return part.missing(leaves)

    def reread(self, file: Cid, size: int, guesses: Iterable[Leaf]) -> bytes | None:
        """The block of the first guess that is right and whose payload is here, hashed."""
        with self._part(file, size) as part:
            for leaf in guesses:
                if not part.missing([leaf]) and (block := part.block(leaf.cid)) is not None:
                    return block
        return None

    def write(self, file: Cid, size: int, leaf: Leaf, payload: Buffer) -> int:
        """Payload of a verified leaf; returns the bytes that were not there before."""
        with self._part(file, size) as part:
            new = 0 if part.covers(leaf.offset, leaf.length) else leaf.length
            part.write(leaf, payload)
            return new

    def copy(self, file: FilePlan, leaves: Iterable[Leaf]) -> list[Leaf]:
        """Copies those leaves that some stored file holds; returns those that were copied."""
        copied: list[Leaf] = []
        with self._part(file.cid, file.size) as part:
            for run, place in self._runs(leaves):
                try:
                    part.copy_from(run, place)
                except (IntegrityError, NotFound) as exc:  # that file was corrupt or went away: the leaf is fetched
                    log.warning("fetch.copy_failed file=%s reason=%s", place.path.name, exc)
                copied += [leaf for leaf, here in zip(run, part.covered(run), strict=True) if here]
        return copied

    def _runs(self, leaves: Iterable[Leaf]) -> list[tuple[list[Leaf], LeafPlace]]:
        """Those that some stored file holds, in runs that are adjacent here and there, each with its start there."""
        runs: list[tuple[list[Leaf], LeafPlace]] = []
        for leaf in leaves:
            if (place := self._store.leaf_at(leaf.cid)) is None:
                continue
            if runs and _continues(*runs[-1], leaf, place):
                runs[-1][0].append(leaf)
            else:
                runs.append(([leaf], place))
        return runs

    def sync(self) -> None:
        """Makes everything written so far durable."""
        with self._ending:
            with self._lock:
                parts = [slot.part for slot in self._slots.values()]
            for part in parts:
                self._durable += part.sync()

    def finish(self, file: FilePlan) -> None:
        """Turns a complete file into a blob: at once, or a small one together with others."""
        with self._ending:
            with self._lock:
                if file.cid in self._whole:
                    return
                slot = self._slot(file.cid, file.size)
                slot.users += 1  # not closed before it is a blob
                self._whole[file.cid] = file
                self.finished.add(file.cid)
                few = len(self._whole) < BATCH_FILES and sum(f.size for f in self._whole.values()) < BATCH_BYTES
            if file.size > SMALL_BYTES or not few:
                self._flush()

    def flush(self) -> None:
        """Every file that is whole is a blob. Raises StorageError."""
        with self._ending:
            self._flush()

    def _flush(self) -> None:
        """With the lock of endings. What fails is a partial file as before."""
        with self._lock:
            whole, self._whole = self._whole, {}
            slots = {cid: self._slots[cid] for cid in whole}
        try:
            self._durable += commit_all([(slots[cid].part, file) for cid, file in whole.items()])
        except NodeError:
            self.finished -= whole.keys()
            with self._lock:
                for slot in slots.values():
                    slot.users -= 1
            raise
        with self._lock:
            for cid in whole:
                del self._slots[cid]

    def durable(self) -> list[Leaf]:
        """The leaves that became durable since the last call. Does not block."""
        return [self._durable.popleft() for _ in range(len(self._durable))]

    def close(self) -> None:
        """Keeps what was verified, frees every descriptor. Raises nothing of ours: the fetch has its own outcome."""
        try:
            self.flush()
        except NodeError as exc:
            log.warning("fetch.flush_failed reason=%s", exc)
        with self._ending, self._lock:
            while self._slots:
                self._end(self._slots.popitem()[1].part)

    @contextmanager
    def _part(self, cid: Cid, size: int) -> Iterator[PartialFile]:
        """The open partial file of a file, which nobody closes meanwhile."""
        with self._lock:
            slot = self._slot(cid, size)
            slot.users += 1
        try:
            yield slot.part
        finally:
            with self._lock:
                slot.users -= 1

    def _slot(self, cid: Cid, size: int) -> _Slot:
        """With the lock of the slots."""
        if (slot := self._slots.get(cid)) is None:
            self._make_room()
            slot = self._slots[cid] = _Slot(self._store.partial(cid, size))
        self._slots.move_to_end(cid)
        return slot

    def _make_room(self) -> None:
        """Closes the idle file that was used longest ago, if there are too many.

        Not while a sync goes on, which has its own list of open files.
        """
        if len(self._slots) < MAX_OPEN_FILES or not self._ending.acquire(blocking=False):
            return
        try:
            idle = next((cid for cid, slot in self._slots.items() if not slot.users), None)
            if idle is not None:
                self._end(self._slots.pop(idle).part)
        finally:
            self._ending.release()

    def _end(self, part: PartialFile) -> None:
        try:
            self._durable += part.sync()
        except NodeError as exc:
            log.warning("fetch.sync_failed file=%s reason=%s", part.cid, exc)
        finally:
            part.close()


def _continues(run: list[Leaf], start: LeafPlace, leaf: Leaf, place: LeafPlace) -> bool:
    """Whether the leaf, and its place, follow a run and its."""
    here, there = leaf.offset - run[0].offset, place.offset - start.offset
    return place.path == start.path and here == there and leaf.offset == run[-1].offset + run[-1].length
