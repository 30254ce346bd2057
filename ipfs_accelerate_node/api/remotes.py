"""Native routes of remote pinning services: name one, have it keep something, see what it says of it. Keys go in, never
out."""

from __future__ import annotations

import asyncio
from typing import Annotated

import msgspec
from aiohttp import web

from ipfs_accelerate_node.api.access import Surface
from ipfs_accelerate_node.api.bodies import read_json
from ipfs_accelerate_node.api.context import node
from ipfs_accelerate_node.api.pipeline import Route
from ipfs_accelerate_node.api.traffic import finished
from ipfs_accelerate_node.api.wire import RefText, json_reply
from ipfs_accelerate_node.errors import InvalidInput
from ipfs_accelerate_node.pinning.remote import LIST, Remote, RemotePin

MAX_LIST = 1000


class AddRemote(msgspec.Struct, frozen=True):
    """url: the base of its API, without ``/pins``."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    url: RefText
    key: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]


class PinThere(msgspec.Struct, frozen=True):
    """name: what it is called there."""

    ref: RefText
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=255)] | None = None


async def list_remotes(request: web.Request) -> web.Response:
    return json_reply({"remotes": [_shown(remote) for remote in node(request).remotes.all()]})


async def add_remote(request: web.Request) -> web.Response:
    """201, once the service has accepted the key."""
    body = await read_json(request, AddRemote)
    return json_reply(_shown(await node(request).remotes.add(body.name, body.url, body.key)), status=201)


async def remove_remote(request: web.Request) -> web.Response:
    """The service itself is not told: what it keeps stays."""
    return json_reply(_shown(await asyncio.to_thread(node(request).remotes.remove, request.match_info["name"])))


async def list_pins(request: web.Request) -> web.Response:
    """Its latest requests: ``?ref=`` only of that root, ``&limit=``."""
    limit = request.query.get("limit", str(LIST))
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 4 and 1 <= int(limit) <= MAX_LIST):
        raise InvalidInput(f"limit is a number from 1 to {MAX_LIST}", param="limit")
    name = request.match_info["name"]
    found = await node(request).remotes.pins(name, request.query.get("ref"), int(limit))
    return json_reply({"remote": name, "count": found.count, "pins": [_pin(pin) for pin in found.results]})


async def add_pin(request: web.Request) -> web.Response:
    """202: the request at the service, a new one or the one that it has already."""
    body = await read_json(request, PinThere)
    made = await finished(node(request).remotes.pin(request.match_info["name"], body.ref, body.name))
    return json_reply(_pin(made), status=202)


async def show_pin(request: web.Request) -> web.Response:
    found = await node(request).remotes.pin_status(request.match_info["name"], request.match_info["ref"])
    return json_reply(_pin(found))


async def remove_pins(request: web.Request) -> web.Response:
    """Every request of that root there, or the one with that id."""
    removed = await finished(node(request).remotes.unpin(request.match_info["name"], request.match_info["ref"]))
    return json_reply({"removed": [_pin(pin) for pin in removed]})


def _shown(remote: Remote) -> dict[str, str]:
    return {"name": remote.name, "url": remote.url}


def _pin(pin: RemotePin) -> dict[str, object]:
    return {
        "id": pin.requestid,
        "cid": pin.pin.cid,
        "name": pin.pin.name,
        "status": pin.status.value,
        "created": pin.created,
        "info": {key: str(value) for key, value in (pin.info or {}).items()},
    }


ROUTES = (
    Route("GET", "/api/remotes", list_remotes, Surface.STATE),
    Route("POST", "/api/remotes", add_remote, Surface.STATE, takes=AddRemote),
    Route("DELETE", "/api/remotes/{name}", remove_remote, Surface.STATE),
    Route("GET", "/api/remotes/{name}/pins", list_pins, Surface.STATE),
    Route("POST", "/api/remotes/{name}/pins", add_pin, Surface.STATE, takes=PinThere),
    Route("GET", "/api/remotes/{name}/pins/{ref:.+}", show_pin, Surface.STATE),
    Route("DELETE", "/api/remotes/{name}/pins/{ref:.+}", remove_pins, Surface.STATE),
)
