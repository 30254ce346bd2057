"""First stage: the DAG's nodes, and the file bytes that come inside them (dag-pb leaves, files of one block)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.plan import FilePlan
from ipfs_accelerate_node.content.walk import DagWalk, Given, LeafPayload
from ipfs_accelerate_node.errors import SourceUnavailable
from ipfs_accelerate_node.fetch.durability import Durability
from ipfs_accelerate_node.fetch.landing import Landing
from ipfs_accelerate_node.fetch.rewrap import Part, parts_below
from ipfs_accelerate_node.fetch.schedule import WINDOW, Schedule, Standing
from ipfs_accelerate_node.fetch.stage import Came
from ipfs_accelerate_node.fetch.threads import in_thread
from ipfs_accelerate_node.sources.source import LACKS_BLOCK
from ipfs_accelerate_node.store import Store

LOOK_AHEAD = 64  # wanted blocks looked at beyond those that are under way or that the source lacks
LOCAL_AT_ONCE = 16  # blocks read from the store in one go; times 2 MiB bounds the memory
RACE_AFTER_S = 0.5  # a block that is on its way for so long is asked of one more source
ASK_AGAIN_S = 0.1  # a peer that lacks a block may be fetching this model itself, and have it by then …
PATIENCE_S = 4.0  # … so peers are waited for, for so long without any new block


@dataclass(eq=False, slots=True)
class Ask:
    """One block, asked of one source. since: seconds of the loop's clock."""

    cid: Cid
    standing: Standing
    since: float


class Walking:
    """nodes: every node block so far, for the commit."""

    def __init__(
        self, store: Store, landing: Landing, walk: DagWalk, came: Came, durability: Durability, schedule: Schedule
    ) -> None:
        self.nodes: dict[Cid, bytes] = {}
        self._store = store
        self._landing = landing
        self._walk = walk
        self._came = came
        self._durability = durability
        self._schedule = schedule
        self._under_way: dict[Cid, list[Ask]] = {}
        self._lacked_at: dict[tuple[Standing, Cid], float] = {}
        self._moved_at: float | None = None  # when the last block came
        self._keeping = 0  # blocks that the walk knows already, and whose bytes are on their way to disk
        self._parts: dict[Cid, Part] = {}  # dag-pb blocks below the file nodes met so far
        self._stored: dict[Cid, bool] = {}  # files met, and whether the store has them whole

    @property
    def complete(self) -> bool:
        return self._walk.done and not self._keeping

    def lanes(self, standing: Standing, sources: int) -> int:
        return min(standing.window, max(2, WINDOW // sources))

    def next(self, standing: Standing, now: float) -> Ask | None:
        """A block that nobody is asked for, or one that is late."""
        late: Cid | None = None
        for cid in self._walk.wanted(LOOK_AHEAD + len(self._under_way) + len(standing.lacks)):
            if cid in standing.lacks and not self._may_have_now(standing, cid, now):
                continue
            asked = self._under_way.get(cid)
            if not asked:
                return self._ask(cid, standing, now)
            other = len(asked) == 1 and asked[0].standing is not standing
            if late is None and other and now - asked[0].since >= RACE_AFTER_S:
                late = cid
        return None if late is None else self._ask(late, standing, now)

    def _ask(self, cid: Cid, standing: Standing, now: float) -> Ask:
        ask = Ask(cid, standing, now)
        self._under_way.setdefault(cid, []).append(ask)
        return ask

    def release(self, job: Ask) -> None:
        asked = self._under_way[job.cid]
        asked.remove(job)
        if not asked:
            del self._under_way[job.cid]

    async def watch(self, standing: Standing) -> None:
        """Nothing: who has a node block is found out by asking."""

    def awaits(self, standing: Standing, now: float) -> bool:
        self._moved_at = self._moved_at or now
        return _is_peer(standing) and not standing.tired and now - self._moved_at < PATIENCE_S

    def _may_have_now(self, standing: Standing, cid: Cid, now: float) -> bool:
        return _is_peer(standing) and now - self._lacked_at.get((standing, cid), now) >= ASK_AGAIN_S

    def dismiss(self, standing: Standing) -> None:
        """Nothing: nothing is left for anyone."""

    def silent(self, now: float) -> Mapping[Standing, float]:
        return {}

    async def carry(self, standing: Standing, job: Ask) -> None:
        cid = job.cid
        block = await in_thread(self._local, cid)
        if block is not None:
            await self.land(cid, block)
            return
        standing.requests += 1
        try:
            block = await standing.source.read_block(cid)
        except SourceUnavailable as exc:
            if exc.code in LACKS_BLOCK:
                self._lacked_at[standing, cid] = asyncio.get_running_loop().time()
            raise
        self._durability.brought(cid, standing.source)
        await in_thread(cid.check, block, standing.source.name)
        self._moved_at = now = asyncio.get_running_loop().time()
        standing.meter.add(len(block), now)
        self._schedule.delivered(standing, len(block))
        await self.land(cid, block, from_source=True)
        await self._durability.room()

    def _locals(self, cids: Sequence[Cid]) -> list[bytes | None]:
        return [self._local(cid) for cid in cids]

    def _local(self, cid: Cid) -> bytes | None:
        block = self._store.block(cid)
        if block is None:
            block = self._store.partial_block(cid)
        if block is None and (part := self._parts.get(cid)) is not None and not self._landing.stored(part.file):
            block = self._landing.reread(part.file, part.file_size, part.guesses(cid))
        return block

    async def open(self) -> None:
        """Takes in what the root brings by itself (an inline CID) and then all that the store has, asking nobody."""
        await self._keep(self._walk.root, b"", self._walk.opened, from_source=False)
        absent: set[Cid] = set()
        while some := [c for c in self._walk.wanted(LOCAL_AT_ONCE + len(absent)) if c not in absent]:
            for cid, block in zip(some, await in_thread(self._locals, some), strict=True):
                if block is None:
                    absent.add(cid)
                else:
                    await self.land(cid, block)

    async def land(self, cid: Cid, block: bytes, *, from_source: bool = False) -> None:
        """Takes in a block that was checked; one that came already changes nothing."""
        self._keeping += 1
        try:
            given = self._walk.give(cid, block)
            if given.node:
                self.nodes[cid] = block
                self._parts.update(parts_below(cid, block, self._parts.get(cid)))
            await self._keep(cid, block, given, from_source=from_source)
        finally:
            self._keeping -= 1

    async def _keep(self, cid: Cid, block: bytes, given: Given, *, from_source: bool) -> None:
        """What the block brought goes to disk."""
        if given.node and from_source:  # else the store has it
            await in_thread(self._store.keep_node, cid, block)
        for payload in given.payloads:
            new_bytes = await in_thread(self._write, payload)
            self._came(new_bytes, from_source)

    def _write(self, payload: LeafPayload) -> int:
        file, leaf = payload.file, payload.leaf
        if file.cid not in self._stored:
            self._stored[file.cid] = self._landing.stored(file.cid)
        if self._stored[file.cid]:
            return 0
        new_bytes = self._landing.write(file.cid, file.size, leaf, payload.payload)
        if leaf.length == file.size:  # a file of one block is done: a model of thousands must not keep them all open
            self._landing.finish(FilePlan(file.path, file.cid, file.size, (leaf,)))
            self._stored[file.cid] = True
        return new_bytes


def _is_peer(standing: Standing) -> bool:
    return standing.source.kind == "peer"
