"""The Hugging Face Hub's protocol for models and data sets, read-only: what ``HF_ENDPOINT`` may point to.

What is here is answered from here; what is not is asked of the Hub with the caller's own token, which serves that one
request and is kept nowhere. Bytes are sent only of whole, verified files.
"""

from __future__ import annotations

import asyncio
from urllib.parse import parse_qs, quote, urlencode

import msgspec
from aiohttp import web

from ipfs_accelerate_node.api import gateway, hub_forms
from ipfs_accelerate_node.api.access import Surface, bearer
from ipfs_accelerate_node.api.bodies import chunks, parse_json
from ipfs_accelerate_node.api.context import CONFIG, LISTINGS, node
from ipfs_accelerate_node.api.hub_paths import HubPath, api_path, file_path
from ipfs_accelerate_node.api.hub_plain import has_entry, is_directory, plain_commit
from ipfs_accelerate_node.api.hub_replies import encoded, json_of, no_entry, send_entry, speaking_hub
from ipfs_accelerate_node.api.pipeline import CALLER, GATE, Route
from ipfs_accelerate_node.config_values import is_loopback
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import AuthRequired, BadRequest, InvalidCid, NotFound, UnsupportedMediaType
from ipfs_accelerate_node.fetch.hub_mirror import HubMirror
from ipfs_accelerate_node.fetch.hub_shelf import KeptCommit
from ipfs_accelerate_node.sources.hub_names import DEFAULT_REVISION
from ipfs_accelerate_node.sources.hub_plain import plain_commit as plain_commit_of
from ipfs_accelerate_node.store import StoredFile

PAGE = 1000
MAX_BODY_BYTES = 4 << 20
_TRUE = frozenset({"true", "1", "yes", "on"})


class PathsRequest(msgspec.Struct):
    paths: list[str]
    expand: bool = False


def _mirror(request: web.Request) -> HubMirror:
    return node(request).hub


async def _commit(request: web.Request, asked: HubPath, *, files_are_checked: bool = False) -> KeptCommit:
    """What is asked about, as this caller may see it. Raises NotFound, as where there is none, for what is not public
    on an address that others reach."""
    if asked.plain is not None:
        return await asyncio.to_thread(plain_commit, node(request).store, asked.plain, asked.repo.id, asked.revision)
    kept = await _mirror(request).commit(
        asked.repo, asked.revision, bearer(request), files_are_checked=files_are_checked
    )
    if kept.restricted and not is_loopback(request.app[CONFIG].host):
        raise NotFound(f"{asked.repo} is not public", hub_code="RepoNotFound")
    return kept


async def read_api(request: web.Request) -> web.StreamResponse:
    """``GET /api/models/…`` and ``/api/datasets/…``: about a repository, its tree, its refs."""
    asked = api_path(request.raw_path)
    match asked.what:
        case "refs":
            return await _refs(request, asked)
        case "tree":
            return await _tree(request, asked)
        case "about":
            return await _about(request, asked)
        case _:
            raise BadRequest("paths-info is asked by POST", code="method_not_allowed")


async def _about(request: web.Request, asked: HubPath) -> web.Response:
    kept, blobs = await _offered(request, asked), _is_true(request, "blobs")
    listings = request.app[LISTINGS]
    listing = await listings.of(kept)
    body = await listings.answer(listing, ("about", blobs), lambda: hub_forms.about(kept, listing.entries, blobs=blobs))
    return encoded(kept, body)


async def _offered(request: web.Request, asked: HubPath) -> KeptCommit:
    kept = await _commit(request, asked)
    return kept if asked.plain is not None else await _mirror(request).offered(kept)


async def _refs(request: web.Request, asked: HubPath) -> web.Response:
    if asked.plain is not None:
        kept = await _commit(request, asked)
        return json_of(kept, hub_forms.references({f"refs/heads/{DEFAULT_REVISION}": kept.commit}))
    if not is_loopback(request.app[CONFIG].host):
        await _commit(request, asked)  # refuses what is not public
    return json_of(None, hub_forms.references(await _mirror(request).refs(asked.repo, bearer(request))))


async def _tree(request: web.Request, asked: HubPath) -> web.Response:
    kept, recursive = await _offered(request, asked), _is_true(request, "recursive")
    listings = request.app[LISTINGS]
    listing = await listings.of(kept)
    entries = listing.below(asked.path, recursive=recursive)
    if entries is None:
        raise no_entry(kept, asked.path)
    start, count = _number(request, "cursor", 0, 1 << 31), _number(request, "limit", PAGE, PAGE)
    question = ("tree", asked.path, recursive, start, count)
    body = await listings.answer(listing, question, lambda: [*map(hub_forms.line, entries[start : start + count])])
    headers = {}
    if start + count < len(entries):
        headers["Link"] = f'<{_next_page(request, asked, kept, start + count)}>; rel="next"'
    return encoded(kept, body, headers)


def _next_page(request: web.Request, asked: HubPath, kept: KeptCommit, start: int) -> str:
    """At the commit, so that a branch that moves meanwhile tears nothing; at the name that the client called us by."""
    below = f"/{quote(asked.path)}" if asked.path else ""
    query = {key: value for key, value in request.query.items() if key in ("recursive", "expand", "limit")}
    path = f"{asked.repo.api_path}/tree/{kept.commit}{below}"
    return f"http://{request.headers['Host']}{path}?{urlencode({**query, 'cursor': start})}"


async def paths_info(request: web.Request) -> web.StreamResponse:
    """``POST …/paths-info/{revision}``: the lines of some paths; those that do not exist are left out."""
    asked = api_path(request.raw_path)
    if asked.what != "paths":
        raise BadRequest("only paths-info is asked by POST", code="method_not_allowed")
    wanted = await _wanted(request)
    kept = await _commit(request, asked)
    known = (await request.app[LISTINGS].of(kept)).by_path
    found = [known[path] for path in dict.fromkeys(path.strip("/") for path in wanted) if path in known]
    return json_of(kept, [hub_forms.line(entry) for entry in found])


async def _wanted(request: web.Request) -> list[str]:
    """Paths of a JSON body, or of the form that the Hub's own client posts."""
    body = b"".join([chunk async for chunk in chunks(request, limit_bytes=MAX_BODY_BYTES)])
    if request.content_type == "application/json":
        return parse_json(body, PathsRequest).paths
    if request.content_type != "application/x-www-form-urlencoded":
        raise UnsupportedMediaType("the paths come as JSON or as a form")
    try:
        return parse_qs(body.decode(), strict_parsing=bool(body), max_num_fields=20_000).get("paths", [])
    except ValueError as exc:
        raise BadRequest("the body is no form", code="bad_body") from exc


async def read_file(request: web.Request) -> web.StreamResponse:
    """``GET`` and ``HEAD /[datasets/]{repo}/resolve/{revision}/{path}``."""
    return await _file(request, file_path(request.raw_path))


async def _file(request: web.Request, asked: HubPath) -> web.StreamResponse:
    kept = await _commit(request, asked, files_are_checked=True)
    token = bearer(request)
    if kept.restricted:
        await _mirror(request).admit(kept, asked.path, token)
    entry = kept.file(asked.path)
    if entry is None:
        raise no_entry(kept, asked.path)

    async def bring() -> StoredFile:
        if asked.plain is None:
            return await _mirror(request).file(kept, entry, token)
        cid = Cid.parse(kept.cids[entry.path])
        file = await asyncio.to_thread(node(request).store.file, cid, public_only=True)
        if file is None:
            raise no_entry(kept, entry.path)
        return file

    return await send_entry(request, kept, entry, bring)


async def read_plain(request: web.Request) -> web.StreamResponse:
    """``/ipfs/{cid}/resolve/{revision}/{path}``: the Hub's route where the CID is a directory without an entry
    ``resolve`` and the revision is its own; else a path of the gateway."""
    try:
        asked = file_path(request.raw_path)
    except (BadRequest, InvalidCid):
        asked = None
    if asked is not None and asked.plain is not None and await asyncio.to_thread(_is_hubs, request, asked):
        request[CALLER] = request.app[GATE].admit(request, Surface.HUB)
        return await _spoken(request, asked)
    request[CALLER] = request.app[GATE].admit(request, Surface.SHARE)
    return await gateway.serve(request)


async def _spoken(request: web.Request, asked: HubPath) -> web.StreamResponse:
    async def file(request: web.Request) -> web.StreamResponse:
        return await _file(request, asked)

    return await speaking_hub(file)(request)


def _is_hubs(request: web.Request, asked: HubPath) -> bool:
    store, cid = node(request).store, asked.plain
    assert cid is not None
    if asked.revision not in (DEFAULT_REVISION, plain_commit_of(cid)):
        return False
    return is_directory(store, cid) and not has_entry(store, cid, "resolve")


async def who_am_i(request: web.Request) -> web.StreamResponse:
    """``GET /api/whoami-v2``: as the Hub says of the caller's token."""
    token = bearer(request)
    if token is None:
        raise AuthRequired("no token came with the request", source=request.app[CONFIG].hf_upstream)
    return json_of(None, await _mirror(request).identity(token))


def _is_true(request: web.Request, name: str) -> bool:
    return request.query.get(name, "").lower() in _TRUE


def _number(request: web.Request, name: str, default: int, most: int) -> int:
    text = request.query.get(name, "")
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 10:
        raise BadRequest(f"{name} is a number", code="invalid_request", param=name)
    return min(int(text), most) if name == "cursor" else max(1, min(int(text), most))


ROUTES = (
    Route("GET", "/api/whoami-v2", speaking_hub(who_am_i), Surface.HUB),
    *(
        route
        for kind in ("models", "datasets")
        for route in (
            Route("GET", f"/api/{kind}/{{repo:.+}}", speaking_hub(read_api), Surface.HUB),
            Route("POST", f"/api/{kind}/{{repo:.+}}", speaking_hub(paths_info), Surface.HUB),
        )
    ),
    *(
        Route(method, path, speaking_hub(read_file), Surface.HUB)
        for path in (
            "/datasets/{repo:.+?}/resolve/{file:.+}",
            "/{name:[^/]+}/resolve/{file:.+}",
            "/{organisation:[^/]+}/{name:[^/]+}/resolve/{file:.+}",
        )
        for method in ("GET", "HEAD")
    ),
    *(Route(method, "/ipfs/{cid:[^/]+}/resolve/{file:.+}", read_plain, Surface.CONTENT) for method in ("GET", "HEAD")),
)
