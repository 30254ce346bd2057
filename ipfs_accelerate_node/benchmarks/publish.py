"""Publishing a record: "published" means pinned in Kubo and read back by its CID, nothing less."""

from __future__ import annotations

import logging

from ipfs_accelerate_node.content.cid import DAG_CBOR, Cid
from ipfs_accelerate_node.errors import IntegrityError, Unavailable
from ipfs_accelerate_node.kubo import KuboClient
from ipfs_accelerate_node.records.envelope import Sealed

log = logging.getLogger(__name__)

READ_BACK_TIMEOUT_S = 30.0
ANNOUNCE_TIMEOUT_S = 20.0


async def publish(client: KuboClient, sealed: Sealed) -> str | None:
    """Hands Kubo both blocks (the record first: an envelope never points to nothing), pins, reads back, announces.

    Returns why it could not be announced now (without peers, say: Kubo does it later for what is pinned), or None.

    The pins are direct, not recursive: a record links the model's root, and pinning must not fetch that.
    Idempotent. Raises IntegrityError when Kubo names or returns other bytes, Unavailable and SourceUnavailable when it
    stops in between: the record then counts as not published.
    """
    blocks = ((sealed.record_cid, sealed.record_bytes), (sealed.envelope_cid, sealed.envelope_bytes))
    for cid, block in blocks:
        await client.block_put(cid, block)
        await client.pin_add(cid, recursive=False)
    for cid, block in blocks:
        read = await client.block_get(cid, timeout_s=READ_BACK_TIMEOUT_S, offline=True)
        if read != block:
            raise IntegrityError(expected=cid, actual=Cid.of(read, DAG_CBOR), origin="kubo")
    log.info("record.published record=%s envelope=%s", sealed.record_cid, sealed.envelope_cid)
    try:
        for cid, _ in blocks:
            await client.provide(cid, timeout_s=ANNOUNCE_TIMEOUT_S)
    except Unavailable as exc:
        return f"published, not announced yet: {exc}"
    return None
