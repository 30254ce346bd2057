"""Publishing blocks: "published" means pinned in Kubo and read back by CID, nothing less."""

from __future__ import annotations

from collections.abc import Sequence

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import IntegrityError, Unavailable
from ipfs_accelerate_node.kubo.client import KuboClient

READ_BACK_TIMEOUT_S = 30.0
ANNOUNCE_TIMEOUT_S = 20.0


async def publish_blocks(client: KuboClient, blocks: Sequence[tuple[Cid, bytes]]) -> str | None:
    """Hands Kubo the blocks in this order (what is linked first: nothing then points to what is not there), pins each,
    reads all back, and announces them.

    Returns why they could not be announced now (without peers, say: Kubo does it later for what is pinned), or None.
    The pins are direct, not recursive: a record links a model's root, and pinning must not fetch that.
    Idempotent. Raises IntegrityError when Kubo names or returns other bytes, Unavailable and SourceUnavailable when it
    stops in between: then nothing counts as published.
    """
    for cid, block in blocks:
        await client.block_put(cid, block)
        await client.pin_add(cid, recursive=False)
    for cid, block in blocks:
        read = await client.block_get(cid, timeout_s=READ_BACK_TIMEOUT_S, offline=True)
        if read != block:
            raise IntegrityError(expected=cid, actual=cid.of_same_hash(read), origin="kubo")
    try:
        for cid, _ in blocks:
            await client.provide(cid, timeout_s=ANNOUNCE_TIMEOUT_S)
    except Unavailable as exc:
        return f"published, not announced yet: {exc}"
    return None
