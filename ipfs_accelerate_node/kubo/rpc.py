"""Bulk bytes and newer endpoints of Kubo's RPC API, over aiohttp: blocks, `add?nocopy`, routing, MFS."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import aiohttp

from ipfs_accelerate_node.errors import Unavailable
from ipfs_accelerate_node.kubo.calls import PREFIX, Call
from ipfs_accelerate_node.kubo.control import bad_status, refused
from ipfs_accelerate_node.kubo.endpoint import Endpoint

_READ_BYTES = 1 << 20
_MESSAGE_BYTES = 64 * 1024  # of an error's body, or one line of a stream

Parameters = Sequence[tuple[str, str]]


class Rpc:
    """POST requests to one daemon. Call `aclose` when done. Every method raises Unavailable as `Control.call` does."""

    def __init__(self, place: Endpoint) -> None:
        self._place = place
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    async def aclose(self) -> None:
        self._closed = True
        if self._session is not None:
            await self._session.close()

    async def read(self, call: Call, parameters: Parameters, *, limit_bytes: int, body: Body | None = None) -> bytes:
        """The whole answer. One longer than limit_bytes: Unavailable, code block_too_large."""
        got = bytearray()
        async with self._post(call, parameters, body) as response:
            async for chunk in response.content.iter_any():
                got += chunk
                if len(got) > limit_bytes:
                    raise Unavailable(
                        f"Kubo sent more than {limit_bytes} bytes for {call.path}", code="block_too_large"
                    )
        return bytes(got)

    async def lines(
        self, call: Call, parameters: Parameters, *, body: Body | None = None
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Each JSON object of the answer as it comes. Close the iterator (`aclosing`) when leaving early."""
        async with self._post(call, parameters, body) as response:
            buffer = bytearray()
            async for chunk in response.content.iter_any():
                buffer += chunk
                *complete, rest = bytes(buffer).split(b"\n")
                buffer = bytearray(rest)
                for line in complete:
                    if line.strip():
                        yield _object(call, line)
                if len(buffer) > _MESSAGE_BYTES:
                    raise Unavailable(f"Kubo sent an endless line for {call.path}", code="kubo_error")
            if buffer.strip():
                yield _object(call, bytes(buffer))

    @asynccontextmanager
    async def _post(
        self, call: Call, parameters: Parameters, body: Body | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        session = self._opened(call)
        headers = dict(self._place.headers)
        if body is not None:
            headers["Content-Type"] = body.content_type
        try:
            async with session.post(
                self._place.url + PREFIX + call.path,
                params=list(parameters),
                data=None if body is None else body.chunks(),
                headers=headers,
                allow_redirects=False,
            ) as response:
                if response.status != 200:
                    raise await _failure(call, response)
                yield response
        except aiohttp.ClientPayloadError as exc:
            raise Unavailable(
                f"Kubo broke off its answer to {call.path}", code="kubo_truncated", call=call.path
            ) from exc
        except (aiohttp.ClientError, OSError) as exc:
            if isinstance(exc, TimeoutError):
                raise
            raise Unavailable(
                f"Kubo at {self._place.url} does not answer", code="kubo_unavailable", call=call.path
            ) from exc

    def _opened(self, call: Call) -> aiohttp.ClientSession:
        if self._closed:
            raise Unavailable("Kubo was restarted", code="kubo_unavailable", call=call.path)
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
                trust_env=False,
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                connector=aiohttp.TCPConnector(limit=64),
            )
        return self._session


class Body:
    """One file as multipart form data, from memory or streamed from a path.

    Written out here because a multipart with several files hangs against `add`, and to read big files in few large
    steps. abspath: makes it a filestore reference to that file (which is then also what is sent).
    """

    def __init__(self, content: bytes | Path, *, abspath: bool = False) -> None:
        self._content = content
        self._abspath = abspath
        self._boundary = secrets.token_hex(16)

    @property
    def content_type(self) -> str:
        return f"multipart/form-data; boundary={self._boundary}"

    async def chunks(self) -> AsyncIterator[bytes]:
        yield self._head()
        if isinstance(self._content, bytes):
            yield self._content
        else:
            file = self._content.open("rb", 0)  # on the loop: a thread's would be lost by a cancel meanwhile
            try:
                while chunk := await asyncio.to_thread(file.read, _READ_BYTES):
                    yield chunk
            finally:
                file.close()
        yield f"\r\n--{self._boundary}--\r\n".encode()

    def _head(self) -> bytes:
        lines = [
            f"--{self._boundary}",
            'Content-Disposition: form-data; name="file"; filename="file"',
            "Content-Type: application/octet-stream",
        ]
        if self._abspath:
            path = str(self._content)
            plain = path.isascii() and path.isprintable()
            lines.append(f"Abspath: {path}" if plain else f"Abspath-Encoded: {quote_plus(path)}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _object(call: Call, line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise Unavailable(f"what answers {call.path} is not Kubo", code="kubo_unavailable") from exc
    if not isinstance(value, dict):
        raise Unavailable(f"what answers {call.path} is not Kubo", code="kubo_unavailable")
    return value


async def _failure(call: Call, response: aiohttp.ClientResponse) -> Unavailable:
    text = await response.content.read(_MESSAGE_BYTES)
    try:
        message = json.loads(text)["Message"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return bad_status(call, response.status)
    return refused(call, str(message)[:2000])
