"""Native routes of pins: start one, watch it, end it.

A pin outlives the request that started it; watchers come and go. Server-sent events: ``progress`` (at most ten a
second), then ``done`` or ``failed``, each with the job as data; a comment every 15 s keeps the way open.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from aiohttp import web

from ipfs_accelerate_node.api.access import Surface
from ipfs_accelerate_node.api.bodies import read_json
from ipfs_accelerate_node.api.context import node
from ipfs_accelerate_node.api.pipeline import TRAFFIC, Route
from ipfs_accelerate_node.api.traffic import finished
from ipfs_accelerate_node.api.wire import MAX_PATTERNS, PinRequest, json_bytes, json_reply
from ipfs_accelerate_node.content.selection import Choice
from ipfs_accelerate_node.errors import InvalidInput, NodeError, NotFound
from ipfs_accelerate_node.fetch.jobs import PinJob
from ipfs_accelerate_node.fetch.pins import Wish
from ipfs_accelerate_node.node import Node

PING_S = 15.0
_EVENT_GAP_S = 0.1
_EVENTS = {"pinned": "done", "failed": "failed"}


async def start_pin(request: web.Request) -> web.Response:
    """202: the job, which goes on by itself. Its ``id`` (or root) is for `/api/pins/{id}` and its events."""
    body = await read_json(request, PinRequest)
    choice = Choice((*body.only, *body.include), tuple(body.exclude))
    wish = Wish(body.name, body.announce, body.source, choice, publish_map=body.publish_map)
    job = node(request).start_pin(body.ref, wish)
    return json_reply(job, status=202, headers={"Location": f"/api/pins/{job.id}"})


async def show_plan(request: web.Request) -> web.Response:
    """What a pin would fetch: ``?ref=``, ``&include=`` (or ``only``) and ``&exclude=`` (may be repeated),
    ``&source=``."""
    query = request.query
    ref, source = query.get("ref", ""), query.get("source")
    choice = Choice((*query.getall("only", []), *query.getall("include", [])), tuple(query.getall("exclude", [])))
    if not ref or max(len(choice.include), len(choice.exclude)) > MAX_PATTERNS:
        raise InvalidInput(
            f"a plan needs a ref, and at most {MAX_PATTERNS} patterns", param="include" if ref else "ref"
        )
    return json_reply(await node(request).plan(ref, choice=choice, source=source))


async def list_pins(request: web.Request) -> web.Response:
    """jobs: pins of this run of the daemon. models: what is pinned."""
    here = node(request)
    models = await asyncio.to_thread(here.models)
    return json_reply({"jobs": here.pin_jobs(), "models": [model for model in models if model.pinned]})


async def show_pin(request: web.Request) -> web.Response:
    return json_reply(await _job(node(request), request.match_info["ref"]))


async def remove_pin(request: web.Request) -> web.Response:
    return json_reply(await finished(node(request).unpin(request.match_info["ref"])))


async def pin_events(request: web.Request) -> web.StreamResponse:
    here = node(request)
    job = await _job(here, request.match_info["ref"])
    reply = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    queue: asyncio.Queue[PinJob | None] = asyncio.Queue()
    await reply.prepare(request)
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(_watch(here, job, queue), name=f"watch {job.id}")
        with request.app[TRAFFIC].told(lambda: queue.put_nowait(None)), suppress(ConnectionError):
            await _send_events(reply, queue)
        watching.cancel()
    return reply


async def _watch(here: Node, job: PinJob, queue: asyncio.Queue[PinJob | None]) -> None:
    async for state in here.updates(job):
        queue.put_nowait(state)
    queue.put_nowait(None)


async def _send_events(reply: web.StreamResponse, queue: asyncio.Queue[PinJob | None]) -> None:
    """Until the queue says None. Of the states that came while one was sent only the last is told."""
    last = 0.0
    while True:
        try:
            async with asyncio.timeout(PING_S):
                state = await queue.get()
        except TimeoutError:
            await reply.write(b": \n\n")
            continue
        if state is None:
            return
        if not state.ended and time.monotonic() - last < _EVENT_GAP_S:
            continue
        last = time.monotonic()
        name = _EVENTS.get(state.state, "progress")
        await reply.write(b"event: %s\ndata: %s\n\n" % (name.encode(), json_bytes(state)))


async def _job(here: Node, ref: str) -> PinJob:
    """A job by its id or root, else one made up of what is stored under that reference. Raises NotFound."""
    if (job := here.pin_job(ref)) is not None:
        return job
    try:
        model = await asyncio.to_thread(here.find, ref)
    except NodeError as exc:
        raise NotFound(f"no pin of {ref[:200]!r} is known", code="pin_not_found") from exc
    root = str(model.root)
    if (job := here.pin_job(root)) is not None:
        return job
    if not model.pinned:
        raise NotFound(f"{root} is stored, but not pinned", code="pin_not_found")
    size = model.size_bytes
    name = model.names[0] if model.names else None
    return PinJob(id=root, ref=root, name=name, state="pinned", root=root, bytes_total=size, bytes_done=size)


ROUTES = (
    Route("GET", "/api/plan", show_plan, Surface.STATE),
    Route("POST", "/api/pins", start_pin, Surface.STATE),
    Route("GET", "/api/pins", list_pins, Surface.STATE),
    Route("GET", "/api/pins/{ref:.+}/events", pin_events, Surface.STATE),
    Route("GET", "/api/pins/{ref:.+}", show_pin, Surface.STATE),
    Route("DELETE", "/api/pins/{ref:.+}", remove_pin, Surface.STATE),
)
