"""Triton's model repository: what is here and in which state; models loaded and unloaded, which needs the admin key."""

from __future__ import annotations

import asyncio

from aiohttp import web

from ipfs_accelerate_node.api.access import Surface
from ipfs_accelerate_node.api.bodies import read_json
from ipfs_accelerate_node.api.context import node
from ipfs_accelerate_node.api.kserve_routes import VERSION
from ipfs_accelerate_node.api.kserve_wire import IndexEntry, IndexRequest, LoadRequest
from ipfs_accelerate_node.api.pipeline import Route
from ipfs_accelerate_node.api.problems import Dialect
from ipfs_accelerate_node.api.traffic import finished
from ipfs_accelerate_node.api.wire import json_reply
from ipfs_accelerate_node.errors import InvalidInput

_STATES = {"ready": "READY", "draining": "UNLOADING"}
_OPTIONS = ("device", "precision", "task")


async def index(request: web.Request) -> web.Response:
    """One line for each model, by the name that `/v1/models` shows first."""
    body = await read_json(request, IndexRequest, empty=IndexRequest())
    served = await asyncio.to_thread(node(request).catalogue.served)
    states = {model.root: model.state for model in node(request).registry.loaded()}
    entries = []
    for model in served:
        state = states.get(model.root)
        said = "UNAVAILABLE" if state is None else _STATES.get(state, "LOADING")
        reason = "not loaded: the first request does that" if state is None else ""
        if body.ready is None or body.ready == (said == "READY"):
            mark = {"implementation": "MOCK"} if model.implementation == "MOCK" else {}
            entries.append({"name": model.id, "version": VERSION, "state": said, "reason": reason, **mark})
    return json_reply(entries)


async def load(request: web.Request) -> web.Response:
    body = await read_json(request, LoadRequest, empty=LoadRequest())
    given = body.parameters or {}
    for name, value in given.items():
        if name not in _OPTIONS or not isinstance(value, str):
            raise InvalidInput(f"{name[:80]!r} is none of {', '.join(_OPTIONS)}", param="parameters")
    asked = {name: str(given[name]) if name in given else None for name in _OPTIONS}
    await node(request).serving.load(
        request.match_info["name"],
        device=asked["device"] or "auto",
        precision=asked["precision"],
        task=asked["task"],
    )
    return web.Response()


async def unload(request: web.Request) -> web.Response:
    await read_json(request, LoadRequest, empty=LoadRequest())
    await finished(node(request).serving.unload(request.match_info["name"]))
    return web.Response()


ROUTES = (
    Route(
        "POST",
        "/v2/repository/index",
        index,
        Surface.INFER,
        Dialect.KSERVE,
        takes=IndexRequest,
        gives=list[IndexEntry],
    ),
    Route("POST", "/v2/repository/models/{name:.+}/load", load, Surface.STATE, Dialect.KSERVE, takes=LoadRequest),
    Route("POST", "/v2/repository/models/{name:.+}/unload", unload, Surface.STATE, Dialect.KSERVE, takes=LoadRequest),
)
