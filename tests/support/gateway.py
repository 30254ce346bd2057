"""A gateway or peer that misbehaves on request: a real HTTP server, so our real client meets it."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from aiohttp import web

from ipfs_accelerate_node.content.build import BuiltFile, Profile, file_dag, tree_dag
from ipfs_accelerate_node.content.car import car_block, car_header
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.plan import FilePlan, Leaf, ModelPlan

RAW_TYPE, CAR_TYPE = "application/vnd.ipld.raw", "application/vnd.ipld.car"


@dataclass(frozen=True)
class Flip:
    """One byte of the block is wrong."""

    at: int = 0


@dataclass(frozen=True)
class Truncate:
    """Announces the whole block, sends so many bytes, closes."""

    after: int = 0


@dataclass(frozen=True)
class Stall:
    """Sends so many bytes, then nothing more; before_headers: not even the headers."""

    after: int = 0
    before_headers: bool = False


@dataclass(frozen=True)
class Drip:
    """One byte every so often, for ever; headers: one more header instead."""

    every_s: float = 0.02
    headers: bool = False


@dataclass(frozen=True)
class Answer:
    """This status, headers and body instead of the block."""

    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Verbatim:
    """These bytes on the wire instead of an HTTP answer, then the connection ends."""

    wire: bytes


@dataclass(frozen=True)
class Times:
    """A fault for the first so many requests of a CID; good afterwards."""

    fault: Fault
    count: int


Fault = Flip | Truncate | Stall | Drip | Answer | Verbatim | Times

HTML = Answer(200, b"<html><body>Sign in to the hotel network</body></html>", (("Content-Type", "text/html"),))


def redirect(location: str, status: int = 302) -> Answer:
    return Answer(status, b"", (("Location", location),))


class FakeGateway:
    """blocks: by canonical CID, changed at will. fault: for every block; faults: for one block, and wins.

    files: what `publish` made known is served as plain files too. range_fault, car_fault, have_fault: for every answer
    of that kind; serves_ranges, serves_cars: whether it knows them at all. held: the answer to `/api/have`.
    forms: of each request, in order: raw, range, car or have; queries: what stood behind the question mark.

    asked: how often each canonical CID was requested. gate: while it is cleared, answers wait (a test holds requests in
    flight that way); waiting: how many do. arrived: some request came; idle: none waits. connections: distinct ones.
    slow: send blocks in parts of so many bytes, one every so many seconds.
    """

    def __init__(self, blocks: Mapping[Cid, bytes], *, tls: ssl.SSLContext | None = None) -> None:
        self.blocks = {cid.canonical: block for cid, block in blocks.items()}
        self.fault: Fault | None = None
        self.faults: dict[Cid, Fault] = {}
        self.files: dict[Cid, tuple[FilePlan, bytes]] = {}
        self.range_fault: Fault | None = None
        self.car_fault: Fault | None = None
        self.have_fault: Fault | None = None
        self.serves_ranges = True
        self.serves_cars = True
        self.held: dict[Cid, object] = {}
        self.forms: list[str] = []
        self.queries: list[str] = []
        self.asked: Counter[Cid] = Counter()
        self.headers_seen: list[Mapping[str, str]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = 0
        self.most_waiting = 0
        self.connections = 0
        self.slow: tuple[int, float] | None = None
        self.arrived = asyncio.Event()
        self.idle = asyncio.Event()
        self._protocols: list[object] = []
        self._tls = tls
        self._closing = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self.url = ""
        self.port = 0

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get("/ipfs/{cid}", self._serve)
        app.router.add_get("/api/have/{cid}", self._serve)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls)
        await site.start()
        self.port = self._runner.addresses[0][1]
        self.url = f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self.gate.set()
        if self._runner is not None:
            await self._runner.cleanup()

    @property
    def requests(self) -> int:
        return self.asked.total()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        cid = Cid.parse(request.match_info["cid"]).canonical
        self.asked[cid] += 1
        self.headers_seen.append(request.headers)
        self._count_connection(request)
        await self._pass_gate()
        form = self._form(request)
        self.forms.append(form)
        self.queries.append(request.query_string)
        fault = self._fault_of(form, cid)
        if isinstance(fault, Answer):
            return web.Response(status=fault.status, body=fault.body, headers=dict(fault.headers))
        answer = {"raw": self._raw, "range": self._range, "car": self._car, "have": self._have}[form](request, cid)
        if answer.status not in (200, 206):
            return web.Response(status=answer.status)
        if fault is None and self.slow is not None:
            return await self._slowly(request, answer, *self.slow)
        if fault is None:
            return web.Response(status=answer.status, body=answer.body, headers=dict(answer.headers))
        return await self._misbehave(request, fault, answer)

    def publish(self, model: SmallModel) -> None:
        """Serves the model's files as files and as CARs, and its blocks."""
        self.blocks.update(model.blocks)
        self.files.update({file.cid.canonical: (file, model.files[file.path]) for file in model.plan.files})

    def _form(self, request: web.Request) -> str:
        if request.path.startswith("/api/have/"):
            return "have"
        return request.query.get("format", "range")

    def _fault_of(self, form: str, cid: Cid) -> Fault | None:
        others = {"range": self.range_fault, "car": self.car_fault, "have": self.have_fault}
        fault = others[form] if form in others else self.faults.get(cid, self.fault)
        if isinstance(fault, Times):
            return fault.fault if self.asked[cid] <= fault.count else None
        return fault

    def _raw(self, request: web.Request, cid: Cid) -> Answer:
        if request.headers.get("Accept") != RAW_TYPE:
            return Answer(406)
        if cid not in self.blocks:
            return Answer(412 if request.headers.get("Cache-Control") == "only-if-cached" else 404)
        return Answer(200, self.blocks[cid], (("Content-Type", RAW_TYPE),))

    def _range(self, request: web.Request, cid: Cid) -> Answer:
        if cid not in self.files:
            return Answer(404)
        if not self.serves_ranges:
            return Answer(406)
        span, (_, data) = request.http_range, self.files[cid]
        start, stop = span.start or 0, min(span.stop or len(data), len(data))
        said = (
            ("Content-Type", "application/octet-stream"),
            ("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}"),
        )
        return Answer(206, data[start:stop], said)

    def _car(self, request: web.Request, cid: Cid) -> Answer:
        if cid not in self.files:
            return Answer(404)
        if not self.serves_cars or CAR_TYPE not in request.headers.get("Accept", ""):
            return Answer(406)
        start, stop = (int(end) for end in request.query["entity-bytes"].split(":"))
        file, _ = self.files[cid]
        leaves = [leaf.cid for leaf in file.leaves if leaf.offset <= stop and leaf.offset + leaf.length > start]
        wanted = list(dict.fromkeys(cid.canonical for cid in (file.cid, *leaves)))  # dups=n
        body = car_header([cid]) + b"".join(car_block(cid, self.blocks[cid]) for cid in wanted)
        return Answer(200, body, (("Content-Type", f"{CAR_TYPE}; version=1; order=dfs; dups=n"),))

    def _have(self, request: web.Request, cid: Cid) -> Answer:
        if cid not in self.held:
            return Answer(404)
        return Answer(200, json.dumps(self.held[cid]).encode(), (("Content-Type", "application/json"),))

    async def _pass_gate(self) -> None:
        self.waiting += 1
        self.most_waiting = max(self.most_waiting, self.waiting)
        self.arrived.set()
        self.idle.clear()
        try:
            await self.gate.wait()
        finally:
            self.waiting -= 1
            if not self.waiting:
                self.idle.set()

    async def _misbehave(self, request: web.Request, fault: Fault, answer: Answer) -> web.StreamResponse:
        body = answer.body
        if isinstance(fault, Flip):
            at = fault.at % max(1, len(body))
            flipped = body[:at] + bytes(b ^ 1 for b in body[at : at + 1] or b"\0") + body[at + 1 :]
            return web.Response(status=answer.status, body=flipped, headers=dict(answer.headers))
        if isinstance(fault, Stall) and fault.before_headers:
            await self._closing.wait()
        response = _begun(answer)
        transport = request.transport
        assert transport is not None
        if isinstance(fault, Verbatim):
            transport.write(fault.wire)
            transport.close()
            return response
        if isinstance(fault, Drip) and fault.headers:
            transport.write(b"HTTP/1.1 200 OK\r\n")
            while not self._closing.is_set():
                transport.write(b"X: y\r\n")
                await self._tick(fault.every_s)
        await response.prepare(request)
        if isinstance(fault, Truncate | Stall):
            await response.write(body[: fault.after])
        if isinstance(fault, Truncate):
            transport.close()
        elif isinstance(fault, Stall):
            await self._closing.wait()
        elif isinstance(fault, Drip):
            await self._drip(response, fault)
        return response

    async def _drip(self, response: web.StreamResponse, fault: Drip) -> None:
        while not self._closing.is_set():
            await response.write(b"x")
            await self._tick(fault.every_s)

    async def _slowly(self, request: web.Request, answer: Answer, part: int, every_s: float) -> web.StreamResponse:
        response = _begun(answer)
        await response.prepare(request)
        for at in range(0, len(answer.body), part):
            await response.write(answer.body[at : at + part])
            await self._tick(every_s)
        return response

    async def _tick(self, seconds: float) -> None:
        """The pace of a slow server; ends at once when the test does."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()

    def _count_connection(self, request: web.Request) -> None:
        if request.protocol not in self._protocols:
            self._protocols.append(request.protocol)
            self.connections += 1


def _begun(answer: Answer) -> web.StreamResponse:
    headers = {**dict(answer.headers), "Content-Length": str(len(answer.body))}
    return web.StreamResponse(status=answer.status, headers=headers)


TINY = Profile(chunk_bytes=64, width=4)


@dataclass(frozen=True)
class SmallModel:
    """nodes, leaves: every block by canonical CID; children before parents. files: the bytes that went in."""

    plan: ModelPlan
    nodes: dict[Cid, bytes]
    leaves: dict[Cid, bytes]
    files: dict[str, bytes]

    @property
    def root(self) -> Cid:
        return self.plan.root

    @property
    def blocks(self) -> dict[Cid, bytes]:
        return {**self.leaves, **self.nodes}


def small_model(files: Mapping[str, bytes], profile: Profile = TINY) -> SmallModel:
    """A model directory with these files, cut into tiny leaves so that a few hundred bytes make a real tree."""
    leaves: dict[Cid, bytes] = {}
    built: dict[str, BuiltFile] = {}
    for path, data in files.items():
        chunks = [data[at : at + profile.chunk_bytes] for at in range(0, len(data), profile.chunk_bytes)] or [b""]
        parts = [Leaf(Cid.of(c), i * profile.chunk_bytes, len(c)) for i, c in enumerate(chunks)]
        leaves.update({part.cid.canonical: chunk for part, chunk in zip(parts, chunks, strict=True)})
        built[path] = file_dag(parts, profile)
    tree = tree_dag(built, (), profile)
    return SmallModel(tree.plan, {cid.canonical: block for cid, block in tree.nodes}, leaves, dict(files))
