"""CARv1 against bad-input table R: cut, flipped, lied about; and round trips through any chopping of the stream."""

from __future__ import annotations

from collections.abc import Iterable

import libipld
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipfs_accelerate_node.content import varint
from ipfs_accelerate_node.content.car import MAX_BLOCK_BYTES, CarReader, car_block, car_header
from ipfs_accelerate_node.content.cid import BLAKE2B_256, DAG_PB, IDENTITY, RAW, Cid
from ipfs_accelerate_node.errors import BadContent, IntegrityError, NodeError

BLOCKS = [(Cid.of(data), data) for data in (b"first", b"", b"third " * 30)]
V0_BLOCK = (Cid(0, DAG_PB, Cid.of(b"\n\x02\x08\x01", DAG_PB).multihash), b"\n\x02\x08\x01")
HEADER = car_header([BLOCKS[0][0]])
STREAM = HEADER + b"".join(car_block(cid, data) for cid, data in BLOCKS)


def read(stream: bytes, **limits: int) -> tuple[list[tuple[Cid, bytes]], NodeError | None]:
    """All that one read of the stream gives: verified blocks, then the failure if there is one."""
    reader = CarReader(origin="http://gateway", **limits)
    blocks: list[tuple[Cid, bytes]] = []
    try:
        blocks += reader.feed(stream)
        reader.close()
    except NodeError as exc:
        return blocks, exc
    return blocks, None


def failure_of(reader: CarReader, pieces: Iterable[bytes]) -> NodeError | None:
    """The first failure of feeding the pieces and closing."""
    try:
        for piece in pieces:
            reader.feed(piece)
        reader.close()
    except NodeError as exc:
        return exc
    return None


def section(body: bytes) -> bytes:
    return varint.write(len(body)) + body


def code(failure: NodeError | None) -> str:
    return "" if failure is None else failure.code


def cbor_header(value: object) -> bytes:
    return section(libipld.encode_dag_cbor(value))


def test_the_header_is_what_dag_cbor_says() -> None:
    for roots in ([], [BLOCKS[0][0]], [V0_BLOCK[0]], [cid for cid, _ in BLOCKS] * 30):
        header = car_header(roots)
        decoded = libipld.decode_dag_cbor(header[varint.read(header)[1] :])
        assert decoded == {"version": 1, "roots": [bytes(cid) for cid in roots]}
        reader = CarReader()
        reader.feed(header)
        reader.close()
        assert list(reader.roots) == roots


def test_a_stream_comes_back_as_its_blocks() -> None:
    assert read(STREAM) == (BLOCKS, None)


@settings(max_examples=60)
@given(
    blocks=st.lists(st.binary(max_size=200), max_size=6), steps=st.lists(st.integers(1, 90), min_size=1), data=st.data()
)
def test_however_the_stream_is_chopped(blocks: list[bytes], steps: list[int], data: st.DataObject) -> None:
    hashes = [data.draw(st.sampled_from([0x12, 0x13, BLAKE2B_256])) for _ in blocks]
    made = [(Cid.of(block, RAW, code), block) for block, code in zip(blocks, hashes, strict=True)]
    stream = car_header([]) + b"".join(car_block(cid, block) for cid, block in made)
    reader, got, at, turn = CarReader(), list[tuple[Cid, bytes]](), 0, 0
    while at < len(stream):
        got += reader.feed(stream[at : at + steps[turn % len(steps)]])
        at, turn = at + steps[turn % len(steps)], turn + 1
    reader.close()
    assert got == made
    assert reader.received_bytes == len(stream)


@pytest.mark.parametrize("cut", range(len(STREAM)))
def test_r8_truncated_at_every_offset(cut: int) -> None:
    ends = [len(HEADER)]
    for cid, data in BLOCKS:
        ends.append(ends[-1] + len(car_block(cid, data)))
    blocks, failure = read(STREAM[:cut])
    assert blocks == BLOCKS[: max(0, sum(end <= cut for end in ends) - 1)]
    if cut in ends:
        assert failure is None  # a whole number of sections: that blocks are missing is for the walker to see
    else:
        assert isinstance(failure, BadContent)
        assert failure.code == "incomplete"


@pytest.mark.parametrize("position", range(len(STREAM)))
def test_r7_one_flipped_bit_never_passes_unseen(position: int) -> None:
    for bit in range(8):
        flipped = bytearray(STREAM)
        flipped[position] ^= 1 << bit
        blocks, failure = read(bytes(flipped))
        for cid, data in blocks:
            assert cid.matches(data)
        roots_only = position < len(HEADER) and blocks == BLOCKS
        assert failure is not None or roots_only or blocks != BLOCKS
        if failure is not None:
            assert isinstance(failure, (IntegrityError, BadContent))
            assert "http://gateway" in str(failure) or failure.code == "bad_car"


def test_r7_a_mismatch_names_cid_and_source_and_keeps_what_came_before() -> None:
    stream = STREAM[:-1] + b"!"
    reader = CarReader(origin="http://gateway")
    assert reader.feed(stream) == BLOCKS[:2]
    for call in (lambda: reader.feed(b"more"), reader.close):
        with pytest.raises(IntegrityError) as caught:
            call()
        assert caught.value.detail["source"] == "http://gateway"
        assert caught.value.detail["expected"] == str(BLOCKS[2][0])


NESTED = b"\xa1\x65roots" + b"\x81" * 30_000 + b"\x80"
BAD_STREAMS = {
    "R1 empty body": (b"", "incomplete"),
    "R1 an HTML page": (b"<!DOCTYPE html><html><body>504 Gateway Time-out</body></html>", "bad_car"),
    "R1 a JSON error": (b'{"error": "no such block"}' + b" " * 200, "bad_car"),
    "R2 a varint of ff": (b"\xff" * 10, "bad_car"),
    "R2 a header of 4 GiB": (varint.write(1 << 32) + b"\xa2", "bad_car"),
    "R2 a header just over 64 KiB": (varint.write(64 * 1024 + 1), "bad_car"),
    "R3 a section of more than a block": (HEADER + varint.write(MAX_BLOCK_BYTES + 1000), "block_too_large"),
    "R3 a block of 2 MiB and a byte": (
        HEADER + car_block(Cid.of(bytes(MAX_BLOCK_BYTES + 1)), bytes(MAX_BLOCK_BYTES + 1)),
        "block_too_large",
    ),
    "R3 a section shorter than its CID": (HEADER + section(bytes(BLOCKS[0][0])[:-1]), "bad_car"),
    "R3 a section length of ff": (HEADER + b"\xff" * 10, "bad_car"),
    "R3 a padded section length": (HEADER + b"\xa9\x00" + b"x" * 41, "bad_car"),
    "R4 an empty section": (HEADER + b"\0" + car_block(*BLOCKS[0]), "bad_car"),
    "R4 zeros at the end": (STREAM + bytes(40), "bad_car"),
    "R4 an empty header": (b"\0", "bad_car"),
    "R5 CARv2": (cbor_header({"version": 2}) + bytes(40), "bad_car"),
    "R5 version 9": (cbor_header({"version": 9, "roots": []}), "bad_car"),
    "R5 no roots": (cbor_header({"version": 1}), "bad_car"),
    "R5 no version": (cbor_header({"roots": []}), "bad_car"),
    "R5 not a map": (cbor_header([1, 2]), "bad_car"),
    "R5 roots that are no list": (cbor_header({"version": 1, "roots": {}}), "bad_car"),
    "R5 roots that are no links": (cbor_header({"version": 1, "roots": ["x"]}), "bad_car"),
    "R5 a root that is no CID": (section(b"\xa2\x65roots\x81\xd8\x2a\x42\x00\x01\x67version\x01"), "bad_car"),
    "R5 a root of a refused hash": (
        section(b"\xa2\x65roots\x81\xd8\x2a\x47\x00\x01\x55\x11\x02ab\x67version\x01"),
        "bad_car",
    ),
    "R5 one key more": (cbor_header({"version": 1, "roots": [], "x": 1}), "bad_car"),
    "R6 a million roots": (car_header([BLOCKS[0][0]] * 1_000_000)[:1000], "bad_car"),
    "R6 claims 2^63 roots": (section(b"\xa2\x65roots\x9b" + b"\xff" * 8 + b"\x67version\x01"), "bad_car"),
    "R11 a malformed CIDv0": (HEADER + section(b"\x12\x20" + bytes(31)), "bad_car"),
    "R11 version 0 of another hash": (HEADER + section(b"\x13\x40" + bytes(64)), "bad_car"),
    "R11 a CID of a refused hash": (HEADER + section(b"\x01\x55\x11\x14" + bytes(20) + b"data"), "bad_car"),
    "R13 nested 30,000 deep": (section(NESTED), "bad_car"),
    "R13 a key twice": (section(b"\xa3\x65roots\x80\x65roots\x80\x67version\x01"), "bad_car"),
    "R13 a version not in its shortest form": (section(b"\xa2\x65roots\x80\x67version\x18\x01"), "bad_car"),
    "R13 a count not in its shortest form": (section(b"\xa2\x65roots\x98\x00\x67version\x01"), "bad_car"),
    "R13 an indefinite list": (section(b"\xa2\x65roots\x9f\xff\x67version\x01"), "bad_car"),
    "R13 keys in the other order": (section(b"\xa2\x67version\x01\x65roots\x80"), "bad_car"),
    "R13 bytes after the header": (section(b"\xa2\x65roots\x80\x67version\x01\x00"), "bad_car"),
    "R13 a header that stops early": (section(b"\xa2\x65roots"), "bad_car"),
}


@pytest.mark.parametrize(("stream", "wanted"), BAD_STREAMS.values(), ids=BAD_STREAMS.keys())
def test_bad_streams_are_refused(stream: bytes, wanted: str) -> None:
    blocks, failure = read(stream)
    assert code(failure) == wanted
    assert blocks == (BLOCKS if stream.startswith(STREAM) else [])
    for size in (1, 7):
        reader = CarReader()
        assert code(failure_of(reader, (stream[at : at + size] for at in range(0, 4000, size)))) in (
            wanted,
            "incomplete",
        )


def test_r6_the_roots_are_only_a_hint() -> None:
    for roots in ([], [Cid.of(b"something else")], [BLOCKS[0][0]] * 1500):
        assert read(car_header(roots) + STREAM[len(HEADER) :]) == (BLOCKS, None)


def test_r9_order_duplicates_and_strangers_are_left_to_the_caller() -> None:
    order = [BLOCKS[2], BLOCKS[0], BLOCKS[0], (Cid.of(b"stranger"), b"stranger"), BLOCKS[1]]
    assert read(HEADER + b"".join(car_block(*block) for block in order)) == (order, None)


def test_r10_the_budget_counts_every_byte() -> None:
    budget = len(STREAM)
    assert read(STREAM, budget_bytes=budget) == (BLOCKS, None)
    reader = CarReader(budget_bytes=budget)
    assert reader.feed(STREAM) == BLOCKS
    strangers = (car_block(Cid.of(b"%d" % number), b"%d" % number) for number in range(100))
    assert code(failure_of(reader, strangers)) == "budget_exceeded"
    assert reader.received_bytes < budget + 100


def test_r10_a_bad_section_past_the_budget_is_still_told() -> None:
    assert code(read(STREAM + b"\0", budget_bytes=10)[1]) == "bad_car"


def test_r11_identity_and_version_0_sections_are_read() -> None:
    identity = (Cid.of(b"inline", RAW, IDENTITY), b"inline")
    assert read(HEADER + car_block(*identity) + car_block(*V0_BLOCK)) == ([identity, V0_BLOCK], None)
    _, failure = read(HEADER + car_block(identity[0], b"other"))
    assert code(failure) == "hash_mismatch"


def test_the_largest_block_passes() -> None:
    data = bytes(MAX_BLOCK_BYTES)
    assert read(HEADER + car_block(Cid.of(data), data)) == ([(Cid.of(data), data)], None)


def test_memory_stays_bounded_by_one_section() -> None:
    reader = CarReader(max_block=1000)
    reader.feed(HEADER)
    for number in range(200):
        data = bytes([number]) * 1000
        reader.feed(car_block(Cid.of(data), data))
        assert len(reader._buffer) == 0
