"""``POST /v1/embeddings``: texts as vectors, and pictures where the model was trained on both.

Every value of a request is checked here, item by item, so that an error names the item; the model's own limits are the
registry's.
"""

from __future__ import annotations

import base64
import time

import msgspec
import numpy as np
from aiohttp import web
from numpy.typing import NDArray

from ipfs_accelerate_node.api import asking
from ipfs_accelerate_node.api.access import Surface
from ipfs_accelerate_node.api.bodies import read_json
from ipfs_accelerate_node.api.inference_replies import inputs_called, mark_of, model_reply
from ipfs_accelerate_node.api.inference_routes import INFER_LIMIT_BYTES
from ipfs_accelerate_node.api.media import media_bytes
from ipfs_accelerate_node.api.openai_inputs import MAX_INPUTS, text_or_tokens
from ipfs_accelerate_node.api.pipeline import Route
from ipfs_accelerate_node.api.problems import Dialect
from ipfs_accelerate_node.api.wire import (
    EmbeddingObject,
    EmbeddingsReply,
    EmbeddingsRequest,
    TokenUsage,
)
from ipfs_accelerate_node.errors import InferenceFailed, InvalidInput
from ipfs_accelerate_node.inference import Embeddings, Inferred, Item, Options
from ipfs_accelerate_node.inference.model import Ids, Image, Text, Vector


async def embeddings(request: web.Request) -> web.Response:
    return await embedded(request, await read_json(request, EmbeddingsRequest, limit_bytes=INFER_LIMIT_BYTES))


async def embedded(request: web.Request, body: EmbeddingsRequest) -> web.Response:
    began = time.perf_counter()
    if body.modality == "text" and body.prompt_name is None:
        inputs = text_or_tokens(body.input, "input")
        result = await asking.embed(request, body.model, inputs, dimensions=body.dimensions, truncate=body.truncate)
    else:
        with inputs_called("input"):
            result = await _with_options(request, body)
    return await model_reply(request, result, lambda: _encoded(body, result), began=began, size=result.vectors.size)


async def _with_options(request: web.Request, body: EmbeddingsRequest) -> Embeddings:
    """Pictures, or texts with a prompt of the model's author."""
    options = Options(dimensions=body.dimensions, truncate=body.truncate, prompt_name=body.prompt_name)
    done = await asking.infer(request, body.model, _items(body), options, task="embedding")
    if body.prompt_name is not None and done.model.implementation == "MOCK":
        raise InvalidInput("a mock has no named prompts", param="prompt_name")
    return vectors_of(done)


def vectors_of(done: Inferred) -> Embeddings:
    """The same with all vectors as one array."""
    vectors = [output.values for output in done.outputs if isinstance(output, Vector)]
    truncated = sum(output.truncated for output in done.outputs)
    return Embeddings(np.stack(vectors), done.tokens, done.model, done.seconds, truncated, done.timing)


def _items(body: EmbeddingsRequest) -> list[Item]:
    if body.modality == "text":
        inputs = text_or_tokens(body.input, "input")
        return [Text(one) if isinstance(one, str) else Ids(tuple(one)) for one in inputs]
    if body.modality != "image":
        raise InvalidInput(f"no model here makes vectors of the modality {body.modality}", param="modality")
    listed = body.input if isinstance(body.input, list) else [body.input]
    if not 0 < len(listed) <= MAX_INPUTS:
        raise InvalidInput(f"input has {len(listed)} items, 1 to {MAX_INPUTS} are possible", param="input")
    return [Image(media_bytes(one, param="input", index=index)) for index, one in enumerate(listed)]


def _encoded(body: EmbeddingsRequest, result: Embeddings) -> bytes:
    """The whole reply. Raises InferenceFailed for a number that JSON cannot say."""
    if not np.isfinite(result.vectors).all():
        raise InferenceFailed("the model gave a vector that is not finite")
    mark = mark_of(result.model)
    rows = [
        EmbeddingObject("embedding", index, _row(row, body.encoding_format), mark)
        for index, row in enumerate(result.vectors)
    ]
    usage = TokenUsage(result.prompt_tokens, result.prompt_tokens)
    return msgspec.json.encode(EmbeddingsReply("list", rows, body.model, usage, mark))


def _row(row: NDArray[np.float32], form: str) -> msgspec.Raw | str:
    """Base64 of little-endian float32, or JSON numbers that read back as exactly those.

    As doubles they have up to 17 digits where nine would do; that is twice the text, but six times faster than what
    prints the shortest form of a float32 here, and clients that care ask for base64.
    """
    if form == "base64":
        return base64.b64encode(row.astype("<f4").tobytes()).decode()
    return msgspec.Raw(msgspec.json.encode(row.tolist()))


ROUTES = tuple(
    Route("POST", path, embeddings, Surface.INFER, Dialect.OPENAI, takes=EmbeddingsRequest, gives=EmbeddingsReply)
    for path in ("/v1/embeddings", "/embeddings")
)
