"""Maps of a commit as a peer's HTTP interface gives them."""

from __future__ import annotations

from urllib.parse import urlencode

from ipfs_accelerate_node.sources.guard import Origin
from ipfs_accelerate_node.sources.http import Asked, GuardedSession, Pace
from ipfs_accelerate_node.sources.hub_names import HubRepo

MAX_MAP_BYTES = 32 << 20
MAP_FIRST_BYTE_S = 5.0
MAP_STALL_S = 5.0


async def peer_map(url: str, repo: HubRepo, revision: str) -> bytes | None:
    """What the peer at that origin answers when it is asked for its map, not looked into; None if it has none. Raises
    SourceUnavailable."""
    origin = Origin.parse(url)
    asked = Asked(str(origin))
    query = urlencode({"repo": f"{repo.id}@{revision}", "kind": repo.kind})
    async with (
        GuardedSession([origin], pace=Pace(first_byte_s=MAP_FIRST_BYTE_S, stall_s=MAP_STALL_S)) as session,
        session.request("GET", origin.url("/api/maps", query), asked, {"Accept": "application/json"}) as reply,
    ):
        if reply.status == 404:
            return None
        if reply.status != 200 or reply.content_type != "application/json":
            raise asked.fault(f"answers {reply.status} when asked for a map", "bad_source")
        return await reply.read(MAX_MAP_BYTES)
