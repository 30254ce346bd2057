"""Transfers within their limits: so many at a time, a rate while models work, readers who stall, leave or share."""

from __future__ import annotations

import asyncio
import random
import socket
from contextlib import contextmanager
from pathlib import Path

import pytest

from ipfs_accelerate_node.api import limiter, listener
from ipfs_accelerate_node.api.access import Surface
from ipfs_accelerate_node.api.app import ROUTES
from ipfs_accelerate_node.api.context import GIVING
from ipfs_accelerate_node.api.peers_app import build_peers_app
from ipfs_accelerate_node.api.peers_connection import Allowances
from ipfs_accelerate_node.api.pipeline import TRAFFIC
from ipfs_accelerate_node.content.cid import Cid
from tests.support.running import Running, running
from tests.support.underway import descriptors
from tests.test_api_gateway import read_car, write

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 1 << 20


async def test_inference_requests_hold_the_rate(tmp_path: Path) -> None:
    async with running(tmp_path / "cache") as here:
        traffic = here.served.app[TRAFFIC]
        await here.ask("GET", "/v1/models")
        assert not traffic.inferred_within(1000)
        reply = await here.ask("POST", "/v1/embeddings", json={"model": "mock:embedding", "input": "a"})
        assert reply.status == 200
        assert traffic.inferred_within(1000)


async def test_measuring_holds_the_rate_too() -> None:
    measuring = {route.path for route in ROUTES if route.measures}
    asking = {route.path for route in ROUTES if route.surface is Surface.INFER and route.method == "POST"}
    assert measuring >= {"/api/benchmarks", "/api/report"}
    assert asking >= {"/api/infer", "/v1/embeddings", "/embed", "/v2/models/{name:.+?}/infer"}
    assert {route.path for route in ROUTES if route.infers} == measuring | asking


def slow_reader(here: Running, path: str) -> socket.socket:
    """A connection that asked for something big and takes no more than its status line."""
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    reader.connect(("127.0.0.1", here.served.port))
    reader.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{here.served.port}\r\n\r\n".encode())
    return reader


BIG = random.Random(3).randbytes(24 * MIB)


@pytest.mark.parametrize("query", ["", "?format=car"])
async def test_one_transfer_too_many_is_told_to_come_back(tmp_path: Path, query: str) -> None:
    async with running(tmp_path / "cache", share_connections=2) as here:
        root = (await here.node.add(write(tmp_path / "model", {"w.bin": BIG, "a": b"a"}))).root
        giving = here.served.app[GIVING]
        path = f"/ipfs/{root}/w.bin{query}"
        readers = [slow_reader(here, path) for _ in range(2)]
        for reader in readers:
            assert await asyncio.to_thread(reader.recv, 15) == b"HTTP/1.1 200 OK"
        reply = await here.ask("GET", f"/ipfs/{root}/a")
        assert (reply.status, reply.json["code"], reply.headers["Retry-After"]) == (503, "too_many_transfers", "1")
        assert (await here.ask("HEAD", f"/ipfs/{root}/a")).status == 200
        assert (await here.ask("GET", f"/api/have/{root}")).status == 200
        assert (giving.active, giving.refused) == (2, 1)
        for reader in readers:
            reader.close()
        async with asyncio.timeout(15):
            await here.served.app[TRAFFIC].idle()
        assert (await here.ask("GET", f"/ipfs/{root}/a")).body == b"a"
        page = (await here.ask("GET", "/metrics")).body.decode()
        assert "ipfs_accelerate_node_transfers_refused_total 1.0" in page
        assert "ipfs_accelerate_node_transfers 0.0" in page
        assert 'ipfs_accelerate_node_given_bytes_total{kind="file"}' in page


@pytest.mark.needs("linux")
async def test_who_is_slow_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every slot is taken by readers who take nothing: who comes then is served, and one of them is cut off."""
    monkeypatch.setattr(limiter, "PATIENCE_S", 0.0)
    monkeypatch.setattr(limiter, "SLOW_BYTES", 1 << 50)
    async with running(tmp_path / "cache", share_connections=2, share_rate_bytes=1 << 60) as here:
        root = (await here.node.add(write(tmp_path / "model", {"w.bin": BIG, "a": b"a"}))).root
        readers = [slow_reader(here, f"/ipfs/{root}/w.bin") for _ in range(2)]
        for reader in readers:
            assert await asyncio.to_thread(reader.recv, 15) == b"HTTP/1.1 200 OK"
        assert (await here.ask("GET", f"/ipfs/{root}/a")).body == b"a"
        assert (here.served.app[GIVING].cut, here.served.app[GIVING].refused) == (1, 0)
        for reader in readers:
            reader.close()
        async with asyncio.timeout(15):
            await here.served.app[TRAFFIC].idle()
        assert here.served.app[GIVING].active == 0
    assert not descriptors(tmp_path / "cache")


async def test_both_listeners_share_the_limits(tmp_path: Path) -> None:
    async with running(tmp_path / "cache") as here:
        app = build_peers_app(here.served.app, Allowances())
        assert app[GIVING] is here.served.app[GIVING]
        assert app[TRAFFIC] is here.served.app[TRAFFIC]


@pytest.mark.needs("linux")
async def test_a_reader_of_a_file_who_takes_nothing_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its slot and its descriptors are free then."""
    monkeypatch.setattr(listener, "READER_STALL_S", 1)
    async with running(tmp_path / "cache", share_connections=1) as here:
        root = (await here.node.add(write(tmp_path / "model", {"w.bin": BIG}))).root
        with slow_reader(here, f"/ipfs/{root}/w.bin") as reader:
            assert await asyncio.to_thread(reader.recv, 15) == b"HTTP/1.1 200 OK"
            assert here.served.app[GIVING].active == 1
            async with asyncio.timeout(15):
                await here.served.app[TRAFFIC].idle()
        assert here.served.app[GIVING].active == 0
        assert (await here.ask("GET", f"/ipfs/{root}/w.bin", headers={"Range": "bytes=0-0"})).body == BIG[:1]
    assert not descriptors(tmp_path / "cache")


async def test_a_reader_who_leaves_frees_everything_at_once(tmp_path: Path) -> None:
    async with running(tmp_path / "cache") as here:
        root = (await here.node.add(write(tmp_path / "model", {"w.bin": BIG}))).root
        for _ in range(20):
            with slow_reader(here, f"/ipfs/{root}/w.bin") as reader:
                assert await asyncio.to_thread(reader.recv, 15) == b"HTTP/1.1 200 OK"
        async with asyncio.timeout(5):
            await here.served.app[TRAFFIC].idle()
        assert here.served.app[GIVING].active == 0
        assert (await here.ask("GET", f"/ipfs/{root}/w.bin", headers={"Range": "bytes=0-0"})).body == BIG[:1]
    assert not descriptors(tmp_path / "cache")


async def test_many_big_readers_all_get_the_right_bytes(tmp_path: Path) -> None:
    """Files of many slices, beside each other, over and over on the same connections, with and without the rate."""
    content = random.Random(9).randbytes(9 * MIB + 11)
    async with running(tmp_path / "cache", share_rate_bytes=400_000_000) as here:
        root = (await here.node.add(write(tmp_path / "model", {"w.bin": content}))).root
        url = f"/ipfs/{root}/w.bin"

        async def reader(start: int) -> None:
            for _ in range(3):
                reply = await here.ask("GET", url, headers={"Range": f"bytes={start}-"})
                assert reply.body == content[start:]
                car = await here.ask("GET", f"{url}?format=raw")
                assert car.status == 200

        for busy in (False, True):
            with here.served.app[TRAFFIC].inference() if busy else contextmanager(lambda: iter([None]))():
                async with asyncio.TaskGroup() as group:
                    for start in (0, 1, MIB, 5 * MIB + 7):
                        group.create_task(reader(start))
        given = here.served.app[GIVING].given_bytes
        assert given["file"] == 2 * 3 * sum(len(content) - s for s in (0, 1, MIB, 5 * MIB + 7))
        car = await here.ask("GET", f"/ipfs/{root}?format=car")
        assert given["car"] == len(car.body)
        assert len(read_car(car.body)[1]) > 9


async def test_a_file_goes_behind_what_the_connection_still_has_to_send(tmp_path: Path) -> None:
    """Requests in one go to a reader with a small window: blocks, which the loop sends, and a file, by threads."""
    content = random.Random(4).randbytes(3 * MIB + 5)
    async with running(tmp_path / "cache") as here:
        root = (await here.node.add(write(tmp_path / "model", {"w.bin": content}))).root
        leaf = Cid.of(content[:MIB])
        host = f"HTTP/1.1\r\nHost: 127.0.0.1:{here.served.port}\r\n"
        with socket.socket() as reader:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await asyncio.to_thread(reader.connect, ("127.0.0.1", here.served.port))
            one = f"GET /ipfs/{leaf}?format=raw {host}\r\nGET /ipfs/{root}/w.bin {host}\r\n"
            last = f"GET /ipfs/{root}/w.bin {host}Range: bytes=7-9\r\nConnection: close\r\n\r\n"
            reader.sendall((one * 3 + last).encode())
            got = await asyncio.to_thread(reader.makefile("rb").read)
        bodies = []
        while got:
            head, _, rest = got.partition(b"\r\n\r\n")
            length = int(next(line for line in head.split(b"\r\n") if line.startswith(b"Content-Length")).split()[1])
            bodies.append(rest[:length])
            got = rest[length:]
        assert bodies == [content[:MIB], content] * 3 + [content[7:10]]
