"""What a gateway may answer, and what we make of it: tables G1, G2, G4, G5, G7, G9."""

from __future__ import annotations

import asyncio
import gzip
import time
from collections.abc import AsyncIterator

import pytest

from ipfs_accelerate_node.content.cid import DAG_PB, Cid
from ipfs_accelerate_node.errors import AuthRequired, SourceUnavailable, exit_code
from ipfs_accelerate_node.sources.gateway import GatewaySource
from ipfs_accelerate_node.sources.source import MAX_BLOCK_BYTES
from tests.support.gateway import (
    HTML,
    RAW_TYPE,
    Answer,
    Drip,
    FakeGateway,
    Fault,
    Flip,
    Stall,
    Truncate,
    Verbatim,
)

BLOCK = bytes(range(256)) * 40
CID = Cid.of(BLOCK)
PATIENCE_S = 10.0  # no good answer takes so long, however busy the machine
SILENCE_S = 0.3  # where a test waits for it to pass


@pytest.fixture
async def gateway() -> AsyncIterator[FakeGateway]:
    async with FakeGateway({CID: BLOCK}) as running:
        yield running


@pytest.fixture
async def source(gateway: FakeGateway) -> AsyncIterator[GatewaySource]:
    opened = GatewaySource(gateway.url, first_byte_timeout_s=PATIENCE_S, stall_timeout_s=PATIENCE_S)
    yield opened
    await opened.aclose()


async def test_a_block_is_asked_for_as_the_specification_says(gateway: FakeGateway, source: GatewaySource) -> None:
    assert await source.read_block(CID) == BLOCK
    headers = gateway.headers_seen[0]
    assert headers["Accept"] == RAW_TYPE
    assert headers["Accept-Encoding"] == "identity"
    assert "Cookie" not in headers


async def test_every_spelling_asks_for_the_canonical_cid(gateway: FakeGateway, source: GatewaySource) -> None:
    node = Cid.of(BLOCK, DAG_PB)
    gateway.blocks[node] = BLOCK
    assert await source.read_block(Cid(0, DAG_PB, node.multihash)) == BLOCK
    assert list(gateway.asked) == [node]


async def test_what_it_sends_is_not_judged_here(gateway: FakeGateway, source: GatewaySource) -> None:
    gateway.fault = Flip(3)
    assert await source.read_block(CID) != BLOCK


def wire(headers: str, body: bytes = b"") -> Verbatim:
    return Verbatim(f"HTTP/1.1 200 OK\r\n{headers}\r\n\r\n".encode() + body)


FAULTS: dict[str, tuple[Fault, str]] = {
    "404": (Answer(404), "not_found"),
    "410": (Answer(410), "not_found"),
    "412": (Answer(412), "not_found"),
    "451": (Answer(451), "blocked"),
    "401": (Answer(401), "auth_required"),
    "403": (Answer(403), "auth_required"),
    "400": (Answer(400), "bad_source"),
    "206": (Answer(206, BLOCK), "bad_source"),
    "204": (Answer(204), "bad_source"),
    "500": (Answer(500), "source_unavailable"),
    "503": (Answer(503), "source_unavailable"),
    "504": (Answer(504), "source_unavailable"),
    "429": (Answer(429), "rate_limited"),
    "html": (HTML, "bad_source"),
    "json": (Answer(200, b"{}", (("Content-Type", "application/json; charset=utf-8"),)), "bad_source"),
    "car": (Answer(200, b"", (("Content-Type", "application/vnd.ipld.car"),)), "bad_source"),
    "gzip": (
        Answer(200, gzip.compress(bytes(1 << 20)), (("Content-Type", RAW_TYPE), ("Content-Encoding", "gzip"))),
        "bad_source",
    ),
    "cut at 0": (Truncate(0), "truncated"),
    "cut at 1": (Truncate(1), "truncated"),
    "cut at all but one": (Truncate(len(BLOCK) - 1), "truncated"),
    "length too long": (wire(f"Content-Length: {len(BLOCK) + 1}", BLOCK), "truncated"),
    "chunked, no end": (wire("Transfer-Encoding: chunked", b"5\r\nhello\r\n"), "truncated"),
    "chunked, broken": (wire("Transfer-Encoding: chunked", b"zz\r\nhello\r\n"), "bad_source"),
    "length negative": (wire("Content-Length: -5", BLOCK), "bad_source"),
    "length no number": (wire("Content-Length: many", BLOCK), "bad_source"),
    "two lengths": (wire(f"Content-Length: {len(BLOCK)}\r\nContent-Length: 3", BLOCK), "bad_source"),
    "length beyond 64 bits": (wire("Content-Length: 999999999999999999999"), "bad_source"),
    "length too short": (wire("Content-Length: 10", BLOCK), "bad_source"),
    "length over the limit": (wire(f"Content-Length: {MAX_BLOCK_BYTES + 1}"), "block_too_large"),
    "not HTTP": (Verbatim(b"220 ftp.example ready\r\n"), "bad_source"),
    "nothing": (Verbatim(b""), "source_unavailable"),
    "half a header": (Verbatim(b"HTTP/1.1 200 OK\r\nContent-"), "source_unavailable"),
    "header of 1 MB": (Verbatim(b"HTTP/1.1 200 OK\r\nX: " + b"x" * (1 << 20) + b"\r\n\r\n"), "bad_source"),
    "silence": (Stall(before_headers=True), "stalled"),
    "silence after the headers": (Stall(0), "stalled"),
    "silence in the middle": (Stall(100), "stalled"),
    "a trickle": (Drip(SILENCE_S / 10), "stalled"),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_a_bad_answer_is_a_typed_error(gateway: FakeGateway, name: str) -> None:
    gateway.fault, code = FAULTS[name]
    silence_s = SILENCE_S if code == "stalled" else PATIENCE_S
    source = GatewaySource(gateway.url, first_byte_timeout_s=silence_s, stall_timeout_s=silence_s)
    with pytest.raises(SourceUnavailable) as caught:
        await source.read_block(CID)
    await source.aclose()
    error = caught.value
    assert error.code == code
    assert error.detail["source"] == source.name
    assert error.detail["cid"] == str(CID)
    assert source.name in str(error)
    assert "\n" not in str(error)
    assert exit_code(error) == 5
    assert isinstance(error, AuthRequired) is (code == "auth_required")


async def test_an_endless_body_is_cut_off(gateway: FakeGateway, source: GatewaySource) -> None:
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    gateway.fault = wire("Transfer-Encoding: chunked", chunk * (MAX_BLOCK_BYTES // 0x10000 + 2))
    with pytest.raises(SourceUnavailable) as caught:
        await source.read_block(CID)
    assert caught.value.code == "block_too_large"


async def test_a_block_of_the_largest_size_passes(gateway: FakeGateway, source: GatewaySource) -> None:
    block = bytes(MAX_BLOCK_BYTES)
    gateway.blocks[Cid.of(block)] = block
    assert await source.read_block(Cid.of(block)) == block


async def test_no_length_at_all_is_read_to_the_end(gateway: FakeGateway, source: GatewaySource) -> None:
    gateway.fault = wire("Connection: close", BLOCK)
    assert await source.read_block(CID) == BLOCK


@pytest.mark.parametrize("kind", [RAW_TYPE, "application/octet-stream", "APPLICATION/VND.IPLD.RAW; x=y"])
async def test_types_that_a_block_may_have(gateway: FakeGateway, source: GatewaySource, kind: str) -> None:
    gateway.fault = Answer(200, BLOCK, (("Content-Type", kind),))
    assert await source.read_block(CID) == BLOCK


@pytest.mark.parametrize(("status", "code"), [(429, "rate_limited"), (503, "source_unavailable")])
@pytest.mark.parametrize(("header", "wait_s"), [("5", 5.0), ("1000000000", 1e9), ("garbage", None)])
async def test_retry_after_is_passed_on(
    gateway: FakeGateway, source: GatewaySource, status: int, code: str, header: str, wait_s: float | None
) -> None:
    gateway.fault = Answer(status, b"", (("Retry-After", header),))
    with pytest.raises(SourceUnavailable) as caught:
        await source.read_block(CID)
    assert (caught.value.code, caught.value.retry_after_s) == (code, wait_s)


async def test_a_slow_but_steady_body_is_not_a_stall(gateway: FakeGateway) -> None:
    """Deadlines run over silence: this body takes several times the stall timeout, and arrives."""
    size, parts, silence_s = 64 << 10, 16, 0.5
    block = bytes(size)
    started = time.monotonic()
    source = GatewaySource(gateway.url, first_byte_timeout_s=PATIENCE_S, stall_timeout_s=silence_s)
    gateway.blocks[Cid.of(block)] = block
    gateway.slow = (size // parts, silence_s / 5)
    try:
        assert await source.read_block(Cid.of(block)) == block
    finally:
        await source.aclose()
    assert time.monotonic() - started > 2 * silence_s


async def test_a_cancelled_read_frees_its_connection(gateway: FakeGateway, source: GatewaySource) -> None:
    gateway.gate.clear()
    reading = asyncio.create_task(source.read_block(CID))
    await gateway.arrived.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await gateway.idle.wait()
    gateway.gate.set()
    assert await source.read_block(CID) == BLOCK


async def test_connections_are_kept_between_blocks(gateway: FakeGateway, source: GatewaySource) -> None:
    for _ in range(5):
        await source.read_block(CID)
    assert gateway.connections == 1


async def test_a_source_can_be_closed_twice_and_opened_again(gateway: FakeGateway, source: GatewaySource) -> None:
    await source.aclose()
    assert await source.read_block(CID) == BLOCK
    await source.aclose()
    await source.aclose()
