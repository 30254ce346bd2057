"""Who gets what by the Hub's routes: restricted repositories, addresses that others reach, CIDs, a caller's token."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.sources.hub_names import HubRepo
from tests.support.hub import FakeHub
from tests.support.running import Reply, Running, model, running

TOKEN = "hf_canaryCanaryCanary"
OTHER = "hf_ofSomebodyElse"
FILES = {"config.json": b'{"a": 1}', "model.safetensors": bytes(range(256)) * 8_000}


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    async with FakeHub([TOKEN, OTHER], one_origin=True) as fake:
        fake.repo("org/open", FILES)
        fake.repo("org/private", FILES, readers=frozenset([TOKEN]))
        fake.repo("org/gated", FILES, gated=True, accepted=frozenset([TOKEN]))
        yield fake


def refused(reply: Reply) -> tuple[int, str | None]:
    return reply.status, reply.headers.get("X-Error-Code")


async def taken(node: Running, repo: str) -> None:
    """By the caller who may."""
    for path, content in FILES.items():
        assert (await node.ask("GET", f"/{repo}/resolve/main/{path}", key=TOKEN)).body == content


@pytest.mark.parametrize(
    ("repo", "nobody", "stranger"),
    [
        ("org/private", (401, "RepoNotFound"), (404, "RepoNotFound")),
        ("org/gated", (401, "GatedRepo"), (403, "GatedRepo")),
    ],
)
async def test_what_is_restricted_is_given_to_whom_the_hub_lets_in_and_to_nobody_else(
    cache: Path, hub: FakeHub, repo: str, nobody: tuple[int, str], stranger: tuple[int, str]
) -> None:
    sha = hub.repos[repo].refs["main"]
    async with running(cache, hf_upstream=hub.url) as node:
        await taken(node, repo)
        for revision in ("main", sha):
            for path in ("config.json", "model.safetensors", "absent"):
                for method in ("GET", "HEAD"):
                    url = f"/{repo}/resolve/{revision}/{path}"
                    assert refused(await node.ask(method, url)) == nobody
                    assert refused(await node.ask(method, url, key=OTHER)) == stranger
                    assert (await node.ask(method, url, key="hf_wrong")).status == 401
            for below in (f"revision/{revision}", f"tree/{revision}"):
                assert refused(await node.ask("GET", f"/api/models/{repo}/{below}")) == nobody
                assert refused(await node.ask("GET", f"/api/models/{repo}/{below}", key=OTHER)) == stranger
        absent = await node.ask("GET", f"/{repo}/resolve/main/absent", key=TOKEN)
        assert refused(absent) == (404, "EntryNotFound")
        assert (await node.ask("GET", f"/api/maps?repo={repo}")).status == 404
        # its access is withdrawn: what is here is not given any more
        hub.repos[repo].readers = hub.repos[repo].accepted = frozenset([OTHER])
        hub.repos[repo].gated = True
        assert (await node.ask("GET", f"/{repo}/resolve/{sha}/config.json", key=TOKEN)).status in (401, 403, 404)
        assert (await node.ask("GET", f"/{repo}/resolve/{sha}/config.json", key=OTHER)).body == FILES["config.json"]


@pytest.mark.parametrize("repo", ["org/private", "org/gated"])
async def test_what_is_restricted_never_leaves_by_its_cid_nor_offline(cache: Path, hub: FakeHub, repo: str) -> None:
    sha = hub.repos[repo].refs["main"]
    async with running(cache, hf_upstream=hub.url) as node:
        await taken(node, repo)
        (stored,) = node.node.models()
        assert (stored.public, stored.announce) == (False, False)
        kept = node.node.hub.shelf.commit(HubRepo(repo), sha)
        assert kept is not None
        for cid in (str(stored.root), *kept.cids.values()):
            assert (await node.ask("GET", f"/ipfs/{cid}")).status == 404
            assert (await node.ask("GET", f"/ipfs/{cid}?format=raw")).status == 404
            assert (await node.ask("GET", f"/api/models/ipfs/{cid}")).status == 401
        assert (await node.ask("GET", f"/ipfs/{stored.root}/resolve/main/config.json")).status == 404
        assert (await node.ask("GET", f"/api/have/{stored.root}")).status == 404
    async with running(cache, hf_upstream=hub.url, hf_offline=True) as node:
        for path in (f"/{repo}/resolve/{sha}/config.json", f"/api/models/{repo}", f"/api/models/{repo}/tree/{sha}"):
            assert (await node.ask("GET", path, key=TOKEN)).status == 503


async def test_files_of_a_restricted_repository_that_are_public_too_are_given_as_such(
    cache: Path, hub: FakeHub
) -> None:
    async with running(cache, hf_upstream=hub.url) as node:
        await taken(node, "org/private")
        assert (await node.ask("GET", "/org/open/resolve/main/model.safetensors")).body == FILES["model.safetensors"]


async def test_other_addresses_are_closed_or_serve_what_is_public(cache: Path, hub: FakeHub) -> None:
    paths = ("/org/open/resolve/main/config.json", "/api/models/org/open", "/api/models/org/open/refs")
    async with running(cache, hf_upstream=hub.url, host="0.0.0.0") as node:
        for path in (*paths, "/api/whoami-v2"):
            assert (await node.ask("GET", path)).status == 403
            assert (await node.ask("GET", path, key=node.key)).status == 403
    assert hub.seen == []
    async with running(cache, hf_upstream=hub.url, host="0.0.0.0", hub_open=True) as node:
        for path in paths:
            assert (await node.ask("GET", path)).status == 200
        for repo in ("org/private", "org/gated"):
            for path in (f"/{repo}/resolve/main/config.json", f"/api/models/{repo}", f"/api/models/{repo}/refs"):
                assert (await node.ask("GET", path, key=TOKEN)).status in (401, 404), path


async def test_a_key_of_ours_is_nobody_to_the_hub_and_opens_nothing(cache: Path, hub: FakeHub) -> None:
    async with running(cache, hf_upstream=hub.url) as node:
        await taken(node, "org/private")
        assert (await node.ask("GET", "/org/private/resolve/main/config.json", key=node.key)).status == 401
        assert (await node.ask("GET", f"/org/open/resolve/main/config.json?token={TOKEN}")).status == 401


async def test_a_cid_is_a_repository(cache: Path, hub: FakeHub, tmp_path: Path) -> None:
    folder = model(tmp_path / "m", "text of ", "sub/weights.bin")
    async with running(cache, hf_upstream=hub.url) as node:
        root = (await node.node.add(folder, name="m")).root
        commit = Cid.parse(root).digest.hex()[:40]
        about = (await node.ask("GET", f"/api/models/ipfs/{root}")).json
        assert (about["sha"], about["id"]) == (commit, f"ipfs/{root}")
        assert [line["rfilename"] for line in about["siblings"]] == ["config.json", "sub/weights.bin"]
        tree = (await node.ask("GET", f"/api/models/ipfs/{root}/tree/{commit}?recursive=true")).json
        assert [entry["path"] for entry in tree] == ["config.json", "sub", "sub/weights.bin"]
        for revision in ("main", commit):
            reply = await node.ask("GET", f"/ipfs/{root}/resolve/{revision}/sub/weights.bin")
            assert reply.body == b"text of sub/weights.bin"
            assert reply.headers["X-Repo-Commit"] == commit
            assert reply.headers["ETag"].strip('"') == tree[2]["lfs"]["oid"]
        assert refused(await node.ask("GET", f"/ipfs/{root}/resolve/main/absent")) == (404, "EntryNotFound")
        assert (await node.ask("GET", f"/api/models/ipfs/{root}/tree/v2")).headers["X-Error-Code"] == "RevisionNotFound"
        other = (await node.ask("GET", f"/ipfs/{root}/resolve/v2/config.json")).headers
        assert other["Content-Type"] == "application/problem+json"  # the gateway's: there is no entry "resolve"
        assert (await node.ask("GET", f"/api/models/ipfs/{Cid.of(b'x')}")).status == 401
        assert (await node.ask("GET", "/api/models/ipfs/notacid")).status == 400
        node.node.store.set_public(Cid.parse(root), False)
        assert (await node.ask("GET", f"/ipfs/{root}/resolve/main/config.json")).status == 404
    assert hub.seen == []


async def test_a_directory_with_an_entry_resolve_is_the_gateways(cache: Path, tmp_path: Path, hub: FakeHub) -> None:
    folder = model(tmp_path / "m", "text of ", "resolve/main/config.json")
    async with running(cache, hf_upstream=hub.url) as node:
        root = (await node.node.add(folder, name="m")).root
        reply = await node.ask("GET", f"/ipfs/{root}/resolve/main/config.json")
        assert reply.body == b"text of resolve/main/config.json"
        assert "X-Ipfs-Path" in reply.headers
        assert (await node.ask("GET", f"/ipfs/{root}/resolve/main/absent")).status == 404
        await asyncio.to_thread(node.node.store.set_public, Cid.parse(root), False)
        assert (await node.ask("GET", f"/ipfs/{root}/resolve/main/config.json", key=node.key)).status == 200


async def test_the_callers_token_goes_to_the_hub_and_stays_nowhere(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor to a place that the Hub redirects to."""
    caplog.set_level(logging.DEBUG)
    async with FakeHub([TOKEN]) as hub:
        hub.repo("org/private", FILES, readers=frozenset([TOKEN]))
        said = b""
        async with running(cache, hf_upstream=hub.url) as node:
            for path in (
                "/org/private/resolve/main/config.json",
                "/org/private/resolve/main/model.safetensors",  # its redirect to another address is refused
                "/api/models/org/private",
                "/api/models/org/none",
                "/api/whoami-v2",
            ):
                reply = await node.ask("GET", path, key=TOKEN)
                said += reply.body + repr(reply.headers).encode()
        assert any(seen.authorization == f"Bearer {TOKEN}" for seen in hub.asked("hub"))
        assert hub.asked("cdn") == hub.asked("other") == []
    assert TOKEN not in caplog.text
    assert TOKEN.encode() not in said
    for written in cache.rglob("*"):
        assert not written.is_file() or TOKEN.encode() not in written.read_bytes(), written
