"""Native routes of the user's Hugging Face cache, and of what a user shares.

The folder is named by the caller, who has the admin key and sits at this machine: its own user's CLI. Over a network
nobody names a folder of this host to write to or to read from.
"""

from __future__ import annotations

import asyncio
import ipaddress
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from aiohttp import web

from ipfs_accelerate_node.api.access import Surface
from ipfs_accelerate_node.api.bodies import read_json
from ipfs_accelerate_node.api.context import node
from ipfs_accelerate_node.api.pipeline import Route
from ipfs_accelerate_node.api.traffic import finished
from ipfs_accelerate_node.api.wire import RefText, json_reply
from ipfs_accelerate_node.content.cid import shown
from ipfs_accelerate_node.errors import Forbidden, InvalidInput
from ipfs_accelerate_node.fetch.hf_cache.placing import WAYS

FolderText = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]


class HydrateRequest(msgspec.Struct, frozen=True):
    """cache_dir: absolute, what HF_HUB_CACHE names; it exists. link: this way only; None is the best possible."""

    ref: RefText
    cache_dir: FolderText
    link: Literal["hard", "reflink", "copy"] | None = None


class ImportRequest(msgspec.Struct, frozen=True):
    """ref: a repository of the Hub, None is all that is there."""

    cache_dir: FolderText
    ref: RefText | None = None


class ShareRequest(msgspec.Struct, frozen=True):
    ref: RefText
    undo: bool = False


async def hydrate(request: web.Request) -> web.Response:
    """What was written: each file with the way it went, refs, and what the store lacks of the commit."""
    body = await read_json(request, HydrateRequest)
    folder = _folder(request, body.cache_dir)
    ways = WAYS if body.link is None else (body.link,)
    return json_reply(await finished(asyncio.to_thread(node(request).hydration.run, body.ref, folder, ways)))


async def import_cache(request: web.Request) -> web.Response:
    """200 also when something was refused: each snapshot says what became of it."""
    body = await read_json(request, ImportRequest)
    folder = _folder(request, body.cache_dir)
    return json_reply({"imported": await finished(node(request).importing.run(folder, body.ref))})


async def share(request: web.Request) -> web.Response:
    body = await read_json(request, ShareRequest)
    here = node(request)
    model = await asyncio.to_thread(here.find, body.ref)
    work = here.sharing.undo(model) if body.undo else here.sharing.share(model)
    return json_reply(await finished(work))


def _folder(request: web.Request, text: str) -> Path:
    """Raises Forbidden for a caller on another machine, InvalidInput for a path that is not absolute."""
    if not _is_here(request.remote):
        raise Forbidden("a folder of this machine is named from this machine only", code="local_only")
    path = Path(text)
    if not path.is_absolute() or "\0" in text or ".." in path.parts:
        raise InvalidInput(f"cache_dir must be absolute, not {shown(text)}", param="cache_dir")
    return path


def _is_here(remote: str | None) -> bool:
    try:
        address = ipaddress.ip_address(remote or "")
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


ROUTES = (
    Route("POST", "/api/hydrate", hydrate, Surface.STATE),
    Route("POST", "/api/import-hf-cache", import_cache, Surface.STATE),
    Route("POST", "/api/share", share, Surface.STATE),
)
