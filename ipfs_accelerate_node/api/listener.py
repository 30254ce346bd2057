"""The listening socket and its limits: taken before anything else starts, so that a second daemon ends at once."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from ipfs_accelerate_node.api.daemon_file import running_daemon
from ipfs_accelerate_node.config import Config
from ipfs_accelerate_node.errors import AlreadyRunning, Conflict, InvalidConfig

BACKLOG = 128
MAX_CONNECTIONS = 1024
KEEPALIVE_S = 20.0  # also for a connection that has not finished its first request's headers
LINGER_S = 2.0
CUT_S = 0.5  # what is still under way when the listener closes gets so long to notice
LINE_BYTES = 8190
HEADERS = 128
_TOO_MANY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def take_port(config: Config) -> socket.socket:
    """A socket bound to the configured address, not listening yet.

    Raises AlreadyRunning (the daemon of this cache has it), Conflict (code port_in_use) and InvalidConfig (no such
    address here, or not allowed).
    """
    if not 0 <= config.port <= 0xFFFF:  # the resolver would take it modulo 65536
        raise InvalidConfig(f"{config.port} is not a port: 0 to 65535 are", key="port")
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            config.host.strip("[]"), config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError, OverflowError) as exc:
        raise InvalidConfig(f"{config.host}:{config.port} is not an address of this host", key="host") from exc
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setblocking(False)
        sock.bind(address)
        sock.listen(BACKLOG)
    except (OSError, OverflowError) as exc:
        sock.close()
        raise _bind_failure(config, exc) from exc
    return sock


def _bind_failure(config: Config, exc: Exception) -> AlreadyRunning | Conflict | InvalidConfig:
    if not isinstance(exc, OSError) or exc.errno != errno.EADDRINUSE:
        return InvalidConfig(f"cannot listen on {config.host}:{config.port}: {exc}", key="port")
    if (pid := running_daemon(config.cache)) is not None:
        return AlreadyRunning(f"already running pid {pid}", cache=str(config.cache))
    return Conflict(
        f"port {config.port} of {config.host} is taken by another program: choose one with --port (0: any free one)",
        code="port_in_use",
    )


@asynccontextmanager
async def listening(app: web.Application, sock: socket.socket) -> AsyncIterator[str]:
    """Serves on a taken socket until left; yields the URL under which this host reaches it."""
    runner = web.AppRunner(
        app,
        handle_signals=False,
        access_log=None,
        logger=_protocol_log,
        handler_cancellation=True,
        keepalive_timeout=KEEPALIVE_S,
        lingering_time=LINGER_S,
        shutdown_timeout=CUT_S,
        max_line_size=LINE_BYTES,
        max_field_size=LINE_BYTES,
        max_headers=HEADERS,
    )
    await runner.setup()
    try:
        http = runner.server
        assert http is not None  # set by setup()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _protocol(http), sock=sock, backlog=BACKLOG)
        try:
            yield url_of(sock)
        finally:
            server.close()
    finally:
        await runner.cleanup()


def url_of(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _protocol(http: web.Server) -> asyncio.Protocol:
    return http() if len(http.connections) < MAX_CONNECTIONS else _Refusal()


class _Refusal(asyncio.Protocol):
    """A connection above the cap: told to come back, and closed."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        transport.write(_TOO_MANY)
        transport.close()


def _is_fault(record: logging.LogRecord) -> bool:
    """What is no HTTP, or no body of the coding it claims, is the sender's fault: it got its 400, without a traceback
    in the log."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError | web.RequestPayloadError))


_protocol_log = logging.getLogger(f"{__name__}.protocol")
_protocol_log.addFilter(_is_fault)
