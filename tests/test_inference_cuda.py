"""Models on a GPU, each in its worker: memory that comes back, the device that measures best, and who makes room."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ipfs_accelerate_node.errors import Unavailable
from ipfs_accelerate_node.inference.model import LoadedModel, ModelSpec, Text
from ipfs_accelerate_node.inference.registry import Registry
from tests.support.models import tiny_model
from tests.support.models_torch import torch
from tests.support.sample import CLIP, T5
from tests.support.workers import gone, registry_in_its_task

pytestmark = [pytest.mark.cuda, pytest.mark.timeout(300)]

GPU = "cuda:0"
TEXTS = [Text("the cat sat on the mat")] * 8
MIB = 1 << 20


def used_bytes() -> int:
    """Of the whole card, as the driver says; this process's own part stays the same."""
    free, total = torch.cuda.mem_get_info(0)
    return int(total - free)


@contextmanager
def leaving(free_bytes: int) -> Iterator[None]:
    """Takes all of the card but so much."""
    held = torch.empty(torch.cuda.mem_get_info(0)[0] - free_bytes, dtype=torch.uint8, device=GPU)
    try:
        yield
    finally:
        del held
        gc.collect()
        torch.cuda.empty_cache()


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half a gigabyte of weights."""
    return tiny_model(tmp_path_factory.mktemp("models") / "heavy", vocab_size=1 << 17, hidden_size=1024)


def spec(name: str, directory: Path) -> ModelSpec:
    return ModelSpec(f"bafy{name}", directory, (name,))


async def load(registry: Registry, name: str, directory: Path, *, pinned: bool = False) -> LoadedModel:
    model = await registry.load(spec(name, directory), device=GPU, pinned=pinned)
    assert (model.device, model.precision, model.implementation) == (GPU, "f32", "REAL")
    assert (model.device_bytes or 0) > 0
    return model


@pytest.mark.parametrize("which", ["heavy", "clip", "t5"])
async def test_ten_rounds_give_the_card_back(which: str, heavy: Path, figure: Callable[[str], None]) -> None:
    directory = {"heavy": heavy, "clip": CLIP, "t5": T5}[which]
    empty = used_bytes()
    async with registry_in_its_task() as registry:
        model = await load(registry, which, directory)
        first = used_bytes()
        await registry.unload(which)
        before = used_bytes()
        loaded: list[int] = []
        for _ in range(10):
            model = await load(registry, which, directory)
            await registry.infer(model, TEXTS)
            loaded.append(used_bytes())
            await registry.unload(which)
            assert gone(model.pid or 0)
        after = used_bytes()
    figure(
        f"{which}: card used {empty // MIB} MiB empty, {first // MIB} MiB with the model first loaded, "
        f"{before // MIB} MiB unloaded, {after // MIB} MiB after ten more rounds (loaded and used: "
        f"{min(loaded) // MIB} to {max(loaded) // MIB} MiB)"
    )
    assert first > empty
    assert after <= 1.05 * before
    assert before <= 1.05 * empty
    assert max(loaded) <= 1.05 * min(loaded)


@pytest.mark.parametrize("which", ["heavy", "clip"])
async def test_auto_takes_what_measures_best(
    which: str, heavy: Path, cache: Path, figure: Callable[[str], None]
) -> None:
    directory = heavy if which == "heavy" else CLIP
    async with registry_in_its_task(cache=cache) as registry:
        unmeasured = await registry.load(spec(which, directory))
        assert all(candidate.median_ms is None for candidate in unmeasured.choice)
        model = await registry.load(spec(which, directory), thorough=True)
        figure(f"{which}: " + "; ".join(f"{c.device} {c.median_ms} ms ({c.reason})" for c in model.choice))
        times = {c.device: c.median_ms for c in model.choice if c.median_ms is not None}
        assert {"cpu", GPU} <= set(times)
        assert model.device == min(times, key=lambda device: times[device])
        assert [c.device for c in model.choice if c.chosen] == [model.device]
        others = [c for c in model.choice if c.median_ms is not None and not c.chosen]
        assert all("× as long as" in c.reason for c in others)
        assert (await registry.infer(model, TEXTS)).model.device == model.device
        found = {one.device: one for one in await registry.accelerators()}
        assert found[GPU].available
        assert (found[GPU].total_bytes or 0) > 1 << 30
    async with registry_in_its_task(cache=cache) as later:
        again = await later.load(spec(which, directory))
        assert again.device == model.device
        assert all(c.reason.startswith("measured 2") for c in again.choice if c.device in times and not c.chosen)


@pytest.mark.parametrize("part", [0.75, 0.3], ids=["it says so before", "not even asking fits"])
async def test_a_full_card_makes_room(heavy: Path, part: float, figure: Callable[[str], None]) -> None:
    """The card has room for one model, and another comes: the one that is idle goes, one on the CPU stays."""
    gone_now: list[str] = []
    async with registry_in_its_task(gone=gone_now.append) as registry:
        on_host = await registry.load(spec("host", heavy), device="cpu")
        empty = used_bytes()
        first = await load(registry, "first", heavy)
        takes = used_bytes() - empty
        with leaving(int(part * takes)):
            second = await load(registry, "second", heavy)
            assert gone_now == ["bafyfirst"]
            assert gone(first.pid or 0)
            assert (await registry.infer(second, TEXTS)).model.pid == second.pid
            assert (await registry.infer(on_host, TEXTS)).model.pid == on_host.pid
    figure(
        f"one model takes {takes // MIB} MiB of the card; with {int(part * takes) // MIB} MiB left the idle one went"
    )


async def test_a_pinned_model_never_makes_room(heavy: Path) -> None:
    async with registry_in_its_task() as registry:
        empty = used_bytes()
        pinned = await load(registry, "pinned", heavy, pinned=True)
        with leaving(int(0.75 * (used_bytes() - empty))):
            with pytest.raises(Unavailable) as caught:
                await load(registry, "second", heavy)
            assert caught.value.code == "out_of_memory"
            assert [model.id for model in registry.loaded()] == ["pinned"]
            assert (await registry.infer(pinned, TEXTS)).model.pid == pinned.pid
        assert (await load(registry, "second", heavy)).device == GPU
