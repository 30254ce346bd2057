"""What a peer says it holds: bounded, every field checked, and only ever a claim. Security default 11's client side."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator

import pytest

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import InvalidConfig, SourceUnavailable
from ipfs_accelerate_node.sources import PeerSource
from ipfs_accelerate_node.sources.peer import MAX_HELD_BYTES
from tests.support.gateway import HTML, Answer, Drip, FakeGateway, Fault, Stall, Truncate, Verbatim

ROOT = Cid.of(b"a root")
FILE, OTHER = Cid.of(b"a file"), Cid.of(b"another file")
PATIENCE_S = 10.0
SILENCE_S = 0.3


@pytest.fixture
async def gateway() -> AsyncIterator[FakeGateway]:
    async with FakeGateway({}) as running:
        yield running


@pytest.fixture
async def peer(gateway: FakeGateway) -> AsyncIterator[PeerSource]:
    opened = PeerSource(gateway.url, first_byte_timeout_s=PATIENCE_S, stall_timeout_s=PATIENCE_S)
    yield opened
    await opened.aclose()


def held(*files: dict[str, object], root: Cid = ROOT, complete: object = False) -> dict[str, object]:
    return {"root": str(root), "complete": complete, "files": list(files)}


def file(bitmap: bytes, leaves: object, cid: Cid = FILE) -> dict[str, object]:
    return {"path": "weights", "cid": str(cid), "leaves": leaves, "bitmap": base64.b64encode(bitmap).decode()}


async def test_bits_count_from_the_least_significant(gateway: FakeGateway, peer: PeerSource) -> None:
    gateway.held[ROOT] = held(file(b"\x05\x01", 9))
    answer = await peer.held(ROOT)
    assert answer is not None
    assert [leaf for leaf in range(12) if answer.has(FILE, leaf)] == [0, 2, 8]
    assert not answer.has(OTHER, 0)
    assert not answer.complete


async def test_a_complete_peer_has_every_leaf(gateway: FakeGateway, peer: PeerSource) -> None:
    gateway.held[ROOT] = held(complete=True)
    answer = await peer.held(ROOT)
    assert answer is not None
    assert answer.has(FILE, 10**6)


async def test_a_peer_that_knows_nothing_of_it_holds_nothing(peer: PeerSource) -> None:
    answer = await peer.held(ROOT)
    assert answer is not None
    assert not answer.complete
    assert not answer.has(FILE, 0)


async def test_too_many_leaves_to_tell_of_is_no_answer(gateway: FakeGateway, peer: PeerSource) -> None:
    gateway.have_fault = Answer(413)
    assert await peer.held(ROOT) is None


async def test_unknown_fields_are_ignored(gateway: FakeGateway, peer: PeerSource) -> None:
    gateway.held[ROOT] = {**held({**file(b"\x01", 1), "since": 3}), "version": 9}
    assert await peer.held(ROOT) is not None


JSON = ("Content-Type", "application/json")


def said(body: object) -> Answer:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Answer(200, text, (JSON,))


BAD: dict[str, tuple[Fault, str]] = {
    "not JSON": (said(b"{"), "bad_source"),
    "not UTF-8": (said(b'{"root": "\xff"}'), "bad_source"),
    "nested 100,000 deep": (said(b'{"x":' + b"[" * 100_000), "bad_source"),
    "a list": (said([]), "bad_source"),
    "nothing in it": (said({}), "bad_source"),
    "another root": (said(held(root=OTHER)), "bad_source"),
    "no CID for a root": (said({**held(), "root": "../../etc/passwd"}), "bad_source"),
    "complete is a word": (said(held(complete="yes")), "bad_source"),
    "files is a number": (said({**held(), "files": 3}), "bad_source"),
    "a file without a CID": (said(held({"path": "x", "leaves": 1, "bitmap": "AQ=="})), "bad_source"),
    "a file with a bad CID": (said(held({**file(b"\x01", 1), "cid": "bafy"})), "bad_source"),
    "a file with a CID of 1 MB": (said(held({**file(b"\x01", 1), "cid": "b" * (1 << 20)})), "bad_source"),
    "bitmap too short": (said(held(file(b"\x01", 9))), "bad_source"),
    "bitmap too long": (said(held(file(b"\x01\x01", 8))), "bad_source"),
    "leaves negative": (said(held(file(b"", -1))), "bad_source"),
    "leaves a fraction": (said(held(file(b"\x01", 1.5))), "bad_source"),
    "leaves true": (said(held(file(b"\x01", True))), "bad_source"),
    "leaves beyond 64 bits": (said(held(file(b"\x01", 10**30))), "bad_source"),
    "bitmap not base64": (said(held({**file(b"\x01", 1), "bitmap": "!!!"})), "bad_source"),
    "bitmap in another alphabet": (said(held({**file(b"\xff\xff", 16), "bitmap": "__8="})), "bad_source"),
    "bitmap with spaces": (said(held({**file(b"\x01", 1), "bitmap": "AQ ==\n"})), "bad_source"),
    "10,001 files": (said(held(*[file(b"", 0)] * 10_001)), "bad_source"),
    "a page": (HTML, "bad_source"),
    "more than fits": (said(b" " * (MAX_HELD_BYTES + 1)), "block_too_large"),
    "announces more than fits": (
        Verbatim(f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {1 << 40}\r\n\r\n".encode()),
        "block_too_large",
    ),
    "an encoding": (Answer(200, b"x", (JSON, ("Content-Encoding", "br"))), "bad_source"),
    "401": (Answer(401), "auth_required"),
    "500": (Answer(500), "source_unavailable"),
    "cut": (Truncate(3), "truncated"),
    "silence": (Stall(3), "stalled"),
    "a trickle": (Drip(SILENCE_S / 10), "stalled"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_answer_is_a_typed_error(gateway: FakeGateway, name: str) -> None:
    gateway.held[ROOT] = held()
    gateway.have_fault, code = BAD[name]
    silence_s = SILENCE_S if code == "stalled" else PATIENCE_S
    peer = PeerSource(gateway.url, first_byte_timeout_s=silence_s, stall_timeout_s=silence_s)
    with pytest.raises(SourceUnavailable) as caught:
        await peer.held(ROOT)
    await peer.aclose()
    assert caught.value.code == code
    assert caught.value.detail["cid"] == str(ROOT)
    assert "\n" not in str(caught.value)


async def test_a_peer_bears_the_name_it_is_given(gateway: FakeGateway) -> None:
    assert PeerSource(gateway.url).name == gateway.url
    assert PeerSource(gateway.url, name="peer:12D3KooW").name == "peer:12D3KooW"
    with pytest.raises(InvalidConfig):
        PeerSource(gateway.url + "/with/a/path")
