"""What a node says of results: queued while Kubo is away, the index under its name, what was accepted pinned, and the
last index that revokes its key. With a real Kubo."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from ipfs_accelerate_node.benchmarks.exchange import Exchange
from ipfs_accelerate_node.benchmarks.figures import figures
from ipfs_accelerate_node.benchmarks.run import BenchResult
from ipfs_accelerate_node.benchmarks.schema import read_benchmark
from ipfs_accelerate_node.benchmarks.shelf import RecordShelf
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import BadContent, Unavailable
from ipfs_accelerate_node.kubo import KuboService
from ipfs_accelerate_node.kubo.calls import Feature
from ipfs_accelerate_node.peers.indexes import Indexes
from ipfs_accelerate_node.peers.publishing import Standing
from ipfs_accelerate_node.peers.results_store import ResultsStore
from ipfs_accelerate_node.records.canonical import decode
from ipfs_accelerate_node.records.envelope import Sealed
from ipfs_accelerate_node.records.key import NodeKey
from ipfs_accelerate_node.records.rendezvous import rendezvous
from tests.support import kubo as kubo_support
from tests.support.results import MODEL, claim, fake_peers, key, sealed, telling, until

managed = kubo_support.managed
kubo_factory = kubo_support.kubo_factory

pytestmark = [pytest.mark.kubo, pytest.mark.timeout(120)]

NOW = int(time.time())


class Here:
    """One exchange over a Kubo of its own, which is up only between `up` and the end."""

    def __init__(self, kubo: KuboService, cache: Path, own: NodeKey, *, consent: bool = False) -> None:
        self.kubo = kubo
        self.exchange = Exchange(cache, kubo, own, consent=consent)
        self.own = own
        self.cache = cache

    def keep(self, ns: int = 1_000_000, seq: int = 1) -> Sealed:
        made = sealed(self.own, created=NOW, ns=ns, seq=seq)
        RecordShelf(self.cache).keep(made)
        return made

    async def standing(self, entries: int) -> Standing:
        def look() -> Standing | None:
            found = self.exchange.publisher.standing()
            return found if found is not None and found.entries == entries else None

        found: Standing = await asyncio.to_thread(until, look)
        return found


def result(made: Sealed) -> BenchResult:
    record = decode(made.record_bytes)
    assert isinstance(record, dict)
    return BenchResult({}, figures(read_benchmark(record)), str(made.record_cid), str(made.envelope_cid), "")


@pytest.fixture
def here(managed: kubo_support.ManagedFactory, tmp_path: Path) -> Here:
    own = NodeKey(hashlib.sha256(b"here").digest())  # as the daemon of `managed`
    return Here(managed("here", features={Feature.PUBLISH}), tmp_path / "here", own)


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def test_queued_until_kubo_is_there_and_then_in_the_index(here: Here, stack: AsyncExitStack) -> None:
    made = here.keep()
    async with here.exchange:  # no Kubo yet
        settled = await here.exchange.settled(result(made))
        assert settled.note is not None
        assert "as soon as Kubo is there" in settled.note
        assert here.exchange.told(MODEL) == []
    await stack.enter_async_context(here.kubo)
    await stack.enter_async_context(here.exchange)  # the node starts again: the wish is still there
    standing = await here.standing(1)
    client = here.kubo.client
    assert standing.name
    for cid in (made.record_cid, made.envelope_cid, rendezvous("results", MODEL)[0], Cid.parse(standing.envelope)):
        assert await client.has_block(cid)
    assert await client.name_resolve(here.own.peer_id, timeout_s=20) == Cid.parse(standing.envelope)
    assert here.exchange.store.wanted() == []
    (told,) = here.exchange.told(MODEL)
    assert told.envelope_cid == made.envelope_cid

    other = ResultsStore(here.cache / "kubo")  # another node's, reading the same by its name
    indexes = Indexes(other, client, int(time.time()))
    assert await indexes.envelopes(here.own.peer_id) == [made.envelope_cid]
    found, lost = await indexes.records([made.envelope_cid], until=asyncio.get_running_loop().time() + 20)
    assert lost == []
    assert [(parcel.envelope, parcel.block) for parcel in found] == [(made.envelope_bytes, made.record_bytes)]


async def test_nothing_is_public_before_the_user_agreed(here: Here, stack: AsyncExitStack) -> None:
    here.keep()
    await stack.enter_async_context(here.kubo)
    await here.kubo.wait_ready(30)
    await stack.enter_async_context(here.exchange)
    made = sealed(key(1), created=NOW)
    async with fake_peers([telling([made])]) as urls:
        await here.exchange.results(MODEL, peers=urls)
    reason = await here.exchange.publisher.sync(here.kubo.client)
    assert reason == "nothing was published"
    assert here.exchange.publisher.standing() is None
    assert await here.kubo.client.has_block(made.record_cid)  # but what was accepted is pinned, for who knows its CID
    with pytest.raises(Unavailable):
        await here.kubo.client.name_resolve(here.own.peer_id, timeout_s=3)


async def test_what_was_accepted_is_seen_and_what_was_replaced_let_go(
    managed: kubo_support.ManagedFactory, tmp_path: Path, stack: AsyncExitStack
) -> None:
    here = Here(
        managed("here", features={Feature.PUBLISH}),
        tmp_path / "here",
        NodeKey(hashlib.sha256(b"here").digest()),
        consent=True,
    )
    await stack.enter_async_context(here.kubo)
    await here.kubo.wait_ready(30)
    await stack.enter_async_context(here.exchange)
    client, store = here.kubo.client, here.exchange.store
    old, new = claim(key(1), created=NOW), claim(key(1), created=NOW, seq=2)
    store.take([old])
    await here.exchange.publisher.sync(client)
    first = here.exchange.publisher.standing()
    assert first is not None
    index = json.dumps(await client.dag_get(Cid.parse(first.blocks[0])))
    assert str(old.envelope_cid) in index
    store.take([new])
    await here.exchange.publisher.sync(client)
    second = here.exchange.publisher.standing()
    assert second is not None
    assert second.seq > first.seq
    assert not await client.pin_rm(old.record_cid)  # let go already
    assert await client.pin_rm(new.record_cid)
    assert store.wanted() == []


async def test_a_kubo_of_the_users_gets_the_key_only_once_something_is_public(
    kubo_factory: kubo_support.KuboFactory, tmp_path: Path, stack: AsyncExitStack
) -> None:
    daemon = kubo_factory()
    (cache := tmp_path / "here").mkdir()
    here = Here(KuboService(mode="external", cache=cache, url=daemon.api_url), cache, key(5))
    await stack.enter_async_context(here.kubo)
    await here.kubo.wait_ready(30)
    await stack.enter_async_context(here.exchange)
    await here.exchange.publisher.sync(here.kubo.client)
    assert "ipfs-accelerate-node" not in daemon.cli("key", "list")
    made = here.keep()
    await here.exchange.settled(result(made))
    standing = await here.standing(1)
    assert "ipfs-accelerate-node" in daemon.cli("key", "list")
    assert await here.kubo.client.name_resolve(here.own.peer_id, timeout_s=20) == Cid.parse(standing.envelope)
    envelope = json.loads(daemon.cli("dag", "get", standing.envelope))
    assert json.loads(daemon.cli("dag", "get", envelope["record"]["/"]))["dial"] == daemon.peer_id


async def test_a_revoked_key_is_the_end_of_it(here: Here, stack: AsyncExitStack) -> None:
    made = here.keep()
    await stack.enter_async_context(here.kubo)
    await here.kubo.wait_ready(30)
    await stack.enter_async_context(here.exchange)
    await here.exchange.settled(result(made))
    await here.standing(1)
    await here.exchange.revoke()
    assert await here.exchange.publisher.sync(here.kubo.client) == "the key was revoked"
    other = ResultsStore(here.cache / "kubo")
    other.take([claim(here.own, created=NOW)])
    assert len(other.of(MODEL)) == 1
    with pytest.raises(BadContent) as refused:
        await Indexes(other, here.kubo.client, int(time.time())).envelopes(here.own.peer_id)
    assert refused.value.code == "key_revoked"
    assert other.of(MODEL) == []
