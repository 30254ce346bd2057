"""Texts to tokens and back, by the tokenizer of the model that a request means."""

from __future__ import annotations

import msgspec
from aiohttp import web

from ipfs_accelerate_node.api.access import Surface
from ipfs_accelerate_node.api.asked_model import named_or_default, ready_model
from ipfs_accelerate_node.api.bodies import read_json
from ipfs_accelerate_node.api.context import node
from ipfs_accelerate_node.api.inference_replies import inputs_called, model_headers
from ipfs_accelerate_node.api.pipeline import Route
from ipfs_accelerate_node.api.problems import Dialect
from ipfs_accelerate_node.api.tei_wire import DecodeRequest, SimpleToken, TokenizeRequest
from ipfs_accelerate_node.errors import InvalidInput

MAX_TOKEN_ID = 2**31 - 1


async def tokenize(request: web.Request) -> web.Response:
    body = await read_json(request, TokenizeRequest)
    if body.prompt_name is not None:
        raise InvalidInput("texts are tokenized as they are, without a prompt", param="prompt_name")
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    if not texts:
        raise InvalidInput("`inputs` cannot be empty", param="inputs", code="empty_input")
    model, _ = await ready_model(request, await named_or_default(request))
    with inputs_called("inputs"):
        rows = await node(request).registry.tokenize(model, texts, special=body.add_special_tokens is not False)
    shown = [[SimpleToken(one.id, one.text, one.special, one.start, one.stop) for one in row] for row in rows]
    return web.Response(body=msgspec.json.encode(shown), content_type="application/json", headers=model_headers(model))


async def decode(request: web.Request) -> web.Response:
    body = await read_json(request, DecodeRequest)
    rows = _rows(body.ids)
    model, _ = await ready_model(request, await named_or_default(request))
    with inputs_called("ids"):
        texts = await node(request).registry.decode(model, rows, skip_special=body.skip_special_tokens is not False)
    return web.Response(body=msgspec.json.encode(texts), content_type="application/json", headers=model_headers(model))


def _rows(ids: list[int | list[int]]) -> list[list[int]]:
    """One list of ids, or several. Raises InvalidInput with the index."""
    if not ids:
        raise InvalidInput("`ids` cannot be empty", param="ids", code="empty_input")
    alone = [one for one in ids if isinstance(one, int)]
    rows = [one for one in ids if isinstance(one, list)]
    if alone and rows:
        raise InvalidInput("ids must be token ids, or lists of them", param="ids")
    for index, row in enumerate(rows or [alone]):
        if not all(0 <= token <= MAX_TOKEN_ID for token in row):
            raise InvalidInput("a token id must be a whole number, not negative", param="ids", index=index)
    return rows or [alone]


ROUTES = (
    Route(
        "POST",
        "/tokenize",
        tokenize,
        Surface.INFER,
        Dialect.TEI,
        takes=TokenizeRequest,
        gives=list[list[SimpleToken]],
    ),
    Route("POST", "/decode", decode, Surface.INFER, Dialect.TEI, takes=DecodeRequest, gives=list[str]),
)
