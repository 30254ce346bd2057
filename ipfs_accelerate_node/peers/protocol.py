"""How two nodes know each other: the libp2p protocol that leads to the peers' listener, and the question of who is
there."""

from __future__ import annotations

from typing import Annotated

import msgspec

from ipfs_accelerate_node.errors import BadContent, Unauthorized
from ipfs_accelerate_node.records.request import check_proof, fresh_nonce, public_key
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
    who = await _told(url, asked, f"nonce={challenge}", timeout_s)
    if who.dial != peer_id:
        raise asked.fault("says that it is another than the one dialled", "not_a_node")
    try:
        check_proof(who.peer_id, who.proof or "", dialled=peer_id, challenge=challenge)
    except Unauthorized as exc:
        raise asked.fault("cannot show that it is the node it says it is", "not_a_node") from exc
    return who


async def ask_key(url: str, *, timeout_s: float) -> str:
    """PeerID of the key that the node at url says it has; nothing shows it. Raises SourceUnavailable as `ask_who`."""
    asked = Asked(url)
    who = await _told(url, asked, "", timeout_s)
    try:
        public_key(who.peer_id)
    except BadContent as exc:
        raise asked.fault("does not say which key it has", "not_a_node") from exc
    return who.peer_id


async def _told(url: str, asked: Asked, query: str, timeout_s: float) -> Who:
    origin = Origin.parse(url)
    pace = Pace(connect_s=timeout_s, first_byte_s=timeout_s, stall_s=timeout_s)
    async with GuardedSession([origin], pace=pace) as session:
        headers = {"Accept": "application/json"}
        async with session.request("GET", origin.url("/api/peer", query), asked, headers) as reply:
            if reply.status != 200:
                raise asked.fault(f"answers {reply.status} when asked who it is", "not_a_node")
            body = await reply.read(_ANSWER_BYTES)
    try:
        who = msgspec.json.decode(body, type=Who)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as exc:
        raise asked.fault("does not say who it is", "not_a_node") from exc
    if who.agent != AGENT:
        raise asked.fault("is another program", "not_a_node")
    return who
