"""Below the application: expectations, readers who stall, and how failures there are told."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from ipfs_accelerate_node.api import listener
from ipfs_accelerate_node.api.access import Surface
from ipfs_accelerate_node.api.pipeline import TRAFFIC, Route
from tests.support.http import Served, serving, small_app


async def echo(request: web.Request) -> web.Response:
    return web.Response(body=await request.read())


async def endless(request: web.Request) -> web.StreamResponse:
    reply = web.StreamResponse()
    await reply.prepare(request)
    while True:
        await reply.write(bytes(1 << 16))


ROUTES = (
    Route("POST", "/echo", echo, Surface.OPEN),
    Route("POST", "/state", echo, Surface.STATE),
    Route("GET", "/endless", endless, Surface.OPEN),
)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path, lambda port: small_app(port, ROUTES)) as here:
        yield here


async def first_lines(served: Served, path: str, expect: str, *, host: str = "") -> tuple[bytes, bytes]:
    """The first answer's head before the body is sent, and all that follows once it was."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(
        f"POST {path} HTTP/1.1\r\nHost: {host or f'127.0.0.1:{served.port}'}\r\nExpect: {expect}\r\n"
        "Connection: close\r\nContent-Length: 4\r\n\r\n".encode()
    )
    if expect == "100-continue":
        first = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"body")
    else:
        writer.write(b"body")
        first = await reader.readuntil(b"\r\n\r\n")
    rest = await reader.read()
    writer.close()
    return first, rest


async def test_a_body_is_asked_for_where_it_is_wanted(served: Served) -> None:
    first, rest = await first_lines(served, "/echo", "100-continue")
    assert first == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert rest.startswith(b"HTTP/1.1 200 OK")
    assert rest.endswith(b"\r\n\r\nbody")


async def test_who_is_refused_need_not_send_a_body(served: Served) -> None:
    for path, host, status in (("/state", "", b"401"), ("/echo", "evil.example", b"403")):
        first, rest = await first_lines(served, path, "100-continue", host=host)
        assert first.startswith(b"HTTP/1.1 " + status)
        assert b"100 Continue" not in rest


async def test_other_expectations_mean_nothing_here(served: Served) -> None:
    first, rest = await first_lines(served, "/echo", "something-else")
    assert first.startswith(b"HTTP/1.1 200 OK")
    assert rest == b"body"


async def test_a_failure_without_a_route_has_an_id_too(served: Served) -> None:
    first, _ = await first_lines(served, "/nowhere", "something-else")
    assert b"x-request-id: \r\n" not in first
    assert b"x-request-id: " in first


async def test_what_no_parser_takes_is_told_as_a_problem(served: Served) -> None:
    answer = await served.raw(b"GET / HTTP/1.1\r\nHost: a\r\nX-Secret : canary\r\n\r\n")
    told = json.loads(answer.body)
    assert (answer.status, told["status"], told["code"]) == (400, 400, "bad_http")
    assert answer.headers["content-type"] == "application/problem+json"
    assert b"canary" not in answer.body


@pytest.mark.needs("linux")
async def test_a_reader_who_takes_nothing_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F30, the other way round: the reply is sent to a window that stays shut."""
    monkeypatch.setattr(listener, "READER_STALL_S", 1)
    async with serving(tmp_path, lambda port: small_app(port, ROUTES)) as served:
        traffic = served.app[TRAFFIC]
        with socket.create_connection(("127.0.0.1", served.port)) as reader:
            reader.sendall(f"GET /endless HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\n\r\n".encode())
            assert await asyncio.to_thread(reader.recv, 15) == b"HTTP/1.1 200 OK"
            async with asyncio.timeout(15):
                await traffic.idle()
