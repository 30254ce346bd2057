"""What strangers may send as records, indexes and lists (the catalogue's table E), where no other test has it already:
every bit of all three blocks, floods by one key and by many, chains without end, and lists of others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from ipfs_accelerate_node.benchmarks.exchange import Exchange
from ipfs_accelerate_node.benchmarks.schema import read_benchmark
from ipfs_accelerate_node.content.cid import DAG_CBOR, Cid
from ipfs_accelerate_node.errors import NodeError
from ipfs_accelerate_node.kubo import KuboService
from ipfs_accelerate_node.peers import results_rows
from ipfs_accelerate_node.peers.claims import open_claim
from ipfs_accelerate_node.peers.results_rows import MAX_PER_KEY
from ipfs_accelerate_node.peers.results_store import QUERY_LIMIT, ResultsStore
from ipfs_accelerate_node.records.canonical import decode, encode
from ipfs_accelerate_node.records.envelope import INDEX_PREFIX, seal
from ipfs_accelerate_node.records.index import MAX_BLOCKS, MAX_ENTRIES, RecordIndex, open_index, seal_index
from tests.support.results import MODEL, answer_of, claim, fake_peers, key, sealed, telling

NOW = int(time.time())
KEY = key(1)
RECORD = sealed(KEY, created=NOW)
LISTED = tuple(Cid.of(b"%d" % n, DAG_CBOR) for n in range(3))
INDEX = seal_index(RecordIndex(LISTED[:2], LISTED[2:], seq=5, created=NOW, expires=NOW + 3600), KEY)


def flips(block: bytes) -> Iterator[bytes]:
    for bit in range(8 * len(block)):
        changed = bytearray(block)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


def relinked(envelope: bytes, block: bytes) -> bytes:
    """The envelope with the link to another block: what a forger who has not the key can still make."""
    said = decode(envelope)
    assert isinstance(said, dict)
    return encode({**said, "record": Cid.of(block, DAG_CBOR)})


def refusals(opening: Callable[[bytes, bytes], object], envelope: bytes, block: bytes) -> dict[str, int]:
    """How often each reason was given for one flipped bit: in the envelope, in the block, and in the block with the
    envelope made to fit."""
    pairs = [
        *((changed, block) for changed in flips(envelope)),
        *((envelope, changed) for changed in flips(block)),
        *((relinked(envelope, changed), changed) for changed in flips(block)),
    ]
    found: dict[str, int] = {}
    for pair in pairs:
        with pytest.raises(NodeError) as refused:
            opening(*pair)
        found[refused.value.code] = found.get(refused.value.code, 0) + 1
    assert sum(found.values()) == 8 * (len(envelope) + 2 * len(block))
    return found


@pytest.mark.timeout(120)
def test_every_bit_of_a_record() -> None:
    def opening(envelope: bytes, block: bytes) -> object:
        return open_claim(envelope, block, read_benchmark, now=NOW)

    assert opening(RECORD.envelope_bytes, RECORD.record_bytes)
    found = refusals(opening, RECORD.envelope_bytes, RECORD.record_bytes)
    assert set(found) == {"bad_record", "bad_signature", "hash_mismatch"}
    assert found["hash_mismatch"] >= 8 * len(RECORD.record_bytes)
    assert found["bad_signature"] >= 8 * len(RECORD.record_bytes)  # whatever fits, was not signed


@pytest.mark.timeout(120)
def test_every_bit_of_an_index() -> None:
    made = INDEX.sealed

    def opening(envelope: bytes, block: bytes) -> object:
        return open_index(envelope, {Cid.of(block, DAG_CBOR): block}, now=NOW)

    assert opening(made.envelope_bytes, made.record_bytes)
    found = refusals(opening, made.envelope_bytes, made.record_bytes)
    assert set(found) == {"bad_record", "bad_signature"}
    assert found["bad_signature"] >= 8 * len(made.record_bytes)

    def lying(envelope: bytes, block: bytes) -> object:  # a daemon that gives other bytes under the name asked for
        return open_index(envelope, {made.record_cid: block}, now=NOW)

    for changed in flips(made.record_bytes):
        with pytest.raises(NodeError):
            lying(made.envelope_bytes, changed)


# -- chains and lists


def test_a_chain_without_end_is_read_so_far() -> None:
    """Each linked block lists one more and links the next: as many as its author likes."""
    blocks: dict[Cid, bytes] = {}
    following: Cid | None = None
    for number in range(10 * MAX_BLOCKS):
        block = encode(
            {"own": [Cid.of(b"x%d" % number, DAG_CBOR)], "seen": [], **({"next": following} if following else {})}
        )
        following = Cid.of(block, DAG_CBOR)
        blocks[following] = block
    record = decode(INDEX.sealed.record_bytes)
    assert isinstance(record, dict)
    made = seal({**record, "next": following}, KEY, INDEX_PREFIX)
    found = open_index(made.envelope_bytes, {**blocks, made.record_cid: made.record_bytes}, now=NOW)
    assert len(found.index.own) == 2 + MAX_BLOCKS


def test_pages_that_are_full_end_at_the_bound() -> None:
    page: list[Cid] = [Cid.of(b"y%d" % n, DAG_CBOR) for n in range(1200)]
    blocks: dict[Cid, bytes] = {}
    following: Cid | None = None
    for number in range(MAX_BLOCKS):
        listed = [*page, Cid.of(b"z%d" % number, DAG_CBOR)]
        block = encode(
            {"own": [*listed], "seen": [*listed], **({"next": following} if following else {})}, max_bytes=1 << 20
        )
        following = Cid.of(block, DAG_CBOR)
        blocks[following] = block
    record = decode(INDEX.sealed.record_bytes)
    assert isinstance(record, dict)
    made = seal({**record, "next": following}, KEY, INDEX_PREFIX)
    with pytest.raises(NodeError) as refused:  # a page over the size of a block is refused before it is parsed
        open_index(made.envelope_bytes, {**blocks, made.record_cid: made.record_bytes}, now=NOW)
    assert refused.value.code == "bad_record"
    assert MAX_ENTRIES == 10_000


async def test_peers_that_a_peer_names_are_not_asked(tmp_path: Path) -> None:
    asked: list[str] = []

    async def trap(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        return web.json_response({"benchmarks": []})

    async with fake_peers([trap]) as (elsewhere,):

        async def naming(_: web.Request) -> web.StreamResponse:
            others = [f"http://10.0.{n // 250}.{n % 250}:8090" for n in range(10_000)]
            lists = {"peers": [elsewhere, *others], "seen": others, "next": f"{elsewhere}/api/benchmarks"}
            return web.json_response({**answer_of([RECORD]), **lists}, headers={"Link": f'<{elsewhere}>; rel="next"'})

        async with (
            KuboService(mode="off", cache=tmp_path) as kubo,
            Exchange(tmp_path, kubo, key(99)) as exchange,
            fake_peers([naming]) as urls,
        ):
            found = await exchange.results(MODEL, peers=urls)
            again = await exchange.results(MODEL)
    assert (found.claims, asked) == (1, [])
    assert found.inquiry is not None
    assert len(found.inquiry.answers) == 1
    assert again.inquiry is not None
    assert (again.inquiry.answers, again.inquiry.failures) == ((), ())  # nor was the peer itself taken up


# -- floods


@pytest.mark.timeout(120)
async def test_a_key_that_contradicts_itself_has_no_vote_and_is_named(tmp_path: Path) -> None:
    two = [sealed(KEY, created=NOW, ns=ns) for ns in (1_000_000, 9_000_000)]
    honest = sealed(key(2), created=NOW, ns=5_000_000)
    async with (
        KuboService(mode="off", cache=tmp_path) as kubo,
        Exchange(tmp_path, kubo, key(99)) as exchange,
        fake_peers([telling([two[0], honest]), telling([two[1]])]) as urls,
    ):
        found = await exchange.results(MODEL, peers=urls)
        assert found.flagged == (KEY.peer_id,)
        (result,) = found.results
        assert (result.keys, result.signers) == (1, (key(2).peer_id,))
        assert found.claims == 3  # both of its own are kept, as evidence


@pytest.mark.timeout(120)
def test_ten_thousand_keys_with_one_record_each_hide_no_trusted_one(tmp_path: Path) -> None:
    trusted = claim(key(7), created=NOW - 86_400)
    store = ResultsStore(tmp_path, trusted=lambda: {trusted.signer})
    assert store.take([trusted]) == ["accepted"]
    crowd = [
        replace(
            trusted,
            envelope_cid=Cid.of(b"e%d" % n, DAG_CBOR),
            record_cid=Cid.of(b"r%d" % n, DAG_CBOR),
            key=b"%036d" % n,
            signer=f"12D3KooWSybil{n}",
            created=NOW + n % 100,
        )
        for n in range(10_000)
    ]
    began = time.perf_counter()
    for start in range(0, len(crowd), 1_000):
        assert set(store.take(crowd[start : start + 1_000])) == {"accepted"}
    print(f"\n10,000 keys taken in {time.perf_counter() - began:.1f} s")
    shown = store.of(MODEL)
    assert len(shown) == QUERY_LIMIT
    assert shown[0] == trusted
    assert len({one.key for one in shown}) == QUERY_LIMIT
    # not trusted any more, it is one of ten thousand
    assert trusted not in ResultsStore(tmp_path).of(MODEL)


def test_what_is_trusted_does_not_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results_rows, "MAX_KEYS", 20)
    monkeypatch.setattr(results_rows, "MAX_CLAIMS", 15)
    mine = claim(key(7), created=NOW - 86_400)
    store = ResultsStore(tmp_path, trusted=lambda: {mine.signer})
    store.take([mine])
    for n in range(100):
        other = replace(
            mine, envelope_cid=Cid.of(b"e%d" % n, DAG_CBOR), record_cid=Cid.of(b"r%d" % n, DAG_CBOR),
            key=b"%036d" % n, signer=f"12D3KooWSybil{n}", created=NOW + n,
        )  # fmt: skip
        store.take([other])
    assert store.count() == 15
    assert mine in store.of(MODEL)


@pytest.mark.timeout(120)
async def test_a_key_that_floods_at_every_question(tmp_path: Path) -> None:
    """A peer has a thousand new ones for every question; what is kept stays bounded, and the others' stay."""
    signed = [sealed(KEY, created=NOW, seq=n, device=f"cuda:{n}") for n in range(1, 1_201)]
    turn = 0

    async def flood(_: web.Request) -> web.StreamResponse:
        nonlocal turn
        turn += 1
        return web.json_response(answer_of(signed[100 * turn : 100 * turn + 1000]))

    async with (
        KuboService(mode="off", cache=tmp_path) as kubo,
        Exchange(tmp_path, kubo, key(99)) as exchange,
        fake_peers([flood, telling([sealed(key(2), created=NOW)])]) as urls,
    ):
        for _ in range(3):
            found = await exchange.results(MODEL, peers=urls)
        assert await asyncio.to_thread(exchange.store.count) == MAX_PER_KEY + 1
        assert found.inquiry is not None
        assert len(found.inquiry.answers) == 2
        assert any(key(2).peer_id in result.signers for result in found.results)
