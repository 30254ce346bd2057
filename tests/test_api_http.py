"""HTTP itself, and a handler that fails: H4, H8, H9, H11, H12, on the real listener."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from ipfs_accelerate_node.api import listener
from ipfs_accelerate_node.api.access import Surface
from ipfs_accelerate_node.api.bodies import chunks
from ipfs_accelerate_node.api.pipeline import METRICS, TRAFFIC, Route
from ipfs_accelerate_node.api.problems import Dialect
from ipfs_accelerate_node.api.traffic import Traffic, finished
from ipfs_accelerate_node.errors import NotFound, Overloaded
from tests.support.http import Served, serving, small_app


async def fine(request: web.Request) -> web.Response:
    return web.Response(text="fine")


async def missing(request: web.Request) -> web.Response:
    raise NotFound("no such thing", code="model_not_found", param="model")


async def busy(request: web.Request) -> web.Response:
    raise Overloaded("too much", retry_after_s=2)


async def bug(request: web.Request) -> web.Response:
    raise ZeroDivisionError("secret-of-the-handler")


async def broken_stream(request: web.Request) -> web.StreamResponse:
    reply = web.StreamResponse()
    await reply.prepare(request)
    await reply.write(b"half of it")
    raise NotFound("the rest is gone")


ROUTES = (
    Route("GET", "/fine", fine, Surface.OPEN),
    Route("GET", "/v1/models/{id:.+}", missing, Surface.OPEN, Dialect.OPENAI),
    Route("GET", "/busy", busy, Surface.OPEN),
    Route("GET", "/bug", bug, Surface.OPEN),
    Route("GET", "/v1/bug", bug, Surface.OPEN, Dialect.OPENAI),
    Route("GET", "/broken", broken_stream, Surface.OPEN),
)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path, lambda port: small_app(port, ROUTES)) as here:
        yield here


def host(served: Served) -> bytes:
    return f"Host: 127.0.0.1:{served.port}\r\n".encode()


async def get(served: Served, path: str, method: str = "GET") -> tuple[int, dict[str, object], dict[str, str]]:
    async with aiohttp.ClientSession() as session, session.request(method, served.url + path) as reply:
        return reply.status, json.loads(await reply.read() or b"{}"), dict(reply.headers)


async def test_unknown_paths_and_methods(served: Served) -> None:
    """H4."""
    for path in ("/nothing", "/fine/", "/fine//", "//fine", "/Fine", "/", "/v1/models/"):
        status, body, _ = await get(served, path)
        assert status == 404, path
        assert (body.get("error") or body)["code"] == "no_route"  # type: ignore[index]
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        status, body, headers = await get(served, "/fine", method)
        assert status == 405, method
        assert headers["Allow"] == "GET"
        assert body["code"] == "method_not_allowed"


async def test_each_route_fails_in_its_own_words(served: Served) -> None:
    status, body, headers = await get(served, "/v1/models/org/name")
    assert (status, headers["Content-Type"]) == (404, "application/json")
    assert body["error"] == {
        "message": "no such thing",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }
    assert body["message"] == "no such thing"
    status, body, headers = await get(served, "/busy")
    assert (status, headers["Retry-After"]) == (429, "2")
    assert (body["code"], body["title"]) == ("overloaded", "Overloaded")


async def test_a_bug_tells_nothing_and_is_logged_once(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    for path in ("/bug", "/v1/bug"):
        caplog.clear()
        async with aiohttp.ClientSession() as session, session.get(served.url + path) as reply:
            text = await reply.text()
            assert reply.status == 500
        assert "secret-of-the-handler" not in text
        assert "Traceback" not in text
        assert reply.headers["x-request-id"] in text
        faults = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert len(faults) == 1
        assert reply.headers["x-request-id"] in faults[0].getMessage()


async def test_a_reply_that_breaks_off_is_never_ended(served: Served) -> None:
    async with aiohttp.ClientSession() as session:
        async with session.get(served.url + "/broken") as reply:
            assert reply.status == 200
            with pytest.raises(aiohttp.ClientPayloadError):
                await reply.read()
        async with session.get(served.url + "/fine") as reply:
            assert reply.status == 200


async def test_every_reply_has_an_id_and_tells_little_of_the_server(served: Served) -> None:
    async with aiohttp.ClientSession() as session:
        for path in ("/fine", "/bug", "/nothing"):
            async with session.get(served.url + path, headers={"x-request-id": "mine-1"}) as reply:
                assert reply.headers["x-request-id"] == "mine-1"
                assert reply.headers["Server"] == "ipfs-accelerate-node"
                assert reply.headers["X-Content-Type-Options"] == "nosniff"
        for odd in ("a b", "x" * 129, "é", "<script>"):
            async with session.get(served.url + "/fine", headers={"x-request-id": odd}) as reply:
                assert reply.headers["x-request-id"] != odd
                assert len(reply.headers["x-request-id"]) == 32


SMUGGLED = {
    "length and chunked": b"POST /fine HTTP/1.1\r\n%HContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"POST /fine HTTP/1.1\r\n%HContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
    "signed length": b"POST /fine HTTP/1.1\r\n%HContent-Length: +4\r\n\r\nabcd",
    "negative length": b"POST /fine HTTP/1.1\r\n%HContent-Length: -1\r\n\r\n",
    "length of letters": b"POST /fine HTTP/1.1\r\n%HContent-Length: 0x4\r\n\r\nabcd",
    "chunked twice": b"POST /fine HTTP/1.1\r\n%HTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunked not last": b"POST /fine HTTP/1.1\r\n%HTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "space before colon": b"GET /fine HTTP/1.1\r\n%HX-Other : 1\r\n\r\n",
    "folded header": b"GET /fine HTTP/1.1\r\n%HX-Other: 1\r\n 2\r\n\r\n",
    "NUL in a header": b"GET /fine HTTP/1.1\r\n%HX-Other: a\0b\r\n\r\n",
    "bare CR": b"GET /fine HTTP/1.1\r\n%HX-Other: a\rb\r\n\r\n",
    "no version": b"GET /fine\r\n%H\r\n",
    "version 3": b"GET /fine HTTP/3.0\r\n%H\r\n",
    "space in the path": b"GET /fi ne HTTP/1.1\r\n%H\r\n",
    "not HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "long line": b"GET /" + b"a" * 8191 + b" HTTP/1.1\r\n%H\r\n",
    "long header": b"GET /fine HTTP/1.1\r\n%HX-Other: " + b"a" * 8191 + b"\r\n\r\n",
    "many headers": b"GET /fine HTTP/1.1\r\n%H" + b"".join(b"X-%d: 1\r\n" % i for i in range(128)) + b"\r\n",
}


@pytest.mark.parametrize("request_bytes", SMUGGLED.values(), ids=SMUGGLED)
async def test_what_is_not_http_is_refused_and_the_connection_closed(
    served: Served, request_bytes: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """H9."""
    behind = b"GET /fine HTTP/1.1\r\n" + host(served) + b"\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(request_bytes.replace(b"%H", host(served)) + behind)
    answer = await reader.read()
    writer.close()
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400")), answer[:80]
    assert b" 200 OK" not in answer
    head, _, body = answer.partition(b"\r\n\r\n")
    assert json.loads(body)["code"] in ("bad_http", "bad_body", "bad_request")
    assert b"Server: ipfs-accelerate-node" in head
    assert re.search(rb"x-request-id: [0-9a-f]{32}", head)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_128_headers_are_fine(served: Served) -> None:
    many = b"".join(b"X-%d: 1\r\n" % i for i in range(126))
    assert (await served.raw(b"GET /fine HTTP/1.1\r\n" + host(served) + many + b"\r\n")).status == 200


async def test_encoded_paths_reach_no_other_route(served: Served) -> None:
    """H12."""
    for path in (b"/x/%2e%2e/fine", b"/fine%00", b"/fine%2f", b"/%2e%2e%2ffine", b"/./fine", b"/%66ine/%2e"):
        answer = await served.raw(b"GET " + path + b" HTTP/1.1\r\n" + host(served) + b"\r\n")
        assert answer.status in (400, 404), path


async def test_connections_over_the_cap_are_told_to_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "MAX_CONNECTIONS", 1)
    async with serving(tmp_path, lambda port: small_app(port, ROUTES)) as served:
        _, first = await asyncio.open_connection("127.0.0.1", served.port)
        first.write(b"GET /fine HTTP/1.1\r\n" + host(served) + b"\r\n")
        await asyncio.sleep(0)
        answer = await served.raw(b"GET /fine HTTP/1.1\r\n" + host(served) + b"\r\n")
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        first.close()


class Slow:
    """A handler that tells when it runs and how it ended."""

    def __init__(self, work: Callable[[web.Request], Awaitable[None]]) -> None:
        self.began, self.ended = asyncio.Event(), asyncio.Event()
        self.cancelled = False
        self._work = work

    async def handle(self, request: web.Request) -> web.Response:
        self.began.set()
        try:
            await self._work(request)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        finally:
            self.ended.set()
        return web.Response(text="done")


async def read_all(request: web.Request) -> None:
    async for _ in chunks(request, limit_bytes=1 << 30):
        pass


async def never(request: web.Request) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("work", [read_all, never], ids=["mid-upload", "mid-work"])
async def test_a_client_that_vanishes_frees_its_slot(
    tmp_path: Path, work: Callable[[web.Request], Awaitable[None]]
) -> None:
    """H11."""
    slow = Slow(work)
    routes = (Route("POST", "/slow", slow.handle, Surface.OPEN),)
    async with serving(tmp_path, lambda port: small_app(port, routes)) as served:
        traffic = served.app[TRAFFIC]
        _, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(b"POST /slow HTTP/1.1\r\n" + host(served) + b"Content-Length: 1000000\r\n\r\nabc")
        await slow.began.wait()
        assert traffic.in_flight == 1
        writer.transport.abort()
        await slow.ended.wait()
        await traffic.idle()
        assert slow.cancelled
        assert b'status="499"' in served.app[METRICS].page()


async def test_work_that_must_end_ends_before_its_caller_is_let_go() -> None:
    gate, log = asyncio.Event(), []

    async def work() -> str:
        log.append("began")
        await gate.wait()
        log.append("ended")
        return "result"

    async def caller() -> None:
        try:
            await finished(work())
        finally:
            log.append("caller let go")

    task = asyncio.create_task(caller())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert log == ["began", "ended", "caller let go"]


async def test_a_failure_of_work_nobody_waits_for_is_not_lost_to_the_collector() -> None:
    gate = asyncio.Event()

    async def work() -> None:
        await gate.wait()
        raise NotFound("gone")

    task = asyncio.create_task(finished(work()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_draining_refuses_new_work_and_answers_probes(tmp_path: Path) -> None:
    routes = (*ROUTES, Route("GET", "/work", fine, Surface.INFER))
    async with serving(tmp_path, lambda port: small_app(port, routes)) as served:
        assert (await get_text(served, "/work"))[0] == 200
        served.app[TRAFFIC].drain()
        status, text, headers = await get_text(served, "/work")
        assert (status, json.loads(text)["code"]) == (503, "shutting_down")
        assert "Retry-After" in headers
        assert (await get_text(served, "/fine"))[0] == 200


async def get_text(served: Served, path: str) -> tuple[int, str, dict[str, str]]:
    async with aiohttp.ClientSession() as session, session.get(served.url + path) as reply:
        return reply.status, await reply.text(), dict(reply.headers)


async def test_traffic_counts_and_tells() -> None:
    traffic, told = Traffic(), []
    with traffic.request():
        idle = asyncio.create_task(traffic.idle())
        await asyncio.sleep(0)
        assert not idle.done()
        with traffic.told(lambda: told.append("early")):
            traffic.drain()
        with traffic.told(lambda: told.append("late")):
            pass
    await idle
    assert told == ["early", "late"]
    assert traffic.in_flight == 0
