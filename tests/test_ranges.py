"""Parts of files from peers and gateways: what was asked for, or a typed failure. Tables G and F5h, fault F17."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from ipfs_accelerate_node.content.build import Profile
from ipfs_accelerate_node.content.cid import Buffer, Cid
from ipfs_accelerate_node.errors import AuthRequired, SourceUnavailable
from ipfs_accelerate_node.sources import GatewaySource, PeerSource
from tests.support.gateway import (
    HTML,
    Answer,
    Drip,
    FakeGateway,
    Fault,
    Flip,
    Stall,
    Truncate,
    Verbatim,
    small_model,
)

DATA = bytes(range(256)) * 40
MODEL = small_model({"weights": DATA}, Profile(chunk_bytes=1024, width=4))
FILE = MODEL.plan.files[0]
SIZE = len(DATA)
START, STOP = 1024, 5120
SPAN = DATA[START:STOP]
PATIENCE_S = 10.0  # no good answer takes so long, however busy the machine
SILENCE_S = 0.3  # where a test waits for it to pass


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


async def read(
    source: PeerSource | GatewaySource, start: int = START, stop: int = STOP, *, into: list[Buffer] | None = None
) -> bytes:
    received: list[Buffer] = [] if into is None else into
    async with aclosing(source.read_range(FILE, start, stop)) as pieces:
        async for piece in pieces:
            received.append(piece)
    return b"".join(received)


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, SIZE), (START, STOP), (SIZE - 1, SIZE), (7, 7)])
async def test_a_range_is_what_was_asked_for(gateway: FakeGateway, peer: PeerSource, start: int, stop: int) -> None:
    assert await read(peer, start, stop) == DATA[start:stop]
    assert gateway.requests == (1 if stop > start else 0)


async def test_a_range_is_asked_for_without_an_encoding_and_without_credentials(
    gateway: FakeGateway, peer: PeerSource
) -> None:
    await read(peer)
    headers = gateway.headers_seen[0]
    assert headers["Range"] == f"bytes={START}-{STOP - 1}"
    assert headers["Accept-Encoding"] == "identity"
    assert not {"Authorization", "Cookie", "Proxy-Authorization"} & set(headers)


def partial(said: str, body: bytes = SPAN, *more: tuple[str, str]) -> Answer:
    return Answer(206, body, (("Content-Range", said), *more))


def wire(headers: str, body: bytes = SPAN) -> Verbatim:
    said = f"Content-Range: bytes {START}-{STOP - 1}/{SIZE}\r\n"
    return Verbatim(f"HTTP/1.1 206 Partial Content\r\n{said}{headers}\r\n\r\n".encode() + body)


GOOD = f"bytes {START}-{STOP - 1}/{SIZE}"
TOO_MANY = b"1400\r\n" + bytes(0x1400) + b"\r\n0\r\n\r\n"
FAULTS: dict[str, tuple[Fault, str]] = {
    "whole file": (Answer(200, DATA, (("Content-Type", "application/octet-stream"),)), "no_ranges"),
    "416": (Answer(416, b"", (("Content-Range", f"bytes */{SIZE}"),)), "no_ranges"),
    "406": (Answer(406), "no_ranges"),
    "501": (Answer(501), "no_ranges"),
    "multipart": (partial(GOOD, SPAN, ("Content-Type", "multipart/byteranges; boundary=x")), "no_ranges"),
    "a page": (HTML, "bad_source"),
    "no range said": (Answer(206, SPAN), "bad_source"),
    "another start": (partial(f"bytes {START + 1}-{STOP - 1}/{SIZE}", SPAN[1:]), "bad_source"),
    "a longer range": (partial(f"bytes {START}-{STOP}/{SIZE}", SPAN + b"x"), "bad_source"),
    "another size": (partial(f"bytes {START}-{STOP - 1}/{SIZE + 1}"), "bad_source"),
    "garbage for a range": (partial("bytes one-two/three"), "bad_source"),
    "another unit": (partial(GOOD.replace("bytes", "leaves")), "bad_source"),
    "a number beyond 64 bits": (partial(f"bytes {START}-{'9' * 40}/{SIZE}"), "bad_source"),
    "announces more": (partial(GOOD, SPAN + b"x"), "bad_source"),
    "announces less": (partial(GOOD, SPAN[:-1]), "bad_source"),
    "sends more, chunked": (wire("Transfer-Encoding: chunked", TOO_MANY), "bad_source"),
    "sends less, chunked": (wire("Transfer-Encoding: chunked", b"5\r\nhello\r\n0\r\n\r\n"), "truncated"),
    "sends more, to the end": (wire("Connection: close", SPAN + b"x"), "bad_source"),
    "sends less, to the end": (wire("Connection: close", SPAN[:-1]), "truncated"),
    "length negative": (wire("Content-Length: -1"), "bad_source"),
    "two lengths": (wire(f"Content-Length: {STOP - START}\r\nContent-Length: 3"), "bad_source"),
    "gzip": (partial(GOOD, gzip.compress(bytes(1 << 20))[: STOP - START], ("Content-Encoding", "gzip")), "bad_source"),
    "404": (Answer(404), "not_found"),
    "451": (Answer(451), "blocked"),
    "401": (Answer(401), "auth_required"),
    "429": (Answer(429), "rate_limited"),
    "503": (Answer(503), "source_unavailable"),
    "cut at 0": (Truncate(0), "truncated"),
    "cut at all but one": (Truncate(STOP - START - 1), "truncated"),
    "not HTTP": (Verbatim(b"SSH-2.0-OpenSSH_9.6\r\n"), "bad_source"),
    "header of 1 MB": (Verbatim(b"HTTP/1.1 206 Partial Content\r\nX: " + b"x" * (1 << 20)), "bad_source"),
    "silence": (Stall(before_headers=True), "stalled"),
    "silence after the headers": (Stall(0), "stalled"),
    "silence in the middle": (Stall(100), "stalled"),
    "a trickle": (Drip(SILENCE_S / 10), "stalled"),
    "headers that never end": (Drip(SILENCE_S / 100, headers=True), "stalled"),
    "endless headers at once": (Verbatim(b"HTTP/1.1 206 Partial Content\r\n" + b"X: y\r\n" * 1000), "bad_source"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
async def test_a_bad_answer_is_a_typed_error(gateway: FakeGateway, name: str) -> None:
    gateway.range_fault, code = FAULTS[name]
    silence_s = SILENCE_S if code == "stalled" else PATIENCE_S
    peer = PeerSource(gateway.url, name="peer of a test", first_byte_timeout_s=silence_s, stall_timeout_s=silence_s)
    received: list[Buffer] = []
    with pytest.raises(SourceUnavailable) as caught:
        await read(peer, into=received)
    await peer.aclose()
    error = caught.value
    assert error.code == code
    assert error.detail["source"] == "peer of a test"
    assert error.detail["cid"] == str(FILE.cid)
    assert "\n" not in str(error)
    assert sum(len(piece) for piece in received) <= STOP - START
    assert isinstance(error, AuthRequired) is (code == "auth_required")
    assert peer.ranges is (code != "no_ranges")


async def test_what_it_sends_is_not_judged_here(gateway: FakeGateway, peer: PeerSource) -> None:
    gateway.range_fault = Flip(3)
    assert await read(peer) != SPAN


async def test_a_closed_range_frees_its_connection(gateway: FakeGateway, peer: PeerSource) -> None:
    gateway.range_fault = Stall(100)
    async with aclosing(peer.read_range(FILE, START, STOP)) as pieces:
        assert len(await anext(pieces)) == 100
    gateway.range_fault = None
    assert await read(peer) == SPAN
    assert gateway.connections == 2


async def test_ranges_and_blocks_share_connections(gateway: FakeGateway, peer: PeerSource) -> None:
    for _ in range(3):
        assert await read(peer) == SPAN
        assert await peer.read_block(MODEL.root) == MODEL.blocks[MODEL.root]
    assert gateway.connections == 1


@pytest.mark.parametrize(
    ("ranges", "cars", "forms"),
    [
        (True, True, ["range", "range"]),
        (False, True, ["range", "car", "car"]),
        (False, False, ["range", "car"]),
    ],
)
async def test_a_gateway_is_probed_once(gateway: FakeGateway, ranges: bool, cars: bool, forms: list[str]) -> None:
    gateway.serves_ranges, gateway.serves_cars = ranges, cars
    source = GatewaySource(gateway.url)
    for _ in range(2):
        if ranges or cars:
            assert await read(source) == SPAN
        else:
            with pytest.raises(SourceUnavailable) as caught:
                await read(source)
            assert caught.value.code == "no_ranges"
    assert gateway.forms == forms
    assert source.ranges is (ranges or cars)
    await source.aclose()
    again = GatewaySource(gateway.url, abilities=source.abilities)
    if again.ranges:
        assert await read(again) == SPAN
        assert gateway.forms == [*forms, forms[-1]]
    await again.aclose()


async def test_whether_a_gateway_has_a_block_at_hand(gateway: FakeGateway) -> None:
    source = GatewaySource(gateway.url)
    assert await source.cached(MODEL.root) is True
    assert await source.cached(Cid.of(b"nobody has this")) is False
    await source.aclose()
    assert gateway.headers_seen[0]["Cache-Control"] == "only-if-cached"
