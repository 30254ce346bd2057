"""Fetching from gateways that lie, cut off, stall or lack something: what is named, what is kept, who is asked next."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import BadContent, IntegrityError, NodeError, NoSource, QuotaExceeded, exit_code
from ipfs_accelerate_node.fetch import Fetched, Fetcher
from ipfs_accelerate_node.sources import GatewaySource
from ipfs_accelerate_node.sources.source import Abilities
from ipfs_accelerate_node.store import Store
from tests.support.dags import Blocks, put_directory, put_file, put_leaf, put_raw
from tests.support.gateway import (
    HTML,
    Answer,
    FakeGateway,
    Fault,
    Flip,
    Stall,
    Times,
    Truncate,
    small_model,
)

PATIENCE_S = 10.0  # no good answer takes so long, however busy the machine
SILENCE_S = 1.0  # where a test waits for it to pass
ONLY_BLOCKS = Abilities(ranges=False, cars=False)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "cache") as opened:
        yield opened


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as opened:
        yield opened


async def gateways(
    stack: AsyncExitStack, count: int, blocks: Blocks, silence_s: float = PATIENCE_S
) -> tuple[list[FakeGateway], list[GatewaySource]]:
    running = [await stack.enter_async_context(FakeGateway(blocks)) for _ in range(count)]
    sources = [
        GatewaySource(g.url, first_byte_timeout_s=silence_s, stall_timeout_s=silence_s, abilities=ONLY_BLOCKS)
        for g in running
    ]
    for source in sources:
        stack.push_async_callback(source.aclose)
    return running, sources


async def fetch(store: Store, root: Cid, sources: list[GatewaySource], name: str | None = None) -> Fetched:
    return await Fetcher(store).fetch(root, sources, reference=str(root), name=name)


async def failed(store: Store, root: Cid, sources: list[GatewaySource]) -> NodeError:
    with pytest.raises(NodeError) as caught:
        await fetch(store, root, sources)
    assert store.model(root) is None
    return caught.value


def same(fetched: Fetched, files: dict[str, bytes]) -> bool:
    there = {
        str(p.relative_to(fetched.model.path)): p.read_bytes() for p in fetched.model.path.rglob("*") if p.is_file()
    }
    return there == files


def unverified(store: Store, good: Blocks) -> list[str]:
    """Files below the cache in which bytes stand at the place of a leaf and are not that leaf's."""
    found = []
    for path in [*(store.root / "partial").iterdir(), *(store.root / "blobs").iterdir()]:
        data = path.read_bytes()
        if path.suffix == ".have" or not data:
            continue
        chunks = [data[at : at + 64] for at in range(0, len(data), 64)]
        known = set(good.values())
        found += [str(path) for chunk in chunks if chunk.strip(b"\0") and chunk not in known]
    return found


RANDOM = random.Random(7)
MODEL = small_model(
    {"model.bin": RANDOM.randbytes(64 * 9 + 5), "config.json": b'{"a": 1}', "sub/vocab.txt": RANDOM.randbytes(200)}
)
BLOCKS = MODEL.blocks
IDS = {cid: f"{i}" for i, cid in enumerate(BLOCKS)}


async def test_a_good_gateway_gives_the_model(store: Store, stack: AsyncExitStack) -> None:
    (gateway,), sources = await gateways(stack, 1, BLOCKS)
    fetched = await fetch(store, MODEL.root, sources, "mine")
    assert same(fetched, MODEL.files)
    assert gateway.asked == dict.fromkeys(BLOCKS, 1)
    assert fetched.bytes_total == fetched.bytes_fetched == sum(map(len, MODEL.files.values()))
    assert (fetched.bytes_copied, fetched.already_here) == (0, False)
    assert fetched.model.names == ("mine",)
    (share,) = fetched.sources
    assert (share.source, share.kind, share.requests, share.rejected) == (gateway.url, "gateway", len(BLOCKS), 0)
    assert share.bytes == sum(map(len, BLOCKS.values()))
    assert fetched.model.provenance.sources == fetched.sources
    assert dict(fetched.nodes) == MODEL.nodes


async def test_the_same_root_again_asks_nobody(store: Store, stack: AsyncExitStack) -> None:
    (gateway,), sources = await gateways(stack, 1, BLOCKS)
    first = await fetch(store, MODEL.root, sources)
    gateway.asked.clear()
    again = await fetch(store, MODEL.root, sources, "later")
    assert gateway.requests == 0
    assert again.already_here
    assert again.plan == first.plan
    assert again.model.names == ("later",)
    assert again.bytes_fetched == 0


@pytest.mark.parametrize("bad", BLOCKS, ids=IDS.get)
async def test_a_flipped_bit_at_every_block(store: Store, stack: AsyncExitStack, bad: Cid) -> None:
    (liar,), sources = await gateways(stack, 1, BLOCKS)
    liar.faults[bad] = Flip(RANDOM.randrange(1 << 20))
    error = await failed(store, MODEL.root, sources)
    assert isinstance(error, IntegrityError)
    assert exit_code(error) == 4
    assert error.detail["source"] == liar.url
    assert error.detail["cid"] == str(bad)
    assert unverified(store, BLOCKS) == []

    delivered = [cid for cid in liar.asked if cid != bad]
    (honest,), good = await gateways(stack, 1, BLOCKS)
    fetched = await fetch(store, MODEL.root, good)
    assert same(fetched, MODEL.files)
    assert honest.asked[bad] == 1
    # At most the window that was under way when the lie was found is asked for again, never what had landed.
    again = [cid for cid in delivered if honest.asked[cid]]
    assert fetched.bytes_fetched + sum(len(BLOCKS[c]) for c in delivered if c not in again) >= len(BLOCKS[bad])
    assert all(count == 1 for count in honest.asked.values())


@pytest.mark.parametrize("bad", BLOCKS, ids=IDS.get)
async def test_every_block_that_landed_before_a_lie_stays(store: Store, stack: AsyncExitStack, bad: Cid) -> None:
    """The lie is told last: all else is here, so the retry asks for that block alone (and for what it links)."""
    (gateway,), sources = await gateways(stack, 1, BLOCKS)
    del gateway.blocks[bad]
    assert isinstance(await failed(store, MODEL.root, sources), NoSource)
    gateway.faults[bad], gateway.blocks[bad] = Times(Flip(), gateway.asked[bad] + 1), BLOCKS[bad]
    assert isinstance(await failed(store, MODEL.root, sources), IntegrityError)
    had = {cid for cid in gateway.asked if cid != bad}
    gateway.asked.clear()
    gateway.faults.clear()
    fetched = await fetch(store, MODEL.root, sources)
    assert same(fetched, MODEL.files)
    assert set(gateway.asked) == set(BLOCKS) - had


@pytest.mark.parametrize(
    ("fault", "code"),
    [(Truncate(3), "truncated"), (Stall(3), "stalled"), (Stall(before_headers=True), "stalled"), (HTML, "bad_source")],
)
@pytest.mark.parametrize("position", ["root", "node", "leaf"])
async def test_cut_off_stalled_and_error_pages(
    store: Store, stack: AsyncExitStack, fault: Fault, code: str, position: str
) -> None:
    bad = {"root": MODEL.root, "node": next(iter(MODEL.nodes)), "leaf": next(iter(MODEL.leaves))}[position]
    (gateway,), sources = await gateways(stack, 1, BLOCKS, SILENCE_S)
    gateway.faults[bad] = fault
    error = await failed(store, MODEL.root, sources)
    assert isinstance(error, NoSource)
    assert (error.code, exit_code(error)) == (code, 5)
    assert error.detail["source"] == gateway.url
    assert error.detail["cid"] == str(bad)
    assert unverified(store, BLOCKS) == []
    gateway.faults.clear()
    assert same(await fetch(store, MODEL.root, sources), MODEL.files)


async def test_a_leaf_that_is_short_but_says_so_was_cut(store: Store, stack: AsyncExitStack) -> None:
    bad = next(iter(MODEL.leaves))
    (gateway,), sources = await gateways(stack, 1, BLOCKS)
    gateway.faults[bad] = Answer(200, BLOCKS[bad][:10], (("Content-Type", "application/vnd.ipld.raw"),))
    error = await failed(store, MODEL.root, sources)
    assert (error.code, exit_code(error)) == ("truncated", 5)


async def test_a_connection_lost_now_and_then_is_no_failure(store: Store, stack: AsyncExitStack) -> None:
    (gateway,), sources = await gateways(stack, 1, BLOCKS)
    for cid in list(BLOCKS)[::3]:
        gateway.faults[cid] = Times(Truncate(1), 1)
    assert same(await fetch(store, MODEL.root, sources), MODEL.files)


@pytest.mark.parametrize("poisoned", [0, 1, 2])
async def test_one_poisoned_gateway_of_three(store: Store, stack: AsyncExitStack, poisoned: int) -> None:
    running, sources = await gateways(stack, 3, BLOCKS)
    running[poisoned].fault = Flip()
    fetched = await fetch(store, MODEL.root, sources)
    assert same(fetched, MODEL.files)
    rejected = {share.source: share.rejected for share in fetched.sources if share.rejected}
    assert set(rejected) <= {running[poisoned].url}
    assert running[poisoned].requests <= 16, "a liar is not asked again"


async def test_one_lies_one_stalls_one_is_good(store: Store, stack: AsyncExitStack) -> None:
    (liar, silent, good), sources = await gateways(stack, 3, BLOCKS, SILENCE_S)
    liar.fault, silent.fault = Flip(), Stall()
    fetched = await fetch(store, MODEL.root, sources)
    assert same(fetched, MODEL.files)
    assert [share.source for share in fetched.sources] == [liar.url, silent.url, good.url]


async def test_two_halves_make_a_whole(store: Store, stack: AsyncExitStack) -> None:
    (one, two), sources = await gateways(stack, 2, BLOCKS)
    for index, cid in enumerate(BLOCKS):
        del (one, two)[index % 2].blocks[cid]
    assert same(await fetch(store, MODEL.root, sources), MODEL.files)
    assert all(count == 1 for count in one.asked.values()), "nobody is asked twice for what it lacks"


async def test_all_attempts_are_listed(store: Store, stack: AsyncExitStack) -> None:
    (cut, html, silent), sources = await gateways(stack, 3, BLOCKS, SILENCE_S)
    cut.fault, html.fault, silent.fault = Truncate(1), HTML, Stall()
    error = await failed(store, MODEL.root, sources)
    assert (error.code, exit_code(error)) == ("no_source", 5)
    attempts = error.detail["attempts"]
    assert isinstance(attempts, list)
    codes = {attempt["source"]: attempt["code"] for attempt in attempts}
    assert codes == {cut.url: "truncated", html.url: "bad_source", silent.url: "stalled"}


@pytest.mark.parametrize("gone", BLOCKS, ids=IDS.get)
async def test_a_missing_block_is_an_error_never_a_short_file(store: Store, stack: AsyncExitStack, gone: Cid) -> None:
    (gateway,), sources = await gateways(stack, 1, BLOCKS)
    del gateway.blocks[gone]
    error = await failed(store, MODEL.root, sources)
    assert isinstance(error, NoSource)
    assert error.code == ("not_found" if gone == MODEL.root else "missing_block")
    assert error.detail["cid"] == str(gone)
    assert exit_code(error) == 5


async def test_a_gateway_that_asks_for_a_pause_gets_it(store: Store, stack: AsyncExitStack) -> None:
    (gateway,), sources = await gateways(stack, 1, BLOCKS)
    busy = Answer(429, b"", (("Retry-After", "0"),))
    gateway.faults = {cid: Times(busy, 1) for cid in BLOCKS}
    assert same(await fetch(store, MODEL.root, sources), MODEL.files)


async def test_a_gateway_that_asks_for_years_is_skipped(store: Store, stack: AsyncExitStack) -> None:
    (busy, good), sources = await gateways(stack, 2, BLOCKS)
    busy.fault = Answer(503, b"", (("Retry-After", "1000000000"),))
    assert same(await fetch(store, MODEL.root, sources), MODEL.files)
    assert good.requests == len(BLOCKS)


async def test_no_source_at_all(store: Store) -> None:
    error = await failed(store, MODEL.root, [])
    assert (error.code, exit_code(error)) == ("no_source", 5)


async def test_a_gateway_with_nothing_is_left_soon(store: Store, stack: AsyncExitStack) -> None:
    model = small_model({"big.bin": RANDOM.randbytes(64 * 300)})
    (empty, _), sources = await gateways(stack, 2, model.blocks)
    empty.blocks = dict(model.nodes)
    assert same(await fetch(store, model.root, sources), model.files)
    assert empty.requests < len(model.nodes) + 64


def bomb(levels: int) -> tuple[Cid, Blocks]:
    """A few KiB that declare 4 ** levels times a leaf."""
    blocks: Blocks = {}
    part = put_raw(blocks, bytes(1000))
    for _ in range(levels):
        part = put_file(blocks, [part] * 4)
    return part[0], blocks


async def test_a_dag_bomb_is_refused_before_anything_is_written(tmp_path: Path, stack: AsyncExitStack) -> None:
    root, blocks = bomb(20)
    _, sources = await gateways(stack, 1, blocks)
    with Store.open(tmp_path / "cache", quota_bytes=1 << 30) as store:
        error = await failed(store, root, sources)
        assert isinstance(error, QuotaExceeded)
        assert not list((store.root / "partial").iterdir())
        assert store.used_bytes() < 1 << 20


async def test_a_dag_bomb_without_a_quota_meets_the_disk(store: Store, stack: AsyncExitStack) -> None:
    root, blocks = bomb(25)
    _, sources = await gateways(stack, 1, blocks)
    assert isinstance(await failed(store, root, sources), QuotaExceeded | BadContent)


async def test_a_model_over_the_quota_is_refused_before_its_leaves(tmp_path: Path, stack: AsyncExitStack) -> None:
    model = small_model({"a.bin": RANDOM.randbytes(64 * 40), "b.bin": RANDOM.randbytes(64 * 40)})
    (gateway,), sources = await gateways(stack, 1, model.blocks)
    with Store.open(tmp_path / "cache", quota_bytes=4000) as store:
        assert isinstance(await failed(store, model.root, sources), QuotaExceeded)
        assert not set(gateway.asked) & set(model.leaves)


async def test_a_bad_dag_is_nobodys_fault(store: Store, stack: AsyncExitStack) -> None:
    blocks: Blocks = {}
    leaf, size = put_leaf(blocks, b"ten bytes!")
    root, _ = put_file(blocks, [(leaf, size + 1), (leaf, size)])
    (first, second), sources = await gateways(stack, 2, blocks)
    error = await failed(store, put_directory(blocks, [(b"x", root)]), sources)
    assert isinstance(error, NoSource)  # the directory is not on the gateways yet
    first.blocks.update(blocks)
    error = await failed(store, put_directory(blocks, [(b"x", root)]), sources)
    assert isinstance(error, BadContent)
    assert (error.code, exit_code(error)) == ("bad_dag", 4)
    assert second.asked[root.canonical] == 0, "no other source can mend it"


@pytest.mark.parametrize("name", [b"..", b"a/b", b"CON", b"x\0y", b"\xff"])
async def test_unsafe_names_are_refused_whole(store: Store, stack: AsyncExitStack, name: bytes) -> None:
    blocks: Blocks = {}
    leaf, _ = put_raw(blocks, b"payload")
    root = put_directory(blocks, [(b"good.bin", leaf), (name, leaf)])
    _, sources = await gateways(stack, 1, blocks)
    error = await failed(store, root, sources)
    assert error.code == "invalid_path"
    assert not list((store.root / "models").iterdir())


async def test_dag_that_declares_more_than_its_raw_leaf_holds_is_bad_and_no_fault_of_the_source(
    store: Store, stack: AsyncExitStack
) -> None:
    blocks: Blocks = {}
    short, _ = put_raw(blocks, b"four")
    root, _ = put_file(blocks, [(short, 5)])
    _, sources = await gateways(stack, 2, blocks)
    error = await failed(store, root, sources)
    assert isinstance(error, BadContent)
    assert error.code == "bad_dag"
    assert error.detail["cid"] == str(short)
