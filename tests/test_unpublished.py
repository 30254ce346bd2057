"""Records that nobody was told of, and those of a key that is lost: who sees what, by which surface."""

from __future__ import annotations

import asyncio
import hashlib
import time
from pathlib import Path

import pytest

from ipfs_accelerate_node.benchmarks.exchange import Exchange
from ipfs_accelerate_node.benchmarks.shelf import RecordShelf
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.kubo import KuboService
from ipfs_accelerate_node.kubo.calls import Feature
from ipfs_accelerate_node.records.envelope import Sealed
from ipfs_accelerate_node.records.index import LAST_SEQ
from ipfs_accelerate_node.records.key import NodeKey
from ipfs_accelerate_node.store import Provenance
from ipfs_accelerate_node.store.ingest import ingest
from tests.support import kubo as kubo_support
from tests.support.peers import listener
from tests.support.results import MODEL, claim, key, sealed
from tests.support.running import Running, model, running

managed = kubo_support.managed

NOW = int(time.time())


async def kept(here: Running, root: str, seq: int) -> Sealed:
    made = sealed(here.node.key, created=NOW, seq=seq, model=Cid.parse(root))
    await asyncio.to_thread(RecordShelf(here.node.config.cache).keep, made)
    return made


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_what_nobody_was_told_of_is_the_users_alone(tmp_path: Path, host: str) -> None:
    """Loopback, and an address that others reach, opened to all with ``share``; without a key, and with one of each
    scope that is not the user's own."""
    async with running(tmp_path / "cache", host=host, share=True) as here, listener(here) as port:
        root = (await here.node.add(model(tmp_path / "open", "x"), name="open")).root
        told, secret = await kept(here, root, 1), await kept(here, root, 2)
        await asyncio.to_thread(RecordShelf(here.node.config.cache).note_published, told.envelope_cid)
        keys = [None, *(here.keys.create((scope,), name=scope)[1] for scope in ("peer", "infer", "pin", "metrics"))]
        for path in ("/api/benchmarks", f"/api/benchmarks?model={root}", "/api/benchmarks?model=open"):
            for held in keys:
                reply = await here.ask("GET", path, key=held)
                assert reply.status == 200
                assert [one["envelope_cid"] for one in reply.json["benchmarks"]] == [str(told.envelope_cid)]
                assert str(secret.record_cid).encode() not in reply.body
            own = (await here.admin("GET", path)).json["benchmarks"]
            assert [(one["envelope_cid"], one["state"]) for one in own] == [
                (str(told.envelope_cid), "published"),
                (str(secret.envelope_cid), "here"),
            ]
        async with here.session.get(f"http://127.0.0.1:{port}/api/benchmarks?model={root}") as answer:
            assert str(secret.record_cid) not in await answer.text()


async def test_a_name_of_a_private_model_means_nothing_to_strangers(tmp_path: Path) -> None:
    async with running(tmp_path / "cache") as here:
        provenance = Provenance(kind="hf", reference="org/gated", at="2026-01-01T00:00:00+00:00")
        folder = model(tmp_path / "gated", "one's own ")
        await asyncio.to_thread(ingest, here.node.store, folder, name="gated", public=False, provenance=provenance)
        known, unknown = [await here.ask("GET", f"/api/benchmarks?model={name}") for name in ("gated", "no-such")]
        assert (known.status, unknown.status) == (404, 404)
        assert known.json["code"] == unknown.json["code"]
        assert (await here.admin("GET", "/api/benchmarks?model=gated")).status == 200


def test_the_claims_of_a_revoked_key_are_named_and_not_counted(tmp_path: Path) -> None:
    async def looked() -> None:
        async with (
            KuboService(mode="off", cache=tmp_path) as kubo,
            Exchange(tmp_path, kubo, key(99)) as exchange,
        ):
            exchange.store.take([claim(key(1), created=NOW), claim(key(2), created=NOW, ns=3_000_000)])
            lost = key(1).public
            exchange.store.note_index(lost, LAST_SEQ, Cid.of(b"the last index"), revoked=True)
            found = await exchange.results(MODEL, ask=False)
            assert found.revoked == (key(1).peer_id,)
            (result,) = found.results
            assert (result.keys, result.signers) == (1, (key(2).peer_id,))
            assert [told.signer for told in exchange.told(MODEL)] == [key(2).peer_id]
            exchange.store.note_index(lost, 5, Cid.of(b"an older one"), revoked=False)
            assert (await exchange.results(MODEL, ask=False)).revoked == (key(1).peer_id,)

    asyncio.run(looked())


@pytest.mark.kubo
@pytest.mark.timeout(120)
async def test_a_node_that_revoked_its_key_tells_nothing_that_it_signed(
    managed: kubo_support.ManagedFactory, tmp_path: Path
) -> None:
    own = NodeKey(hashlib.sha256(b"here").digest())  # as the daemon of `managed`
    kubo = managed("here", features={Feature.PUBLISH})
    cache = tmp_path / "here"
    async with kubo:
        await kubo.wait_ready(30)
        async with Exchange(cache, kubo, own) as exchange:
            made = sealed(own, created=NOW)
            shelf = RecordShelf(cache)
            shelf.keep(made)
            shelf.note_published(made.envelope_cid)
            exchange.store.take([claim(key(2), created=NOW)])
            assert {told.signer for told in exchange.told(MODEL)} == {own.peer_id, key(2).peer_id}
            standing = await exchange.revoke()
            assert (standing.revoked, standing.seq) == (True, LAST_SEQ)
            assert {told.signer for told in exchange.told(MODEL)} == {key(2).peer_id}
            assert await kubo.client.name_resolve(own.peer_id, timeout_s=20) == Cid.parse(standing.envelope)
