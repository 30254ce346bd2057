"""How two nodes know each other: the libp2p protocol that leads to the peers' listener, and the question of who is
there."""

from __future__ import annotations

from typing import Annotated

import msgspec

from ipfs_accelerate_node.errors import Unauthorized
from ipfs_accelerate_node.records.request import check_proof, fresh_nonce
from ipfs_accelerate_node.sources.guard import Origin
from ipfs_accelerate_node.sources.http import Asked, GuardedSession, Pace

PROTOCOL = "/x/ipfs-accelerate-node/1"
AGENT = "ipfs-accelerate-node"

_ANSWER_BYTES = 16 << 10
_Short = Annotated[str, msgspec.Meta(max_length=200)]


class Who(msgspec.Struct, frozen=True):
    """The answer of `/api/peer`. peer_id: its node key. dial: PeerID of its Kubo, the same where that is its own
    child. proof: by its node key, that it is the one at ``dial``."""

    peer_id: _Short
    agent: _Short
    version: _Short = ""
    dial: _Short | None = None
    proof: _Short | None = None


async def ask_who(url: str, *, name: str, peer_id: str, timeout_s: float) -> Who:
    """Who is reached at url, which leads to that PeerID by libp2p. name: for errors.

    Raises SourceUnavailable: not_a_node (something else, or a node that cannot show that it is the one dialled), or
    as `GuardedSession.request` does.
    """
    asked = Asked(name)
    challenge = fresh_nonce()
    origin = Origin.parse(url)
    pace = Pace(connect_s=timeout_s, first_byte_s=timeout_s, stall_s=timeout_s)
    async with GuardedSession([origin], pace=pace) as session:
        headers = {"Accept": "application/json"}
        async with session.request("GET", origin.url("/api/peer", f"nonce={challenge}"), asked, headers) as reply:
            if reply.status != 200:
                raise asked.fault(f"answers {reply.status} when asked who it is", "not_a_node")
            body = await reply.read(_ANSWER_BYTES)
    try:
        who = msgspec.json.decode(body, type=Who)
        if who.agent != AGENT or who.dial != peer_id:
            raise asked.fault("says that it is another than the one dialled", "not_a_node")
        check_proof(who.peer_id, who.proof or "", dialled=peer_id, challenge=challenge)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as exc:
        raise asked.fault("does not say who it is", "not_a_node") from exc
    except Unauthorized as exc:
        raise asked.fault("cannot show that it is the node it says it is", "not_a_node") from exc
    return who
