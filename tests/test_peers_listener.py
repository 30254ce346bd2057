"""The peers' listener, spoken to directly: its routes and no others, public content only, its own limits."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from yarl import URL

from ipfs_accelerate_node.api import app as user_app
from ipfs_accelerate_node.api.peers_connection import Limits
from ipfs_accelerate_node.api.pipeline import TRAFFIC
from ipfs_accelerate_node.benchmarks import RecordShelf
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.records.canonical import Value
from ipfs_accelerate_node.records.envelope import BENCH_PREFIX, seal
from ipfs_accelerate_node.records.key import NodeKey
from ipfs_accelerate_node.records.request import SIGNATURE, TIME, Asked, sign
from ipfs_accelerate_node.store import Provenance
from ipfs_accelerate_node.store.ingest import ingest
from tests.support.peers import listener
from tests.support.running import Reply, Running, model, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

ASKER = NodeKey(b"asker" + bytes(27))
PEER = b"12D3KooWGaUYk5TBjFRYZVcoCQtEtbownBXysrvGUjy89ig63u3e\n"
OWN = {("GET", "/ipfs/{path:.+}"), ("HEAD", "/ipfs/{path:.+}"), ("GET", "/api/have/{root}")} | {
    ("GET", path) for path in ("/api/benchmarks", "/api/maps", "/api/peer")
}


@dataclass(frozen=True, slots=True)
class Door:
    """public, private: roots that are stored."""

    here: Running
    port: int
    public: str
    private: str

    async def ask(self, method: str, path: str, headers: dict[str, str] | None = None, **body: Any) -> Reply:
        url = URL(f"http://127.0.0.1:{self.port}{path}", encoded=True)
        async with self.here.session.request(method, url, headers=headers, **body) as reply:
            return Reply(reply.status, reply.headers, await reply.read())

    async def signed(self, path: str, *, now: float | None = None, to: str | None = None) -> dict[str, str]:
        own = self.here.node.key.peer_id
        return sign(ASKER, Asked("GET", path), to=to or own, now=time.time() if now is None else now)


def private_model(here: Running, folder: Path) -> str:
    """As the mirror of a gated repository is stored."""
    provenance = Provenance(kind="hf", reference="org/gated", at="2026-01-01T00:00:00+00:00")
    return str(ingest(here.node.store, folder, name="gated", public=False, provenance=provenance).model.root)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def door(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Door]:
    folder = tmp_path_factory.mktemp("peers")
    async with running(folder / "cache") as here, listener(here) as port:
        public = (await here.node.add(model(folder / "public", "everybody's ", "w.bin"), name="open")).root
        private = await asyncio.to_thread(private_model, here, model(folder / "private", "one's own ", "w.bin"))
        yield Door(here, port, public, private)


async def test_content_and_what_is_here(door: Door) -> None:
    got = await door.ask("GET", f"/ipfs/{door.public}/w.bin", {"Range": "bytes=0-4"})
    assert (got.status, got.body) == (206, b"every")
    assert (await door.ask("HEAD", f"/ipfs/{door.public}?format=raw")).status == 200
    held = (await door.ask("GET", f"/api/have/{door.public}")).json
    assert held["complete"]
    assert {file["path"] for file in held["files"]} == {"config.json", "w.bin"}


async def test_who_this_is(door: Door) -> None:
    told = (await door.ask("GET", "/api/peer")).json
    assert told["peer_id"] == door.here.node.key.peer_id
    assert told["agent"] == "ipfs-accelerate-node"
    assert told["dial"] is None  # without Kubo nobody can be dialled
    assert (await door.ask("GET", "/api/peer?nonce=short")).status == 400


@pytest.mark.parametrize("with_key", [False, True], ids=["without key", "with the admin key"])
async def test_every_other_route_of_the_node_is_not_there(door: Door, with_key: bool) -> None:
    headers = {"Authorization": f"Bearer {door.here.key}"} if with_key else {}
    for route in user_app.ROUTES:
        if (route.method, route.path) in OWN:
            continue
        path = re.sub(r"\{[^}]*\}", door.public, route.path)
        method = "OPTIONS" if route.method == "*" else route.method
        reply = await door.ask(method, path, headers)
        assert reply.status == 404, f"{method} {path}"
        if method != "HEAD":
            assert reply.json.get("code", "not_found") == "not_found", f"{method} {path} {reply.body!r}"
    for method, path in (
        ("GET", "/"),
        ("GET", "/metrics"),
        ("GET", "/healthz"),
        ("OPTIONS", "/api/peer"),
        ("GET", "/x"),
    ):
        assert (await door.ask(method, path, headers)).status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_no_other_method(door: Door, method: str) -> None:
    for path in (f"/ipfs/{door.public}", f"/api/have/{door.public}", "/api/benchmarks", "/api/maps", "/api/peer"):
        assert (await door.ask(method, path)).status == 404


async def test_what_is_private_is_not_there_whoever_asks(door: Door) -> None:
    admin = {"Authorization": f"Bearer {door.here.key}"}
    assert (await door.here.ask("GET", f"/ipfs/{door.private}/w.bin", headers=admin)).status == 200
    leaf = str(door.here.node.store.plan(door.here.node.find("gated").root).files[-1].cid)  # type: ignore[union-attr]
    for headers in ({}, admin, await door.signed(f"/ipfs/{door.private}")):
        for path in (
            f"/ipfs/{door.private}",
            f"/ipfs/{door.private}/w.bin",
            f"/ipfs/{door.private}?format=raw",
            f"/ipfs/{door.private}?format=car",
            f"/ipfs/{leaf}",
            f"/ipfs/{leaf}?format=raw",
            f"/api/have/{door.private}",
        ):
            sent = headers if "X-Node-Key" not in headers else await door.signed(path)
            assert (await door.ask("GET", path, dict(sent))).status == 404, path


async def test_replies_name_no_local_path(door: Door) -> None:
    for path in (f"/ipfs/{door.public}", f"/api/have/{door.public}", "/api/peer", "/api/benchmarks", "/ipfs/bad", "/x"):
        reply = await door.ask("GET", path)
        cache = str(door.here.node.config.cache).encode()
        assert cache not in reply.body
        assert cache.decode() not in str(reply.headers)


async def test_records_are_shown_once_published(door: Door, tmp_path: Path) -> None:
    shelf = RecordShelf(door.here.node.config.cache)
    record: dict[str, Value] = {"created": 1, "expires": 2, "seq": 1, "model": Cid.parse(door.public)}
    sealed = seal(record, door.here.node.key, BENCH_PREFIX)
    await asyncio.to_thread(shelf.keep, sealed)
    assert (await door.ask("GET", "/api/benchmarks")).json == {"benchmarks": []}
    await asyncio.to_thread(shelf.note_published, sealed.envelope_cid)
    (shown,) = (await door.ask("GET", f"/api/benchmarks?model={door.public}")).json["benchmarks"]
    assert shown["envelope_cid"] == str(sealed.envelope_cid)
    assert (await door.ask("GET", f"/api/benchmarks?model={door.private}")).json == {"benchmarks": []}
    assert (await door.ask("GET", "/api/benchmarks?model=open")).status == 400  # names are nobody else's affair


async def test_signed_requests(door: Door) -> None:
    path = f"/api/have/{door.public}"
    headers = await door.signed(path)
    assert (await door.ask("GET", path, headers)).status == 200
    for refused, code in (
        (headers, "request_replayed"),
        (await door.signed("/api/peer"), "bad_signature"),
        (await door.signed(path, to=ASKER.peer_id), "bad_signature"),
        (await door.signed(path, now=time.time() - 400), "request_stale"),
        (await door.signed(path, now=time.time() + 400), "request_stale"),
        ({TIME: str(int(time.time()))}, "signature_incomplete"),
        ({**await door.signed(path), SIGNATURE: "x"}, "bad_signature"),
    ):
        reply = await door.ask("GET", path, refused)
        assert (reply.status, reply.json["code"]) == (401, code)
    assert (await door.ask("GET", path)).status == 200  # who does not sign is anonymous


async def test_a_signature_given_twice(door: Door) -> None:
    headers = await door.signed("/api/peer")
    lines = [f"{name}: {value}" for name, value in headers.items()]
    lines.append(f"{SIGNATURE}: {headers[SIGNATURE]}")
    status, body = await raw(door.port, "\r\n".join(["GET /api/peer HTTP/1.1", "Host: x", *lines, "", ""]).encode())
    assert (status, json.loads(body)["code"]) == (401, "signature_incomplete")


async def raw(port: int, request: bytes) -> tuple[int, bytes]:
    """The first answer on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        found = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
        return int(head.split()[1]), await reader.readexactly(int(found[1]) if found else 0)
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /api/peer HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", 413),
        (b"GET /api/peer HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", 413),
        (b"GET /api/peer HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n", 413),
        (b"GET /api/peer HTTP/1.1\r\nHost: a\r\nOrigin: null\r\n\r\n", 403),
        (b"GET /api/peer HTTP/1.1\r\nHost: a\r\nSec-Fetch-Mode: no-cors\r\n\r\n", 403),
        (b"GET http://127.0.0.1/api/peer HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /api/peer HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 9000 + b"\r\n\r\n", 400),
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"not http at all\r\n\r\n", 400),
        (PEER + b"not http at all\r\n\r\n", 400),
        (PEER + b"GET /api/peer HTTP/1.1\r\nHost: 127.0.0.1:1\r\n\r\n", 200),
        (b"GET /api/peer HTTP/1.1\r\nHost: anything.example\r\n\r\n", 200),
    ],
    ids=["body", "chunked", "expect", "page", "fetch", "proxy", "header", "line", "no HTTP", "peer no HTTP",
         "peer", "host"],
)  # fmt: skip
async def test_requests_that_no_node_makes(door: Door, request_: bytes, status: int) -> None:
    assert (await raw(door.port, request_))[0] == status


async def test_the_peers_line_in_crumbs(door: Door) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    for byte in PEER + b"GET /api/peer HTTP/1.1\r\nHost: a\r\n\r\n":
        writer.write(bytes([byte]))
        await writer.drain()
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.close()


ASK = b"GET /api/peer HTTP/1.1\r\nHost: a\r\n\r\n"
OTHER_PEER = PEER.replace(b"GaUY", b"GaUX")


async def test_a_peer_has_so_many_connections_and_others_theirs(door: Door) -> None:
    async with listener(door.here, Limits(connections_of_peer=2)) as port:

        async def opened(peer: bytes) -> tuple[int, asyncio.StreamWriter]:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(peer + ASK)
            return int((await reader.readline()).split()[1]), writer

        outcomes = [await opened(peer) for peer in (PEER, PEER, PEER, OTHER_PEER)]
        assert [status for status, _ in outcomes] == [200, 200, 503, 200]
        for _, writer in outcomes:
            writer.close()
            await writer.wait_closed()
        while (late := await opened(PEER))[0] == 503:  # until the server saw the others go
            late[1].close()
        late[1].close()


async def test_a_peer_that_asks_too_often(door: Door) -> None:
    async with listener(door.here, Limits(requests_per_s=0.001, burst=5)) as port:
        assert [(await raw(port, PEER + ASK))[0] for _ in range(7)] == [200] * 5 + [429] * 2
        assert (await raw(port, OTHER_PEER + ASK))[0] == 200
        assert (await raw(port, ASK))[0] == 200


async def test_it_refuses_while_the_node_stops(tmp_path: Path) -> None:
    async with running(tmp_path / "cache") as here, listener(here) as port, aiohttp.ClientSession() as session:
        here.served.app[TRAFFIC].drain()
        async with session.get(f"http://127.0.0.1:{port}/api/peer") as reply:
            assert reply.status == 503
