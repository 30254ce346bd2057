"""Maps of peers: taken where the Hub cannot be asked, held to their form, and found out where they lie."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.support.hub import FakeHub, git_oid
from tests.support.running import Running, running

FILES = {"config.json": b'{"a": 1}', "sub/weights.bin": bytes(range(256)) * 8_000, ".gitattributes": b"hidden"}
SHOWN = {path: content for path, content in FILES.items() if not path.startswith(".")}
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    async with FakeHub(one_origin=True) as fake:
        fake.repo("org/open", FILES)
        yield fake


@pytest.fixture
async def first(tmp_path: Path, hub: FakeHub) -> AsyncIterator[Running]:
    (cache := tmp_path / "first").mkdir(mode=0o700)
    async with running(cache, hf_upstream=hub.url) as node:
        for path in FILES:
            await node.ask("GET", f"/org/open/resolve/main/{path}")
        hub.seen.clear()
        yield node


@asynccontextmanager
async def liar(first: Running, change: Change) -> AsyncIterator[str]:
    """A peer that has what first has, and another map of it."""

    async def answer(request: web.Request) -> web.Response:
        reply = await first.ask(request.method, request.path_qs, headers={"Range": request.headers.get("Range", "")})
        body = reply.body
        if request.path == "/api/maps":
            said = reply.json
            changed = change(said)
            body = changed if isinstance(changed, bytes) else json.dumps(said).encode()
        kept = {k: v for k, v in reply.headers.items() if k in ("Content-Type", "Content-Range", "Etag")}
        return web.Response(body=body, status=reply.status, headers=kept)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_without_the_hub_a_peers_map_will_do(cache: Path, hub: FakeHub, first: Running) -> None:
    sha = hub.repos["org/open"].refs["main"]
    async with running(cache, hf_upstream=hub.url, hf_offline=True, peers=(first.url,)) as node:
        about = (await node.ask("GET", "/api/models/org/open")).json
        assert about["sha"] == sha
        assert [line["rfilename"] for line in about["siblings"]] == sorted(SHOWN)
        for path, content in SHOWN.items():
            reply = await node.ask("GET", f"/org/open/resolve/main/{path}")
            assert (reply.body, reply.headers["X-Repo-Commit"]) == (content, sha)
        assert (await node.ask("GET", "/org/open/resolve/main/.gitattributes")).status == 404
        assert (await node.ask("GET", "/api/maps?repo=org/open")).status == 404  # a claim is not told on
    assert hub.seen == []
    async with running(cache, hf_upstream=hub.url, peers=(first.url,)) as node:  # the Hub has the last word
        about = (await node.ask("GET", f"/api/models/org/open/revision/{sha}")).json
        assert [line["rfilename"] for line in about["siblings"]] == sorted(FILES)
        assert [seen.path for seen in hub.seen if "/resolve/" in seen.path] == []


def _entry(said: dict[str, Any], path: str) -> dict[str, Any]:
    found: dict[str, Any] = next(entry for entry in said["entries"] if entry["path"] == path)
    return found


@pytest.mark.parametrize(
    "change",
    [
        lambda said: b"not JSON",
        lambda said: b"[]",
        lambda said: b"[" * 100_000,
        lambda said: said.update(repo="org/other"),
        lambda said: said.update(kind="dataset"),
        lambda said: said.update(commit="main"),
        lambda said: said.update(restricted=True),
        lambda said: said.update(root="../x"),
        lambda said: said["cids"].update({"config.json": "x"}),
        lambda said: _entry(said, "config.json").update(path="../x"),
        lambda said: _entry(said, "config.json").update(oid="../x"),
        lambda said: _entry(said, "config.json").update(size=-1),
        lambda said: _entry(said, "config.json").update(lfs={"sha256": "x", "size": 8, "pointer_size": 1}),
        lambda said: said["entries"].append(said["entries"][0]),
    ],
)
async def test_a_map_that_is_none_is_no_answer(cache: Path, hub: FakeHub, first: Running, change: Change) -> None:
    async with (
        liar(first, change) as url,
        running(cache, hf_upstream=hub.url, hf_offline=True, peers=(url,)) as node,
    ):
        assert (await node.ask("GET", "/api/models/org/open")).status == 503
        assert not list((cache / "hub" / "shelf").rglob("*.json"))


async def test_a_map_whose_cids_are_of_other_bytes_is_found_out(cache: Path, hub: FakeHub, first: Running) -> None:
    """The Hub says which oid counts, and has the file too."""

    added = cache.parent / "forged"
    (added / "sub").mkdir(parents=True)
    (added / "config.json").write_bytes(b'{"x": 1}')
    (added / "sub" / "weights.bin").write_bytes(b"other")
    forged = await first.node.add(added, name="forged")

    async with (
        liar(first, lambda said: said.update(root=forged.root)) as url,
        running(cache, hf_upstream=hub.url, peers=(url,)) as node,
    ):
        for path, content in FILES.items():
            assert (await node.ask("GET", f"/org/open/resolve/main/{path}")).body == content
        assert len([seen for seen in hub.seen if seen.method == "GET" and "/resolve/" in seen.path]) == len(FILES)
    async with (
        liar(first, lambda said: said.update(root=forged.root)) as url,
        running(cache.parent / "third", hf_upstream=hub.url, hf_offline=True, peers=(url,)) as node,
    ):
        assert (await node.ask("GET", "/org/open/resolve/main/config.json")).status == 503


async def test_a_map_cannot_have_private_files_of_ours_given_away(
    cache: Path, hub: FakeHub, first: Running, tmp_path: Path
) -> None:
    """It names one by its hash, as a file of a public repository."""
    secret = b"nobody but me"
    (folder := tmp_path / "mine").mkdir()
    (folder / "secret.txt").write_bytes(secret)

    def name_it(said: dict[str, Any]) -> None:
        _entry(said, "config.json").update(
            oid=git_oid(b"pointer"),
            size=len(secret),
            lfs={"sha256": hashlib.sha256(secret).hexdigest(), "size": len(secret), "pointer_size": 100},
        )

    async with (
        liar(first, name_it) as url,
        running(cache, hf_upstream=hub.url, hf_offline=True, peers=(url,)) as node,
    ):
        receipt = await node.node.add(folder, name="mine")
        stored = node.node.find(receipt.root)
        node.node.store.set_public(stored.root, False)
        reply = await node.ask("GET", "/org/open/resolve/main/config.json")
        assert secret not in reply.body
        assert reply.status == 503
