"""The Hub's protocol as this node speaks it: headers, errors, pages, ranges; what is here, and what has to be asked."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ipfs_accelerate_node.sources.hub_hops import HOP_HEADER
from ipfs_accelerate_node.sources.hub_names import HubRepo
from tests.support.hub import FakeHub, git_oid, oid
from tests.support.running import Reply, Running, running

TOKEN = "hf_canaryCanaryCanary"
WEIGHTS = bytes(range(256)) * 12_000 + b"tail"  # three leaves
FILES = {
    ".gitattributes": b"hidden",
    "1_Pooling/config.json": b"{}",
    "config.json": b'{"a": 1}',
    "empty.txt": b"",
    "model.safetensors": WEIGHTS,
}


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    async with FakeHub([TOKEN], one_origin=True) as fake:
        fake.repo("org/open", FILES)
        fake.repo("org/private", FILES, readers=frozenset([TOKEN]))
        fake.repo("org/gated", FILES, gated=True, accepted=frozenset([TOKEN]))
        fake.repo("datasets/org/rows", {"data/train.txt": b"a row\n", "README.md": b"# rows"})
        yield fake


@asynccontextmanager
async def mirror(cache: Path, hub: FakeHub, **settings: Any) -> AsyncIterator[Running]:
    async with running(cache, hf_upstream=hub.url, **settings) as node:
        yield node


def commit(hub: FakeHub, repo: str = "org/open") -> str:
    return hub.repos[repo].refs["main"]


def file(path: str, repo: str = "org/open", revision: str = "main") -> str:
    return f"/{repo}/resolve/{revision}/{path}"


def gets(hub: FakeHub, path: str) -> int:
    return len([r for r in hub.seen if r.method == "GET" and r.path.endswith(path)])


def refused(reply: Reply) -> tuple[int, str | None]:
    return reply.status, reply.headers.get("X-Error-Code")


async def test_a_small_file_and_a_large_one(cache: Path, hub: FakeHub) -> None:
    async with mirror(cache, hub) as node:
        for path in ("config.json", "1_Pooling/config.json", "empty.txt", ".gitattributes", "model.safetensors"):
            head = await node.ask("HEAD", file(path))
            assert gets(hub, path) == 0  # heads are answered from the tree
            reply = await node.ask("GET", file(path))
            for answer in (head, reply):
                assert answer.status == 200
                assert answer.headers["X-Repo-Commit"] == commit(hub)
                assert answer.headers["ETag"] == f'"{oid(path, FILES[path])}"'
                assert answer.headers["Content-Length"] == str(len(FILES[path]))
                assert answer.headers["Accept-Ranges"] == "bytes"
                assert answer.headers["Content-Security-Policy"].startswith("sandbox")
                assert not [name for name in answer.headers if "xet" in name.lower()]
                large = path == "model.safetensors"
                assert answer.headers.get("X-Linked-Etag") == (answer.headers["ETag"] if large else None)
                assert answer.headers.get("X-Linked-Size") == (str(len(WEIGHTS)) if large else None)
            assert reply.body == FILES[path]
        again = await node.ask("GET", file("config.json"), headers={"If-None-Match": head.headers["ETag"] + ', "x"'})
        assert again.status == 200
        etag = f'"{git_oid(FILES["config.json"])}"'
        assert (await node.ask("GET", file("config.json"), headers={"If-None-Match": etag})).status == 304


async def test_ranges(cache: Path, hub: FakeHub) -> None:
    async with mirror(cache, hub) as node:
        size = len(WEIGHTS)
        for asked, start, stop in (
            ("bytes=5-9", 5, 10),
            (f"bytes={size - 3}-", size - 3, size),
            ("bytes=-7", size - 7, size),
        ):
            reply = await node.ask("GET", file("model.safetensors"), headers={"Range": asked})
            assert (reply.status, reply.body) == (206, WEIGHTS[start:stop])
            assert reply.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{size}"
        reply = await node.ask("GET", file("model.safetensors"), headers={"Range": f"bytes={size}-"})
        assert (reply.status, reply.headers["Content-Range"]) == (416, f"bytes */{size}")
        other = {"Range": "bytes=5-9", "If-Range": '"another"'}
        assert (await node.ask("GET", file("model.safetensors"), headers=other)).status == 200
        assert gets(hub, "/model.safetensors") == 1


async def test_what_is_not_there(cache: Path, hub: FakeHub) -> None:
    async with mirror(cache, hub) as node:
        missing = await node.ask("GET", file("chat_template.jinja"))
        assert refused(missing) == (404, "EntryNotFound")
        assert missing.headers["X-Repo-Commit"] == commit(hub)
        templates = await node.ask("GET", "/api/models/org/open/tree/main/additional_chat_templates?recursive=false")
        assert refused(templates) == (404, "EntryNotFound")
        assert templates.headers["X-Repo-Commit"] == commit(hub)
        assert refused(await node.ask("GET", file("config.json", revision="nothing"))) == (404, "RevisionNotFound")
        assert refused(await node.ask("GET", "/api/models/org/none")) == (401, "RepoNotFound")
        assert refused(await node.ask("GET", "/api/models/org/none", key=TOKEN)) == (404, "RepoNotFound")


async def test_about_a_repository(cache: Path, hub: FakeHub) -> None:
    async with mirror(cache, hub) as node:
        for path in (
            "/api/models/org/open",
            "/api/models/org/open/revision/main",
            f"/api/models/org/open/revision/{commit(hub)}",
        ):
            said = (await node.ask("GET", path)).json
            assert (said["id"], said["sha"], said["private"], said["gated"]) == ("org/open", commit(hub), False, False)
            assert [line["rfilename"] for line in said["siblings"]] == sorted(FILES)
            assert said["tags"] == []
        blobs = (await node.ask("GET", "/api/models/org/open?blobs=true")).json["siblings"]
        weights = next(line for line in blobs if line["rfilename"] == "model.safetensors")
        assert weights["lfs"]["sha256"] == hashlib.sha256(WEIGHTS).hexdigest()
        assert "xet" not in str(blobs).lower()
        rows = (await node.ask("GET", "/api/datasets/org/rows")).json
        assert (rows["id"], rows["sha"]) == ("org/rows", commit(hub, "datasets/org/rows"))
        reply = await node.ask("GET", "/datasets/org/rows/resolve/main/data/train.txt")
        assert reply.body == b"a row\n"


async def test_the_tree_comes_in_pages_that_lead_to_us(cache: Path, hub: FakeHub) -> None:
    async with mirror(cache, hub) as node:
        path: str | None = "/api/models/org/open/tree/main?recursive=true&expand=false&limit=2"
        entries: list[dict[str, Any]] = []
        while path is not None:
            reply = await node.ask("GET", path)
            entries += reply.json
            link = reply.headers.get("Link")
            assert link is None or link.startswith(f"<{node.url}/api/models/org/open/tree/{commit(hub)}?")
            path = None if link is None else link.removeprefix(f"<{node.url}").partition(">")[0]
        assert [entry["path"] for entry in entries] == sorted([*FILES, "1_Pooling"])
        weights = next(entry for entry in entries if entry["path"] == "model.safetensors")
        assert weights["lfs"]["oid"] == hashlib.sha256(WEIGHTS).hexdigest()
        top = (await node.ask("GET", "/api/models/org/open/tree/main")).json
        assert [entry["path"] for entry in top] == sorted({path.split("/")[0] for path in FILES})
        below = (await node.ask("GET", "/api/models/org/open/tree/main/1_Pooling")).json
        assert [entry["path"] for entry in below] == ["1_Pooling/config.json"]
        asked = ["config.json", "1_Pooling", "none"]
        bodies: list[dict[str, Any]] = [{"data": {"paths": asked, "expand": "false"}}, {"json": {"paths": asked}}]
        for body in bodies:
            lines = (await node.ask("POST", "/api/models/org/open/paths-info/main", **body)).json
            assert [(line["path"], line["type"]) for line in lines] == [
                ("config.json", "file"),
                ("1_Pooling", "directory"),
            ]


async def test_refs_and_whose_token_it_is(cache: Path, hub: FakeHub) -> None:
    async with mirror(cache, hub) as node:
        refs = (await node.ask("GET", "/api/models/org/open/refs")).json
        assert refs["branches"] == [{"name": "main", "ref": "refs/heads/main", "targetCommit": commit(hub)}]
        me = await node.ask("GET", "/api/whoami-v2", key=TOKEN)
        assert (me.status, me.json["name"]) == (200, "someone")
        assert "auth" not in me.json
        assert (await node.ask("GET", "/api/whoami-v2")).status == 401
        assert (await node.ask("GET", "/api/whoami-v2", key="hf_wrong")).status == 401


async def test_many_clients_are_one_transfer(cache: Path, hub: FakeHub) -> None:
    async with mirror(cache, hub) as node:
        replies = await asyncio.gather(*(node.ask("GET", file("model.safetensors")) for _ in range(20)))
        assert {reply.body for reply in replies} == {WEIGHTS}
        assert gets(hub, "/model.safetensors") == 1
        assert gets(hub, "/revision/main") == 1


async def test_what_is_here_needs_no_hub(cache: Path, hub: FakeHub) -> None:
    async with mirror(cache, hub) as node:
        await node.ask("GET", file("config.json"))
        await node.ask("GET", "/api/models/org/open")
    hub.seen.clear()
    async with mirror(cache, hub, hf_offline=True) as node:
        assert (await node.ask("GET", "/api/models/org/open")).json["sha"] == commit(hub)
        assert (await node.ask("GET", "/api/models/org/open/refs")).json["branches"][0]["name"] == "main"
        assert (await node.ask("GET", file("config.json"))).body == FILES["config.json"]
        assert (await node.ask("HEAD", file("model.safetensors"))).status == 200
        missing = await node.ask("GET", file("model.safetensors"))
        assert (missing.status, "X-Error-Code" in missing.headers) == (503, False)
        assert (await node.ask("GET", "/api/models/org/other")).status == 503
    assert hub.seen == []


async def test_all_files_of_a_commit_become_its_model(cache: Path, hub: FakeHub) -> None:
    async with mirror(cache, hub) as node:
        for path in FILES:
            await node.ask("GET", file(path))
        (model,) = node.node.models()
        assert (model.provenance.hub_repo, model.provenance.hub_commit) == ("org/open", commit(hub))
        assert (model.public, model.pinned, model.file_count) == (True, False, 4)
        kept = node.node.hub.shelf.commit(HubRepo("org/open"), commit(hub))
        assert kept is not None
        assert kept.root == str(model.root)
        plain = await node.ask("GET", f"/ipfs/{model.root}/model.safetensors")
        assert plain.body == WEIGHTS


async def test_our_own_request_does_not_come_round(cache: Path, hub: FakeHub) -> None:
    async with mirror(cache, hub) as node:
        for path in ("/api/models/org/open", file("config.json"), "/api/whoami-v2"):
            hops = f"other,{node.node.hub.hop}"
            assert (await node.ask("GET", path, headers={HOP_HEADER: hops})).status == 508
    assert hub.seen == []
