"""Server-sent events of a reply that is made while it is sent.

Until the first event is there, a failure is an ordinary reply with its status; later ones are an event of the dialect.
Comments keep a connection alive on which nothing else happens.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing

from aiohttp import web

from ipfs_accelerate_node.errors import NodeError

PING_S = 15.0
STALL_S = 60.0
_AHEAD = 64  # events that are made before a slow reader has taken them

Events = AsyncIterator[bytes]
_Made = bytes | NodeError | None


def event(body: bytes) -> bytes:
    return b"data: %s\n\n" % body


async def send_events(
    request: web.Request,
    events: Events,
    *,
    headers: Mapping[str, str],
    failed: Callable[[NodeError], bytes],
    ping_s: float = PING_S,
    stall_s: float = STALL_S,
) -> web.StreamResponse:
    """failed: a failure after the first event, as an event. ping_s: of silence, then a comment is sent. A reader
    who leaves ends the making of events, and so does one who takes nothing for ``stall_s``.

    Raises NodeError: before anything was sent. ConnectionError: the reader has left.
    """
    made: asyncio.Queue[_Made] = asyncio.Queue(_AHEAD)
    reply = web.StreamResponse(
        headers={**headers, "Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
    )
    problem: Exception | None = None
    async with asyncio.TaskGroup() as group:
        making = group.create_task(_make(events, made), name="events")
        try:
            await _send(_Reader(request, reply, stall_s), made, failed, ping_s)
        except (ConnectionError, NodeError) as exc:  # told by this function, not by the group
            problem = exc
        making.cancel()
    if problem is not None:
        raise problem
    return reply


async def _make(events: Events, made: asyncio.Queue[_Made]) -> None:
    try:
        async with aclosing(events) as source:  # type: ignore[type-var]  # every source is a generator
            async for one in source:
                await made.put(one)
    except NodeError as exc:
        await made.put(exc)
    else:
        await made.put(None)


class _Reader:
    """Who the events are for. Its methods raise ConnectionError: the reader has left, or takes nothing any more."""

    def __init__(self, request: web.Request, reply: web.StreamResponse, stall_s: float) -> None:
        self._request = request
        self._reply = reply
        self._stall_s = stall_s
        self.begun = False

    async def begin(self) -> None:
        self.begun = True
        await self._reply.prepare(self._request)

    async def give(self, one: bytes) -> None:
        """Waits while the reader is behind."""
        try:
            async with asyncio.timeout(self._stall_s):
                await self._reply.write(one)
        except TimeoutError as exc:
            if self._request.transport is not None:
                self._request.transport.abort()
            raise ConnectionResetError(f"the reader took nothing for {self._stall_s:g} s") from exc

    async def end(self) -> None:
        await self._reply.write_eof()


async def _send(
    reader: _Reader, made: asyncio.Queue[_Made], failed: Callable[[NodeError], bytes], ping_s: float
) -> None:
    while True:
        try:
            async with asyncio.timeout(ping_s):
                one = await made.get()
        except TimeoutError:
            one = b": \n\n"
        if not reader.begun:
            if isinstance(one, NodeError):
                raise one
            await reader.begin()
        match one:
            case None:
                return await reader.end()
            case NodeError():
                await reader.give(event(failed(one)))
                return await reader.end()
            case _:
                await reader.give(one)
