"""Replies of the Hub's routes: a file with the headers that its clients read, and failures by X-Error-Code."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from urllib.parse import quote

from aiohttp import web

from ipfs_accelerate_node.api.access import bearer
from ipfs_accelerate_node.api.context import CONFIG, HUB_GIVING, LEAF_MAPS, node
from ipfs_accelerate_node.api.delivery import opened, send_checked, send_file
from ipfs_accelerate_node.api.hub_streaming import Bring, as_given, whole_or_sent
from ipfs_accelerate_node.api.pipeline import REQUEST_ID, has_begun
from ipfs_accelerate_node.api.ranges import matches, requested
from ipfs_accelerate_node.api.wire import json_bytes
from ipfs_accelerate_node.errors import AuthRequired, NodeError, NotFound, SourceUnavailable, UnsafeContent, http_status
from ipfs_accelerate_node.fetch.hub_shelf import KeptCommit
from ipfs_accelerate_node.sources.hub_answers import TreeEntry
from ipfs_accelerate_node.sources.hub_hops import HOP_HEADER, goes_round, on_behalf, read_hops

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_COMMIT = "X-Repo-Commit"
CLAIM_HEADER = "X-Ipfs-Accelerate-Node-Claim-By"  # who claims what is said: the Hub could not be asked


def speaking_hub(handler: Handler) -> Handler:
    """handler with its failures in the Hub's words, and deaf to requests that came through this node already: what the
    Hub is asked must not come round again."""

    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            hops = read_hops(",".join(request.headers.getall(HOP_HEADER, [])))
            if goes_round(hops, node(request).hub.hop):
                return _error("a node's own request came round to it: set hf_upstream to the Hub", 508, {})
            with on_behalf(hops):
                return await handler(request)
        except NodeError as exc:
            if has_begun(request):
                raise
            return _refused(request, exc)

    return handle


def at_commit(error: NotFound, commit: str) -> NotFound:
    error.detail["commit"] = commit
    return error


def no_entry(kept: KeptCommit, path: str) -> NotFound:
    """With the commit, so that the client remembers that it has no such file."""
    return NotFound(f"{kept.repo} has no {path[:200]!a}", hub_code="EntryNotFound", commit=kept.commit)


def _refused(request: web.Request, error: NodeError) -> web.Response:
    status, headers = _status(error, has_token=bearer(request) is not None), {}
    if isinstance(code := error.detail.get("hub_code"), str):
        headers["X-Error-Code"] = code
    elif isinstance(error, NotFound):
        headers["X-Error-Code"] = "EntryNotFound"
    if isinstance(commit := error.detail.get("commit"), str):
        headers[_COMMIT] = commit
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    said = error.detail.get("hub_message")
    headers["X-Error-Message"] = said if isinstance(said, str) else _one_line(f"{error} ({error.code})")
    if status >= 500:
        log.warning("hub.failed code=%s reason=%s id=%s", error.code, error, request[REQUEST_ID])
    return _error(str(error), status, headers)


def _status(error: NodeError, *, has_token: bool) -> int:
    if isinstance(error, AuthRequired):
        return 401 if not has_token or "hub_message" in error.detail else 403
    if isinstance(error, NotFound) and error.detail.get("hub_code") == "RepoNotFound":
        return 404 if has_token else 401
    if isinstance(error, SourceUnavailable) and error.code in ("rate_limited", "loop"):
        return 429 if error.code == "rate_limited" else 508
    is_no_use = isinstance(error, UnsafeContent) or error.code == "too_many_files"  # however often it is asked
    return 502 if is_no_use else http_status(error)


def _error(message: str, status: int, headers: dict[str, str]) -> web.Response:
    headers = {"Cache-Control": "no-store", "X-Error-Message": _one_line(message), **headers}
    return web.Response(
        body=json_bytes({"error": message}), status=status, content_type="application/json", headers=headers
    )


def _one_line(text: str) -> str:
    return "".join(letter if letter.isascii() and letter.isprintable() else "?" for letter in text[:500])


def json_of(kept: KeptCommit | None, body: object, headers: dict[str, str] | None = None) -> web.Response:
    return encoded(kept, json_bytes(body), headers)


def encoded(kept: KeptCommit | None, body: bytes, headers: dict[str, str] | None = None) -> web.Response:
    """body: JSON already."""
    known = {} if kept is None else _said_of(kept)
    return web.Response(
        body=body,
        content_type="application/json",
        headers={"Cache-Control": "no-store", **known, **(headers or {})},
    )


def _said_of(kept: KeptCommit) -> dict[str, str]:
    return {_COMMIT: kept.commit, **({CLAIM_HEADER: kept.source} if kept.claimed else {})}


def head_of(kept: KeptCommit, entry: TreeEntry) -> dict[str, str]:
    """Headers of a file, whether it is here or not. Never rendered by a browser."""
    etag, name = f'"{entry.file.oid}"', entry.path.rpartition("/")[2]
    plain = "".join(c if c.isascii() and c.isprintable() and c not in '"\\%' else "_" for c in name)
    headers = {
        **_said_of(kept),
        "Etag": etag,
        "Accept-Ranges": "bytes",
        "Content-Type": "application/octet-stream",
        "Content-Disposition": f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}",
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store" if kept.restricted else "private, no-cache",
    }
    if entry.lfs is not None:
        headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(entry.size)}
    return headers


async def send_entry(request: web.Request, kept: KeptCommit, entry: TreeEntry, bring: Bring) -> web.StreamResponse:
    """A file, or the part of it that is asked for. bring: gets it, only where bytes have to be sent."""
    headers = head_of(kept, entry)
    etag = headers["Etag"]
    if matches(request.headers.get("If-None-Match"), etag):
        return web.Response(status=304, headers=headers)
    if_range = request.headers.get("If-Range")
    span = requested(request.headers.get("Range") if if_range in (None, etag) else None, entry.size)
    if span is None:
        return web.Response(status=416, headers={**headers, "Content-Range": f"bytes */{entry.size}"})
    span = await as_given(request, entry.file.oid, span)
    if span.partial:
        headers["Content-Range"] = span.content_range
    reply = web.StreamResponse(status=206 if span.partial else 200, headers=headers)
    if request.method == "HEAD":
        reply.content_length = span.length
        await reply.prepare(request)
        return reply
    file = await whole_or_sent(request, reply, entry.file.oid, span, bring)
    if file is None:
        return reply
    store, giving = node(request).store, request.app[HUB_GIVING]
    with giving.transfer():
        if request.app[CONFIG].paranoid:
            leaves = await request.app[LEAF_MAPS].leaves(file.cid, file.cid)
            await send_checked(request, reply, store, leaves, span, giving)
            return reply
        source = await opened(store, file, span)
        if source is None:
            raise NotFound(f"{entry.path} was removed meanwhile", code="gone")
        await send_file(request, reply, source, span, giving)
    return reply
