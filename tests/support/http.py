"""A real listener with our limits for any application, and raw sockets to speak to it as no client library would."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from ipfs_accelerate_node.api.access import Gate
from ipfs_accelerate_node.api.browser import Origins
from ipfs_accelerate_node.api.keys import KeyRing
from ipfs_accelerate_node.api.listener import listening, take_port
from ipfs_accelerate_node.api.metrics import Metrics
from ipfs_accelerate_node.api.pipeline import GATE, METRICS, ORIGINS, TRAFFIC, Route, mount
from ipfs_accelerate_node.api.tracing import TRACING, NoTracing
from ipfs_accelerate_node.api.traffic import Traffic
from ipfs_accelerate_node.config import Config

GAUGES = ("in_flight", "body_bytes", "ready", "store_bytes", "models_stored", "models_loaded")


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Served:
    """url: without a slash at its end. app: what is served there."""

    url: str
    port: int
    app: web.Application

    async def raw(self, request: bytes) -> Answer:
        """Sends bytes as they are on a connection of their own, and reads the first answer until its end."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
            if headers.get("connection") == "close":
                body = await reader.read()
            else:
                body = await reader.readexactly(int(headers.get("content-length", 0)))
            return Answer(int(head[0].split()[1]), headers, body)
        finally:
            writer.close()


@asynccontextmanager
async def serving(cache: Path, build: Callable[[int], web.Application]) -> AsyncIterator[Served]:
    """build gets the bound port. Listens on loopback, whatever the application believes."""
    sock = take_port(Config(cache=cache, port=0))
    try:
        port: int = sock.getsockname()[1]
        app = build(port)
        async with listening(app, sock) as url:
            yield Served(url, port, app)
    finally:
        sock.close()


def small_app(
    port: int,
    routes: tuple[Route, ...],
    *,
    host: str = "127.0.0.1",
    keys: KeyRing | None = None,
    share: bool = False,
    allow_hosts: tuple[str, ...] = (),
) -> web.Application:
    """The pipeline over routes of the test's own; host: what the application takes for its bind."""
    app = web.Application()
    ring = keys or KeyRing(Path("/nowhere/keys.json"))
    app[GATE] = Gate(ring, loopback=host == "127.0.0.1", share=share)
    app[ORIGINS] = Origins.of(host, port, allow_hosts)
    app[TRAFFIC] = Traffic()
    app[METRICS] = Metrics({name: lambda: 0.0 for name in GAUGES})
    app[TRACING] = NoTracing()
    mount(app, routes)
    return app
