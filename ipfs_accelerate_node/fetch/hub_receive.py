"""One file of the Hub by its oid, whoever wants it: one transfer at a time, over several connections, resumed.

Whoever asks first brings it, in its own task; the others wait for that outcome, or read what comes (`Arrival`). When
the first one is cancelled the next goes on with its own source from what came so far. What arrives is nobody's before
all of it is whole and has its oid, but for those who take care (`Arrival.given`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import (
    AuthRequired,
    IntegrityError,
    NodeError,
    NotFound,
    SourceUnavailable,
)
from ipfs_accelerate_node.fetch.hub_arrival import Arrival, MappedPart, Report
from ipfs_accelerate_node.fetch.threads import in_thread
from ipfs_accelerate_node.sources.hub import ATTEMPTS, HubSource
from ipfs_accelerate_node.sources.hub_answers import HubFile
from ipfs_accelerate_node.sources.hub_body import CHUNK_BYTES
from ipfs_accelerate_node.sources.hub_snapshot import Snapshot, Traffic
from ipfs_accelerate_node.store import Reservation, Store, StoredFile
from ipfs_accelerate_node.store.unnamed import UnnamedFile, store_all

log = logging.getLogger(__name__)

PARALLEL_BYTES = 32 << 20  # larger files come over several connections …
CONNECTIONS = 4
LEASE_BYTES = 8 << 20  # … each of which asks for so much at a time, in file order: whoever reads along waits least
MAX_LEASE_BYTES = 64 << 20  # of files so large that the Hub would be asked too often
SYNC_BYTES = 64 << 20  # a crash loses so much at most
MAX_LEFT = 1000  # files that were given up, of which it is known which copy came


class Receiver:
    """Owns the arrivals over one store. Needs no closing: each lives in its caller."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._under_way: dict[str, Arrival] = {}
        self._left: dict[str, Arrival] = {}  # by oid, those that were cancelled, the latest last
        self._whole: list[UnnamedFile] = []
        self._landing = asyncio.Lock()
        self._news = asyncio.Event()

    async def coming(self, oid: str, offset: int, bringing: asyncio.Future[StoredFile]) -> Arrival | None:
        """What is under way of that file, once bytes from offset on have come of it that may be given before all are
        verified. None where there are no such bytes until bringing has ended."""
        while not bringing.done():
            arrival, news = self._under_way.get(oid), self._news
            if arrival is not None and arrival.restarts:
                return None
            if arrival is not None and arrival.part is not None and arrival.part.reaches(offset) > offset:
                return arrival
            change = asyncio.ensure_future(_change(arrival, news))
            either: set[asyncio.Future[Any]] = {change, bringing}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            change.cancel()
        return None

    def is_trusted(self, oid: str) -> bool:
        """Whether all that anybody was given of that file is of the copy that is under way."""
        arrival = self._under_way.get(oid)
        return arrival is not None and arrival.is_trusted and arrival.is_given

    async def bring(
        self, hub: HubSource, snapshot: Snapshot, file: HubFile, traffic: Traffic, report: Report = lambda _: None
    ) -> StoredFile:
        """The file, stored by itself. report: is told the bytes of it that are here. The caller holds a reservation, so
        that what it stores is no litter yet.

        Raises NotFound, AuthRequired, SourceUnavailable, IntegrityError (the Hub sent other bytes twice: table F4h),
        QuotaExceeded, StorageError. What came stays for the next call, also when it is cancelled.
        """
        while (arrival := self._under_way.get(file.oid)) is not None:
            with arrival.watched(report):
                await arrival.ended.wait()
            if isinstance(arrival.outcome, StoredFile):
                return arrival.outcome
            own_fault = isinstance(arrival.outcome, AuthRequired | NotFound)  # of another's token, perhaps
            if arrival.outcome is not None and arrival.source == hub.name and not own_fault:
                raise arrival.outcome
        self._begin(arrival := Arrival(file, hub.name))
        try:
            with arrival.watched(report):
                arrival.outcome = await self._fly(arrival, _Transfer(hub, snapshot, arrival, traffic))
            return arrival.outcome
        except NodeError as exc:
            arrival.outcome = exc
            raise
        finally:
            del self._under_way[file.oid]
            arrival.end()
            self._leave(arrival)

    def _leave(self, arrival: Arrival) -> None:
        self._left.pop(arrival.file.oid, None)
        if arrival.was_left:
            self._left[arrival.file.oid] = arrival
        while len(self._left) > MAX_LEFT:
            del self._left[next(iter(self._left))]

    @asynccontextmanager
    async def mapped(self, file: HubFile, cid: Cid, *, is_sure: bool = False) -> AsyncIterator[Arrival]:
        """While somebody brings the file by its CID: an arrival that others read along, with an outcome to be set. Not
        seen by them where another one is under way already. is_sure: this node itself found out the file's CID."""
        arrival = Arrival(file, "map")
        arrival.is_sure = is_sure
        arrival.part = MappedPart(self._store, cid)
        seen = file.oid not in self._under_way
        if seen:
            self._begin(arrival)
        try:
            yield arrival
            if isinstance(arrival.outcome, StoredFile):
                await in_thread(arrival.settle, self._store)
        finally:
            if seen:
                del self._under_way[file.oid]
            arrival.end()

    def _begin(self, arrival: Arrival) -> None:
        self._under_way[arrival.file.oid] = arrival
        self._news.set()
        self._news = asyncio.Event()

    async def _fly(self, arrival: Arrival, transfer: _Transfer) -> StoredFile:
        opened: list[UnnamedFile] = []
        try:
            await in_thread(lambda: opened.append(self._store.unnamed.open(arrival.file.oid, arrival.file.size)))
            arrival.part = part = opened[0]
            if (before := self._left.get(arrival.file.oid)) is not None:
                arrival.follow(before, part.received_bytes)
            arrival.came(part.received_bytes)
            await transfer.complete(self._store, part)
            return await self._land(part)
        finally:
            for part in opened:
                await in_thread(part.close)

    async def _land(self, part: UnnamedFile) -> StoredFile:
        """Makes it a blob; those that become whole while others are stored go together. Raises StorageError."""
        while part.cid is None:
            self._whole.append(part)
            try:
                async with self._landing:
                    if part in self._whole:
                        batch, self._whole = self._whole, []
                        await in_thread(store_all, batch)
            finally:
                with suppress(ValueError):
                    self._whole.remove(part)
        stored = await in_thread(self._store.file, part.cid)
        if stored is None:
            raise NotFound(f"{part.cid} was evicted as soon as it was stored", cid=str(part.cid))
        return stored


async def _change(arrival: Arrival | None, news: asyncio.Event) -> None:
    if arrival is None:
        await news.wait()
    else:
        await arrival.change()


@asynccontextmanager
async def reserved(store: Store, size_bytes: int) -> AsyncIterator[None]:
    """Room for what is brought inside; with any, what is stored there is no litter yet. Raises QuotaExceeded."""
    held: list[Reservation] = []
    try:
        await in_thread(lambda: held.append(store.reserve(size_bytes)))
        yield
    finally:
        for reservation in held:
            await in_thread(reservation.release)


class _Transfer:
    """The bytes of one file from one source."""

    def __init__(self, hub: HubSource, snapshot: Snapshot, arrival: Arrival, traffic: Traffic) -> None:
        self._hub = hub
        self._snapshot = snapshot
        self._arrival = arrival
        self._file = arrival.file
        self._traffic = traffic
        self._ranges = True  # until the server turns out to know none
        self._leases: deque[tuple[int, int]] = deque()
        self._unsynced = 0
        self._begun = asyncio.Event()  # something has come

    async def complete(self, store: Store, part: UnnamedFile) -> None:
        """All of it here and verified. A wrong file is dropped and asked for once more, then named (table F4h)."""
        distrusted = False
        while True:
            await self._fill(part)
            if await in_thread(part.check):
                await in_thread(self._arrival.settle, store)
                return
            self._traffic.rejected += 1
            wrong = part.actual
            log.warning("hub.wrong_bytes source=%s path=%s oid=%s", self._hub.name, self._file.path, wrong)
            await self._drop(part)
            if distrusted:
                raise IntegrityError(expected=self._file.oid, actual=wrong, origin=self._hub.name)
            distrusted = True

    async def _fill(self, part: UnnamedFile) -> None:
        """What is missing, over as many attempts as bring it forward."""
        attempt = dropped = 0
        while part.missing():
            before = part.received_bytes
            failure = await self._round(part)
            if failure is None:
                continue
            if (
                failure.code in ("range_refused", "no_ranges")
                and part.received_bytes + self._ranges
                and dropped < ATTEMPTS
            ):
                self._ranges = False
                dropped += 1
                await self._drop(part)
                continue
            attempt = 0 if part.received_bytes - before >= CHUNK_BYTES else attempt
            await self._hub.pause(attempt, failure)
            attempt += 1

    async def _drop(self, part: UnnamedFile) -> None:
        self._arrival.restart()
        await in_thread(part.clear)

    async def _round(self, part: UnnamedFile) -> SourceUnavailable | None:
        """Every gap asked for once. A connection that fails ends alone, the others go on with what is left; the last
        failure comes back. Raises at once what no other connection can mend."""
        several = self._ranges and self._file.size > PARALLEL_BYTES
        lease_bytes = min(max(LEASE_BYTES, self._file.size // 128), MAX_LEASE_BYTES) if several else self._file.size
        gaps = part.missing() if self._ranges else [(part.missing()[0][0], self._file.size)]
        self._leases = deque(piece for start, stop in gaps for piece in _cut(start, stop, lease_bytes))
        failures: list[NodeError] = []
        async with asyncio.TaskGroup() as group:
            lanes: list[asyncio.Task[None]] = []

            async def lane(number: int) -> None:
                if number:  # nothing is in the way of the first byte, for which somebody may wait
                    await self._begun.wait()
                try:
                    while self._leases:
                        await self._carry(part, *self._leases.popleft())
                except SourceUnavailable as exc:
                    failures.append(exc)
                    if not isinstance(exc, AuthRequired) and exc.code not in ("no_ranges", "range_refused"):
                        return
                except NodeError as exc:
                    failures.append(exc)
                finally:
                    self._begun.set()
                for other in lanes if failures else ():
                    if other is not asyncio.current_task():
                        other.cancel()

            count = min(CONNECTIONS if several else 1, len(self._leases))
            lanes += [group.create_task(lane(i), name=f"hub {self._file.path} {i}") for i in range(count)]
        hopeless = [f for f in failures if not isinstance(f, SourceUnavailable) or isinstance(f, AuthRequired)]
        if hopeless:
            raise hopeless[0]
        last = failures[-1] if failures else None
        assert last is None or isinstance(last, SourceUnavailable)
        return last

    async def _carry(self, part: UnnamedFile, start: int, stop: int) -> None:
        file = self._file
        async with self._hub.open(self._snapshot, file, start, self._traffic, stop=stop) as (begins, runs):
            if begins != start:  # the server knows no ranges: all of it comes again
                await self._drop(part)
                self._ranges = False
                self._leases.clear()
            at = begins
            async for run in runs:
                await in_thread(part.write, at, run)
                at += len(run)
                self._unsynced += len(run)
                self._begun.set()
                self._arrival.came(part.received_bytes)
                if self._unsynced >= SYNC_BYTES:
                    self._unsynced = 0
                    await in_thread(part.sync)


def _cut(start: int, stop: int, lease_bytes: int) -> Iterator[tuple[int, int]]:
    """Pieces that end at whole leases of the file, so that leaves are seldom torn."""
    while start < stop:
        end = min(stop, (start // lease_bytes + 1) * lease_bytes)
        yield start, end
        start = end
