"""One fetch per root however many ask, and what a cancel leaves behind: nothing open, nothing locked, nothing lost."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.plan import FilePlan
from ipfs_accelerate_node.errors import Conflict, IntegrityError, NodeError, NoSource, SourceUnavailable
from ipfs_accelerate_node.fetch import Fetched, Fetcher, Progress
from ipfs_accelerate_node.sources.source import Held
from ipfs_accelerate_node.store import Store
from tests.support.gateway import small_model

RANDOM = random.Random(11)
MODEL = small_model({"model.bin": RANDOM.randbytes(64 * 20 + 5), "config.json": b"{}", "sub/v.txt": bytes(300)})


class Shelf:
    """A source without a network: blocks from a dict, each after one turn of the loop, or when the gate opens."""

    kind = "gateway"
    ranges = False

    def __init__(self, blocks: Mapping[Cid, bytes], name: str = "http://shelf.example") -> None:
        self.name = name
        self.blocks = dict(blocks)
        self.asked: Counter[Cid] = Counter()
        self.under_way = 0
        self.most_under_way = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.arrived = asyncio.Event()
        self.settled_cids: list[Cid] = []

    async def read_block(self, cid: Cid) -> bytes:
        self.asked[cid] += 1
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        self.arrived.set()
        try:
            await asyncio.sleep(0)
            await self.gate.wait()
        finally:
            self.under_way -= 1
        if cid not in self.blocks:
            raise SourceUnavailable(f"{self.name} has no {cid}", source=self.name, cid=cid, code="not_found")
        return self.blocks[cid]

    async def read_range(self, file: FilePlan, start: int, stop: int) -> AsyncGenerator[bytes, None]:
        raise NotImplementedError
        yield b""

    async def held(self, root: Cid) -> Held | None:
        return None

    async def settled(self, cids: Sequence[Cid]) -> None:
        self.settled_cids += cids

    async def aclose(self) -> None:
        pass


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "cache") as opened:
        yield opened


def open_parts() -> list[str]:
    """Descriptors of partial files that this process holds."""
    names = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            names.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:  # the one that listed the directory
            continue
    return [name for name in names if "/partial/" in name]


def begin(
    fetcher: Fetcher, source: Shelf, name: str | None = None, seen: list[Progress] | None = None
) -> asyncio.Task[Fetched]:
    report = (lambda _: None) if seen is None else seen.append
    return asyncio.create_task(fetcher.fetch(MODEL.root, [source], reference="x", name=name, progress=report))


async def test_fifty_callers_one_fetch(store: Store) -> None:
    source, fetcher = Shelf(MODEL.blocks), Fetcher(store)
    source.gate.clear()
    callers = [begin(fetcher, source) for _ in range(50)]
    await source.arrived.wait()
    source.gate.set()
    results = await asyncio.gather(*callers)
    assert source.asked == dict.fromkeys(MODEL.blocks, 1)
    assert {r.model.root for r in results} == {MODEL.root}


@pytest.mark.parametrize("seed", range(8))
async def test_fifty_callers_of_whom_some_leave(store: Store, seed: int) -> None:
    """Whoever stays gets the model; a block is asked for again only if the caller who asked for it left meanwhile."""
    chance = random.Random(seed)
    source, fetcher = Shelf(MODEL.blocks), Fetcher(store)
    callers = [begin(fetcher, source) for _ in range(50)]
    leaving = chance.sample(range(50), 25)
    leavers_that_led = 0
    for index in leaving:
        for _ in range(chance.randrange(12)):
            await asyncio.sleep(0)
        leavers_that_led += callers[index].cancel()
    outcomes = await asyncio.gather(*callers, return_exceptions=True)
    for index, outcome in enumerate(outcomes):
        if index in leaving:
            assert isinstance(outcome, Fetched | asyncio.CancelledError)
        else:
            assert isinstance(outcome, Fetched)
    assert source.asked.total() <= len(MODEL.blocks) + 16 * leavers_that_led
    assert open_parts() == []
    assert source.under_way == 0


async def test_the_first_callers_cancel_leaves_the_others_with_what_it_had(store: Store) -> None:
    source, fetcher = Shelf(MODEL.blocks), Fetcher(store)
    landed = asyncio.Event()
    leaf = MODEL.plan.files[1].leaves[2].cid.canonical

    def watch(progress: Progress) -> None:
        if progress.phase == "fetching" and progress.bytes_done > 64 * 6:
            source.gate.clear()
            landed.set()

    first = asyncio.create_task(fetcher.fetch(MODEL.root, [source], reference="x", progress=watch))
    await source.arrived.wait()
    second = begin(fetcher, source)
    await landed.wait()
    had = set(source.asked)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert not second.done()
    source.gate.set()
    fetched = await second
    again = {cid for cid, count in source.asked.items() if count > 1}
    assert leaf in had
    assert len(again) <= 16, "only what was under way"
    assert fetched.bytes_fetched < fetched.bytes_total


async def test_the_last_callers_cancel_stops_everything(store: Store) -> None:
    source, fetcher = Shelf(MODEL.blocks), Fetcher(store)
    source.gate.clear()
    callers = [begin(fetcher, source) for _ in range(3)]
    await source.arrived.wait()
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    assert all(caller.cancelled() for caller in callers)
    assert source.under_way == 0
    assert open_parts() == []
    source.gate.set()
    assert (await begin(fetcher, source)).model.root == MODEL.root


async def test_every_caller_is_told_of_a_failure(store: Store) -> None:
    blocks = MODEL.blocks
    del blocks[MODEL.root]
    source, fetcher = Shelf(blocks), Fetcher(store)
    outcomes = await asyncio.gather(*(begin(fetcher, source) for _ in range(5)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [NoSource] * 5
    assert source.asked[MODEL.root] == 1


async def test_a_caller_with_a_better_source_tries_it_after_the_first_failed(store: Store) -> None:
    lying = Shelf({cid: block + b"!" for cid, block in MODEL.blocks.items()}, "http://liar.example")
    good, fetcher = Shelf(MODEL.blocks), Fetcher(store)
    first, second = begin(fetcher, lying), begin(fetcher, good)
    with pytest.raises(IntegrityError):
        await first
    assert (await second).model.root == MODEL.root


async def test_each_caller_gets_its_name_and_sees_progress(store: Store) -> None:
    source, fetcher = Shelf(MODEL.blocks), Fetcher(store)
    reports: list[list[Progress]] = [[], []]
    await asyncio.gather(begin(fetcher, source, "one", reports[0]), begin(fetcher, source, "two", reports[1]))
    assert store.named("one") == store.named("two") == MODEL.root
    for seen in reports:
        assert [p.bytes_done for p in seen] == sorted(p.bytes_done for p in seen)
        assert (seen[0].phase, seen[-1].phase) == ("walking", "committing")
        assert seen[-1].bytes_done == seen[-1].bytes_total == MODEL.plan.size_bytes


async def test_a_name_that_means_another_model_is_a_conflict(store: Store) -> None:
    other = small_model({"other.bin": b"other"})
    fetcher = Fetcher(store)
    await fetcher.fetch(other.root, [Shelf(other.blocks)], reference="x", name="taken")
    with pytest.raises(Conflict):
        await begin(fetcher, Shelf(MODEL.blocks), "taken")
    assert open_parts() == []


async def test_the_window_is_bounded(store: Store) -> None:
    model = small_model({"big.bin": RANDOM.randbytes(64 * 200)})
    source = Shelf(model.blocks)
    await Fetcher(store).fetch(model.root, [source], reference="x")
    assert source.most_under_way == 16


async def test_what_is_durable_is_settled_with_its_source(store: Store) -> None:
    source = Shelf(MODEL.blocks)
    await begin(Fetcher(store), source)
    leaves = {leaf.cid for file in MODEL.plan.files for leaf in file.leaves}
    assert set(source.settled_cids) == leaves
    assert len(source.settled_cids) == len(leaves)


STEPS = [*range(0, 40), *range(40, 200, 7), *range(200, 3000, 211)]


@pytest.mark.parametrize("steps", STEPS)
async def test_cancelled_after_so_many_turns_of_the_loop(tmp_path: Path, steps: int) -> None:
    with Store.open(tmp_path / "cache") as store:
        source, fetcher = Shelf(MODEL.blocks), Fetcher(store)
        task = begin(fetcher, source)
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        outcome = (await asyncio.gather(task, return_exceptions=True))[0]
        assert isinstance(outcome, Fetched | asyncio.CancelledError)
        assert open_parts() == []
        assert source.under_way == 0
        assert len(asyncio.all_tasks()) == 1

        fetched = await begin(fetcher, source)
        for path, data in MODEL.files.items():
            assert (fetched.model.path / path).read_bytes() == data
        assert store.verify().corrupt == ()
        store.remove(MODEL.root, force=True)
        store.gc()
        assert store.used_bytes() == 0, "no room is held any more"


async def test_a_second_cancel_while_it_ends_changes_nothing(store: Store) -> None:
    source, fetcher = Shelf(MODEL.blocks), Fetcher(store)
    source.gate.clear()
    task = begin(fetcher, source)
    await source.arrived.wait()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert open_parts() == []
    assert source.under_way == 0


async def test_a_timeout_around_a_fetch_is_a_timeout(store: Store) -> None:
    source = Shelf(MODEL.blocks)
    source.gate.clear()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await Fetcher(store).fetch(MODEL.root, [source], reference="x")
    assert open_parts() == []


@pytest.mark.parametrize("path", ["sub", "sub/v.txt", "config.json", "/sub//v.txt/"])
async def test_a_path_is_resolved_by_its_directories_alone(store: Store, path: str) -> None:
    source = Shelf(MODEL.blocks)
    found = await Fetcher(store).resolve(MODEL.root, path, [source])
    assert set(source.asked) <= set(MODEL.nodes)
    if path != "sub":
        files = {file.path: file.cid for file in MODEL.plan.files}
        assert found == files[path.strip("/").replace("//", "/")]
    fetched = await Fetcher(store).fetch(found, [source], reference=path)
    assert fetched.model.root == found


@pytest.mark.parametrize("path", ["nothing", "config.json/x", "sub/nothing"])
async def test_a_path_to_nowhere(store: Store, path: str) -> None:
    with pytest.raises(NodeError) as caught:
        await Fetcher(store).resolve(MODEL.root, path, [Shelf(MODEL.blocks)])
    assert caught.value.code in ("not_found", "bad_dag")


async def test_a_path_whose_directory_nobody_has(store: Store) -> None:
    with pytest.raises(NoSource):
        await Fetcher(store).resolve(MODEL.root, "sub", [Shelf({})])
