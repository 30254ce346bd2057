"""Server-sent events: failures before and after the first, readers who leave, and silence."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import aiohttp
from aiohttp import web

from ipfs_accelerate_node.api import sse
from ipfs_accelerate_node.api.access import Surface
from ipfs_accelerate_node.api.pipeline import Route
from ipfs_accelerate_node.errors import InferenceFailed, NodeError, Overloaded
from tests.support.http import serving, small_app


class Source:
    """What a route makes its events from. closed: set when the making has ended, however."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self.more = asyncio.Event()
        self.made = 0

    async def events(self, asked: str) -> AsyncIterator[bytes]:
        try:
            if asked == "early":
                raise Overloaded("later", retry_after_s=3)
            yield sse.event(b"1")
            if asked == "late":
                raise InferenceFailed("the device fell over")
            if asked == "endless":
                while True:
                    self.made += 1
                    yield sse.event(b"x" * 65536)
            if asked == "silent":
                await self.more.wait()
            yield sse.event(b"[DONE]")
        finally:
            self.closed.set()


def failed(error: NodeError) -> bytes:
    return json.dumps({"error": {"message": str(error)}}).encode()


def app(source: Source, port: int, *, ping_s: float = sse.PING_S, stall_s: float = sse.STALL_S) -> web.Application:
    async def handler(request: web.Request) -> web.StreamResponse:
        events = source.events(request.match_info["asked"])
        return await sse.send_events(
            request, events, headers={"X-Device": "cpu"}, failed=failed, ping_s=ping_s, stall_s=stall_s
        )

    return small_app(port, (Route("GET", "/{asked}", handler, Surface.OPEN),))


async def ask(tmp_path: Path, source: Source, asked: str) -> tuple[int, dict[str, str], str]:
    async with (
        serving(tmp_path, lambda port: app(source, port)) as served,
        aiohttp.ClientSession() as session,
        session.get(f"{served.url}/{asked}") as reply,
    ):
        return reply.status, dict(reply.headers), await reply.text()


async def test_events_and_their_headers(tmp_path: Path) -> None:
    source = Source()
    status, headers, text = await ask(tmp_path, source, "all")
    assert (status, text) == (200, "data: 1\n\ndata: [DONE]\n\n")
    assert headers["Content-Type"].startswith("text/event-stream")
    assert (headers["Cache-Control"], headers["X-Device"]) == ("no-cache", "cpu")
    assert source.closed.is_set()


async def test_a_failure_before_the_first_event_is_an_ordinary_reply(tmp_path: Path) -> None:
    status, headers, text = await ask(tmp_path, Source(), "early")
    assert (status, headers["Retry-After"]) == (429, "3")
    assert json.loads(text)["code"] == "overloaded"


async def test_a_later_failure_is_the_last_event(tmp_path: Path) -> None:
    status, _, text = await ask(tmp_path, Source(), "late")
    assert status == 200
    assert text == 'data: 1\n\ndata: {"error": {"message": "the device fell over"}}\n\n'


async def test_a_reader_who_leaves_ends_the_making(tmp_path: Path) -> None:
    for asked in ("endless", "silent"):
        source = Source()
        async with (
            serving(tmp_path, lambda port, source=source: app(source, port)) as served,  # type: ignore[misc]
            aiohttp.ClientSession() as session,
        ):
            async with session.get(f"{served.url}/{asked}") as reply:
                assert await reply.content.readuntil(b"\n\n") == b"data: 1\n\n"
                reply.close()
            async with asyncio.timeout(5):
                await source.closed.wait()


async def test_a_reader_who_does_not_read_holds_up_the_making(tmp_path: Path) -> None:
    """Events do not pile up: what is made ahead is bounded, and so is what the sockets take."""
    source = Source()
    async with serving(tmp_path, lambda port: app(source, port)) as served:
        _, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(f"GET /endless HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\n\r\n".encode())
        before = -1
        async with asyncio.timeout(10):
            while source.made != before or source.made == 0:
                before = source.made
                for _ in range(2000):
                    await asyncio.sleep(0)
        assert source.made < 2000
        writer.close()
        async with asyncio.timeout(5):
            await source.closed.wait()


async def test_a_reader_who_takes_nothing_any_more_is_left(tmp_path: Path) -> None:
    source = Source()
    async with serving(tmp_path, lambda port: app(source, port, stall_s=0.05)) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(f"GET /endless HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\n\r\n".encode())
        received = b""
        async with asyncio.timeout(10):
            await source.closed.wait()
            with suppress(ConnectionError):
                received = await reader.read()
        assert not received.endswith(b"0\r\n\r\n")  # cut off, not ended
        writer.close()


async def test_silence_is_filled_with_comments(tmp_path: Path) -> None:
    source = Source()
    async with (
        serving(tmp_path, lambda port: app(source, port, ping_s=0.01)) as served,
        aiohttp.ClientSession() as session,
        session.get(f"{served.url}/silent") as reply,
    ):
        assert await reply.content.readuntil(b"\n\n") == b"data: 1\n\n"
        assert await reply.content.readuntil(b"\n\n") == b": \n\n"
        source.more.set()
        assert (await reply.text()).endswith("data: [DONE]\n\n")
