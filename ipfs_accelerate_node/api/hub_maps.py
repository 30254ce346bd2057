"""Maps of Hub commits over HTTP: ours for whoever asks, signed; made and published on request; anybody's audited."""

from __future__ import annotations

from typing import NoReturn

import msgspec
from aiohttp import web

from ipfs_accelerate_node.api.access import Surface
from ipfs_accelerate_node.api.bodies import read_json
from ipfs_accelerate_node.api.context import node
from ipfs_accelerate_node.api.pipeline import Route
from ipfs_accelerate_node.api.wire import AuditRequest, MapRequest, json_reply
from ipfs_accelerate_node.config_values import peer_id
from ipfs_accelerate_node.content.cid import Cid, shown
from ipfs_accelerate_node.content.reference import HubRef, parse_reference
from ipfs_accelerate_node.errors import BadRequest, NotFound
from ipfs_accelerate_node.fetch.hub_audit import Asked
from ipfs_accelerate_node.sources.hub_maps import MAX_MAP_BYTES
from ipfs_accelerate_node.sources.hub_names import DEFAULT_REVISION, HubRepo, Kind, check_repo


async def read_map(request: web.Request) -> web.StreamResponse:
    """``GET /api/maps?repo=org/name[@revision]&kind=``: this node's own map of a public commit that is here."""
    repo, _, revision = request.query.get("repo", "").partition("@")
    check_repo(repo)
    told = await node(request).maps.told(HubRepo(repo, _kind(request)), revision or DEFAULT_REVISION)
    if told is None:
        raise NotFound(f"there is no map of {repo} here", code="no_map")
    return web.Response(body=msgspec.json.encode(told), content_type="application/json")


def _kind(request: web.Request) -> Kind:
    match request.query.get("kind", "model"):
        case "model":
            return "model"
        case "dataset":
            return "dataset"
        case other:
            raise BadRequest(f"{shown(other)} is no kind of repository: model, dataset", param="kind")


async def make_map(request: web.Request) -> web.Response:
    """``POST /api/maps``: shows this node's map of a commit, or publishes it."""
    body = await read_json(request, MapRequest)
    ref = _hub(body.ref)
    return json_reply(await node(request).maps.publish(HubRepo(ref.repo, ref.kind), ref.revision, publish=body.publish))


async def audit(request: web.Request) -> web.Response:
    body = await read_json(request, AuditRequest, limit_bytes=MAX_MAP_BYTES)
    ref = _hub(body.ref)
    if sum(whose is not None for whose in (body.peer, body.map, body.answer)) > 1:
        raise BadRequest("one map is audited: that of a peer, of a CID, or one that is sent", param="map")
    if body.peer is not None and peer_id(body.peer) is None and not body.peer.startswith(("http://", "https://")):
        raise BadRequest(f"{shown(body.peer)} is neither a URL nor a PeerID", param="peer")
    envelope = None if body.map is None else Cid.parse(body.map).canonical
    asked = Asked(body.peer, envelope, body.answer, body.fetch)
    return json_reply(await node(request).maps.audit(HubRepo(ref.repo, ref.kind), ref.revision, asked))


def _hub(ref: str) -> HubRef:
    reference = parse_reference(ref)
    return reference if isinstance(reference, HubRef) else _refuse(ref)


def _refuse(ref: str) -> NoReturn:
    raise BadRequest(f"{shown(ref)} is no commit of the Hub: hf:org/name[@revision]", param="ref")


ROUTES = (
    Route("GET", "/api/maps", read_map, Surface.SHARE),
    Route("POST", "/api/maps", make_map, Surface.STATE),
    Route("POST", "/api/audit", audit, Surface.STATE),
)
