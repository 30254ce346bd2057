"""The user's view of other nodes: who is configured, who is reached now, whether others can come in."""

from __future__ import annotations

from aiohttp import web

from ipfs_accelerate_node.api.access import Surface
from ipfs_accelerate_node.api.context import CONFIG, node
from ipfs_accelerate_node.api.pipeline import Route
from ipfs_accelerate_node.api.wire import json_reply


async def list_peers(request: web.Request) -> web.Response:
    """door: whether nodes that dial this one are let in. dial: the PeerID they dial. tunnels: open now; node: the key
    of who is there, another than peer_id where its Kubo is not its own child."""
    here = node(request)
    peers = here.peers
    return json_reply(
        {
            "peer_id": here.key.peer_id,
            "dial": here.kubo.client.peer_id if here.kubo.state == "ready" else None,
            "door": {"state": peers.door.standing.state, "reason": peers.door.standing.reason},
            "configured": request.app[CONFIG].peers,
            "added": here.exchange.book.added,
            "trusted": here.exchange.book.trusted,
            "index": {"standing": here.exchange.publisher.standing(), "reason": here.exchange.publisher.reason},
            "tunnels": [
                {"peer_id": t.peer_id, "node": t.who.peer_id, "version": t.who.version, "in_use": t.users}
                for t in peers.tunnels.now()
            ],
        }
    )


ROUTES = (Route("GET", "/api/peers", list_peers, Surface.STATE),)
