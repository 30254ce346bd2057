"""Long bodies, which our own protocol takes off aiohttp's connection: whole, and the connection lives on."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from ipfs_accelerate_node.content.build import Profile
from ipfs_accelerate_node.content.cid import Buffer
from ipfs_accelerate_node.errors import SourceUnavailable
from ipfs_accelerate_node.sources import PeerSource, bulk
from tests.support.certificates import self_signed
from tests.support.gateway import FakeGateway, Stall, Truncate, Verbatim, small_model

MIB = 1 << 20
DATA = bytes(range(256)) * (5 * MIB // 256) + b"the rest"
MODEL = small_model({"weights": DATA}, Profile(chunk_bytes=MIB, width=4))
FILE = MODEL.plan.files[0]
SIZE = len(DATA)
PATIENCE_S = 10.0
SILENCE_S = 0.3


@pytest.fixture
async def gateway() -> AsyncIterator[FakeGateway]:
    async with FakeGateway({}) as running:
        running.publish(MODEL)
        yield running


@pytest.fixture
async def peer(gateway: FakeGateway) -> AsyncIterator[PeerSource]:
    opened = PeerSource(gateway.url, first_byte_timeout_s=PATIENCE_S, stall_timeout_s=PATIENCE_S)
    yield opened
    await opened.aclose()


async def read(peer: PeerSource, start: int = 0, stop: int = SIZE, *, into: list[Buffer] | None = None) -> bytes:
    pieces: list[Buffer] = [] if into is None else into
    async with aclosing(peer.read_range(FILE, start, stop)) as received:
        async for piece in received:
            pieces.append(piece)
    return b"".join(pieces)


# around what is left to aiohttp; around one piece; several pieces and a bit
SIZES = [bulk.MIN_BYTES - 1, bulk.MIN_BYTES, bulk.MIN_BYTES + 1, MIB - 1, MIB, MIB + 1, 3 * MIB, SIZE]


@pytest.mark.parametrize("size", SIZES)
async def test_every_length_arrives_whole_on_one_connection(gateway: FakeGateway, peer: PeerSource, size: int) -> None:
    for start in (0, SIZE - size):
        assert await read(peer, start, start + size) == DATA[start : start + size]
    assert await peer.read_block(MODEL.root) == MODEL.blocks[MODEL.root]
    assert gateway.connections == 1


async def test_many_at_once_do_not_mix(gateway: FakeGateway, peer: PeerSource) -> None:
    spans = [(n * 100_000, n * 100_000 + 2 * MIB) for n in range(8)]
    for _ in range(3):
        received = await asyncio.gather(*(read(peer, *span) for span in spans))
        assert all(data == DATA[start:stop] for data, (start, stop) in zip(received, spans, strict=True))
    assert gateway.connections <= len(spans)


async def test_no_piece_crosses_a_whole_mib(gateway: FakeGateway, peer: PeerSource) -> None:
    pieces: list[Buffer] = []
    assert await read(peer, into=pieces) == DATA
    ends = [sum(len(piece) for piece in pieces[: n + 1]) for n in range(len(pieces))]
    assert {n * MIB for n in range(1, 6)} <= set(ends)


async def test_a_reader_that_pauses_bounds_what_is_read(gateway: FakeGateway, peer: PeerSource) -> None:
    async with aclosing(peer.read_range(FILE, 0, SIZE)) as pieces:
        received = [await anext(pieces)]
        for _ in range(2000):  # the loop runs on; nobody reads
            await asyncio.sleep(0)
        received += [piece async for piece in pieces]
    assert b"".join(received) == DATA


@pytest.mark.parametrize("after", [0, 1, 300_000, MIB, MIB + 1, SIZE - 1])
async def test_a_cut_keeps_what_came_before(gateway: FakeGateway, peer: PeerSource, after: int) -> None:
    gateway.range_fault = Truncate(after)
    pieces: list[Buffer] = []
    with pytest.raises(SourceUnavailable) as caught:
        await read(peer, into=pieces)
    assert caught.value.code == "truncated"
    assert b"".join(pieces) == DATA[:after]
    gateway.range_fault = None
    assert await read(peer) == DATA


@pytest.mark.parametrize("after", [0, 300_000, MIB + 1])
async def test_silence_in_the_middle_is_a_stall(gateway: FakeGateway, after: int) -> None:
    peer = PeerSource(gateway.url, first_byte_timeout_s=PATIENCE_S, stall_timeout_s=SILENCE_S)
    gateway.range_fault = Stall(after)
    pieces: list[Buffer] = []
    with pytest.raises(SourceUnavailable) as caught:
        await read(peer, into=pieces)
    await peer.aclose()
    assert caught.value.code == "stalled"
    assert b"".join(pieces) == DATA[:after]


async def test_a_slow_but_steady_body_is_not_a_stall(gateway: FakeGateway) -> None:
    peer = PeerSource(gateway.url, first_byte_timeout_s=PATIENCE_S, stall_timeout_s=SILENCE_S)
    gateway.slow = (SIZE // 16, SILENCE_S / 5)
    pieces: list[Buffer] = []
    assert await read(peer, into=pieces) == DATA
    await peer.aclose()


async def test_a_reader_that_is_slow_itself_is_not_a_stall(gateway: FakeGateway) -> None:
    peer = PeerSource(gateway.url, first_byte_timeout_s=PATIENCE_S, stall_timeout_s=SILENCE_S)
    received = bytearray()
    async with aclosing(peer.read_range(FILE, 0, SIZE)) as pieces:
        async for piece in pieces:
            received += piece
            until = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_later(SILENCE_S * 1.5, until.set_result, None)
            await until
    await peer.aclose()
    assert received == DATA


async def test_a_cancelled_read_frees_its_connection(gateway: FakeGateway, peer: PeerSource) -> None:
    gateway.range_fault = Stall(MIB + 1)
    reading = asyncio.create_task(read(peer))
    await gateway.idle.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    gateway.range_fault = None
    assert await read(peer) == DATA


async def test_bytes_after_the_body_are_never_the_next_answer(gateway: FakeGateway, peer: PeerSource) -> None:
    headers = (
        f"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-{SIZE - 1}/{SIZE}\r\nContent-Length: {SIZE}\r\n\r\n"
    )
    gateway.range_fault = Verbatim(headers.encode() + DATA + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
    pieces: list[Buffer] = []
    with pytest.raises(SourceUnavailable) as caught:
        await read(peer, into=pieces)
    assert caught.value.code == "bad_source"
    assert b"".join(pieces) == DATA
    gateway.range_fault = None
    assert await read(peer) == DATA


async def test_it_works_through_tls(tmp_path: Path) -> None:
    server, pem = self_signed(tmp_path / "server.pem", "127.0.0.1", 30)
    client = ssl.create_default_context(cafile=str(pem))
    async with FakeGateway({}, tls=server) as gateway:
        gateway.publish(MODEL)
        peer = PeerSource(gateway.url, tls=client)
        for _ in range(2):
            assert await read(peer) == DATA
        assert gateway.connections == 1
        await peer.aclose()
