"""Benchmark records: how they are measured, kept, and what "published" means."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import libipld
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from ipfs_accelerate_node.benchmarks import RecordShelf, publish, publish_kept
from ipfs_accelerate_node.benchmarks.measure import FEWEST, measure
from ipfs_accelerate_node.content.cid import DAG_PB, Cid
from ipfs_accelerate_node.errors import BadRequest, Conflict, InferenceFailed, NotFound
from ipfs_accelerate_node.inference.model import Inferred, Vector
from ipfs_accelerate_node.kubo import KuboClient
from ipfs_accelerate_node.kubo.endpoint import Endpoint
from ipfs_accelerate_node.records.canonical import Value
from ipfs_accelerate_node.records.envelope import BENCH_PREFIX, Sealed, seal
from tests.support.benchmarks import KEY, MODEL, ROOT, SMALL, Door, examples, record_of
from tests.support.kubo import KuboDaemon

# -- measuring


async def test_samples_are_whole_requests_after_a_warm_up() -> None:
    door = Door()
    found = await measure(SMALL, MODEL, door, examples)
    assert len(door.batches) == SMALL.warmup + SMALL.repeats
    assert all(batch == door.batches[0] and len(batch) == SMALL.batch for batch in door.batches)
    assert len(found.samples_ns) == SMALL.repeats
    assert all(type(sample) is int and sample > 0 for sample in found.samples_ns)
    assert (found.work, found.unit, found.tokens, found.phases_ns) == ((12,) * 3, "tokens", 12, {})


async def test_requests_of_others_are_noticed() -> None:
    looks = iter([False, False, True, False, False])  # before and after each, after only where before was quiet
    found = await measure(SMALL, MODEL, Door(), examples, working=lambda: next(looks))
    assert found.state.disturbed == 1


async def test_a_slow_model_is_asked_less_often() -> None:
    found = await measure(replace(SMALL, repeats=20, budget_s=0.0), MODEL, Door(), examples)
    assert len(found.samples_ns) == FEWEST


async def test_a_mock_is_never_measured() -> None:
    door = Door()
    with pytest.raises(BadRequest) as caught:
        await measure(SMALL, replace(MODEL, root="mock:embedding", implementation="MOCK"), door, examples)
    assert caught.value.code == "mock_not_measurable"
    assert not door.batches


def mocked(reply: Inferred) -> Inferred:
    return replace(reply, model=replace(reply.model, implementation="MOCK"))


def moved(reply: Inferred) -> Inferred:
    return replace(reply, model=replace(reply.model, device="cuda:0"))


def in_another_precision(reply: Inferred) -> Inferred:
    return replace(reply, model=replace(reply.model, precision="bf16"))


def not_finite(reply: Inferred) -> Inferred:
    return replace(reply, outputs=tuple(Vector(np.full(4, np.nan, np.float32)) for _ in reply.outputs))


def too_few(reply: Inferred) -> Inferred:
    return replace(reply, outputs=reply.outputs[:1])


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (mocked, BadRequest),
        (moved, InferenceFailed),
        (in_another_precision, InferenceFailed),
        (not_finite, InferenceFailed),
        (too_few, InferenceFailed),
    ],
)
async def test_answers_that_do_not_count(change: Callable[[Inferred], Inferred], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        await measure(SMALL, MODEL, Door(change), examples)


# -- keeping


def kept(cache: Path, record: dict[str, Value] | None = None) -> Sealed:
    sealed = seal(record or record_of(), KEY, BENCH_PREFIX)
    RecordShelf(cache).keep(sealed)
    return sealed


def test_blocks_are_named_by_their_cids_and_signed(tmp_path: Path) -> None:
    done = kept(tmp_path)
    block = (tmp_path / "records" / str(done.record_cid)).read_bytes()
    envelope = libipld.decode_dag_cbor((tmp_path / "records" / str(done.envelope_cid)).read_bytes())
    public = Ed25519PublicKey.from_public_bytes(envelope["key"][4:])
    public.verify(envelope["sig"], b"ipfs-accel-bench-v1:" + block)
    assert envelope["record"] == bytes(done.record_cid)
    assert libipld.decode_dag_cbor(block)["model"] == bytes(ROOT)


def test_records_are_listed_by_model_in_their_order(tmp_path: Path) -> None:
    shelf = RecordShelf(tmp_path)
    assert shelf.listing().records == ()
    for number, root in enumerate((ROOT, Cid.of(b"another", DAG_PB), ROOT), start=1):
        kept(tmp_path, {**record_of(seq=number), "model": root})
    assert [opened.record["seq"] for opened in shelf.listing().records] == [1, 2, 3]
    assert [opened.record["seq"] for opened in shelf.listing(ROOT).records] == [1, 3]
    assert all(opened.signer == KEY.peer_id for opened in shelf.listing().records)
    assert not shelf.listing().broken


def test_records_of_another_version_are_left_out_but_counted(tmp_path: Path) -> None:
    shelf = RecordShelf(tmp_path)
    for number, version in ((7, 1), (8, 3)):
        kept(tmp_path, {**record_of(seq=number), "v": version})
    assert (shelf.listing().records, shelf.listing().broken) == ((), ())
    assert shelf.next_seq() == 9


def test_a_record_that_was_tampered_with_is_not_shown(tmp_path: Path) -> None:
    done = kept(tmp_path)
    shelf = RecordShelf(tmp_path)
    for name in (str(done.record_cid), str(done.envelope_cid)):
        path = tmp_path / "records" / name
        whole = path.read_bytes()
        path.write_bytes(bytes([*whole[:-1], whole[-1] ^ 1]))
        listing = shelf.listing()
        assert not listing.records
        assert name in dict(listing.broken)
        path.write_bytes(whole)
    (tmp_path / "records" / str(done.record_cid)).unlink()
    assert not shelf.listing().records
    with pytest.raises(NotFound):
        shelf.sealed(done.envelope_cid)


def test_what_is_kept_can_be_published_later(tmp_path: Path) -> None:
    done = kept(tmp_path)
    assert RecordShelf(tmp_path).sealed(done.envelope_cid) == done


def test_the_counter_never_goes_back(tmp_path: Path) -> None:
    shelf = RecordShelf(tmp_path)
    assert [shelf.next_seq() for _ in range(3)] == [1, 2, 3]
    assert RecordShelf(tmp_path).next_seq() == 4
    shelf.keep(seal({"created": 1, "expires": 2, "seq": 41}, KEY, BENCH_PREFIX))
    for lost in (None, b"", b"-7", b"nonsense"):
        counter = tmp_path / "records" / "seq"
        counter.unlink() if lost is None else counter.write_bytes(lost)
        assert shelf.next_seq() == 42


# -- publishing


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KuboDaemon]:
    with KuboDaemon(tmp_path_factory.mktemp("kubo") / "repo") as running:
        yield running


class StopsBeforePinning(KuboClient):
    """A client whose daemon dies after it has taken the block and before it pins it."""

    daemon: KuboDaemon

    async def pin_add(
        self, cid: Cid, *, recursive: bool = True, name: str | None = None, timeout_s: float = 120.0
    ) -> None:
        self.daemon.stop()
        await super().pin_add(cid, recursive=recursive, name=name, timeout_s=timeout_s)


@asynccontextmanager
async def connected(daemon: KuboDaemon, kind: type[KuboClient] = KuboClient) -> AsyncIterator[KuboClient]:
    client = await kind.open(Endpoint(daemon.api_url), managed=False)
    try:
        yield client
    finally:
        await client.aclose()


@pytest.mark.kubo
async def test_published_is_pinned_and_the_cids_are_kubos(tmp_path: Path, daemon: KuboDaemon) -> None:
    sealed = kept(tmp_path)
    async with connected(daemon) as client:
        done = await publish_kept(sealed.envelope_cid, cache=tmp_path, client=client)
        assert done.published
        assert done.note is None or "not announced yet" in done.note  # this daemon knows nobody
        await publish(client, sealed)  # again does no harm
    assert RecordShelf(tmp_path).listing(published=True).records
    pins = daemon.cli("pin", "ls", "--type=direct")
    for name in (done.record_cid, done.envelope_cid):
        assert name in pins
        local = tmp_path / "records" / name
        assert daemon.cli("block", "put", "--cid-codec=dag-cbor", local) == name
    record = json.loads(daemon.cli("dag", "get", done.record_cid))
    assert record["model"] == {"/": str(ROOT)}
    assert record["samples_ns"] == done.record["samples_ns"]
    assert json.loads(daemon.cli("dag", "get", done.envelope_cid))["record"] == {"/": done.record_cid}


@pytest.mark.kubo
async def test_what_was_measured_on_a_busy_machine_stays_here(tmp_path: Path, daemon: KuboDaemon) -> None:
    sealed = kept(tmp_path, record_of(busy=True))
    async with connected(daemon) as client:
        with pytest.raises(Conflict) as caught:
            await publish_kept(sealed.envelope_cid, cache=tmp_path, client=client)
    assert caught.value.code == "machine_busy"
    assert str(sealed.record_cid) not in daemon.cli("pin", "ls", "--type=direct")


@pytest.mark.kubo
async def test_published_is_found_by_strangers(tmp_path: Path) -> None:
    sealed = kept(tmp_path)
    with ExitStack() as stack:
        hub = stack.enter_context(KuboDaemon(tmp_path / "hub", config={"Routing.Type": "dhtserver"}))
        ours, stranger = (
            stack.enter_context(KuboDaemon(tmp_path / name, config={"Routing.Type": "dht"}, bootstrap=[hub.addr]))
            for name in ("ours", "stranger")
        )
        ours.cli("swarm", "connect", hub.addr)
        async with connected(ours) as client:
            done = await publish_kept(sealed.envelope_cid, cache=tmp_path, client=client)
        assert (done.published, done.note) == (True, None)
        stranger.cli("swarm", "connect", hub.addr)
        for name in (done.record_cid, done.envelope_cid):
            assert ours.peer_id in stranger.cli("routing", "findprovs", "-n", "1", name)


@pytest.mark.kubo
async def test_killed_between_block_and_pin_is_not_published(tmp_path: Path, daemon: KuboDaemon) -> None:
    sealed = kept(tmp_path)
    async with connected(daemon, StopsBeforePinning) as client:
        assert isinstance(client, StopsBeforePinning)
        client.daemon = daemon
        done = await publish_kept(sealed.envelope_cid, cache=tmp_path, client=client)
    assert not done.published
    assert done.note is not None
    assert "not published" in done.note
    assert not RecordShelf(tmp_path).listing(published=True).records
    daemon.start()
    async with connected(daemon) as client:
        await publish(client, RecordShelf(tmp_path).sealed(sealed.envelope_cid))
    assert done.record_cid in daemon.cli("pin", "ls", "--type=direct")
