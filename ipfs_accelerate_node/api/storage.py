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
from ipfs_accelerate_node.errors import NotFound, PayloadTooLarge
from ipfs_accelerate_node.store.underway import HeldFile

HAVE_LIMIT_BYTES = 1 << 20  # of bitmaps in one answer: 8 million leaves


async def list_models(request: web.Request) -> web.Response:
    here = node(request)
    models = await asyncio.to_thread(here.models)
    used = await asyncio.to_thread(here.store.used_bytes)
    loose = await asyncio.to_thread(here.loose)
    return json_reply({"models": models, "loose": loose, "used_bytes": used, "quota_bytes": here.store.quota_bytes})


async def show_model(request: web.Request) -> web.Response:
    return json_reply(await asyncio.to_thread(node(request).catalogue.info, request.match_info["ref"]))


async def remove_model(request: web.Request) -> web.Response:
    ref, force = request.match_info["ref"], query_flag(request, "force")
    model = await asyncio.to_thread(node(request).find, ref)
    freed = await finished(node(request).remove(ref, force=force))
    return json_reply({"root": model.root, "freed_bytes": freed})


async def gc(request: web.Request) -> web.Response:
    """What went: roots, and files of no model by the names that the Hub has for them, as far as known here."""
    loose = {file.cid: file for file in await asyncio.to_thread(node(request).loose)}
    report = await finished(node(request).gc())
    files = [loose[cid] for cid in report.files if cid in loose]
    return json_reply({"models": report.models, "files": files, "freed_bytes": report.freed_bytes})


async def verify(request: web.Request) -> web.Response:
    """200 also when something is corrupt: the report names it."""
    body = await read_json(request, VerifyRequest, empty=VerifyRequest())
    return json_reply(await node(request).verify(body.ref))


async def have(request: web.Request) -> web.Response:
    """Which leaves of a root are here, also while it is being fetched. bitmap: base64, leaf i is bit ``i % 8`` (least
    significant first) of byte ``i // 8``."""
    root = Cid.parse(request.match_info["root"]).canonical
    public_only = not request.app[GATE].sees_private(request[CALLER])
    found = await asyncio.to_thread(node(request).store.underway.have, root, public_only=public_only)
    if found is None:
        raise NotFound(f"{root} is not in the store", cid=str(root))
    if sum(len(file.bitmap) for file in found.files) > HAVE_LIMIT_BYTES:
        raise PayloadTooLarge(f"{root} has too many leaves for one answer")
    return json_reply({"root": found.root, "complete": found.complete, "files": [_spelled(f) for f in found.files]})


def _spelled(file: HeldFile) -> dict[str, object]:
    bitmap = base64.b64encode(file.bitmap).decode()
    return {"path": file.path, "cid": file.cid, "leaves": file.leaves, "bitmap": bitmap}


ROUTES = (
    Route("GET", "/api/store", list_models, Surface.STATE),
    Route("GET", "/api/store/{ref:.+}", show_model, Surface.STATE),
    Route("DELETE", "/api/store/{ref:.+}", remove_model, Surface.STATE),
    Route("POST", "/api/gc", gc, Surface.STATE),
    Route("POST", "/api/verify", verify, Surface.STATE),
    Route("GET", "/api/have/{root}", have, Surface.SHARE),
)
