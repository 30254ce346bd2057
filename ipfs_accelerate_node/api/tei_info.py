"""What clients of text-embeddings-inference ask before they send anything: is it healthy, and what does it serve?"""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from pathlib import Path

from aiohttp import web

from ipfs_accelerate_node.api.access import Surface
from ipfs_accelerate_node.api.asked_model import named_or_default, ready_model
from ipfs_accelerate_node.api.context import node
from ipfs_accelerate_node.api.inference_replies import mark_of, model_headers
from ipfs_accelerate_node.api.listener import MAX_CONNECTIONS
from ipfs_accelerate_node.api.pipeline import TRAFFIC, Route
from ipfs_accelerate_node.api.problems import Dialect
from ipfs_accelerate_node.api.tei_wire import Info
from ipfs_accelerate_node.api.wire import json_reply
from ipfs_accelerate_node.errors import NotFound
from ipfs_accelerate_node.inference import LoadedModel
from ipfs_accelerate_node.inference.strict_json import read_object
from ipfs_accelerate_node.inference.tasks.batches import BATCH_TOKENS
from ipfs_accelerate_node.inference.tasks.checks import MAX_ITEMS

_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "int8": "int8"}
_POOLING = {"lasttoken": "last_token"}
_MODEL = "{id:(?!.*/resolve/).+}"  # not a file of the Hub's repository models/…
TEXT_KINDS = {"text-classification": "classifier", "rerank": "reranker"}


async def health(request: web.Request) -> web.Response:
    """200 without a body, or 503."""
    if node(request).ready and not request.app[TRAFFIC].draining:
        return web.Response()
    return json_reply({"error": "unhealthy", "error_type": "Unhealthy"}, status=503)


async def info(request: web.Request) -> web.Response:
    """Of the model that a request without a name means; it is loaded for this if need be."""
    return await _about(request, await named_or_default(request))


async def _about(request: web.Request, ref: str) -> web.Response:
    model, _ = await ready_model(request, ref)
    about = Info(
        model_id=model.id,
        model_sha=model.root,
        model_dtype=_DTYPES.get(model.precision, model.precision),
        served_model_name=model.id,
        model_type=await _kind(request, model),
        max_concurrent_requests=MAX_CONNECTIONS,
        max_input_length=model.max_tokens,
        max_batch_tokens=BATCH_TOKENS,
        max_batch_requests=None,
        max_client_batch_size=MAX_ITEMS,
        auto_truncate=True,
        tokenization_workers=1,
        version=version("ipfs-accelerate-node"),
        implementation=mark_of(model),
    )
    return json_reply(about, headers=model_headers(model))


async def health_of_model(request: web.Request) -> web.Response:
    """The same below ``/models/{id}``, and 404 where there is no such model."""
    name = request.match_info["id"]
    if node(request).registry.find(name) is None:
        await asyncio.to_thread(node(request).catalogue.find, name)
    return await health(request)


async def info_of_model(request: web.Request) -> web.Response:
    return await _about(request, request.match_info["id"])


async def _kind(request: web.Request, model: LoadedModel) -> dict[str, object]:
    """As that server says it, where it knows such models; else the task, with nothing more."""
    if model.task == "embedding":
        return {"embedding": {"pooling": "+".join(_POOLING.get(one, one) for one in model.pooling) or "mean"}}
    if model.task not in TEXT_KINDS:
        return {model.task: {}}
    return {TEXT_KINDS[model.task]: await asyncio.to_thread(_labels, request, model)}


def _labels(request: web.Request, model: LoadedModel) -> dict[str, object]:
    """id2label and label2id as the model's author wrote them."""
    if model.implementation == "MOCK":
        return {"id2label": {}, "label2id": {}}
    try:
        path: Path = node(request).catalogue.find(model.root).path
    except NotFound:  # removed since
        return {"id2label": {}, "label2id": {}}
    said = read_object(path / "config.json").get("id2label")
    labels = {str(key): str(label) for key, label in said.items()} if isinstance(said, dict) else {}
    return {"id2label": labels, "label2id": {label: int(key) for key, label in labels.items() if key.isdecimal()}}


ROUTES = (
    *(
        Route(method, path, health, Surface.OPEN, Dialect.TEI)
        for path in ("/", "/health", "/ping")
        for method in ("GET", "HEAD")
    ),
    Route("GET", "/info", info, Surface.INFER, Dialect.TEI, gives=Info),
    Route("GET", f"/models/{_MODEL}/info", info_of_model, Surface.INFER, Dialect.TEI, gives=Info),
    Route("GET", f"/models/{_MODEL}/health", health_of_model, Surface.INFER, Dialect.TEI),
)
