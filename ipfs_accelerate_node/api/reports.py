"""The report over HTTP: every model on every device, measured now.

It takes minutes. Who accepts ``text/event-stream`` is told as it goes: ``step`` (model, device, what is being done),
``cell`` for each cell, then ``report`` with the whole, or ``failed`` (`told_events`). Who does not gets the whole as
JSON. A caller who leaves ends the report; what it had loaded is unloaded.
"""

from __future__ import annotations

import asyncio
from functools import partial

import msgspec
from aiohttp import web

from ipfs_accelerate_node.api.access import Surface
from ipfs_accelerate_node.api.bodies import read_json
from ipfs_accelerate_node.api.context import CONFIG, node
from ipfs_accelerate_node.api.pipeline import Route
from ipfs_accelerate_node.api.told_events import Event, Put, streamed, wants_events
from ipfs_accelerate_node.api.wire import ReportRequest, json_reply
from ipfs_accelerate_node.benchmarks.cells import Cell, Report
from ipfs_accelerate_node.benchmarks.last_report import keep_report
from ipfs_accelerate_node.benchmarks.neighbours import with_claims
from ipfs_accelerate_node.benchmarks.report import Step, Tell, report
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import Conflict, NotFound
from ipfs_accelerate_node.node import Node

ONE_AT_A_TIME: web.AppKey[asyncio.Lock] = web.AppKey("one_report_at_a_time", asyncio.Lock)


async def make_report(request: web.Request) -> web.StreamResponse:
    body = await read_json(request, ReportRequest)
    lock = request.app[ONE_AT_A_TIME]
    if lock.locked():
        raise Conflict("a report is being made; two at once would measure each other", code="report_running")
    async with lock:
        if not wants_events(request):
            return json_reply(msgspec.to_builtins(await _made(request, body)))

        async def made(put: Put) -> Event:
            def tell(news: Step | Cell) -> None:
                put(("cell" if isinstance(news, Cell) else "step", news))

            return "report", await _made(request, body, tell)

        return await streamed(request, made)


async def _made(request: web.Request, body: ReportRequest, tell: Tell = lambda _: None) -> Report:
    """Kept for who looks later. What peers claim of the same models comes with it where that was asked for."""
    here = node(request)
    made = await report(here, refs=body.refs, devices=body.devices, precisions=body.precisions, tell=tell)
    if body.peers:
        made = await with_claims(made, here.exchange.results, partial(_public, here))
    await asyncio.to_thread(keep_report, request.app[CONFIG].cache, made)
    return made


def _public(here: Node, root: Cid) -> bool:
    """One that was deleted meanwhile is not."""
    try:
        return here.find(str(root)).public
    except NotFound:
        return False


ROUTES = (Route("POST", "/api/report", make_report, Surface.STATE, measures=True),)
