"""One model on several devices: converted, measured, chosen, and held by a worker that never imports torch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from ipfs_accelerate_node.errors import Conflict, DeviceUnavailable, InvalidInput, ModelUnsupported, NodeError
from ipfs_accelerate_node.inference.model import LoadedModel, ModelSpec, Options, State, Text
from ipfs_accelerate_node.inference.registry import Registry
from tests.support.models import tiny_model
from tests.support.workers import gone, registry_in_its_task

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]

ROOT = "bafychoice"
OPENVINO = "openvino:CPU"


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return ModelSpec(ROOT, tiny_model(tmp_path_factory.mktemp("models") / "tiny"), ("tiny",), source="local")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def registry(kept: Path) -> AsyncIterator[Registry]:
    async with registry_in_its_task(cache=kept) as registry:
        yield registry


async def states_until_ready(registry: Registry, spec: ModelSpec, device: str) -> tuple[LoadedModel, list[State]]:
    loading = asyncio.create_task(registry.load(spec, device=device))
    seen: list[State] = ["absent"]
    while not loading.done():
        found = registry.find(spec.root)
        if found is not None and found.state != seen[-1]:
            seen.append(found.state)
        await asyncio.sleep(0)
    return loading.result(), seen


async def test_a_first_request_is_not_kept_waiting_for_measurements(registry: Registry, spec: ModelSpec) -> None:
    model = await registry.load(spec)
    assert model.device == "cpu"
    chosen, other = model.choice
    assert (chosen.device, chosen.precision, chosen.chosen, chosen.median_ms) == ("cpu", "f32", True, None)
    assert (other.device, other.chosen) == (OPENVINO, False)
    assert "not measured yet" in other.reason
    await registry.unload("tiny")


async def test_the_way_to_openvino(registry: Registry, spec: ModelSpec, kept: Path) -> None:
    model, seen = await states_until_ready(registry, spec, OPENVINO)
    assert [state for state in seen if state != "warming"] == ["absent", "loading", "converting", "loading", "ready"]
    assert (model.device, model.engine, model.precision, model.implementation) == (OPENVINO, "openvino", "f32", "REAL")
    assert "openvino" in model.versions
    assert model.choice == ()
    assert list((kept / "artefacts").iterdir())


async def test_an_openvino_worker_never_imports_torch(registry: Registry, spec: ModelSpec) -> None:
    model = await registry.load(spec, device=OPENVINO)
    await registry.infer(model, [Text("hello world")])
    imported = await registry.imports(model)
    assert "openvino" in imported
    assert not imported & {"torch", "transformers", "nncf"}
    here = await registry.load(spec, device="cpu")
    assert "torch" in await registry.imports(here)
    await registry.unload("tiny")


async def test_two_devices_at_once_agree_and_are_told_apart(registry: Registry, spec: ModelSpec) -> None:
    ours, theirs = await asyncio.gather(
        registry.load(spec, device="cpu", alias="on-torch"), registry.load(spec, device=OPENVINO, alias="on-openvino")
    )
    assert (ours.device, theirs.device) == ("cpu", OPENVINO)
    assert ours.pid != theirs.pid
    for name, device in (("on-torch", "cpu"), ("on-openvino", OPENVINO)):
        assert (await registry.infer(name, [Text("hello")])).model.device == device
    for model in (ours, theirs):
        assert (await registry.infer(model, [Text("hello")])).model.pid == model.pid
    found = registry.find_like(ROOT, task="embedding", device=OPENVINO, precision="f32")
    assert found is not None
    assert found.pid == theirs.pid
    assert registry.find_like(ROOT, task="embedding", device="cpu", precision="bf16") is None
    with pytest.raises(Conflict):
        await registry.load(spec, device="cpu", alias="on-openvino")
    items = await registry.examples(ours, 4)
    assert items == await registry.examples(theirs, 4)
    for item in items:
        one, other = await registry.primary(ours, item), await registry.primary(theirs, item)
        np.testing.assert_allclose(one, other, atol=1e-5)
    await registry.unload("on-torch")
    assert registry.find("tiny") is not None
    await registry.load(spec, device="cpu")
    await registry.unload("tiny")
    assert registry.loaded() == []
    assert gone(ours.pid or 0)
    assert gone(theirs.pid or 0)


async def test_a_model_is_put_where_it_was_measured_to_be_fastest(registry: Registry, spec: ModelSpec) -> None:
    unmeasured = await registry.load(spec)
    model = await registry.load(spec, thorough=True)
    assert model.pid != unmeasured.pid
    measured = {candidate.device: candidate for candidate in model.choice}
    assert set(measured) == {"cpu", OPENVINO}
    times = {device: candidate.median_ms for device, candidate in measured.items()}
    assert all(times.values())
    assert model.device == min(times, key=lambda device: times[device] or 0)
    assert [c.chosen for c in model.choice] == [True, False]
    assert "× as long as" in model.choice[1].reason
    assert (await registry.load(spec, thorough=True)).pid == model.pid
    assert model.precision == "f32"  # who was answered by the first one goes on to be answered in its precision
    await registry.unload("tiny")


async def test_what_was_measured_holds_for_the_next_start(spec: ModelSpec, kept: Path, registry: Registry) -> None:
    async with registry_in_its_task(cache=kept) as later:
        model = await later.load(spec)
        assert all(candidate.median_ms for candidate in model.choice)
        assert all(candidate.reason.startswith("measured 2") for candidate in model.choice)
        assert model.choice[0].device == model.device


async def test_from_a_saved_artefact_to_the_first_vector(
    spec: ModelSpec, kept: Path, registry: Registry, figure: Callable[[str], None]
) -> None:
    async with registry_in_its_task(cache=kept) as later:
        began = time.perf_counter()
        model = await later.load(spec, device=OPENVINO)
        await later.infer(model, [Text("hello world")])
        figure(f"new OpenVINO worker to first vector: {time.perf_counter() - began:.2f} s")
        assert not await later.imports(model) & {"torch", "transformers"}


async def test_named_devices_that_are_not_here_are_refused(registry: Registry, spec: ModelSpec) -> None:
    for device in ("cuda:99", "openvino:NPU.7", "openvino:TPU", "cpu:0", "CPU", "mps", "auto "):
        with pytest.raises(DeviceUnavailable) as caught:
            await registry.load(spec, device=device)
        assert device in str(caught.value)
    async with registry_in_its_task() as without:
        with pytest.raises(DeviceUnavailable, match="no converted models"):
            await without.load(spec, device=OPENVINO)
    assert registry.loaded() == []


async def test_tasks_and_precisions_that_a_model_has_not(registry: Registry, spec: ModelSpec) -> None:
    with pytest.raises(ModelUnsupported) as caught:
        await registry.load(spec, device="cpu", task="text-generation")
    assert caught.value.code == "task_unsupported"
    with pytest.raises(InvalidInput):
        await registry.load(spec, precision="f8")
    with pytest.raises(NodeError):
        await registry.load(spec, device="cpu", precision="int8")
    assert registry.loaded() == []


async def test_bf16_says_so_and_is_another_form_of_the_model(registry: Registry, spec: ModelSpec) -> None:
    exact, rough = await registry.load(spec, device="cpu"), await registry.load(spec, device="cpu", precision="bf16")
    assert (exact.precision, rough.precision) == ("f32", "bf16")
    one, other = [(await registry.infer(m, [Text("the cat")])).outputs[0] for m in (exact, rough)]
    assert np.dot(one.values, other.values) >= 0.999  # type: ignore[union-attr]
    await registry.unload("tiny")


async def test_dimensions_beyond_the_width_are_refused_before_the_worker(registry: Registry, spec: ModelSpec) -> None:
    model = await registry.load(spec, device="cpu")
    with pytest.raises(InvalidInput) as caught:
        await registry.infer(model, [Text("a")], Options(dimensions=17))
    assert caught.value.detail["param"] == "dimensions"
    with pytest.raises(ModelUnsupported):
        await registry.infer("tiny", [Text("a")], task="text-generation")
    await registry.unload("tiny")
