"""Runs of leaves as CARs from a gateway that serves no plain ranges: table R, for ranges."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

import pytest

from ipfs_accelerate_node.content import varint
from ipfs_accelerate_node.content.build import Profile
from ipfs_accelerate_node.content.car import car_block, car_header
from ipfs_accelerate_node.content.cid import DAG_PB, RAW, Cid
from ipfs_accelerate_node.content.plan import FilePlan, Leaf
from ipfs_accelerate_node.errors import BadContent, IntegrityError, SourceUnavailable
from ipfs_accelerate_node.sources import GatewaySource
from ipfs_accelerate_node.sources.car_ranges import CAR_TYPE
from ipfs_accelerate_node.sources.source import Abilities
from tests.support.gateway import HTML, Answer, Drip, FakeGateway, Fault, Flip, Stall, Truncate, Verbatim, small_model

LEAF = 1024
DATA = random.Random(5).randbytes(7 * LEAF) + bytes(3 * LEAF) + b"the end"  # three leaves are the same
MODEL = small_model({"weights": DATA}, Profile(chunk_bytes=LEAF, width=4))
FILE = MODEL.plan.files[0]
SIZE = len(DATA)
START, STOP = LEAF, 5 * LEAF
LEAVES = [leaf.cid.canonical for leaf in FILE.leaves]
WANTED = LEAVES[1:5]
PATIENCE_S = 10.0
SILENCE_S = 0.3


@pytest.fixture
async def gateway() -> AsyncIterator[FakeGateway]:
    async with FakeGateway({}) as running:
        running.publish(MODEL)
        running.serves_ranges = False
        yield running


async def read(
    gateway: FakeGateway, start: int = START, stop: int = STOP, *, silence_s: float = PATIENCE_S, file: FilePlan = FILE
) -> tuple[bytes, GatewaySource, BaseException | None]:
    """What came, from whom, and what ended it."""
    source = GatewaySource(
        gateway.url,
        first_byte_timeout_s=silence_s,
        stall_timeout_s=silence_s,
        abilities=Abilities(ranges=False),
    )
    received, failure = bytearray(), None
    try:
        async with aclosing(source.read_range(file, start, stop)) as pieces:
            async for piece in pieces:
                received += piece
    except (SourceUnavailable, IntegrityError, BadContent) as exc:
        failure = exc
    await source.aclose()
    return bytes(received), source, failure


def car(cids: Sequence[Cid], *, header: bytes | None = None) -> bytes:
    blocks = MODEL.blocks
    return (car_header([FILE.cid]) if header is None else header) + b"".join(car_block(c, blocks[c]) for c in cids)


def answer(body: bytes) -> Answer:
    return Answer(200, body, (("Content-Type", f"{CAR_TYPE}; version=1"),))


@pytest.mark.parametrize(
    ("start", "stop"),
    [(0, SIZE), (0, 1), (START, STOP), (START + 1, STOP - 1), (6 * LEAF, SIZE), (SIZE - 1, SIZE), (LEAF - 1, LEAF + 1)],
)
async def test_the_bytes_of_the_range_come_in_order(gateway: FakeGateway, start: int, stop: int) -> None:
    received, source, failure = await read(gateway, start, stop)
    assert failure is None
    assert received == DATA[start:stop]
    assert source.abilities == Abilities(ranges=False, cars=True)


async def test_it_is_asked_for_as_the_specification_says(gateway: FakeGateway) -> None:
    await read(gateway)
    assert gateway.forms == ["car"]
    assert gateway.queries[0] == f"format=car&dag-scope=entity&entity-bytes={START}:{STOP - 1}"
    assert gateway.headers_seen[0]["Accept"].startswith(f"{CAR_TYPE}; version=1")


ACCEPTED: dict[str, bytes] = {
    "leaves first": car([*WANTED, FILE.cid]),
    "backwards": car([FILE.cid, *reversed(WANTED)]),
    "twice": car([FILE.cid, *WANTED, *WANTED]),
    "a valid stranger among them": car([FILE.cid, LEAVES[0], *WANTED]),
    "no root": car(WANTED, header=car_header([])),
    "a wrong root": car(WANTED, header=car_header([MODEL.root])),
    "an identity block": car_header([]) + car_block(Cid(1, RAW, b"\0\3abc"), b"abc") + car(WANTED, header=b""),
    "more after the last leaf": car([FILE.cid, *WANTED]) + car(LEAVES, header=b""),
}


@pytest.mark.parametrize("name", ACCEPTED)
async def test_order_duplicates_and_strangers_do_no_harm(gateway: FakeGateway, name: str) -> None:
    gateway.car_fault = answer(ACCEPTED[name])
    received, _, failure = await read(gateway)
    assert failure is None
    assert received == DATA[START:STOP]


SECTION = car([WANTED[0]], header=b"")
FLOOD = b"".join(car_block(Cid.of(n.to_bytes(4, "big") * 8192), n.to_bytes(4, "big") * 8192) for n in range(120))
FAULTS: dict[str, tuple[Fault, str]] = {
    "empty": (answer(b""), "truncated"),
    "header only": (answer(car([])), "missing_block"),
    "a leaf is left out": (answer(car([FILE.cid, WANTED[0], *WANTED[2:]])), "missing_block"),
    "header of 4 GiB": (answer(varint.write(4 << 30) + bytes(100)), "bad_car"),
    "varint without end": (answer(b"\xff" * 10), "bad_car"),
    "CARv2": (answer(bytes.fromhex("0aa16776657273696f6e02") + bytes(40)), "bad_car"),
    "no header": (answer(SECTION), "bad_car"),
    "section of 3 MiB": (answer(car([]) + varint.write(3 << 20)), "block_too_large"),
    "section of nothing": (answer(car([]) + b"\0" + SECTION), "bad_car"),
    "zeros at the end": (answer(car([]) + bytes(50)), "bad_car"),
    "a section without a CID": (answer(car([]) + varint.write(4) + b"\1\2\3\4"), "bad_car"),
    "a flood of valid strangers": (answer(car([]) + FLOOD), "budget_exceeded"),
    "a page": (HTML, "bad_source"),
    "the file itself": (Answer(200, DATA, (("Content-Type", "application/octet-stream"),)), "no_ranges"),
    "JSON": (Answer(200, b"{}", (("Content-Type", "application/json"),)), "no_ranges"),
    "406": (Answer(406), "no_ranges"),
    "400": (Answer(400), "no_ranges"),
    "404": (Answer(404), "not_found"),
    "429": (Answer(429), "rate_limited"),
    "504": (Answer(504), "source_unavailable"),
    "an encoding": (Answer(200, b"x", (("Content-Type", CAR_TYPE), ("Content-Encoding", "gzip"))), "bad_source"),
    "cut": (Truncate(700), "truncated"),
    "chunked, no end": (
        Verbatim(f"HTTP/1.1 200 OK\r\nContent-Type: {CAR_TYPE}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe".encode()),
        "truncated",
    ),
    "silence": (Stall(700), "stalled"),
    "a trickle": (Drip(SILENCE_S / 10), "stalled"),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_a_bad_answer_is_a_typed_error(gateway: FakeGateway, name: str) -> None:
    gateway.car_fault, code = FAULTS[name]
    received, source, failure = await read(gateway, silence_s=SILENCE_S if code == "stalled" else PATIENCE_S)
    assert isinstance(failure, SourceUnavailable)
    assert failure.code == code
    assert failure.detail["source"] == source.name
    assert failure.detail["cid"] == str(FILE.cid)
    assert "\n" not in str(failure)
    assert DATA[START:STOP].startswith(received)
    assert source.ranges is (code != "no_ranges")


async def test_a_gateway_that_ignores_the_range_is_asked_for_blocks_from_then_on() -> None:
    """It would send gigabytes for each run."""
    data = random.Random(6).randbytes(6 << 20)
    model = small_model({"weights": data}, Profile(chunk_bytes=1 << 20, width=8))
    file = model.plan.files[0]
    async with FakeGateway({}) as gateway:
        gateway.publish(model)
        cids = [leaf.cid.canonical for leaf in file.leaves]
        whole = car_header([file.cid]) + b"".join(car_block(cid, model.blocks[cid]) for cid in (file.cid, *cids))
        gateway.car_fault = answer(whole)
        received, source, failure = await read(gateway, 5 << 20, 6 << 20, file=file)
    assert (received, source.ranges) == (b"", False)
    assert isinstance(failure, SourceUnavailable)
    assert failure.code == "no_ranges"


@pytest.mark.parametrize("at", [70, 200, 1500, 3000])
async def test_a_flipped_bit_names_block_and_source(gateway: FakeGateway, at: int) -> None:
    gateway.car_fault = Flip(at)
    received, source, failure = await read(gateway)
    assert DATA[START:STOP].startswith(received)
    assert isinstance(failure, IntegrityError | SourceUnavailable)
    assert failure.detail["source"] == source.name
    if isinstance(failure, SourceUnavailable):  # the bit was in a length or a CID
        assert failure.code in ("bad_car", "truncated", "missing_block", "block_too_large")


WHOLE = car([FILE.cid, *WANTED])


@pytest.mark.parametrize("after", [0, 1, 58, 59, 60, 300, 600, 1700, 2000, len(WHOLE) - 1])
async def test_what_came_before_a_cut_is_kept(gateway: FakeGateway, after: int) -> None:
    gateway.car_fault = answer(WHOLE[:after])
    received, _, failure = await read(gateway)
    assert isinstance(failure, SourceUnavailable)
    assert failure.code in ("truncated", "missing_block")
    assert DATA[START:STOP].startswith(received)
    assert len(received) == sum(1 for n in range(1, 5) if len(car([FILE.cid, *WANTED[:n]])) <= after) * LEAF


async def test_a_leaf_that_is_not_as_its_parent_says_is_the_dags_fault(gateway: FakeGateway) -> None:
    lying = FilePlan("weights", FILE.cid, SIZE - 1, (Leaf(WANTED[0], 0, LEAF - 1),))
    gateway.car_fault = answer(car([WANTED[0]]))
    received, _, failure = await read(gateway, 0, LEAF - 1, file=lying)
    assert (received, type(failure)) == (b"", BadContent)


async def test_leaves_that_are_wrapped_and_leaves_that_are_inline(gateway: FakeGateway) -> None:
    wrapped = b"<" + b"payload" + b">"
    node = Cid.of(wrapped, DAG_PB)
    inline = Cid(1, RAW, b"\0\3abc")
    file = FilePlan("w", FILE.cid, 10, (Leaf(inline, 0, 3), Leaf(node, 3, 7, b"<", b">")))
    gateway.car_fault = answer(car_header([file.cid]) + car_block(node, wrapped))
    assert (await read(gateway, 0, 10, file=file))[0] == b"abcpayload"
    assert (await read(gateway, 4, 6, file=file))[0] == b"ay"
