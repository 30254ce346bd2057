"""Which model a request means, and what it is loaded for: by name, or the default one of routes that name none."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from aiohttp import web

from ipfs_accelerate_node.api.context import CONFIG, node
from ipfs_accelerate_node.content.cid import shown
from ipfs_accelerate_node.errors import InvalidInput, Loading, ModelUnsupported, NotFound
from ipfs_accelerate_node.inference import LoadedModel
from ipfs_accelerate_node.inference.serving import LOAD_WAIT_S

MAX_NAME = 2048
NO_NAMES = frozenset({"dummy", "tgi", "default"})  # what clients write that know a URL and no model
_MOCK = "mock:"


async def named_or_default(request: web.Request, tasks: Sequence[str] = ()) -> str:
    """``?model=``, then the header ``x-model``, then the default."""
    named = request.query.getall("model", []) or request.headers.getall("x-model", [])
    if len(named) > 1:
        raise InvalidInput("one model is asked at a time", param="model")
    if not named:
        return await default_model(request, tasks)
    if not 0 < len(named[0]) <= MAX_NAME:
        raise InvalidInput("model must be a name", param="model")
    return named[0]


async def default_model(request: web.Request, tasks: Sequence[str] = ()) -> str:
    """The setting ``default_model``; else the only loaded model that does one of the tasks; else the only stored one,
    those left out that are known to do none of them, unless there is nothing else. Never a mock. Raises NotFound, or
    InvalidInput where there are several."""
    if (said := request.app[CONFIG].default_model) is not None:
        return said
    loaded = [model for model in node(request).registry.loaded() if model.implementation == "REAL"]
    fitting = [model for model in loaded if not tasks or not model.tasks or set(tasks) & set(model.tasks)]
    roots = dict.fromkeys(model.root for model in fitting)
    if not roots:
        served = await asyncio.to_thread(node(request).catalogue.served)
        known = {model.root for model in loaded}
        real = [model.root for model in served if model.implementation == "REAL"]
        roots = dict.fromkeys([root for root in real if root not in known] or real)
    if len(roots) == 1:
        return next(iter(roots))
    if not roots:
        raise NotFound("no model is here: add one, or name one with ?model=", code="model_not_found", param="model")
    raise InvalidInput(
        f"{len(roots)} models are here: name one with ?model= or the header x-model, or set --default-model",
        code="model_not_named",
        param="model",
    )


async def ready_model(request: web.Request, ref: str, tasks: Sequence[str] = ()) -> tuple[LoadedModel, str]:
    """The model, loaded if it is not yet, and the first of ``tasks`` that it does (none: what it is loaded for).

    Raises NotFound, ModelUnsupported (task_unsupported), Loading, and what a load raises.
    """
    registry = node(request).registry
    for task in tasks:
        if (found := registry.find(ref, task=task)) is not None and found.state == "ready":
            return found, task
    found = registry.find(ref)
    if found is None and not ref.startswith(_MOCK):
        root = str((await asyncio.to_thread(node(request).catalogue.find, ref)).root)
        found = registry.find(root)
    if found is None or found.state != "ready":
        found = await _loaded(request, ref)
    for task in tasks:
        if task in found.tasks:
            return found, task
    if tasks:
        raise ModelUnsupported(
            f"{shown(ref)} does {' and '.join(found.tasks)}, not {' or '.join(tasks)}", code="task_unsupported"
        )
    return found, found.task


async def _loaded(request: web.Request, ref: str) -> LoadedModel:
    """A caller who waits in vain is told to come back; the load goes on."""
    try:
        async with asyncio.timeout(LOAD_WAIT_S):
            return await node(request).serving.load(ref)
    except TimeoutError as exc:
        raise Loading(f"{shown(ref)} is being loaded", retry_after_s=LOAD_WAIT_S / 4) from exc
