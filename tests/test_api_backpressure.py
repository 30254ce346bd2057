"""Too much at once, and too late: every dialect says so in its own shape, at once; nothing that was taken is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio

from ipfs_accelerate_node.api.pipeline import TRAFFIC
from ipfs_accelerate_node.api.traffic import MAX_HELD_BYTES, Traffic
from ipfs_accelerate_node.errors import Overloaded
from ipfs_accelerate_node.inference.lanes import MAX_QUEUED
from ipfs_accelerate_node.inference.model import ModelStats
from tests.support.models import tiny_model
from tests.support.running import Reply, Running, running
from tests.support.workers import until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(90)]

TINY = "org/tiny"
TEXT = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a cat"]}
ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "openai": ("/v1/embeddings", {"model": TINY, "input": "a cat"}),
    "tei": (f"/embed?model={TINY}", {"inputs": "a cat"}),
    "hub": (f"/models/{TINY}", {"inputs": "a cat"}),
    "kserve": (f"/v2/models/{TINY}/infer", {"inputs": [TEXT]}),
    "native": ("/api/infer", {"ref": TINY, "items": ["a cat"]}),
}
each = pytest.mark.parametrize("dialect", ASKED)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    folder = tmp_path_factory.mktemp("pressure")
    async with running(folder / "cache", threads=1) as node:
        await node.node.add(tiny_model(folder / "tiny"), name=TINY)
        await node.node.serving.embed(TINY, ["the cat"])
        yield node


def stats(here: Running) -> ModelStats:
    return next(one for one in here.node.registry.stats() if one.model == TINY)


async def ask(here: Running, dialect: str, **more: Any) -> Reply:
    path, body = ASKED[dialect]
    return await here.ask("POST", path, json=body, **more)


@asynccontextmanager
async def halted(here: Running) -> AsyncIterator[None]:
    """The model's worker does nothing meanwhile, as one that is at something long."""
    model = here.node.registry.find(TINY)
    assert model is not None
    assert model.pid is not None
    os.kill(model.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(model.pid, signal.SIGCONT)


def told(dialect: str, reply: Reply, status: int, code: str) -> None:
    """In the dialect's own shape."""
    assert reply.status == status, reply.body
    assert reply.headers["x-request-id"]
    body = reply.json
    match dialect:
        case "openai":
            kind = "rate_limit_error" if status == 429 else "server_error"
            assert (body["error"]["code"], body["error"]["type"]) == (code, kind)
            assert body["message"] == body["error"]["message"]
        case "tei" | "hub":
            kind = "Overloaded" if status == 429 else "Unhealthy"
            assert (body["error_type"], body["code"]) == (kind, code)
        case "kserve":
            assert isinstance(body["error"], str)
            assert body["code"] == code
        case _:
            assert reply.headers["Content-Type"] == "application/problem+json"
            assert (body["code"], body["status"]) == (code, status)


async def test_a_full_queue_is_refused_in_every_dialect_and_what_was_taken_is_answered(
    here: Running, figure: Callable[[str], None]
) -> None:
    before, took_ms = stats(here), []
    async with halted(here):
        taken = [asyncio.create_task(here.node.serving.embed(TINY, [f"one {n}"])) for n in range(MAX_QUEUED)]
        await until(lambda: stats(here).waiting + stats(here).flying == MAX_QUEUED)
        for dialect in ASKED:
            for _ in range(20):
                began = time.perf_counter()
                reply = await ask(here, dialect)
                took_ms.append((time.perf_counter() - began) * 1e3)
                told(dialect, reply, 429, "overloaded")
                assert 1 <= int(reply.headers["Retry-After"]) <= 60
    answered = await asyncio.gather(*taken)
    assert {len(one.vectors) for one in answered} == {1}
    assert stats(here).shed - before.shed == 20 * len(ASKED)
    assert (stats(here).waiting, stats(here).flying, stats(here).waiting_tokens) == (0, 0, 0)
    took_ms.sort()
    figure(f"refusals one after the other: p50 {took_ms[len(took_ms) // 2]:.1f} ms, p99 {took_ms[-1]:.1f} ms")
    assert took_ms[len(took_ms) // 2] < 200  # the target is 20 ms at p99; this machine may be busy with anything


async def test_retry_after_is_the_time_that_was_measured(here: Running) -> None:
    """What waits takes as long as the same took before."""
    await asyncio.gather(*(here.node.serving.embed(TINY, ["the cat sat " * 9] * 64) for _ in range(4)))
    pace = stats(here).tokens_per_s
    assert pace > 0
    async with halted(here):
        large = ["the cat sat " * 9] * 2000
        taken = [asyncio.create_task(here.node.serving.embed(TINY, [*large, f"{n}"])) for n in range(40)]
        await until(lambda: stats(here).waiting + stats(here).flying + stats(here).shed >= 40)
        estimate_s = stats(here).waiting_tokens / pace
        reply = await here.ask("POST", "/v1/embeddings", json={"model": TINY, "input": ["the cat sat " * 9] * 2000})
        for one in taken:
            one.cancel()
    await asyncio.gather(*taken, return_exceptions=True)
    assert reply.status == 429
    assert int(reply.headers["Retry-After"]) <= 60
    assert int(reply.headers["Retry-After"]) >= min(60, estimate_s) / 3
    await until(lambda: (stats(here).waiting, stats(here).flying) == (0, 0))


@each
async def test_a_deadline_that_passes(here: Running, dialect: str) -> None:
    before = stats(here).expired + stats(here).dropped
    async with halted(here):
        began = time.monotonic()
        reply = await ask(here, dialect, headers={"x-request-timeout": "0.2"})
        assert time.monotonic() - began < 3
    told(dialect, reply, 503, "deadline_exceeded")
    await until(lambda: (stats(here).waiting, stats(here).flying, stats(here).waiting_tokens) == (0, 0, 0))
    assert stats(here).expired + stats(here).dropped > before


async def test_ksserves_own_timeout_counts_in_microseconds(here: Running) -> None:
    path, body = ASKED["kserve"]
    async with halted(here):
        reply = await here.ask("POST", path, json={**body, "parameters": {"timeout": 200_000}})
    told("kserve", reply, 503, "deadline_exceeded")
    reply = await here.ask("POST", path, json={**body, "parameters": {"timeout": 60_000_000}})
    assert reply.status == 200
    reply = await here.ask("POST", path, json={**body, "parameters": {"timeout": 0}})
    assert reply.status == 200  # none, as in Triton
    for wrong in (-1, "5", True, 1.5, 1e300):
        reply = await here.ask("POST", path, json={**body, "parameters": {"timeout": wrong}})
        assert reply.status == 400, wrong


@each
async def test_h6_timeouts_that_are_none(here: Running, dialect: str) -> None:
    for wrong in ("0", "-1", "1e308", "nan", "inf", "true", "", "soon", "86401", "1,2", "0x5"):
        reply = await ask(here, dialect, headers={"x-request-timeout": wrong})
        assert reply.status == (400 if dialect in ("openai", "kserve") else 422), wrong
        assert "x-request-timeout" in reply.body.decode()
    for right in ("30", "0.5e2", " 10 "):
        assert (await ask(here, dialect, headers={"x-request-timeout": right})).status == 200, right


async def test_a_deadline_also_ends_the_wait_for_a_load(
    here: Running, tmp_path_factory: pytest.TempPathFactory
) -> None:
    await here.node.add(tiny_model(tmp_path_factory.mktemp("more") / "other", seed=7), name="org/other")
    began = time.monotonic()
    body = {"model": "org/other", "input": "a"}
    reply = await here.ask("POST", "/v1/embeddings", json=body, headers={"x-request-timeout": "0.01"})
    assert time.monotonic() - began < 3
    told("openai", reply, 503, "deadline_exceeded")
    reply = await here.ask("POST", "/v1/embeddings", json=body)  # the load went on
    assert reply.status == 200


# -- bytes


async def test_bodies_together_are_bounded_and_one_alone_is_not(here: Running) -> None:
    traffic = here.served.app[TRAFFIC]
    with traffic.request() as other:
        other.take(MAX_HELD_BYTES - 1)
        for dialect in ASKED:
            reply = await ask(here, dialect)
            told(dialect, reply, 429, "overloaded")
            assert reply.headers["Retry-After"] == "1"
    assert traffic.held_bytes == 0
    for dialect in ASKED:
        assert (await ask(here, dialect)).status == 200
    assert traffic.held_bytes == 0


async def test_a_request_alone_has_all_the_room_it_needs() -> None:
    traffic = Traffic()
    with traffic.request() as alone:
        alone.take(2 * MAX_HELD_BYTES)
        with traffic.request() as other, pytest.raises(Overloaded):
            other.take(1)
    assert (traffic.held_bytes, traffic.in_flight) == (0, 0)


async def test_while_it_stops_every_dialect_refuses_and_is_alive(here: Running) -> None:
    """P13, P14: alive, not ready, and no new work."""
    traffic = here.served.app[TRAFFIC]
    traffic.draining = True
    try:
        for dialect in ASKED:
            reply = await ask(here, dialect)
            told(dialect, reply, 503, "shutting_down")
            assert reply.headers["Retry-After"]
        alive = {"/healthz": 200, "/v2/health/live": 200, "/metrics": 200}
        ready = dict.fromkeys(("/readyz", "/health", "/ping", "/", "/v2/health/ready"), 503)
        for path, status in (alive | ready).items():
            assert (await here.ask("GET", path)).status == status, path
    finally:
        traffic.draining = False
    assert (await here.ask("GET", "/readyz")).status == 200
