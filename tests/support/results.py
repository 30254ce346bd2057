"""Benchmark records as another node would sign them, and fake nodes that answer with them."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from ipfs_accelerate_node.benchmarks.schema import read_benchmark
from ipfs_accelerate_node.content.cid import DAG_PB, Cid
from ipfs_accelerate_node.peers.claims import Claim, open_claim
from ipfs_accelerate_node.records.canonical import Value
from ipfs_accelerate_node.records.envelope import BENCH_PREFIX, LIFETIME_S, Sealed, seal
from ipfs_accelerate_node.records.key import NodeKey

BLOCKS = {str(Cid.of(block, DAG_PB)): block for block in (b"a model", b"another model")}
MODEL, OTHER_MODEL = map(Cid.parse, BLOCKS)

WAIT_S = 60.0

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def until(look: Callable[[], Any]) -> Any:
    """What look finds, as soon as it is something; for what comes by itself in another process."""
    deadline = time.monotonic() + WAIT_S
    while not (found := look()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def key(number: int) -> NodeKey:
    return NodeKey(number.to_bytes(32, "big"))


def record(*, created: int, seq: int = 1, ns: int = 1_000_000, **changes: Any) -> dict[str, Value]:
    """A good one; changes replace fields, a change to None removes one."""
    made: dict[str, Value] = {
        "schema": "ipfs-accelerate-node/benchmark",
        "v": 2,
        "created": created,
        "expires": created + LIFETIME_S,
        "seq": seq,
        "status": "REAL",
        "model": MODEL,
        "task": "embedding",
        "engine": "torch",
        "precision": "f32",
        "device": "cpu",
        "device_name": "A Processor",
        "unit": "tokens",
        "versions": {"node": "1", "torch": "2"},
        "machine": {"cpu": "A Processor", "cores": 8, "memory_bytes": 1 << 34, "system": "Linux", "arch": "x86_64"},
        "workload": {"name": "embedding-b8", "batch": 8, "repeats": 3, "warmup": 1, "seed": 0},
        "samples_ns": [ns, 2 * ns, 3 * ns],
        "work": [100, 100, 100],
        "phases_ns": {},
        "state": {"busy": False},
    }
    made |= changes
    return {name: value for name, value in made.items() if value is not None}


def sealed(by: NodeKey, *, created: int, **changes: Any) -> Sealed:
    return seal(record(created=created, **changes), by, BENCH_PREFIX)


def claim(by: NodeKey, *, created: int, **changes: Any) -> Claim:
    made = sealed(by, created=created, **changes)
    return open_claim(made.envelope_bytes, made.record_bytes, read_benchmark, now=created)


def answer_of(records: Sequence[Sealed]) -> dict[str, object]:
    """As `GET /api/benchmarks` has it."""
    return {
        "benchmarks": [
            {
                "envelope_cid": str(made.envelope_cid),
                "envelope": base64.b64encode(made.envelope_bytes).decode(),
                "block": base64.b64encode(made.record_bytes).decode(),
            }
            for made in records
        ]
    }


def telling(records: Sequence[Sealed]) -> Answer:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.json_response(answer_of(records))

    return answer


async def silent(_: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError("it never answers")


async def _model(request: web.Request) -> web.StreamResponse:
    if (block := BLOCKS.get(request.match_info["cid"])) is None:
        raise web.HTTPNotFound
    return web.Response(body=block, content_type="application/vnd.ipld.raw")


@asynccontextmanager
async def fake_peers(
    answers: Sequence[Answer], *, models: bool = True, more: Mapping[str, Answer] | None = None
) -> AsyncIterator[list[str]]:
    """URLs of servers of their own, one for each answer. models: they have MODEL and OTHER_MODEL too. more: answers to
    further paths."""
    runners: list[web.AppRunner] = []
    urls: list[str] = []
    try:
        for answer in answers:
            app = web.Application()
            app.router.add_get("/api/benchmarks", answer)
            for path, other in (more or {}).items():
                app.router.add_get(path, other)
            if models:
                app.router.add_get("/ipfs/{cid}", _model)
            runners.append(runner := web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1))
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            urls.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
        yield urls
    finally:
        for runner in runners:
            await runner.cleanup()
