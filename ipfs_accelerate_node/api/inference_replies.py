"""What every inference reply carries, whatever its dialect: which bytes ran, where, how long, and whether for real."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import msgspec
from aiohttp import web

from ipfs_accelerate_node.api.pipeline import METRICS
from ipfs_accelerate_node.errors import InvalidInput, PayloadTooLarge
from ipfs_accelerate_node.inference import Embeddings, Inferred, LoadedModel

Mark = Literal["MOCK"] | msgspec.UnsetType
MAX_JSON_VALUES = 1 << 22  # more numbers than this are 80 MiB of text
INLINE_VALUES = 1 << 16  # more numbers than this are encoded in a thread
REAL_OR_MOCK = "X-Implementation"


def check_json(values: int) -> None:
    """Raises PayloadTooLarge: so many numbers are not written as text."""
    if values > MAX_JSON_VALUES:
        raise PayloadTooLarge(
            f"{values:,} numbers are not written as JSON, at most {MAX_JSON_VALUES:,} are: send fewer inputs, or "
            "ask by KServe's protocol for binary data",
            param="inputs",
        )


def mark_of(model: LoadedModel) -> Mark:
    """Of every JSON object that a mock answers with; a real model's have no mark."""
    return "MOCK" if model.implementation == "MOCK" else msgspec.UNSET


def marked(model: LoadedModel, shown: dict[str, object]) -> dict[str, object]:
    """The same object, a MOCK's with its mark."""
    return {**shown, "implementation": "MOCK"} if model.implementation == "MOCK" else shown


def model_headers(model: LoadedModel) -> dict[str, str]:
    """Headers of every inference reply."""
    return {
        "X-Model-Root": model.root,
        "X-Device": model.device,
        "X-Engine": model.engine,
        "X-Precision": model.precision,
        REAL_OR_MOCK: model.implementation,
        "X-Model-Source": model.source,
        "Cache-Control": "no-store",
    }


def timing_headers(done: Inferred | Embeddings, *, tokens: int, began: float, characters: int = 0) -> dict[str, str]:
    """As text-embeddings-inference names them; times in whole milliseconds. began: of ``time.perf_counter``."""
    return {
        "x-compute-type": "cpu" if done.model.device.lower().endswith("cpu") else "gpu",
        "x-compute-time": _ms(done.seconds),
        "x-compute-characters": str(characters),
        "x-compute-tokens": str(tokens),
        "x-total-time": _ms(time.perf_counter() - began),
        "x-tokenization-time": _ms(done.timing.tokenize_s),
        "x-queue-time": _ms(done.timing.queue_s),
        "x-inference-time": _ms(done.timing.compute_s),
    }


def _ms(seconds: float) -> str:
    return str(round(seconds * 1000))


async def model_reply(
    request: web.Request,
    done: Inferred | Embeddings,
    encode: Callable[[], bytes],
    *,
    began: float,
    characters: int = 0,
    size: int = 0,
    content_type: str = "application/json",
) -> web.Response:
    """The reply to a request that a model has answered, counted. size: how many values ``encode`` writes, which runs in
    a thread where they are many."""
    tokens = done.tokens if isinstance(done, Inferred) else done.prompt_tokens
    writing = time.perf_counter()
    body = encode() if size <= INLINE_VALUES else await asyncio.to_thread(encode)
    request.app[METRICS].serialized(done.model, time.perf_counter() - writing)
    headers = {
        **model_headers(done.model),
        **timing_headers(done, tokens=tokens, began=began, characters=characters),
    }
    return web.Response(body=body, content_type=content_type, headers=headers)


@contextmanager
def inputs_called(param: str, *, copies: int = 1) -> Iterator[None]:
    """What is wrong with an item is told by the name that the field has in this dialect. copies: of each of the
    request's items."""
    try:
        yield
    except (InvalidInput, PayloadTooLarge) as exc:
        if exc.detail.get("param") in ("input", "items"):
            exc.detail["param"] = param
            if isinstance(index := exc.detail.get("index"), int):
                exc.detail["index"] = index // copies
        raise
