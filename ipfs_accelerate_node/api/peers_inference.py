"""Models run for peers: only where the user opted in (`serve_peers`), only for keys on the list, and after this node's
own requests.

The same two routes on both listeners: on the peers' one nothing else infers, on the user's one a signed request is a
peer's. Who asks is known before the body is: the signature covers its digest, which is sent ahead and compared with
what then comes. A model is named by its root, and what is private here is not there. Bounded: requests of one key, all
that wait, those that run, bytes, and the time that each takes.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import msgspec
from aiohttp import web

from ipfs_accelerate_node.api import inference_routes, openai_embeddings
from ipfs_accelerate_node.api.access import Admission, Surface
from ipfs_accelerate_node.api.bodies import check_content_type, chunks, parse_json
from ipfs_accelerate_node.api.context import node
from ipfs_accelerate_node.api.keys import Caller
from ipfs_accelerate_node.api.pipeline import Route
from ipfs_accelerate_node.api.problems import Dialect
from ipfs_accelerate_node.api.traffic import Traffic
from ipfs_accelerate_node.api.wire import EmbeddingsRequest
from ipfs_accelerate_node.content.reference import MockRef, RootRef, parse_reference
from ipfs_accelerate_node.errors import (
    BadRequest,
    Forbidden,
    NotFound,
    Overloaded,
    Unauthorized,
    Unavailable,
    UnsupportedMediaType,
)
from ipfs_accelerate_node.node import Node
from ipfs_accelerate_node.peers.remote import EMBED, INFER, MAX_REQUEST_BYTES
from ipfs_accelerate_node.records.request import DIGEST, HEADERS, Asked, Gatehouse, digest_hex

PATHS = frozenset({INFER, EMBED})
SIGNER: web.RequestKey[str | None] = web.RequestKey("signer", str)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Limits:
    """running, waiting: requests of all peers. of_key: of one key, both together. body_s: until a body is here.
    patience_s: for a turn, after the body. answer_s: from then on, loading included."""

    running: int = 2
    waiting: int = 16
    of_key: int = 4
    body_s: float = 30.0
    patience_s: float = 15.0
    answer_s: float = 60.0


class Desk:
    """Whose turn it is. own: requests that are not peers' are what `Traffic` counts beside those that are here."""

    def __init__(self, traffic: Traffic, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._traffic = traffic
        self._here: Counter[str] = Counter()
        self._running = 0

    @asynccontextmanager
    async def enters(self, key: str) -> AsyncIterator[None]:
        """Raises Overloaded (peer_busy): this key has too many requests here, or all together have."""
        if self._here[key] >= self.limits.of_key:
            raise Overloaded("too many requests of one key at a time", code="peer_busy", retry_after_s=1)
        if self._here.total() >= self.limits.running + self.limits.waiting:
            raise Overloaded("too many requests of peers at a time", code="peer_busy", retry_after_s=5)
        self._here[key] += 1
        try:
            yield
        finally:
            self._here[key] -= 1
            if not self._here[key]:
                del self._here[key]

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Inside `enters`. Raises Overloaded (peer_busy) when this node's own requests, or those before, left no room
        in time."""
        try:
            async with asyncio.timeout(self.limits.patience_s):
                await self._traffic.until(self._is_free)
        except TimeoutError as exc:
            raise Overloaded(
                "this node is busy with its own requests", code="peer_busy", retry_after_s=self.limits.patience_s
            ) from exc
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    def _is_free(self) -> bool:
        own = self._traffic.inferring - self._here.total()
        return own <= 0 and self._running < self.limits.running


class Doorman:
    """Who may come in as a peer. opened: the user opted in. allowed: PeerIDs of keys, as they are now."""

    def __init__(self, gatehouse: Gatehouse, allowed: Callable[[], frozenset[str]], *, opened: bool) -> None:
        self.gatehouse = gatehouse
        self._allowed = allowed
        self.opened = opened

    def admit(self, request: web.BaseRequest) -> str:
        """PeerID of the key. Raises NotFound (not opted in), Unauthorized as `Gatehouse.signer`, and for no signature
        (signature_needed), Forbidden (key_not_allowed), Overloaded."""
        if not self.opened:
            raise NotFound("there is nothing here")
        signer = self.signer(request)
        if signer is None:
            raise Unauthorized("a peer signs its request", code="signature_needed")
        if signer not in self._allowed():
            reason = f"{signer} may not run models here; the other node's user can let it: peers allow {signer}"
            raise Forbidden(reason, code="key_not_allowed")
        return signer

    def signer(self, request: web.BaseRequest) -> str | None:
        """PeerID of who signed it, if anybody did. Raises as `Gatehouse.signer`."""
        headers = _signature(request)
        digest = None
        if headers and request.method == "POST":
            digest = digest_hex(request.headers.get(DIGEST, ""))
        asked = Asked(request.method, request.raw_path, body_sha256=digest)
        return self.gatehouse.signer(headers, asked, now=time.time())


class EitherGate:
    """The user's gate, where a signed request to run a model comes in as a peer's, whatever key it has beside."""

    def __init__(self, gate: Admission, doorman: Doorman) -> None:
        self._gate = gate
        self._doorman = doorman

    def admit(self, request: web.BaseRequest, surface: Surface) -> Caller | None:
        if is_peers(request):
            request[SIGNER] = self._doorman.admit(request)
            return None
        return self._gate.admit(request, surface)

    def sees_private(self, caller: Caller | None) -> bool:
        return self._gate.sees_private(caller)


DOORMAN: web.AppKey[Doorman] = web.AppKey("doorman", Doorman)
DESK: web.AppKey[Desk] = web.AppKey("desk", Desk)


def is_peers(request: web.BaseRequest) -> bool:
    """Whether this is a peer's request to run a model, by what it claims of itself; nothing is checked yet."""
    return request.method == "POST" and request.path in PATHS and any(name in request.headers for name in HEADERS)


async def infer(request: web.Request) -> web.StreamResponse:
    return await _served(request, inference_routes.InferRequest, _infer)


async def embed(request: web.Request) -> web.StreamResponse:
    return await _served(request, EmbeddingsRequest, _embed)


async def _infer(request: web.Request, body: inference_routes.InferRequest) -> web.Response:
    root = await _root(node(request), body.ref)
    return await inference_routes.inferred(request, msgspec.structs.replace(body, ref=root, allow_mock=False))


async def _embed(request: web.Request, body: EmbeddingsRequest) -> web.Response:
    root = await _root(node(request), body.model)
    return await openai_embeddings.embedded(request, msgspec.structs.replace(body, model=root))


async def _served(
    request: web.Request, kind: type[T], answer: Callable[[web.Request, T], Awaitable[web.Response]]
) -> web.StreamResponse:
    desk = request.app[DESK]
    signer = request.get(SIGNER)
    if signer is None:
        raise Unauthorized("a peer signs its request", code="signature_needed")
    async with desk.enters(signer):
        body = await asyncio.to_thread(parse_json, await _body(request, desk.limits.body_s), kind)
        async with desk.turn():
            try:
                async with asyncio.timeout(desk.limits.answer_s):
                    reply = await answer(request, body)
            except TimeoutError as exc:
                raise Unavailable(
                    f"no answer within {desk.limits.answer_s:g} s, which is all that a peer gets", code="deadline"
                ) from exc
    reply.headers["X-Peer"] = node(request).key.peer_id
    return reply


async def _body(request: web.Request, patience_s: float) -> bytes:
    """What the signature is over, to the byte. Raises as `bodies.chunks`; Unauthorized(bad_signature)."""
    check_content_type(request, "application/json")
    if request.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        raise UnsupportedMediaType("a signed body is sent as it is")
    try:
        async with asyncio.timeout(patience_s):
            body = b"".join([chunk async for chunk in chunks(request, limit_bytes=MAX_REQUEST_BYTES)])
    except TimeoutError as exc:
        raise BadRequest(f"the body took over {patience_s:g} s", code="timeout") from exc
    if hashlib.sha256(body).hexdigest() != digest_hex(request.headers.get(DIGEST, "")):
        raise Unauthorized("signed request refused: the body is not the one that was signed", code="bad_signature")
    return body


async def _root(here: Node, ref: str) -> str:
    """As `Serving` takes it. Raises BadRequest for a name (those are our own affair), NotFound for what is not here and
    public."""
    reference = parse_reference(ref)
    if isinstance(reference, MockRef):
        return ref
    if not isinstance(reference, RootRef) or reference.path:
        raise BadRequest("name the model by its root: names are each node's own", code="invalid_reference", param="ref")
    root = reference.cid.canonical
    stored = await asyncio.to_thread(here.store.model, root)
    if stored is None or not stored.public:
        raise NotFound(f"the model {root} is not here", code="model_not_found")
    return str(root)


def _signature(request: web.BaseRequest) -> Mapping[str, str]:
    """Raises Unauthorized for one that is given twice: which of them was meant?"""
    given = {name: request.headers.getall(name, []) for name in HEADERS}
    if any(len(values) > 1 for values in given.values()):
        raise Unauthorized("signed request refused: one signature, not several", code="signature_incomplete")
    return {name: values[0] for name, values in given.items() if values}


ROUTES = (
    Route("POST", INFER, infer, Surface.INFER),
    Route("POST", EMBED, embed, Surface.INFER, Dialect.OPENAI),
)


def peers_too(routes: tuple[Route, ...]) -> tuple[Route, ...]:
    """The user's routes, of which those two answer a peer by this module's rules."""
    ours = {(route.method, route.path): route for route in ROUTES}
    return tuple(
        replace(route, handler=_either(route, ours[route.method, route.path]))
        if (route.method, route.path) in ours
        else route
        for route in routes
    )


def _either(users: Route, peers: Route) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handler(request: web.Request) -> web.StreamResponse:
        return await (peers if request.get(SIGNER) is not None else users).handler(request)

    return handler


def opened(here: Node, traffic: Traffic) -> tuple[Doorman, Desk]:
    """One of each for both listeners: a signature counts once, whatever door it came by."""
    gatehouse = Gatehouse(here.key.peer_id, since=here.started_at)
    allowed = here.exchange.book
    return Doorman(gatehouse, lambda: allowed.allowed, opened=here.config.serve_peers), Desk(traffic)
