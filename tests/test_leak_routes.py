"""Every registered route that reads, on both listeners, asked for a private model by those who may not have it.

A route that is new stands in no row of `ASKED`, and the walk fails until it is said how a stranger would ask it.
"""

from __future__ import annotations

import base64
import random
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp import web
from yarl import URL

from ipfs_accelerate_node.api.listener import listening
from ipfs_accelerate_node.api.peers_app import build_peers_app
from ipfs_accelerate_node.api.peers_connection import Allowances
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.sources.hub_names import HubRepo
from ipfs_accelerate_node.store.ingest import hash_directory
from tests.support.hf_cache import client_cache
from tests.support.hub import FakeHub, git_oid, oid
from tests.support.running import Running, running

pytestmark = pytest.mark.timeout(180)

TOKEN, OTHER = "hf_canaryCanaryCanary", "hf_ofSomebodyElse"
SCOPES = ("infer", "peer", "pin", "metrics")
CANARY = b"weights that only the token may read"


def _secret(seed: int, size: int) -> bytes:
    """Random, with the canary at its begin and in every 64 KiB."""
    content = bytearray(random.Random(seed).randbytes(size))
    for at in range(0, max(1, size - len(CANARY)), 1 << 16):
        content[at : at + len(CANARY)] = CANARY
    return bytes(content)


FILES = {
    ".gitattributes": CANARY + b" hidden",
    "config.json": b'{"said": "' + CANARY + b'"}',
    "sub/notes.txt": CANARY + b" of the notes",
    "model.safetensors": _secret(1, (5 << 20) + 77),
}
SHOWN = {path: content for path, content in FILES.items() if not path.startswith(".")}
OPTIONS: dict[str, dict[str, object]] = {
    "org/gated": {"gated": True, "accepted": frozenset([TOKEN])},
    "org/private": {"readers": frozenset([TOKEN])},
    "datasets/org/gated-rows": {"gated": True, "accepted": frozenset([TOKEN])},
    "datasets/org/private-rows": {"readers": frozenset([TOKEN])},
}


@dataclass(frozen=True, slots=True)
class Private:
    """What there is to leak of one repository. below: every CID under its root. id: of the pin."""

    repo: HubRepo
    sha: str
    root: Cid
    below: tuple[Cid, ...]
    id: str = "none"

    @property
    def words(self) -> list[bytes]:
        """What no answer may hold: of content, and of knowledge that leads to it."""
        oids = {oid(path, content) for path, content in FILES.items()} | {git_oid(c) for c in FILES.values()}
        named = [str(self.repo), self.repo.id, self.sha, *oids, *(str(cid) for cid in self.below if cid != self.root)]
        return [CANARY, base64.b64encode(CANARY)[:24], *(name.encode() for name in named)]

    @property
    def root_words(self) -> list[bytes]:
        return [str(self.root).encode(), self.root.multihash.hex().encode()]


Targets = Callable[[Private], list[str]]


def _hub_files(of: Private) -> list[str]:
    return [f"{of.repo.path}/resolve/{revision}/{path}" for revision in ("main", of.sha) for path in FILES]


def _hub_api(of: Private) -> list[str]:
    api = of.repo.api_path
    trees = [f"{api}/tree/{rev}{more}" for rev in ("main", of.sha) for more in ("", "/sub", "?recursive=true")]
    return [api, f"{api}/refs", f"{api}/revision/main", f"{api}/revision/{of.sha}?blobs=true", *trees]


def _plain_api(of: Private) -> list[str]:
    return [f"/api/models/ipfs/{of.root}", f"/api/models/ipfs/{of.root}/tree/main?recursive=true"]


def _content(of: Private) -> list[str]:
    every = [f"/ipfs/{cid}{form}" for cid in of.below for form in ("", "?format=raw", "?format=car")]
    whole = [f"/ipfs/{of.root}?format=car&dag-scope={scope}" for scope in ("all", "entity", "block")]
    return [*every, *whole, *(f"/ipfs/{of.root}/{path}" for path in FILES), f"/ipfs/{of.root}/"]


def _plain_files(of: Private) -> list[str]:
    return [f"/ipfs/{of.root}/resolve/{rev}/{p}" for rev in ("main", of.root.digest.hex()[:40]) for p in FILES]


def _maps(of: Private) -> list[str]:
    query = f"/api/maps?kind={of.repo.kind}&repo={of.repo.id}"
    return [query, f"{query}@{of.sha}", f"{query}&revision={of.sha}"]


def _refs(of: Private) -> list[str]:
    return [str(of.root), f"hf:{of.repo}", f"hf:{of.repo}@{of.sha}", of.id]


def _each(form: str) -> Targets:
    return lambda of: [form.format(ref) for ref in _refs(of)]


def _run(form: str) -> Targets:
    """Of what loads a model, which takes its time."""
    return lambda of: [form.format(of.root)]


def _only(*paths: str) -> Targets:
    return lambda of: list(paths)


# How each route is asked.
ASKED: Mapping[str, Targets] = {
    "/": _only("/"),
    "/api/accelerators": _only("/api/accelerators"),
    "/api/benchmarks": lambda of: ["/api/benchmarks", f"/api/benchmarks?model={of.root}"],
    "/api/datasets/{repo}": _hub_api,
    "/api/have/{root}": lambda of: [f"/api/have/{cid}" for cid in of.below],
    "/api/keys": _only("/api/keys"),
    "/api/loads": _only("/api/loads"),
    "/api/loads/{name}": _each("/api/loads/{}"),
    "/api/maps": _maps,
    "/api/models/{repo}": lambda of: [*_hub_api(of), *_plain_api(of)],
    "/api/peer": _only("/api/peer"),
    "/api/peers": _only("/api/peers"),
    "/api/pins": _only("/api/pins"),
    "/api/pins/{ref}": _each("/api/pins/{}"),
    "/api/pins/{ref}/events": _each("/api/pins/{}/events"),
    "/api/plan": _each("/api/plan?ref={}"),
    "/api/results": _each("/api/results?model={}&ask=no"),
    "/api/remotes": _only("/api/remotes"),
    "/api/remotes/{name}/pins": _only("/api/remotes/any/pins"),
    "/api/remotes/{name}/pins/{ref}": _each("/api/remotes/any/pins/{}"),
    "/api/store": _only("/api/store"),
    "/api/store/{ref}": _each("/api/store/{}"),
    "/api/v1/pins": lambda of: ["/api/v1/pins", f"/api/v1/pins?cid={of.root}", "/api/v1/pins?status=pinned,queued"],
    "/api/v1/pins/{requestid}": _each("/api/v1/pins/{}"),
    "/api/whoami-v2": _only("/api/whoami-v2"),
    "/dashboard": _only("/dashboard"),
    "/dashboard/events": _only("/dashboard/events"),
    "/dashboard/login/{code}": _each("/dashboard/login/{}"),
    "/datasets/{repo}/resolve/{file}": _hub_files,
    "/health": _only("/health"),
    "/healthz": _only("/healthz"),
    "/info": _only("/info"),
    "/ipfs/{cid}/resolve/{file}": _plain_files,
    "/ipfs/{path}": _content,
    "/metrics": _only("/metrics"),
    "/models/{id}/health": _run("/models/{}/health"),
    "/models/{id}/info": _run("/models/{}/info"),
    "/openapi.json": _only("/openapi.json"),
    "/ping": _only("/ping"),
    "/readyz": _only("/readyz"),
    "/v1/models": _only("/v1/models"),
    "/v1/models/{id}": _each("/v1/models/{}"),
    "/v2": _only("/v2"),
    "/v2/health/live": _only("/v2/health/live"),
    "/v2/health/ready": _only("/v2/health/ready"),
    "/v2/models/stats": _only("/v2/models/stats"),
    **{f"/v2/models/{{name}}{more}": _run(f"/v2/models/{{}}{more}") for more in ("", "/config", "/ready", "/stats")},
    **{
        f"/v2/models/{{name}}/versions/{{version}}{more}": _run(f"/v2/models/{{}}/versions/1{more}")
        for more in ("", "/config", "/ready", "/stats")
    },
    "/{name}/resolve/{file}": _hub_files,
    "/{organisation}/{name}/resolve/{file}": _hub_files,
    "/{path}": lambda of: [f"/models/{of.root}", f"/blobs/{of.root}", f"/../{of.root}", f"/hub/shelf/{of.sha}.json"],
}
# A program of this machine may run a private model, as its user may: these say which are here, by root or name, and
# what they are good for; never where they come from, nor a file of them.
RUNS = ("/v1/models", "/v2", "/models/", "/info", "/api/loads")
LOADS = ("/info", "/models/", "/v2/models/")


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    async with FakeHub([TOKEN, OTHER], one_origin=True) as fake:
        for repo, options in OPTIONS.items():
            fake.repo(repo, FILES, **options)
        yield fake


@asynccontextmanager
async def door(here: Running) -> AsyncIterator[tuple[str, web.Application]]:
    """Where a peer comes in by a tunnel; with room for all that a walk asks."""
    allowances = Allowances()
    allowances.take = lambda peer: None  # type: ignore[method-assign]
    app = build_peers_app(here.served.app, allowances)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.setblocking(False)
        async with listening(app, sock, accept=allowances.accept):
            yield f"http://127.0.0.1:{sock.getsockname()[1]}", app


def private(folder: Path, hub: FakeHub, repo: str) -> Private:
    for path, content in SHOWN.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    built = hash_directory(folder)
    leaves = [leaf.cid for file in built.plan.files for leaf in file.leaves]
    below = [built.plan.root, *(cid for cid, _ in built.nodes), *(file.cid for file in built.plan.files), *leaves]
    return Private(HubRepo.named(repo), hub.repos[repo].refs["main"], built.plan.root, tuple(dict.fromkeys(below)))


def _strangers(node: Running) -> list[dict[str, str]]:
    """Without anything, with somebody else's token, and with a key of this node that may all but what the admin may."""
    keys = [None, OTHER, node.keys.create(SCOPES)[1]]
    return [{} if key is None else {"Authorization": f"Bearer {key}"} for key in keys]


async def leaks(node: Running, hub: FakeHub, of: Private, *, load: bool = False) -> set[str]:
    """Routes that gave something, each as ``listener route``. load: also those that load a model first. Raises
    AssertionError for one that nobody wrote down."""
    found: set[str] = set()
    async with AsyncExitStack() as stack:
        at_door, peers = await stack.enter_async_context(door(node))
        strangers = _strangers(node)
        for name, url, app in (("user", node.url, node.served.app), ("peers", at_door, peers)):
            walked: set[str] = set()
            for route in app.router.routes():
                assert route.resource is not None
                path = route.resource.canonical
                if route.method not in ("GET", "HEAD", "*") or path in walked:
                    continue
                walked.add(path)
                assert path in ASKED, f"{name} listener: how would a stranger ask {path} for a private model?"
                runs = name == "user" and path.startswith(RUNS)
                loads = path.startswith(LOADS)
                if loads and not load:
                    continue
                callers = strangers[:1] if loads else strangers[::2] if runs else strangers
                for target in ASKED[path](of):
                    if await _gives(node, hub, (url, target), of, callers, runs=runs):
                        found.add(f"{name} {path}")
    return found


async def _gives(
    node: Running, hub: FakeHub, target: tuple[str, str], of: Private, strangers: list[dict[str, str]], *, runs: bool
) -> bool:
    """A GET by each stranger, as a whole and in part; and a HEAD. runs: it may say which models are here."""
    url = URL("".join(target), encoded=True)
    for headers in strangers:
        for more in ({}, {"Range": "bytes=0-99"}) if "/ipfs/" in target[1] or "/resolve/" in target[1] else ({},):
            status, said = await _said(node, url, {**headers, **more})
            # what they asked with may be said back to them by a refusal, and is no news
            news = [CANARY] if status >= 400 else of.words if runs else [*of.words, *of.root_words]
            found = [word for word in news if word in said]
            if found and status < 400:  # nor is what the Hub itself says to the same caller
                hubs_status, hubs = await _said(node, URL(hub.url + target[1], encoded=True), headers)
                found = [word for word in found if hubs_status >= 400 or word not in hubs]
            if found:
                return True
    async with node.session.head(url) as reply:
        known = {reply.headers.get("X-Linked-Etag", ""), reply.headers.get("ETag", "").strip('"')}
        return reply.status < 400 and bool(known & {oid(path, content) for path, content in FILES.items()})


async def _said(node: Running, url: URL, headers: Mapping[str, str]) -> tuple[int, bytes]:
    async with node.session.get(url, headers=headers) as reply:
        assert reply.status != 429, "a limit hid what is looked for"
        body = await reply.content.read(8 << 20)
        return reply.status, b"\n".join([body, *(f"{name}: {value}".encode() for name, value in reply.headers.items())])


async def pinned(node: Running, ref: str) -> str:
    job = node.node.pin_job((await node.admin("POST", "/api/pins", json={"ref": ref})).json["id"])
    assert job is not None
    async for state in node.node.updates(job):
        job = state
    assert job.state == "pinned", job
    return job.id


@pytest.mark.parametrize("repo", OPTIONS)
async def test_no_route_gives_it(cache: Path, hub: FakeHub, tmp_path: Path, repo: str) -> None:
    """Nor after it was shared and taken back; while it is shared the same walk finds it, so the walk has eyes."""
    of = private(tmp_path / "files", hub, repo)
    async with running(cache, hf_upstream=hub.url, hf_token=TOKEN, serve_peers=True) as node:
        of = Private(of.repo, of.sha, of.root, of.below, await pinned(node, f"hf:{repo}"))
        assert await leaks(node, hub, of, load=repo == "org/gated") == set()
        await node.admin("POST", "/api/share", json={"ref": f"hf:{repo}"})
        content = {f"{name} {path}" for name in ("user", "peers") for path in ("/ipfs/{path}", "/api/have/{root}")}
        assert await leaks(node, hub, of) >= content | {"user /api/maps", "peers /api/maps"}
        await node.admin("POST", "/api/share", json={"ref": f"hf:{repo}", "undo": True})
        assert await leaks(node, hub, of) == set()


@pytest.mark.parametrize("repo", ["org/gated", "datasets/org/private-rows"])
async def test_nor_of_files_that_one_client_took_with_a_token(
    cache: Path, hub: FakeHub, tmp_path: Path, repo: str
) -> None:
    of = private(tmp_path / "files", hub, repo)
    async with running(cache, hf_upstream=hub.url, serve_peers=True) as node:
        for path in (".gitattributes", "config.json", "model.safetensors"):
            target = f"{of.repo.path}/resolve/{of.sha}/{path}"
            assert (await node.ask("GET", target, key=TOKEN)).body == FILES[path]
        assert await leaks(node, hub, of) == set()


async def test_nor_of_what_was_imported_and_nobody_confirmed(cache: Path, hub: FakeHub, tmp_path: Path) -> None:
    of = private(tmp_path / "files", hub, "org/gated")
    client_cache(tmp_path / "hf", "org/gated", of.sha, FILES)
    async with running(cache, hf_upstream=hub.url, hf_offline=True, serve_peers=True) as node:
        body = {"cache_dir": str(tmp_path / "hf")}
        (done,) = (await node.admin("POST", "/api/import-hf-cache", json=body)).json["imported"]
        assert done["root"] == str(of.root)
        assert await leaks(node, hub, of) == set()


async def test_a_second_node_without_a_token_has_nothing_of_it(cache: Path, hub: FakeHub, tmp_path: Path) -> None:
    """By CID from each of the first one's listeners, by the Hub's name with the first as its peer, and with the first
    for its Hub."""
    of = private(tmp_path / "files", hub, "org/gated")
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(running(cache, hf_upstream=hub.url, hf_token=TOKEN))
        await pinned(first, "hf:org/gated")
        at_door, _ = await stack.enter_async_context(door(first))
        ways: list[tuple[dict[str, object], dict[str, object]]] = [
            ({"hf_upstream": hub.url}, {"ref": str(of.root), "source": first.url}),
            ({"hf_upstream": hub.url}, {"ref": str(of.root), "source": at_door}),
            ({"hf_upstream": hub.url, "peers": (first.url, at_door)}, {"ref": "hf:org/gated"}),
            ({"hf_upstream": hub.url, "peers": (first.url, at_door), "hf_offline": True}, {"ref": "hf:org/gated"}),
            ({"hf_upstream": hub.url, "peers": (first.url,), "hf_token": OTHER}, {"ref": "hf:org/gated"}),
            ({"hf_upstream": first.url}, {"ref": "hf:org/gated"}),
            ({"hf_upstream": first.url, "hf_token": OTHER}, {"ref": f"hf:org/gated@{of.sha}"}),
        ]
        for number, (settings, wish) in enumerate(ways):
            (other := tmp_path / f"b{number}").mkdir(mode=0o700)
            async with running(other, stall_timeout_s=5, first_byte_timeout_s=5, **settings) as second:
                job = second.node.pin_job((await second.admin("POST", "/api/pins", json=wish)).json["id"])
                assert job is not None
                async for state in second.node.updates(job):
                    job = state
                assert job.state == "failed", (settings, wish)
                assert second.node.models() == []
                assert second.node.store.loose() == []
            assert not [path for path in other.rglob("*") if path.is_file() and CANARY in path.read_bytes()]
