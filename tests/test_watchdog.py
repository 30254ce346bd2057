"""F24: a handler holds the event loop; probes are answered all the same, and the log says where it stands."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web

from ipfs_accelerate_node.api import watchdog
from ipfs_accelerate_node.api.access import Surface
from ipfs_accelerate_node.api.health import healthz
from ipfs_accelerate_node.api.pipeline import Route
from ipfs_accelerate_node.api.watchdog import WATCHDOG, Watchdog
from tests.support.http import Served, serving, small_app

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(60)]

HELD = threading.Event()


async def block(request: web.Request) -> web.Response:
    """As a handler with a bug: it holds the loop, waiting or computing."""
    HELD.set()
    seconds = float(request.query["s"])
    if "wait" in request.query:
        time.sleep(seconds)  # the fault itself
    until_s = time.monotonic() + seconds
    while "wait" not in request.query and time.monotonic() < until_s:
        pass
    return web.Response(text="blocked")


async def fine(request: web.Request) -> web.Response:
    return web.Response(text="fine")


STUCK = (
    Route("GET", "/block", block, Surface.OPEN),
    Route("GET", "/fine", fine, Surface.OPEN),
    Route("GET", "/healthz", healthz, Surface.OPEN),
    Route("HEAD", "/healthz", healthz, Surface.OPEN),
)


@pytest_asyncio.fixture(loop_scope="module")
async def stuck(tmp_path: Path) -> AsyncIterator[Served]:
    def build(port: int) -> web.Application:
        app = small_app(port, STUCK)
        app[WATCHDOG] = Watchdog()
        return app

    async with serving(tmp_path, build) as served:
        yield served


def probe(port: int, line: str = "GET /healthz HTTP/1.1", *headers: str) -> tuple[float, bytes]:
    """Seconds, and the whole answer, of one request on a connection of its own. In a thread: the loop may be stuck."""
    began = time.perf_counter()
    with closing(socket.create_connection(("127.0.0.1", port), timeout=10)) as sock:
        sent = headers or (f"Host: 127.0.0.1:{port}",)
        lines = [line, *sent, "Connection: close", "", ""]
        sock.sendall("\r\n".join(lines).encode())
        answer = b""
        while piece := sock.recv(4096):
            answer += piece
    return time.perf_counter() - began, answer


def held(port: int, seconds: float, how: str = "wait") -> asyncio.Task[tuple[float, bytes]]:
    """A request that holds the loop; `HELD` says from when on."""
    HELD.clear()
    return asyncio.create_task(asyncio.to_thread(probe, port, f"GET /block?s={seconds}&{how} HTTP/1.1"))


@pytest.mark.parametrize("how", ["wait", "compute"])
async def test_f24_probes_are_answered_while_a_handler_holds_the_loop(
    stuck: Served, how: str, figure: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    def meanwhile() -> list[tuple[float, bytes]]:
        found = []
        HELD.wait(10)
        end = time.monotonic() + 1.8
        while time.monotonic() < end:
            found.append(probe(stuck.port))
        return found

    first = held(stuck.port, 2.5, how)
    found = await asyncio.to_thread(meanwhile)
    took, answer = await first
    assert took > 2
    assert b"blocked" in answer
    assert all(b"200 OK" in answer for _, answer in found)
    times = sorted(seconds * 1e3 for seconds, _ in found)
    assert all(b'"live": true, "loop_stuck_s"' in answer for _, answer in found)
    p99 = times[int(len(times) * 0.99)]
    figure(
        f"{how}: {len(times)} probes of a loop stuck for 2.5 s: p50 {times[len(times) // 2]:.1f} ms, p99 {p99:.1f} ms"
    )
    # The target is 50 ms. A handler that computes in Python has the interpreter most of the time, and a test machine
    # may be busy.
    assert p99 < (250 if how == "wait" else 1000)


async def test_f24_all_but_probes_are_answered_when_the_loop_turns_again(stuck: Served) -> None:
    """Also what only looks like a probe: of a page, to a foreign name, or of another path."""
    ours = f"Host: 127.0.0.1:{stuck.port}"
    asked = [
        ("GET /fine HTTP/1.1", (ours,), b"fine"),
        ("GET /nowhere HTTP/1.1", (ours,), b"404 Not Found"),
        ("GET /healthz HTTP/1.1", (ours, "Origin: http://evil.example"), b"403 Forbidden"),
        ("GET /healthz HTTP/1.1", (ours, "Sec-Fetch-Site: cross-site"), b"403 Forbidden"),
        ("GET /healthz HTTP/1.1", ("Host: evil.example",), b"403 Forbidden"),
        ("GET /healthz HTTP/1.1", (ours, "Host: evil.example"), b"400 Bad Request"),
        ("BREW /healthz HTTP/1.1", (ours,), b"400 Bad Request"),
    ]

    def meanwhile() -> list[tuple[float, bytes]]:
        HELD.wait(10)
        return [probe(stuck.port, line, *headers) for line, headers, _ in asked]

    first = held(stuck.port, 0.8)
    others = await asyncio.to_thread(meanwhile)
    await first
    for (line, headers, expected), (_, answer) in zip(asked, others, strict=True):
        assert expected in answer, (line, headers)
        assert b"loop_stuck_s" not in answer


async def test_f24_a_loop_that_stays_stuck_is_not_alive(stuck: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A supervisor is told to end it."""
    monkeypatch.setattr(watchdog, "DEAD_S", 0.6)

    def meanwhile() -> list[bytes]:
        HELD.wait(10)
        end = time.monotonic() + 1.6
        found = []
        while time.monotonic() < end:
            found.append(probe(stuck.port)[1])
        return found

    first = held(stuck.port, 2.0)
    found = await asyncio.to_thread(meanwhile)
    await first
    assert b"200 OK" in found[0]
    assert b"503 Service Unavailable" in found[-1]
    assert b'"live": false' in found[-1]
    assert b'"live":true' in (await asyncio.to_thread(probe, stuck.port))[1]


async def test_f24_heads_that_do_not_come_while_the_loop_is_stuck_go_to_the_loop(stuck: Served) -> None:
    def drip() -> bytes:
        HELD.wait(10)
        with closing(socket.create_connection(("127.0.0.1", stuck.port), timeout=10)) as sock:
            sock.sendall(b"GET /fine HTTP/1.1\r\nHo")
            probe(stuck.port)  # others are answered meanwhile
            sock.sendall(b"st: 127.0.0.1:%d\r\nConnection: close\r\n\r\n" % stuck.port)
            answer = b""
            while piece := sock.recv(4096):
                answer += piece
            return answer

    first = held(stuck.port, 0.8)
    assert (await asyncio.to_thread(drip)).endswith(b"fine")
    await first
