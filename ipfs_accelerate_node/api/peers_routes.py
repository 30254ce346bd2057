"""The user's view of other nodes: who is configured, who is reached now, whether others can come in, whose key may run
models here; and models run on one of them."""

from __future__ import annotations

import asyncio

import msgspec
from aiohttp import web

from ipfs_accelerate_node.api.access import Surface
from ipfs_accelerate_node.api.bodies import read_json
from ipfs_accelerate_node.api.context import CONFIG, node
from ipfs_accelerate_node.api.inference_routes import InferRequest
from ipfs_accelerate_node.api.pipeline import Route
from ipfs_accelerate_node.api.wire import RefText, json_reply
from ipfs_accelerate_node.config_values import peer_id
from ipfs_accelerate_node.content.cid import shown
from ipfs_accelerate_node.content.reference import MockRef, RootRef, parse_reference
from ipfs_accelerate_node.errors import BadRequest, InvalidConfig
from ipfs_accelerate_node.node import Node
from ipfs_accelerate_node.peers.remote import MAX_REQUEST_BYTES
from ipfs_accelerate_node.sources.guard import Origin


class AllowRequest(msgspec.Struct, frozen=True):
    """key: PeerID of a node's key."""

    key: RefText


class RemoteRequest(InferRequest, frozen=True, kw_only=True):
    """peer: a URL or a PeerID; the rest as for a model that runs here."""

    peer: RefText


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
            "serves_peers": here.config.serve_peers,
            "allowed": here.exchange.book.allowed,
            "index": {"standing": here.exchange.publisher.standing(), "reason": here.exchange.publisher.reason},
            "queued": len(await asyncio.to_thread(here.exchange.store.queued)),
            "tunnels": [
                {"peer_id": t.peer_id, "node": t.who.peer_id, "version": t.who.version, "in_use": t.users}
                for t in peers.tunnels.now()
            ],
        }
    )


async def allow_key(request: web.Request) -> web.Response:
    body = await read_json(request, AllowRequest)
    return json_reply({"allowed": await asyncio.to_thread(node(request).exchange.book.allow, body.key)}, status=201)


async def deny_key(request: web.Request) -> web.Response:
    denied = await asyncio.to_thread(node(request).exchange.book.deny, request.match_info["key"])
    return json_reply({"denied": denied})


async def infer_there(request: web.Request) -> web.Response:
    """On the peer that is named. What it says comes with ``claim``: nobody but it saw the model run."""
    body = await read_json(request, RemoteRequest, limit_bytes=MAX_REQUEST_BYTES)
    here = node(request)
    if peer_id(body.peer) is None:
        origin_of(body.peer)
    root = await _root(here, body.ref)
    asked = {name: value for name, value in msgspec.to_builtins(body).items() if name != "peer" and value is not None}
    sent = msgspec.json.encode({**asked, "ref": root})
    done = await here.peers.remote.infer(body.peer, sent, root=root, outputs=len(body.items))
    said = done.said
    return json_reply(
        {"model": body.ref, **msgspec.to_builtins(said), "peer": done.peer, "way": done.way, "claim": True},
        headers={
            "X-Model-Root": said.root,
            "X-Device": _header(said.device),
            "X-Engine": _header(said.engine),
            "X-Precision": _header(said.precision),
            "X-Implementation": said.implementation,
            "X-Model-Source": "peer",
            "X-Peer": done.peer,
        },
    )


async def _root(here: Node, ref: str) -> str:
    """A root as it stands, also of a model that is not here; a mock; else what a name means here."""
    reference = parse_reference(ref)
    if isinstance(reference, MockRef):
        return ref
    if isinstance(reference, RootRef) and not reference.path:
        return str(reference.cid.canonical)
    return str((await asyncio.to_thread(here.find, ref)).root)


def origin_of(text: str) -> str:
    """Raises BadRequest(bad_peer) for what is no URL of a node."""
    try:
        return str(Origin.parse(text))
    except InvalidConfig as exc:
        raise BadRequest(f"{shown(text)} is neither a URL nor a PeerID", code="bad_peer", param="peer") from exc


def _header(text: str) -> str:
    """A peer's word as a header can hold it."""
    return "".join(letter for letter in text if " " <= letter <= "~")


ROUTES = (
    Route("GET", "/api/peers", list_peers, Surface.STATE),
    Route("POST", "/api/allowed-peers", allow_key, Surface.STATE),
    Route("DELETE", "/api/allowed-peers/{key}", deny_key, Surface.STATE),
    Route("POST", "/api/peers/infer", infer_there, Surface.STATE),
)
