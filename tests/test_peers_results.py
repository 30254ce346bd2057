"""Asking peers for results: at once, each by itself; who hangs, lies, floods or is gone is named and delays nobody."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from ipfs_accelerate_node.benchmarks.exchange import Exchange
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import BadRequest, Conflict, NotFound
from ipfs_accelerate_node.kubo import KuboService
from ipfs_accelerate_node.peers.book import MAX_PEERS, PeerBook
from ipfs_accelerate_node.peers.results import MAX_ASKED, MAX_OPENED, Patience
from ipfs_accelerate_node.peers.results_http import MAX_PARCELS
from ipfs_accelerate_node.records.envelope import BENCH_PREFIX, LIFETIME_S, MAP_PREFIX, seal
from tests.support.results import (
    MODEL,
    OTHER_MODEL,
    answer_of,
    claim,
    fake_peers,
    key,
    record,
    sealed,
    silent,
    telling,
)

NOW = int(time.time())
OWN = key(1000)


@pytest.fixture
async def exchange(tmp_path: Path) -> AsyncIterator[Exchange]:
    async with KuboService(mode="off", cache=tmp_path) as kubo, Exchange(tmp_path, kubo, OWN) as exchange:
        yield exchange


async def test_tp1_a_hundred_peers_ten_of_them_dead(exchange: Exchange) -> None:
    good = [telling([sealed(key(n), created=NOW, ns=n * 1_000)]) for n in range(1, 91)]
    async with fake_peers([*good, *([silent] * 5)]) as urls, fake_peers([silent] * 5) as gone:
        pass_by = [*urls, *gone]
        began = time.perf_counter()
        found = await exchange.results(MODEL, peers=pass_by)
        took_s = time.perf_counter() - began
    assert found.inquiry is not None
    assert len(found.inquiry.answers) == 90
    assert {f.peer for f in found.inquiry.failures} == {*urls[90:], *gone}
    (result,) = found.results
    assert result.keys == 90
    print(f"\nTP1: 100 peers, 10 dead: {took_s:.2f} s")
    assert took_s <= 2.5


async def test_the_gone_are_refused_at_once_and_named(exchange: Exchange) -> None:
    async with fake_peers([silent]) as urls:
        pass
    found = await exchange.results(MODEL, peers=urls)
    assert found.inquiry is not None
    (failure,) = found.inquiry.failures
    assert (failure.peer, failure.code) == (urls[0], "source_unavailable")


async def test_each_bad_record_is_counted_and_hides_no_good_one(exchange: Exchange) -> None:
    flipped = sealed(key(3), created=NOW)
    block = bytearray(flipped.record_bytes)
    block[-1] ^= 1
    records = [
        sealed(key(1), created=NOW),
        replace(flipped, record_bytes=bytes(block)),
        seal(record(created=NOW), key(4), MAP_PREFIX),
        sealed(key(5), created=NOW - 2 * LIFETIME_S),
        sealed(key(6), created=NOW + 3600),
        sealed(key(7), created=NOW, model=OTHER_MODEL),
        sealed(key(8), created=NOW, status="MOCK"),
        sealed(key(9), created=NOW, v=99),
        replace(sealed(key(10), created=NOW), record_bytes=b"x" * 70_000),
        sealed(OWN, created=NOW),  # our own, sent back to us
    ]
    async with fake_peers([telling(records)]) as urls:
        found = await exchange.results(MODEL, peers=urls)
        again = await exchange.results(MODEL, peers=urls)
    assert found.inquiry is not None
    assert again.inquiry is not None
    (answer,), (repeated,) = found.inquiry.answers, again.inquiry.answers
    assert {refusal.code: refusal.count for refusal in answer.refused} == {
        "hash_mismatch": 1, "bad_signature": 1, "record_expired": 1, "record_from_future": 1, "foreign_record": 1,
        "mock_record": 1, "record_version": 1, "bad_record": 1,
    }  # fmt: skip
    assert (answer.accepted, answer.known) == (1, 1)
    assert (repeated.accepted, repeated.known) == (0, 2)  # what is replayed changes nothing
    assert [result.keys for result in found.results] == [1]


async def test_floods_and_nonsense(exchange: Exchange) -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        reply = web.StreamResponse(headers={"Content-Type": "application/json"})
        await reply.prepare(request)
        while True:
            await reply.write(b" " * 65_536)

    async def long(_: web.Request) -> web.StreamResponse:
        one = answer_of([sealed(key(2), created=NOW)])["benchmarks"]
        assert isinstance(one, list)
        return web.json_response({"benchmarks": one * (3 * MAX_PARCELS)})

    async def page(_: web.Request) -> web.StreamResponse:
        return web.Response(text="<html>", content_type="text/html")

    async def deep(_: web.Request) -> web.StreamResponse:
        return web.Response(body=b"[" * 100_000, content_type="application/json")

    async def away(request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound("http://127.0.0.1:9/api/benchmarks")

    async def vanishing(request: web.Request) -> web.StreamResponse:
        reply = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "1000000"})
        await reply.prepare(request)
        await reply.write(b'{"benchmarks": [')
        assert request.transport is not None
        request.transport.abort()
        return reply

    answers = [endless, long, page, deep, away, telling([sealed(key(1), created=NOW)]), vanishing]
    async with fake_peers(answers) as urls:
        found = await exchange.results(MODEL, peers=urls)
    assert found.inquiry is not None
    codes = {urls.index(failure.peer): failure.code for failure in found.inquiry.failures}
    assert set(codes) == {0, 2, 3, 4, 6}
    assert codes[0] in ("block_too_large", "stalled")
    assert (codes[2], codes[3]) == ("bad_source", "bad_source")
    assert codes[4] in ("address_refused", "redirect_refused")
    assert codes[6] in ("truncated", "source_unavailable")
    taken = {urls.index(answer.peer): (answer.accepted, answer.known) for answer in found.inquiry.answers}
    assert taken == {1: (1, MAX_PARCELS - 1), 5: (1, 0)}
    assert found.inquiry.seconds < 5


async def test_without_tunnels_and_kubo_a_peer_id_is_a_failure_with_its_reason(exchange: Exchange) -> None:
    found = await exchange.results(MODEL, peers=[key(7).peer_id])
    assert found.inquiry is not None
    (failure,) = found.inquiry.failures
    assert failure.code == "no_tunnels"
    assert "Kubo" in failure.reason


async def test_nobody_is_asked_twice_and_not_too_many(tmp_path: Path) -> None:
    asked = 0

    async def counted(_: web.Request) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        return web.json_response({"benchmarks": []})

    async with KuboService(mode="off", cache=tmp_path) as kubo, fake_peers([counted]) as (url,):
        async with Exchange(tmp_path, kubo, OWN, patience=Patience(http=3.0)) as exchange:
            port = int(url.rpartition(":")[2])
            crowd = [f"http://127.0.0.{n % 200 + 2}:{port + n}" for n in range(2 * MAX_ASKED)]
            found = await exchange.results(MODEL, peers=[url, url, *crowd])
    assert asked == 1
    assert found.inquiry is not None
    assert len(found.inquiry.failures) + len(found.inquiry.answers) == MAX_ASKED


@pytest.mark.timeout(90)
async def test_crowds_that_flood_delay_nobody(exchange: Exchange) -> None:
    """20 peers with 1,000 records each (of the same few, so that the test signs little), and an honest one."""
    flood = telling([sealed(key(n), created=NOW, seq=n) for n in range(1, 11)] * (MAX_PARCELS // 10))
    async with fake_peers([*[flood] * 20, telling([sealed(key(50), created=NOW)])]) as urls:
        found = await exchange.results(MODEL, peers=urls)
    assert found.inquiry is not None
    assert found.inquiry.failures == ()
    (honest,) = [answer for answer in found.inquiry.answers if answer.peer == urls[-1]]
    assert honest.accepted == 1
    refusals = [answer.refused[0] for answer in found.inquiry.answers if answer.refused]
    assert {(refusal.code, refusal.count) for refusal in refusals} == {
        ("answer_too_long", MAX_PARCELS - MAX_OPENED // len(urls))
    }


async def test_who_leaves_ends_the_question(exchange: Exchange) -> None:
    began = asyncio.Event()

    async def hang(_: web.Request) -> web.StreamResponse:
        began.set()
        return await silent(_)

    async with fake_peers([hang]) as urls:
        asking = asyncio.create_task(exchange.results(MODEL, peers=urls))
        await began.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking


async def test_what_was_accepted_is_told_on_with_its_blocks(exchange: Exchange) -> None:
    made = sealed(key(1), created=NOW)
    async with fake_peers([telling([made])]) as urls:
        await exchange.results(MODEL, peers=urls)
    (told,) = exchange.told(MODEL)
    assert (told.seen, told.signer) == (True, key(1).peer_id)
    assert (told.parcel.envelope, told.parcel.block) == (made.envelope_bytes, made.record_bytes)
    assert exchange.told(OTHER_MODEL) == []
    assert exchange.told(None) == []
    offline = await exchange.results(MODEL, ask=False)
    assert (offline.inquiry, offline.claims) == (None, 1)


async def test_of_a_private_model_nothing_is_told_on(tmp_path: Path) -> None:
    def check(root: Cid) -> None:
        raise Conflict("private") if root == MODEL else NotFound("not here")

    async with (
        KuboService(mode="off", cache=tmp_path) as kubo,
        Exchange(tmp_path, kubo, OWN, check=check) as exchange,
    ):
        other = claim(key(1), created=NOW, seq=2, model=OTHER_MODEL)
        exchange.store.take([claim(key(1), created=NOW), other])
        assert exchange.told(MODEL) == []
        assert [told.envelope_cid for told in exchange.told(OTHER_MODEL)] == [other.envelope_cid]
        assert exchange.store.envelopes(10, without={MODEL}) == [other.envelope_cid]
        assert (await exchange.results(MODEL, ask=False)).claims == 1


async def test_a_record_signed_twice_over_is_one_record(exchange: Exchange) -> None:
    made = sealed(key(1), created=NOW)
    assert seal(record(created=NOW), key(1), BENCH_PREFIX) == made
    async with fake_peers([telling([made, made]), telling([made])]) as urls:
        found = await exchange.results(MODEL, peers=urls)
    assert found.claims == 1


# -- models that nobody has


@pytest.fixture
async def nowhere(tmp_path: Path) -> AsyncIterator[Exchange]:
    """An exchange of a node that has no model itself."""
    async with (
        KuboService(mode="off", cache=tmp_path) as kubo,
        Exchange(tmp_path, kubo, OWN, here=lambda root: False) as exchange,
    ):
        yield exchange


async def test_what_is_claimed_of_a_model_that_nobody_has_is_shown_and_not_ranked(nowhere: Exchange) -> None:
    async def lies(_: web.Request) -> web.StreamResponse:
        return web.Response(body=b"another block", content_type="application/vnd.ipld.raw")

    claims = [sealed(key(n), created=NOW + n, ns=n * 1_000_000) for n in (1, 2)]
    async with fake_peers([telling(claims), silent], models=False) as urls:
        found = await nowhere.results(MODEL, peers=urls)
    assert not found.confirmed
    assert (found.claims, found.results) == (2, ())
    (result,) = found.unconfirmed
    assert result.keys == 2
    async with fake_peers([telling([])], models=False, more={"/ipfs/{cid}": lies}) as urls:  # bytes of something else
        assert not (await nowhere.results(MODEL, peers=urls)).confirmed
    assert not (await nowhere.results(MODEL, ask=False)).confirmed

    async with fake_peers([telling([]), telling([])], models=False) as without, fake_peers([telling([])]) as (having,):
        found = await nowhere.results(MODEL, peers=[*without, having])
    assert found.confirmed
    assert ([result.keys for result in found.results], found.unconfirmed) == ([2], ())
    assert (await nowhere.results(MODEL, ask=False)).confirmed  # which is kept
    other = sealed(key(1), created=NOW, seq=2, model=OTHER_MODEL)
    async with fake_peers([telling([other])], models=False) as urls:
        assert not (await nowhere.results(OTHER_MODEL, peers=urls)).confirmed


async def test_who_hangs_when_asked_for_the_model_delays_nobody(tmp_path: Path) -> None:
    patience = Patience(http=1.0)
    async with (
        KuboService(mode="off", cache=tmp_path) as kubo,
        Exchange(tmp_path, kubo, OWN, here=lambda root: False, patience=patience) as exchange,
        fake_peers([telling([])] * 20, models=False, more={"/ipfs/{cid}": silent}) as slow,
        fake_peers([telling([sealed(key(1), created=NOW)])]) as (having,),
    ):
        began = time.perf_counter()
        found = await exchange.results(MODEL, peers=[having, *slow])
        assert found.confirmed
        assert time.perf_counter() - began < 4 * patience.http
        exchange.store.note_confirmed(MODEL, NOW - 31 * 24 * 3600)  # too long ago
        assert not (await exchange.results(MODEL, ask=False)).confirmed


# -- whom to ask


def book(cache: Path, *configured: str, tunnels: bool = True) -> PeerBook:
    return PeerBook(cache, configured, own=OWN.peer_id, tunnels=tunnels)


def test_added_peers_stay(tmp_path: Path) -> None:
    first = book(tmp_path, "http://127.0.0.1:1")
    assert first.add("http://Peer.example:8090/") == "http://peer.example:8090"
    assert first.add(f"/p2p/{key(1).peer_id}", trust=True) == key(1).peer_id
    first.add("http://127.0.0.1:1")
    again = book(tmp_path, "http://127.0.0.1:1")
    assert list(again) == ["http://127.0.0.1:1", "http://peer.example:8090", key(1).peer_id]
    assert again.trusted == {key(1).peer_id}
    assert again.remove(key(1).peer_id) == key(1).peer_id
    assert book(tmp_path).trusted == frozenset()
    with pytest.raises(NotFound):
        again.remove(key(1).peer_id)
    with pytest.raises(BadRequest, match="configuration"):
        book(tmp_path / "..", "http://127.0.0.1:2").remove("http://127.0.0.1:2")


@pytest.mark.parametrize("text", ["", "peer", "ftp://a", "http://u:p@a", "http://a/path", "12D3KooWbad", OWN.peer_id])
def test_what_is_no_peer(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadRequest):
        book(tmp_path).add(text)


def test_bounds_of_the_book(tmp_path: Path) -> None:
    full = book(tmp_path)
    (tmp_path / "peers.json").write_text("{")
    assert list(book(tmp_path)) == []
    with pytest.raises(BadRequest):
        full.add("http://a.example", trust=True)
    with pytest.raises(BadRequest):
        book(tmp_path, tunnels=False).add(key(1).peer_id)
    assert MAX_PEERS == 256


def test_the_list_of_keys(tmp_path: Path) -> None:
    def known() -> PeerBook:
        return PeerBook(tmp_path, (), own=key(2).peer_id, tunnels=False, allowed=(key(2).peer_id,))

    first = known()
    assert first.allow(f"/p2p/{key(3).peer_id}") == key(3).peer_id
    first.add("http://a.example")
    assert known().allowed == {key(3).peer_id, key(2).peer_id}
    assert known().deny(key(3).peer_id) == key(3).peer_id
    assert first.added == ("http://a.example",)
    with pytest.raises(BadRequest, match="configuration"):
        known().deny(key(2).peer_id)
    with pytest.raises(NotFound):
        known().deny(key(3).peer_id)
    for text in ("http://a.example", "", "Qm" + "a" * 44, "12D3KooW" + "z" * 43):
        with pytest.raises(BadRequest):
            known().allow(text)
