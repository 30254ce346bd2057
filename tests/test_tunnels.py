"""Nodes that know each other by PeerID only, over real Kubo daemons: in by the peers' door, out by tunnels."""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ipfs_accelerate_node.api import app as user_app
from ipfs_accelerate_node.api import peers_app
from ipfs_accelerate_node.peers.protocol import PROTOCOL
from ipfs_accelerate_node.records.key import NodeKey
from ipfs_accelerate_node.records.request import Asked, sign
from ipfs_accelerate_node.store import Provenance, Store
from ipfs_accelerate_node.store.ingest import ingest
from tests.support.kubo import KuboDaemon
from tests.support.node import NodeProcess
from tests.support.tunnels import STREAMS, await_door, await_standing, mounts, reply, way_to

pytestmark = [pytest.mark.kubo, pytest.mark.timeout(120)]

MIB = 1 << 20
ASKER = NodeKey(b"asker" + bytes(27))


def model(folder: Path, size: int = 3 * MIB) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "weights.bin").write_bytes(random.Random(folder.name).randbytes(size))
    return folder


def node(folder: Path, name: str, *arguments: str) -> NodeProcess:
    (cache := folder / name).mkdir(mode=0o700, exist_ok=True)
    return NodeProcess(cache, *arguments)


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KuboDaemon]:
    """A third daemon that both nodes know, and from which a stranger dials."""
    with KuboDaemon(tmp_path_factory.mktemp("router") / "repo", config=STREAMS) as router:
        yield router


@dataclass(frozen=True, slots=True)
class Two:
    """a has the public model (announced) and a private one; b has nothing. port: the stranger's way to a."""

    a: NodeProcess
    b: NodeProcess
    a_id: str
    public: str
    private: str
    port: int


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, router: KuboDaemon) -> Iterator[Two]:
    folder = tmp_path_factory.mktemp("nodes")
    private = stored_privately(folder / "a", model(folder / "gated"))
    managed = ("--kubo", "managed", "--bootstrap", router.addr)
    with node(folder, "a", *managed) as a, node(folder, "b", *managed) as b:
        a.wait_for_kubo()
        b.wait_for_kubo()
        a_id = a.request("GET", "/api/peer")["peer_id"]
        public = a.json("add", str(model(folder / "open")), "--announce")["root"]
        port = way_to(router, a_id)
        await_door(port)
        yield Two(a, b, a_id, public, private, port)


def stored_privately(cache: Path, folder: Path) -> str:
    """As the mirror of a gated repository is."""
    cache.mkdir(mode=0o700)
    store = Store.open(cache)
    try:
        provenance = Provenance(kind="hf", reference="org/gated", at="2026-01-01T00:00:00+00:00")
        return str(ingest(store, folder, name="gated", public=False, provenance=provenance).model.root)
    finally:
        store.close()


def test_who_is_behind_the_door(two: Two) -> None:
    told = await_door(two.port)
    assert (told["peer_id"], told["dial"]) == (two.a_id, two.a_id)  # one identity: the managed Kubo has the node's key


@pytest.mark.parametrize("with_key", [False, True], ids=["without key", "with the admin key"])
def test_every_route_but_the_peers_own_is_404(two: Two, with_key: bool) -> None:
    own = {(route.method, route.path) for route in peers_app.ROUTES}
    headers = {"Authorization": f"Bearer {two.a.key}"} if with_key else {}
    tried = 0
    for route in user_app.ROUTES:
        if (route.method, route.path) in own:
            continue
        path = re.sub(r"\{[^}]*\}", two.public, route.path)
        method = "OPTIONS" if route.method == "*" else route.method
        assert reply(two.port, method, path, headers)[0] == 404, f"{method} {path}"
        tried += 1
    assert tried > 20
    assert reply(two.port, "GET", f"/api/have/{two.public}", headers)[0] == 200


def test_a_private_model_is_not_to_be_had(two: Two) -> None:
    admin = {"Authorization": f"Bearer {two.a.key}"}
    for path in (f"/ipfs/{two.private}", f"/ipfs/{two.private}?format=car", f"/api/have/{two.private}"):
        assert reply(two.port, "GET", path, admin)[0] == 404
    assert two.a.request("GET", f"/api/have/{two.private}")["complete"]  # at home its owner has it
    failed = two.b.cli("pin", two.private, "--source", two.a_id, check=False)
    assert failed.returncode == 5, failed.stderr


def test_signed_requests_through_the_tunnel(two: Two) -> None:
    path = f"/api/have/{two.public}"
    asked = Asked("GET", path)
    headers = sign(ASKER, asked, to=two.a_id, now=time.time())
    assert reply(two.port, "GET", path, headers)[0] == 200
    for wrong, code in (
        (headers, "request_replayed"),
        (sign(ASKER, asked, to=ASKER.peer_id, now=time.time()), "bad_signature"),
        (sign(ASKER, asked, to=two.a_id, now=time.time() - 400), "request_stale"),
    ):
        status, body = reply(two.port, "GET", path, wrong)
        assert (status, json.loads(body)["code"]) == (401, code)


def test_a_pin_from_a_peer_by_its_peer_id(two: Two) -> None:
    pinned = two.b.json("pin", two.public, "--source", two.a_id)
    (source,) = pinned["sources"]
    assert (source["source"], source["kind"], source["rejected"]) == (f"peer:{two.a_id}", "peer", 0)
    assert source["bytes"] >= pinned["bytes_total"]
    assert two.b.json("verify")["corrupt"] == []


def test_a_pin_by_cid_alone_finds_the_node_and_its_ranges_carry_most(two: Two, tmp_path: Path) -> None:
    root = two.a.json("add", str(model(tmp_path / "big", 64 * MIB)), "--announce")["root"]
    pinned = two.b.json("pin", root)
    bytes_of = {source["source"]: source["bytes"] for source in pinned["sources"]}
    assert bytes_of[f"peer:{two.a_id}"] > 0.5 * pinned["bytes_total"], bytes_of
    assert sum(bytes_of.values()) < 1.2 * pinned["bytes_total"]
    listed = two.b.request("GET", "/api/peers")
    assert [tunnel["node"] for tunnel in listed["tunnels"]] == [two.a_id]
    assert (listed["door"]["state"], listed["dial"]) == ("open", listed["peer_id"])
    assert two.b.json("verify")["corrupt"] == []


def test_a_peer_of_the_configuration_by_its_peer_id(two: Two, router: KuboDaemon, tmp_path: Path) -> None:
    """Found by nobody, as it was not announced: only the peer that is configured is asked for it."""
    (quiet := tmp_path / "quiet").mkdir()
    (quiet / "x").write_text("not announced")
    root = two.a.json("add", str(quiet))["root"]
    settings = ("--kubo", "managed", "--bootstrap", router.addr, "--peer", f"/p2p/{two.a_id}")
    with node(tmp_path, "e", *settings) as e:
        e.wait_for_kubo()
        assert two.a_id in e.request("GET", "/api/peers")["configured"]
        pinned = e.json("pin", root)
        assert f"peer:{two.a_id}" in [source["source"] for source in pinned["sources"] if source["bytes"]]


def test_a_peer_that_nobody_can_find(two: Two, tmp_path: Path) -> None:
    absent = NodeKey(b"absent" + bytes(26)).peer_id
    (other := tmp_path / "other").mkdir()
    (other / "x").write_text("x")
    root = two.a.json("add", str(other))["root"]
    failed = two.b.cli("pin", root, "--source", absent, "--json", check=False)
    assert failed.returncode == 5
    assert "peer_unreachable" in failed.stdout + failed.stderr


def test_the_door_is_there_again_after_kubo_was_killed(two: Two) -> None:
    child = json.loads((two.a.cache / "kubo" / "node-child.json").read_text())["pid"]
    os.kill(child, signal.SIGKILL)
    two.a.wait_for_kubo()
    assert await_door(two.port)["peer_id"] == two.a_id


def test_an_external_kubo_has_another_identity_and_is_left_as_it_was(
    tmp_path: Path, router: KuboDaemon, two: Two
) -> None:
    with KuboDaemon(tmp_path / "kubo" / "repo", config=STREAMS, bootstrap=[router.addr]) as kubo:
        router.cli("swarm", "connect", kubo.addr)
        settings = ("--kubo", kubo.api_url)
        with node(tmp_path, "c", *settings) as c:
            c.wait_for_kubo()
            port = way_to(router, kubo.peer_id)
            told = await_door(port)
            assert told["dial"] == kubo.peer_id
            assert told["peer_id"] == c.request("GET", "/api/peer")["peer_id"] != kubo.peer_id
            root = c.json("add", str(model(tmp_path / "theirs")))["root"]
            pinned = two.b.json("pin", root, "--source", kubo.peer_id)
            assert pinned["sources"][0]["source"] == f"peer:{kubo.peer_id}"
            left = mounts(kubo)
            c.kill()
        assert mounts(kubo) == left  # leads to a port where nobody listens any more, until the next start
        with node(tmp_path, "c", *settings) as c:
            c.wait_for_kubo()
            assert await_door(port)["peer_id"] == told["peer_id"]
            assert len(mounts(kubo)) == 1
            assert c.stop() == 0
        assert mounts(kubo) == []


def test_what_a_mount_leads_to_that_is_no_door_is_closed(tmp_path: Path, router: KuboDaemon, two: Two) -> None:
    """Such as our own other listener, where it got the port that a crashed run had for its door."""
    with KuboDaemon(tmp_path / "kubo" / "repo", config=STREAMS, bootstrap=[router.addr]) as kubo:
        wrong = f"/ip4/127.0.0.1/tcp/{two.a.url.rpartition(':')[2]}"
        kubo.cli("p2p", "listen", PROTOCOL, wrong)
        with node(tmp_path, "f", "--kubo", kubo.api_url) as f, node(tmp_path, "g", "--kubo", kubo.api_url) as g:
            await_standing(f, "open")
            (mount,) = mounts(kubo)
            assert mount["target"] != wrong
            await_standing(g, "waiting", "another node has this Kubo's door")  # one Kubo has one door, and f keeps it
            assert mounts(kubo) == [mount]


def test_a_kubo_that_mounts_no_streams_is_told(tmp_path: Path) -> None:
    with KuboDaemon(tmp_path / "kubo" / "repo") as kubo, node(tmp_path, "h", "--kubo", kubo.api_url) as h:
        await_standing(h, "waiting", "not enabled")


def test_without_tunnels_there_is_no_door(tmp_path: Path, router: KuboDaemon) -> None:
    with node(tmp_path, "d", "--kubo", "managed", "--bootstrap", router.addr, "--no-tunnels") as d:
        d.wait_for_kubo()
        port = way_to(router, d.request("GET", "/api/peer")["peer_id"])
        with pytest.raises((OSError, http.client.HTTPException)):
            reply(port, "GET", "/api/peer")
        secret = json.loads((d.cache / "kubo" / "config").read_text())["API"]["Authorizations"]["node"]
        assert not [path for path in secret["AllowedPaths"] if "p2p" in path or "swarm" in path]
