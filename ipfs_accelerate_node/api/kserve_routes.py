"""KServe's protocol v2 (Open Inference Protocol) with Triton's binary tensors and model repository.

Names of models may hold ``/``; a model has one version, 1.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from importlib.metadata import version
from typing import Annotated

import msgspec
from aiohttp import web

from ipfs_accelerate_node.api import asking
from ipfs_accelerate_node.api.access import Surface
from ipfs_accelerate_node.api.asked_model import ready_model
from ipfs_accelerate_node.api.bodies import converted
from ipfs_accelerate_node.api.context import node
from ipfs_accelerate_node.api.deadlines import wait_at_most
from ipfs_accelerate_node.api.inference_replies import (
    inputs_called,
    mark_of,
    model_headers,
    timing_headers,
)
from ipfs_accelerate_node.api.kserve_bodies import (
    HEADER,
    Asked,
    chosen_outputs,
    compressed,
    encoded,
    named_raw,
    read_asked,
)
from ipfs_accelerate_node.api.kserve_raw import raw_outputs
from ipfs_accelerate_node.api.kserve_signatures import SIGNATURES, Declared, Made, Signature, items_of, metadata
from ipfs_accelerate_node.api.kserve_tensors import Tensor
from ipfs_accelerate_node.api.kserve_wire import (
    InferReply,
    InferRequest,
    Live,
    ModelMetadata,
    ModelReady,
    Ready,
    ServerMetadata,
)
from ipfs_accelerate_node.api.pipeline import TRAFFIC, Handler, Route
from ipfs_accelerate_node.api.problems import Dialect
from ipfs_accelerate_node.api.wire import json_reply
from ipfs_accelerate_node.content.cid import shown
from ipfs_accelerate_node.errors import NotFound, Unavailable
from ipfs_accelerate_node.inference import Inferred, LoadedModel, Options
from ipfs_accelerate_node.inference.model import TASKS

SERVER = "ipfs-accelerate-node"
VERSION = "1"
EXTENSIONS = ["binary_tensor_data", "model_repository", "statistics"]
_COUNT = msgspec.Meta(ge=1, le=1 << 17)


class Parameters(msgspec.Struct, frozen=True):
    """Of a request: options of its task, in our words and in those of OpenAI. timeout: microseconds, 0 for none, as in
    Triton."""

    task: str | None = None
    dimensions: Annotated[int, _COUNT] | None = None
    normalize: bool | None = None
    truncate: bool = True
    top_k: Annotated[int, _COUNT] | None = None
    raw_scores: bool = False
    max_tokens: Annotated[int, _COUNT] | None = None
    max_new_tokens: Annotated[int, _COUNT] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    stop: str | list[str] = []
    seed: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)] | None = None
    language: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    prompt_name: Annotated[str, msgspec.Meta(max_length=256)] | None = None
    timeout: Annotated[int, msgspec.Meta(ge=0, le=86_400_000_000)] | None = None

    def options(self) -> Options:
        return Options(
            dimensions=self.dimensions,
            normalize=self.normalize,
            truncate=self.truncate,
            top_k=self.top_k,
            raw_scores=self.raw_scores,
            max_new_tokens=self.max_tokens if self.max_new_tokens is None else self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop),
            seed=self.seed,
            language=self.language,
            prompt_name=self.prompt_name,
        )


async def infer(request: web.Request) -> web.Response:
    began = time.perf_counter()
    ref = model_name(request)
    asked = await read_asked(request)
    parameters = converted(asked.request.parameters or {}, Parameters)
    if parameters.timeout:
        wait_at_most(request, parameters.timeout / 1e6)
    task = await _task(request, ref, parameters.task, asked)
    signature = SIGNATURES[task]
    chosen = chosen_outputs(asked, signature)
    tensors = named_raw(asked, signature)
    items = items_of(signature, tensors)
    made: Made = {}
    with inputs_called("inputs"):
        if any(signature.is_raw(name) for name, _ in chosen):
            options = _raw(parameters.options(), signature, tensors)
            done = await asking.infer(request, ref, items, options, task=task)
            made |= await asyncio.to_thread(raw_outputs, signature.raw_outputs[0][0], done, tensors)
        if not all(signature.is_raw(name) for name, _ in chosen):
            done = await asking.infer(request, ref, items, parameters.options(), task=task)
            made |= signature.made(done, tensors)
    head = InferReply(
        model_name=ref,
        model_version=VERSION,
        id=msgspec.UNSET if asked.request.id is None else asked.request.id,
        outputs=[],
        implementation=mark_of(done.model),
    )
    body, length = await asyncio.to_thread(encoded, head, made, chosen)
    return await _reply(request, done, body, length, began)


def _raw(options: Options, signature: Signature, tensors: Mapping[str, Tensor]) -> Options:
    """Token ids are never cut: every one has its place in the output."""
    whole = "input_ids" in tensors
    return msgspec.structs.replace(options, output=signature.raw, truncate=options.truncate and not whole)


async def _reply(request: web.Request, done: Inferred, body: bytes, length: int | None, began: float) -> web.Response:
    headers = {**model_headers(done.model), **timing_headers(done, tokens=done.tokens, began=began)}
    if length is not None:
        headers[HEADER] = str(length)
    packed, coding = await asyncio.to_thread(compressed, request, body)
    kind = "application/json" if length is None else "application/octet-stream"
    return web.Response(body=packed, content_type=kind, headers={**headers, **coding})


async def _task(request: web.Request, ref: str, named: str | None, asked: Asked) -> str:
    """The one that is named, or that the inputs are of, or the model's own."""
    if named is not None and named not in TASKS:
        raise NotFound(f"there is no task {shown(named)}", code="task_unknown", param="parameters")
    tasks = [named] if named else ["zero-shot-image-classification"] if "labels" in asked.tensors else []
    model, task = await ready_model(request, ref, tasks)
    return task if tasks else _own(model, task)


def _own(model: LoadedModel, task: str) -> str:
    """What its author made it for, whatever it was last loaded for."""
    return next((own for own in model.tasks if own in TASKS), task)


def model_name(request: web.Request) -> str:
    """Of the model. Raises NotFound for a version that it has not."""
    asked = request.match_info.get("version", VERSION)
    name = request.match_info["name"]
    if asked != VERSION:
        raise NotFound(f"{shown(name)} has no version {shown(asked)}, only {VERSION}", code="model_not_found")
    return name


async def server(request: web.Request) -> web.Response:
    return json_reply(ServerMetadata(SERVER, version(SERVER), EXTENSIONS))


async def live(request: web.Request) -> web.Response:
    return json_reply(Live(True))


async def ready(request: web.Request) -> web.Response:
    is_ready = node(request).ready and not request.app[TRAFFIC].draining
    if not is_ready:
        raise Unavailable("the server is not ready", code="shutting_down", retry_after_s=5)
    return json_reply(Ready(True))


async def model_ready(request: web.Request) -> web.Response:
    """200 for a model that answers now; 503 for one that a request would load first."""
    ref = model_name(request)
    registry = node(request).registry
    found = registry.find(ref)
    if found is None:
        root = str((await asyncio.to_thread(node(request).catalogue.find, ref)).root)
        found = registry.find(root)
    if found is None or found.state != "ready":
        raise Unavailable(f"{shown(ref)} is {'not loaded' if found is None else found.state}", code="not_ready")
    return json_reply(ModelReady(ref, True, mark_of(found)), headers=model_headers(found))


async def model_metadata(request: web.Request) -> web.Response:
    ref, model, signature = await _described(request)
    about = ModelMetadata(
        ref,
        [VERSION],
        f"ipfs_accelerate_node_{model.engine}",
        metadata(model, signature.inputs),
        metadata(model, signature.outputs_of(model)),
        mark_of(model),
    )
    return json_reply(about, headers=model_headers(model))


async def model_config(request: web.Request) -> web.Response:
    """As Triton's, as far as it means something here."""
    ref, model, signature = await _described(request)
    shown_: dict[str, object] = {
        "name": ref,
        "platform": f"ipfs_accelerate_node_{model.engine}",
        "backend": model.engine,
        "max_batch_size": 0,
        "input": [_configured(model, one) for one in signature.inputs],
        "output": [_configured(model, one) for one in signature.outputs_of(model)],
        **({"implementation": "MOCK"} if model.implementation == "MOCK" else {}),
    }
    return json_reply(shown_, headers=model_headers(model))


def _configured(model: LoadedModel, tensor: Declared) -> dict[str, object]:
    (about,) = metadata(model, [tensor])
    kind = "STRING" if about.datatype == "BYTES" else about.datatype
    return {"name": about.name, "data_type": f"TYPE_{kind}", "dims": about.shape}


async def _described(request: web.Request) -> tuple[str, LoadedModel, Signature]:
    """Loaded for this if need be: only then its outputs are known."""
    ref = model_name(request)
    model, task = await ready_model(request, ref)
    return ref, model, SIGNATURES[_own(model, task)]


def of_model(
    method: str, action: str, handler: Handler, takes: object = None, gives: object = None
) -> tuple[Route, ...]:
    """Of every spelling of a model's URL: ``{name:.+?}`` leaves what follows to the longer ones, which come first."""
    return tuple(
        Route(method, f"/v2/models/{path}{action}", handler, Surface.INFER, Dialect.KSERVE, takes=takes, gives=gives)
        for path in ("{name:.+?}/versions/{version:[^/]+}", "{name:.+?}")
    )


ROUTES = (
    Route("GET", "/v2", server, Surface.INFER, Dialect.KSERVE, gives=ServerMetadata),
    Route("GET", "/v2/health/live", live, Surface.INFER, Dialect.KSERVE, gives=Live, probe=True),
    Route("GET", "/v2/health/ready", ready, Surface.INFER, Dialect.KSERVE, gives=Ready, probe=True),
    *of_model("POST", "/infer", infer, InferRequest, InferReply),
    *of_model("GET", "/ready", model_ready, gives=ModelReady),
    *of_model("GET", "/config", model_config),
    *of_model("GET", "", model_metadata, gives=ModelMetadata),
)
