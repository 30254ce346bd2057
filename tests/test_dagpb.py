"""dag-pb against go-codec-dagpb's own fixtures, and that nothing but our error comes out of any bytes."""

from __future__ import annotations

import contextlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipfs_accelerate_node.content.cid import DAG_PB, RAW, Cid
from ipfs_accelerate_node.content.dagpb import Link, decode, encode, read_varint, varint
from ipfs_accelerate_node.errors import BadContent, NodeError
from tests.support.dags import raw

CID_BYTES = bytes.fromhex("015500050001020304")  # raw, identity
LINK = "120b0a09" + CID_BYTES.hex()
DATA = "0a050001020304"

# Name, block, (CIDs, names, tsizes), data: ipld/codec-fixtures and the compatibility tests of go-codec-dagpb.
GOOD = [
    ("empty", "", [], None),
    ("data zero", "0a00", [], b""),
    ("data some", DATA, [], bytes(range(5))),
    ("link", LINK, [(b"", 0)], None),
    ("link with empty name", "120d0a09" + CID_BYTES.hex() + "1200", [(b"", 0)], None),
    ("link with name", "12160a09" + CID_BYTES.hex() + "1209736f6d65206e616d65", [(b"some name", 0)], None),
    ("link with tsize", "12140a09" + CID_BYTES.hex() + "18ffffffffffffff0f", [(b"", 2**53 - 1)], None),
    ("links, then data", LINK + DATA, [(b"", 0)], bytes(range(5))),
    ("data, then links, as old blocks have it", DATA + LINK + LINK, [(b"", 0)] * 2, bytes(range(5))),
    ("padded length", "0a8500" + DATA[4:], [], bytes(range(5))),
]

# U1: the nine negative fixtures of ipld/codec-fixtures first.
BAD = [
    ("link without hash", "1200"),
    ("data and a link without hash", "12000a050001020304"),
    ("link with zero hash", "12020a00"),
    ("link with empty name only", "12021200"),
    ("link with name only", "120b1209736f6d65206e616d65"),
    ("link with zero tsize only", "12021800"),
    ("link with tsize only", "120318f207"),
    ("data between links", LINK + "0a0408021806" + LINK),
    ("data between CIDv0 links", "12240a221220" + "cf" * 32 + "0a0408021806" + "12240a221220" + "cf" * 32),
    ("data cut short", "0a0500010203"),
    ("hash cut short", "120b0a090155000500010203"),
    ("two data fields", DATA + DATA),
    ("unknown field", "1a00"),
    ("data as a number", "0801"),
    ("field number 0", "0200"),
    ("tag cut short", "80"),
    ("length over 64 bits", "0a" + "ff" * 9 + "7f"),
    ("length of eleven bytes", "0a" + "80" * 10 + "00"),
    ("length past the end", "0affffffff0f"),
    ("hash twice", "12160a09" + CID_BYTES.hex() + "0a09" + CID_BYTES.hex()),
    ("name before hash", "120d1200" + "0a09" + CID_BYTES.hex()),
    ("tsize before name", "120f0a09" + CID_BYTES.hex() + "18001200"),
    ("unknown field in a link", "120d0a09" + CID_BYTES.hex() + "2000"),
    ("tsize as bytes", "120d0a09" + CID_BYTES.hex() + "1a00"),
    ("tsize runs past its link", "120d0a09" + CID_BYTES.hex() + "18ff" + "7f"),
    ("trailing byte after the CID", "120c0a0a" + CID_BYTES.hex() + "00"),
    ("CID with a hash that is not allowed", "120b0a090155220501020304" + "05"),
]


@pytest.mark.parametrize(("block", "links", "data"), [g[1:] for g in GOOD], ids=[g[0] for g in GOOD])
def test_decodes_what_go_codec_dagpb_takes(block: str, links: list[tuple[bytes, int]], data: bytes) -> None:
    node = decode(bytes.fromhex(block))
    assert [(link.name, link.tsize) for link in node.links] == links
    assert all(bytes(link.cid) == CID_BYTES for link in node.links)
    assert node.data == data


@pytest.mark.parametrize("block", [b[1] for b in BAD], ids=[b[0] for b in BAD])
def test_refuses_malformed_blocks_with_one_error(block: str) -> None:
    with pytest.raises(BadContent) as caught:
        decode(bytes.fromhex(block))
    assert caught.value.code == "bad_dag"


def test_link_to_what_is_no_content_says_so() -> None:
    git_raw = b"\x01\x78" + Cid.of(b"").multihash
    block = b"\x12" + bytes((len(git_raw) + 2,)) + b"\x0a" + bytes((len(git_raw),)) + git_raw
    with pytest.raises(BadContent) as caught:
        decode(block)
    assert caught.value.code == "unsupported_codec"


def test_data_at_points_into_the_block() -> None:
    for links in ([], [Link(raw(b"a"), b"a", 1)]):
        block = encode(links, b"payload")
        node = decode(block)
        assert block[node.data_at :][:7] == b"payload"


def test_encoding_sorts_by_name_and_keeps_the_order_of_equal_names() -> None:
    first, second = raw(b"1"), raw(b"2")
    links = [Link(first, b"b"), Link(second, b""), Link(first, b""), Link(second, "ä".encode()), Link(first, b"B")]
    decoded = decode(encode(links, None)).links
    assert [(link.name, link.cid) for link in decoded] == [
        (b"", second),
        (b"", first),
        (b"B", first),
        (b"b", first),
        ("ä".encode(), second),
    ]


cids = st.builds(
    lambda data, codec, zero: Cid(0, DAG_PB, raw(data).multihash) if zero else Cid.of(data, codec),
    st.binary(max_size=4),
    st.sampled_from([RAW, DAG_PB]),
    st.booleans(),
)
link_lists = st.lists(
    st.builds(Link, cids, st.binary(max_size=300), st.integers(0, 2**64 - 1)),
    max_size=8,
)


@given(link_lists, st.none() | st.binary(max_size=300))
def test_round_trip(links: list[Link], data: bytes | None) -> None:
    block = encode(links, data)
    node = decode(block)
    assert node.links == tuple(sorted(links, key=lambda link: link.name))
    assert node.data == data
    assert encode(node.links, node.data) == block


@given(link_lists, st.binary(max_size=40), st.randoms(use_true_random=False))
def test_damaged_blocks_raise_nothing_but_node_errors(links: list[Link], data: bytes, rng: random.Random) -> None:
    block = bytearray(encode(links, data))
    for _ in range(rng.randint(1, 3)):
        block[rng.randrange(len(block))] = rng.randrange(256)
    for damaged in (bytes(block), bytes(block[: rng.randrange(len(block) + 1)])):
        with contextlib.suppress(NodeError):
            decode(damaged)


@given(st.integers(0, 2**64 - 1))
def test_varint_round_trip(value: int) -> None:
    assert read_varint(b"\xff" + varint(value) + b"\0", 1) == (value, 1 + len(varint(value)))


def test_varint_refuses_more_than_64_bits() -> None:
    with pytest.raises(ValueError, match="64 bits"):
        varint(2**64)
    with pytest.raises(BadContent):
        read_varint(b"\xff" * 9 + b"\x02", 0)
