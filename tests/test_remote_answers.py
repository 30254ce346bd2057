"""What a node believes of another's answer when it had a model run there: its form, its root, its refusals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from ipfs_accelerate_node.errors import (
    BadContent,
    DeviceUnavailable,
    Forbidden,
    NodeError,
    NotFound,
    Overloaded,
    SourceUnavailable,
    Unavailable,
)
from ipfs_accelerate_node.peers.protocol import AGENT
from ipfs_accelerate_node.peers.remote import INFER, Remote
from ipfs_accelerate_node.records.key import NodeKey

FRIEND, STRANGER = NodeKey(b"friend" + bytes(26)), NodeKey(b"stranger" + bytes(24))

GOOD: dict[str, Any] = {
    "root": "mock:embedding", "task": "embedding", "device": "cpu", "engine": "mock", "precision": "f32",
    "implementation": "MOCK", "outputs": [{"vector": [1.0], "tokens_in": 1, "truncated": False}], "tokens": 1,
    "seconds": 0.5,
}  # fmt: skip


@asynccontextmanager
async def fake_node(answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    async def peer(_: web.Request) -> web.Response:
        return web.json_response({"peer_id": FRIEND.peer_id, "agent": AGENT})

    app = web.Application(client_max_size=1 << 30)
    app.router.add_get("/api/peer", peer)
    app.router.add_post(INFER, answer)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def refusal(reply: Callable[[], web.StreamResponse], patience_s: float = 30.0) -> NodeError:
    async def answer(request: web.Request) -> web.StreamResponse:
        await request.read()
        return reply()

    async with fake_node(answer) as url:
        with pytest.raises(NodeError) as refused:
            await Remote(STRANGER, None, patience_s=patience_s).infer(url, b"{}", root="mock:embedding", outputs=1)
    return refused.value


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"root": "mock:rerank"}, "foreign_root"),
        ({"root": "\x1b[2J"}, "foreign_root"),
        ({"outputs": []}, "bad_answer"),
        ({"outputs": [{}]}, "bad_answer"),
        ({"outputs": [{"vector": [1], "text": "x", "finish": "stop"}]}, "bad_answer"),
        ({"outputs": [{"scores": [{}]}]}, "bad_answer"),
        ({"outputs": [{"text": "x"}]}, "bad_answer"),
        ({"implementation": "PERHAPS"}, "bad_answer"),
        ({"device": 7}, "bad_answer"),
        ({"device": "x" * 1000}, "bad_answer"),
        ({"tokens": None}, "bad_answer"),
    ],
)
async def test_an_answer_that_is_none(change: dict[str, Any], code: str) -> None:
    found = await refusal(lambda: web.json_response({**GOOD, **change}))
    assert isinstance(found, BadContent)
    assert found.code == code
    assert "\x1b" not in str(found)


async def test_what_a_stranger_says_of_its_refusal() -> None:
    def problem(status: int, **fields: object) -> Callable[[], web.StreamResponse]:
        return lambda: web.json_response(fields, status=status)

    found = await refusal(problem(403, title="Forbidden", code="key_not_allowed", detail="no\x1b[2J"))
    assert isinstance(found, Forbidden)
    assert (found.code, found.detail["peer"]) == ("key_not_allowed", FRIEND.peer_id)
    assert "\x1b" not in str(found)
    found = await refusal(problem(422, title="DeviceUnavailable", code="device_unavailable", detail="no such device"))
    assert isinstance(found, DeviceUnavailable)
    found = await refusal(problem(429, title="Overloaded", code="peer_busy", retry_after_s=1e300))
    assert isinstance(found, Overloaded)
    assert found.retry_after_s == 3600
    for title in ("IntegrityError", "KeyboardInterrupt", "", "NoSource"):  # what it may not say, or cannot
        found = await refusal(problem(500, title=title, code="a b\n", detail="x" * 5000))
        assert (type(found), found.code) == (Unavailable, "refused")
        assert len(str(found)) < 700
    found = await refusal(problem(404, title="NotFound", code="not_found"))
    assert isinstance(found, NotFound)
    assert found.code == "not_served"
    found = await refusal(lambda: web.Response(status=502, text="<html>", content_type="text/html"))
    assert type(found) is Unavailable


async def test_a_body_is_not_redirected_and_silence_has_an_end() -> None:
    found = await refusal(lambda: web.Response(status=307, headers={"Location": "/elsewhere"}))
    assert (type(found), found.code) == (SourceUnavailable, "redirect_refused")
    found = await refusal(lambda: web.Response(text="{}", content_type="text/html"))
    assert found.code == "bad_source"

    async def silent(_: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError("it never answers")

    async with fake_node(silent) as url:
        with pytest.raises(SourceUnavailable) as late:
            await Remote(STRANGER, None, patience_s=0.2).infer(url, b"{}", root="mock:embedding", outputs=1)
    assert late.value.code == "stalled"


async def test_a_good_answer() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        await request.read()
        return web.json_response({**GOOD, "surprise": 1})

    async with fake_node(answer) as url:
        done = await Remote(STRANGER, None).infer(url, b"{}", root="mock:embedding", outputs=1)
    assert (done.peer, done.way, done.said.outputs[0].vector) == (FRIEND.peer_id, "http", [1.0])
