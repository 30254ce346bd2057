"""``GET /openapi.json``: what this listener serves, made from its own routes and from the types that it reads bodies
into, so that it cannot say anything else than what is done. OpenAPI 3.1.

A name in a path may hold ``/`` where the Hub's, KServe's or a model's names do, which OpenAPI cannot say: write it as
``%2F``.
"""

from __future__ import annotations

import re
from collections import Counter
from importlib.metadata import version
from typing import Any

import msgspec
from aiohttp import web

from ipfs_accelerate_node.api import kserve_wire, openai_wire, pinning_service, pipeline, tei_wire
from ipfs_accelerate_node.api.access import Surface
from ipfs_accelerate_node.api.context import CONFIG
from ipfs_accelerate_node.api.deadlines import MAX_TIMEOUT_S, TIMEOUT
from ipfs_accelerate_node.api.pipeline import Route
from ipfs_accelerate_node.api.problems import Dialect
from ipfs_accelerate_node.api.wire import json_bytes
from ipfs_accelerate_node.config_values import is_loopback

_PARAMETER = re.compile(r"\{(\w+)(?::((?:[^{}]|\{[^{}]*\})*))?\}")
_PROBLEM = "application/problem+json"
_PACKAGE = b"ipfs_accelerate_node.api."  # before the names of types of which there are several
_REF = "#/components/schemas/{name}"
MADE: web.AppKey[dict[str, bytes]] = web.AppKey("openapi", dict)


class Problem(msgspec.Struct, frozen=True):
    """RFC 9457, with our code; further fields by the kind of failure."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    exit_code: int


class HubError(msgspec.Struct, frozen=True):
    error: str


_ERRORS: dict[Dialect, type[msgspec.Struct]] = {
    Dialect.NATIVE: Problem,
    Dialect.OPENAI: openai_wire.ErrorReply,
    Dialect.TEI: tei_wire.ErrorReply,
    Dialect.KSERVE: kserve_wire.ErrorReply,
    Dialect.PINNING: pinning_service.FailureReply,
}
_TAGS = {
    Dialect.NATIVE: "native",
    Dialect.OPENAI: "openai",
    Dialect.TEI: "inference",
    Dialect.KSERVE: "kserve",
    Dialect.PINNING: "pinning",
}


async def show(request: web.Request) -> web.Response:
    """Made once: routes do not change while a node runs."""
    made: dict[str, bytes] = request.app[MADE]
    if "body" not in made:
        local = is_loopback(request.app[CONFIG].host)
        made["body"] = json_bytes(document(list(request.app[pipeline.ROUTES].values()), loopback=local))
    return web.Response(body=made["body"], content_type="application/json", headers={"Cache-Control": "no-cache"})


def document(routes: list[Route], *, loopback: bool) -> dict[str, Any]:
    """loopback: what is open there needs no key."""
    types = [kind for route in routes for kind in (route.takes, route.gives) if kind is not None]
    kinds = list(dict.fromkeys([*types, *_ERRORS.values(), HubError]))
    schemas, components = msgspec.json.schema_components(kinds, schema_hook=_anything, ref_template=_REF)
    shown = dict(zip(kinds, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    names: Counter[str] = Counter()
    for route in routes:
        path = _PARAMETER.sub(r"{\1}", route.path)
        operation = _operation(route, shown, loopback=loopback)
        names[operation["operationId"]] += 1
        if (seen := names[operation["operationId"]]) > 1:
            operation["operationId"] += f"_{seen}"
        paths.setdefault(path, {})[route.method.lower()] = operation
    whole = {
        "openapi": "3.1.0",
        "info": {"title": "ipfs-accelerate-node", "version": version("ipfs-accelerate-node")},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }
    made: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(whole).replace(_PACKAGE, b""))
    return made


def _anything(kind: type) -> dict[str, Any]:
    """Of a field whose values its route checks one by one."""
    if kind in (object, msgspec.Raw):
        return {"description": "Any value; what it must be is checked item by item."}
    raise NotImplementedError


def _operation(route: Route, shown: dict[object, Any], *, loopback: bool) -> dict[str, Any]:
    about = (route.handler.__doc__ or "").strip().partition("\n\n")[0]
    operation: dict[str, Any] = {
        "operationId": f"{route.method.lower()}_{route.handler.__module__.rpartition('.')[2]}_{route.handler.__name__}",
        "tags": [_TAGS[route.dialect]],
        **({"description": re.sub(r"\s+", " ", about)} if about else {}),
        "parameters": _parameters(route),
        "responses": _responses(route, shown),
        "security": _security(route.surface, loopback=loopback),
    }
    if route.takes is not None:
        content = {route.takes_type: {"schema": shown[route.takes]}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _parameters(route: Route) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"name": match[1], "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for match in _PARAMETER.finditer(route.path)
    ]
    if route.infers:
        seconds = {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_TIMEOUT_S}
        found.append({"name": TIMEOUT, "in": "header", "required": False, "schema": seconds})
    if route.dialect is Dialect.TEI and "{" not in route.path and route.surface is Surface.INFER:
        model = {"type": "string", "minLength": 1, "maxLength": 2048}
        found += [
            {"name": "model", "in": "query", "required": False, "schema": model},
            {"name": "x-model", "in": "header", "required": False, "schema": model},
        ]
    return found


def _responses(route: Route, shown: dict[object, Any]) -> dict[str, Any]:
    """Failures are all of one shape, but for what is no HTTP, which comes to no route. What has no type here has a body
    of its own kind."""
    error = _PROBLEM if route.dialect is Dialect.NATIVE else "application/json"
    good: dict[str, Any] = {"description": "Done."}
    if route.gives is not None:
        good["content"] = {route.content: {"schema": shown[route.gives]}}
        if route.takes in (openai_wire.CompletionRequest, openai_wire.ChatRequest):
            good["content"]["text/event-stream"] = {"schema": {"type": "string"}}
        if route.takes is openai_wire.TranscriptionForm:
            good["content"]["text/plain"] = {"schema": {"type": "string"}}
        if route.gives is kserve_wire.InferReply:
            good["content"]["application/octet-stream"] = {"schema": {}}
    bad = {_PROBLEM: shown[Problem], error: shown[_ERRORS[route.dialect]]}
    if route.surface is Surface.HUB:
        bad["application/json"] = shown[HubError]
    if route.content == "text/html":
        bad["text/html"] = {"type": "string"}
    return {
        "2XX": good,
        "default": {
            "description": "It failed; the body says why.",
            "content": {kind: {"schema": schema} for kind, schema in bad.items()},
        },
    }


def _security(surface: Surface, *, loopback: bool) -> list[dict[str, list[str]]]:
    scope, open_on_loopback = surface.value
    if scope is None or (loopback and open_on_loopback):
        return [{}, {"key": []}]
    return [{"key": []}]


ROUTES = (Route("GET", "/openapi.json", show, Surface.INFER),)
