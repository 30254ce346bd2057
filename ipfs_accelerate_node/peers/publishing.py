"""What this node says to others of results: its own records, those it accepted, and the index of both under its name.

One task does all of it, as soon as Kubo is there, again when it comes back, and again when something changed; what is
still to be done is on disk, so nothing is forgotten in between. Accepted records are only pinned (whoever knows their
CID can have them here) until the user agreed to publish: then the index is public, and the rendezvous block of each
model in it. An external Kubo gets the node's key then, and no sooner.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

import msgspec

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import Conflict, NodeError, NotFound
from ipfs_accelerate_node.fetch.threads import in_thread
from ipfs_accelerate_node.kubo import KuboClient, KuboService
from ipfs_accelerate_node.kubo.publishing import publish_blocks
from ipfs_accelerate_node.peers.results_store import ResultsStore, Wanted
from ipfs_accelerate_node.records.envelope import LIFETIME_S, SealedBlocks
from ipfs_accelerate_node.records.index import LAST_SEQ, MAX_ENTRIES, RecordIndex, revocation, seal_index
from ipfs_accelerate_node.records.key import NodeKey
from ipfs_accelerate_node.records.rendezvous import rendezvous

log = logging.getLogger(__name__)

RENEW_S = LIFETIME_S // 3  # an index is signed again long before it expires
LOOK_S = 3600.0
RETRY_S = 5.0  # doubled up to LOOK_S
MAX_MEETINGS = 1_000
_INDEX = "index"
_KEY_NAME = "ipfs-accelerate-node"


@dataclass(frozen=True, slots=True)
class OwnRecord:
    """A record of ours that is public. envelope_cid: also the name of its file on the shelf."""

    envelope_cid: Cid
    model: Cid


class Standing(msgspec.Struct, frozen=True):
    """What was published last. content: of what it lists. blocks: its own, as CIDs. created: seconds since 1970."""

    seq: int
    content: str
    envelope: str
    name: str
    blocks: list[str]
    created: int
    entries: int
    revoked: bool = False


class ResultsPublisher:
    """own: this node's public records, newest first; blocks. publish: puts a record of ours on IPFS, or raises
    (NotFound, Conflict: it never will be). consent: the user agreed beforehand to publish what is measured. may_tell:
    whether others may know that this node has to do with a root; not with that of a private model."""

    def __init__(
        self,
        store: ResultsStore,
        kubo: KuboService,
        key: NodeKey,
        *,
        own: Callable[[], Sequence[OwnRecord]],
        publish: Callable[[KuboClient, Cid], Awaitable[None]],
        consent: bool,
        may_tell: Callable[[Cid], bool] = lambda root: True,
    ) -> None:
        self._store = store
        self._kubo = kubo
        self._key = key
        self._own = own
        self._publish = publish
        self._consent = consent
        self._may_tell = may_tell
        self._changed = asyncio.Event()
        self._met: set[Cid] = set()
        self.reason: str | None = "nothing was published"

    def wake(self) -> None:
        """Something is to be published or pinned."""
        self._changed.set()

    async def run(self) -> None:
        """Until cancelled."""
        last: KuboClient | None = None
        retry_s = RETRY_S
        while True:
            client = await self._kubo.next_ready(None)
            fresh, last = client is not last, client
            self._changed.clear()
            if fresh:
                self._met.clear()
            pause_s, retry_s = await self._try(client, fresh, retry_s)
            await self._pause(client, pause_s)

    async def _try(self, client: KuboClient, fresh: bool, retry_s: float) -> tuple[float, float]:
        """How long to wait now, and after the next failure."""
        try:
            self.reason = await self.sync(client, again=fresh)
        except NodeError as exc:
            self.reason = str(exc)
            log.warning("results.not_published retry_s=%.0f reason=%s", retry_s, exc)
            return retry_s, min(2 * retry_s, LOOK_S)
        return LOOK_S, RETRY_S

    async def sync(self, client: KuboClient, *, again: bool = False) -> str | None:
        """All that is to be done now; why there is no index, or None. again: also what this Kubo has already, as far
        as anybody knows. Raises Unavailable, SourceUnavailable, IntegrityError, StorageError."""
        standing = await in_thread(self.standing)
        if standing is not None and standing.revoked:
            return "the key was revoked"
        while wanted := await in_thread(self._store.wanted):
            for deed in wanted:
                await self._do(client, deed)
        own = await in_thread(self._own)
        if not own and not self._consent:
            return "nothing was published"
        models = await in_thread(self._tellable)
        hidden = set(await in_thread(self._store.models)) - set(models)
        seen = await in_thread(lambda: self._store.envelopes(MAX_ENTRIES, without=hidden))
        mine = [record.envelope_cid for record in own]
        content = hashlib.sha256(b"".join(map(bytes, (*mine, *seen)))).hexdigest()
        now = int(time.time())
        if again or standing is None or standing.content != content or now - standing.created > RENEW_S:
            seq = max(now, 0 if standing is None else standing.seq + 1)  # a lost store is no reason to go back
            dial = client.peer_id if client.peer_id != self._key.peer_id else None
            made = RecordIndex(tuple(mine), tuple(seen), seq, now, now + LIFETIME_S, dial)
            sealed = await in_thread(seal_index, made, self._key)
            await self._announce(client, sealed, _standing(sealed, seq, content, now, len(mine) + len(seen)), standing)
        await self._meet(client, dict.fromkeys((*(record.model for record in own), *models)))
        return None

    async def revoke(self, client: KuboClient) -> Standing:
        """The last index of this key: from now on nobody believes what it signed. For good. Raises as `sync`."""
        now = int(time.time())
        last = await in_thread(revocation, self._key, created=now)
        said = msgspec.structs.replace(_standing(last, LAST_SEQ, "", now, 0), revoked=True)
        return await self._announce(client, last, said, await in_thread(self.standing))

    def standing(self) -> Standing | None:
        """What was published last. Blocks."""
        said = self._store.said(_INDEX)
        try:
            return None if said is None else msgspec.json.decode(said, type=Standing)
        except msgspec.MsgspecError:
            return None

    # --- private

    async def _pause(self, client: KuboClient, seconds: float) -> None:
        """Until something changed, Kubo is another one, or it is time to look again."""
        waits = [
            asyncio.create_task(self._changed.wait(), name="results changed"),
            asyncio.create_task(self._kubo.next_ready(client), name="another kubo"),
        ]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.wait(waits)

    async def _do(self, client: KuboClient, wanted: Wanted) -> None:
        """One deed; idempotent, and forgotten once it is done."""
        envelope, record = wanted.envelope_cid, wanted.record_cid
        if wanted.deed == "publish":
            try:
                await self._publish(client, envelope)
            except (NotFound, Conflict) as exc:
                log.warning("record.stays_here envelope=%s reason=%s", envelope, exc)
        elif wanted.deed == "drop":
            for cid in (envelope, *([record] if record else ())):
                await client.pin_rm(cid)
        elif record is not None and (blocks := await in_thread(self._store.blocks, envelope)) is not None:
            for cid, block in ((record, blocks[1]), (envelope, blocks[0])):
                await client.block_put(cid, block)
                await client.pin_add(cid, recursive=False)
        await in_thread(self._store.done, wanted)

    async def _announce(
        self, client: KuboClient, made: SealedBlocks, said: Standing, before: Standing | None
    ) -> Standing:
        """The name points to the index only once its blocks were read back; then those of the last one are let go."""
        note = await publish_blocks(client, made.blocks)
        name = "self"
        if client.peer_id != self._key.peer_id:
            name = f"{_KEY_NAME}-{self._key.peer_id}"
            await client.key_import(name, self._key.seed)
        under = await client.name_publish(name, made.envelope_cid)
        said = msgspec.structs.replace(said, name=under)
        await in_thread(self._store.say, _INDEX, msgspec.json.encode(said))
        log.info("index.published name=%s envelope=%s entries=%d note=%s", under, said.envelope, said.entries, note)
        for old in () if before is None else set(before.blocks) - set(said.blocks):
            await client.pin_rm(Cid.parse(old))
        return said

    def _tellable(self) -> list[Cid]:
        return [model for model in self._store.models() if self._may_tell(model)]

    async def _meet(self, client: KuboClient, models: Iterable[Cid]) -> None:
        """The rendezvous block of every model in the index: stored, pinned, announced; once for each run of Kubo, which
        announces what is pinned again by itself."""
        for model in list(models)[:MAX_MEETINGS]:
            if model not in self._met:
                await publish_blocks(client, [rendezvous("results", model)])
                self._met.add(model)


def _standing(made: SealedBlocks, seq: int, content: str, now: int, entries: int) -> Standing:
    return Standing(seq, content, str(made.envelope_cid), "", [str(cid) for cid, _ in made.blocks], now, entries)
