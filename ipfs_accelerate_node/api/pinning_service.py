"""``/api/v1/pins``: the Pinning Service API 1.0.0, by which `ipfs pin remote` and others have this node keep things.

A key with the scope `pin` is needed everywhere, on loopback too, and sees what it asked for itself; the admin key sees
all. Its base for clients is ``http://HOST:PORT/api/v1``.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, TypeVar

import msgspec
from aiohttp import web

from ipfs_accelerate_node.api.access import Surface
from ipfs_accelerate_node.api.bodies import read_json
from ipfs_accelerate_node.api.context import node
from ipfs_accelerate_node.api.pipeline import CALLER, Handler, Route
from ipfs_accelerate_node.api.problems import Dialect
from ipfs_accelerate_node.api.traffic import finished
from ipfs_accelerate_node.api.wire import json_reply
from ipfs_accelerate_node.content.cid import Cid, shown
from ipfs_accelerate_node.errors import InvalidCid, InvalidInput
from ipfs_accelerate_node.pinning.origins import MAX_ORIGINS
from ipfs_accelerate_node.pinning.requests import Ask, Match, PinRequest, Status, Wanted

BODY_LIMIT_BYTES = 1 << 20
MAX_NAME = 255
MAX_CIDS = 10
MAX_LIST = 1000
ADMIN = "admin"  # the owner of what admin keys ask for: each run of the daemon has another one
T = TypeVar("T")

CidText = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
PinName = Annotated[str, msgspec.Meta(max_length=MAX_NAME)]
OriginText = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
MetaText = Annotated[str, msgspec.Meta(max_length=4096)]


class PinObject(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is to be kept; cid is needed. origins: multiaddrs of who has it. meta: the caller's own texts."""

    cid: CidText
    name: PinName | None = None
    origins: Annotated[list[OriginText], msgspec.Meta(max_length=MAX_ORIGINS)] | None = None
    meta: Annotated[dict[MetaText, MetaText], msgspec.Meta(max_length=1000)] | None = None


class PinStatus(msgspec.Struct, frozen=True):
    """delegates: multiaddrs of this node's Kubo, none where it is off."""

    requestid: str
    status: Status
    created: str
    pin: PinObject
    delegates: list[str]
    info: dict[str, str]


class PinResults(msgspec.Struct, frozen=True):
    """count: of all that match, of which results are the latest."""

    count: int
    results: list[PinStatus]


class Failure(msgspec.Struct, frozen=True):
    """reason: one word for programs; details: for people."""

    reason: str
    details: str


class FailureReply(msgspec.Struct, frozen=True):
    error: Failure


async def list_pins(request: web.Request) -> web.Response:
    """Requests of this key, latest first; without any filter only those that are pinned."""
    count, found = await node(request).pinning.find(_sees(request), _wanted(request))
    delegates = await node(request).pinning.delegates()
    return json_reply(msgspec.to_builtins(PinResults(count, [_status(each, delegates) for each in found])))


async def add_pin(request: web.Request) -> web.Response:
    """202: the request, which goes on by itself."""
    ask = await _ask(request)
    caller = request[CALLER]
    assert caller is not None, "the surface needs a key"
    owner = ADMIN if caller.may(ADMIN) else caller.key_id
    return await _reply(request, await finished(node(request).pinning.add(owner, ask)), 202)


async def show_pin(request: web.Request) -> web.Response:
    return await _reply(request, await node(request).pinning.get(_sees(request), request.match_info["requestid"]), 200)


async def replace_pin(request: web.Request) -> web.Response:
    """202: a new request, with another id, instead of this one."""
    ask = await _ask(request)
    replaced = node(request).pinning.replace(_sees(request), request.match_info["requestid"], ask)
    return await _reply(request, await finished(replaced), 202)


async def remove_pin(request: web.Request) -> web.Response:
    await finished(node(request).pinning.remove(_sees(request), request.match_info["requestid"]))
    return web.Response(status=202, headers={"Cache-Control": "no-store"})


async def _reply(request: web.Request, made: PinRequest, status: int) -> web.Response:
    delegates = await node(request).pinning.delegates()
    return json_reply(msgspec.to_builtins(_status(made, delegates)), status=status)


def _status(made: PinRequest, delegates: list[str]) -> PinStatus:
    ask = made.ask
    pin = PinObject(str(ask.cid), ask.name, list(ask.origins) or None, dict(ask.meta) or None)
    return PinStatus(made.id, made.status, made.created, pin, delegates, dict(made.info))


def _sees(request: web.Request) -> str | None:
    """Whose requests; None is everybody's."""
    caller = request[CALLER]
    assert caller is not None, "the surface needs a key"
    return None if caller.may(ADMIN) else caller.key_id


async def _ask(request: web.Request) -> Ask:
    body = await read_json(request, PinObject, limit_bytes=BODY_LIMIT_BYTES)
    return Ask(Cid.parse(body.cid), body.name, tuple(body.origins or ()), body.meta or {})


# -- filters


def _wanted(request: web.Request) -> Wanted:
    """Raises InvalidInput, InvalidCid."""
    return Wanted(
        cids=_cids(_one(request, "cid")),
        name=_name(_one(request, "name")),
        match=_choice(Match, "match", _one(request, "match") or Match.EXACT),
        statuses=_statuses(request),
        before_ms=_moment("before", _one(request, "before")),
        after_ms=_moment("after", _one(request, "after")),
        limit=_limit(_one(request, "limit")),
        meta=_meta(_one(request, "meta")),
    )


def _statuses(request: web.Request) -> tuple[Status, ...]:
    """Where nothing is asked for, what is pinned. Who looks for a name, a CID or a mark without saying in which state
    finds it in all: the API's own words leave that open, and its test suite expects it."""
    if (text := _one(request, "status")) is not None:
        return tuple(_choice(Status, "status", part) for part in text.split(","))
    return () if {"cid", "name", "meta"} & request.query.keys() else (Status.PINNED,)


def _one(request: web.Request, name: str) -> str | None:
    """A parameter that may be given once. Some clients repeat it for a list: joined, as the API's own form is."""
    given = request.query.getall(name, [])
    if len(given) > 1 and name not in ("cid", "status"):
        raise InvalidInput(f"{name} is given {len(given)} times", param=name)
    return ",".join(given) if given else None


def _cids(text: str | None) -> tuple[str, ...]:
    if text is None:
        return ()
    parts = text.split(",")
    if len(parts) > MAX_CIDS:
        raise InvalidInput(f"at most {MAX_CIDS} CIDs at once, got {len(parts)}", param="cid")
    try:
        return tuple(dict.fromkeys(str(Cid.parse(part).canonical) for part in parts))
    except InvalidCid as exc:
        exc.detail["param"] = "cid"
        raise


def _name(text: str | None) -> str | None:
    if text is not None and len(text) > MAX_NAME:
        raise InvalidInput(f"a name has at most {MAX_NAME} letters", param="name")
    return text


def _choice(kind: type[T], name: str, text: str) -> T:
    try:
        return kind(text)  # type: ignore[call-arg]  # an enumeration, looked up by its value
    except ValueError as exc:
        known = ", ".join(str(each) for each in kind)  # type: ignore[attr-defined]
        raise InvalidInput(f"{name} is one of {known}, not {shown(text)}", param=name) from exc


def _moment(name: str, text: str | None) -> float | None:
    """RFC 3339 as milliseconds since 1970. A "+" that came as a space is one."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text.replace(" ", "+") if "T" in text else text)
    except ValueError as exc:
        raise InvalidInput(f"{name} is no date-time like 2020-07-27T17:32:28Z: {shown(text)}", param=name) from exc
    if moment.tzinfo is None:
        raise InvalidInput(f"{name} needs a time and its offset, such as Z: {shown(text)}", param=name)
    return round(moment.timestamp() * 1000, 3)


def _limit(text: str | None) -> int:
    if text is None:
        return 10
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= MAX_LIST):
        raise InvalidInput(f"limit is a number from 1 to {MAX_LIST}, not {shown(text)}", param="limit")
    return int(text)


def _meta(text: str | None) -> dict[str, str]:
    if text is None:
        return {}
    try:
        return msgspec.json.decode(text, type=dict[str, str])
    except (msgspec.MsgspecError, UnicodeError) as exc:
        raise InvalidInput(f"meta is a JSON object of texts: {exc}", param="meta") from exc


def _route(method: str, path: str, handler: Handler, takes: object = None, gives: object = None) -> Route:
    return Route(method, path, handler, Surface.PIN, Dialect.PINNING, takes=takes, gives=gives)


ROUTES = (
    _route("GET", "/api/v1/pins", list_pins, gives=PinResults),
    _route("POST", "/api/v1/pins", add_pin, takes=PinObject, gives=PinStatus),
    _route("GET", "/api/v1/pins/{requestid}", show_pin, gives=PinStatus),
    _route("POST", "/api/v1/pins/{requestid}", replace_pin, takes=PinObject, gives=PinStatus),
    _route("DELETE", "/api/v1/pins/{requestid}", remove_pin),
)
