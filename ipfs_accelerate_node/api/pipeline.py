"""What every request passes through, outermost first: its id, the traffic counter, where it comes from (browser),
who sent it (access), its handler; and the one place where failures become responses.

A failure after the first byte of a reply cannot be told any more: the connection is cut, so that a short body is never
taken for a whole one.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

from aiohttp import HttpVersion11, web

from ipfs_accelerate_node.api.access import Admission, Surface
from ipfs_accelerate_node.api.browser import Provenance
from ipfs_accelerate_node.api.deadlines import ARRIVED, note_deadline
from ipfs_accelerate_node.api.keys import Caller
from ipfs_accelerate_node.api.metrics import Metrics
from ipfs_accelerate_node.api.problems import Dialect, error_reply, internal_reply, of_framework
from ipfs_accelerate_node.api.traffic import HELD, Traffic
from ipfs_accelerate_node.errors import NodeError, Unavailable, http_status

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
CLIENT_GONE = 499  # never sent: in the log and the metrics only
_OWN_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


@dataclass(frozen=True, slots=True)
class Route:
    """path: aiohttp's pattern. The surface decides who may; the dialect how failures are spelled. measures: its reply
    tells how fast models are. takes, gives: types of the body and of the reply, for the document that describes the
    routes; takes_type, content: their media types. probe: answered also while the node stops, as open ones are."""

    method: str
    path: str
    handler: Handler
    surface: Surface
    dialect: Dialect = Dialect.NATIVE
    measures: bool = False
    takes: object = None
    gives: object = None
    takes_type: str = "application/json"
    content: str = "application/json"
    probe: bool = False

    @property
    def infers(self) -> bool:
        """Whether a model works while this is answered."""
        return self.measures or (self.surface is Surface.INFER and self.method == "POST")


GATE: web.AppKey[Admission] = web.AppKey("gate", Admission)
ORIGINS: web.AppKey[Provenance] = web.AppKey("origins", Provenance)
TRAFFIC: web.AppKey[Traffic] = web.AppKey("traffic", Traffic)
METRICS: web.AppKey[Metrics] = web.AppKey("metrics", Metrics)
ROUTES: web.AppKey[Mapping[web.AbstractRoute, Route]] = web.AppKey("routes", Mapping)
REQUEST_ID: web.RequestKey[str] = web.RequestKey("request_id", str)
MODEL: web.RequestKey[str] = web.RequestKey("model", str)  # as a label of metrics, where one was asked
CALLER: web.RequestKey[Caller | None] = web.RequestKey("caller", Caller)
_STARTED: web.RequestKey[web.StreamResponse] = web.RequestKey("started", web.StreamResponse)


def mount(app: web.Application, routes: tuple[Route, ...]) -> None:
    """Adds the routes, each behind the pipeline (which also answers for paths that no route has)."""
    add = app.router.add_route
    app[ROUTES] = {add(r.method, r.path, r.handler, expect_handler=_expectation): r for r in routes}
    app.middlewares.append(pipeline)
    app.on_response_prepare.append(_on_prepare)


@web.middleware
async def pipeline(request: web.Request, handler: Handler) -> web.StreamResponse:
    request[ARRIVED] = began = time.perf_counter()
    request[REQUEST_ID] = request_id(request)
    route = request.app[ROUTES].get(request.match_info.route)
    status = CLIENT_GONE
    try:
        traffic = request.app[TRAFFIC]
        with traffic.request() as request[HELD], traffic.inference() if route and route.infers else nullcontext():
            reply = await _answer(request, handler, route)
            status = reply.status
            return reply
    except asyncio.CancelledError:
        log.info("request.gone status=%d method=%s id=%s", CLIENT_GONE, request.method, request[REQUEST_ID])
        raise
    finally:
        pattern = route.path if route else "unmatched"
        method = request.method if route else "other"
        seconds, model = time.perf_counter() - began, request.get(MODEL, "")
        request.app[METRICS].answered(method, pattern, status, seconds, model=model)


async def _answer(request: web.Request, handler: Handler, route: Route | None) -> web.StreamResponse:
    dialect = route.dialect if route else _dialect(request.path)
    try:
        return await _admitted(request, handler, route)
    except web.HTTPException as exc:
        return error_reply(of_framework(exc, request), dialect)
    except ConnectionError:
        return _cut(request, "client gone")
    except NodeError as exc:
        if http_status(exc) >= 500:
            log.warning("request.failed code=%s reason=%s id=%s", exc.code, exc, request[REQUEST_ID])
        return _cut(request, exc.code) if _STARTED in request else error_reply(exc, dialect)
    except Exception:
        log.exception("request.bug method=%s id=%s", request.method, request[REQUEST_ID])
        return _cut(request, "bug") if _STARTED in request else internal_reply(request[REQUEST_ID], dialect)


async def _admitted(request: web.Request, handler: Handler, route: Route | None) -> web.StreamResponse:
    _admit(request, route)
    if route is not None and route.infers:
        note_deadline(request)
    return await handler(request)  # where there is no route, this raises the router's own 404 or 405


def _admit(request: web.Request, route: Route | None) -> None:
    """Raises Forbidden, Unauthorized, or Unavailable while the node is stopping."""
    app = request.app
    app[ORIGINS].check(request)
    if route is None:
        return
    if app[TRAFFIC].draining and not route.probe and route.surface not in (Surface.OPEN, Surface.METRICS):
        raise Unavailable("the node is stopping", code="shutting_down", retry_after_s=5)
    request[CALLER] = app[GATE].admit(request, route.surface)


async def _expectation(request: web.Request) -> None:
    """Asks for the body of an ``Expect: 100-continue`` only if the request would be admitted: who is to be refused need
    not send it. Other expectations mean nothing here."""
    if request.version < HttpVersion11 or request.headers["Expect"].strip().lower() != "100-continue":
        return
    try:
        _admit(request, request.app[ROUTES].get(request.match_info.route))
    except NodeError:
        return  # the pipeline, which comes next, says why
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # the reply itself has not begun


def has_begun(request: web.BaseRequest) -> bool:
    """Whether the head of the reply has left, so that a failure cannot be told any more."""
    return _STARTED in request


def request_id(request: web.BaseRequest) -> str:
    """The caller's own, if it is one that a log can hold, else a new one."""
    asked = request.headers.get("x-request-id", "")
    return asked if _OWN_ID.fullmatch(asked) else secrets.token_hex(16)


def _dialect(path: str) -> Dialect:
    """Of a path that no route has."""
    if path.startswith("/v1/") or (path.startswith("/models/") and "/v1/" in path):
        return Dialect.OPENAI
    if path.startswith("/models/"):
        return Dialect.TEI
    if path.startswith("/api/v1/"):
        return Dialect.PINNING
    return Dialect.KSERVE if path.startswith("/v2/") else Dialect.NATIVE


def _cut(request: web.Request, reason: str) -> web.StreamResponse:
    """Ends a connection in the middle of its reply; what is returned is not written any more."""
    log.info("request.cut reason=%s id=%s", reason, request[REQUEST_ID])
    if request.transport is not None:
        request.transport.abort()
    return request.get(_STARTED) or web.Response(status=CLIENT_GONE)


async def _on_prepare(request: web.Request, response: web.StreamResponse) -> None:
    """Headers of every response. The server does not tell what it is made of."""
    request[_STARTED] = response
    own_headers(response, request.get(REQUEST_ID) or request_id(request))


def own_headers(response: web.StreamResponse, number: str) -> None:
    headers = response.headers
    headers["x-request-id"] = number
    headers["Server"] = "ipfs-accelerate-node"
    headers.setdefault("X-Content-Type-Options", "nosniff")
    headers.setdefault("Cross-Origin-Resource-Policy", "same-origin")
