"""What a token got from a private or gated repository leaves by no way, until its user shares it; and then by all."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from ipfs_accelerate_node.api.listener import listening
from ipfs_accelerate_node.api.peers_app import build_peers_app
from ipfs_accelerate_node.api.peers_connection import Allowances
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.sources.hub_names import HubRepo
from ipfs_accelerate_node.store import Store
from ipfs_accelerate_node.store.ingest import hash_directory
from ipfs_accelerate_node.store.types import Provenance
from tests.support.gateway import small_model
from tests.support.hub import FakeHub
from tests.support.node import NodeProcess
from tests.support.running import Running, model, running
from tests.support.underway import BYTES, MODEL, cid_of, coming
from tests.test_hub_pins import offline

pytestmark = pytest.mark.timeout(120)

TOKEN, OTHER = "hf_canaryCanaryCanary", "hf_ofSomebodyElse"
FILES = {"config.json": b'{"a": 1}', "sub/notes.txt": b"notes" * 9, "model.safetensors": bytes(range(256)) * 20_000}
OPTIONS: dict[str, dict[str, Any]] = {
    "org/gated": {"gated": True, "accepted": frozenset([TOKEN])},
    "org/private": {"readers": frozenset([TOKEN])},
}


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    async with FakeHub([TOKEN, OTHER], one_origin=True) as fake:
        for repo, options in OPTIONS.items():
            fake.repo(repo, FILES, **options)
        yield fake


@asynccontextmanager
async def door(here: Running) -> AsyncIterator[str]:
    """Where a peer comes in by a tunnel."""
    allowances = Allowances()
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.setblocking(False)
        async with listening(build_peers_app(here.served.app, allowances), sock, accept=allowances.accept):
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"


async def written(folder: Path) -> Path:
    for path, content in FILES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


async def cids(tmp_path: Path) -> tuple[Cid, list[Cid]]:
    """The root that the files make, computed here; and every CID below it."""
    built = hash_directory(await written(tmp_path / "reference"))
    below = [cid for cid, _ in built.nodes]
    below += [file.cid for file in built.plan.files]
    below += [leaf.cid for file in built.plan.files for leaf in file.leaves]
    return built.plan.root, list(dict.fromkeys(below))


async def given(node: Running, peer: str, repo: str, root: Cid, below: list[Cid]) -> set[str]:
    """The requests of strangers, without a token or with another's, that were answered with content or with knowledge
    of it; on the user's listener and on the peers'."""
    sha = next(iter(node_refs(node, repo)))
    content = [f"/ipfs/{cid}{form}" for cid in below for form in ("", "?format=raw", "?format=car")]
    content += [f"/ipfs/{root}/{path}" for path in FILES]
    asked = [*content, f"/api/have/{root}", f"/api/maps?repo={repo}", f"/api/maps?repo={repo}&revision={sha}"]
    hubs = [f"/{repo}/resolve/{revision}/{path}" for revision in ("main", sha) for path in FILES]
    hubs += [f"/api/models/{repo}", f"/api/models/{repo}/tree/{sha}", f"/api/models/ipfs/{root}"]
    hubs += [f"/ipfs/{root}/resolve/main/{path}" for path in FILES]
    found: set[str] = set()
    for base in (node.url, peer):
        for path in [*asked, *hubs]:
            for headers in ({}, {"Range": "bytes=0-3"}, {"Authorization": f"Bearer {OTHER}"}):
                async with node.session.get(URL(base + path, encoded=True), headers=headers) as reply:
                    if reply.status < 400:
                        found.add(path)
                    body = await reply.read()
                    assert b"hf_" not in body
        async with node.session.head(URL(f"{base}/ipfs/{root}", encoded=True)) as reply:
            if reply.status < 400:
                found.add(f"HEAD {root}")
    return found


def node_refs(node: Running, repo: str) -> list[str]:
    return [ref.commit for ref in node.node.hub.shelf.refs(HubRepo(repo)).refs.values()]


async def pinned(node: Running, ref: str) -> None:
    job = node.node.pin_job((await node.admin("POST", "/api/pins", json={"ref": ref})).json["id"])
    assert job is not None
    async for state in node.node.updates(job):
        job = state
    assert job.state == "pinned", job


@pytest.mark.parametrize("repo", OPTIONS)
async def test_no_way_leads_to_it_before_it_is_shared_nor_after_that_is_undone(
    cache: Path, hub: FakeHub, tmp_path: Path, repo: str
) -> None:
    root, below = await cids(tmp_path)
    async with running(cache, hf_upstream=hub.url, hf_token=TOKEN) as node, door(node) as peer:
        await pinned(node, f"hf:{repo}")
        (stored,) = node.node.models()
        assert (stored.root, stored.public, stored.announce) == (root, False, False)
        assert await given(node, peer, repo, root, below) == set()
        shared = (await node.admin("POST", "/api/share", json={"ref": f"hf:{repo}"})).json
        assert (shared["root"], shared["public"], shared["repo"]) == (str(root), True, repo)
        assert "licence" in shared["warning"]
        after = await given(node, peer, repo, root, below)
        content = {f"/ipfs/{cid}?format=raw" for cid in below}
        assert after >= content | {f"/ipfs/{root}/{path}" for path in FILES} | {f"/api/have/{root}", f"HEAD {root}"}
        assert not [path for path in after if path.startswith((f"/{repo}/", f"/api/models/{repo}"))]
        undone = (await node.admin("POST", "/api/share", json={"ref": str(root), "undo": True})).json
        assert (undone["public"], undone["root"]) == (False, str(root))
        assert await given(node, peer, repo, root, below) == set()


async def test_what_is_shared_is_so_after_the_index_was_lost(cache: Path, hub: FakeHub) -> None:
    async with running(cache, hf_upstream=hub.url, hf_token=TOKEN) as node:
        await pinned(node, "hf:org/gated")
        await node.admin("POST", "/api/share", json={"ref": "hf:org/gated"})
    (cache / "index.sqlite").unlink()
    with Store.open(cache) as store:
        (stored,) = store.models()
        assert (stored.public, stored.provenance.shared_at is not None) == (True, True)
        store.share(stored.root, None)
    (cache / "index.sqlite").unlink()
    with Store.open(cache) as store:
        (stored,) = store.models()
        assert (stored.public, stored.announce, stored.provenance.shared_at) == (False, False, None)


async def test_sharing_needs_the_admin_key_and_a_model(cache: Path, hub: FakeHub) -> None:
    async with running(cache, hf_upstream=hub.url, hf_token=TOKEN) as node:
        await pinned(node, "hf:org/gated")
        assert (await node.ask("POST", "/api/share", json={"ref": "hf:org/gated"})).status == 401
        assert (await node.ask("POST", "/api/share", key=TOKEN, json={"ref": "hf:org/gated"})).status == 401
        assert (await node.admin("POST", "/api/share", json={"ref": "hf:org/absent"})).status == 404
        assert [model.public for model in node.node.models()] == [False]


@pytest.mark.parametrize("repo", OPTIONS)
async def test_nor_while_it_is_fetched(cache: Path, hub: FakeHub, tmp_path: Path, repo: str) -> None:
    """By a pin that hangs in its last file, and by a client of the endpoint that took the others."""
    root, below = await cids(tmp_path)
    async with running(cache, hf_upstream=hub.url, hf_token=TOKEN, stall_timeout_s=60) as node, door(node) as peer:
        for path in ("config.json", "sub/notes.txt"):
            assert (await node.ask("GET", f"/{repo}/resolve/main/{path}", key=TOKEN)).body == FILES[path]
        assert await given(node, peer, repo, root, below) == set()
        hub.faults["model.safetensors"] += ["stall"] * 20
        job = node.node.pin_job((await node.admin("POST", "/api/pins", json={"ref": f"hf:{repo}"})).json["id"])
        assert job is not None
        async for state in node.node.updates(job):
            if state.bytes_done > 2_000_000:
                break
        assert await given(node, peer, repo, root, below) == set()
        await node.admin("DELETE", f"/api/pins/hf:{repo}")


def stored_privately(store: Store) -> Cid:
    """w.bin of the small model, in a private one, with the CID that it has there; the rest is another file."""
    other = small_model({"w.bin": BYTES, "more.txt": b"more"})
    with coming(store, other, {"w.bin": set(range(11)), "more.txt": {0}}, public=False) as parts:
        for file in other.plan.files:
            parts[file.path].commit(file)
    provenance = Provenance(kind="hf", reference="hf:org/gated", at="2026-01-01T00:00:00+00:00")
    store.commit(other.plan, other.nodes.items(), public=False, provenance=provenance)
    assert cid_of("w.bin") == cid_of("w.bin", other)
    return other.root


def bits(store: Store, *, public_only: bool) -> dict[str, int]:
    have = store.underway.have(MODEL.root, public_only=public_only)
    assert have is not None
    return {file.path: int.from_bytes(file.bitmap, "little") for file in have.files}


def test_a_public_fetch_tells_nobody_that_a_private_model_has_a_file(tmp_path: Path) -> None:
    file = next(file for file in MODEL.plan.files if file.path == "w.bin")
    with Store.open(tmp_path / "cache") as store:
        root = stored_privately(store)
        with coming(store, MODEL, {"w.bin": set(), "config.json": {0}, "sub/v.bin": set()}):
            assert bits(store, public_only=True) == {"w.bin": 0, "config.json": 1, "sub/v.bin": 0}
            assert bits(store, public_only=False)["w.bin"] == (1 << 11) - 1
            assert store.underway.file(file.cid, public_only=True) is None
            for leaf in file.leaves:
                assert store.underway.block(leaf.cid, public_only=True) is None
                assert store.underway.block(leaf.cid, public_only=False) == MODEL.leaves[leaf.cid.canonical]
            store.share(root, "2026-01-02T00:00:00+00:00")
            assert bits(store, public_only=True)["w.bin"] == (1 << 11) - 1
            assert store.underway.block(file.leaves[0].cid, public_only=True) is not None


def test_nor_what_a_private_fetch_brings_meanwhile(tmp_path: Path) -> None:
    other = small_model({"w.bin": BYTES, "more.txt": b"more"})
    with (
        Store.open(tmp_path / "cache") as store,
        coming(store, other, {"w.bin": {1, 2}, "more.txt": set()}, public=False),
        coming(store, MODEL, {"w.bin": set(), "config.json": {0}, "sub/v.bin": set()}),
    ):
        assert bits(store, public_only=True) == {"w.bin": 0, "config.json": 1, "sub/v.bin": 0}
        assert bits(store, public_only=False)["w.bin"] == 6


def test_nor_does_an_incomplete_public_model(tmp_path: Path) -> None:
    with Store.open(tmp_path / "cache") as store:
        with coming(store, MODEL, {"w.bin": set(), "config.json": {0}, "sub/v.bin": set()}) as parts:
            parts["config.json"].commit(next(file for file in MODEL.plan.files if file.path == "config.json"))
        provenance = Provenance(kind="cid", reference=str(MODEL.root), at="2026-01-01T00:00:00+00:00")
        store.commit(MODEL.plan, MODEL.nodes.items(), provenance=provenance, paths=frozenset({"config.json"}))
        stored_privately(store)
        assert bits(store, public_only=True) == {"w.bin": 0, "config.json": 1, "sub/v.bin": 0}
        assert bits(store, public_only=False)["w.bin"] == (1 << 11) - 1


@pytest.mark.kubo
async def test_kubo_has_it_only_while_it_is_shared(tmp_path: Path, hub: FakeHub) -> None:
    """A public model holds one of its files too: that one stays in Kubo when the other is taken back."""
    root, below = await cids(tmp_path)
    both = model(tmp_path / "both", "")
    (both / "sub").mkdir()
    (both / "sub/notes.txt").write_bytes(FILES["sub/notes.txt"])
    (cache := tmp_path / "cache").mkdir(mode=0o700)

    def local(up: NodeProcess) -> set[bytes]:
        return {Cid.parse(line).multihash for line in offline(up.cache / "kubo", "refs", "local").split()}

    def shared_and_undone() -> list[set[bytes]]:
        up = NodeProcess(
            cache, "--hf-upstream", hub.url, "--kubo", "managed", "--bootstrap", "none", env={"HF_TOKEN": TOKEN}
        )
        found = []
        for step in ("pin", "share", "undo"):
            with up:
                up.wait_for_kubo()
                if step == "pin":
                    up.json("add", str(both))
                    up.json("pin", "hf:org/private")
                elif step == "share":
                    assert up.json("share", "hf:org/private")["seeded"] is True
                else:
                    assert up.json("share", "hf:org/private", "--undo")["note"] is None
            found.append(local(up))
        return found

    before, shared, undone = await asyncio.to_thread(shared_and_undone)
    built = hash_directory(both)
    hashes = {cid.multihash for cid in (root, *below)}
    common = hashes & {cid.multihash for cid in (*(f.cid for f in built.plan.files), *(cid for cid, _ in built.nodes))}
    assert len(common) == 2  # the file, and the directory that has only that
    assert hashes & before == common
    assert hashes <= shared
    assert hashes & undone == common
