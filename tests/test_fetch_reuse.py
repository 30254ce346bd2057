"""What is not fetched: leaves that another model holds, what an earlier try brought, twins, what is inline."""

from __future__ import annotations

import random
import resource
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from ipfs_accelerate_node.content.build import UNIXFS_V1_2025
from ipfs_accelerate_node.content.cid import DAG_PB, RAW, Cid
from ipfs_accelerate_node.errors import IntegrityError, NoSource, SourceUnavailable, Unavailable
from ipfs_accelerate_node.fetch import Fetched, Fetcher
from ipfs_accelerate_node.fetch.landing import MAX_OPEN_FILES
from ipfs_accelerate_node.sources import GatewaySource, KuboSource
from ipfs_accelerate_node.sources.source import Abilities
from ipfs_accelerate_node.store import Store
from tests.support.dags import Blocks, put_directory, put_file, put_leaf, put_raw
from tests.support.gateway import FakeGateway, SmallModel, small_model

RANDOM = random.Random(5)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "cache") as opened:
        yield opened


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as opened:
        yield opened


async def serve(stack: AsyncExitStack, blocks: Blocks) -> tuple[FakeGateway, GatewaySource]:
    gateway = await stack.enter_async_context(FakeGateway(blocks))
    source = GatewaySource(
        gateway.url, first_byte_timeout_s=10, stall_timeout_s=10, abilities=Abilities(ranges=False, cars=False)
    )
    stack.push_async_callback(source.aclose)
    return gateway, source


async def fetch(store: Store, root: Cid, source: GatewaySource) -> Fetched:
    return await Fetcher(store).fetch(root, [source], reference=str(root))


def holds(fetched: Fetched, files: Mapping[str, bytes]) -> bool:
    return all((fetched.model.path / path).read_bytes() == data for path, data in files.items())


def tune(model: SmallModel, path: str, at: int) -> SmallModel:
    """A fine-tune: one byte of one file is other."""
    data = bytearray(model.files[path])
    data[at] ^= 1
    return small_model({**model.files, path: bytes(data)})


async def test_a_fine_tune_fetches_only_what_changed(store: Store, stack: AsyncExitStack) -> None:
    base = small_model({"model.bin": RANDOM.randbytes(64 * 50), "vocab.txt": RANDOM.randbytes(640), "c.json": b"{}"})
    tuned = tune(base, "model.bin", 64 * 20 + 3)
    gateway, source = await serve(stack, {**base.blocks, **tuned.blocks})
    await fetch(store, base.root, source)
    gateway.asked.clear()
    fetched = await fetch(store, tuned.root, source)
    assert holds(fetched, tuned.files)
    assert set(gateway.asked) == set(tuned.blocks) - set(base.blocks)
    assert fetched.bytes_fetched == 64
    assert fetched.bytes_copied == fetched.bytes_total - 64


async def test_a_leaf_of_a_corrupt_file_is_fetched_instead(store: Store, stack: AsyncExitStack) -> None:
    base = small_model({"model.bin": RANDOM.randbytes(64 * 10)})
    tuned = tune(base, "model.bin", 5)
    _, source = await serve(stack, {**base.blocks, **tuned.blocks})
    await fetch(store, base.root, source)
    blob = next((store.root / "blobs").iterdir())
    blob.chmod(0o600)
    data = bytearray(blob.read_bytes())
    data[64 * 4] ^= 1
    blob.write_bytes(data)
    blob.chmod(0o400)
    fetched = await fetch(store, tuned.root, source)
    assert holds(fetched, tuned.files)
    assert fetched.bytes_fetched > 64


async def test_a_leaf_that_occurs_often_is_fetched_once(store: Store, stack: AsyncExitStack) -> None:
    model = small_model({"zeros.bin": bytes(64 * 30), "more.bin": bytes(64 * 20) + b"end", "same.bin": bytes(64 * 30)})
    gateway, source = await serve(stack, model.blocks)
    fetched = await fetch(store, model.root, source)
    assert holds(fetched, model.files)
    assert set(gateway.asked.values()) == {1}
    assert fetched.bytes_fetched + fetched.bytes_copied == fetched.bytes_total


async def test_a_root_that_is_a_file(store: Store, stack: AsyncExitStack) -> None:
    model = small_model({"model.bin": RANDOM.randbytes(64 * 9)})
    root = model.plan.files[0].cid
    _, source = await serve(stack, model.blocks)
    fetched = await fetch(store, root, source)
    assert (fetched.model.path / str(root)).read_bytes() == model.files["model.bin"]


async def test_a_root_that_is_one_leaf(store: Store, stack: AsyncExitStack) -> None:
    root = Cid.of(b"only these bytes")
    gateway, source = await serve(stack, {root: b"only these bytes"})
    fetched = await fetch(store, root, source)
    assert (fetched.model.path / str(root)).read_bytes() == b"only these bytes"
    assert gateway.requests == 1


async def test_an_inline_root_asks_nobody(store: Store, stack: AsyncExitStack) -> None:
    root = Cid(1, RAW, bytes([0, 5]) + b"hello")
    gateway, source = await serve(stack, {})
    fetched = await fetch(store, root, source)
    assert (fetched.model.path / str(root)).read_bytes() == b"hello"
    assert gateway.requests == 0


async def test_inline_leaves_are_not_asked_for(store: Store, stack: AsyncExitStack) -> None:
    blocks: Blocks = {}
    inline = Cid(1, RAW, bytes([0, 5]) + b"hello")
    file, _ = put_file(blocks, [(inline, 5), put_raw(blocks, b" world")])
    root = put_directory(blocks, [(b"greeting.txt", file), (b"inline.txt", inline)])
    gateway, source = await serve(stack, blocks)
    fetched = await fetch(store, root, source)
    assert holds(fetched, {"greeting.txt": b"hello world", "inline.txt": b"hello"})
    assert inline.canonical not in gateway.asked


async def test_an_empty_directory_and_empty_files(store: Store, stack: AsyncExitStack) -> None:
    blocks: Blocks = {}
    empty_pb, _ = put_file(blocks, [])
    nothing = put_directory(blocks, [])
    root = put_directory(blocks, [(b"a", empty_pb), (b"b", put_raw(blocks, b"")[0]), (b"d", nothing)])
    _, source = await serve(stack, blocks)
    fetched = await fetch(store, root, source)
    assert holds(fetched, {"a": b"", "b": b""})
    assert (fetched.model.path / "d").is_dir()


def cid_v0_file(data: bytes, chunk_bytes: int, blocks: Blocks, kind: int = 2) -> Cid:
    """What `ipfs add` makes by default: dag-pb leaves, three levels here, addressed by CIDv0."""
    parts = [put_leaf(blocks, data[at : at + chunk_bytes], kind) for at in range(0, len(data), chunk_bytes)]
    while len(parts) > 1:
        parts = [put_file(blocks, parts[at : at + 4]) for at in range(0, len(parts), 4)]
    return parts[0][0]


def as_v0(cid: Cid) -> Cid:
    return Cid(0, DAG_PB, cid.multihash)


@pytest.mark.parametrize("kind", [2, 0], ids=["file leaves", "raw-typed leaves"])
async def test_a_cid_v0_dag_with_dag_pb_leaves(store: Store, stack: AsyncExitStack, kind: int) -> None:
    blocks: Blocks = {}
    data = RANDOM.randbytes(100 * 33 + 7)
    file = cid_v0_file(data, 100, blocks, kind)
    root = put_directory(blocks, [(b"model.bin", file), (b"small.txt", put_leaf(blocks, b"small")[0])])
    gateway, source = await serve(stack, blocks)
    fetched = await fetch(store, as_v0(root), source)
    assert holds(fetched, {"model.bin": data, "small.txt": b"small"})
    assert gateway.asked == dict.fromkeys(blocks, 1)
    for cid, block in blocks.items():
        assert store.block(cid) == block, "every block can be served as it was"


@pytest.mark.parametrize("kind", [2, 0], ids=["file leaves", "raw-typed leaves"])
async def test_dag_pb_leaves_of_an_earlier_run_are_not_fetched_again(
    tmp_path: Path, stack: AsyncExitStack, kind: int
) -> None:
    blocks: Blocks = {}
    data = RANDOM.randbytes(100 * 33 + 7)
    root = cid_v0_file(data, 100, blocks, kind)
    gateway, source = await serve(stack, blocks)
    gone = [cid for cid, block in blocks.items() if len(block) < 130][20]
    kept = gateway.blocks.pop(gone)
    with Store.open(tmp_path / "cache") as store, pytest.raises(NoSource):
        await fetch(store, root, source)
    gateway.blocks[gone] = kept
    gateway.asked.clear()
    with Store.open(tmp_path / "cache") as store:
        fetched = await fetch(store, root, source)
        assert (fetched.model.path / str(root)).read_bytes() == data
    assert set(gateway.asked) == {gone}


async def test_raw_leaves_of_an_earlier_run_are_not_fetched_again(tmp_path: Path, stack: AsyncExitStack) -> None:
    model = small_model({"model.bin": RANDOM.randbytes(64 * 40), "c.json": b"{}"})
    gateway, source = await serve(stack, model.blocks)
    gone = list(model.leaves)[25]
    kept = gateway.blocks.pop(gone)
    with Store.open(tmp_path / "cache") as store, pytest.raises(NoSource):
        await fetch(store, model.root, source)
    gateway.blocks[gone] = kept
    gateway.asked.clear()
    with Store.open(tmp_path / "cache") as store:
        fetched = await fetch(store, model.root, source)
        assert holds(fetched, model.files)
    assert set(gateway.asked) == {gone}
    assert fetched.bytes_fetched == 64


async def test_more_files_than_may_be_open(store: Store, stack: AsyncExitStack) -> None:
    model = small_model({f"{i:04}.bin": RANDOM.randbytes(130) for i in range(MAX_OPEN_FILES + 40)})
    _, source = await serve(stack, model.blocks)
    assert holds(await fetch(store, model.root, source), model.files)


async def test_everything_here_but_the_model_needs_no_source(store: Store, stack: AsyncExitStack) -> None:
    model = small_model({"model.bin": RANDOM.randbytes(64 * 10)})
    both = small_model({**model.files, "x.bin": b"x"})
    _, source = await serve(stack, {**both.blocks, **model.blocks})
    await fetch(store, both.root, source)
    for cid, block in model.nodes.items():
        store.keep_node(cid, block)
    fetched = await Fetcher(store).fetch(model.root, [], reference="x")
    assert holds(fetched, model.files)
    assert (fetched.bytes_fetched, fetched.bytes_copied) == (0, 640)


async def test_memory_does_not_grow_with_the_model(
    store: Store, stack: AsyncExitStack, figure: Callable[[str], None]
) -> None:
    """96 MiB through a window of 16 leaves of 1 MiB each, with the gateway in this process too."""
    blocks: Blocks = {}
    size = UNIXFS_V1_2025.chunk_bytes
    files = [put_file(blocks, [put_raw(blocks, RANDOM.randbytes(64) * (size // 64)) for _ in range(32)]) for _ in "abc"]
    root = put_directory(blocks, [(b"%d.bin" % i, cid) for i, (cid, _) in enumerate(files)])
    _, source = await serve(stack, blocks)
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fetched = await fetch(store, root, source)
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
    assert fetched.bytes_fetched == 96 << 20
    figure(f"RSS grew by {grown_kib >> 10} MiB while 96 MiB were fetched")
    assert grown_kib <= 64 << 10


class Client:
    """What a Kubo source uses of a Kubo client."""

    def __init__(self, blocks: Mapping[Cid, bytes]) -> None:
        self.blocks = dict(blocks)
        self.brought: set[Cid] = set()
        self.most_brought = 0
        self.asked: Counter[Cid] = Counter()
        self.fault: Exception | None = None

    async def block_get(self, cid: Cid, *, timeout_s: float, offline: bool = False) -> bytes:
        if self.fault is not None:
            raise self.fault
        self.asked[cid] += 1
        self.brought.add(cid)
        self.most_brought = max(self.most_brought, len(self.brought))
        return self.blocks[cid]

    async def block_rm(self, cids: Sequence[Cid]) -> list[Cid]:
        if self.fault is not None:
            raise self.fault
        self.brought -= set(cids)
        return []


async def test_kubo_is_a_source_whose_copies_go_as_soon_as_ours_are_durable(store: Store) -> None:
    model = small_model({"model.bin": RANDOM.randbytes(64 * 20), "c.json": b"{}"})
    client = Client(model.blocks)
    source = KuboSource(client, timeout_s=1)  # type: ignore[arg-type]  # the two calls that it makes
    fetched = await Fetcher(store).fetch(model.root, [source], reference="x")
    assert holds(fetched, model.files)
    assert client.brought == set(model.nodes), "every leaf was dropped there"
    assert [(s.source, s.kind) for s in fetched.sources] == [("kubo", "kubo")]


async def test_kubo_going_away_is_told_as_such(store: Store) -> None:
    model = small_model({"model.bin": RANDOM.randbytes(64 * 3)})
    client = Client(model.blocks)
    client.fault = Unavailable("Kubo is gone", code="kubo_unavailable")
    source = KuboSource(client, timeout_s=1)  # type: ignore[arg-type]  # the two calls that it makes
    with pytest.raises(NoSource) as caught:
        await Fetcher(store).fetch(model.root, [source], reference="x")
    assert (caught.value.detail["source"], caught.value.detail["cid"]) == ("kubo", str(model.root))
    await source.settled([model.root])


async def test_wrong_bytes_from_our_own_kubo_are_wrong_bytes(store: Store) -> None:
    model = small_model({"model.bin": RANDOM.randbytes(64 * 3)})
    client = Client({cid: block + b"!" for cid, block in model.blocks.items()})
    source = KuboSource(client, timeout_s=1)  # type: ignore[arg-type]  # the two calls that it makes
    with pytest.raises(IntegrityError) as caught:
        await Fetcher(store).fetch(model.root, [source], reference="x")
    assert caught.value.detail["source"] == "kubo"


async def test_a_block_that_is_too_large_never_gets_in(store: Store) -> None:
    block = bytes((2 << 20) + 1)
    source = KuboSource(Client({Cid.of(block): block}))  # type: ignore[arg-type]  # the two calls that it makes
    with pytest.raises(SourceUnavailable) as caught:
        await source.read_block(Cid.of(block))
    assert caught.value.code == "block_too_large"
