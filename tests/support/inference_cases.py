"""A good request to every route of inference, and what a refusal looks like in each dialect."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ipfs_accelerate_node.api.app import ROUTES
from ipfs_accelerate_node.api.pipeline import Route
from ipfs_accelerate_node.api.problems import Dialect
from tests.support.models import tiny_model
from tests.support.running import Reply, Running

TINY = "org/tiny"
CHAT = [{"role": "user", "content": "a"}]
TEXT = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}


@dataclass(frozen=True, slots=True)
class Case:
    """route: of the table of routes. path: as it is asked. body: a good one. texts: where a text stands in it."""

    route: str
    path: str
    body: dict[str, Any]
    texts: str


CASES = {
    "embeddings": Case("/v1/embeddings", "/v1/embeddings", {"model": "mock:embedding", "input": "a"}, "input"),
    "embeddings too": Case("/embeddings", "/embeddings", {"model": "mock:embedding", "input": "a"}, "input"),
    "completions": Case(
        "/v1/completions", "/v1/completions", {"model": "mock:text-generation", "prompt": "a"}, "prompt"
    ),
    "chat": Case(
        "/v1/chat/completions", "/v1/chat/completions", {"model": "mock:text-generation", "messages": CHAT}, "messages"
    ),
    "chat of a model": Case(
        "/models/{id:.+}/v1/chat/completions",
        "/models/mock:text-generation/v1/chat/completions",
        {"model": "dummy", "messages": CHAT},
        "messages",
    ),
    "rerank": Case("/v1/rerank", "/v1/rerank", {"model": "mock:rerank", "query": "a", "documents": ["b"]}, "documents"),
    "rerank 3": Case(
        "/v3/rerank", "/v3/rerank", {"model": "mock:rerank", "query": "a", "documents": ["b"]}, "documents"
    ),
    "embed": Case("/embed", "/embed?model=mock:embedding", {"inputs": "a"}, "inputs"),
    "predict": Case("/predict", "/predict?model=mock:text-classification", {"inputs": "a"}, "inputs"),
    "ranks": Case("/rerank", "/rerank?model=mock:rerank", {"query": "a", "texts": ["b"]}, "texts"),
    "similarity": Case(
        "/similarity", "/similarity?model=mock:embedding", {"inputs": {"source_sentence": "a", "sentences": ["b"]}}, ""
    ),
    "root": Case("/", "/?model=mock:text-classification", {"inputs": "a"}, "inputs"),
    "invocations": Case("/invocations", "/invocations?model=mock:embedding", {"inputs": "a"}, "inputs"),
    "model": Case("/models/{id:.+}", "/models/mock:fill-mask", {"inputs": "[MASK]", "parameters": {}}, "inputs"),
    "pipeline": Case(
        "/models/{id:.+}/pipeline/{task}",
        "/models/mock:embedding/pipeline/feature-extraction",
        {"inputs": "a"},
        "inputs",
    ),
    "tensors": Case("/v2/models/{name:.+?}/infer", "/v2/models/mock:embedding/infer", {"inputs": [TEXT]}, ""),
    "tensors of a version": Case(
        "/v2/models/{name:.+?}/versions/{version:[^/]+}/infer",
        "/v2/models/mock:embedding/versions/1/infer",
        {"inputs": [TEXT]},
        "",
    ),
    "token vectors": Case("/embed_all", f"/embed_all?model={TINY}", {"inputs": "a"}, "inputs"),
    "tokens": Case("/tokenize", f"/tokenize?model={TINY}", {"inputs": "a"}, "inputs"),
    "text of tokens": Case("/decode", f"/decode?model={TINY}", {"ids": [5, 6]}, ""),
    "native": Case("/api/infer", "/api/infer", {"ref": "mock:embedding", "items": ["a"]}, "items"),
}
# Forms and bodies without inference have tests of their own.
ELSEWHERE = {"/v1/audio/transcriptions", "/v2/repository/index", "/embed_sparse"}


async def bring_tiny(here: Running, folder: Path) -> None:
    """The one real model that they ask; the others are mocks."""
    await here.node.add(tiny_model(folder / "tiny"), name=TINY)


def route_of(case: Case) -> Route:
    return next(route for route in ROUTES if (route.method, route.path) == ("POST", case.route))


def refused(case: Case, reply: Reply, *statuses: int) -> None:
    """With one of the statuses, in the shape of the route's dialect."""
    assert reply.status in statuses, reply.body
    assert reply.headers["x-request-id"]
    assert b"Traceback" not in reply.body
    match route_of(case).dialect:
        case Dialect.OPENAI:
            assert reply.json["error"]["message"] == reply.json["message"]
        case Dialect.TEI:
            assert {"error", "error_type"} <= set(reply.json)
        case Dialect.KSERVE:
            assert isinstance(reply.json["error"], str)
        case Dialect.NATIVE:
            assert reply.headers["Content-Type"] == "application/problem+json"
            assert reply.json["code"]
