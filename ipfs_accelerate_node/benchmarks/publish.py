"""Publishing a record: both blocks, for everybody."""

from __future__ import annotations

import logging

from ipfs_accelerate_node.kubo import KuboClient
from ipfs_accelerate_node.kubo.publishing import publish_blocks
from ipfs_accelerate_node.records.envelope import Sealed

log = logging.getLogger(__name__)


async def publish(client: KuboClient, sealed: Sealed) -> str | None:
    """Hands Kubo the record, then its envelope. Returns and raises as `publish_blocks`."""
    blocks = ((sealed.record_cid, sealed.record_bytes), (sealed.envelope_cid, sealed.envelope_bytes))
    note = await publish_blocks(client, blocks)
    log.info("record.published record=%s envelope=%s", sealed.record_cid, sealed.envelope_cid)
    return note
