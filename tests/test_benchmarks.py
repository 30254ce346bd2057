"""Benchmark records: what is in them, what is not, how they are kept, and what "published" means."""

from __future__ import annotations

import functools
import getpass
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import libipld
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from ipfs_accelerate_node.benchmarks import RecordShelf, Workload, bench, publish
from ipfs_accelerate_node.content.cid import DAG_PB, Cid
from ipfs_accelerate_node.errors import BadRequest, InferenceFailed, NotFound
from ipfs_accelerate_node.inference.model import Embeddings, LoadedModel
from ipfs_accelerate_node.kubo import KuboClient
from ipfs_accelerate_node.kubo.endpoint import Endpoint
from ipfs_accelerate_node.records.envelope import BENCH_PREFIX, seal
from ipfs_accelerate_node.records.key import NodeKey
from ipfs_accelerate_node.store.types import Provenance, StoredModel
from tests.support.kubo import KuboDaemon

KEY = NodeKey(bytes(range(32)))
ROOT = Cid.of(b"a model's root", DAG_PB)
SMALL = Workload("embedding-2x4", batch=2, words=4, warmup=1, repeats=3, seed=7)
MODEL = LoadedModel(
    id="minilm",
    root=str(ROOT),
    names=("minilm",),
    device="cpu",
    engine="torch",
    precision="f32",
    implementation="REAL",
    source="local",
    task="embedding",
    width=4,
    max_tokens=256,
    state="ready",
    load_s=1.25,
    pid=1,
    versions={"torch": "2.15.0"},
    memory_bytes=123_456_789,
)
STORED = StoredModel(
    root=ROOT,
    path=Path("/somewhere/models/x"),
    size_bytes=1,
    file_count=1,
    names=("minilm",),
    pinned=True,
    public=True,
    provenance=Provenance("hf", "hf:org/name", "2026-01-01T00:00:00+00:00", hub_repo="org/name", hub_commit="0" * 40),
    last_used=1,
)


class Engine:
    """Answers a batch as MODEL does, or as the change to its answers says."""

    def __init__(self, change: Callable[[Embeddings], Embeddings] = lambda reply: reply) -> None:
        self.batches: list[list[str]] = []
        self._change = change

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        self.batches.append([*texts])
        vectors = np.ones((len(texts), 4), np.float32)
        return self._change(Embeddings(vectors, prompt_tokens=12, model=MODEL, seconds=0.001))


async def test_the_record_says_what_ran(tmp_path: Path) -> None:
    engine = Engine()
    done = await bench(MODEL, embed=engine.embed, model=STORED, key=KEY, cache=tmp_path, client=None, workload=SMALL)
    assert (done.signer, done.published, done.note) == (KEY.peer_id, False, None)
    record = done.record
    assert json.loads(json.dumps(record)) == record
    assert record["model"] == str(ROOT)
    assert (record["status"], record["engine"], record["device"]) == ("REAL", "torch", "cpu")
    assert record["hub"] == {"repo": "org/name", "commit": "0" * 40}
    assert record["workload"] == {
        "name": "embedding-2x4",
        "batch": 2,
        "words": 4,
        "warmup": 1,
        "repeats": 3,
        "seed": 7,
        "tokens": 12,
        "truncated": 0,
    }
    samples = record["samples_ns"]
    assert isinstance(samples, list)
    assert len(samples) == 3
    assert all(type(sample) is int and sample > 0 for sample in samples)
    assert (record["load_ms"], record["memory_bytes"], record["seq"]) == (1250, 123_456_789, 1)
    assert isinstance(record["created"], int)
    assert record["expires"] == record["created"] + 180 * 24 * 3600
    assert len(engine.batches) == 4
    assert engine.batches.count(SMALL.texts()) == 4


async def test_the_record_names_nobody(tmp_path: Path) -> None:
    done = await bench(MODEL, embed=Engine().embed, model=STORED, key=KEY, cache=tmp_path, client=None, workload=SMALL)
    block = (tmp_path / "records" / done.record_cid).read_bytes()
    personal = (socket.gethostname(), getpass.getuser(), str(tmp_path), str(STORED.path), str(Path.home()), "127.0.0.1")
    for text in personal:
        assert text.encode() not in block, text
    assert SMALL.texts()[0].encode() not in block


@pytest.mark.parametrize("stored", [replace(STORED, public=False), None])
async def test_a_private_repository_is_not_named(tmp_path: Path, stored: StoredModel | None) -> None:
    done = await bench(MODEL, embed=Engine().embed, model=stored, key=KEY, cache=tmp_path, client=None, workload=SMALL)
    assert "hub" not in done.record


async def test_blocks_are_named_by_their_cids_and_signed(tmp_path: Path) -> None:
    done = await bench(MODEL, embed=Engine().embed, model=None, key=KEY, cache=tmp_path, client=None, workload=SMALL)
    block = (tmp_path / "records" / done.record_cid).read_bytes()
    envelope = libipld.decode_dag_cbor((tmp_path / "records" / done.envelope_cid).read_bytes())
    public = Ed25519PublicKey.from_public_bytes(envelope["key"][4:])
    public.verify(envelope["sig"], b"ipfs-accel-bench-v1:" + block)
    assert envelope["record"] == bytes(Cid.parse(done.record_cid))
    assert libipld.decode_dag_cbor(block)["model"] == bytes(ROOT)


async def test_a_mock_is_never_measured(tmp_path: Path) -> None:
    engine = Engine()
    mock = replace(MODEL, root="mock:embedding", implementation="MOCK", engine="mock")
    with pytest.raises(BadRequest) as caught:
        await bench(mock, embed=engine.embed, model=None, key=KEY, cache=tmp_path, client=None)
    assert caught.value.code == "mock_not_measurable"
    assert not engine.batches
    assert not (tmp_path / "records").exists()


def mocked(reply: Embeddings) -> Embeddings:
    return replace(reply, model=replace(reply.model, implementation="MOCK"))


def moved(reply: Embeddings) -> Embeddings:
    return replace(reply, model=replace(reply.model, device="cuda:0"))


def not_finite(reply: Embeddings) -> Embeddings:
    return replace(reply, vectors=np.full((2, 4), np.nan, np.float32))


def too_few(reply: Embeddings) -> Embeddings:
    return replace(reply, vectors=reply.vectors[:1])


@pytest.mark.parametrize(
    ("change", "kind"),
    [(mocked, BadRequest), (moved, InferenceFailed), (not_finite, InferenceFailed), (too_few, InferenceFailed)],
)
async def test_answers_that_do_not_count(
    tmp_path: Path, change: Callable[[Embeddings], Embeddings], kind: type[Exception]
) -> None:
    with pytest.raises(kind):
        await bench(MODEL, embed=Engine(change).embed, model=None, key=KEY, cache=tmp_path, client=None, workload=SMALL)
    assert not (tmp_path / "records").exists()


def answered_by(model: LoadedModel, reply: Embeddings) -> Embeddings:
    return replace(reply, model=model)


async def test_records_are_listed_by_model_in_their_order(tmp_path: Path) -> None:
    shelf = RecordShelf(tmp_path)
    assert shelf.listing().records == ()
    other = replace(MODEL, root=str(Cid.of(b"another", DAG_PB)))
    for model in (MODEL, other, MODEL):
        engine = Engine(functools.partial(answered_by, model))
        await bench(model, embed=engine.embed, model=None, key=KEY, cache=tmp_path, client=None, workload=SMALL)
    assert [opened.record["seq"] for opened in shelf.listing().records] == [1, 2, 3]
    assert [opened.record["seq"] for opened in shelf.listing(ROOT).records] == [1, 3]
    assert all(opened.signer == KEY.peer_id for opened in shelf.listing().records)
    assert not shelf.listing().broken


async def test_a_record_that_was_tampered_with_is_not_shown(tmp_path: Path) -> None:
    done = await bench(MODEL, embed=Engine().embed, model=None, key=KEY, cache=tmp_path, client=None, workload=SMALL)
    shelf = RecordShelf(tmp_path)
    for name in (done.record_cid, done.envelope_cid):
        path = tmp_path / "records" / name
        whole = path.read_bytes()
        path.write_bytes(bytes([*whole[:-1], whole[-1] ^ 1]))
        listing = shelf.listing()
        assert not listing.records
        assert name in dict(listing.broken)
        path.write_bytes(whole)
    (tmp_path / "records" / done.record_cid).unlink()
    assert not shelf.listing().records
    with pytest.raises(NotFound):
        shelf.sealed(Cid.parse(done.envelope_cid))


async def test_what_is_kept_can_be_published_later(tmp_path: Path) -> None:
    done = await bench(MODEL, embed=Engine().embed, model=None, key=KEY, cache=tmp_path, client=None, workload=SMALL)
    sealed = RecordShelf(tmp_path).sealed(Cid.parse(done.envelope_cid))
    assert (str(sealed.record_cid), str(sealed.envelope_cid)) == (done.record_cid, done.envelope_cid)


def test_the_counter_never_goes_back(tmp_path: Path) -> None:
    shelf = RecordShelf(tmp_path)
    assert [shelf.next_seq() for _ in range(3)] == [1, 2, 3]
    assert RecordShelf(tmp_path).next_seq() == 4
    shelf.keep(seal({"created": 1, "expires": 2, "seq": 41}, KEY, BENCH_PREFIX))
    for lost in (None, b"", b"-7", b"nonsense"):
        counter = tmp_path / "records" / "seq"
        counter.unlink() if lost is None else counter.write_bytes(lost)
        assert shelf.next_seq() == 42


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
    async with connected(daemon) as client:
        done = await bench(
            MODEL, embed=Engine().embed, model=STORED, key=KEY, cache=tmp_path, client=client, workload=SMALL
        )
        assert done.published
        assert done.note is None or "not announced yet" in done.note  # this daemon knows nobody
        await publish(client, RecordShelf(tmp_path).sealed(Cid.parse(done.envelope_cid)))  # again does no harm
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
async def test_published_is_found_by_strangers(tmp_path: Path) -> None:
    with ExitStack() as stack:
        hub = stack.enter_context(KuboDaemon(tmp_path / "hub", config={"Routing.Type": "dhtserver"}))
        ours, stranger = (
            stack.enter_context(KuboDaemon(tmp_path / name, config={"Routing.Type": "dht"}, bootstrap=[hub.addr]))
            for name in ("ours", "stranger")
        )
        ours.cli("swarm", "connect", hub.addr)
        async with connected(ours) as client:
            done = await bench(
                MODEL, embed=Engine().embed, model=STORED, key=KEY, cache=tmp_path, client=client, workload=SMALL
            )
        assert (done.published, done.note) == (True, None)
        stranger.cli("swarm", "connect", hub.addr)
        for name in (done.record_cid, done.envelope_cid):
            assert ours.peer_id in stranger.cli("routing", "findprovs", "-n", "1", name)


@pytest.mark.kubo
async def test_killed_between_block_and_pin_is_not_published(tmp_path: Path, daemon: KuboDaemon) -> None:
    async with connected(daemon, StopsBeforePinning) as client:
        assert isinstance(client, StopsBeforePinning)
        client.daemon = daemon
        done = await bench(
            MODEL, embed=Engine().embed, model=STORED, key=KEY, cache=tmp_path, client=client, workload=SMALL
        )
    assert not done.published
    assert done.note is not None
    assert "not published" in done.note
    kept = RecordShelf(tmp_path).sealed(Cid.parse(done.envelope_cid))
    daemon.start()
    async with connected(daemon) as client:
        await publish(client, kept)
    assert done.record_cid in daemon.cli("pin", "ls", "--type=direct")
