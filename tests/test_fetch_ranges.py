"""Leaves out of ranges, from several sources at once: who lies, stalls, breaks off, lacks or is still fetching."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ipfs_accelerate_node.content import dagpb
from ipfs_accelerate_node.content.cid import DAG_PB, Cid
from ipfs_accelerate_node.errors import IntegrityError, NoSource
from ipfs_accelerate_node.fetch import Fetched, Fetcher, Progress
from ipfs_accelerate_node.sources.source import Source
from ipfs_accelerate_node.store import Store
from tests.support.gateway import small_model
from tests.support.ranged import Ranged

RANDOM = random.Random(23)
MODEL = small_model(
    {"a.bin": RANDOM.randbytes(64 * 40 + 5), "b.bin": RANDOM.randbytes(64 * 30), "config.json": b'{"a": 1}'}
)
FILES = {file.path: file for file in MODEL.plan.files}
BIG = FILES["a.bin"]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "cache") as opened:
        yield opened


async def fetch(store: Store, *sources: Source, only: tuple[str, ...] | None = None) -> Fetched:
    return await Fetcher(store).fetch(MODEL.root, sources, reference="x", only=only)


def right(fetched: Fetched, *paths: str) -> bool:
    there = {str(p.relative_to(fetched.model.path)) for p in fetched.model.path.rglob("*") if p.is_file()}
    wanted = set(paths or MODEL.files)
    return there == wanted and all((fetched.model.path / p).read_bytes() == MODEL.files[p] for p in wanted)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("piece", [1, 63, 64, 65, 100, 128, 1 << 20])
async def test_ranges_are_cut_into_leaves_however_they_arrive(store: Store, piece: int) -> None:
    source = Ranged(MODEL, piece=piece)
    fetched = await fetch(store, source)
    assert right(fetched)
    assert source.sent == BIG.size + FILES["b.bin"].size, "each byte once"
    assert not set(source.asked) & {leaf.cid for leaf in BIG.leaves}
    (share,) = fetched.sources
    assert (share.bytes, share.rejected) == (fetched.bytes_total + sum(map(len, MODEL.nodes.values())), 0)
    assert source.open == 0


async def test_small_files_come_whole_and_the_walk_asks_for_them_once(store: Store) -> None:
    source = Ranged(MODEL)
    await fetch(store, source)
    assert set(source.asked.values()) == {1}


@pytest.mark.parametrize("at", [0, 1, 20, 39, 40])
async def test_a_wrong_leaf_ends_the_source_and_what_came_before_counts(store: Store, at: int) -> None:
    liar = Ranged(MODEL, piece=64)
    liar.wrong.add(BIG.leaves[at].cid)
    with pytest.raises(IntegrityError) as caught:
        await fetch(store, liar)
    assert caught.value.detail["source"] == liar.name
    assert caught.value.detail["cid"] == str(BIG.leaves[at].cid)
    assert liar.asked[BIG.leaves[at].cid] == 1, "it is asked to look at its own copy"
    assert liar.open == 0
    good = Ranged(MODEL)
    fetched = await fetch(store, good)
    assert right(fetched)
    assert good.sent <= liar.model.plan.size_bytes - min(at, 1) * 64


async def test_a_leaf_that_is_wrong_in_a_range_and_right_as_a_block_is_still_a_lie(store: Store) -> None:
    liar = Ranged(MODEL)
    liar.wrong.add(BIG.leaves[3].cid)
    liar.wrong_blocks = False
    with pytest.raises(IntegrityError):
        await fetch(store, liar)


async def test_one_is_good_one_lies_one_is_silent(store: Store) -> None:
    good = Ranged(MODEL, "http://good.example")
    liar, silent = Ranged(MODEL, "http://liar.example"), Ranged(MODEL, "http://silent.example")
    liar.wrong = {leaf.cid for file in MODEL.plan.files for leaf in file.leaves}
    silent.silent = True
    fetched = await fetch(store, silent, liar, good)
    assert right(fetched)
    assert {s.source for s in fetched.sources} >= {silent.name, good.name}
    assert {s.source: s.rejected for s in fetched.sources if s.rejected}.keys() <= {liar.name}
    assert {f.source for f in fetched.failures} >= {silent.name}
    assert (good.open, liar.open, silent.open) == (0, 0, 0)


async def test_who_breaks_off_goes_on_where_it_was(store: Store) -> None:
    source = Ranged(MODEL, piece=64)
    source.cut = 64 * 3
    fetched = await fetch(store, source)
    assert right(fetched)
    assert source.sent <= fetched.bytes_total


async def test_a_source_that_turns_out_to_know_blocks_only(store: Store) -> None:
    source = Ranged(MODEL)
    source.serves = False
    fetched = await fetch(store, source)
    assert right(fetched)
    assert source.sent == 0
    assert set(source.asked.values()) == {1}


async def test_a_file_that_is_not_found_as_a_file_may_be_had_as_blocks(store: Store) -> None:
    source = Ranged(MODEL)
    source.lacks_files = True
    assert right(await fetch(store, source))
    assert len(source.asked_ranges) == len({cid for cid, _, _ in source.asked_ranges}) == 2


async def test_a_source_is_asked_for_what_it_says_it_has_only(store: Store) -> None:
    one, two = Ranged(MODEL, "http://one.example"), Ranged(MODEL, "http://two.example")
    half = (1 << 20) - 1
    one.has = {BIG.cid: half, FILES["b.bin"].cid: 0}
    two.has = {BIG.cid: ((1 << len(BIG.leaves)) - 1) & ~half, FILES["b.bin"].cid: (1 << 30) - 1}
    assert right(await fetch(store, one, two))
    assert all(stop <= 64 * 20 for _, _, stop in one.asked_ranges)
    assert all(start >= 64 * 20 or cid != BIG.cid for cid, start, _ in two.asked_ranges)
    assert one.sent + two.sent == BIG.size + FILES["b.bin"].size


async def test_a_source_that_is_still_fetching_is_asked_again(store: Store) -> None:
    """Nobody else has the rest: it is waited for."""
    source = Ranged(MODEL)
    source.has = {BIG.cid: 1, FILES["b.bin"].cid: 0}
    seen: list[int] = []

    def grow(progress: Progress) -> None:
        seen.append(progress.bytes_done)
        source.has = {file.cid: (1 << len(file.leaves)) - 1 for file in MODEL.plan.files}

    fetched = await Fetcher(store).fetch(MODEL.root, [source], reference="x", progress=grow)
    assert right(fetched)


async def test_sources_join_on_the_way_and_those_found_are_closed(store: Store) -> None:
    first, second = Ranged(MODEL, "http://first.example"), Ranged(MODEL, "http://second.example")
    first.gate.clear()
    closed = asyncio.Event()

    async def aclose() -> None:
        closed.set()

    second.aclose = aclose  # type: ignore[method-assign]  # the one of this object

    async def discover(root: Cid) -> AsyncIterator[Source]:
        assert root == MODEL.root
        await first.arrived.wait()
        yield second

    fetched = await Fetcher(store).fetch(MODEL.root, [first], reference="x", discover=discover)
    assert right(fetched)
    assert second.sent > 0
    assert closed.is_set()
    assert first.open == 0


async def test_a_search_that_still_goes_on_is_waited_for(store: Store) -> None:
    found = Ranged(MODEL)

    async def discover(root: Cid) -> AsyncIterator[Source]:
        for _ in range(5):
            await asyncio.sleep(0)
        yield found

    assert right(await Fetcher(store).fetch(MODEL.root, [], reference="x", discover=discover))


async def test_a_search_that_finds_nobody_ends(store: Store) -> None:
    async def discover(root: Cid) -> AsyncIterator[Source]:
        await asyncio.sleep(0)
        return
        yield

    with pytest.raises(NoSource):
        await Fetcher(store).fetch(MODEL.root, [], reference="x", discover=discover)


async def test_a_path_is_found_through_who_is_discovered(store: Store) -> None:
    found, closed = Ranged(MODEL), asyncio.Event()

    async def aclose() -> None:
        closed.set()

    found.aclose = aclose  # type: ignore[method-assign]  # the one of this object

    async def discover(root: Cid) -> AsyncIterator[Source]:
        assert root == MODEL.root
        await asyncio.sleep(0)
        yield found

    assert await Fetcher(store).resolve(MODEL.root, "a.bin", [], discover=discover) == BIG.cid
    assert closed.is_set()
    with pytest.raises(NoSource):
        await Fetcher(store).resolve(MODEL.root, "a.bin", [])


async def test_the_receipt_says_how_long_a_source_had_work(store: Store) -> None:
    fetched = await fetch(store, Ranged(MODEL))
    (share,) = fetched.sources
    assert 0 < share.seconds <= fetched.seconds


async def test_files_of_one_block_that_are_not_asked_for_are_not_fetched(store: Store) -> None:
    source = Ranged(MODEL)
    fetched = await fetch(store, source, only=("b.bin",))
    assert right(fetched, "b.bin")
    small = FILES["config.json"]
    assert small.cid not in source.asked
    assert [file for file in fetched.plan.files if file.path == "config.json"] == [small]
    assert right(await fetch(store, source))
    assert source.asked[small.cid] == 1
    assert store.absent(MODEL.root) == ()


async def test_a_directory_that_lies_about_a_size_misleads_nobody_for_long(store: Store) -> None:
    """The size of a file of one block that is not asked for is the directory's claim, until the block comes."""
    block = next(block for cid, block in MODEL.nodes.items() if cid == MODEL.root)
    links = [replace(link, tsize=link.tsize + 5) if link.tsize == 8 else link for link in dagpb.decode(block).links]
    lying = dagpb.encode(links, dagpb.decode(block).data)
    root = Cid.of(lying, DAG_PB)
    source = Ranged(MODEL)
    source.model = replace(MODEL, nodes={**MODEL.nodes, root: lying})
    some = await Fetcher(store).fetch(root, [source], reference="x", only=("b.bin",))
    assert {file.path: file.size for file in some.plan.files}["config.json"] == 13
    fetched = await Fetcher(store).fetch(root, [source], reference="x")
    assert right(fetched)
    plan = store.plan(root)
    assert plan is not None
    assert plan.files == MODEL.plan.files
    assert not store.verify().corrupt


async def test_only_some_files_and_the_others_later(store: Store) -> None:
    source = Ranged(MODEL)
    fetched = await fetch(store, source, only=("b.*", "config.json"))
    assert right(fetched, "b.bin", "config.json")
    assert not fetched.model.complete
    assert source.sent == FILES["b.bin"].size
    assert fetched.bytes_total == FILES["b.bin"].size + len(MODEL.files["config.json"])
    again = await fetch(store, source, only=("b.bin",))
    assert again.already_here
    whole = await fetch(store, source)
    assert right(whole)
    assert whole.model.complete
    assert source.sent == FILES["b.bin"].size + BIG.size


async def test_callers_that_want_different_files_both_get_theirs(store: Store) -> None:
    source, fetcher = Ranged(MODEL), Fetcher(store)
    some, other = await asyncio.gather(
        fetcher.fetch(MODEL.root, [source], reference="x", only=("a.bin",)),
        fetcher.fetch(MODEL.root, [source], reference="x", only=("b.bin",)),
    )
    assert some.bytes_total == BIG.size
    assert (other.model.path / "b.bin").read_bytes() == MODEL.files["b.bin"]


async def test_progress_tells_what_each_source_does(store: Store) -> None:
    one, two = Ranged(MODEL, "http://one.example"), Ranged(MODEL, "http://two.example")
    seen: list[Progress] = []
    await Fetcher(store).fetch(MODEL.root, [one, two], reference="x", progress=seen.append)
    assert [p.bytes_done for p in seen] == sorted(p.bytes_done for p in seen)
    assert seen[-1].bytes_done == MODEL.plan.size_bytes
    names = {now.source for now in seen[-1].sources}
    assert names == {one.name, two.name}
    assert sum(now.bytes for now in seen[-1].sources) >= MODEL.plan.size_bytes
    assert all(now.state in ("working", "idle") for p in seen for now in p.sources)


@pytest.mark.parametrize("steps", [*range(0, 60), *range(60, 200, 7)])
async def test_a_cancel_at_any_moment_leaves_nothing_open_and_loses_nothing(store: Store, steps: int) -> None:
    sources = [Ranged(MODEL, f"http://{n}.example", piece=200) for n in "ab"]
    fds, tasks = open_files(), len(asyncio.all_tasks())
    task = asyncio.create_task(fetch(store, *sources))
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    (outcome,) = await asyncio.gather(task, return_exceptions=True)
    assert isinstance(outcome, Fetched | asyncio.CancelledError)
    assert [source.open for source in sources] == [0, 0]
    assert len(asyncio.all_tasks()) == tasks
    assert open_files() == fds
    assert right(await fetch(store, *sources))


@pytest.mark.parametrize("seed", range(6))
async def test_fifty_callers_of_whom_some_leave_make_one_fetch(store: Store, seed: int) -> None:
    chance = random.Random(seed)
    source, fetcher = Ranged(MODEL), Fetcher(store)
    fds, tasks = open_files(), len(asyncio.all_tasks())
    callers = [asyncio.create_task(fetcher.fetch(MODEL.root, [source], reference="x")) for _ in range(50)]
    leaving = chance.sample(range(50), 25)
    for index in leaving:
        for _ in range(chance.randrange(8)):
            await asyncio.sleep(0)
        callers[index].cancel()
    outcomes = await asyncio.gather(*callers, return_exceptions=True)
    for index, outcome in enumerate(outcomes):
        allowed = Fetched | asyncio.CancelledError if index in leaving else Fetched
        assert isinstance(outcome, allowed)
    assert store.model(MODEL.root) is not None
    assert source.open == 0
    assert (open_files(), len(asyncio.all_tasks())) == (fds, tasks)
