"""The OpenAI routes with the client that people use, and with requests that it would never send (H4, H5, H6)."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import openai
import pytest
import pytest_asyncio

from ipfs_accelerate_node.api.openai_inputs import MAX_INPUTS, text_or_tokens
from ipfs_accelerate_node.errors import InvalidInput
from tests.support.running import Running, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

MOCK = "mock:embedding"
JSON = {"Content-Type": "application/json"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    folder = tmp_path_factory.mktemp("openai")
    async with running(folder / "cache") as node:
        (folder / "model").mkdir()
        (folder / "model" / "README.md").write_text("no weights here")
        await node.node.add(folder / "model", name="org/model")
        yield node


@pytest_asyncio.fixture(loop_scope="module")
async def client(here: Running) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{here.url}/v1", api_key="sk-anything", max_retries=0) as made:
        yield made


async def test_the_client_gets_vectors_in_order(client: openai.AsyncOpenAI) -> None:
    one = await client.embeddings.create(model=MOCK, input="first")
    many = await client.embeddings.create(model=MOCK, input=["zeroth", "first", "second"])
    assert one.data[0].embedding == many.data[1].embedding
    assert [item.index for item in many.data] == [0, 1, 2]
    assert many.usage.prompt_tokens == many.usage.total_tokens > 0
    assert many.model == MOCK
    assert abs(float(np.linalg.norm(one.data[0].embedding)) - 1) < 1e-6


async def test_float_and_base64_are_the_same_numbers(here: Running) -> None:
    body = {"model": MOCK, "input": ["a", "b"]}
    floats = (await here.ask("POST", "/v1/embeddings", json=body)).json
    packed = (await here.ask("POST", "/v1/embeddings", json={**body, "encoding_format": "base64"})).json
    for one, other in zip(floats["data"], packed["data"], strict=True):
        vector = np.frombuffer(base64.b64decode(other["embedding"]), dtype="<f4")
        assert np.array_equal(np.array(one["embedding"], dtype=np.float32), vector)
        assert np.array_equal(np.array(one["embedding"], dtype=np.float64), vector.astype(np.float64))


async def test_token_ids_alone_and_in_batches(client: openai.AsyncOpenAI) -> None:
    alone = await client.embeddings.create(model=MOCK, input=[1, 2, 3])
    batch = await client.embeddings.create(model=MOCK, input=[[7], [1, 2, 3]])
    assert len(alone.data) == 1
    assert batch.data[1].embedding == alone.data[0].embedding


async def test_dimensions_cut_then_renormalise(client: openai.AsyncOpenAI) -> None:
    whole = np.array((await client.embeddings.create(model=MOCK, input="x")).data[0].embedding)
    cut = np.array((await client.embeddings.create(model=MOCK, input="x", dimensions=16)).data[0].embedding)
    assert cut.shape == (16,)
    assert np.allclose(cut, whole[:16] / np.linalg.norm(whole[:16]), atol=1e-6)


async def test_a_mock_says_so_everywhere(here: Running) -> None:
    """P8."""
    reply = await here.ask("POST", "/v1/embeddings", json={"model": MOCK, "input": ["a", "b"]})
    assert reply.headers["X-Implementation"] == "MOCK"
    assert reply.headers["X-Model-Source"] == "mock"
    assert reply.headers["X-Model-Root"] == MOCK
    assert reply.headers["X-Engine"] == "mock"
    assert reply.headers["X-Device"]
    assert reply.headers["X-Precision"]
    assert reply.json["implementation"] == "MOCK"
    assert [item["implementation"] for item in reply.json["data"]] == ["MOCK", "MOCK"]
    listed = (await here.ask("GET", "/v1/models")).json["data"]
    assert {m["id"]: m["implementation"] for m in listed} == {MOCK: "MOCK", "org/model": "REAL"}
    page = (await here.ask("GET", "/metrics")).body.decode()
    mocked = next(line for line in page.splitlines() if line.startswith("ipfs_accelerate_node_mock_responses_total"))
    assert float(mocked.split()[1]) > 0


async def test_models_are_listed_and_found_by_any_name(here: Running, client: openai.AsyncOpenAI) -> None:
    await client.embeddings.create(model=MOCK, input="load it")
    listed = [model async for model in client.models.list()]
    assert {"org/model", MOCK} == {model.id for model in listed}
    named = await client.models.retrieve("org/model")
    root = here.node.find("org/model").root
    assert (named.id, named.object) == ("org/model", "model")
    for text in ("org/model", "org%2Fmodel", str(root), f"f{bytes(root).hex()}"):
        assert (await here.ask("GET", f"/v1/models/{text}")).json["id"] == "org/model", text
    with pytest.raises(openai.NotFoundError) as caught:
        await client.models.retrieve("org/other")
    assert caught.value.code == "model_not_found"


async def test_other_routes_to_the_same(here: Running) -> None:
    body = {"model": MOCK, "input": "a", "user": "u", "later": {"x": 1}}
    first = await here.ask("POST", "/v1/embeddings", json=body)
    second = await here.ask("POST", "/embeddings", json=body)
    assert first.json == second.json
    bare = await here.served.raw(
        f"POST /v1/embeddings HTTP/1.1\r\nHost: 127.0.0.1:{here.served.port}\r\n"
        f"Content-Length: {len(json.dumps(body))}\r\n\r\n{json.dumps(body)}".encode()
    )
    assert bare.status == 200


async def test_the_client_raises_its_own_errors(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        await client.embeddings.create(model="nobody/nothing", input="a")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as empty:
        await client.embeddings.create(model=MOCK, input=["a", ""])
    assert empty.value.param == "input"
    with pytest.raises(openai.BadRequestError) as wide:
        await client.embeddings.create(model=MOCK, input="a", dimensions=10_000)
    assert wide.value.param == "dimensions"
    with pytest.raises(openai.UnprocessableEntityError):
        await client.embeddings.create(model="org/model", input="a")  # a model without weights


BAD = {
    "no model": ({"input": "a"}, "model"),
    "empty model": ({"model": "", "input": "a"}, "model"),
    "no input": ({"model": MOCK}, "input"),
    "null input": ({"model": MOCK, "input": None}, "input"),
    "number": ({"model": MOCK, "input": 5}, "input"),
    "object": ({"model": MOCK, "input": {"text": "a"}}, "input"),
    "empty text": ({"model": MOCK, "input": ""}, "input"),
    "empty list": ({"model": MOCK, "input": []}, "input"),
    "empty item": ({"model": MOCK, "input": ["a", ""]}, "input"),
    "NUL": ({"model": MOCK, "input": ["a\0b"]}, "input"),
    "mixed": ({"model": MOCK, "input": ["a", 5]}, "input"),
    "ragged": ({"model": MOCK, "input": [[1], 2]}, "input"),
    "mixed tokens": ({"model": MOCK, "input": [1, "a"]}, "input"),
    "negative token": ({"model": MOCK, "input": [1, -1]}, "input"),
    "fraction": ({"model": MOCK, "input": [1, 1.5]}, "input"),
    "true as a token": ({"model": MOCK, "input": [True]}, "input"),
    "huge token": ({"model": MOCK, "input": [2**40]}, "input"),
    "empty tokens": ({"model": MOCK, "input": [[1], []]}, "input"),
    "deep": ({"model": MOCK, "input": [[[1]]]}, "input"),
    "too many": ({"model": MOCK, "input": ["a"] * (MAX_INPUTS + 1)}, "input"),
    "far too many": ({"model": MOCK, "input": ["a"] * 100_000}, "input"),
    "dimensions 0": ({"model": MOCK, "input": "a", "dimensions": 0}, "dimensions"),
    "dimensions -1": ({"model": MOCK, "input": "a", "dimensions": -1}, "dimensions"),
    "dimensions 1e308": ({"model": MOCK, "input": "a", "dimensions": 1e308}, "dimensions"),
    "dimensions text": ({"model": MOCK, "input": "a", "dimensions": "5"}, "dimensions"),
    "dimensions true": ({"model": MOCK, "input": "a", "dimensions": True}, "dimensions"),
    "format": ({"model": MOCK, "input": "a", "encoding_format": "hex"}, "encoding_format"),
    "prompt name": ({"model": MOCK, "input": "a", "prompt_name": "query"}, "prompt_name"),
    "no image": ({"model": MOCK, "input": "a", "modality": "image"}, "input"),
    "an image far away": ({"model": MOCK, "input": "http://a.example/b.png", "modality": "image"}, "input"),
    "no images": ({"model": MOCK, "input": [], "modality": "image"}, "input"),
    "sound": ({"model": MOCK, "input": "YQ==", "modality": "audio"}, "modality"),
    "long model": ({"model": "m" * 513, "input": "a"}, "model"),
}


@pytest.mark.parametrize(("body", "param"), BAD.values(), ids=BAD)
async def test_values_that_cannot_be_used(here: Running, body: dict[str, object], param: str) -> None:
    reply = await here.ask("POST", "/v1/embeddings", json=body)
    assert reply.status == 400
    assert reply.json["error"]["param"] == reply.json["param"] == param
    assert reply.json["error"]["type"] == "invalid_request_error"


async def test_half_a_surrogate_pair_and_ten_million_letters(here: Running) -> None:
    raw = b'{"model": "mock:embedding", "input": ["a", "\\ud800"]}'
    long = b'{"model": "mock:embedding", "input": "' + b"x" * 10_000_000 + b'"}'
    reply = await here.ask("POST", "/v1/embeddings", data=raw, headers=JSON)
    assert (reply.status, reply.json["param"], reply.json["error"]["index"]) == (400, "input", 1)
    reply = await here.ask("POST", "/v1/embeddings", data=io.BytesIO(long), headers=JSON)
    assert (reply.status, reply.json["error"]["code"]) == (413, "payload_too_large")


async def test_a_named_item_is_the_one_at_fault() -> None:
    for value, index in ((["a", "b", ""], 2), ([[1], [2], [-1]], 2), (["a", 1], 1), ([-1], None)):
        with pytest.raises(InvalidInput) as caught:
            text_or_tokens(value, "input")
        assert caught.value.detail["index"] == index


async def test_large_batches_are_encoded_off_the_loop_and_are_the_same(here: Running) -> None:
    texts = [f"text {i}" for i in range(200)]
    many = (await here.ask("POST", "/v1/embeddings", json={"model": MOCK, "input": texts})).json
    one = (await here.ask("POST", "/v1/embeddings", json={"model": MOCK, "input": texts[137]})).json
    assert many["data"][137]["embedding"] == one["data"][0]["embedding"]
    assert len(many["data"]) == 200


async def test_elsewhere_a_key_is_needed(tmp_path: Path) -> None:
    async with running(tmp_path / "cache", host="0.0.0.0") as node:
        infer = node.keys.create(["infer"])[1]
        body = {"model": MOCK, "input": "a"}
        refused = await node.ask("POST", "/v1/embeddings", json=body)
        assert (refused.status, refused.json["error"]["type"]) == (401, "authentication_error")
        assert (await node.ask("POST", "/v1/embeddings", json=body, key=infer)).status == 200
        async with openai.AsyncOpenAI(base_url=f"{node.url}/v1", api_key="wrong", max_retries=0) as wrong:
            with pytest.raises(openai.AuthenticationError):
                await wrong.models.list()
        peer = node.keys.create(["peer"])[1]
        assert (await node.ask("POST", "/v1/embeddings", json=body, key=peer)).status == 403
