"""Reading what others publish: the index under a node's IPNS name, and records by CID, from whoever has the blocks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import BadContent, NodeError, SourceUnavailable
from ipfs_accelerate_node.fetch.threads import in_thread
from ipfs_accelerate_node.kubo import KuboClient
from ipfs_accelerate_node.peers.results_http import RecordParcel
from ipfs_accelerate_node.peers.results_store import ResultsStore
from ipfs_accelerate_node.records.canonical import MAX_BYTES
from ipfs_accelerate_node.records.envelope import MAX_ENVELOPE_BYTES, envelope_record
from ipfs_accelerate_node.records.index import MAX_BLOCKS, OpenedIndex, index_next, index_record, open_index

MAX_RECORDS = 256  # of one index at a time: those that are not here, the newest first
BLOCK_S = 8.0  # for one block; a slow one holds nobody up but itself
_AT_ONCE = 16


class Indexes:
    """now: seconds since 1970. Every block is bounded before it is parsed, and hashed."""

    def __init__(self, store: ResultsStore, client: KuboClient, now: int) -> None:
        self._store = store
        self._client = client
        self._now = now

    async def envelopes(self, peer_id: str) -> list[Cid]:
        """What the index under that name lists and is not here, its own first. What it says of its key is noted.

        Raises Unavailable, SourceUnavailable, BadContent and IntegrityError as `open_index` does, and
        BadContent(key_revoked).
        """
        envelope_cid = await self._client.name_resolve(peer_id, timeout_s=BLOCK_S)
        found = await self._read(envelope_cid, peer_id)
        if found.index.revoked:
            raise BadContent(f"the key of {peer_id} was revoked", code="key_revoked")
        listed = list(dict.fromkeys((*found.index.own, *found.index.seen)))
        here = await in_thread(self._store.has, listed)
        return [cid for cid in listed if cid not in here][:MAX_RECORDS]

    async def records(self, envelopes: Sequence[Cid], *, until: float) -> tuple[list[RecordParcel], list[NodeError]]:
        """Both blocks of each that can be had until then (the loop's time), and why others could not."""
        found: list[RecordParcel] = []
        lost: list[NodeError] = []
        at_once = asyncio.Semaphore(_AT_ONCE)

        async def one(cid: Cid) -> None:
            try:
                async with asyncio.timeout_at(until), at_once:
                    envelope = await self._block(cid, MAX_ENVELOPE_BYTES)
                    found.append(RecordParcel(envelope, await self._block(envelope_record(envelope), MAX_BYTES)))
            except TimeoutError:
                lost.append(SourceUnavailable(f"{cid} did not come in time", source="kubo", cid=cid, code="stalled"))
            except NodeError as exc:
                lost.append(exc)

        async with asyncio.TaskGroup() as group:
            for cid in envelopes:
                group.create_task(one(cid), name=f"record {cid}")
        return found, lost

    async def _read(self, envelope_cid: Cid, peer_id: str) -> OpenedIndex:
        envelope = await self._block(envelope_cid, MAX_ENVELOPE_BYTES)
        blocks: dict[Cid, bytes] = {}
        following: Cid | None = index_record(envelope)
        while following is not None and len(blocks) <= MAX_BLOCKS and following not in blocks:
            try:
                block = await self._block(following, MAX_BYTES)
            except SourceUnavailable:
                if not blocks:
                    raise
                break  # without its later blocks the newest are had
            blocks[following] = block
            following = index_next(block)
        opened = open_index(envelope, blocks, now=self._now)
        if opened.signer != peer_id:
            raise BadContent(f"signature refused: the index is not that of {peer_id}", code="bad_signature")
        return await in_thread(self._noted, opened, envelope, blocks)

    def _noted(self, opened: OpenedIndex, envelope: bytes, blocks: dict[Cid, bytes]) -> OpenedIndex:
        known = self._store.standing(opened.key)
        newest = None if known.index_cid is None else (known.index_seq, known.index_cid)
        try:
            open_index(envelope, blocks, now=self._now, newest=newest)
        except BadContent as exc:
            if exc.code == "key_equivocates":
                self._store.flag(opened.key)
            raise
        index = opened.index
        self._store.note_index(opened.key, index.seq, opened.record_cid, revoked=index.revoked)
        return opened

    async def _block(self, cid: Cid, most: int) -> bytes:
        block = await self._client.block_get(cid, timeout_s=BLOCK_S)
        if len(block) > most:
            raise BadContent(f"{cid} has {len(block)} bytes, at most {most} are allowed", code="bad_record")
        cid.check(block, "kubo")
        return block
