"""A Hub on loopback: a real HTTP server that speaks the protocol as huggingface_hub 2.4 and transformers 5.23 use it.

Large files are redirected to a second origin (`FakeHub.cdn`), as the real one does. Every request is kept in `seen`, so
that a test can say who was sent the token. Faults are queued per file path, or under "api", and used up one a request.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import TracebackType
from typing import Any, Self

from aiohttp import web

PAGE = 3  # entries of a tree answer; small, so that every client must paginate
SIGNED = "X-Amz-Signature=secret-of-a-signed-url"
_LFS_SUFFIXES = (".safetensors", ".bin")
_PIECE_BYTES = 1 << 18


@lru_cache(256)  # of files of 90 MB too
def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@lru_cache(256)
def oid(path: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if path.endswith(_LFS_SUFFIXES) else git_oid(content)


@dataclass
class FakeRepo:
    """One repository. readers: tokens with access; None lets everyone in. gated: they must also have been accepted."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    readers: frozenset[str] | None = None
    accepted: frozenset[str] = frozenset()
    gated: bool = False

    def commit(self, files: Mapping[str, bytes]) -> str:
        """A new commit, which main moves to."""
        text = json.dumps([len(self.commits), sorted((p, git_oid(c)) for p, c in files.items())])
        sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self.commits[sha] = dict(files)
        self.refs["main"] = sha
        return sha


@dataclass(frozen=True)
class Seen:
    at: str  # "hub", "cdn" or "other"
    method: str
    path: str
    headers: Mapping[str, str]

    @property
    def authorization(self) -> str | None:
        return self.headers.get("Authorization")


class FakeHub:
    """Async context manager. url, cdn, other: three origins on loopback; other is one that nobody should be led to."""

    def __init__(self, tokens: Sequence[str] = (), *, one_origin: bool = False, page: int = PAGE) -> None:
        """one_origin: large files are behind a redirect within the Hub itself. page: entries of a tree's answer."""
        self.one_origin = one_origin
        self.page = page
        self.tokens = frozenset(tokens)
        self.repos: dict[str, FakeRepo] = {}
        self.faults: defaultdict[str, list[str]] = defaultdict(list)
        self.always: dict[str, str] = {}  # the fault of every request for a file that has none queued
        self.sent_bytes = 0  # of files
        self.idle = asyncio.Event()  # while no file is being sent
        self._sending = 0
        self.seen: list[Seen] = []
        self.budget: int | None = None  # bytes of files that it still sends before it dies, as a whole
        self.url = self.cdn = self.other = ""
        self._behind: dict[str, tuple[bytes, str]] = {}  # of the cdn, with the fault of the request that led there
        self._runners: list[web.AppRunner] = []

    def repo(self, name: str, files: Mapping[str, bytes], **options: Any) -> FakeRepo:
        self.repos[name] = FakeRepo(**options)
        self.repos[name].commit(files)
        return self.repos[name]

    @property
    def is_dead(self) -> bool:
        return self.budget is not None and self.budget <= 0

    def asked(self, at: str) -> list[Seen]:
        return [request for request in self.seen if request.at == at]

    async def __aenter__(self) -> Self:
        self.url = await self._serve("hub", self._hub)
        self.cdn = await self._serve("cdn", self._cdn)
        self.other = await self._serve("other", self._other)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for runner in self._runners:
            await runner.cleanup()

    async def _serve(self, at: str, handler: Any) -> str:
        async def answer(request: web.Request) -> web.StreamResponse:
            if self.is_dead and request.transport is not None:
                request.transport.abort()
                return web.Response(status=503)
            self.seen.append(Seen(at, request.method, request.path_qs, request.headers.copy()))
            response: web.StreamResponse = await handler(request)
            return response

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        self._runners.append(runner)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    # -- the Hub -----------------------------------------------------------------------------------------------------

    async def _hub(self, request: web.Request) -> web.StreamResponse:
        path = request.path.strip("/")
        api = path.startswith("api/")
        if api and (fault := self._fault("api")):
            return self._api_fault(fault, request)
        if path == "api/whoami-v2":
            return self._whoami(request)
        form = (
            r"api/(?P<kind>models|datasets)/(?P<repo>.+?)"
            r"(?:/refs|/(?P<what>revision|tree)/(?P<rev>[^/]+)(?P<rest>/.+)?)?"
            if api
            else r"(?P<repo>.+?)/resolve/(?P<rev>[^/]+)/(?P<rest>.+)"
        )
        if self.one_origin and path.startswith("behind/"):
            return await self._cdn(request)
        match = re.fullmatch(form, path)
        if match is None:
            return web.Response(status=404)
        name = f"datasets/{match['repo']}" if api and match["kind"] == "datasets" else match["repo"]
        denied = self._denied(request, name, gate=not api or match.groupdict().get("what") == "tree")
        if denied is not None:
            return denied
        repo = self.repos[name]
        if path.endswith("/refs"):
            return _refs(repo)
        sha = repo.refs.get(match["rev"] or "main", match["rev"])
        if sha not in repo.commits:
            return web.Response(status=404, headers={"X-Error-Code": "RevisionNotFound"})
        if not api:
            return await self._file(request, repo, sha, match["rest"])
        if match["what"] == "tree":
            return self._tree(request, f"{match['kind']}/{match['repo']}", repo.commits[sha], sha, match["rest"])
        return self._about(match["repo"], repo, sha)

    def _whoami(self, request: web.Request) -> web.Response:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self.tokens:
            return web.json_response({"error": "Invalid username or password."}, status=401)
        secret = {"accessToken": {"displayName": "mine", "role": "read"}}
        return web.json_response({"type": "user", "id": "1", "name": "someone", "orgs": [], "auth": secret})

    def _denied(self, request: web.Request, name: str, *, gate: bool) -> web.Response | None:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.tokens:
            said = "Invalid credentials in Authorization header"
            return web.Response(status=401, headers={"X-Error-Message": said})
        repo = self.repos.get(name)
        if repo is None or (repo.readers is not None and token not in repo.readers):
            # without a token the real Hub does not say whether there is such a repository
            return web.Response(status=404 if token else 401, headers={"X-Error-Code": "RepoNotFound"})
        if gate and repo.gated and token not in repo.accepted:
            return web.Response(status=403 if token else 401, headers={"X-Error-Code": "GatedRepo"})
        return None

    def _about(self, name: str, repo: FakeRepo, sha: str) -> web.Response:
        return web.json_response(
            {
                "id": name,
                "modelId": name,
                "sha": sha,
                "private": repo.readers is not None,
                "gated": "manual" if repo.gated else False,
                "tags": [],
                "siblings": [{"rfilename": path} for path in repo.commits[sha]],
            }
        )

    def _tree(
        self, request: web.Request, name: str, files: Mapping[str, bytes], sha: str, rest: str | None
    ) -> web.Response:
        if rest is not None:
            return web.Response(status=404, headers={"X-Error-Code": "EntryNotFound"})
        start = int(request.query.get("cursor", "0"))
        entries = _entries(files)
        page = entries[start : start + self.page]
        following = f"{self.url}/api/{name}/tree/{sha}?recursive=true&expand=false&cursor={start + self.page}"
        headers = {"Link": f'<{following}>; rel="next"'} if start + self.page < len(entries) else {}
        return web.json_response(page, headers=headers)

    def _fault(self, key: str) -> str:
        queue = self.faults[key]
        return queue.pop(0) if queue else self.always.get(key, "")

    def _api_fault(self, fault: str, request: web.Request) -> web.Response:
        match fault:
            case "html":
                return web.Response(text="<html>log in to the hotel's network</html>", content_type="text/html")
            case "list":
                return web.json_response([1, 2])
            case "redirect-elsewhere":
                return web.Response(status=307, headers={"Location": self.other + request.path_qs})
            case "link-elsewhere":
                return web.json_response([], headers={"Link": f'<{self.other}/next>; rel="next"'})
            case _ if fault.startswith("json:"):
                return web.Response(text=fault.removeprefix("json:"), content_type="application/json")
            case _:
                return _status(fault)

    async def _file(self, request: web.Request, repo: FakeRepo, sha: str, path: str) -> web.StreamResponse:
        headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        content = repo.commits[sha].get(path)
        if content is None:
            return web.Response(status=404, headers={**headers, "X-Error-Code": "EntryNotFound"})
        fault = self._fault(path) if request.method == "GET" else self.always.get(path, "")
        headers["ETag"] = f'"{oid(path, content)}"'
        if path.endswith(_LFS_SUFFIXES):
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(content))}
        match fault.partition(":"):
            case ("etag", _, value):
                headers["ETag"] = headers["X-Linked-Etag"] = value
            case ("no-etag", _, _):
                headers.pop("ETag")
                headers.pop("X-Linked-Etag", None)
            case ("no-commit", _, _):
                del headers["X-Repo-Commit"]
            case ("location", _, target):
                return web.Response(status=302, headers={**headers, "Location": target})
            case ("xet-only", _, _):
                return web.Response(status=302, headers={**headers, "X-Xet-Hash": "0" * 64})
            case ("html", _, _):
                return web.Response(text="<html>", content_type="text/html")
            case ("status", _, _):
                return _status(fault)
        if path.endswith(_LFS_SUFFIXES):
            key = oid(path, content) + (f"-{len(self._behind)}" if fault else "")
            self._behind[key] = (content, fault)
            behind = f"{self.url}/behind" if self.one_origin else self.cdn
            headers["Location"] = f"{behind}/{key}?{SIGNED}"
            return web.Response(status=302, headers=headers)
        return await self._give(request, content, headers, fault)

    async def _cdn(self, request: web.Request) -> web.StreamResponse:
        key = request.path.strip("/").removeprefix("behind/")
        if key not in self._behind or request.query_string != SIGNED:
            return web.Response(status=403)
        content, fault = self._behind[key]
        return await self._give(request, content, {"ETag": '"of-the-cdn"'}, fault)

    async def _give(
        self, request: web.Request, content: bytes, headers: Mapping[str, str], fault: str
    ) -> web.StreamResponse:
        self._sending += 1
        self.idle.clear()
        try:
            return await _send(request, content, headers, fault, self)
        finally:
            self._sending -= 1
            if not self._sending:
                self.idle.set()

    async def _other(self, request: web.Request) -> web.StreamResponse:
        return web.json_response([])


def _entries(files: Mapping[str, bytes]) -> list[dict[str, object]]:
    """Files and folders, by path, with git's own oid of each folder."""
    found = {path: _entry(path, content) for path, content in files.items()}
    folders = {path.rsplit("/", depth)[0] for path in files for depth in range(1, path.count("/") + 1)}
    for folder in sorted(folders, key=lambda name: name.count("/"), reverse=True):
        below = [e for path, e in found.items() if path.rpartition("/")[0] == folder]
        lines = sorted(
            (str(e["path"]).rpartition("/")[2] + "/" * (e["type"] == "directory"), str(e["oid"])) for e in below
        )
        body = b"".join(
            (b"40000 " if name.endswith("/") else b"100644 ") + name.rstrip("/").encode() + b"\0" + bytes.fromhex(sha)
            for name, sha in lines
        )
        tree = hashlib.sha1(b"tree %d\0" % len(body) + body, usedforsecurity=False).hexdigest()
        found[folder] = {"type": "directory", "path": folder, "size": 0, "oid": tree}
    return [found[path] for path in sorted(found)]


def _refs(repo: FakeRepo) -> web.Response:
    branches = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha} for name, sha in repo.refs.items()]
    return web.json_response({"branches": branches, "converts": [], "tags": []})


def _entry(path: str, content: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
    if path.endswith(_LFS_SUFFIXES):
        entry["lfs"] = {"oid": oid(path, content), "size": len(content), "pointerSize": 130}
        entry["oid"] = git_oid(b"a pointer")
    return entry


def _status(fault: str) -> web.Response:
    """``status:429`` or ``status:429:RETRY-AFTER``."""
    _, code, *wait = fault.split(":")
    return web.Response(status=int(code), headers={"Retry-After": wait[0]} if wait else {})


async def _send(
    request: web.Request, content: bytes, headers: Mapping[str, str], fault: str, hub: FakeHub
) -> web.StreamResponse:
    """content, or the part that Range asks for, or what the fault makes of it."""
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
    start, stop, status = 0, len(content), 200
    out = dict(headers)
    if asked is not None and fault != "ignore-range":
        start, stop = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1) + 1
        status = 206
        if start >= len(content) or fault == "416":
            return web.Response(status=416, headers={"Content-Range": f"bytes */{len(content)}"})
        out["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        if fault == "wrong-part":
            out["Content-Range"] = f"bytes 0-{stop - start - 1}/{len(content)}"
    body = memoryview(content)[start:stop]
    if fault == "flip":
        body = memoryview(bytes([body[0] ^ 1]) + body[1:])
    if fault == "long":
        body = memoryview(bytes(body) + b"and more")
    if fault == "gzip":
        out["Content-Encoding"] = "gzip"
    response = web.StreamResponse(status=status, headers=out)
    if fault != "long":
        response.content_length = len(body)
    await response.prepare(request)
    if fault == "drip":
        await _drip(response)
    if fault in ("truncate", "stall"):
        await response.write(body[: len(body) // 2])
        if fault == "truncate" and request.transport is not None:
            request.transport.close()
        if fault == "stall":
            await asyncio.Event().wait()  # until the client has gone: that cancels us
        return response
    if request.method != "HEAD":
        await _spend(request, response, body, hub)
    await response.write_eof()
    return response


async def _spend(request: web.Request, response: web.StreamResponse, body: memoryview, hub: FakeHub) -> None:
    """In pieces: so nothing large is copied before the first byte leaves."""
    for start in range(0, len(body), _PIECE_BYTES):
        if hub.is_dead and request.transport is not None:
            request.transport.abort()
            return
        piece = body[start : start + _PIECE_BYTES]
        if hub.budget is not None:
            hub.budget -= _PIECE_BYTES
        hub.sent_bytes += len(piece)
        await response.write(piece)


async def _drip(response: web.StreamResponse) -> None:
    """A byte every twentieth of a second until the client has gone: that cancels us."""
    tick = asyncio.get_running_loop().call_later
    while True:
        next_byte = asyncio.Event()
        tick(0.05, next_byte.set)
        await next_byte.wait()
        await response.write(b"x")
