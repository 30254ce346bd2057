"""Inference by the native routes, on a whole node: every task, named devices, and what is said about a choice."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import pytest_asyncio

from ipfs_accelerate_node.inference.model import TASKS
from tests.support.gateway import FakeGateway, small_model
from tests.support.models import tiny_model
from tests.support.running import Running, running

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(90)]

DATA = base64.b64encode(b"what a picture or a sound would be").decode()
ITEMS: dict[str, tuple[Any, str]] = {
    "embedding": ("a text", "vector"),
    "text-classification": ({"first": "one", "second": "two"}, "scores"),
    "rerank": ({"first": "query", "second": "document"}, "scores"),
    "token-classification": ({"text": "Ada met Bob"}, "entities"),
    "fill-mask": ("Paris is the [MASK] of France", "fills"),
    "zero-shot-image-classification": ({"image": DATA, "labels": ["cat", "dog"]}, "scores"),
    "text2text-generation": ("a text", "text"),
    "text-generation": ({"messages": [{"role": "user", "content": "hello"}]}, "text"),
    "automatic-speech-recognition": ({"audio": DATA}, "text"),
    "image-classification": ({"image": DATA}, "scores"),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    async with running(tmp_path_factory.mktemp("infer") / "cache", threads=1) as node:
        yield node


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def root(here: Running, tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tiny_model(tmp_path_factory.mktemp("models") / "tiny")
    return (await here.node.add(directory, name="org/tiny")).root


async def infer(here: Running, ref: str, *items: Any, status: int = 200, **more: Any) -> Any:
    reply = await here.ask("POST", "/api/infer", json={"ref": ref, "items": list(items), **more})
    assert reply.status == status, reply.body
    return reply.json


@pytest.mark.parametrize("task", TASKS)
async def test_every_task_answers_in_its_own_shape_and_a_mock_says_so(here: Running, task: str) -> None:
    item, shape = ITEMS[task]
    reply = await here.ask("POST", "/api/infer", json={"ref": f"mock:{task}", "items": [item, item]})
    assert reply.status == 200, reply.body
    assert (reply.headers["X-Implementation"], reply.headers["X-Model-Source"]) == ("MOCK", "mock")
    body = reply.json
    assert (body["implementation"], body["task"], body["root"]) == ("MOCK", task, f"mock:{task}")
    assert body["warning"].startswith("MOCK")
    assert len(body["outputs"]) == 2
    assert shape in body["outputs"][0]
    assert body["outputs"][0] == body["outputs"][1]


async def test_a_stored_model_by_name_and_by_root(here: Running, root: str) -> None:
    reply = await here.ask("POST", "/api/infer", json={"ref": "org/tiny", "items": ["the cat"], "device": "cpu"})
    assert reply.status == 200, reply.body
    said = {
        name: reply.headers[f"X-{name}"] for name in ("Model-Root", "Device", "Engine", "Precision", "Implementation")
    }
    assert said == {
        "Model-Root": root, "Device": "cpu", "Engine": "torch", "Precision": "f32", "Implementation": "REAL",
    }  # fmt: skip
    body = reply.json
    assert (body["root"], body["task"], body["implementation"]) == (root, "embedding", "REAL")
    assert "warning" not in body
    assert (len(body["outputs"][0]["vector"]), body["outputs"][0]["tokens_in"], body["tokens"]) == (16, 4, 4)
    openai = await here.ask("POST", "/v1/embeddings", json={"model": root, "input": "the cat"})
    assert openai.json["data"][0]["embedding"] == body["outputs"][0]["vector"]
    cut = (await infer(here, root, "the cat", options={"dimensions": 4}))["outputs"][0]["vector"]
    length = math.hypot(*body["outputs"][0]["vector"][:4])
    assert cut == pytest.approx([number / length for number in body["outputs"][0]["vector"][:4]], abs=1e-5)


@pytest.mark.parametrize(
    ("item", "index"),
    [
        (7, 1),
        (None, 1),
        ({}, 1),
        ({"txt": "a"}, 1),
        ({"text": 5}, 1),
        ({"ids": [1, -1]}, 1),
        ({"ids": [True]}, 1),
        ({"image": "not base64!"}, 1),
        ({"image": "YQ"}, 1),
        ({"messages": [{"role": "user"}]}, 1),
        ("", 1),
        ({"ids": []}, 1),
        ({"first": "a", "second": "b"}, 1),
    ],
)
async def test_an_item_that_cannot_be_used_is_named(here: Running, item: Any, index: int) -> None:
    body = await infer(here, "mock:embedding", "fine", item, status=422)
    assert (body["code"], body["index"]) == ("invalid_input", index)


@pytest.mark.parametrize(
    "more",
    [
        {"options": {"top_k": 0}},
        {"options": {"temperature": -1}},
        {"options": {"top_p": 0}},
        {"options": {"max_new_tokens": 1 << 40}},
        {"options": {"seed": -1}},
        {"options": {"stop": ["x"] * 17}},
        {"options": {"truncate": "yes"}},
        {"precision": "f8"},
        {"task": ""},
        {"items": []},
        {"items": "a"},
    ],
)
async def test_settings_that_cannot_be(here: Running, root: str, more: dict[str, Any]) -> None:
    reply = await here.ask("POST", "/api/infer", json={"ref": root, "items": ["a"], "device": "cpu", **more})
    assert (reply.status, reply.json["code"]) == (422, "invalid_input"), reply.body


async def test_models_tasks_and_devices_that_are_not_there(here: Running, root: str) -> None:
    for body, status, code in (
        ({"ref": root, "device": "cuda:99"}, 422, "device_unavailable"),
        ({"ref": root, "device": "openvino:GPU.77"}, 422, "device_unavailable"),
        ({"ref": root, "task": "text-generation", "device": "cpu"}, 422, "task_unsupported"),
        ({"ref": "mock:nothing"}, 422, "task_unsupported"),
        ({"ref": "mock:embedding", "task": "rerank"}, 422, "task_unsupported"),
        ({"ref": "nobody"}, 404, "model_not_found"),
        ({"ref": "../x"}, 400, "invalid_path"),
    ):
        reply = await here.ask("POST", "/api/infer", json={"items": ["a"], **body})
        assert (reply.status, reply.json["code"]) == (status, code), (body, reply.body)


async def test_a_mock_stands_in_only_where_that_was_allowed(here: Running, root: str) -> None:
    reply = await infer(here, "nobody", "a [MASK]", task="fill-mask", allow_mock=True)
    assert (reply["implementation"], reply["root"]) == ("MOCK", "mock:fill-mask")
    assert "nobody is not in the store" in reply["warning"]
    assert (await infer(here, "nobody", "a [MASK]", task="fill-mask", status=404))["code"] == "model_not_found"
    assert (await infer(here, "nobody", "a", allow_mock=True, status=404))["code"] == "model_not_found"
    refused = await infer(here, root, "a", device="cuda:99", task="embedding", allow_mock=True, status=422)
    assert refused["code"] == "device_unavailable"


async def test_loads_say_what_is_where_and_why(here: Running, root: str) -> None:
    body = {"ref": root, "device": "cpu", "as": "mine", "keep_alive": 3600, "pinned": True, "task": "embedding"}
    loaded = (await here.admin("POST", "/api/loads", json=body)).json
    assert (loaded["id"], loaded["device"], loaded["state"], loaded["task"]) == ("mine", "cpu", "ready", "embedding")
    assert (loaded["keep_alive_s"], loaded["pinned"], loaded["choice"]) == (3600.0, True, [])
    for_ever = (await here.admin("POST", "/api/loads", json={"ref": root, "device": "cpu", "keep_alive": -1})).json
    assert (for_ever["keep_alive_s"], for_ever["pinned"], for_ever["pid"]) == (None, True, loaded["pid"])
    info = (await here.admin("GET", f"/api/store/{root}")).json
    assert [one["device"] for one in info["loads"]] == ["cpu"]
    found = (await here.ask("GET", "/api/accelerators")).json
    assert {one["device"] for one in found["accelerators"]} >= {"cpu", "openvino:CPU"}
    choice = next(one for one in found["choices"] if one["root"] == root)
    assert (choice["id"], choice["device"], choice["candidates"]) == ("mine", "cpu", [])
    assert (await here.admin("DELETE", "/api/loads/mine")).status == 200
    assert (await here.admin("DELETE", f"/api/store/{root}?force=true")).status == 200  # nothing holds it any more


async def test_pictures_reach_the_model_as_they_are(here: Running) -> None:
    file = io.BytesIO()
    PIL.Image.new("RGB", (8, 8), "red").save(file, "PNG")
    encoded = base64.b64encode(file.getvalue()).decode()
    reply = await infer(here, "mock:image-classification", {"image": encoded}, options={"top_k": 2})
    assert len(reply["outputs"][0]["scores"]) == 2


async def test_wrong_types_of_loads(here: Running) -> None:
    for body in ({"keep_alive": -0.5}, {"keep_alive": "x"}, {"pinned": 3}, {"precision": ""}, {"task": "x" * 65}):
        reply = await here.admin("POST", "/api/loads", json={"ref": "mock:embedding", **body})
        assert (reply.status, reply.json["code"]) == (422, "invalid_input"), body


async def test_every_task_is_tried() -> None:
    assert set(ITEMS) == set(TASKS)


async def test_a_model_that_is_being_fetched_is_on_its_way(here: Running) -> None:
    coming = small_model({"config.json": b"{}" * 100})
    async with FakeGateway(coming.blocks) as gateway:
        gateway.gate.clear()
        root = str(coming.root)
        await here.admin("POST", "/api/pins", json={"ref": root, "name": "coming", "source": gateway.url})
        await gateway.arrived.wait()
        found = [one for one in (await here.ask("GET", "/api/loads")).json["loads"] if one["state"] == "fetching"]
        assert [(one["id"], one["root"], one["bytes_done"]) for one in found] == [("coming", root, 0)]
        assert (await here.ask("GET", f"/api/loads/{root}")).json["state"] == "fetching"
        reply = await here.ask("POST", "/api/infer", json={"ref": root, "items": ["a"]})
        assert (reply.status, reply.json["code"]) == (503, "loading")
        assert reply.headers["Retry-After"]
        await here.admin("DELETE", f"/api/pins/{root}")
    assert (await here.ask("GET", f"/api/loads/{root}")).status == 404


@pytest.mark.timeout(240)
async def test_a_measured_choice_is_shown_and_goes_with_its_model(here: Running, tmp_path: Path) -> None:
    root = (await here.node.add(tiny_model(tmp_path / "other", seed=5), name="other")).root
    loaded = await here.admin("POST", "/api/loads", json={"ref": "other"})
    assert loaded.status == 200, loaded.body
    choice = loaded.json["choice"]
    assert {one["device"] for one in choice} >= {"cpu", "openvino:CPU"}
    assert (choice[0]["device"], choice[0]["chosen"]) == (loaded.json["device"], True)
    assert all(one["median_ms"] for one in choice if not one["reason"].startswith("does not run"))
    shown = (await here.admin("GET", "/api/store/other")).json["loads"]
    assert [one["choice"] for one in shown] == [choice]
    listed = (await here.ask("GET", "/api/accelerators")).json["choices"]
    assert [one["candidates"] for one in listed if one["root"] == root] == [choice]
    kept = here.node.config.cache / "artefacts"
    assert len(list(kept.iterdir())) == 1
    refused = await here.admin("DELETE", "/api/store/other?force=true")
    assert (refused.status, refused.json["code"]) == (409, "conflict")
    await here.admin("DELETE", "/api/loads/other")
    assert (await here.admin("DELETE", "/api/store/other?force=true")).status == 200
    assert list(kept.iterdir()) == []
