"""The OpenAI routes, for clients that cannot be changed; here the list of models, beside it a module for each kind of
request."""

from __future__ import annotations

import asyncio

from aiohttp import web

from ipfs_accelerate_node.api import (
    openai_audio,
    openai_chat,
    openai_completions,
    openai_embeddings,
    openai_rerank,
)
from ipfs_accelerate_node.api.access import Surface
from ipfs_accelerate_node.api.context import node
from ipfs_accelerate_node.api.openai_embeddings import embedded as embedded
from ipfs_accelerate_node.api.pipeline import Route
from ipfs_accelerate_node.api.problems import Dialect
from ipfs_accelerate_node.api.wire import ModelList, ModelObject, json_reply
from ipfs_accelerate_node.content.cid import shown
from ipfs_accelerate_node.errors import NotFound
from ipfs_accelerate_node.inference.catalogue import ServedModel

OWNER = "ipfs-accelerate-node"


async def list_models(request: web.Request) -> web.Response:
    served = await asyncio.to_thread(node(request).catalogue.served)
    return json_reply(ModelList("list", [_model(model) for model in served]))


async def show_model(request: web.Request) -> web.Response:
    """By any of its names, or its root in any spelling."""
    wanted = request.match_info["id"]
    served = await asyncio.to_thread(node(request).catalogue.served)
    found = next((m for m in served if wanted in (m.id, m.root, *m.names)), None)
    if found is None:
        root = str((await asyncio.to_thread(node(request).find, wanted)).root)
        found = next((m for m in served if m.root == root), None)
    if found is None:
        raise NotFound(f"the model {shown(wanted)} is not here", code="model_not_found", param="model")
    return json_reply(_model(found))


def _model(served: ServedModel) -> ModelObject:
    return ModelObject(
        id=served.id,
        object="model",
        created=served.created,
        owned_by=OWNER,
        root=served.root,
        names=served.names,
        loaded=served.loaded,
        implementation=served.implementation,
    )


ROUTES = (
    *openai_embeddings.ROUTES,
    *openai_completions.ROUTES,
    *openai_chat.ROUTES,
    *openai_audio.ROUTES,
    *openai_rerank.ROUTES,
    Route("GET", "/v1/models", list_models, Surface.INFER, Dialect.OPENAI, gives=ModelList),
    Route("GET", "/v1/models/{id:.+}", show_model, Surface.INFER, Dialect.OPENAI, gives=ModelObject),
)
