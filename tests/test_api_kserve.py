"""KServe's protocol v2 with Triton's client, sync and async: JSON and binary tensors, both orders of outputs, the
repository; and with bodies that no client would send."""

from __future__ import annotations

import asyncio
import gzip
import json
import struct
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from ipfs_accelerate_node.api.kserve_bodies import INFER_LIMIT_BYTES
from tests.support.models import tiny_model
from tests.support.running import Running, running
from tests.support.sample import CLIP, DATA, T5

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

TINY = "org/tiny"
PICTURE = (DATA / "images" / "chelsea.jpg").read_bytes()
LENGTH = "Inference-Header-Content-Length"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    folder = tmp_path_factory.mktemp("kserve")
    async with running(folder / "cache", threads=1) as node:
        await node.node.add(tiny_model(folder / "tiny"), name=TINY)
        await node.node.add(CLIP, name="own/clip")
        await node.node.add(T5, name="own/t5")
        for name in (TINY, "own/clip", "own/t5"):
            await node.node.serving.load(name)
        await node.node.serving.load("own/clip", task="zero-shot-image-classification")
        yield node


async def ask(here: Running, call: Callable[[Any], Any]) -> Any:
    """With the blocking client, off the loop that serves it."""

    def work() -> Any:
        with triton.InferenceServerClient(here.url.removeprefix("http://")) as client:
            return call(client)

    return await asyncio.to_thread(work)


def tensor(name: str, *values: str | bytes, binary: bool = True) -> triton.InferInput:
    made = triton.InferInput(name, [len(values)], "BYTES")
    array = np.array([one.encode() if isinstance(one, str) else one for one in values], dtype=np.object_)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


async def vectors_of(here: Running, *texts: str) -> Any:
    reply = await here.ask("POST", "/v1/embeddings", json={"model": TINY, "input": list(texts)})
    return np.array([one["embedding"] for one in reply.json["data"]], dtype=np.float32)


async def test_the_server_and_its_models_describe_themselves(here: Running) -> None:
    root = str(here.node.find(TINY).root)

    def look(client: Any) -> None:
        assert client.is_server_live()
        assert client.is_server_ready()
        about = client.get_server_metadata()
        assert about["name"] == "ipfs-accelerate-node"
        assert set(about["extensions"]) == {"binary_tensor_data", "model_repository", "statistics"}
        for name in (TINY, root):
            assert client.is_model_ready(name)
            assert client.is_model_ready(name, "1")
            assert client.get_model_metadata(name)["outputs"] == [
                {"name": "embedding", "datatype": "FP32", "shape": [-1, 16]},
                {"name": "last_hidden_state", "datatype": "FP32", "shape": [-1, -1, -1]},
                {"name": "attention_mask", "datatype": "INT64", "shape": [-1, -1]},
            ]
            assert client.get_model_metadata(name, "1")["inputs"] == [
                {"name": "text", "datatype": "BYTES", "shape": [-1]}
            ]
            assert client.get_model_config(name)["input"] == [
                {"name": "text", "data_type": "TYPE_STRING", "dims": [-1]}
            ]
        assert not client.is_model_ready("nobody/nothing")
        assert not client.is_model_ready(TINY, "2")

    await ask(here, look)


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
async def test_texts_to_vectors_in_every_spelling(here: Running, binary_in: bool, binary_out: bool | None) -> None:
    outputs = None if binary_out is None else [triton.InferRequestedOutput("embedding", binary_data=binary_out)]
    found = await ask(
        here,
        lambda client: client.infer(
            TINY, [tensor("text", "the cat", "one", binary=binary_in)], outputs=outputs, request_id="mine"
        ),
    )
    assert np.allclose(found.as_numpy("embedding"), await vectors_of(here, "the cat", "one"), atol=1e-6)
    said = found.get_response()
    assert (said["model_name"], said["model_version"], said["id"]) == (TINY, "1", "mine")
    assert ("data" in said["outputs"][0]) == (binary_out is False)


async def test_token_ids_with_their_mask(here: Running) -> None:
    ids = np.array([[2, 56, 57, 3], [2, 58, 3, 0]], dtype=np.int64)
    mask = np.array([[1, 1, 1, 1], [1, 1, 1, 0]], dtype=np.int64)
    inputs = []
    for name, values in (("input_ids", ids), ("attention_mask", mask)):
        one = triton.InferInput(name, list(values.shape), "INT64")
        one.set_data_from_numpy(values)
        inputs.append(one)
    found = await ask(here, lambda client: client.infer(TINY, inputs))
    body = {"model": TINY, "input": [[2, 56, 57, 3], [2, 58, 3]]}
    reply = await here.ask("POST", "/v1/embeddings", json=body)
    wanted = np.array([one["embedding"] for one in reply.json["data"]])
    assert np.allclose(found.as_numpy("embedding"), wanted, atol=1e-5)


@pytest.mark.parametrize("order", [("label", "score"), ("score", "label"), ("score",)])
@pytest.mark.parametrize("binary", [(True, True), (False, False), (True, False), (False, True)])
async def test_outputs_come_in_the_order_that_was_asked_for(
    here: Running, order: tuple[str, ...], binary: tuple[bool, bool]
) -> None:
    outputs = [triton.InferRequestedOutput(name, binary_data=b) for name, b in zip(order, binary, strict=False)]
    found = await ask(
        here, lambda client: client.infer("mock:text-classification", [tensor("text", "a", "b")], outputs=outputs)
    )
    said = found.get_response()
    assert [one["name"] for one in said["outputs"]] == list(order)
    assert found.as_numpy("score").shape == (2, 5)
    if "label" in order:
        assert found.as_numpy("label").shape == (2, 5)
        assert {bytes(one, "utf-8") if isinstance(one, str) else one for one in found.as_numpy("label").flat} == {
            f"LABEL_{i}".encode() for i in range(5)
        }
    assert said["implementation"] == "MOCK"


async def test_pictures_labels_and_written_texts(here: Running) -> None:
    found = await ask(
        here, lambda client: client.infer("own/clip", [tensor("image", PICTURE), tensor("labels", "a cat", "a dog")])
    )
    assert found.as_numpy("score").shape == (1, 2)
    assert float(found.as_numpy("score").sum()) == pytest.approx(1, abs=1e-5)
    written = await ask(here, lambda client: client.infer("own/t5", [tensor("text", "cat", "mat")]))
    assert len(written.as_numpy("text")) == len(written.as_numpy("finish")) == 2
    plain = await here.ask("POST", "/v1/completions", json={"model": "own/t5", "prompt": "cat", "temperature": 0})
    limited = await ask(
        here, lambda client: client.infer("own/t5", [tensor("text", "cat")], parameters={"max_tokens": 16})
    )
    assert limited.as_numpy("text")[0].decode() == plain.json["choices"][0]["text"]
    ranks = await ask(
        here, lambda client: client.infer("mock:rerank", [tensor("query", "q"), tensor("text", "a", "b")])
    )
    assert ranks.as_numpy("score").shape == (2,)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_compressed_both_ways(here: Running, coding: str) -> None:
    found = await ask(
        here,
        lambda client: client.infer(
            TINY,
            [tensor("text", "the cat")],
            request_compression_algorithm=coding,
            response_compression_algorithm=coding,
        ),
    )
    assert np.allclose(found.as_numpy("embedding"), await vectors_of(here, "the cat"), atol=1e-6)


async def test_the_async_client_and_two_models_at_once(here: Running) -> None:
    async with triton_aio.InferenceServerClient(here.url.removeprefix("http://")) as client:
        assert await client.is_server_ready()
        calls = [
            client.infer(name, [tensor("text", word)]) for word in ("cat", "mat", "one") for name in (TINY, "own/t5")
        ]
        found = await asyncio.gather(*calls)
        for at, word in enumerate(("cat", "mat", "one")):
            assert np.allclose(found[2 * at].as_numpy("embedding"), await vectors_of(here, word), atol=1e-5)
            assert found[2 * at + 1].as_numpy("text").shape == (1,)


async def test_models_come_and_go_with_the_admin_key_only(here: Running) -> None:
    key = {"Authorization": f"Bearer {here.key}"}

    def work(client: Any) -> None:
        with pytest.raises(InferenceServerException) as caught:
            client.load_model("own/t5")
        assert caught.value.status() == "401"
        client.load_model("own/t5", headers=key)
        assert client.is_model_ready("own/t5")
        states = {one["name"]: one["state"] for one in client.get_model_repository_index()}
        assert states["own/t5"] == "READY"
        client.unload_model("own/t5", headers=key)
        assert not client.is_model_ready("own/t5")
        states = {one["name"]: one["state"] for one in client.get_model_repository_index()}
        assert states["own/t5"] == "UNAVAILABLE"
        with pytest.raises(InferenceServerException) as missing:
            client.load_model("nobody/nothing", headers=key)
        assert missing.value.status() == "404"
        with pytest.raises(InferenceServerException) as refused:
            client.load_model("own/t5", headers=key, config="{}")
        assert refused.value.status() == "400"

    await ask(here, work)


async def test_a_raw_body_is_the_one_input(here: Running) -> None:
    reply = await here.ask(
        "POST",
        f"/v2/models/{TINY}/infer",
        data=b"the cat",
        headers={LENGTH: "0", "Content-Type": "application/octet-stream"},
    )
    assert reply.status == 200, reply.body
    length = int(reply.headers[LENGTH])
    said = json.loads(reply.body[:length])
    assert said["outputs"][0]["parameters"] == {"binary_data_size": 64}
    vector = np.frombuffer(reply.body[length:], dtype="<f4")
    assert np.allclose(vector, (await vectors_of(here, "the cat"))[0], atol=1e-6)


async def test_headers_and_marks(here: Running) -> None:
    text = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}
    reply = await here.ask("POST", "/v2/models/mock:embedding/infer", json={"inputs": [text]})
    assert (reply.headers["X-Implementation"], reply.json["implementation"]) == ("MOCK", "MOCK")
    reply = await here.ask("POST", f"/v2/models/{TINY}/infer", json={"inputs": [text]})
    assert reply.headers["X-Model-Root"] == str(here.node.find(TINY).root)
    assert "implementation" not in reply.json
    assert "id" not in reply.json


def text_input(**changes: Any) -> dict[str, Any]:
    return {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"], **changes}


BAD: dict[str, tuple[Any, int]] = {
    "no inputs": ({"inputs": []}, 400),
    "none at all": ({}, 400),
    "another name": ({"inputs": [text_input(name="words")]}, 400),
    "twice": ({"inputs": [text_input(), text_input()]}, 400),
    "too few": ({"inputs": [text_input(shape=[2])]}, 400),
    "too many": ({"inputs": [text_input(data=["a", "b"])]}, 400),
    "negative": ({"inputs": [text_input(shape=[-1])]}, 400),
    "huge": ({"inputs": [text_input(shape=[1 << 31, 1 << 31])]}, 400),
    "nine dimensions": ({"inputs": [text_input(shape=[1] * 9)]}, 400),
    "ragged": ({"inputs": [text_input(shape=[2, 2], data=[["a", "b"], ["c"]])]}, 400),
    "deep": ({"inputs": [text_input(shape=[1, 1], data=[[["a"]]])]}, 400),
    "numbers": ({"inputs": [text_input(data=[1])]}, 400),
    "unknown type": ({"inputs": [text_input(datatype="STRING")]}, 400),
    "no data": ({"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES"}]}, 400),
    "no element": ({"inputs": [text_input(shape=[0], data=[])]}, 400),
    "empty text": ({"inputs": [text_input(data=[""])]}, 400),
    "shared memory": (
        {"inputs": [{**text_input(), "parameters": {"shared_memory_region": "x"}}]},
        400,
    ),
    "unknown output": ({"inputs": [text_input()], "outputs": [{"name": "logits"}]}, 400),
    "output twice": ({"inputs": [text_input()], "outputs": [{"name": "embedding"}] * 2}, 400),
    "dimensions 0": ({"inputs": [text_input()], "parameters": {"dimensions": 0}}, 400),
    "dimensions text": ({"inputs": [text_input()], "parameters": {"dimensions": "5"}}, 400),
    "fractions of ids": (
        {"inputs": [{"name": "input_ids", "shape": [1, 1], "datatype": "FP32", "data": [1.5]}]},
        400,
    ),
    "an id that is none": (
        {"inputs": [{"name": "input_ids", "shape": [1, 1], "datatype": "INT64", "data": [-1]}]},
        400,
    ),
    "an id too large": (
        {"inputs": [{"name": "input_ids", "shape": [1, 1], "datatype": "INT32", "data": [1 << 40]}]},
        400,
    ),
    "truth": ({"inputs": [{"name": "input_ids", "shape": [1, 1], "datatype": "INT64", "data": [True]}]}, 400),
}


@pytest.mark.parametrize(("body", "status"), BAD.values(), ids=BAD)
async def test_tensors_of_no_use(here: Running, body: Any, status: int) -> None:
    reply = await here.ask("POST", f"/v2/models/{TINY}/infer", json=body)
    assert reply.status == status, reply.body
    assert isinstance(reply.json["error"], str)


def binary(raw: bytes, size: int | None = None, **changes: Any) -> tuple[bytes, dict[str, str]]:
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", **changes}
    tensor["parameters"] = {"binary_data_size": len(raw) if size is None else size}
    head = json.dumps({"inputs": [tensor]}).encode()
    return head + raw, {LENGTH: str(len(head))}


CAT = struct.pack("<I", 7) + b"the cat"
BINARY: dict[str, tuple[tuple[bytes, dict[str, str]], int]] = {
    "good": (binary(CAT), 200),
    "cut": (binary(CAT[:-1]), 400),
    "a length beyond": (binary(struct.pack("<I", 1 << 31) + b"a"), 400),
    "bytes after": (binary(CAT + b"x"), 400),
    "one more": (binary(CAT + CAT), 400),
    "one less": (binary(CAT, shape=[2]), 400),
    "a size beyond": (binary(CAT, 1 << 40), 400),
    "a size below": (binary(CAT, 3), 400),
    "no UTF-8": (binary(struct.pack("<I", 2) + b"\xff\xfe"), 400),
    "of another type": (binary(b"\0" * 3, name="input_ids", datatype="INT64", shape=[1, 1]), 400),
    "half floats": (binary(b"\0\0", name="input_ids", datatype="FP16", shape=[1, 1]), 400),
    "header beyond": ((b"{}", {LENGTH: "3"}), 400),
    "header no number": ((b"{}", {LENGTH: "-1"}), 400),
    "header huge": ((b"{}", {LENGTH: "9" * 30}), 400),
    "header within": ((binary(CAT)[0], {LENGTH: "5"}), 400),
}


@pytest.mark.parametrize(("sent", "status"), BINARY.values(), ids=BINARY)
async def test_bytes_after_the_json(here: Running, sent: tuple[bytes, dict[str, str]], status: int) -> None:
    body, headers = sent
    reply = await here.ask(
        "POST", f"/v2/models/{TINY}/infer", data=body, headers={"Content-Type": "application/octet-stream", **headers}
    )
    assert reply.status == status, reply.body
    assert status == 200 or isinstance(reply.json["error"], str)


async def test_a_bomb_is_cut_off(here: Running) -> None:
    zeros = b" " * (INFER_LIMIT_BYTES + 1)
    for coding, packed in (("gzip", gzip.compress(zeros, 1)), ("deflate", zlib.compress(zeros, 1))):
        reply = await here.ask(
            "POST",
            f"/v2/models/{TINY}/infer",
            data=packed,
            headers={"Content-Type": "application/json", "Content-Encoding": coding},
        )
        assert (reply.status, "error" in reply.json) == (413, True)


async def test_models_versions_and_paths_that_are_not_there(here: Running) -> None:
    body = {"inputs": [text_input()]}
    for path, status in (
        ("/v2/models/nobody/nothing/infer", 404),
        (f"/v2/models/{TINY}/versions/2/infer", 404),
        (f"/v2/models/{TINY}/versions/1/infer", 200),
        ("/v2/models/org%2Ftiny/infer", 200),
        ("/v2/models/own/clip/infer", 200),
    ):
        assert (await here.ask("POST", path, json=body)).status == status, path
    reply = await here.ask("GET", "/v2/nothing/here")
    assert (reply.status, isinstance(reply.json["error"], str)) == (404, True)
    assert (await here.ask("GET", f"/v2/models/{TINY}/infer")).status in (400, 404, 405)
