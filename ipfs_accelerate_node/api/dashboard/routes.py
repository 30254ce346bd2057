"""The routes of the page, all of them reading only; the one that makes a link belongs to the admin key.

What the page shows is what `/api/store`, `/api/pins`, `/api/peers` and `/api/results` show, so it takes the same key,
or the session of a browser that was let in by a link (`sessions`). Sessions are for a browser on this machine: Host and
the other end of the connection must be loopback. What other pages of the browser may do is decided before (`browser`);
here a request with a session must also come from the page itself, or be somebody opening it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import time
from contextlib import suppress

from aiohttp import web

from ipfs_accelerate_node.api.access import Surface
from ipfs_accelerate_node.api.context import GIVING, HUB_GIVING, KEYS, NODE
from ipfs_accelerate_node.api.dashboard.board import Board, Watch
from ipfs_accelerate_node.api.dashboard.page import door, headers, page
from ipfs_accelerate_node.api.dashboard.sessions import CODE_S, Sessions
from ipfs_accelerate_node.api.pipeline import CALLER, TRAFFIC, Route
from ipfs_accelerate_node.api.wire import json_reply
from ipfs_accelerate_node.errors import Forbidden, Overloaded, Unauthorized

PATH = "/dashboard"
TICK_S = 0.25  # between two looks at the pins
PING_S = 15.0
MAX_WATCHERS = 32
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})

SESSIONS: web.AppKey[Sessions] = web.AppKey("dashboard_sessions", Sessions)
BOARD: web.AppKey[Board] = web.AppKey("dashboard_board", Board)
WATCHERS: web.AppKey[asyncio.Semaphore] = web.AppKey("dashboard_watchers", asyncio.Semaphore)


def furnish(app: web.Application) -> None:
    """Puts into the application what these routes need; the node, its keys and traffic are there already."""
    app[SESSIONS] = Sessions(app[KEYS])
    app[BOARD] = board = Board(app[NODE], (app[GIVING], app[HUB_GIVING]), lambda: app[TRAFFIC].draining)
    app[WATCHERS] = asyncio.Semaphore(MAX_WATCHERS)
    app.on_cleanup.append(board.close)


async def make_link(request: web.Request) -> web.Response:
    """201: a path that opens the page once, in a browser on this machine, within ``expires_s``."""
    if not _from_here(request):
        raise Forbidden(
            "the dashboard is for a browser on the daemon's own machine; from another one: ssh -L 8090:127.0.0.1:8090",
            code="not_loopback",
        )
    caller = request[CALLER]
    assert caller is not None  # the surface asks for the admin key
    code = request.app[SESSIONS].new_code(caller)
    return json_reply({"path": f"{PATH}/login/{code}", "expires_s": int(CODE_S)}, status=201)


async def login(request: web.Request) -> web.Response:
    """Uses the link up: a session cookie, and on to the page."""
    secret = request.app[SESSIONS].open(request.match_info["code"]) if _from_here(request) else None
    if secret is None:
        return _html(door("This link was used before, or is more than a minute old. For a new one run:"), status=401)
    reply = web.Response(status=303, headers={**headers(), "Location": PATH})
    reply.set_cookie(_cookie(request), secret, path=PATH, httponly=True, samesite="Strict")
    return reply


async def show(request: web.Request) -> web.Response:
    if not _may_look(request):
        return _html(door("This page is for the user of this node. To open it, run:"), status=401)
    return _html(page(await request.app[BOARD].parts()))


async def events(request: web.Request) -> web.StreamResponse:
    """Server-sent: ``part`` (a section whose digest is not among ``?have=id.digest,…``), ``row`` (a pin), ``news`` (for
    a screen reader), ``end``. A comment every 15 s keeps the way open."""
    if not _may_look(request):
        raise Unauthorized("this needs a session of the dashboard, or the admin key", scope="admin")
    if request.app[WATCHERS].locked():
        raise Overloaded(f"{MAX_WATCHERS} pages are watching already", retry_after_s=30.0)
    have = dict(pair.split(".", 1) for pair in request.query.get("have", "").split(",") if "." in pair)
    reply = web.StreamResponse(headers={**headers(), "Content-Type": "text/event-stream"})
    async with request.app[WATCHERS]:
        await reply.prepare(request)
        stop = asyncio.Event()
        with request.app[TRAFFIC].told(stop.set), suppress(ConnectionError):
            await _send(request, reply, Watch(request.app[BOARD], have), stop)
    return reply


async def _send(request: web.Request, reply: web.StreamResponse, watch: Watch, stop: asyncio.Event) -> None:
    """Until the node stops or the session ends."""
    said_s = time.monotonic()
    while not stop.is_set() and _may_look(request):
        changes = await watch.changes()
        for name, value in changes:
            await reply.write(_event(name, value))
        if changes:
            said_s = time.monotonic()
        elif time.monotonic() - said_s >= PING_S:
            await reply.write(b": \n\n")
            said_s = time.monotonic()
        with suppress(TimeoutError):
            async with asyncio.timeout(TICK_S):
                await stop.wait()
    why = "The daemon is stopping." if stop.is_set() else "You are signed out. To look again, run: ian dashboard"
    await reply.write(_event("end", {"text": why}))


def _event(name: str, value: dict[str, str]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), json.dumps(value).encode())


def _may_look(request: web.Request) -> bool:
    """Whether the admin key came along, or a session's cookie in a request that no other page can have made."""
    caller = request[CALLER]
    if caller is not None and caller.may("admin"):
        return True
    secret = request.cookies.get(_cookie(request), "")
    return _from_here(request) and _of_page(request) and request.app[SESSIONS].knows(secret)


def _of_page(request: web.Request) -> bool:
    """From the page itself, from the address bar, or by a link that opens it in a window of its own."""
    site = request.headers.get("Sec-Fetch-Site", "none").strip().lower()
    opened = (request.headers.get("Sec-Fetch-Mode"), request.headers.get("Sec-Fetch-Dest")) == ("navigate", "document")
    return site in ("none", "same-origin") or (site == "same-site" and opened)


def _from_here(request: web.Request) -> bool:
    """Whether a loopback name was asked for over a loopback connection."""
    name = request.headers.get("Host", "").lower().removesuffix(f":{_port(request)}")
    peer = request.transport.get_extra_info("peername") if request.transport is not None else None
    if name not in _LOOPBACK_NAMES or not peer:
        return False
    address = ipaddress.ip_address(peer[0].partition("%")[0])
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _cookie(request: web.Request) -> str:
    """Cookies know no ports: two daemons of one machine have names of their own."""
    return f"ian_dashboard_{_port(request)}"


def _port(request: web.Request) -> int:
    port: int = request.transport.get_extra_info("sockname")[1] if request.transport is not None else 0
    return port


def _html(text: str, *, status: int = 200) -> web.Response:
    return web.Response(text=text, status=status, content_type="text/html", charset="utf-8", headers=headers())


ROUTES = (
    Route("POST", "/api/dashboard", make_link, Surface.STATE),
    Route(
        "GET", PATH, show, Surface.OPEN, content="text/html"
    ),  # each of these asks for a session or the admin key itself
    Route("GET", f"{PATH}/login/{{code}}", login, Surface.OPEN, content="text/html"),
    Route("GET", f"{PATH}/events", events, Surface.OPEN),
)
