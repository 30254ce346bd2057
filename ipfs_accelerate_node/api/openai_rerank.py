"""``POST /v1/rerank``: documents by their relevance to a query, in the shape of Cohere's and Jina's APIs."""

from __future__ import annotations

import secrets
import time

import msgspec
from aiohttp import web

from ipfs_accelerate_node.api import asking
from ipfs_accelerate_node.api.access import Surface
from ipfs_accelerate_node.api.bodies import read_json
from ipfs_accelerate_node.api.inference_replies import inputs_called, mark_of, model_reply
from ipfs_accelerate_node.api.openai_wire import (
    DocumentText,
    RankedDocument,
    RankReply,
    RankRequest,
    RankUsage,
)
from ipfs_accelerate_node.api.pipeline import Route
from ipfs_accelerate_node.api.problems import Dialect
from ipfs_accelerate_node.errors import InvalidInput
from ipfs_accelerate_node.inference import Inferred, Options
from ipfs_accelerate_node.inference.model import CutAt, Pair, Scores


async def rerank(request: web.Request) -> web.Response:
    began = time.perf_counter()
    body = await read_json(request, RankRequest)
    texts = [one if isinstance(one, str) else one.text for one in body.documents]
    done = await relevances(
        request, body.model, body.query, texts, param="documents", truncate=body.truncate is not False
    )
    return await model_reply(
        request, done, lambda: _encoded(body, texts, done), began=began, characters=sum(map(len, texts))
    )


async def relevances(
    request: web.Request,
    ref: str,
    query: str,
    texts: list[str],
    *,
    param: str,
    truncate: bool,
    raw_scores: bool = False,
    cut_at: CutAt = None,
) -> Inferred:
    """A score for each text, in their order. param: the field that holds the texts."""
    if not texts:
        raise InvalidInput(f"{param} has no item", param=param, code="empty_input")
    if not query or "\0" in query:
        raise InvalidInput("query must be a text, not empty and without NUL", param="query")
    options = Options(truncate=truncate, raw_scores=raw_scores, cut_at=cut_at)
    with inputs_called(param):
        return await asking.infer(request, ref, [Pair(query, text) for text in texts], options, task="rerank")


def ranked(done: Inferred) -> list[tuple[int, float]]:
    """(index, score), best first; of equals, the first."""
    scores = [output.items[0].score for output in done.outputs if isinstance(output, Scores)]
    return sorted(enumerate(scores), key=lambda pair: -pair[1])


def _encoded(body: RankRequest, texts: list[str], done: Inferred) -> bytes:
    results = [
        RankedDocument(index, score, DocumentText(texts[index]) if body.return_documents else None)
        for index, score in ranked(done)[: body.top_n]
    ]
    reply = RankReply(
        id=f"rerank-{secrets.token_hex(12)}",
        model=body.model,
        results=results,
        usage=RankUsage(done.tokens, done.tokens),
        implementation=mark_of(done.model),
    )
    return msgspec.json.encode(reply)


ROUTES = tuple(
    Route("POST", path, rerank, Surface.INFER, Dialect.OPENAI, takes=RankRequest, gives=RankReply)
    for path in ("/v1/rerank", "/v3/rerank")
)
