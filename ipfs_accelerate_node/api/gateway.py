"""`/ipfs/{cid}[/path]`: the store, read-only, as a trustless gateway and for whole files. Nothing is fetched on behalf
of a request, and nothing is rendered: every reply is an attachment in a sandbox.

Forms: ``?format=raw|car`` (or the Accept types of the same name), else the bytes of a file (ranges by sendfile) or, for
a directory, a JSON list of its entries. Who sees what is decided for the requested root and the target, never by leaf.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from urllib.parse import quote

from aiohttp import web

from ipfs_accelerate_node.api.access import Surface
from ipfs_accelerate_node.api.context import CONFIG, GIVING, LEAF_MAPS, node
from ipfs_accelerate_node.api.delivery import opened, send_checked, send_file
from ipfs_accelerate_node.api.paths import ContentPath, content_path
from ipfs_accelerate_node.api.pipeline import CALLER, GATE, Route
from ipfs_accelerate_node.api.ranges import matches, requested
from ipfs_accelerate_node.api.wire import json_bytes
from ipfs_accelerate_node.content import unixfs
from ipfs_accelerate_node.content.car import car_block, car_header
from ipfs_accelerate_node.content.cid import DAG_PB, Cid, shown
from ipfs_accelerate_node.content.plan import FilePlan
from ipfs_accelerate_node.errors import BadContent, BadRequest, NotFound
from ipfs_accelerate_node.store import Store, StoredFile
from ipfs_accelerate_node.store.reading import Scope

RAW_TYPE, CAR_TYPE = "application/vnd.ipld.raw", "application/vnd.ipld.car"
_FORMATS = {"raw": "raw", "car": "car"}
_SCOPES: dict[str, Scope] = {"all": "all", "entity": "entity", "block": "block"}
_CAR_BATCH_BYTES = 1 << 20
_FOREVER = "max-age=29030400, immutable"
# Types that a browser shows as text or picture even inside the sandbox; all else is a download.
_TYPES = {
    ".json": "application/json",
    ".txt": "text/plain; charset=utf-8",
    ".md": "text/plain; charset=utf-8",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".webp": "image/webp",
}


@dataclass(frozen=True, slots=True)
class Target:
    """What a request asks for: the CID at the end of its path, and the directories on the way."""

    path: ContentPath
    cid: Cid
    parents: tuple[Cid, ...]
    public_only: bool


async def serve(request: web.Request) -> web.StreamResponse:
    """GET and HEAD. 404 for what is not here (412 with ``Cache-Control: only-if-cached``), as for what this caller
    may not see."""
    path = content_path(request.raw_path)
    form = _form(request)
    try:
        giving = request.app[GIVING]
        with giving.transfer(request.transport) if request.method == "GET" else nullcontext():
            return await _served(request, path, form)
    except NotFound as exc:
        if "only-if-cached" in request.headers.get("Cache-Control", "").lower():
            return web.Response(status=412, headers={"X-Ipfs-Path": str(path), "Cache-Control": "no-store"})
        raise exc


async def _served(request: web.Request, path: ContentPath, form: str | None) -> web.StreamResponse:
    public_only = not request.app[GATE].sees_private(request[CALLER])
    store = node(request).store
    target = await asyncio.to_thread(_resolve, store, path, public_only)
    if form == "raw":
        return await _serve_raw(request, store, target)
    if form == "car":
        return await _serve_car(request, store, target)
    return await _serve_entity(request, store, target)


def _form(request: web.Request) -> str | None:
    """raw, car, or None for the entity itself. The query goes before Accept. Raises BadRequest."""
    if (named := request.query.get("format")) is not None:
        if named not in _FORMATS:
            raise BadRequest(f"format {shown(named)} is not served here, raw and car are", code="format_unsupported")
        return _FORMATS[named]
    for accepted in request.headers.get("Accept", "").lower().split(","):
        kind, *options = (part.strip() for part in accepted.split(";"))
        if kind == RAW_TYPE:
            return "raw"
        if kind == CAR_TYPE:
            if any(o.startswith("version=") and o != "version=1" for o in options):
                raise BadRequest("CAR version 1 is served here", code="format_unsupported")
            return "car"
    return None


def _resolve(store: Store, path: ContentPath, public_only: bool) -> Target:
    """Raises NotFound, also where a component on the way is no directory."""
    at = path.root.canonical
    if not store.underway.names(at, public_only=public_only) and not store.has(at, public_only=public_only):
        raise NotFound(f"{at} is not in the store", cid=str(at))
    parents: list[Cid] = []
    try:
        for name in path.parts:
            parents.append(at)
            at = store.resolve(at, name)
    except BadContent as exc:
        raise NotFound(f"there is no {shown(path.below)} in {path.root.canonical}") from exc
    return Target(path, at, tuple(parents), public_only)


async def _serve_raw(request: web.Request, store: Store, target: Target) -> web.Response:
    etag = f'"{target.cid}.raw"'
    headers = _headers(target, etag, RAW_TYPE, f"{target.cid}.bin")
    if matches(request.headers.get("If-None-Match"), etag):
        return web.Response(status=304, headers=headers)
    block = await asyncio.to_thread(_block, store, target)
    return await _body(request, "block", block, headers)


async def _body(request: web.Request, kind: str, body: bytes, headers: dict[str, str]) -> web.Response:
    """A reply small enough to be in memory, when it may leave. Sent here, so that it counts as a transfer till then."""
    reply = web.Response(body=body, headers=headers)
    if request.method == "GET":
        await request.app[GIVING].turn(kind, len(body))
        await reply.prepare(request)
        await reply.write_eof()
    return reply


def _block(store: Store, target: Target) -> bytes:
    """Hashed just now. Raises NotFound."""
    block = store.underway.block(target.cid, public_only=target.public_only)
    if block is None:  # asked last: by the time a fetch is no longer under way, its model is stored
        block = store.block(target.cid, public_only=target.public_only)
    if block is None:
        raise _not_here(store, target)
    return block


def _not_here(store: Store, target: Target) -> NotFound:
    if store.underway.names(target.cid, public_only=target.public_only):
        return NotFound(f"{target.cid} is still being fetched", code="not_here_yet", cid=str(target.cid))
    return NotFound(f"{target.cid} is not in the store", cid=str(target.cid))


async def _serve_car(request: web.Request, store: Store, target: Target) -> web.StreamResponse:
    """Blocks depth-first, without duplicates on the way to the target. Its length is not known before its end, so a
    reply that breaks off is cut, never ended."""
    scope = _SCOPES.get(asked := request.query.get("dag-scope", "all"))
    if scope is None:
        raise BadRequest(f"dag-scope {shown(asked)} does not exist, {', '.join(_SCOPES)} do", param="dag-scope")
    etag = f'W/"{target.path.root.canonical}.{target.cid}.car.{scope}"'
    headers = _headers(target, etag, f"{CAR_TYPE}; version=1; order=dfs; dups=n", f"{target.cid}.car")
    if matches(request.headers.get("If-None-Match"), etag):
        return web.Response(status=304, headers=headers)
    if await asyncio.to_thread(store.block, target.cid, public_only=target.public_only) is None:
        raise await asyncio.to_thread(_not_here, store, target)  # in parts; a CAR would be cut at the first it lacks
    reply = web.StreamResponse(headers=headers)
    blocks = _car(store, target, scope)
    piece = await asyncio.to_thread(_batch, blocks)
    await reply.prepare(request)
    if request.method == "HEAD":
        return reply
    while piece:
        await request.app[GIVING].turn("car", len(piece))
        await reply.write(piece)
        piece = await asyncio.to_thread(_batch, blocks)
    return reply


def _car(store: Store, target: Target, scope: Scope) -> Iterator[bytes]:
    yield car_header([target.cid])
    seen: set[Cid] = set()
    for directory in target.parents:
        for cid, block in store.blocks(directory, scope="entity"):
            if cid.canonical not in seen:
                seen.add(cid.canonical)
                yield car_block(cid, block)
    for cid, block in store.blocks(target.cid, scope=scope):
        if cid.canonical not in seen:
            yield car_block(cid, block)


def _batch(pieces: Iterator[bytes]) -> bytes:
    """The next pieces, about a MiB of them: one hop between threads costs more than a small block."""
    taken: list[bytes] = []
    size = 0
    while size < _CAR_BATCH_BYTES and (piece := next(pieces, None)) is not None:
        taken.append(piece)
        size += len(piece)
    return b"".join(taken)


async def _serve_entity(request: web.Request, store: Store, target: Target) -> web.StreamResponse:
    if (file := await asyncio.to_thread(_file, store, target)) is not None:
        return await _serve_file(request, store, target, file)
    block = await asyncio.to_thread(_block, store, target)
    if target.cid.codec == DAG_PB and (listing := await asyncio.to_thread(_listing, store, target)) is not None:
        return await _entity(request, target, listing, "application/json", ".json")
    if target.cid.codec == DAG_PB:
        raise NotFound(
            f"{target.cid} is no file that is here whole; its block comes with ?format=raw", code="not_an_entity"
        )
    return await _entity(request, target, block, "application/octet-stream", "")


def _file(store: Store, target: Target) -> StoredFile | FilePlan | None:
    """A stored file, or the plan of one that is being fetched; None for what is no file, or not here."""
    if (stored := store.file(target.cid, public_only=target.public_only)) is not None:
        return stored
    if (coming := store.underway.file(target.cid, public_only=target.public_only)) is None:
        return store.file(target.cid, public_only=target.public_only)  # stored between the two questions
    return store.file(target.cid) or coming


async def _entity(request: web.Request, target: Target, body: bytes, kind: str, suffix: str) -> web.Response:
    etag = f'"{target.cid}{suffix}"'
    headers = _headers(target, etag, kind, _name_of(target) + suffix)
    if matches(request.headers.get("If-None-Match"), etag):
        return web.Response(status=304, headers=headers)
    return await _body(request, "listing" if suffix else "block", body, headers)


def _listing(store: Store, target: Target) -> bytes | None:
    """Entries of a directory in the order of its links; None for what is none."""
    try:
        found = list(unixfs.entries(store.block, target.cid))
    except BadContent:
        return None
    entries = [{"name": entry.name, "cid": entry.cid, "tsize": entry.tsize} for entry in found]
    return json_bytes({"cid": target.cid, "path": str(target.path), "entries": entries})


async def _serve_file(
    request: web.Request, store: Store, target: Target, file: StoredFile | FilePlan
) -> web.StreamResponse:
    etag = f'"{target.cid}"'
    name = _name_of(target)
    headers = _headers(target, etag, _content_type(name), name)
    headers["Accept-Ranges"] = "bytes"
    if matches(request.headers.get("If-None-Match"), etag):
        return web.Response(status=304, headers=headers)
    if_range = request.headers.get("If-Range")
    span = requested(request.headers.get("Range") if if_range in (None, etag) else None, file.size)
    if span is None and isinstance(file, StoredFile):
        return web.Response(status=416, headers={**headers, "Content-Range": f"bytes */{file.size}"})
    source = None if span is None else await opened(store, file, span)
    if span is None or source is None:
        raise NotFound(f"{target.cid} is still being fetched", code="not_here_yet", cid=str(target.cid))
    if span.partial:
        headers["Content-Range"] = span.content_range
    reply = web.StreamResponse(status=206 if span.partial else 200, headers=headers)
    giving = request.app[GIVING]
    if request.app[CONFIG].paranoid:
        source.close()  # leaf by leaf out of the store instead
        leaves = await request.app[LEAF_MAPS].leaves(target.path.root, target.cid)
        await send_checked(request, reply, store, leaves, span, giving)
    else:
        await send_file(request, reply, source, span, giving)
    return reply


def _headers(target: Target, etag: str, kind: str, filename: str) -> dict[str, str]:
    """Of every reply with content: cached for good, by others only if all may see it; never rendered."""
    plain = "".join(c if c.isascii() and c.isprintable() and c not in '"\\%' else "_" for c in filename)
    return {
        "Content-Type": kind,
        "Content-Disposition": f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}",
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": f"{'public' if target.public_only else 'private'}, {_FOREVER}",
        "Etag": etag,
        "X-Ipfs-Path": str(target.path),
        "X-Ipfs-Roots": ",".join(str(cid) for cid in (*target.parents, target.cid)),
    }


def _name_of(target: Target) -> str:
    return target.path.parts[-1] if target.path.parts else str(target.cid)


def _content_type(name: str) -> str:
    return _TYPES.get("." + name.rpartition(".")[2].lower(), "application/octet-stream")


ROUTES = (
    Route("GET", "/ipfs/{path:.+}", serve, Surface.SHARE),
    Route("HEAD", "/ipfs/{path:.+}", serve, Surface.SHARE),
)
