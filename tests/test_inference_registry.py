"""The registry with real worker processes; what becomes of requests when one crashes, hangs or is cancelled (F25)."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from ipfs_accelerate_node.errors import (
    Conflict,
    DeviceUnavailable,
    InferenceFailed,
    InvalidInput,
    ModelUnsupported,
    NotFound,
    Overloaded,
    PayloadTooLarge,
    Unavailable,
)
from ipfs_accelerate_node.inference import lanes
from ipfs_accelerate_node.inference.model import Embeddings, LoadedModel, ModelSpec
from ipfs_accelerate_node.inference.process import worker_environment
from ipfs_accelerate_node.inference.registry import Registry
from tests.support.models import WORDS, tiny_model, write_json
from tests.support.workers import at_work, ended, gone, registry_in_its_task, until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(90)]

MOCK = ModelSpec("mock:embedding", None, source="mock", mock=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def registry() -> AsyncIterator[Registry]:
    async with registry_in_its_task(silence_s=5.0, steady_s=0.0) as registry:
        yield registry


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest_asyncio.fixture(loop_scope="module")
async def model(registry: Registry, directory: Path) -> LoadedModel:
    """The shared tiny model, loaded (again, if a test left it otherwise)."""
    return await registry.load(ModelSpec("bafytiny", directory, ("tiny",), source="cid"))


async def test_load_tells_what_it_read_back(model: LoadedModel) -> None:
    assert (model.id, model.root, model.state) == ("tiny", "bafytiny", "ready")
    assert (model.implementation, model.engine, model.device) == ("REAL", "torch", "cpu")
    assert (model.precision, model.source, model.task) == ("f32", "cid", "embedding")
    assert (model.width, model.max_tokens, model.vocab_size) == (16, 40, len(WORDS))
    assert model.pid not in (None, os.getpid())
    assert model.memory_bytes > 50 << 20
    assert model.load_s > 0
    assert {"torch", "tokenizers", "safetensors"} <= model.versions.keys()


async def test_embed(registry: Registry, model: LoadedModel) -> None:
    found = await registry.embed("tiny", ["the cat", "hello world", "the cat"])
    assert found.vectors.shape == (3, 16)
    assert found.vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(found.vectors[0], found.vectors[2], atol=1e-6)
    assert (found.prompt_tokens, found.truncated, found.model.root) == (12, 0, "bafytiny")


async def test_token_ids_are_the_same_as_their_text(registry: Registry, model: LoadedModel) -> None:
    ids = [WORDS.index(word) for word in ("[CLS]", "the", "cat", "[SEP]")]
    text, numbers = await registry.embed(model, ["the cat"]), await registry.embed(model, [ids])
    np.testing.assert_array_equal(text.vectors, numbers.vectors)


async def test_dimensions_cut_then_normalise(registry: Registry, model: LoadedModel) -> None:
    whole = (await registry.embed(model, ["the cat"])).vectors[0, :4]
    cut = (await registry.embed(model, ["the cat"], dimensions=4)).vectors[0]
    np.testing.assert_allclose(cut, whole / np.linalg.norm(whole), atol=1e-6)
    raw = (await registry.embed(model, ["the cat"], dimensions=4, normalize=False)).vectors[0]
    assert abs(np.linalg.norm(raw) - 1) > 1e-3


async def test_wrong_input_costs_only_its_caller(registry: Registry, model: LoadedModel) -> None:
    wrong: list[list[str] | list[list[int]]] = [["ok", ""], ["a\0"], ["\ud800"], [[len(WORDS)]], [[1], []]]
    for inputs in wrong:
        with pytest.raises(InvalidInput):
            await registry.embed(model, inputs)
    with pytest.raises(PayloadTooLarge) as caught:
        await registry.embed(model, ["cat", "cat " * 60], truncate=False)
    assert caught.value.detail == {"param": "input", "index": 1}
    assert (await registry.embed(model, ["cat " * 60])).truncated == 1


async def test_every_caller_gets_its_own_answer(registry: Registry, model: LoadedModel) -> None:
    texts = [f"{WORDS[30 + i % 30].removeprefix('##')} {'cat ' * (i % 7)}" for i in range(60)]
    together = (await registry.embed(model, texts)).vectors
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(registry.embed(model, [text])) for text in texts]
    for index, task in enumerate(tasks):
        np.testing.assert_allclose(task.result().vectors[0], together[index], atol=1e-5)


async def test_names(registry: Registry, model: LoadedModel, directory: Path, tmp_path: Path) -> None:
    for name in ("bafytiny", "tiny"):
        assert registry.find(name) == registry.find("bafytiny")
    assert registry.find("other") is None
    again = await registry.load(ModelSpec("bafytiny", directory), alias="short")
    assert again.pid == model.pid
    assert registry.find("short") is not None
    with pytest.raises(Conflict):
        await registry.load(ModelSpec("bafyother", tmp_path, ("tiny",)))
    with pytest.raises(NotFound):
        await registry.embed("other", ["x"])
    with pytest.raises(NotFound):
        await registry.unload("other")


async def test_devices_and_precisions_that_are_not_there(registry: Registry, directory: Path) -> None:
    spec = ModelSpec("bafyother", directory)
    for device in ("cuda:0", "openvino:GPU", "tpu", ""):
        with pytest.raises(DeviceUnavailable, match="not available"):
            await registry.load(spec, device=device)
    with pytest.raises(InvalidInput):
        await registry.load(spec, precision="int3")
    assert registry.find("bafyother") is None


async def test_callers_of_one_load_join_and_one_may_leave(registry: Registry, directory: Path) -> None:
    spec = ModelSpec("bafyjoin", directory, ("join",))
    leaver = asyncio.create_task(registry.load(spec))
    stayers = [asyncio.create_task(registry.load(spec)) for _ in range(3)]
    for _ in range(3):
        await asyncio.sleep(0)
    found = registry.find("join")
    assert found is not None
    assert (found.state, found.device) == ("loading", "")
    leaver.cancel()
    early = asyncio.create_task(registry.embed("join", ["the cat"]))
    loaded = await asyncio.gather(*stayers)
    assert leaver.cancelled()
    assert len({model.pid for model in loaded}) == 1
    assert (await early).vectors.shape == (1, 16)
    await registry.unload("join")
    assert registry.find("join") is None
    assert gone(loaded[0].pid or 0)


async def test_unloading_finishes_what_is_queued(registry: Registry, model: LoadedModel) -> None:
    queued = [asyncio.create_task(registry.embed(model, ["the cat " * 10] * 50)) for _ in range(5)]
    await asyncio.sleep(0)
    await registry.unload("tiny")
    assert [task.result().vectors.shape for task in queued] == [(50, 16)] * 5
    with pytest.raises(NotFound):
        await registry.embed("tiny", ["x"])
    assert gone(model.pid or 0)


async def test_refused_models_leave_nothing_behind(registry: Registry, tmp_path: Path) -> None:
    spoiled = tiny_model(tmp_path / "m")
    write_json(spoiled / "config.json", {"model_type": "bert", "auto_map": {"AutoModel": "x.Y"}})
    with pytest.raises(ModelUnsupported) as caught:
        await registry.load(ModelSpec("bafyspoiled", spoiled))
    assert caught.value.code == "remote_code_refused"
    assert registry.find("bafyspoiled") is None
    (spoiled / "tokenizer.json").write_text('{"model": {"type": "Nonsense"}}')
    shutil.copy(tiny_model(tmp_path / "good") / "config.json", spoiled / "config.json")
    with pytest.raises(ModelUnsupported) as caught:
        await registry.load(ModelSpec("bafyspoiled", spoiled))
    assert caught.value.code == "bad_config"


async def fill(registry: Registry, count: int) -> list[asyncio.Task[Embeddings]]:
    """Requests of some hundred milliseconds each, all queued; the worker is at the first one."""
    texts = [[f"{WORDS[4 + number]} " + "the cat sat on " * 9] * 1500 for number in range(count)]
    tasks = [asyncio.create_task(registry.embed("tiny", inputs)) for inputs in texts]
    for _ in range(3):
        await asyncio.sleep(0)
    await at_work(registry, "tiny")
    return tasks


@pytest.mark.parametrize("fatal", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
async def test_a_crash_costs_the_request_it_was_at(
    registry: Registry, model: LoadedModel, fatal: signal.Signals
) -> None:
    first, second = await fill(registry, 2)
    os.kill(model.pid or 0, fatal)
    with pytest.raises(Unavailable, match=fatal.name) as caught:
        await first
    assert caught.value.code == "worker_crashed"
    assert caught.value.retry_after_s
    assert (await second).vectors.shape == (1500, 16)
    respawned = registry.find("tiny")
    assert respawned is not None
    assert respawned.pid != model.pid


async def test_a_crash_while_idle_is_seen_at_once(registry: Registry, model: LoadedModel) -> None:
    os.kill(model.pid or 0, signal.SIGKILL)
    await ended(model.pid or 0)
    assert (await registry.embed("tiny", ["the cat"])).model.pid != model.pid


async def test_a_hang_is_ended_and_costs_one_request(registry: Registry, model: LoadedModel) -> None:
    os.kill(model.pid or 0, signal.SIGSTOP)
    with pytest.raises(Unavailable, match="no sign of life") as caught:
        await registry.embed("tiny", ["the cat"])
    assert caught.value.code == "worker_crashed"
    assert gone(model.pid or 0)
    assert (await registry.embed("tiny", ["the cat"])).vectors.shape == (1, 16)


async def test_cancelled_callers_free_their_places(registry: Registry, model: LoadedModel) -> None:
    tasks = await fill(registry, 12)
    for task in tasks[:11]:
        task.cancel()
    assert (await tasks[11]).vectors.shape == (1500, 16)
    assert all(task.cancelled() for task in tasks[:11])
    await until(lambda: not registry.waiting(model))  # the one that was computed, to the end of its pass
    found = registry.find("tiny")
    assert found is not None
    assert found.pid == model.pid


async def test_a_full_queue_is_refused_at_once(
    registry: Registry, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "MAX_QUEUED", 2)
    tasks = await fill(registry, 4)
    refused = [task for task in tasks if task.done()]
    assert refused
    for task in refused:
        assert isinstance(task.exception(), Overloaded)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_weights_that_give_no_number_fail_alone(registry: Registry, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    spoiled = tiny_model(tmp_path / "nan")
    weights = load_file(spoiled / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][WORDS.index("cat")] = np.inf
    save_file(weights, spoiled / "model.safetensors")
    model = await registry.load(ModelSpec("bafynan", spoiled))
    with pytest.raises(InferenceFailed, match="not finite"):
        await registry.embed(model, ["one", "cat"])
    assert np.isfinite((await registry.embed(model, ["one"])).vectors).all()
    await registry.unload("bafynan")


async def test_s9_a_file_cut_under_a_loaded_model(registry: Registry, tmp_path: Path) -> None:
    """The mapping's end is a bus error: it ends the worker, not the daemon, and what is left does not load."""
    cut = tiny_model(tmp_path / "cut", hidden_size=64, intermediate_size=2048)
    model = await registry.load(ModelSpec("bafycut", cut))
    os.truncate(cut / "model.safetensors", 4096)
    with pytest.raises(Unavailable, match="SIGBUS"):
        await registry.embed(model, ["the cat"])
    with pytest.raises(ModelUnsupported) as caught:
        await registry.load(ModelSpec("bafycut", cut))
    assert caught.value.code == "bad_weights"


async def test_accelerators(registry: Registry) -> None:
    found = await registry.accelerators()
    assert found[0].device == "cpu"
    assert found[0].available
    assert found[0].total_bytes
    assert all(device.available or device.reason for device in found)
    assert await registry.accelerators() == found


async def test_mock(registry: Registry) -> None:
    model = await registry.load(MOCK, alias="pretend")
    assert (model.implementation, model.root, model.source) == ("MOCK", "mock:embedding", "mock")
    found = await registry.embed("pretend", ["x", "y"], dimensions=8)
    assert found.vectors.shape == (2, 8)
    assert found.model.implementation == "MOCK"
    with pytest.raises(ModelUnsupported):
        await registry.load(ModelSpec("mock:other", None, source="mock", mock=True))
    await registry.unload("mock:embedding")
    assert registry.find("pretend") is None


async def test_a_worker_knows_no_secret_of_ours(model: LoadedModel) -> None:
    known = Path(f"/proc/{model.pid}/environ").read_bytes().decode().split("\0")
    names = {line.partition("=")[0] for line in known if line}
    assert names == set(worker_environment(1))
    assert {"HF_HUB_OFFLINE=1", "TRANSFORMERS_OFFLINE=1"} <= set(known)
    limits = Path(f"/proc/{model.pid}/limits").read_text()
    assert "Max core file size        0 " in limits
