"""The OpenAI routes, for clients that cannot be changed: embeddings and the list of models.

Every value of a request is checked here, item by item, so that an error names the item; the model's own limits are the
registry's. A MOCK says so in every object and in the headers.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence

import msgspec
import numpy as np
from aiohttp import web
from numpy.typing import NDArray

from ipfs_accelerate_node.api.access import Surface
from ipfs_accelerate_node.api.bodies import read_json
from ipfs_accelerate_node.api.context import node
from ipfs_accelerate_node.api.pipeline import METRICS, Route
from ipfs_accelerate_node.api.problems import Dialect
from ipfs_accelerate_node.api.wire import (
    EmbeddingObject,
    EmbeddingsReply,
    EmbeddingsRequest,
    ModelObject,
    TokenUsage,
    json_reply,
)
from ipfs_accelerate_node.content.cid import shown
from ipfs_accelerate_node.errors import InferenceFailed, InvalidInput, NotFound
from ipfs_accelerate_node.inference import Embeddings, LoadedModel
from ipfs_accelerate_node.inference.catalogue import ServedModel

MAX_INPUTS = 2048  # OpenAI's own limit
MAX_TOKEN_ID = 2**31 - 1
OWNER = "ipfs-accelerate-node"
_INLINE_VALUES = 1 << 16  # more numbers than this are encoded in a thread, row by row


async def embeddings(request: web.Request) -> web.Response:
    return await embedded(request, await read_json(request, EmbeddingsRequest))


async def embedded(request: web.Request, body: EmbeddingsRequest) -> web.Response:
    """The reply to a body that was read, whoever sent it."""
    inputs = embedding_inputs(body.input)
    if body.modality != "text":
        raise InvalidInput(f"the modality {body.modality} is not served by this model", param="modality")
    if body.prompt_name is not None:
        raise InvalidInput("this model has no named prompts", param="prompt_name")
    result = await node(request).serving.embed(body.model, inputs, dimensions=body.dimensions, truncate=body.truncate)
    if result.vectors.size > _INLINE_VALUES:
        encoded = await asyncio.to_thread(_encoded, body, result)
    else:
        encoded = _encoded(body, result)
    request.app[METRICS].inferred(result.model.implementation, result.prompt_tokens)
    return web.Response(body=encoded, content_type="application/json", headers=model_headers(result.model))


async def list_models(request: web.Request) -> web.Response:
    served = await asyncio.to_thread(node(request).catalogue.served)
    return json_reply({"object": "list", "data": [_model(model) for model in served]})


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


def embedding_inputs(value: object) -> list[str] | list[list[int]]:
    """A text, texts, token ids, or lists of token ids, as a batch. Raises InvalidInput with ``param`` and the index of
    the item that cannot be used."""
    match value:
        case str():
            return [_text(value, None)]
        case []:
            raise InvalidInput("input has no item", param="input")
        case [str(), *_]:
            _check_count(value)
            return [_text(item, index) for index, item in enumerate(value)]
        case [int(), *_]:
            return [_tokens(value, None)]
        case [list(), *_]:
            _check_count(value)
            return [_tokens(item, index) for index, item in enumerate(value)]
        case _:
            raise InvalidInput("input must be a text, a list of texts, or token ids", param="input")


def _check_count(items: Sequence[object]) -> None:
    if len(items) > MAX_INPUTS:
        raise InvalidInput(f"input has {len(items)} items, {MAX_INPUTS} are possible", param="input", index=MAX_INPUTS)


def _text(item: object, index: int | None) -> str:
    if not isinstance(item, str):
        raise InvalidInput("every item of input must be a text, like the first", param="input", index=index)
    if not item:
        raise InvalidInput("an empty text has no embedding", param="input", index=index)
    if "\0" in item:
        raise InvalidInput("a text must not hold a NUL", param="input", index=index)
    return item


def _tokens(item: object, index: int | None) -> list[int]:
    if not isinstance(item, list) or not item:
        raise InvalidInput("every item of input must be a list of token ids", param="input", index=index)
    if not all(type(token) is int and 0 <= token <= MAX_TOKEN_ID for token in item):
        raise InvalidInput("a token id must be a whole number, not negative", param="input", index=index)
    return item


def _encoded(body: EmbeddingsRequest, result: Embeddings) -> bytes:
    """The whole reply. Raises InferenceFailed for a number that JSON cannot say."""
    if not np.isfinite(result.vectors).all():
        raise InferenceFailed("the model gave a vector that is not finite")
    mark = "MOCK" if result.model.implementation == "MOCK" else msgspec.UNSET
    rows = [
        EmbeddingObject("embedding", index, _row(row, body.encoding_format), mark)  # type: ignore[arg-type]
        for index, row in enumerate(result.vectors)
    ]
    usage = TokenUsage(result.prompt_tokens, result.prompt_tokens)
    reply = EmbeddingsReply("list", rows, body.model, usage, mark)  # type: ignore[arg-type]
    return msgspec.json.encode(reply)


def _row(row: NDArray[np.float32], form: str) -> msgspec.Raw | str:
    """Base64 of little-endian float32, or JSON numbers that read back as exactly those.

    As doubles they have up to 17 digits where nine would do; that is twice the text, but six times faster than what
    prints the shortest form of a float32 here, and clients that care ask for base64.
    """
    if form == "base64":
        return base64.b64encode(row.astype("<f4").tobytes()).decode()
    return msgspec.Raw(msgspec.json.encode(row.tolist()))


def model_headers(model: LoadedModel) -> dict[str, str]:
    """Headers of every inference reply: which bytes ran, where, and whether for real."""
    return {
        "X-Model-Root": model.root,
        "X-Device": model.device,
        "X-Engine": model.engine,
        "X-Precision": model.precision,
        "X-Implementation": model.implementation,
        "X-Model-Source": model.source,
        "Cache-Control": "no-store",
    }


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
    Route("POST", "/v1/embeddings", embeddings, Surface.INFER, Dialect.OPENAI),
    Route("POST", "/embeddings", embeddings, Surface.INFER, Dialect.OPENAI),
    Route("GET", "/v1/models", list_models, Surface.INFER, Dialect.OPENAI),
    Route("GET", "/v1/models/{id:.+}", show_model, Surface.INFER, Dialect.OPENAI),
)
