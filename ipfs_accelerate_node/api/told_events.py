"""Work that takes minutes, told as it goes by server-sent events.

What was made comes last, or ``failed`` with a problem object; a comment every 15 s keeps the way open. A caller who
leaves ends the work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from aiohttp import web

from ipfs_accelerate_node.api.pipeline import TRAFFIC
from ipfs_accelerate_node.api.wire import json_bytes
from ipfs_accelerate_node.errors import NodeError, Unavailable, problem

PING_S = 15.0
FAILED = "failed"

Event = tuple[str, object]
Put = Callable[[Event], None]


def wants_events(request: web.BaseRequest) -> bool:
    return "text/event-stream" in request.headers.get("Accept", "")


async def streamed(request: web.Request, make: Callable[[Put], Awaitable[Event]]) -> web.StreamResponse:
    """make: is given what tells an event (its name and a value that has a JSON form), and returns the last one."""
    reply = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    queue: asyncio.Queue[Event | None] = asyncio.Queue()
    await reply.prepare(request)

    async def work() -> None:
        try:
            last = await make(queue.put_nowait)
        except NodeError as exc:
            last = FAILED, problem(exc)
        _end(queue, last)

    async with asyncio.TaskGroup() as group:
        working = group.create_task(work(), name="told work")
        with request.app[TRAFFIC].told(lambda: _end(queue, _stopping())), suppress(ConnectionError):
            await _send(reply, queue)
        working.cancel()
    return reply


def _end(queue: asyncio.Queue[Event | None], last: Event) -> None:
    queue.put_nowait(last)
    queue.put_nowait(None)


def _stopping() -> Event:
    return FAILED, problem(Unavailable("the node is stopping", code="shutting_down", retry_after_s=5))


async def _send(reply: web.StreamResponse, queue: asyncio.Queue[Event | None]) -> None:
    while True:
        try:
            async with asyncio.timeout(PING_S):
                event = await queue.get()
        except TimeoutError:
            await reply.write(b": \n\n")
            continue
        if event is None:
            return
        name, value = event
        await reply.write(b"event: %s\ndata: %s\n\n" % (name.encode(), json_bytes(value)))
