"""The report over HTTP: every model on every device, measured now.

It takes minutes. Who accepts ``text/event-stream`` is told as it goes: ``step`` (model, device, what is being done),
``cell`` for each cell, then ``report`` with the whole, or ``failed`` with a problem object; a comment every 15 s keeps
the way open. Who does not gets the whole as JSON. A caller who leaves ends the report; what it had loaded is unloaded.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import msgspec
from aiohttp import web

from ipfs_accelerate_node.api.access import Surface
from ipfs_accelerate_node.api.bodies import read_json
from ipfs_accelerate_node.api.context import CONFIG, node
from ipfs_accelerate_node.api.pipeline import TRAFFIC, Route
from ipfs_accelerate_node.api.wire import ReportRequest, json_bytes, json_reply
from ipfs_accelerate_node.benchmarks.cells import Cell, Report
from ipfs_accelerate_node.benchmarks.last_report import keep_report
from ipfs_accelerate_node.benchmarks.report import Step, Tell, report
from ipfs_accelerate_node.errors import Conflict, NodeError, Unavailable, problem

PING_S = 15.0
ONE_AT_A_TIME: web.AppKey[asyncio.Lock] = web.AppKey("one_report_at_a_time", asyncio.Lock)

_Event = tuple[str, object]


async def make_report(request: web.Request) -> web.StreamResponse:
    body = await read_json(request, ReportRequest)
    lock = request.app[ONE_AT_A_TIME]
    if lock.locked():
        raise Conflict("a report is being made; two at once would measure each other", code="report_running")
    async with lock:
        if "text/event-stream" in request.headers.get("Accept", ""):
            return await _streamed(request, body)
        return json_reply(msgspec.to_builtins(await _made(request, body)))


async def _made(request: web.Request, body: ReportRequest, tell: Tell = lambda _: None) -> Report:
    """Kept for who looks later."""
    made = await report(node(request), refs=body.refs, devices=body.devices, precisions=body.precisions, tell=tell)
    await asyncio.to_thread(keep_report, request.app[CONFIG].cache, made)
    return made


async def _streamed(request: web.Request, body: ReportRequest) -> web.StreamResponse:
    reply = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    queue: asyncio.Queue[_Event] = asyncio.Queue()
    await reply.prepare(request)
    async with asyncio.TaskGroup() as group:
        making = group.create_task(_make(request, body, queue), name="report")
        with request.app[TRAFFIC].told(lambda: queue.put_nowait(_stopping())), suppress(ConnectionError):
            await _send(reply, queue)
        making.cancel()
    return reply


async def _make(request: web.Request, body: ReportRequest, queue: asyncio.Queue[_Event]) -> None:
    def tell(news: Step | Cell) -> None:
        queue.put_nowait(("cell" if isinstance(news, Cell) else "step", news))

    try:
        made = await _made(request, body, tell)
    except NodeError as exc:
        queue.put_nowait(("failed", problem(exc)))
    else:
        queue.put_nowait(("report", made))


def _stopping() -> _Event:
    return "failed", problem(Unavailable("the node is stopping", code="shutting_down", retry_after_s=5))


async def _send(reply: web.StreamResponse, queue: asyncio.Queue[_Event]) -> None:
    """Until the report is whole, or never will be."""
    while True:
        try:
            async with asyncio.timeout(PING_S):
                event = await queue.get()
        except TimeoutError:
            await reply.write(b": \n\n")
            continue
        name, value = event
        await reply.write(b"event: %s\ndata: %s\n\n" % (name.encode(), json_bytes(value)))
        if name in ("report", "failed"):
            return


ROUTES = (Route("POST", "/api/report", make_report, Surface.STATE, measures=True),)
