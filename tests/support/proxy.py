"""A TCP proxy that does what networks do: cuts off, resets, delays, trickles, falls silent, comes and goes.

The faults are toxiproxy's toxics. They may be changed while connections are open; what streams through at that moment
meets the new ones with its next bytes. Runs on the test's own loop; times are paces of a bad network, never waits.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

CHUNK_BYTES = 64 << 10


@dataclass(frozen=True)
class Toxic:
    """What happens to bytes on their way from the server.

    limit_bytes: of one connection; then it is closed (`limit_data`), or with ``reset`` ended by RST (`reset_peer`).
    silent: connections are accepted, nothing ever comes (`timeout`). latency_s, jitter_s: before each piece.
    rate_bytes: a second, of each connection (`bandwidth`). slice_bytes: pieces of one to so many bytes (`slicer`).
    """

    limit_bytes: int | None = None
    reset: bool = False
    silent: bool = False
    latency_s: float = 0.0
    jitter_s: float = 0.0
    rate_bytes: int | None = None
    slice_bytes: int | None = None


NONE = Toxic()


class Proxy:
    """In front of the server at ``upstream`` (a URL). toxic: what it does now; toxic_count: for so many connections
    from now on, None for all. sent: bytes that went to clients. connections: accepted until now."""

    def __init__(self, upstream: str, toxic: Toxic = NONE, *, seed: int = 0) -> None:
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname or "", parts.port or 80)
        self.toxic = toxic
        self.toxic_count: int | None = None
        self.sent = 0
        self.connections = 0
        self.port = 0
        self._random = random.Random(seed)
        self._server: asyncio.Server | None = None
        self._ways: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()
        self._moved = asyncio.Condition()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.up()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        await self.down()

    async def up(self) -> None:
        """Listens (again), always at the same port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def down(self) -> None:
        """The backend is gone: connections break, new ones are refused."""
        if self._server is not None:
            self._server.close()
        ways = list(self._ways)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()
        self._server = None

    async def passed(self, sent_bytes: int) -> None:
        """Returns once so many bytes went to clients in all."""
        async with self._moved:
            await self._moved.wait_for(lambda: self.sent >= sent_bytes)

    async def accepted(self, connections: int) -> None:
        """Returns once so many connections were accepted in all."""
        async with self._moved:
            await self._moved.wait_for(lambda: self.connections >= connections)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._ways.add(task)
        self.connections += 1
        struck = self.toxic_count is None or self.toxic_count > 0
        if self.toxic_count is not None:
            self.toxic_count -= 1
        try:
            async with self._moved:
                self._moved.notify_all()
            await self._connect(reader, writer, struck)
        except (OSError, asyncio.CancelledError):
            """The client left, the server is not there, or the proxy goes down: this connection ends."""
        finally:
            self._ways.discard(task)
            writer.close()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, struck: bool) -> None:
        back, forth = await asyncio.open_connection(*self._upstream)
        try:
            upward = asyncio.create_task(self._upward(reader, forth))
            try:
                await self._downward(back, writer, struck)
            finally:
                upward.cancel()
                await asyncio.gather(upward, return_exceptions=True)
        finally:
            forth.close()

    async def _upward(self, reader: asyncio.StreamReader, forth: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                forth.write(data)
                await forth.drain()

    async def _downward(self, back: asyncio.StreamReader, writer: asyncio.StreamWriter, struck: bool) -> None:
        passed = 0
        while True:
            toxic = self.toxic if struck else NONE
            if toxic.silent:
                await self._closing.wait()
                return
            if toxic.limit_bytes is not None and passed >= toxic.limit_bytes:
                if toxic.reset:
                    _reset(writer)
                return
            data = await back.read(self._piece(toxic, passed))
            if not data:
                return
            await self._pause(toxic, len(data))
            writer.write(data)
            await writer.drain()
            passed += len(data)
            self.sent += len(data)
            async with self._moved:
                self._moved.notify_all()

    def _piece(self, toxic: Toxic, passed: int) -> int:
        count = CHUNK_BYTES
        if toxic.slice_bytes is not None:
            count = self._random.randint(1, toxic.slice_bytes)
        if toxic.rate_bytes is not None:
            count = min(count, max(1, toxic.rate_bytes // 20))
        if toxic.limit_bytes is not None:
            count = min(count, toxic.limit_bytes - passed)
        return count

    async def _pause(self, toxic: Toxic, count: int) -> None:
        seconds = toxic.latency_s + self._random.uniform(0, toxic.jitter_s)
        if toxic.rate_bytes is not None:
            seconds += count / toxic.rate_bytes
        if seconds:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._closing.wait()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Closing it now sends RST, not FIN."""
    sock: socket.socket = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
