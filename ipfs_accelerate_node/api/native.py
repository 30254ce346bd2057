"""Native routes beside store, pins and inference: benchmarks, keys, and who this node is."""

from __future__ import annotations

import asyncio

from aiohttp import web

from ipfs_accelerate_node import __version__
from ipfs_accelerate_node.api.access import Surface
from ipfs_accelerate_node.api.bodies import read_json
from ipfs_accelerate_node.api.context import KEYS, node
from ipfs_accelerate_node.api.pipeline import Route
from ipfs_accelerate_node.api.reports import ONE_AT_A_TIME
from ipfs_accelerate_node.api.told_events import Event, Put, streamed, wants_events
from ipfs_accelerate_node.api.wire import BenchRequest, KeyRequest, json_reply
from ipfs_accelerate_node.benchmarks import Wish
from ipfs_accelerate_node.errors import BadRequest, Conflict


async def run_bench(request: web.Request) -> web.StreamResponse:
    """Who accepts ``text/event-stream`` is told as it goes: ``doing`` (device, workload, phase, repeats), then
    ``bench`` with the whole, or ``failed``."""
    body = await read_json(request, BenchRequest)
    if body.record is not None and body.ref is None and body.publish:
        return json_reply(await node(request).publish_record(body.record))
    if body.ref is None or body.record is not None:
        raise BadRequest("either a ref to measure, or a kept record's envelope CID and publish", param="ref")
    wish = Wish(
        body.ref,
        body.device,
        body.task,
        body.precision,
        body.workloads,
        quick=body.quick,
        even_if_busy=body.even_if_busy,
    )
    lock = request.app[ONE_AT_A_TIME]
    if lock.locked():
        raise Conflict("something is being measured; two at once would measure each other", code="bench_running")
    async with lock:
        if not wants_events(request):
            return json_reply(await node(request).bench(wish, publish=body.publish))

        async def made(put: Put) -> Event:
            here = node(request)
            return "bench", await here.bench(wish, publish=body.publish, tell=lambda doing: put(("doing", doing)))

        return await streamed(request, made)


async def peer(request: web.Request) -> web.Response:
    """Who this is. Nothing here tells a host name, an address or a path."""
    return json_reply({"peer_id": node(request).key.peer_id, "agent": "ipfs-accelerate-node", "version": __version__})


async def list_keys(request: web.Request) -> web.Response:
    shown = [{"id": k.id, "name": k.name, "scopes": k.scopes, "created": k.created} for k in request.app[KEYS].stored()]
    return json_reply({"keys": shown})


async def create_key(request: web.Request) -> web.Response:
    """201, and the one time that the key itself is shown."""
    body = await read_json(request, KeyRequest)
    stored, secret = await asyncio.to_thread(request.app[KEYS].create, body.scopes, name=body.name)
    return json_reply(
        {"id": stored.id, "name": stored.name, "scopes": stored.scopes, "created": stored.created, "key": secret},
        status=201,
    )


async def remove_key(request: web.Request) -> web.Response:
    removed = await asyncio.to_thread(request.app[KEYS].remove, request.match_info["id"])
    return json_reply({"removed": removed.id})


ROUTES = (
    Route("POST", "/api/benchmarks", run_bench, Surface.STATE, measures=True),
    Route("GET", "/api/peer", peer, Surface.SHARE),
    Route("GET", "/api/keys", list_keys, Surface.STATE),
    Route("POST", "/api/keys", create_key, Surface.STATE),
    Route("DELETE", "/api/keys/{id}", remove_key, Surface.STATE),
)
