"""Probes and metrics. Alive is not ready: a node that is stopping answers `/healthz` and refuses in `/readyz`; one
without Kubo is ready and says what that degrades."""

from __future__ import annotations

import asyncio

from aiohttp import web

from ipfs_accelerate_node.api.access import Surface
from ipfs_accelerate_node.api.context import node
from ipfs_accelerate_node.api.metrics import CONTENT_TYPE
from ipfs_accelerate_node.api.pipeline import METRICS, TRAFFIC, Route
from ipfs_accelerate_node.api.wire import json_reply


async def healthz(request: web.Request) -> web.Response:
    return json_reply({"live": True})


async def readyz(request: web.Request) -> web.Response:
    """200 or 503; the body is the same kind of object: state, degraded (reasons), kubo, version, peer_id."""
    draining = request.app[TRAFFIC].draining
    ready = node(request).ready and not draining
    health = node(request).health()
    if draining:
        health["state"] = "stopping"
    return json_reply({"ready": ready, **health}, status=200 if ready else 503)


async def metrics(request: web.Request) -> web.Response:
    page = await asyncio.to_thread(request.app[METRICS].page)
    return web.Response(body=page, headers={"Content-Type": CONTENT_TYPE, "Cache-Control": "no-store"})


ROUTES = (
    Route("GET", "/healthz", healthz, Surface.OPEN),
    Route("HEAD", "/healthz", healthz, Surface.OPEN),
    Route("GET", "/readyz", readyz, Surface.OPEN),
    Route("HEAD", "/readyz", readyz, Surface.OPEN),
    Route("GET", "/metrics", metrics, Surface.METRICS),
)
