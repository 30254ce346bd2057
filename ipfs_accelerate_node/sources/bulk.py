"""The body of a long answer, read by the kernel straight into the pieces that its caller gets.

aiohttp copies each body on its way out of the socket, in pieces of 256 KiB: a second of CPU for a GiB, more than it
takes to hash it. So once the headers of a long answer of known length are there, its connection is lent to a protocol
of our own, which takes exactly the rest of that body and gives the connection back for the next request.

Owns: the transport, between `_Rest` being set and its last byte (or `connection_lost`, which it passes on).
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import AsyncGenerator

import aiohttp

PIECE_BYTES = 1 << 20  # as large as a leaf of our own models
MIN_BYTES = 512 << 10  # of what is still to come; below it the handover costs more than it saves
_PIECES_KEPT = 16  # whose memory one body uses again and again
_PIECES_AHEAD = 3  # complete ones that wait for the caller; then the connection is not read any more
_TICK_S = 0.25  # how long a part of a piece waits for the rest before it is handed out


class Stalled(Exception):
    """received: what came in the time in which more should have."""

    def __init__(self, received: int) -> None:
        super().__init__(f"{received} bytes")
        self.received = received


class _Memory:
    """Whole pieces, each used again once its callers have dropped it: for fresh memory the kernel and the interpreter
    clear it first, a quarter of a second for a GiB."""

    def __init__(self) -> None:
        self._pieces: list[bytearray] = []

    def piece(self) -> memoryview:
        for piece in self._pieces:
            if sys.getrefcount(piece) <= 3:  # the list, this loop, and the call: no view of it, or of a part, is left
                return memoryview(piece)
        fresh = bytearray(PIECE_BYTES)
        if len(self._pieces) < _PIECES_KEPT:
            self._pieces.append(fresh)
        return memoryview(fresh)


class _Rest(asyncio.BufferedProtocol):
    """Takes left bytes off a transport, then hands it back to owner."""

    def __init__(self, owner: asyncio.Protocol, transport: asyncio.Transport, left: int, begun: bytearray) -> None:
        self._owner = owner
        self._memory = _Memory()
        self._transport = transport
        self._left = left
        self._piece = self._fresh(len(begun) + left, len(begun))
        self._piece[: len(begun)] = begun
        self._filled = len(begun)
        self._handed = 0  # of the piece
        self._ready: deque[memoryview] = deque()
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._failure: BaseException | None = None
        self.received = 0
        self.returned = False

    def take_over(self) -> None:
        if self._filled == len(self._piece):
            self._hand_out()
        self._transport.set_protocol(self)

    async def piece(self) -> memoryview | None:
        """The next one; None at the end. Raises what broke the connection."""
        while not self._ready:
            if self._failure is not None:
                raise self._failure
            if self.returned:
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        piece = self._ready.popleft()
        if self._paused and not self.returned:
            self._paused = False
            self._transport.resume_reading()
        return piece

    def tick(self) -> None:
        """A caller that waits gets what there is."""
        if self._waiter is not None and self._filled > self._handed:
            self._hand_out()

    def fail(self, failure: BaseException) -> None:
        """Ends it; what came before is still handed out."""
        if self._filled > self._handed:
            self._hand_out()
        self._failure = self._failure or failure
        self._wake()

    @property
    def ended(self) -> bool:
        """Whether the last piece was taken."""
        return self.returned and not self._ready

    @property
    def waits_for_peer(self) -> bool:
        return not (self._paused or self.returned)

    def _fresh(self, left: int, at_least: int = 0) -> memoryview:
        """The last piece has room for one byte more, which must not come: left in the socket, it would be taken for
        the answer to the next request."""
        size_bytes = max(PIECE_BYTES, at_least)
        if left <= size_bytes:
            return memoryview(bytearray(left + 1))
        return self._memory.piece() if size_bytes == PIECE_BYTES else memoryview(bytearray(size_bytes))

    def _hand_out(self) -> None:
        self._ready.append(self._piece[self._handed : self._filled])
        self._handed = self._filled
        if self._filled == len(self._piece):
            self._piece = self._fresh(self._left)
            self._filled = self._handed = 0
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # asyncio's side

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._piece[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        surplus = max(0, nbytes - self._left)
        self._filled += nbytes - surplus
        self._left -= nbytes - surplus
        self.received += nbytes
        if surplus:
            self.fail(ValueError("bytes after the announced length"))
            return
        if self._left == 0:
            self.returned = True
            self._transport.set_protocol(self._owner)
        if self._left == 0 or self._filled == len(self._piece):
            self._hand_out()
        if self._left and len(self._ready) >= _PIECES_AHEAD and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def eof_received(self) -> None:
        self._owner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self.fail(exc or aiohttp.ClientPayloadError("ended early"))
        self._owner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._owner.pause_writing()

    def resume_writing(self) -> None:
        self._owner.resume_writing()


def rest_of(response: aiohttp.ClientResponse) -> int:
    """How many bytes of a body are to come that can be read here; 0 for a body whose end only its parser knows."""
    declared = response.headers.get("Content-Length", "")
    connection = response.connection
    if connection is None or connection.transport is None or response.headers.get("Transfer-Encoding"):
        return 0
    if not (declared.isascii() and declared.isdigit() and len(declared) <= 19):
        return 0
    return max(0, int(declared) - response.content.total_bytes)


async def pieces(
    response: aiohttp.ClientResponse, stall_s: float, min_bytes_per_s: float
) -> AsyncGenerator[memoryview, None]:
    """The whole body of an answer of which nothing was read yet and that `rest_of` approves.

    Raises Stalled (nothing came for stall_s although the caller waited, or over that time fewer than min_bytes_per_s),
    or aiohttp's and the system's errors of a connection that broke; what came before is handed out first.
    """
    connection = response.connection
    begun = bytearray()
    while chunk := response.content.read_nowait():
        begun += chunk
    left = rest_of(response)
    if connection is None or connection.protocol is None or connection.transport is None or not left:
        yield memoryview(begun)
        return
    rest = _Rest(connection.protocol, connection.transport, left, begun)
    rest.take_over()
    watch = _Watch(rest, stall_s, min_bytes_per_s)
    try:
        while (piece := await rest.piece()) is not None:
            if rest.ended:
                response.content.feed_eof()  # aiohttp may use the connection again
            yield piece
    finally:
        watch.close()


class _Watch:
    """One timer for a whole body instead of one for every read."""

    def __init__(self, rest: _Rest, stall_s: float, min_bytes_per_s: float) -> None:
        self._rest = rest
        self._stall_s = stall_s
        self._min_bytes_per_s = min_bytes_per_s
        self._loop = asyncio.get_running_loop()
        self._tick_s = min(_TICK_S, stall_s / 4)
        self._since, self._received = self._loop.time(), rest.received
        self._quiet_since, self._last = self._since, rest.received
        self._timer = self._loop.call_later(self._tick_s, self._tick)

    def _tick(self) -> None:
        now, received = self._loop.time(), self._rest.received
        if not self._rest.waits_for_peer:
            self._since, self._received, self._quiet_since = now, received, now
        if received != self._last:
            self._quiet_since, self._last = now, received
        came, passed = received - self._received, now - self._since
        self._rest.tick()
        if now - self._quiet_since >= self._stall_s:
            self._rest.fail(Stalled(0))
            return
        if passed >= self._stall_s:
            if came < self._min_bytes_per_s * passed:
                self._rest.fail(Stalled(came))
                return
            self._since, self._received = now, received
        self._timer = self._loop.call_later(self._tick_s, self._tick)

    def close(self) -> None:
        self._timer.cancel()
