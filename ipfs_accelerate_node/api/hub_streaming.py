"""A large file of the Hub to a client while it still comes: as far as it has come, but for its end.

Where this node knows its leaves, having had the file before, each is checked as it comes, and sent at once. Of any
other file nothing is verified before all of it is here. So the last part is held back until the file has its oid; where
it has not, the connection is closed before the end, and a client that comes back for the rest gets the whole verified
file from its first byte (200), which makes it start again, or an error. So no client ever has a whole file that is
wrong.
"""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Awaitable, Callable

from aiohttp import web

from ipfs_accelerate_node.api.context import CONFIG, HUB_GIVING, node
from ipfs_accelerate_node.api.ranges import Span
from ipfs_accelerate_node.content.build import CHUNK_BYTES
from ipfs_accelerate_node.errors import StorageError, Unavailable
from ipfs_accelerate_node.fetch.hub_arrival import Arrival
from ipfs_accelerate_node.fetch.threads import in_thread
from ipfs_accelerate_node.store import StoredFile

WAIT_BYTES = 32 << 20  # smaller files are waited for, unless their leaves are known
HELD_BACK_BYTES = 1 << 20

Bring = Callable[[], Awaitable[StoredFile]]


async def as_given(request: web.Request, oid: str, span: Span) -> Span:
    """The span that is answered: all of the file to a client that may have a beginning of it which nobody verified, and
    asks for the rest."""
    if span.start == 0 or span.stop < span.size:
        return span
    held = node(request)
    doubtful = await in_thread(held.store.unnamed.was_given, oid) and not held.hub.receiver.is_trusted(oid)
    return Span(0, span.size, span.size, partial=False) if doubtful else span


async def whole_or_sent(
    request: web.Request, reply: web.StreamResponse, oid: str, span: Span, bring: Bring
) -> StoredFile | None:
    """The file, when it is whole; None where the span was sent meanwhile. Raises as bring does, but not after the first
    byte."""
    if span.size <= CHUNK_BYTES or request.app[CONFIG].paranoid:
        return await bring()
    held = node(request)
    waits = span.size <= WAIT_BYTES or span.stop < span.size  # for all of it, unless each byte is verified
    bringing = asyncio.ensure_future(bring())
    try:
        lost = await in_thread(held.store.unnamed.was_given, oid) and not held.hub.receiver.is_trusted(oid)
        arrival = await held.hub.receiver.coming(oid, span.start, bringing)
        if arrival is None or arrival.part is None or not arrival.is_trusted:
            return await bringing
        if not arrival.is_sure:
            if waits or lost:
                return await bringing
            await arrival.give(held.store)
            if not arrival.is_trusted:
                return await bringing
        try:
            file = _lent(arrival)
        except (StorageError, Unavailable):  # it is whole, or given up, just now
            return await bringing
        with request.app[HUB_GIVING].transfer():
            await _send(request, reply, span, arrival, file, bringing)
        return None
    finally:
        bringing.cancel()
        await asyncio.wait((bringing,))
        if not bringing.cancelled():
            bringing.exception()  # told to those who wait for the file


def _lent(arrival: Arrival) -> io.FileIO:
    """Raises StorageError, Unavailable."""
    assert arrival.part is not None, "something of it came"
    return io.FileIO(arrival.part.lend(), closefd=True)


async def _send(
    request: web.Request,
    reply: web.StreamResponse,
    span: Span,
    arrival: Arrival,
    file: io.FileIO,
    bringing: asyncio.Future[StoredFile],
) -> None:
    """file: lent of the arrival, closed here. Where somebody else who brought it was cancelled, goes on with who brings
    the rest now."""
    reply.content_length = span.length
    at, receiver = span.start, node(request).hub.receiver
    try:
        await reply.prepare(request)
        while (at := await _sent(request, span, at, arrival, file)) < span.stop:
            further = await receiver.coming(arrival.file.oid, at, bringing) if arrival.was_left else None
            if further is None or not further.goes_on(arrival):
                _close(request, reply)
                return
            file.close()
            arrival, file = further, _lent(further)
    except (StorageError, Unavailable):  # of the further one
        _close(request, reply)
    finally:
        file.close()


async def _sent(request: web.Request, span: Span, at: int, arrival: Arrival, file: io.FileIO) -> int:
    """How far it was sent, when all of it is, or the arrival has ended without being whole."""
    giving, part = request.app[HUB_GIVING], arrival.part
    assert part is not None, "it was lent"
    while at < span.stop:
        if request.transport is None:
            raise ConnectionResetError("the client is gone")
        held_back = 0 if arrival.is_sure else HELD_BACK_BYTES
        ready = span.stop if arrival.is_whole else min(part.reaches(at), span.stop, span.size - held_back)
        if not (arrival.is_whole or arrival.is_trusted):
            break
        if ready <= at:
            await arrival.change()
            continue
        await giving.send(request.transport, io.BufferedReader(_again(file)), at, ready)
        at = ready
    return at


def _again(file: io.FileIO) -> io.FileIO:
    return io.FileIO(os.dup(file.fileno()), closefd=True)


def _close(request: web.Request, reply: web.StreamResponse) -> None:
    """Before the end, but not by a reset: that is what clients take up again."""
    reply.force_close()
    if request.transport is not None:
        request.transport.close()
