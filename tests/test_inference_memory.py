"""Memory of loaded models: given back when they go, and who goes when another one needs it."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ipfs_accelerate_node.errors import NotFound, Unavailable
from ipfs_accelerate_node.inference.memory import resident_bytes
from ipfs_accelerate_node.inference.model import Ids, LoadedModel, ModelSpec, Text
from ipfs_accelerate_node.inference.registry import Registry
from tests.support.models import tiny_model
from tests.support.workers import at_work, ended, gone, registry_in_its_task, tree_bytes

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def spec(name: str, directory: Path) -> ModelSpec:
    return ModelSpec(f"bafy{name}", directory, (name,))


async def load(registry: Registry, name: str, directory: Path, **settings: float) -> LoadedModel:
    return await registry.load(spec(name, directory), device="cpu", **settings)  # type: ignore[arg-type]


async def test_a_model_that_is_idle_for_too_long_goes(directory: Path) -> None:
    released: asyncio.Queue[str] = asyncio.Queue()
    async with registry_in_its_task(keep_alive_s=0.05, gone=released.put_nowait) as registry:
        model = await load(registry, "short", directory)
        assert model.keep_alive_s == 0.05
        assert await released.get() == "bafyshort"
        assert gone(model.pid or 0)
        assert registry.loaded() == []
        with pytest.raises(NotFound):
            await registry.infer("short", [Text("a")])


async def test_what_is_at_work_or_pinned_is_not_idle(directory: Path) -> None:
    async with registry_in_its_task(keep_alive_s=0.2) as registry:
        model = await load(registry, "held", directory, pinned=True)
        busy = await load(registry, "busy", directory)
        await registry.infer(busy, [Text("the cat sat on the mat " * 20)] * 3000)  # takes longer than it may idle
        assert (await registry.infer(busy, [Text("a")])).model.pid == busy.pid
        await ended(busy.pid or 0)
        assert (await registry.infer(model, [Text("a")])).model.pid == model.pid
        await load(registry, "held", directory, pinned=False, keep_alive_s=0.05)
        await ended(model.pid or 0)


async def test_the_one_unused_for_longest_makes_room(directory: Path) -> None:
    """A machine without memory, until something goes: the one that was not asked for longest, never a pinned one."""
    gone_now: list[str] = []
    full = False

    def available() -> int:
        return 0 if full and not gone_now else 1 << 40

    async with registry_in_its_task(available=available, gone=gone_now.append) as registry:
        pinned = await load(registry, "pinned", directory, pinned=True)
        older, newer = await load(registry, "older", directory), await load(registry, "newer", directory)
        await registry.infer(older, [Text("a")])  # now "newer" is the one unused for longest
        full = True
        await load(registry, "last", directory)
        assert gone_now == ["bafynewer"]
        assert gone(newer.pid or 0)
        for model in (pinned, older):
            assert (await registry.infer(model, [Text("a")])).model.pid == model.pid


async def test_a_budget_counts_what_workers_really_take(directory: Path) -> None:
    async with registry_in_its_task(budget_bytes=1 << 20) as registry:
        pinned, first = await load(registry, "pinned", directory, pinned=True), await load(registry, "first", directory)
        assert {model.id for model in registry.loaded()} == {"pinned", "first"}
        await load(registry, "second", directory)
        assert {model.id for model in registry.loaded()} == {"pinned", "second"}
        assert gone(first.pid or 0)
        assert (await registry.infer(pinned, [Text("a")])).model.pid == pinned.pid


async def test_a_segfault_under_load_is_noticed_by_its_own_requests_only(directory: Path) -> None:
    async with registry_in_its_task() as registry:
        struck, other = await load(registry, "struck", directory), await load(registry, "other", directory)
        long = [Text("the cat sat on " * 9)] * 1500
        first = asyncio.create_task(registry.infer(struck, long))
        behind = asyncio.create_task(registry.infer(struck, [Text("one")]))
        beside = [asyncio.create_task(registry.infer(other, [Text("two")] * 50)) for _ in range(6)]
        await at_work(registry, "struck")
        assert registry.waiting(struck) == 2
        os.kill(struck.pid or 0, signal.SIGSEGV)
        with pytest.raises(Unavailable, match="SIGSEGV") as caught:
            await first
        assert (caught.value.code, caught.value.retry_after_s) == ("worker_crashed", 1.0)
        assert (await behind).model.pid not in (struck.pid, other.pid)
        for task in beside:
            assert (await task).model.pid == other.pid


async def test_ten_rounds_give_all_memory_back(directory: Path, figure: Callable[[str], None]) -> None:
    async with registry_in_its_task() as registry:
        model = await load(registry, "round", directory)
        await registry.unload("round")
        before = tree_bytes(os.getpid())
        for _ in range(10):
            model = await load(registry, "round", directory)
            await registry.infer(model, [Text("the cat")] * 20)
            await registry.unload("round")
            assert gone(model.pid or 0)
        after = tree_bytes(os.getpid())
        figure(f"ten rounds of load and unload: {before >> 20} MiB before, {after >> 20} MiB after")
        assert after <= 1.05 * before


def unlike_requests(seed: int) -> Iterator[list[Ids]]:
    """10,000 requests, no two with the same number of rows and the same longest row, in no order."""
    draw = random.Random(seed)
    shapes = [(rows, longest) for rows in range(1, 21) for longest in range(3, 503)]
    draw.shuffle(shapes)
    for rows, longest in shapes:
        lengths = [longest, *(draw.randint(2, longest) for _ in range(rows - 1))]
        yield [Ids(tuple(draw.randrange(4, 60) for _ in range(length))) for length in lengths]


async def bytes_after(registry: Registry, model: LoadedModel, marks: tuple[int, int]) -> list[int]:
    """What the worker takes after so many requests, four at a time."""
    requests, taken, done = unlike_requests(5), list[int](), 0

    async def ask() -> None:
        nonlocal done
        for items in requests:
            outputs = (await registry.infer(model, items)).outputs
            assert len(outputs) == len(items)
            done += 1
            if done in marks:
                taken.append(resident_bytes(model.pid or 0))
            if done >= marks[-1]:
                return

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(ask())
    return taken


@pytest.mark.parametrize(
    "marks", [(500, 1000), pytest.param((1000, 10_000), marks=[pytest.mark.full, pytest.mark.timeout(1800)])]
)
async def test_memory_is_flat_over_requests_of_unlike_shapes(
    tmp_path: Path, marks: tuple[int, int], figure: Callable[[str], None]
) -> None:
    """Kernels that OpenVINO makes for a shape are few and bounded, for the batcher makes few shapes of many."""
    path = tiny_model(tmp_path / "long", max_position_embeddings=512)
    async with registry_in_its_task(cache=tmp_path, queue_wait_s=60.0) as registry:
        model = await registry.load(spec("shapes", path), device="openvino:CPU", precision="f32")
        early, late = await bytes_after(registry, model, marks)
        shown = [f"{bytes_ >> 20} MiB after {count:,}" for bytes_, count in zip((early, late), marks, strict=True)]
        figure(f"requests of unlike shapes: {', '.join(shown)}")
        assert late <= 1.1 * early
