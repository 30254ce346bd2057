"""Native routes on a whole node: who may call them, what they answer, and uploads."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import pytest_asyncio

from ipfs_accelerate_node.api import pins
from ipfs_accelerate_node.api.app import ROUTES
from ipfs_accelerate_node.api.pipeline import TRAFFIC
from ipfs_accelerate_node.fetch.hub_map_shelf import Parcel
from ipfs_accelerate_node.records.envelope import LIFETIME_S
from ipfs_accelerate_node.records.hub_map import HubMap, MappedFile, seal_map
from ipfs_accelerate_node.sources.hub_names import HubRepo
from ipfs_accelerate_node.store import hash_directory
from tests.support.results import MODEL, fake_peers, sealed, telling
from tests.support.results import key as node_key
from tests.support.running import Running, model, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

INFERENCE = {
    "/api/infer", "/v1/embeddings", "/embeddings", "/v1/completions", "/v1/chat/completions",
    "/v1/audio/transcriptions", "/v1/rerank", "/v3/rerank", "/embed", "/embed_all", "/embed_sparse", "/predict",
    "/rerank", "/similarity", "/tokenize", "/decode", "/", "/invocations", "/models/{id}",
    "/models/{id}/pipeline/{task}", "/models/{id}/v1/chat/completions", "/v2/models/{name}/infer",
    "/v2/models/{name}/versions/{version}/infer",
    "/v2/repository/index",
}  # fmt: skip
HUB_READS = {"/api/models/{repo}", "/api/datasets/{repo}"}  # the Hub's paths-info reads by POST
READS_PATHS = {
    "/api/store", "/api/store/{ref}", "/api/pins", "/api/pins/{ref}", "/api/pins/{ref}/events", "/api/plan",
    "/api/keys", "/api/results", "/api/peers",
}  # fmt: skip
ABSENT = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    async with running(tmp_path_factory.mktemp("routes") / "cache") as node:
        yield node


# -- who may


async def test_whatever_changes_state_needs_the_admin_key_also_on_loopback(here: Running) -> None:
    secrets = [here.keys.create([scope])[1] for scope in ("infer", "peer", "pin", "metrics")]
    walked = 0
    for route in here.served.app.router.routes():
        assert route.resource is not None
        path = route.resource.canonical
        if (route.method in ("GET", "HEAD") and path not in READS_PATHS) or path in INFERENCE | HUB_READS:
            continue
        if path.startswith("/api/v1/pins"):
            continue  # has a scope, and tests, of its own
        walked += 1
        target = re.sub(r"\{[^}]*\}", "x", path)
        for key in (None, "sk-anything", here.key[:-1]):
            reply = await here.ask(route.method, target, key=key, json={})
            assert reply.status == 401, (route.method, path)
        for key in secrets:
            reply = await here.ask(route.method, target, key=key, json={})
            assert (reply.status, reply.json["code"]) == (403, "scope_missing"), (route.method, path)
    assert walked >= 12


async def test_every_route_names_its_surface_and_no_two_are_the_same(here: Running) -> None:
    assert len({(route.method, route.path) for route in ROUTES}) == len(ROUTES)
    mounted = {(r.method, r.resource.canonical) for r in here.served.app.router.routes() if r.resource is not None}
    assert len(mounted) == len(ROUTES)


async def test_trailing_slashes_and_foreign_methods(here: Running) -> None:
    """H4."""
    for route in ("/healthz", "/readyz", "/metrics", "/v1/models", "/api/store", "/api/pins", "/api/peer"):
        assert (await here.admin("GET", route + "/")).status == 404, route
        assert (await here.admin("PATCH", route)).status == 405, route


# -- probes


async def test_probes(here: Running) -> None:
    """P14."""
    assert (await here.ask("GET", "/healthz")).json == {"live": True}
    ready = (await here.ask("GET", "/readyz")).json
    assert (ready["ready"], ready["state"], ready["kubo"]) == (True, "ready", "off")
    assert ready["degraded"]
    assert str(here.node.config.cache) not in json.dumps(ready)
    assert (await here.ask("HEAD", "/readyz")).status == 200


async def test_metrics_count_by_route_and_status(here: Running) -> None:
    await here.ask("GET", "/api/store")
    await here.ask("GET", "/api/nowhere-special")
    page = (await here.ask("GET", "/metrics")).body.decode()
    assert 'ipfs_accelerate_node_requests_total{method="GET",model="",route="/api/store",status="401"}' in page
    assert 'route="unmatched",status="404"' in page
    assert "nowhere-special" not in page
    for name in ("store_bytes", "models_stored", "models_loaded", "in_flight", "ready"):
        assert f"\nipfs_accelerate_node_{name} " in page


async def test_who_this_is(here: Running) -> None:
    told = (await here.ask("GET", "/api/peer")).json
    assert told["peer_id"] == here.node.key.peer_id
    assert set(told) == {"peer_id", "agent", "version"}


# -- the store


async def test_add_show_remove(here: Running, tmp_path: Path) -> None:
    folder = model(tmp_path / "one", "one", "sub/weights.bin")
    receipt = (await here.admin("POST", "/api/add", json={"path": str(folder), "name": "org/one"})).json
    assert receipt["root"] == str(hash_directory(folder).plan.root)
    assert (receipt["name"], receipt["announced"], receipt["seeded"]) == ("org/one", False, False)
    assert (Path(receipt["path"]) / "sub" / "weights.bin").read_text() == "onesub/weights.bin"
    listed = (await here.admin("GET", "/api/store")).json
    assert receipt["root"] in [m["root"] for m in listed["models"]]
    assert listed["used_bytes"] >= receipt["bytes_total"]
    for ref in ("org/one", receipt["root"], "org%2Fone"):
        shown = (await here.admin("GET", f"/api/store/{ref}")).json
        assert shown["model"]["root"] == receipt["root"]
        assert {f["path"] for f in shown["files"]} == {"config.json", "sub/weights.bin"}
        assert all(re.fullmatch("[0-9a-f]{64}", f["sha256"]) for f in shown["files"])
    kept = await here.admin("DELETE", "/api/store/org/one")
    assert (kept.status, kept.json["code"]) == (409, "conflict")
    gone = await here.admin("DELETE", "/api/store/org/one?force=true")
    assert gone.json["root"] == receipt["root"]
    assert gone.json["freed_bytes"] > 0
    assert (await here.admin("GET", "/api/store/org/one")).status == 404


async def test_have(here: Running, tmp_path: Path) -> None:
    folder = model(tmp_path / "have", "have")
    (folder / "weights.bin").write_bytes(bytes(9 * (1 << 20) + 1))
    root = (await here.node.add(folder)).root
    told = (await here.ask("GET", f"/api/have/{root}")).json
    assert (told["root"], told["complete"]) == (root, True)
    weights = next(file for file in told["files"] if file["path"] == "weights.bin")
    assert weights["leaves"] == 10
    assert base64.b64decode(weights["bitmap"]) == b"\xff\x03"
    assert (await here.ask("GET", f"/api/have/{ABSENT}")).status == 404
    assert (await here.ask("GET", "/api/have/nonsense")).status == 400


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 422, "invalid_input"),
        ({"path": ""}, 422, "invalid_input"),
        ({"path": "relative/path"}, 422, "invalid_input"),
        ({"path": "/no/such/directory"}, 404, "not_found"),
        ({"path": "/tmp", "move": "yes"}, 422, "invalid_input"),
        ({"path": "/tmp\0x"}, 422, "invalid_input"),
        ({"path": "/" + "a" * 5000}, 422, "invalid_input"),
    ],
)
async def test_paths_that_cannot_be_added(here: Running, body: object, status: int, code: str) -> None:
    reply = await here.admin("POST", "/api/add", json=body)
    assert (reply.status, reply.json["code"]) == (status, code)


async def test_a_link_is_refused(here: Running, tmp_path: Path) -> None:
    folder = model(tmp_path / "links", "links")
    (folder / "passwd").symlink_to("/etc/passwd")
    reply = await here.admin("POST", "/api/add", json={"path": str(folder)})
    assert (reply.status, reply.json["code"]) == (400, "unsafe_file")


async def test_gc_and_verify(here: Running, tmp_path: Path) -> None:
    root = (await here.node.add(model(tmp_path / "loose", "loose"))).root
    checked = (await here.admin("POST", "/api/verify", json={"ref": root})).json
    assert (checked["files_checked"], checked["corrupt"]) == (1, [])
    assert (await here.admin("POST", "/api/verify")).json["files_checked"] >= 1
    assert (await here.admin("POST", "/api/verify", json={"ref": ABSENT})).status == 404
    unpinned = (await here.admin("DELETE", f"/api/pins/{root}")).json
    assert (unpinned["root"], unpinned["pinned"]) == (root, False)
    assert (await here.admin("GET", f"/api/pins/{root}")).status == 404
    freed = (await here.admin("POST", "/api/gc")).json
    assert root in freed["models"]
    assert (await here.admin("GET", f"/api/store/{root}")).status == 404


# -- pins


async def events(here: Running, ref: str) -> list[tuple[str, dict[str, Any]]]:
    reply = await here.admin("GET", f"/api/pins/{ref}/events")
    assert reply.headers["Content-Type"].startswith("text/event-stream")
    assert reply.headers["Cache-Control"] == "no-cache"
    told = []
    for block in reply.body.decode().strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        told.append((fields["event"], json.loads(fields["data"])))
    return told


async def test_a_pin_of_what_is_here_is_done_and_can_be_watched_late(here: Running, tmp_path: Path) -> None:
    root = (await here.node.add(model(tmp_path / "pinned", "pinned"))).root
    reply = await here.admin("POST", "/api/pins", json={"ref": root, "name": "again"})
    assert reply.status == 202
    job = reply.json
    assert reply.headers["Location"] == f"/api/pins/{job['id']}"
    for ref in (job["id"], root):
        name, last = (await events(here, ref))[-1]
        assert (name, last["state"], last["root"]) == ("done", "pinned", root)
        assert last["receipt"]["bytes_fetched"] == 0
        assert (await here.admin("GET", f"/api/pins/{ref}")).json["state"] == "pinned"
    listed = (await here.admin("GET", "/api/pins")).json
    assert job["id"] in [j["id"] for j in listed["jobs"]]
    assert root in [m["root"] for m in listed["models"]]
    assert (await here.admin("GET", "/api/store/again")).json["model"]["root"] == root


async def test_a_pin_that_fails_tells_why(here: Running) -> None:
    job = (await here.admin("POST", "/api/pins", json={"ref": ABSENT})).json
    name, last = (await events(here, job["id"]))[-1]
    assert (name, last["state"]) == ("failed", "failed")
    assert last["error"]["code"] == "no_source"
    assert last["error"]["exit_code"] == 5


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 422),
        ({"ref": ""}, 422),
        ({"ref": "mock:embedding"}, 400),
        ({"ref": "hf:org/name", "source": "http://127.0.0.1:9"}, 400),
        ({"ref": "bafkreez3itiri7ghbbf6lzej7paxyxy2qznpw"}, 400),
        ({"ref": "../../etc/passwd"}, 400),
        ({"ref": "x", "announce": "yes"}, 422),
        ({"ref": "x" * 3000}, 422),
    ],
)
async def test_pins_that_cannot_be(here: Running, body: object, status: int) -> None:
    assert (await here.admin("POST", "/api/pins", json=body)).status == status


async def test_pins_that_nobody_knows(here: Running) -> None:
    for path in ("/api/pins/nobody", "/api/pins/nobody/events", f"/api/pins/{ABSENT}/x", "/api/pins/%00"):
        assert (await here.admin("GET", path)).status == 404, path


async def test_a_watcher_is_kept_awake_and_let_go_when_the_daemon_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pins, "PING_S", 0.01)
    connections: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda _, writer: connections.append(writer), "127.0.0.1", 0)
    url = f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}"
    async with running(tmp_path / "cache", gateways=(url,)) as here, silent:
        job = (await here.admin("POST", "/api/pins", json={"ref": ABSENT})).json
        headers = {"Authorization": f"Bearer {here.key}"}
        async with here.session.get(f"{here.url}/api/pins/{job['id']}/events", headers=headers) as reply:
            assert await reply.content.readline() == b"event: progress\n"
            while await reply.content.readline() != b": \n":
                pass
            _, other = await asyncio.open_connection("127.0.0.1", here.served.port)
            other.write(
                f"GET /api/pins/{job['id']}/events HTTP/1.1\r\nHost: 127.0.0.1:{here.served.port}\r\n"
                f"Authorization: Bearer {here.key}\r\n\r\n".encode()
            )
            while here.served.app[TRAFFIC].in_flight < 2:
                await reply.content.readline()
            other.transport.abort()
            while here.served.app[TRAFFIC].in_flight > 1:
                await reply.content.readline()
            here.served.app[TRAFFIC].drain()
            await reply.read()
        assert (await here.ask("GET", "/readyz")).status == 503
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    for writer in connections:
        writer.close()
        await writer.wait_closed()


# -- models in memory


async def test_load_and_unload(here: Running) -> None:
    loaded = (await here.admin("POST", "/api/loads", json={"ref": "mock:embedding", "as": "alias"})).json
    assert (loaded["implementation"], loaded["root"]) == ("MOCK", "mock:embedding")
    assert "alias" in loaded["names"]
    assert [m["root"] for m in (await here.ask("GET", "/api/loads")).json["loads"]] == ["mock:embedding"]
    assert (await here.ask("GET", "/api/loads/alias")).json["root"] == "mock:embedding"
    assert (await here.admin("DELETE", "/api/loads/alias")).json == {"unloaded": "alias"}
    assert (await here.ask("GET", "/api/loads/alias")).status == 404
    assert (await here.admin("DELETE", "/api/loads/alias")).status == 404


async def test_loads_that_cannot_be(here: Running, tmp_path: Path) -> None:
    root = (await here.node.add(model(tmp_path / "bare", "bare"))).root
    for body, status, code in (
        ({"ref": root, "device": "cuda:99"}, 422, "device_unavailable"),
        ({"ref": root, "precision": "f8"}, 422, "invalid_input"),
        ({"ref": ABSENT}, 404, "model_not_found"),
        ({"ref": "mock:nothing"}, 422, "task_unsupported"),
    ):
        reply = await here.admin("POST", "/api/loads", json=body)
        assert (reply.status, reply.json["code"]) == (status, code), body
    assert (await here.admin("POST", "/api/loads", json={"ref": root})).status == 422  # no weights


async def test_a_mock_is_never_measured(here: Running) -> None:
    reply = await here.admin("POST", "/api/benchmarks", json={"ref": "mock:embedding", "publish": False})
    assert 400 <= reply.status < 500
    assert reply.json["code"] == "mock_not_measurable"
    assert (await here.ask("GET", "/api/benchmarks")).json["benchmarks"] == []
    assert (await here.ask("GET", f"/api/benchmarks?model={ABSENT}")).json["benchmarks"] == []
    assert (await here.ask("GET", "/api/benchmarks?model=nobody")).status == 404


# -- results of others


async def test_results_and_peers(here: Running) -> None:
    async with fake_peers([telling([sealed(node_key(1), created=int(time.time()))])]) as (url,):
        assert (await here.admin("POST", "/api/peers", json={"peer": f"{url}/"})).json == {
            "peer": url,
            "trusted": False,
        }
        found = (await here.admin("GET", f"/api/results?model={MODEL}")).json
        assert (found["results"][0]["keys"], found["inquiry"]["answers"][0]["accepted"]) == (1, 1)
        assert (await here.admin("GET", "/api/peers")).json["added"] == [url]
        assert (await here.admin("DELETE", f"/api/peers/{quote(url, safe='')}")).json == {"removed": url}
    found = (await here.admin("GET", f"/api/results?model={MODEL}&ask=no")).json
    assert (found["claims"], found["inquiry"]) == (1, None)
    (told,) = (await here.ask("GET", f"/api/benchmarks?model={MODEL}")).json["benchmarks"]
    assert told["seen"]
    assert told["envelope"]
    for query, status in (
        ("", 400), ("?model=nobody", 404), (f"?model={MODEL}&hardware=mine", 400), (f"?model={MODEL}&ask=1", 400),
        (f"?model={MODEL}&peer=ftp://a", 400), (f"?model={MODEL}" + "&peer=http://a" * 65, 400),
    ):  # fmt: skip
        assert (await here.admin("GET", f"/api/results{query}")).status == status, query
    assert (await here.admin("POST", "/api/peers", json={"peer": "nobody"})).status == 400
    assert (await here.admin("POST", "/api/revocation", json={})).status == 503  # no Kubo that could tell anybody


async def test_results_of_a_commit_whose_root_a_map_says(here: Running, tmp_path: Path) -> None:
    (folder := tmp_path / "claimed").mkdir()
    (folder / "config.json").write_text('{"claimed": true}')
    plan = hash_directory(folder).plan
    (file,) = plan.files
    now = int(time.time())
    oid = hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
    mapped = (MappedFile("config.json", file.size, oid, file.cid),)
    made = HubMap("model", "org/claimed", "c" * 40, plan.root, mapped, now, now + LIFETIME_S, 1)
    here.node.maps.claims.maps.take(Parcel.of(seal_map(made, node_key(3))), HubRepo("org/claimed"), "c" * 40)
    found = await here.admin("GET", f"/api/results?model=hf:org/claimed@{'c' * 40}")
    assert found.json["model"] == str(plan.root)
    for ref in ("hf:org/nobody", f"hf:org/claimed@{'c' * 40}&ask=no"):
        assert (await here.admin("GET", f"/api/results?model={ref}")).status == 404


# -- keys


async def test_keys_are_made_shown_once_and_removed(here: Running) -> None:
    made = await here.admin("POST", "/api/keys", json={"scopes": ["admin"], "name": "laptop"})
    assert made.status == 201
    assert made.headers["Cache-Control"] == "no-store"
    secret = made.json["key"]
    assert (await here.ask("GET", "/api/store", key=secret)).status == 200
    listed = await here.admin("GET", "/api/keys")
    assert made.json["id"] in [k["id"] for k in listed.json["keys"]]
    assert secret.encode() not in listed.body
    assert b"sha256" not in listed.body
    assert (await here.admin("DELETE", f"/api/keys/{made.json['id']}")).json == {"removed": made.json["id"]}
    assert (await here.ask("GET", "/api/store", key=secret)).status == 401
    assert (await here.admin("DELETE", f"/api/keys/{made.json['id']}")).status == 404
    for scopes in ([], ["root"], "admin", [1]):
        assert (await here.admin("POST", "/api/keys", json={"scopes": scopes})).status == 422
