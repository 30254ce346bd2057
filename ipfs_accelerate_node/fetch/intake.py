"""Where the leaves of one lease are checked and written: in threads, a bounded number of bytes at a time.

A range is cut into leaves as its pieces arrive; the leaves that one piece completes go to a thread together, which
hashes and writes them straight out of the piece. At most SLOTS pieces of all leases are there at a time; who reads
faster waits. A wrong leaf ends its lease at once; leaves that were right count, whatever happens after.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol

from ipfs_accelerate_node.content.cid import Buffer
from ipfs_accelerate_node.content.plan import Leaf
from ipfs_accelerate_node.errors import IntegrityError, NodeError, SourceUnavailable
from ipfs_accelerate_node.fetch.executor import misdeclared
from ipfs_accelerate_node.fetch.planner import Lease, Planner
from ipfs_accelerate_node.fetch.schedule import Standing
from ipfs_accelerate_node.fetch.threads import in_thread
from ipfs_accelerate_node.sources.source import Source

SLOTS = 6  # batches that are hashed or wait for it


@dataclass(frozen=True, slots=True)
class Arrived:
    """Bytes of a leaf, unverified. block: with what a dag-pb leaf has around its payload."""

    number: int
    leaf: Leaf
    data: Buffer
    block: bool

    def verified(self, source: Source) -> Buffer:
        """The payload. Raises IntegrityError, SourceUnavailable (truncated), BadContent (the DAG lies)."""
        leaf, data = self.leaf, self.data
        if not self.block:
            leaf.cid.check(wrapped(leaf, data), source.name)
            return data
        check_block(leaf, data, source.name)
        return memoryview(data)[len(leaf.prefix) : len(data) - len(leaf.suffix)]


def wrapped(leaf: Leaf, payload: Buffer) -> Buffer:
    return b"".join((leaf.prefix, payload, leaf.suffix)) if leaf.prefix or leaf.suffix else payload


def check_block(leaf: Leaf, block: Buffer, origin: str) -> None:
    """A block that is shorter than its leaf was cut, whatever its sender called its length; any other that does not
    match is wrong. One that matches and is shorter shows that the DAG lies: no source can mend that."""
    expected_bytes = len(leaf.prefix) + leaf.length + len(leaf.suffix)
    if len(block) >= expected_bytes:
        leaf.cid.check(block, origin)
    elif not leaf.cid.matches(block):
        reason = f"{origin} for {leaf.cid}: {len(block)} bytes of {expected_bytes}"
        raise SourceUnavailable(reason, source=origin, cid=leaf.cid, code="truncated")
    if len(block) != expected_bytes:
        raise misdeclared(leaf, len(block))


class Shelf(Protocol):
    """Who takes verified leaves. Called on the loop, but `store` in a thread."""

    def expect(self, standing: Standing, leaf: Leaf) -> None:
        """It is here, unverified, and may be stored in a moment."""

    def store(self, number: int, payload: Buffer) -> None:
        """Writes it to all its places. Raises StorageError, QuotaExceeded."""

    async def landed(self, standing: Standing, numbers: Sequence[int]) -> None:
        """These were stored."""


@dataclass(eq=False, slots=True)
class Intake:
    """Of one fetch: what its leases share."""

    planner: Planner
    shelf: Shelf

    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(SLOTS))

    async def take(self, standing: Standing, batch: Sequence[Arrived]) -> NodeError | None:
        """Checks and stores a batch up to the first leaf that is wrong; why it is."""
        stored: list[int] = []
        for item in batch:
            self.shelf.expect(standing, item.leaf)
        try:
            return await in_thread(self._take, standing.source, batch, stored)
        finally:  # cancelled too: what the thread stored counts
            if stored:
                await self.shelf.landed(standing, stored)

    def _take(self, source: Source, batch: Sequence[Arrived], stored: list[int]) -> NodeError | None:
        for item in batch:
            try:
                self.shelf.store(item.number, item.verified(source))
            except NodeError as exc:
                return exc
            stored.append(item.number)
        return None


class Carriage:
    """One lease, carried as one range."""

    def __init__(self, intake: Intake, standing: Standing, lease: Lease) -> None:
        self._intake = intake
        self._standing = standing
        self._lease = lease
        self._fault: NodeError | None = None
        self._reader: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Raises what ended it early: what the source raised, IntegrityError, or what no source can mend."""
        async with asyncio.TaskGroup() as group:
            self._reader = group.create_task(self._read(group), name=f"range from {self._standing.source.name}")
        if self._fault is not None:
            raise self._fault

    async def _read(self, group: asyncio.TaskGroup) -> None:
        lease, planner = self._lease, self._intake.planner
        leaves = lease.leaves
        start, stop = leaves[0].offset, leaves[-1].offset + leaves[-1].length
        cutter = _Cutter(lease)
        clock = asyncio.get_running_loop().time
        planner.carrying(lease, cutter.number)
        try:
            async with aclosing(self._standing.source.read_range(lease.file, start, stop)) as pieces:
                async for piece in pieces:
                    now = clock()
                    planner.received(lease, len(piece), now)
                    self._standing.meter.add(len(piece), now)
                    batch = [item for item in cutter.feed(piece) if planner.wants(item.number)]
                    if cutter.number < lease.stop:
                        planner.carrying(lease, cutter.number)
                    if batch:
                        await self._hand_over(group, batch)
                    if cutter.number >= lease.stop:
                        return
            self._fail(self._cut_short(cutter.number))
        except NodeError as exc:
            self._fail(exc)

    async def _hand_over(self, group: asyncio.TaskGroup, batch: Sequence[Arrived]) -> None:
        slots = self._intake.slots
        await slots.acquire()
        task = group.create_task(self._land(batch), name=f"leaves of {self._standing.source.name}")
        task.add_done_callback(lambda _: slots.release())

    async def _land(self, batch: Sequence[Arrived]) -> None:
        try:
            fault = await self._intake.take(self._standing, batch)
        except NodeError as exc:
            fault = exc
        if fault is not None:
            self._fail(fault)
            if self._reader is not None:
                self._reader.cancel()

    def _fail(self, fault: NodeError) -> None:
        """The first one counts, but wrong bytes count most."""
        if self._fault is None or (isinstance(fault, IntegrityError) and not isinstance(self._fault, IntegrityError)):
            self._fault = fault

    def _cut_short(self, number: int) -> SourceUnavailable:
        name, leaf = self._standing.source.name, self._lease.leaf(number)
        return SourceUnavailable(
            f"{name} for {leaf.cid}: ends before its last byte", source=name, cid=leaf.cid, code="truncated"
        )


class _Cutter:
    """Cuts the bytes of a lease into leaves. number: of the leaf that is not complete yet."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._last = lease.stop
        self.number = lease.first
        self._parts: list[memoryview] = []
        self._have = 0

    def feed(self, piece: Buffer) -> list[Arrived]:
        """The leaves that it completes."""
        done: list[Arrived] = []
        view = memoryview(piece)
        while self.number < self._last and (view or not self._lease.leaf(self.number).length):
            leaf = self._lease.leaf(self.number)
            part = view[: leaf.length - self._have]
            view = view[len(part) :]
            self._parts.append(part)
            self._have += len(part)
            if self._have < leaf.length:
                break
            data: Buffer = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
            done.append(Arrived(self.number, leaf, data, block=False))
            self.number += 1
            self._parts, self._have = [], 0
        return done
