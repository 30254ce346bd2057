"""The guarded HTTP client of one trust zone: redirects by hand, addresses checked, bodies bounded.

Every failure of the network or of aiohttp becomes a SourceUnavailable here, once. A deadline never runs over a whole
transfer: only silence (or a trickle below MIN_BYTES_PER_S) ends it, so a slow line may take as long as it needs.
"""

from __future__ import annotations

import asyncio
import io
import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from ipfs_accelerate_node.content.cid import Buffer, Cid
from ipfs_accelerate_node.errors import SourceUnavailable
from ipfs_accelerate_node.sources import bulk
from ipfs_accelerate_node.sources.guard import AddressRefused, Guard, Origin

CONNECT_S, FIRST_BYTE_S, STALL_S = 5.0, 15.0, 10.0
MAX_HOPS = 3
MIN_BYTES_PER_S = 256  # below it a body is stalled, whatever it still sends (G7: one byte a second)
READ_BUFFER_BYTES = 256 << 10  # per connection; a window of 16 holds 8 MiB at most in socket buffers

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CREDENTIALS = frozenset({"authorization", "cookie", "proxy-authorization"})
_AGENT = "ipfs-accelerate-node"


@dataclass(frozen=True, slots=True)
class Pace:
    """How long silence may last, in seconds: until connected; until the headers are there, connecting included; between
    two reads."""

    connect_s: float = CONNECT_S
    first_byte_s: float = FIRST_BYTE_S
    stall_s: float = STALL_S


@dataclass(frozen=True, slots=True)
class Asked:
    """Whom we ask for what, for the text and the fields of an error."""

    source: str
    cid: Cid | None = None

    def fault(self, reason: str, code: str, retry_after_s: float | None = None) -> SourceUnavailable:
        what = "" if self.cid is None else f" for {self.cid}"
        return SourceUnavailable(
            f"{self.source}{what}: {reason}",
            source=self.source,
            cid=self.cid,
            code=code,
            retry_after_s=retry_after_s,
        )


class Reply:
    """Headers of a final answer, and its body on demand."""

    def __init__(self, response: aiohttp.ClientResponse, asked: Asked, pace: Pace) -> None:
        self._response = response
        self._asked = asked
        self._pace = pace
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers
        self.url = response.url

    @property
    def content_type(self) -> str:
        """Media type in lower case without parameters; "" if the server named none."""
        return self.headers.get("Content-Type", "").partition(";")[0].strip().lower()

    async def chunks(self) -> AsyncGenerator[Buffer, None]:
        """The body as it arrives; each piece is the caller's own, and long bodies come in whole MiB. Raises
        SourceUnavailable: truncated, stalled, bad_source (an encoding that we did not ask for, G5)."""
        if self.headers.get("Content-Encoding", "identity").strip().lower() not in ("identity", ""):
            raise self._asked.fault("answers in an encoding that was not asked for", "bad_source")
        long = bulk.rest_of(self._response) >= bulk.MIN_BYTES
        with _typed(self._asked, self._pace.stall_s, "truncated"):
            async with aclosing(self._long() if long else self._short()) as pieces:
                async for piece in pieces:
                    yield piece

    async def _long(self) -> AsyncGenerator[Buffer, None]:
        try:
            async with aclosing(bulk.pieces(self._response, self._pace.stall_s, MIN_BYTES_PER_S)) as pieces:
                async for piece in pieces:
                    yield piece
        except bulk.Stalled as exc:
            if exc.received:
                raise self._trickles() from exc
            raise TimeoutError from exc

    async def _short(self) -> AsyncGenerator[Buffer, None]:
        """aiohttp's own timer watches for silence: one for every read of ours would cost more than the read."""
        if (connection := self._response.connection) is not None and connection.protocol is not None:
            connection.protocol.read_timeout = self._pace.stall_s
            connection.protocol.start_timeout()
        clock = asyncio.get_running_loop().time
        since, received = clock(), 0
        while chunk := await self._response.content.readany():
            received += len(chunk)
            if (passed := clock() - since) >= self._pace.stall_s:
                if received < MIN_BYTES_PER_S * passed:
                    raise self._trickles()
                since, received = clock(), 0
            yield chunk

    def _trickles(self) -> SourceUnavailable:
        return self._asked.fault(f"sends less than {MIN_BYTES_PER_S} bytes a second", "stalled")

    async def read(self, limit_bytes: int) -> bytes:
        """The whole body. Raises SourceUnavailable also with code block_too_large, without reading beyond the limit."""
        declared = self.headers.get("Content-Length", "")
        if declared.isascii() and declared.isdigit() and int(declared[:20]) > limit_bytes:
            raise self._asked.fault(f"announces {declared[:20]} bytes, {limit_bytes} allowed", "block_too_large")
        parts: list[Buffer] = []
        size_bytes = 0
        async with aclosing(self.chunks()) as chunks:
            async for chunk in chunks:
                size_bytes += len(chunk)
                if size_bytes > limit_bytes:
                    raise self._asked.fault(f"sends more than {limit_bytes} bytes", "block_too_large")
                parts.append(chunk)
        return b"".join(parts)


class GuardedSession:
    """One pool of connections for one trust zone: the gateways, the peers or the Hub, never two of them.

    configured: origins that the user wrote down; only they may have private addresses.
    tls: None for the system's certificates; tests bring their own authority. Never a way to skip verification.
    Opens nothing before its first request; `aclose` frees everything.
    """

    def __init__(
        self,
        configured: Iterable[Origin],
        *,
        pace: Pace | None = None,
        resolver: AbstractResolver | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.pace = pace or Pace()
        self._guard = Guard(configured, resolver=resolver)
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None

    def request(
        self,
        method: str,
        url: URL,
        asked: Asked,
        headers: Mapping[str, str] | None = None,
        *,
        body: bytes | None = None,
    ) -> AbstractAsyncContextManager[Reply]:
        """The final answer, after at most MAX_HOPS redirects that stay on the scheme; whatever its status. What has a
        body is not redirected.

        Credentials among the headers go to the first origin only.
        Raises SourceUnavailable: address_refused, redirect_refused, tls_error, stalled, bad_source or
        source_unavailable.
        """
        return self._request(method, url, asked, dict(headers or {}), body)

    @asynccontextmanager
    async def _request(
        self, method: str, url: URL, asked: Asked, headers: dict[str, str], body: bytes | None
    ) -> AsyncIterator[Reply]:
        for _ in range(MAX_HOPS + 1):
            response = await self._once(method, url, asked, headers, body)
            try:
                if response.status not in _REDIRECTS:
                    yield Reply(response, asked, self.pace)
                    return
                if body is not None:
                    raise asked.fault("redirects a request that has a body", "redirect_refused")
                following = _next_hop(url, response.headers.get("Location"), asked)
            finally:
                response.close()  # a body read to its end has given its connection back already
            if Origin.of(following) != Origin.of(url):
                headers = {k: v for k, v in headers.items() if k.lower() not in _CREDENTIALS}
            url = following
        raise asked.fault(f"redirects more than {MAX_HOPS} times", "redirect_refused")

    async def _once(
        self, method: str, url: URL, asked: Asked, headers: Mapping[str, str], body: bytes | None
    ) -> aiohttp.ClientResponse:
        origin = Origin.of(url)
        with _typed(asked, self.pace.first_byte_s, "source_unavailable"):
            self._guard.check_host(origin.host, origin.port)
            async with asyncio.timeout(self.pace.first_byte_s):
                data = None if body is None else io.BytesIO(body)  # sent piece by piece
                return await self._client().request(method, url, headers=headers, data=data, allow_redirects=False)

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    resolver=self._guard,
                    socket_factory=self._guard.socket,
                    ssl=self._tls or True,
                    limit=0,  # callers bound their own windows; waiting in a pool would count as a stall
                ),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self.pace.connect_s),
                headers={"Accept-Encoding": "identity", "User-Agent": _AGENT},
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                auto_decompress=False,
                read_bufsize=READ_BUFFER_BYTES,
            )
        return self._session

    async def aclose(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def __aenter__(self) -> GuardedSession:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()


def retry_after_s(value: str | None, now: datetime) -> float | None:
    """Seconds to wait, from a Retry-After header (a number or an HTTP date, RFC 9110 §10.2.3); None for neither."""
    text = (value or "").strip()
    if text.isascii() and text.isdigit() and len(text) <= 12:
        return float(text)
    with suppress(ValueError, TypeError):
        date = parsedate_to_datetime(text)
        return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - now).total_seconds())
    return None


def _next_hop(url: URL, location: str | None, asked: Asked) -> URL:
    """Where a redirect leads, if it may lead there: same scheme, http(s), no user information."""
    if not location:
        raise asked.fault("redirects to nowhere", "bad_source")
    try:
        following = url.join(URL(location))
        same_scheme = Origin.of(following).scheme == url.scheme
    except ValueError as exc:
        raise asked.fault(f"redirects to {_place(location)}", "redirect_refused") from exc
    if not same_scheme or following.user is not None or following.password is not None:
        raise asked.fault(f"redirects to {_place(location)}", "redirect_refused")
    return following.with_fragment(None)


def _place(location: str) -> str:
    """A URL for an error's text: without user information and query, which may hold secrets."""
    return ascii(re.sub(r"//[^/]*@", "//", location.partition("?")[0])[:80])


@contextmanager
def _typed(asked: Asked, silence_s: float, broken: str) -> Iterator[None]:
    """Turns every failure of the network, and silence of silence_s, into SourceUnavailable; broken: the code of a lost
    connection."""
    try:
        yield
    except aiohttp.ConnectionTimeoutError as exc:
        raise asked.fault("accepts no connection in time", "source_unavailable") from exc
    except TimeoutError as exc:
        raise asked.fault(f"silent for {silence_s:g} s", "stalled") from exc
    except AddressRefused as exc:
        raise asked.fault(str(exc), "address_refused") from exc
    except (aiohttp.ClientSSLError, ssl.SSLError) as exc:
        raise asked.fault(f"TLS: {_cause(exc)}", "tls_error") from exc
    except aiohttp.ClientConnectorError as exc:
        code = "address_refused" if isinstance(exc.os_error, AddressRefused) else "source_unavailable"
        raise asked.fault(_cause(exc.os_error), code) from exc
    except aiohttp.ClientPayloadError as exc:
        raise asked.fault("ends before the announced length", "truncated") from exc
    except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, OSError) as exc:
        raise asked.fault(f"connection lost ({_cause(exc)})", broken) from exc
    except (aiohttp.ClientError, ValueError) as exc:
        raise asked.fault(f"does not speak HTTP ({_cause(exc)})", "bad_source") from exc


def _cause(exc: BaseException) -> str:
    """One line, without the addresses that aiohttp repeats."""
    text = exc.message if isinstance(exc, aiohttp.ClientResponseError) else str(exc)
    if isinstance(exc, OSError) and exc.strerror:
        text = exc.strerror
    return ascii(text.splitlines()[0][:120] if text else type(exc).__name__).strip("'\"")
