"""Peers whose maps lie: a proxy in front of a node that tells another map of what the node has."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import msgspec
from aiohttp import web

from ipfs_accelerate_node.fetch.hub_claims import MapAnswer
from ipfs_accelerate_node.fetch.hub_map_shelf import Parcel
from ipfs_accelerate_node.records.canonical import decode
from ipfs_accelerate_node.records.envelope import MAP_PREFIX, SealedBlocks, seal
from ipfs_accelerate_node.records.hub_map import MAX_BLOCK_BYTES, HubMap, seal_map
from ipfs_accelerate_node.records.key import NodeKey
from tests.support.running import Running

LIAR = NodeKey(bytes(range(32)))
Forge = Callable[[MapAnswer], MapAnswer | bytes]


def another_map(change: Callable[[HubMap], HubMap], key: NodeKey = LIAR) -> Forge:
    """A well-formed map, signed by key, that says something else."""

    def forge(said: MapAnswer) -> MapAnswer:
        found = said.maps[0].open(now=None).map
        made = replace(change(found), seq=found.seq + 1)
        return msgspec.structs.replace(said, maps=[Parcel.of(seal_map(made, key))])

    return forge


def another_record(change: Callable[[dict[str, Any]], object], key: NodeKey = LIAR) -> Forge:
    """A record of any form, signed by key as if it were a map."""

    def forge(said: MapAnswer) -> MapAnswer:
        record = decode(said.maps[0].blocks[-1], max_bytes=MAX_BLOCK_BYTES)
        assert isinstance(record, dict)
        change(record)
        return msgspec.structs.replace(said, maps=[Parcel.of(SealedBlocks(seal(record, key, MAP_PREFIX)))])

    return forge


@asynccontextmanager
async def liar(first: Running, forge: Forge) -> AsyncIterator[str]:
    """URL of a peer that has what first has, and another map of it."""

    async def answer(request: web.Request) -> web.Response:
        reply = await first.ask(request.method, request.path_qs, headers={"Range": request.headers.get("Range", "")})
        body = reply.body
        if request.path == "/api/maps" and reply.status == 200:
            forged = forge(msgspec.json.decode(body, type=MapAnswer))
            body = forged if isinstance(forged, bytes) else msgspec.json.encode(forged)
        kept = {k: v for k, v in reply.headers.items() if k in ("Content-Type", "Content-Range", "Etag")}
        return web.Response(body=body, status=reply.status, headers=kept)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
