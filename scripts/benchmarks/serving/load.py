"""The load: a process of its own that keeps its connections open and writes requests made beforehand.

Run as a program: reads one order as a line of JSON, does it, answers with one line; so on until its input ends.
Requests lie in a file, a body a line. A closed loop sends the next when the last is answered; a fixed rate sends at its
times, whoever has answered, and a request's time counts from when it was meant to be sent.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CONNECTIONS = 1000
_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_PRECISION = re.compile(rb"\r\nx-precision:\s*(\S+)", re.IGNORECASE)  # our own server says it
_CLOSES = re.compile(rb"\r\nconnection:\s*close", re.IGNORECASE)


class Gone(Exception):
    """The server closed the connection before it answered."""


class Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self, precisions: set[str]) -> None:
        self.precisions = precisions
        self._buffer = bytearray()
        self._head = self._end = 0
        self._waiter: asyncio.Future[tuple[int, bytes]] | None = None
        self._transport: asyncio.Transport | None = None
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(Gone())

    def ask(self, request: bytes) -> asyncio.Future[tuple[int, bytes]]:
        """(status, body)"""
        assert self._transport is not None
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._waiter

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._end:
            at = self._buffer.find(b"\r\n\r\n")
            if at < 0:
                return
            head = bytes(self._buffer[: at + 2])
            length = _LENGTH.search(head)
            if length is None:
                raise SystemExit(f"an answer without a length: {head[:300]!r}")
            self._head, self._end = at + 4, at + 4 + int(length[1])
            if (named := _PRECISION.search(head)) is not None:
                self.precisions.add(named[1].decode())
            self.closed = self.closed or _CLOSES.search(head) is not None
        if len(self._buffer) < self._end:
            return
        answer = (int(self._buffer[9:12]), bytes(self._buffer[self._head : self._end]))
        self._buffer, self._end = bytearray(), 0
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(answer)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


@dataclass
class Order:
    """clients: of the closed loop. rate: a second, then it is no closed loop. count: of requests, which go round the
    file; seconds: instead of it. answers: file for the bodies of the answers, one a line; empty: not kept."""

    host: str
    port: int
    path: str
    requests: str
    clients: int = 1
    rate: float = 0.0
    count: int = 0
    seconds: float = 0.0
    answers: str = ""
    headers: dict[str, str] = field(default_factory=dict)


class Load:
    def __init__(self, order: Order) -> None:
        self.order = order
        head = "".join(f"{name}: {value}\r\n" for name, value in order.headers.items())
        self._requests = [
            (
                f"POST {order.path} HTTP/1.1\r\nHost: {order.host}:{order.port}\r\nContent-Type: application/json\r\n"
                f"{head}Content-Length: {len(body)}\r\n\r\n"
            ).encode()
            + body
            for body in Path(order.requests).read_bytes().splitlines()
        ]
        self._idle: list[Connection] = []
        self._open = asyncio.Semaphore(CONNECTIONS)
        self._sent = 0
        self.took: list[tuple[int, int, float, float]] = []  # request, status, seconds, seconds after its time
        self.kept: dict[int, bytes] = {}
        self.errors: list[bytes] = []
        self.precisions: set[str] = set()

    async def run(self) -> dict[str, Any]:
        order = self.order
        await self._warm(min(CONNECTIONS, order.clients))
        began, cpu = time.perf_counter(), time.process_time()
        if order.rate:
            await self._at_rate(began)
        else:
            async with asyncio.TaskGroup() as group:
                for _ in range(order.clients):
                    group.create_task(self._closed(began))
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
        for connection in self._idle:
            connection.close()
        return {
            "wall_s": wall,
            "cpu_share": cpu / wall,
            "precisions": sorted(self.precisions),
            "took": self.took,
            "errors": [error.decode(errors="replace")[:300] for error in self.errors[:3]],
        }

    def keep(self) -> None:
        """Writes the answers."""
        kept = [self.kept.get(at, b"") for at in range(len(self._requests))]
        Path(self.order.answers).write_bytes(b"\n".join(body.replace(b"\n", b" ") for body in kept))

    async def _warm(self, count: int) -> None:
        """Connections that are open when the time begins."""
        self._idle = [await self._connect() for _ in range(count)]

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, made = await loop.create_connection(lambda: Connection(self.precisions), self.order.host, self.order.port)
        return made

    async def _closed(self, began: float) -> None:
        order = self.order
        while (time.perf_counter() - began < order.seconds) if order.seconds else (self._sent < order.count):
            number = self._sent % len(self._requests)
            self._sent += 1
            await self._one(number, time.perf_counter())

    async def _at_rate(self, began: float) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(int(self.order.rate * self.order.seconds)):
                due = began + number / self.order.rate
                if (early := due - time.perf_counter()) > 0:
                    await asyncio.sleep(early)
                elif number % 16 == 0:
                    await asyncio.sleep(0)  # late as it is, answers are taken too
                group.create_task(self._one(number % len(self._requests), due))

    async def _one(self, number: int, due: float) -> None:
        async with self._open:
            connection = self._idle.pop() if self._idle else await self._connect()
            while connection.closed:
                connection = self._idle.pop() if self._idle else await self._connect()
            late = time.perf_counter() - due
            try:
                status, body = await connection.ask(self._requests[number])
            except Gone:
                status, body = 0, b"the connection was closed"
            self.took.append((number, status, time.perf_counter() - due, late))
            if not connection.closed:
                self._idle.append(connection)
        if status != 200:
            self.errors.append(body)
        elif self.order.answers:
            self.kept[number] = body


def main() -> None:
    for line in sys.stdin:
        load = Load(Order(**json.loads(line)))
        said = asyncio.run(load.run())
        if load.order.answers:
            load.keep()
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
