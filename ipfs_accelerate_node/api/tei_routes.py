"""The routes of text-embeddings-inference, for clients that were written for it: of the default model, or of the one
that ``?model=`` or the header ``x-model`` names."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from aiohttp import web

from ipfs_accelerate_node.api import asking
from ipfs_accelerate_node.api.access import Surface
from ipfs_accelerate_node.api.asked_model import named_or_default
from ipfs_accelerate_node.api.bodies import read_json
from ipfs_accelerate_node.api.inference_replies import check_json, inputs_called, mark_of, model_reply
from ipfs_accelerate_node.api.openai_embeddings import vectors_of
from ipfs_accelerate_node.api.openai_inputs import text_or_tokens
from ipfs_accelerate_node.api.openai_rerank import ranked, relevances
from ipfs_accelerate_node.api.pipeline import Route
from ipfs_accelerate_node.api.problems import Dialect
from ipfs_accelerate_node.api.tei_wire import (
    Direction,
    EmbedAllRequest,
    EmbedRequest,
    Prediction,
    PredictRequest,
    Rank,
    RerankRequest,
    SimilarityParameters,
    SimilarityRequest,
    TokenVectors,
    Vectors,
)
from ipfs_accelerate_node.errors import InferenceFailed, InvalidInput, ModelUnsupported
from ipfs_accelerate_node.inference import Embeddings, Inferred, Item, Options
from ipfs_accelerate_node.inference.model import CutAt, Ids, Pair, Scores, Tensor, Text

EMBED, PREDICT, RERANK = "embedding", "text-classification", "rerank"


async def embed(request: web.Request) -> web.Response:
    body = await read_json(request, EmbedRequest)
    return await embedded(request, await named_or_default(request, [EMBED]), body)


async def embed_all(request: web.Request) -> web.Response:
    body = await read_json(request, EmbedAllRequest)
    return await token_vectors(request, await named_or_default(request, [EMBED]), body)


async def predict(request: web.Request) -> web.Response:
    body = await read_json(request, PredictRequest)
    return await predicted(request, await named_or_default(request, [PREDICT]), body)


async def rerank(request: web.Request) -> web.Response:
    body = await read_json(request, RerankRequest)
    return await reranked(request, await named_or_default(request, [RERANK]), body)


async def similarity(request: web.Request) -> web.Response:
    body = await read_json(request, SimilarityRequest)
    return await compared(request, await named_or_default(request, [EMBED]), body)


async def embed_sparse(request: web.Request) -> web.Response:
    """Refused, in the words of a server whose model has no such head: none that is run here has."""
    await read_json(request, EmbedRequest)
    ref = await named_or_default(request)
    raise ModelUnsupported(f"`embed_sparse` is not available for {ref[:200]}", code="task_unsupported")


async def embedded(request: web.Request, ref: str, body: EmbedRequest) -> web.Response:
    began = time.perf_counter()
    _check_not_empty(body.inputs)
    inputs = text_or_tokens(body.inputs, "inputs")
    options = Options(
        normalize=body.normalize is not False,
        dimensions=body.dimensions,
        truncate=body.truncate is not False,
        prompt_name=body.prompt_name,
        cut_at=cut_at(body.truncation_direction),
    )
    result = await _vectors(request, ref, inputs, options)
    return await model_reply(
        request,
        result,
        lambda: _rows(result),
        began=began,
        characters=sum(len(one) for one in inputs if isinstance(one, str)),
        size=result.vectors.size,
    )


async def token_vectors(request: web.Request, ref: str, body: EmbedAllRequest) -> web.Response:
    """The vectors of single tokens, special ones included, as the model's transformer gives them: not pooled."""
    began = time.perf_counter()
    _check_not_empty(body.inputs)
    inputs = text_or_tokens(body.inputs, "inputs")
    options = Options(
        truncate=body.truncate is not False,
        prompt_name=body.prompt_name,
        cut_at=cut_at(body.truncation_direction),
        output="hidden",
    )
    done = await _embedded(request, ref, inputs, options)
    found = [output.values for output in done.outputs if isinstance(output, Tensor)]
    size = sum(values.size for values in found)
    check_json(size)
    return await model_reply(
        request,
        done,
        lambda: b"[%b]" % b",".join(msgspec.json.encode(values.tolist()) for values in found),
        began=began,
        characters=sum(len(one) for one in inputs if isinstance(one, str)),
        size=size,
    )


async def _vectors(request: web.Request, ref: str, inputs: Sequence[str | list[int]], options: Options) -> Embeddings:
    result = vectors_of(await _embedded(request, ref, inputs, options))
    if not np.isfinite(result.vectors).all():
        raise InferenceFailed("the model gave a vector that is not finite")
    return result


async def _embedded(request: web.Request, ref: str, inputs: Sequence[str | list[int]], options: Options) -> Inferred:
    items: list[Item] = [Text(one) if isinstance(one, str) else Ids(tuple(one)) for one in inputs]
    with inputs_called("inputs"):
        done = await asking.infer(request, ref, items, options, task=EMBED)
    if options.prompt_name is not None and done.model.implementation == "MOCK":
        raise InvalidInput("a mock has no named prompts", param="prompt_name")
    return done


def _rows(result: Embeddings) -> bytes:
    return msgspec.json.encode(result.vectors.tolist())


async def predicted(request: web.Request, ref: str, body: PredictRequest) -> web.Response:
    began = time.perf_counter()
    items, single = _sequences(body.inputs)
    options = Options(
        truncate=body.truncate is not False,
        raw_scores=bool(body.raw_scores),
        cut_at=cut_at(body.truncation_direction),
    )
    with inputs_called("inputs"):
        done = await asking.infer(request, ref, items, options, task=PREDICT)

    def encoded() -> bytes:
        rows = predictions(done)
        return msgspec.json.encode(rows[0] if single else rows)

    characters = sum(len(one.text) if isinstance(one, Text) else len(one.first + one.second) for one in items)
    return await model_reply(request, done, encoded, began=began, characters=characters)


def predictions(done: Inferred) -> list[list[Prediction]]:
    mark = mark_of(done.model)
    scores = [output.items for output in done.outputs if isinstance(output, Scores)]
    return [[Prediction(one.score, one.label, mark) for one in row] for row in scores]


def _sequences(inputs: object) -> tuple[list[Text | Pair], bool]:
    """(items, whether they are one alone). A flat list of two texts is a pair, not a batch."""
    _check_not_empty(inputs)
    match inputs:
        case str() | [str(), *_]:
            return [_sequence(inputs, None)], True
        case [list(), *_]:
            return [_sequence(one, index) for index, one in enumerate(inputs)], False
        case _:
            raise InvalidInput("inputs must be a text, a pair of texts, or a batch of lists of them", param="inputs")


def _sequence(value: object, index: int | None) -> Text | Pair:
    match value:
        case str(text) | [str(text)]:
            return Text(text)
        case [str(first), str(second)]:
            return Pair(first, second)
        case _:
            raise InvalidInput("one or two texts are an input", param="inputs", index=index)


async def reranked(request: web.Request, ref: str, body: RerankRequest) -> web.Response:
    began = time.perf_counter()
    done = await relevances(
        request,
        ref,
        body.query,
        body.texts,
        param="texts",
        truncate=body.truncate is not False,
        raw_scores=bool(body.raw_scores),
        cut_at=cut_at(body.truncation_direction),
    )

    def encoded() -> bytes:
        mark = mark_of(done.model)
        return msgspec.json.encode(
            [
                Rank(
                    index=index,
                    text=body.texts[index] if body.return_text else msgspec.UNSET,
                    score=score,
                    implementation=mark,
                )
                for index, score in ranked(done)
            ]
        )

    characters = sum(len(body.query) + len(text) for text in body.texts)
    return await model_reply(request, done, encoded, began=began, characters=characters)


async def compared(request: web.Request, ref: str, body: SimilarityRequest) -> web.Response:
    """Cosines of the source sentence with each of the others."""
    began = time.perf_counter()
    parameters = body.parameters or SimilarityParameters()
    if not body.inputs.sentences:
        raise InvalidInput("sentences has no item", param="inputs", code="empty_input")
    options = Options(
        normalize=True,
        truncate=parameters.truncate is not False,
        prompt_name=parameters.prompt_name,
        cut_at=cut_at(parameters.truncation_direction),
    )
    texts = [body.inputs.source_sentence, *body.inputs.sentences]
    result = await _vectors(request, ref, texts, options)
    encode: Callable[[], bytes] = lambda: msgspec.json.encode((result.vectors[1:] @ result.vectors[0]).tolist())  # noqa: E731
    return await model_reply(request, result, encode, began=began, characters=sum(map(len, texts)))


def cut_at(direction: Direction | None) -> CutAt:
    """None: as the model's author wants it."""
    return None if direction is None else "left" if direction.lower() == "left" else "right"


def _check_not_empty(inputs: object) -> None:
    if inputs == []:
        raise InvalidInput("`inputs` cannot be empty", param="inputs", code="empty_input")


ROUTES = (
    Route("POST", "/embed", embed, Surface.INFER, Dialect.TEI, takes=EmbedRequest, gives=Vectors),
    Route("POST", "/embed_all", embed_all, Surface.INFER, Dialect.TEI, takes=EmbedAllRequest, gives=TokenVectors),
    Route("POST", "/embed_sparse", embed_sparse, Surface.INFER, Dialect.TEI, takes=EmbedRequest),
    Route(
        "POST",
        "/predict",
        predict,
        Surface.INFER,
        Dialect.TEI,
        takes=PredictRequest,
        gives=list[Prediction | list[Prediction]],
    ),
    Route("POST", "/rerank", rerank, Surface.INFER, Dialect.TEI, takes=RerankRequest, gives=list[Rank]),
    Route("POST", "/similarity", similarity, Surface.INFER, Dialect.TEI, takes=SimilarityRequest, gives=list[float]),
)
