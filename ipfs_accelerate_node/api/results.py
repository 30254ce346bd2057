"""Benchmark results over HTTP: our own and those we accepted, for whoever asks; everybody's, asked for by the user."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Mapping
from functools import partial

from aiohttp import web

from ipfs_accelerate_node.api.access import Surface
from ipfs_accelerate_node.api.bodies import read_json
from ipfs_accelerate_node.api.context import node
from ipfs_accelerate_node.api.pipeline import CALLER, GATE, Route
from ipfs_accelerate_node.api.reports import ONE_AT_A_TIME
from ipfs_accelerate_node.api.wire import PeerRequest, RerunRequest, json_reply
from ipfs_accelerate_node.benchmarks import refuse_mocks
from ipfs_accelerate_node.benchmarks.exchange import Told
from ipfs_accelerate_node.benchmarks.record import json_value, machine
from ipfs_accelerate_node.benchmarks.rerun import Again, Hands, rerun
from ipfs_accelerate_node.config_values import peer_id
from ipfs_accelerate_node.content.cid import Cid, shown
from ipfs_accelerate_node.content.reference import HubRef, RootRef, parse_reference
from ipfs_accelerate_node.errors import BadRequest, Conflict, NotFound
from ipfs_accelerate_node.node import Node
from ipfs_accelerate_node.peers.ranking import Hardware
from ipfs_accelerate_node.records.envelope import Opened
from ipfs_accelerate_node.sources.hub_names import HubRepo, check_repo

MAX_NAMED = 64  # peers of one question


async def results(request: web.Request) -> web.Response:
    """``?model=``: a root, any reference of a stored model, or a commit of the Hub of which a peer has a map (the root
    is that peer's claim; the results are of that root). ``&peer=`` (several): only these are asked.
    ``&hardware=like-mine``. ``&ask=no``: nobody is asked; what is here already."""
    here = node(request)
    query = request.query
    model = await _model(here, query.get("model", ""), ask=query.get("ask") != "no")
    if query.get("hardware") not in (None, "like-mine"):
        raise BadRequest(f"{shown(query['hardware'])} is no choice of hardware: like-mine", param="hardware")
    if query.get("ask", "yes") not in ("yes", "no"):
        raise BadRequest("ask is yes or no", param="ask")
    named = _peers(query.getall("peer", []))
    like = await _hardware(here) if "hardware" in query else None
    return json_reply(await here.exchange.results(model, peers=named or None, ask=query.get("ask") != "no", like=like))


async def verify(request: web.Request) -> web.Response:
    """Runs what others claim again, here, and shows both; minutes. The records are kept here and not published."""
    body = await read_json(request, RerunRequest)
    here, lock = node(request), request.app[ONE_AT_A_TIME]
    peers, keys = _peers(body.peers), [_key(key) for key in body.keys]
    named = [key for key in map(peer_id, peers) if key is not None]
    if peers and not keys and len(named) == len(peers):
        keys = named
    refuse_mocks(body.ref)
    model = (await asyncio.to_thread(here.find, body.ref)).root.canonical
    if lock.locked():
        raise Conflict("something is being measured; two at once would measure each other", code="bench_running")
    async with lock:
        found = await here.exchange.results(model, peers=peers or None, ask=body.ask)
        hands = Hands(await here.accelerators(), partial(here.bench, publish=False), here.exchange.own)
        again = Again(str(model), body.device, body.workloads, tuple(keys), quick=body.quick)
        votes = await asyncio.to_thread(here.exchange.votes, model)
        trusted = here.exchange.book.trusted
        return json_reply(await rerun(votes, again, hands, model=model, trusted=trusted, inquiry=found.inquiry))


def _peers(named: list[str]) -> list[str]:
    if len(named) > MAX_NAMED:
        raise BadRequest(f"at most {MAX_NAMED} peers can be named", param="peer")
    for peer in named:
        if peer_id(peer) is None and not peer.startswith(("http://", "https://")):
            raise BadRequest(f"{shown(peer)} is neither a URL nor a PeerID", param="peer")
    return named


def _key(text: str) -> str:
    if (found := peer_id(text)) is None:
        raise BadRequest(f"{shown(text)} is no PeerID", param="key")
    return found


async def _model(here: Node, ref: str, *, ask: bool) -> Cid:
    try:
        return await asyncio.to_thread(_root, here, ref)
    except NotFound:
        reference = parse_reference(ref)
        if not ask or not isinstance(reference, HubRef):
            raise
        check_repo(reference.repo)
        kept = await here.maps.claims.ask(HubRepo(reference.repo, reference.kind), reference.revision, search=True)
        if kept is None or kept.root is None:
            raise
        return Cid.parse(kept.root).canonical


async def _hardware(here: Node) -> Hardware:
    mine = machine()
    devices = frozenset(accelerator.name for accelerator in await here.accelerators() if accelerator.device != "cpu")
    cores = mine["cores"]
    return Hardware(str(mine["cpu"]), str(mine["arch"]), cores if isinstance(cores, int) else 0, devices)


async def list_benchmarks(request: web.Request) -> web.Response:
    """Our published records with their signed blocks; ``?model=`` is any reference of a stored model, or a root: then
    also what we accepted of others (``seen``). Who has the admin key sees what nobody was told too, and each one's
    state; for everybody else that, and what is private here, is not there."""
    here, model = node(request), None
    everything = request.app[GATE].sees_private(request[CALLER])
    if (ref := request.query.get("model")) is not None:
        model = await asyncio.to_thread(_root, here, ref, public_only=not everything)
    told = {one.envelope_cid: one for one in await asyncio.to_thread(here.exchange.told, model)}
    if not everything:
        return json_reply({"benchmarks": [_entry(one) for one in told.values()]})
    kept, broken = await asyncio.to_thread(here.exchange.kept, model)
    found: list[Mapping[str, object]] = [
        {**_shown(one.opened, told.pop(one.opened.envelope_cid, None)), "state": one.state} for one in kept
    ]
    found += [_entry(one) for one in told.values()]
    return json_reply({"benchmarks": found, "broken": broken})


def _shown(opened: Opened, told: Told | None) -> dict[str, object]:
    if told is not None:
        return _entry(told)
    return {
        "record": json_value(opened.record),
        "record_cid": opened.record_cid,
        "envelope_cid": opened.envelope_cid,
        "signer": opened.signer,
        "seen": False,
    }


async def told_to_strangers(request: web.Request) -> web.Response:
    """Published records, and about a model what we accepted; ``?model=`` is a root (names are our own affair)."""
    asked = request.query.get("model")
    model = None if asked is None else Cid.parse(asked).canonical
    told = await asyncio.to_thread(node(request).exchange.told, model)
    return json_reply({"benchmarks": [_entry(one) for one in told]})


def _entry(told: Told) -> dict[str, object]:
    """envelope, block: the two signed blocks in base64; all the rest can be read off them."""
    return {
        "record": told.record,
        "record_cid": told.record_cid,
        "envelope_cid": told.envelope_cid,
        "signer": told.signer,
        "seen": told.seen,
        "envelope": base64.b64encode(told.parcel.envelope).decode(),
        "block": base64.b64encode(told.parcel.block).decode(),
    }


def _root(here: Node, ref: str, *, public_only: bool = False) -> Cid:
    """public_only: a name of a private model means nothing."""
    reference = parse_reference(ref)
    if isinstance(reference, RootRef) and not reference.path:
        return reference.cid.canonical
    found = here.find(ref)
    if public_only and not found.public:
        raise NotFound(f"{shown(ref)} is not here", code="model_not_found")
    return found.root


async def add_peer(request: web.Request) -> web.Response:
    body = await read_json(request, PeerRequest)
    book = node(request).exchange.book
    added = await asyncio.to_thread(book.add, body.peer, trust=body.trust)
    return json_reply({"peer": added, "trusted": added in book.trusted}, status=201)


async def remove_peer(request: web.Request) -> web.Response:
    removed = await asyncio.to_thread(node(request).exchange.book.remove, request.match_info["peer"])
    return json_reply({"removed": removed})


async def revoke_key(request: web.Request) -> web.Response:
    """Says to everybody, for good, that this node's key is not to be believed any more."""
    standing = await node(request).exchange.revoke()
    return json_reply({"name": standing.name, "envelope_cid": standing.envelope, "at": int(time.time())})


ROUTES = (
    Route("GET", "/api/results", results, Surface.STATE),
    Route("POST", "/api/results/verify", verify, Surface.STATE, measures=True),
    Route("GET", "/api/benchmarks", list_benchmarks, Surface.SHARE),
    Route("POST", "/api/peers", add_peer, Surface.STATE),
    Route("DELETE", "/api/peers/{peer:.+}", remove_peer, Surface.STATE),
    Route("POST", "/api/revocation", revoke_key, Surface.STATE),
)
