"""Native routes of the store: what is here, freeing space, checking it."""

from __future__ import annotations

import asyncio
import base64

from aiohttp import web

from ipfs_accelerate_node.api.access import Surface
from ipfs_accelerate_node.api.bodies import query_flag, read_json
from ipfs_accelerate_node.api.context import node
from ipfs_accelerate_node.api.pipeline import CALLER, GATE, Route
from ipfs_accelerate_node.api.traffic import finished
from ipfs_accelerate_node.api.wire import VerifyRequest, json_reply
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.plan import FilePlan
from ipfs_accelerate_node.errors import NotFound, PayloadTooLarge

HAVE_LIMIT_BYTES = 1 << 20  # of bitmaps in one answer: 8 million leaves


async def list_models(request: web.Request) -> web.Response:
    here = node(request)
    models = await asyncio.to_thread(here.models)
    used = await asyncio.to_thread(here.store.used_bytes)
    return json_reply({"models": models, "used_bytes": used, "quota_bytes": here.store.quota_bytes})


async def show_model(request: web.Request) -> web.Response:
    return json_reply(await asyncio.to_thread(node(request).catalogue.info, request.match_info["ref"]))


async def remove_model(request: web.Request) -> web.Response:
    ref, force = request.match_info["ref"], query_flag(request, "force")
    model = await asyncio.to_thread(node(request).find, ref)
    freed = await finished(node(request).remove(ref, force=force))
    return json_reply({"root": model.root, "freed_bytes": freed})


async def gc(request: web.Request) -> web.Response:
    return json_reply(await finished(node(request).gc()))


async def verify(request: web.Request) -> web.Response:
    """200 also when something is corrupt: the report names it."""
    body = await read_json(request, VerifyRequest, empty=VerifyRequest())
    return json_reply(await node(request).verify(body.ref))


async def have(request: web.Request) -> web.Response:
    """Which leaves of a root are here. bitmap: base64, leaf i is bit ``i % 8`` (least significant first) of byte
    ``i // 8``. Only whole models are listed; a root that is still being fetched is not found."""
    store = node(request).store
    root = Cid.parse(request.match_info["root"]).canonical
    model = await asyncio.to_thread(store.model, root)
    plan = await asyncio.to_thread(store.plan, root)
    private = model is not None and not model.public
    if model is None or plan is None or (private and not request.app[GATE].sees_private(request[CALLER])):
        raise NotFound(f"{root} is not in the store", cid=str(root))
    if sum(len(file.leaves) for file in plan.files) > 8 * HAVE_LIMIT_BYTES:
        raise PayloadTooLarge(f"{root} has too many leaves for one answer")
    return json_reply({"root": root, "complete": True, "files": [_whole(file) for file in plan.files]})


def _whole(file: FilePlan) -> dict[str, object]:
    count = len(file.leaves)
    bits = ((1 << count) - 1).to_bytes((count + 7) // 8, "little")
    return {"path": file.path, "cid": file.cid, "leaves": count, "bitmap": base64.b64encode(bits).decode()}


ROUTES = (
    Route("GET", "/api/store", list_models, Surface.STATE),
    Route("GET", "/api/store/{ref:.+}", show_model, Surface.STATE),
    Route("DELETE", "/api/store/{ref:.+}", remove_model, Surface.STATE),
    Route("POST", "/api/gc", gc, Surface.STATE),
    Route("POST", "/api/verify", verify, Surface.STATE),
    Route("GET", "/api/have/{root}", have, Surface.SHARE),
)
