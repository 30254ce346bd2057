"""A Hub that refuses, lies, stalls or changes its mind (tables F1h to F9h), seen by a client of the endpoint."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ipfs_accelerate_node.fetch import hub_mirror
from tests.support.hub import FakeHub, git_oid
from tests.support.running import Reply, Running, running

TOKEN = "hf_canaryCanaryCanary"
FILES = {"config.json": b'{"a": 1}', "model.safetensors": bytes(range(256)) * 12_000}
CONFIG, WEIGHTS = "/org/open/resolve/main/config.json", "/org/open/resolve/main/model.safetensors"


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    async with FakeHub([TOKEN], one_origin=True) as fake:
        fake.repo("org/open", FILES)
        yield fake


@pytest.fixture
async def node(cache: Path, hub: FakeHub) -> AsyncIterator[Running]:
    async with running(cache, hf_upstream=hub.url, stall_timeout_s=0.5, first_byte_timeout_s=2.0) as up:
        yield up


def gets(hub: FakeHub, path: str) -> list[str | None]:
    return [s.headers.get("Range") for s in hub.seen if s.method == "GET" and s.path.endswith(path)]


def failed(reply: Reply) -> tuple[int, bool]:
    """Status, and whether a client may take it for an answer about the repository."""
    return reply.status, "X-Error-Code" in reply.headers


async def test_f1h_refusals_keep_the_hubs_words(node: Running, hub: FakeHub) -> None:
    hub.repo("org/gated", FILES, gated=True)
    hub.repo("org/private", FILES, readers=frozenset(["hf_x"]))
    for path, key, status, code in (
        ("/org/gated/resolve/main/config.json", None, 401, "GatedRepo"),
        ("/org/gated/resolve/main/config.json", TOKEN, 403, "GatedRepo"),
        ("/org/private/resolve/main/config.json", None, 401, "RepoNotFound"),
        ("/org/private/resolve/main/config.json", TOKEN, 404, "RepoNotFound"),
        ("/org/none/resolve/main/config.json", TOKEN, 404, "RepoNotFound"),
        ("/org/open/resolve/none/config.json", None, 404, "RevisionNotFound"),
        ("/org/open/resolve/main/none", None, 404, "EntryNotFound"),
    ):
        reply = await node.ask("GET", path, key=key)
        assert (reply.status, reply.headers["X-Error-Code"]) == (status, code), path
        assert reply.headers["X-Error-Message"]
        assert reply.json["error"]
    wrong = await node.ask("GET", "/org/private/resolve/main/config.json", key="hf_wrong")
    assert (wrong.status, wrong.headers["X-Error-Message"]) == (401, "Invalid credentials in Authorization header")


async def test_f2h_a_hub_that_is_busy_says_when_to_come_back(node: Running, hub: FakeHub) -> None:
    hub.faults["api"] = ["status:429:120"]
    reply = await node.ask("GET", CONFIG)
    assert (reply.status, reply.headers["Retry-After"]) == (429, "120")


@pytest.mark.parametrize("fault", ["html", "list", "json:{}", 'json:{"sha": "main"}', "redirect-elsewhere"])
async def test_f2h_what_is_no_hub_is_no_answer(node: Running, hub: FakeHub, fault: str) -> None:
    hub.faults["api"] = [fault]
    assert failed(await node.ask("GET", CONFIG)) == (503, False)
    assert hub.asked("other") == []


@pytest.mark.parametrize(
    "fault", ["no-commit", "html", "etag:W/", 'etag:"../../x"', "no-etag", "xet-only", "location:http://127.0.0.1:1/x"]
)
async def test_f2h_f3h_f7h_a_file_that_the_hub_does_not_vouch_for(node: Running, hub: FakeHub, fault: str) -> None:
    hub.faults["config.json"] = [fault]
    assert failed(await node.ask("GET", CONFIG)) == (503, False)
    assert (await node.ask("GET", CONFIG)).body == FILES["config.json"]  # the Hub has come to its senses


async def test_f4h_other_bytes_of_the_same_size_reach_nobody(node: Running, hub: FakeHub) -> None:
    hub.faults["model.safetensors"] = ["flip"]
    assert (await node.ask("GET", WEIGHTS)).body == FILES["model.safetensors"]
    assert len(gets(hub, "/model.safetensors")) == 2
    hub.faults["config.json"] = ["flip", "flip"]
    reply = await node.ask("GET", CONFIG)
    assert failed(reply) == (502, False)
    assert "hash_mismatch" in reply.headers["X-Error-Message"]
    assert FILES["config.json"][1:] not in reply.body


@pytest.mark.parametrize("fault", ["ignore-range", "416", "wrong-part"])
async def test_f5h_an_interrupted_transfer_goes_on(node: Running, hub: FakeHub, fault: str) -> None:
    hub.faults["model.safetensors"] = ["truncate", fault]
    assert (await node.ask("GET", WEIGHTS)).body == FILES["model.safetensors"]
    assert gets(hub, "/model.safetensors")[1] is not None


async def test_f5h_a_stalled_transfer_is_taken_up_again(node: Running, hub: FakeHub) -> None:
    hub.faults["model.safetensors"] = ["stall"]
    assert (await node.ask("GET", WEIGHTS)).body == FILES["model.safetensors"]


@pytest.mark.parametrize("name", ["../x", "/abs", "C:/x", "a/../../x", "con", "a\\b"])
async def test_f6h_a_tree_with_names_that_no_disk_should_have(node: Running, hub: FakeHub, name: str) -> None:
    hub.repo("org/bad", {**FILES, name: b"x"})
    for path in ("/org/bad/resolve/main/config.json", "/api/models/org/bad", "/api/models/org/bad/tree/main"):
        assert failed(await node.ask("GET", path)) == (502, False)


async def test_f8h_main_moves_and_what_was_begun_stays_at_its_commit(
    node: Running, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = hub.repos["org/open"]
    old = repo.refs["main"]
    assert (await node.ask("GET", CONFIG)).headers["X-Repo-Commit"] == old
    new = repo.commit({**FILES, "config.json": b'{"b": 2}'})
    assert (await node.ask("HEAD", CONFIG)).headers["X-Repo-Commit"] == old  # asked a moment ago
    monkeypatch.setattr(hub_mirror, "FRESH_S", -1.0)
    moved = await node.ask("GET", CONFIG)
    assert (moved.headers["X-Repo-Commit"], moved.body) == (new, b'{"b": 2}')
    kept = await node.ask("GET", f"/org/open/resolve/{old}/config.json")
    assert (kept.body, kept.headers["ETag"]) == (FILES["config.json"], f'"{git_oid(FILES["config.json"])}"')


@pytest.mark.parametrize(
    "repo",
    [
        "..",
        "../x",
        "a/b/c",
        "org/" + "x" * 300,
        "org/%C3%A9",
        "org/a--b",
        "org/a..b",
        "org/x.git",
        "-a/b",
        "a%2Fb/c",
        "%00",
    ],
)
async def test_f9h_what_is_no_repository(node: Running, hub: FakeHub, repo: str) -> None:
    for path in (
        f"/{repo}/resolve/main/config.json",
        f"/api/models/{repo}/revision/main",
        f"/api/datasets/{repo}/tree/main",
    ):
        reply = await node.ask("GET", path)
        assert reply.status in (400, 404), path
    assert hub.seen == []


@pytest.mark.parametrize("path", ["%2e%2e/x", "a//b", "a%2Fb", "x%00", "%FF"])
async def test_f9h_what_is_no_path(node: Running, hub: FakeHub, path: str) -> None:
    assert (await node.ask("GET", f"/org/open/resolve/main/{path}")).status in (400, 404)
    for revision in ("..%2Fx", "a" * 300, "%C3%A9", "%0a"):
        assert (await node.ask("GET", f"/org/open/resolve/{revision}/config.json")).status in (400, 404)
    assert hub.seen == []


async def test_a_hub_that_went_away_is_noticed_once(cache: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """What main meant last is the answer, and not only after another wait."""
    monkeypatch.setattr(hub_mirror, "FRESH_S", -1.0)
    monkeypatch.setattr(hub_mirror, "PATIENCE_S", 0.2)
    loop = asyncio.get_running_loop()
    async with running(cache, hf_upstream=hub.url) as node:
        assert (await node.ask("GET", CONFIG)).status == 200
        gone = asyncio.Event()

        async def silent(_: object, writer: asyncio.StreamWriter) -> None:
            await gone.wait()
            writer.close()

        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server:
            async with running(cache.parent / "other", hf_upstream=f"http://127.0.0.1:{port}") as other:
                for file in (cache / "hub" / "shelf").rglob("*.json"):
                    place = other.node.store.root / file.relative_to(cache)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.write_bytes(file.read_bytes())
                for _ in range(2):
                    began = loop.time()
                    about = await other.ask("GET", "/api/models/org/open")
                    assert about.json["sha"] == hub.repos["org/open"].refs["main"]
                assert loop.time() - began < 0.2  # the second did not wait
                gone.set()


async def test_pages_of_a_tree_that_grow_are_of_one_commit(
    node: Running, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_mirror, "FRESH_S", -1.0)
    first = await node.ask("GET", "/api/models/org/open/tree/main?limit=1")
    hub.repos["org/open"].commit({"other.json": b"{}"})
    following = first.headers["Link"].removeprefix(f"<{node.url}").partition(">")[0]
    assert [entry["path"] for entry in (await node.ask("GET", following)).json] == ["model.safetensors"]


async def test_bodies_of_paths_info(node: Running, hub: FakeHub) -> None:
    url = "/api/models/org/open/paths-info/main"
    for body, kind, status in (
        (b"{", "application/json", 400),
        (b'{"paths": 1}', "application/json", 422),
        (b"paths=config.json", "text/plain", 415),
        (b"%%%", "application/x-www-form-urlencoded", 400),
        (b"x" * (5 << 20), "application/x-www-form-urlencoded", 413),
        (json.dumps({"paths": ["config.json"]}).encode(), "application/json", 200),
        (b"", "application/x-www-form-urlencoded", 200),
    ):
        reply = await node.ask("POST", url, data=io.BytesIO(body), headers={"Content-Type": kind})
        assert reply.status == status, (body[:20], kind, reply.body)
    assert (await node.ask("POST", "/api/models/org/open")).status == 400
    assert (await node.ask("GET", url)).status == 400
    for query in ("cursor=x", "cursor=-1", "limit=1e3"):
        assert (await node.ask("GET", f"/api/models/org/open/tree/main?{query}")).status == 400
    assert (await node.ask("GET", "/api/models/org/open/tree/main?cursor=999999999")).json == []
    assert (await node.ask("GET", "/api/models/org/open/discussions")).status == 400
