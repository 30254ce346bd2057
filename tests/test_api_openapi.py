"""The document that describes the routes: valid, whole, and true of what is answered."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from ipfs_accelerate_node.api.app import ROUTES
from tests.support.running import Running, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXT = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}
ASKED: dict[str, tuple[str, str, Any]] = {
    "embeddings": ("/v1/embeddings", "/v1/embeddings", {"model": "mock:embedding", "input": ["a", "b"]}),
    "base64": (
        "/v1/embeddings",
        "/v1/embeddings",
        {"model": "mock:embedding", "input": "a", "encoding_format": "base64"},
    ),
    "completion": ("/v1/completions", "/v1/completions", {"model": "mock:text-generation", "prompt": "a"}),
    "chat": (
        "/v1/chat/completions",
        "/v1/chat/completions",
        {"model": "mock:text-generation", "messages": [{"role": "user", "content": "a"}]},
    ),
    "rerank of Cohere": ("/v1/rerank", "/v1/rerank", {"model": "mock:rerank", "query": "a", "documents": ["b"]}),
    "vectors": ("/embed", "/embed?model=mock:embedding", {"inputs": "a"}),
    "label": ("/predict", "/predict?model=mock:text-classification", {"inputs": "a"}),
    "labels": ("/predict", "/predict?model=mock:text-classification", {"inputs": [["a"], ["b", "c"]]}),
    "ranks": ("/rerank", "/rerank?model=mock:rerank", {"query": "a", "texts": ["b"], "return_text": True}),
    "cosines": (
        "/similarity",
        "/similarity?model=mock:embedding",
        {"inputs": {"source_sentence": "a", "sentences": ["b"]}},
    ),
    "tensors": ("/v2/models/{name}/infer", "/v2/models/mock:text-classification/infer", {"inputs": [TEXT]}),
    "index": ("/v2/repository/index", "/v2/repository/index", {}),
    "no model": ("/v1/embeddings", "/v1/embeddings", {"model": "nobody/nothing", "input": "a"}),
    "no input": ("/embed", "/embed?model=mock:embedding", {}),
    "no tensor": ("/v2/models/{name}/infer", "/v2/models/mock:embedding/infer", {"inputs": []}),
    "no item": ("/api/infer", "/api/infer", {"ref": "mock:embedding", "items": []}),
}
READ = ("/v1/models", "/info?model=mock:embedding", "/v2", "/v2/health/live", "/v2/health/ready")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    async with running(tmp_path_factory.mktemp("openapi") / "cache") as node:
        yield node


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def document(here: Running) -> Any:
    reply = await here.ask("GET", "/openapi.json")
    assert (reply.status, reply.headers["Content-Type"]) == (200, "application/json")
    return reply.json


async def test_it_is_openapi(document: Any) -> None:
    OpenAPIV31SpecValidator(document).validate()
    assert document["openapi"] == "3.1.0"


async def test_every_route_is_in_it(document: Any) -> None:
    def written(path: str) -> str:
        return re.sub(r"\{(\w+)(:[^{}]*(\{[^{}]*\}[^{}]*)*)?\}", r"{\1}", path)

    listed = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert {(route.method, written(route.path)) for route in ROUTES} == listed
    names = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(names) == len(set(names))


def check(document: Any, path: str, method: str, status: int, body: Any, kind: str) -> None:
    """The body is one that the document says."""
    responses = document["paths"][path][method]["responses"]
    schema = responses["2XX" if status < 300 else "default"]["content"][kind]["schema"]
    Draft202012Validator({**schema, "components": document["components"]}).validate(body)


@pytest.mark.parametrize(("path", "asked", "body"), ASKED.values(), ids=ASKED)
async def test_answers_and_errors_are_as_it_says(
    here: Running, document: Any, path: str, asked: str, body: Any
) -> None:
    reply = await here.ask("POST", asked, json=body)
    check(document, path, "post", reply.status, reply.json, reply.headers["Content-Type"].partition(";")[0])
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    if reply.status < 300:
        Draft202012Validator({**schema, "components": document["components"]}).validate(body)


@pytest.mark.parametrize("asked", READ)
async def test_what_is_read_is_as_it_says(here: Running, document: Any, asked: str) -> None:
    reply = await here.ask("GET", asked)
    check(document, asked.partition("?")[0], "get", reply.status, reply.json, "application/json")


async def test_it_says_where_a_key_is_needed(document: Any, tmp_path: Path) -> None:
    def needed(where: Any, path: str) -> bool:
        return {} not in where["paths"][path]["post"]["security"]

    assert needed(document, "/v2/repository/models/{name}/load")
    assert not needed(document, "/v1/embeddings")
    async with running(tmp_path / "cache", host="0.0.0.0") as open_to_all:
        assert (await open_to_all.ask("GET", "/openapi.json")).status == 401
        key = open_to_all.keys.create(["infer"])[1]
        elsewhere = (await open_to_all.ask("GET", "/openapi.json", key=key)).json
    assert needed(elsewhere, "/v1/embeddings")
    assert {} in elsewhere["paths"]["/healthz"]["get"]["security"]
