"""First stage: the DAG's nodes, and the file bytes that come inside them (dag-pb leaves, files of one block)."""

from __future__ import annotations

from collections.abc import Collection

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.plan import FilePlan
from ipfs_accelerate_node.content.walk import DagWalk, Given, LeafPayload
from ipfs_accelerate_node.fetch.landing import Landing
from ipfs_accelerate_node.fetch.rewrap import Part, parts_below
from ipfs_accelerate_node.fetch.stage import Came
from ipfs_accelerate_node.fetch.threads import in_thread
from ipfs_accelerate_node.sources.source import Source
from ipfs_accelerate_node.store import Store

LOOK_AHEAD = 64  # wanted blocks looked at beyond those that are under way or that the source lacks


class Walking:
    """nodes: every node block so far, for the commit."""

    def __init__(self, store: Store, landing: Landing, walk: DagWalk, came: Came) -> None:
        self.nodes: dict[Cid, bytes] = {}
        self._store = store
        self._landing = landing
        self._walk = walk
        self._came = came
        self._under_way: set[Cid] = set()
        self._parts: dict[Cid, Part] = {}  # dag-pb blocks below the file nodes met so far
        self._stored: dict[Cid, bool] = {}  # files met, and whether the store has them whole

    @property
    def complete(self) -> bool:
        return self._walk.done and not self._under_way

    def take(self, skip: Collection[Cid]) -> Cid | None:
        for cid in self._walk.wanted(LOOK_AHEAD + len(self._under_way) + len(skip)):
            if cid not in self._under_way and cid not in skip:
                self._under_way.add(cid)
                return cid
        return None

    def put_back(self, cid: Cid) -> None:
        self._under_way.discard(cid)

    async def local(self, cid: Cid) -> bytes | None:
        return await in_thread(self._local, cid)

    def _local(self, cid: Cid) -> bytes | None:
        block = self._store.block(cid)
        if block is None:
            block = self._store.partial_block(cid)
        if block is None and (part := self._parts.get(cid)) is not None and not self._landing.stored(part.file):
            block = self._landing.reread(part.file, part.file_size, part.guesses(cid))
        return block

    async def open(self) -> None:
        """Takes in what the root brings by itself (an inline CID) and then all that the store has, asking nobody."""
        await self._keep(self._walk.root, b"", self._walk.opened, None)
        absent: set[Cid] = set()
        while (cid := self.take(absent)) is not None:
            block = await self.local(cid)
            if block is None:
                absent.add(cid)
            else:
                await self.land(cid, block, None)
            self.put_back(cid)

    async def land(self, cid: Cid, block: bytes, source: Source | None) -> None:
        if source is not None:
            await in_thread(cid.check, block, source.name)
        given = self._walk.give(cid, block)
        if given.node:
            self.nodes[cid] = block
            self._parts.update(parts_below(cid, block, self._parts.get(cid)))
        await self._keep(cid, block, given, source)

    async def _keep(self, cid: Cid, block: bytes, given: Given, source: Source | None) -> None:
        """What the block brought goes to disk."""
        if given.node:
            await in_thread(self._store.keep_node, cid, block)
        for payload in given.payloads:
            new_bytes = await in_thread(self._write, payload)
            self._came(new_bytes, source is not None)

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
