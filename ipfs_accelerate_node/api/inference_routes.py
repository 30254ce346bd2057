"""Native inference: every task through ``POST /api/infer``, and models loaded and unloaded.

An item of a request is a text, or an object that says what it is: ``{"text"}``, ``{"first", "second"}``, ``{"ids"}``,
``{"messages": [{"role", "content"}]}``, ``{"image"}`` (base64; with ``labels`` to choose from), ``{"audio"}`` (base64
of a WAV file). An output is an object too, by what its task gives: ``vector``, ``scores``, ``entities``, ``fills``, or
``text`` with ``ids`` and ``finish``.
"""

from __future__ import annotations

import asyncio
import binascii
import math
from typing import Annotated, Any

import msgspec
from aiohttp import web

from ipfs_accelerate_node.api import asking
from ipfs_accelerate_node.api.access import Surface
from ipfs_accelerate_node.api.bodies import read_json
from ipfs_accelerate_node.api.context import node
from ipfs_accelerate_node.api.inference_replies import model_headers
from ipfs_accelerate_node.api.pipeline import Route
from ipfs_accelerate_node.api.traffic import finished
from ipfs_accelerate_node.api.wire import NameText, Patterns, RefText, json_reply, plain
from ipfs_accelerate_node.content.selection import Choice
from ipfs_accelerate_node.errors import InferenceFailed, InvalidInput, NotFound
from ipfs_accelerate_node.fetch.jobs import PinJob
from ipfs_accelerate_node.inference import Inferred, Item, LoadedModel, Options, Output
from ipfs_accelerate_node.inference.model import (
    Audio,
    Chat,
    Entities,
    Fills,
    Generated,
    Ids,
    Image,
    ImageChoice,
    Message,
    Pair,
    Scores,
    Tensor,
    Text,
    Vector,
)

INFER_LIMIT_BYTES = 48 << 20  # 32 MiB of pictures or sound, in base64
FOR_EVER = -1.0
_INLINE_ITEMS = 16
_COUNT = msgspec.Meta(ge=1, le=1 << 17)

TaskText = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
DeviceText = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
PrecisionText = Annotated[str, msgspec.Meta(min_length=1, max_length=32)]


class LoadRequest(msgspec.Struct, frozen=True):
    """keep_alive: idle seconds after which the model is unloaded, -1 for ever, None as configured. pinned: neither
    that nor the need of others for memory unloads it. allow_mock: where it cannot be had, a mock of ``task`` will do.
    measure: an ``auto`` device is chosen by measuring what was not measured yet. include, exclude: of a commit of the
    Hub what is fetched, instead of what a loader needs."""

    ref: RefText
    device: DeviceText = "auto"
    precision: PrecisionText | None = None
    task: TaskText | None = None
    alias: NameText | None = msgspec.field(name="as", default=None)
    keep_alive: Annotated[float, msgspec.Meta(ge=-1, le=1e9)] | None = None
    pinned: bool | None = None
    allow_mock: bool = False
    measure: bool = True
    include: Patterns = []
    exclude: Patterns = []


class InferOptions(msgspec.Struct, frozen=True):
    """As `inference.Options`; numbers are checked by the task."""

    dimensions: Annotated[int, _COUNT] | None = None
    normalize: bool | None = None
    truncate: bool = True
    top_k: Annotated[int, _COUNT] | None = None
    raw_scores: bool = False
    max_new_tokens: Annotated[int, _COUNT] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    stop: Annotated[tuple[str, ...], msgspec.Meta(max_length=16)] = ()
    seed: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)] | None = None
    language: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    prompt_name: Annotated[str, msgspec.Meta(max_length=256)] | None = None


class InferRequest(msgspec.Struct, frozen=True):
    """task: None is what the model is loaded for, else its own first. device: ``auto`` takes it where it is."""

    ref: RefText
    items: Annotated[list[object], msgspec.Meta(min_length=1)]
    task: TaskText | None = None
    device: DeviceText = "auto"
    precision: PrecisionText | None = None
    options: InferOptions = InferOptions()
    allow_mock: bool = False


async def infer(request: web.Request) -> web.Response:
    return await inferred(request, await read_json(request, InferRequest, limit_bytes=INFER_LIMIT_BYTES))


async def inferred(request: web.Request, body: InferRequest) -> web.Response:
    """The reply to a body that was read, whoever sent it."""
    items = [item_of(value, index) for index, value in enumerate(body.items)]
    done = await asking.infer(
        request,
        body.ref,
        items,
        Options(**msgspec.structs.asdict(body.options)),
        task=body.task,
        device=body.device,
        precision=body.precision,
        allow_mock=body.allow_mock,
    )
    inline = len(done.outputs) <= _INLINE_ITEMS
    encoded = _encoded(body.ref, done) if inline else await asyncio.to_thread(_encoded, body.ref, done)
    return web.Response(body=encoded, content_type="application/json", headers=model_headers(done.model))


def item_of(value: object, index: int) -> Item:
    """Raises InvalidInput with ``param`` items and the index."""
    match value:
        case str():
            return Text(value)
        case {"text": str(text)}:
            return Text(text)
        case {"first": str(first), "second": str(second)}:
            return Pair(first, second)
        case {"ids": list(ids)} if all(type(token) is int and 0 <= token < 1 << 31 for token in ids):
            return Ids(tuple(ids))
        case {"image": str(data), "labels": list(labels)} if all(isinstance(label, str) for label in labels):
            return ImageChoice(_bytes(data, index), tuple(labels))
        case {"image": str(data), **rest} if "labels" not in rest:
            return Image(_bytes(data, index))
        case {"audio": str(data)}:
            return Audio(_bytes(data, index))
        case {"messages": list(messages)}:
            return Chat(tuple(_message(message, index) for message in messages))
        case _:
            raise _refused(index, "is no item: a text, or an object with text, first and second, ids, image, image and "
                           "labels, audio, or messages")  # fmt: skip


def _message(value: object, index: int) -> Message:
    match value:
        case {"role": str(role), "content": str(content)}:
            return Message(role, content)
        case _:
            raise _refused(index, "has a message without role and content")


def _bytes(text: str, index: int) -> bytes:
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, ValueError) as exc:
        raise _refused(index, f"is not base64: {exc}") from exc


def _refused(index: int, why: str) -> InvalidInput:
    return InvalidInput(f"item {index} {why}", param="items", index=index)


def _encoded(ref: str, done: Inferred) -> bytes:
    """The whole reply. A MOCK says so, with a warning."""
    model = done.model
    mock = model.implementation == "MOCK"
    return msgspec.json.encode(
        {
            "model": ref,
            "root": model.root,
            "task": model.task,
            "device": model.device,
            "engine": model.engine,
            "precision": model.precision,
            "implementation": model.implementation,
            **({"warning": "; ".join(model.notes)} if mock else {}),
            "outputs": [output_json(output) for output in done.outputs],
            "tokens": done.tokens,
            "seconds": round(done.seconds, 6),
        }
    )


def output_json(output: Output) -> dict[str, Any]:
    """Raises InferenceFailed for a number that JSON cannot say."""
    shown: dict[str, Any]
    match output:
        case Vector(values=values):
            shown = {"vector": values.tolist()}
            numbers = shown["vector"]
        case Tensor(values=values):
            shown, numbers = {"tensor": values.tolist()}, values.ravel().tolist()
        case Scores(items=scores):
            shown, numbers = {"scores": msgspec.to_builtins(scores)}, [one.score for one in scores]
        case Entities(items=entities):
            shown, numbers = {"entities": msgspec.to_builtins(entities)}, [one.score for one in entities]
        case Fills(items=fills):
            shown, numbers = {"fills": msgspec.to_builtins(fills)}, [one.score for one in fills]
        case Generated():
            shown, numbers = {"text": output.text, "ids": list(output.ids), "finish": output.finish}, []
    if not all(map(math.isfinite, numbers)):
        raise InferenceFailed("the model gave a number that is not finite")
    return {**shown, "tokens_in": output.tokens_in, "truncated": output.truncated}


async def list_loads(request: web.Request) -> web.Response:
    """What is loaded or on its way there, the models that are being fetched included."""
    fetching = [_fetching(job) for job in node(request).fetching()]
    return json_reply({"loads": [*node(request).registry.loaded(), *fetching]})


async def show_load(request: web.Request) -> web.Response:
    name = request.match_info["name"]
    if (loaded := node(request).registry.find(name)) is not None:
        return json_reply(loaded)
    for job in node(request).fetching():
        if name in (job.ref, job.root, job.name):
            return json_reply(_fetching(job))
    raise NotFound(f"{name[:200]!r} is not loaded", code="model_not_loaded")


def _fetching(job: PinJob) -> dict[str, object]:
    return {
        "id": job.name or job.root or job.ref,
        "root": job.root,
        "names": [job.name] if job.name else [],
        "state": "fetching",
        "bytes_total": job.bytes_total,
        "bytes_done": job.bytes_done,
    }


async def load(request: web.Request) -> web.Response:
    """Answers when the model is loaded. A caller who leaves does not end a load that others wait for."""
    body = await read_json(request, LoadRequest)
    keep_alive_s = math.inf if body.keep_alive == FOR_EVER else body.keep_alive
    if keep_alive_s is not None and keep_alive_s < 0:
        raise InvalidInput("keep_alive is a number of seconds, or -1 for ever", param="keep_alive")
    loaded = await node(request).serving.load(
        body.ref,
        device=body.device,
        precision=body.precision,
        task=body.task,
        alias=body.alias,
        keep_alive_s=keep_alive_s,
        pinned=body.pinned,
        thorough=body.measure,
        allow_mock=body.allow_mock,
        fetch=True,
        choice=Choice(tuple(body.include), tuple(body.exclude)),
    )
    return json_reply(loaded)


async def unload(request: web.Request) -> web.Response:
    name = request.match_info["name"]
    await finished(node(request).serving.unload(name))
    return json_reply({"unloaded": name})


async def accelerators(request: web.Request) -> web.Response:
    """The devices, and for every loaded model why it is on the one where it is."""
    found = await node(request).accelerators()
    return json_reply({"accelerators": found, "choices": [_choice(m) for m in node(request).registry.loaded()]})


def _choice(model: LoadedModel) -> dict[str, object]:
    return {
        "id": model.id,
        "root": model.root,
        "task": model.task,
        "device": model.device,
        "engine": model.engine,
        "precision": model.precision,
        "implementation": model.implementation,
        "candidates": plain(model.choice),
    }


ROUTES = (
    Route("POST", "/api/infer", infer, Surface.INFER, takes=InferRequest),
    Route("GET", "/api/loads", list_loads, Surface.INFER),
    Route("POST", "/api/loads", load, Surface.STATE, takes=LoadRequest),
    Route("GET", "/api/loads/{name:.+}", show_load, Surface.INFER),
    Route("DELETE", "/api/loads/{name:.+}", unload, Surface.STATE),
    Route("GET", "/api/accelerators", accelerators, Surface.INFER),
)
