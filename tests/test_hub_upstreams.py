"""What may be an upstream: the Hub, a mirror that redirects within a private network, another node, never oneself."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import BadRequest
from ipfs_accelerate_node.fetch.pins import Wish
from ipfs_accelerate_node.sources.hub_hops import HOP_HEADER, MAX_NODES, goes_round, on_behalf, onward, read_hops
from tests.support.hub import FakeHub
from tests.support.node import NodeProcess
from tests.support.running import Running, running

pytestmark = pytest.mark.timeout(120)
TOKEN = "hf_canaryCanaryCanary"
FILES = {
    ".gitattributes": b"hidden",
    "config.json": b"{}",
    "model.safetensors": bytes(range(256)) * 9000,
    "sub/notes.txt": b"notes",
}


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    async with FakeHub([TOKEN]) as fake:
        fake.repo("org/open", FILES)
        yield fake


@asynccontextmanager
async def named(tmp_path: Path, name: str, upstream: str, **settings: object) -> AsyncIterator[Running]:
    (cache := tmp_path / name).mkdir(mode=0o700)
    async with running(cache, hf_upstream=upstream, **settings) as node:
        yield node


async def pinned(node: Running, ref: str = "hf:org/open") -> dict[str, bytes]:
    here = node.node
    root = await here._pins.bring(ref, here.catalogue.meant, Wish())
    model = here.store.model(Cid.parse(root))
    assert model is not None
    found = (path for path in model.path.rglob("*") if path.is_file())
    return {path.relative_to(model.path).as_posix(): path.read_bytes() for path in found}


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


VISIBLE = {path: content for path, content in FILES.items() if not path.startswith(".")}


async def test_a_node_is_another_nodes_upstream(tmp_path: Path, hub: FakeHub) -> None:
    async with (
        named(tmp_path, "a", hub.url, hf_redirect_origins=(hub.cdn,)) as a,
        named(tmp_path, "b", a.url) as b,
        named(tmp_path, "c", b.url) as c,
    ):
        assert await pinned(b) == VISIBLE
        assert (await c.ask("GET", "/org/open/resolve/main/.gitattributes")).body == b"hidden"
        assert await pinned(c) == VISIBLE
        (mine,) = {model.root for node in (b, c) for model in node.node.models()}
        kept = {str(model.root) for model in a.node.models()}
        assert kept == {str(mine)}  # as its endpoint was asked for every file
    chains = {request.headers[HOP_HEADER] for request in hub.asked("hub")}
    assert {chain.count(",") for chain in chains} == {1, 2}  # on behalf of b, and of c through b
    assert all(chain.split(",")[-1] == a.node.hub.hop for chain in chains)


async def test_a_loop_of_two_is_answered_508_at_once(tmp_path: Path) -> None:
    port = free_port()
    async with named(tmp_path, "a", f"http://127.0.0.1:{port}") as a:
        (cache := tmp_path / "b").mkdir(mode=0o700)

        def asked() -> tuple[int, str, str]:
            with NodeProcess(cache, "--port", str(port), "--hf-upstream", a.url) as b:
                done = b.cli("pin", "hf:org/open", check=False)
                return done.returncode, done.stderr, b.url

        looped = await asyncio.to_thread(asked)
        assert looped[0] == 5
        assert "leads back to this node" in looped[1]
        assert "hf_upstream" in looped[1]


async def test_the_client_of_a_loop_is_told_so(tmp_path: Path) -> None:
    port = free_port()
    async with named(tmp_path, "a", f"http://127.0.0.1:{port}") as a:
        (cache := tmp_path / "b").mkdir(mode=0o700)
        with NodeProcess(cache, "--port", str(port), "--hf-upstream", a.url) as b:
            assert b.url.endswith(str(port))
            for path in ("/api/models/org/open", "/org/open/resolve/main/config.json"):
                async with asyncio.timeout(20):
                    assert (await a.ask("GET", path)).status == 508


async def test_a_request_that_came_too_far_is_not_passed_on(tmp_path: Path, hub: FakeHub) -> None:
    async with named(tmp_path, "a", hub.url) as a:
        ask = a.ask
        far = ",".join(f"node{i}" for i in range(MAX_NODES))
        assert (await ask("GET", "/api/models/org/open", headers={HOP_HEADER: far})).status == 508
        assert (await ask("GET", "/api/models/org/open", headers={HOP_HEADER: "a b, <c>"})).status == 400
        assert hub.seen == []
        assert (await ask("GET", "/api/models/org/open", headers={HOP_HEADER: "1"})).status == 200
        assert {r.headers[HOP_HEADER] for r in hub.seen} == {f"1,{a.node.hub.hop}"}


def test_hops_are_read_strictly_and_passed_on_in_order() -> None:
    assert read_hops("") == read_hops("  ") == ()
    assert read_hops("a, b,c") == ("a", "b", "c")
    for bad in ("a,,b", ",", "a;b", "é", "x" * 65, "ab," * 500):
        with pytest.raises(BadRequest):
            read_hops(bad)
    assert goes_round(("a", "own"), "own")
    assert not goes_round(("a",), "own")
    with on_behalf(("a", "b")):
        assert onward("own") == ("a", "b", "own")
    assert onward("own") == ("own",)


async def test_a_private_redirect_needs_its_origin_to_be_configured(tmp_path: Path, hub: FakeHub) -> None:
    hub.repo("org/private", FILES, readers=frozenset([TOKEN]))
    async with named(tmp_path, "refused", hub.url, hf_token=TOKEN) as node:
        started = await node.admin("POST", "/api/pins", json={"ref": "hf:org/private"})
        job = node.node.pin_job(started.json["id"])
        assert job is not None
        async for state in node.node.updates(job):
            job = state
        assert job.error is not None
        assert job.error["code"] == "redirect_refused"
        assert "hf_redirect_origin" in str(job.error["detail"])
        assert hub.cdn in str(job.error["detail"])
    assert not hub.asked("cdn")
    async with named(tmp_path, "allowed", hub.url, hf_token=TOKEN, hf_redirect_origins=(hub.cdn,)) as node:
        assert await pinned(node, "hf:org/private") == VISIBLE
        hub.faults["model.safetensors"] = [f"location:{hub.other}/elsewhere"]
        await node.admin("DELETE", f"/api/store/{node.node.models()[0].root}?force=true")
        await node.admin("POST", "/api/gc")
        endpoint = await node.ask("GET", "/org/private/resolve/main/model.safetensors", key=TOKEN)
        assert endpoint.status == 503
        assert "hf_redirect_origin" in endpoint.headers["X-Error-Message"]
    assert hub.asked("cdn")
    assert not hub.asked("other")
    for request in (*hub.asked("cdn"), *hub.asked("other")):
        assert request.authorization is None
        assert TOKEN not in str(request.headers) + request.path


async def test_the_setting_has_a_flag_and_a_variable(tmp_path: Path, hub: FakeHub) -> None:
    """And what only Xet delivers is named, with what to do."""
    (cache := tmp_path / "cache").mkdir(mode=0o700)
    up = ("--hf-upstream", hub.url)

    def tried() -> None:
        with NodeProcess(cache, *up) as node:
            refused = node.cli("pin", "hf:org/open", check=False)
            assert refused.returncode == 5
            assert "hf_redirect_origin" in refused.stderr
        with NodeProcess(cache, *up, "--hf-redirect-origin", hub.cdn) as node:
            hub.faults["model.safetensors"] = ["xet-only"] * 4
            xet = node.cli("pin", "hf:org/open", check=False)
            assert xet.returncode == 5
            for words in ("Xet only", "hf download org/open", "import-hf-cache hf:org/open"):
                assert words in xet.stderr, xet.stderr
            assert node.cli("pin", "hf:org/open", "--json", check=False).returncode == 5
            hub.faults.clear()
            node.json("pin", "hf:org/open")
        wrong = NodeProcess(cache, *up, env={"IPFS_ACCELERATE_NODE_HF_REDIRECT_ORIGIN": "file:///etc"})
        with pytest.raises(AssertionError, match="hf_redirect_origin"):
            wrong.start()

    await asyncio.to_thread(tried)
