"""The listening socket and its limits: taken before anything else starts, so that a second daemon ends at once."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from ipfs_accelerate_node.api.browser import Origins
from ipfs_accelerate_node.api.daemon_file import running_daemon
from ipfs_accelerate_node.api.pipeline import ORIGINS, own_headers, request_id
from ipfs_accelerate_node.api.problems import Dialect, error_reply, internal_reply
from ipfs_accelerate_node.api.watchdog import WATCHDOG
from ipfs_accelerate_node.config import Config
from ipfs_accelerate_node.content.cid import shown
from ipfs_accelerate_node.errors import AlreadyRunning, BadRequest, Conflict, InvalidConfig

log = logging.getLogger(__name__)

Accept = Callable[[web.Server], asyncio.Protocol]

BACKLOG = 128
MAX_CONNECTIONS = 1024
KEEPALIVE_S = 20.0  # also for a connection that has not finished its first request's headers
IDLE_GRACE_S = 1.0  # without a whole request, then a connection may be ended, when there are too many
BODY_GRACE_S = 5.0  # of a body, then one slower than DRIP_BYTES_S may be cut off, when there are too many connections
DRIP_BYTES_S = 4096
LINGER_S = 2.0
CUT_S = 0.5  # what is still under way when the listener closes gets so long to notice
READER_STALL_S = 60  # a reader who takes nothing of its reply for so long is cut off by the system
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
async def listening(app: web.Application, sock: socket.socket, *, accept: Accept | None = None) -> AsyncIterator[str]:
    """Serves on a taken socket until left; yields the URL under which this host reaches it. accept: makes the protocol
    of a new connection; the user's listener's if None."""
    accepting = accept or _protocol
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # connections inherit it; sendfile has no timeout of its own
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, READER_STALL_S * 1000)
    runner = web.AppRunner(app, handle_signals=False, handler_cancellation=True, shutdown_timeout=CUT_S)
    await runner.setup()
    try:
        http = runner.server
        assert http is not None  # set by setup()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: accepting(http), sock=sock, backlog=BACKLOG)
        try:
            with _watched(app, http, sock, accepting):
                yield url_of(sock)
        finally:
            server.close()
    finally:
        await runner.cleanup()


@contextmanager
def _watched(app: web.Application, http: web.Server, sock: socket.socket, accepting: Accept) -> Iterator[None]:
    """The application's watchdog, if it has one, stands in for the loop; what it has taken is connected like others."""
    watchdog = app.get(WATCHDOG)
    if watchdog is None:
        yield
        return
    loop, joining = asyncio.get_running_loop(), set[asyncio.Task[object]]()

    def hand(taken: socket.socket) -> None:
        connecting = loop.create_task(loop.connect_accepted_socket(lambda: accepting(http), taken), name="handed")
        joining.add(connecting)
        connecting.add_done_callback(joining.discard)

    origins = app[ORIGINS]
    with watchdog.watching(sock, hand, is_ours=lambda host: isinstance(origins, Origins) and origins.names(host)):
        yield
    for connecting in joining:
        connecting.cancel()


def url_of(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _protocol(http: web.Server) -> asyncio.Protocol:
    if len(http.connections) >= MAX_CONNECTIONS and not _make_room(http):
        return Refusal()
    return Connection(http)


def _make_room(http: web.Server) -> bool:
    """Ends the connection that has waited longest without a whole request: whoever holds many of them and sends next to
    nothing shall not keep others out. Those whose request is being answered are left alone."""
    slow = [one for one in http.connections if isinstance(one, Connection) and one.dawdles]
    if not slow:
        return False
    min(slow, key=lambda one: one.since).abort()
    return True


class Connection(web.RequestHandler):
    """A connection under our limits, whose failures below the application are told like all others. since: when it was
    opened, or its last request was answered; received_bytes: since then."""

    __slots__ = ("received_bytes", "since")

    def __init__(self, http: web.Server) -> None:
        super().__init__(
            http,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]  # as web.AppRunner takes it: no access log
            logger=_protocol_log,
            keepalive_timeout=KEEPALIVE_S,
            lingering_time=LINGER_S,
            max_line_size=LINE_BYTES,
            max_field_size=LINE_BYTES,
            max_headers=HEADERS,
        )
        self.since = asyncio.get_running_loop().time()
        self.received_bytes = 0

    def data_received(self, data: bytes) -> None:
        self.received_bytes += len(data)
        super().data_received(data)

    @property
    def dawdles(self) -> bool:
        """It has no request, or one whose body drips in."""
        reading, took_s = self._current_request, asyncio.get_running_loop().time() - self.since
        if reading is None:
            return took_s > IDLE_GRACE_S and not self._request_in_progress
        return not reading.content.is_eof() and took_s > BODY_GRACE_S and self.received_bytes < took_s * DRIP_BYTES_S

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        finished = await super().finish_response(request, resp, start_time)
        self.since, self.received_bytes = asyncio.get_running_loop().time(), 0
        return finished

    def abort(self) -> None:
        log.info("connection.ended dawdled_s=%.1f", asyncio.get_running_loop().time() - self.since)
        if isinstance(transport := self.transport, asyncio.Transport):
            transport.abort()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """What is no HTTP (below 500), or a fault that passed the pipeline. Ends the connection either way."""
        number = request_id(request)
        if status >= 500:
            self.log_exception(f"connection.bug id={number}", exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("a reply that has begun cannot become another")
        if status >= 500:
            reply = internal_reply(number, Dialect.NATIVE)
        else:
            reason = shown((message or "").strip().partition("\n")[0].rstrip(":"))
            reply = error_reply(BadRequest(f"this is no HTTP request: {reason}", code="bad_http"), Dialect.NATIVE)
        own_headers(reply, number)
        reply.force_close()
        return reply


class Refusal(asyncio.Protocol):
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
