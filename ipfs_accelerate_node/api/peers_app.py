"""The peers' listener: a second application on a port of its own, which is all that strangers ever reach.

`ipfs p2p listen` brings them in as 127.0.0.1, so this door opens on nothing but the routes below: public content, what
is here of a root, published records, maps of public Hub commits, who this is; and, where the user opted in, models run
for keys that are allowed (`peers_inference`). No API key means anything here; every other path and method is 404. A
request may be signed (`records.request`); one that is signed wrongly is refused, whatever it asks for.
"""

from __future__ import annotations

import socket
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from aiohttp import web

from ipfs_accelerate_node import __version__
from ipfs_accelerate_node.api import gateway, hub_maps, peers_inference, results, storage
from ipfs_accelerate_node.api.access import Surface
from ipfs_accelerate_node.api.browser import from_browser
from ipfs_accelerate_node.api.context import CONFIG, GIVING, LEAF_MAPS, NODE, node
from ipfs_accelerate_node.api.keys import Caller
from ipfs_accelerate_node.api.listener import BACKLOG, listening
from ipfs_accelerate_node.api.peers_connection import Allowances, PeerConnection
from ipfs_accelerate_node.api.peers_inference import DESK, DOORMAN, SIGNER, Doorman
from ipfs_accelerate_node.api.pipeline import GATE, METRICS, ORIGINS, TRAFFIC, Route, mount
from ipfs_accelerate_node.api.tracing import TRACING
from ipfs_accelerate_node.api.wire import json_reply
from ipfs_accelerate_node.errors import BadRequest, Forbidden, NotFound, PayloadTooLarge
from ipfs_accelerate_node.node import Node
from ipfs_accelerate_node.peers.protocol import AGENT
from ipfs_accelerate_node.records.request import is_nonce, prove


class PeersGate:
    """Everybody may enter, but where models run; nobody sees what is private, and an API key is not even looked at."""

    def __init__(self, doorman: Doorman) -> None:
        self._doorman = doorman

    def admit(self, request: web.BaseRequest, surface: Surface) -> Caller | None:
        """None. Notes who signed. Raises as `Doorman.admit` and `Doorman.signer`."""
        door = self._doorman
        request[SIGNER] = door.admit(request) if surface is Surface.INFER else door.signer(request)
        return None

    def sees_private(self, caller: Caller | None) -> bool:
        return False


class Strangers:
    """What no request of a node has is refused first, and what one peer asks too much."""

    def __init__(self, allowances: Allowances) -> None:
        self._allowances = allowances

    def check(self, request: web.BaseRequest) -> None:
        """A body passes where no route takes one with this method either: that is a 404, as any other.

        Raises Overloaded(rate_limited), Forbidden(foreign_origin), PayloadTooLarge, BadRequest."""
        connection = request.protocol
        self._allowances.take(connection.peer if isinstance(connection, PeerConnection) else "")
        if from_browser(request):
            raise Forbidden("web pages have nothing to do here", code="foreign_origin")
        if "Expect" in request.headers or (request.body_exists and request.method in _BODILESS):
            raise PayloadTooLarge("no request here has a body")
        if not request.raw_path.startswith("/"):
            raise BadRequest("the request line must hold a path, not a URL")


async def have(request: web.Request) -> web.StreamResponse:
    return await storage.have(request)


async def maps(request: web.Request) -> web.StreamResponse:
    return await hub_maps.read_map(request)


async def content(request: web.Request) -> web.StreamResponse:
    return await gateway.serve(request)


async def peer(request: web.Request) -> web.Response:
    """Who this is: its key, and the PeerID at which it is dialled (its Kubo's, another one where that is not our own
    child). ``?nonce=`` (32 hex digits): also a proof that the two belong together."""
    here = node(request)
    told: dict[str, object] = {"peer_id": here.key.peer_id, "agent": AGENT, "version": __version__, "dial": None}
    nonce = request.query.get("nonce")
    if nonce is not None and not is_nonce(nonce):
        raise BadRequest("a nonce has 32 lower-case hex digits", param="nonce")
    if here.kubo.state == "ready":
        told["dial"] = dialled = here.kubo.client.peer_id
        if nonce is not None:
            told["proof"] = prove(here.key, dialled=dialled, challenge=nonce)
    return json_reply(told)


async def benchmarks(request: web.Request) -> web.StreamResponse:
    return await results.told_to_strangers(request)


async def nothing(request: web.Request) -> web.StreamResponse:
    raise NotFound("there is nothing here")


ROUTES = (
    Route("GET", "/ipfs/{path:.+}", content, Surface.SHARE),
    Route("HEAD", "/ipfs/{path:.+}", content, Surface.SHARE),
    Route("GET", "/api/have/{root}", have, Surface.SHARE),
    Route("GET", "/api/benchmarks", benchmarks, Surface.SHARE),
    Route("GET", "/api/maps", maps, Surface.SHARE),
    Route("GET", "/api/peer", peer, Surface.SHARE),
)
_BODILESS = frozenset({"GET", "HEAD"})


def build_peers_app(user: web.Application, allowances: Allowances) -> web.Application:
    """user: the application of the user's listener; the node, its limits and counters are one."""
    app = web.Application()
    here = app[NODE] = user[NODE]
    app[CONFIG] = user[CONFIG]
    app[GIVING] = user[GIVING]
    app[LEAF_MAPS] = user[LEAF_MAPS]
    app[TRAFFIC] = user[TRAFFIC]
    app[METRICS] = user[METRICS]
    app[TRACING] = user[TRACING]
    app[DOORMAN] = user[DOORMAN]
    app[DESK] = user[DESK]
    app[GATE] = PeersGate(user[DOORMAN])
    app[ORIGINS] = Strangers(allowances)
    mount(app, (*ROUTES, *peers_inference.ROUTES) if here.config.serve_peers else ROUTES)
    app.router.add_route("*", "/{path:.*}", nothing)  # a path of ours with another method, too
    return app


class PeersListener:
    """Async context manager: the peers' application on a free loopback port, to which the node's Kubo leads strangers.
    Nothing at all where tunnels are off or there is no Kubo. port: None then."""

    def __init__(self, here: Node, user: web.Application) -> None:
        self._node = here
        self._user = user
        self._exit = AsyncExitStack()
        self.port: int | None = None

    async def __aenter__(self) -> Self:
        if not self._user[CONFIG].tunnels or self._node.kubo.mode == "off":
            return self
        async with AsyncExitStack() as stack:
            sock = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=BACKLOG))
            sock.setblocking(False)
            allowances = Allowances()
            app = build_peers_app(self._user, allowances)
            await stack.enter_async_context(listening(app, sock, accept=allowances.accept))
            self.port = sock.getsockname()[1]
            await stack.enter_async_context(self._node.peers.letting_in(self.port))
            self._exit = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exit.__aexit__(kind, error, trace)
