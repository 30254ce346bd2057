"""`import-hf-cache` of snapshots that a client fetched in part, of hidden files, and of what only the cache says."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ipfs_accelerate_node.fetch.hf_cache.layout import encode_tree
from ipfs_accelerate_node.sources.hub_names import HubRepo
from tests.support.hf_cache import client, client_cache, entries
from tests.support.hub import FakeHub, oid
from tests.support.running import Running, running

pytestmark = pytest.mark.timeout(120)

FILES = {
    ".gitattributes": b"*.safetensors filter=lfs\n",
    "config.json": b'{"a": 1}',
    "copy.json": b'{"a": 1}',
    "model.safetensors": bytes(range(256)) * 20_000,
    "sub/notes.txt": b"notes",
}
SHOWN = {path: content for path, content in FILES.items() if not path.startswith(".")}
ONE = """
import json
from huggingface_hub import hf_hub_download
print(json.dumps(hf_hub_download("org/open", "model.safetensors")))
"""


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    async with FakeHub(one_origin=True) as fake:
        fake.repo("org/open", FILES)
        yield fake


async def imported(node: Running, folder: Path, ref: str | None = None) -> list[dict[str, Any]]:
    reply = await node.admin("POST", "/api/import-hf-cache", json={"cache_dir": str(folder), "ref": ref})
    assert reply.status == 200, reply.body
    found: list[dict[str, Any]] = reply.json["imported"]
    return found


async def pinned(node: Running, ref: str) -> Any:
    job = node.node.pin_job((await node.admin("POST", "/api/pins", json={"ref": ref})).json["id"])
    assert job is not None
    async for state in node.node.updates(job):
        job = state
    assert job.state == "pinned", job
    return job.receipt


def fetched(hub: FakeHub) -> set[str]:
    return {seen.path.partition("/resolve/")[2].partition("/")[2] for seen in hub.seen if "/resolve/" in seen.path}


def without(snapshot: Path, *paths: str) -> None:
    for path in paths:
        (snapshot / path).unlink()


async def test_one_file_that_a_real_client_fetched_is_not_fetched_again(
    cache: Path, hub: FakeHub, tmp_path: Path
) -> None:
    sha, folder = hub.repos["org/open"].refs["main"], tmp_path / "hf"
    (tmp_path / "endpoint").mkdir(mode=0o700)
    async with running(tmp_path / "endpoint", hf_upstream=hub.url) as node:
        await client(ONE, cache=folder, home=tmp_path / "home", HF_ENDPOINT=node.url)
    async with running(cache, hf_upstream=hub.url) as node:
        (done,) = await imported(node, folder)
        assert (done["outcome"], done["root"], done["files"]) == ("incomplete", None, 1)
        assert (done["copied_bytes"], done["public"]) == (len(FILES["model.safetensors"]), False)
        assert sorted(done["absent"]) == ["config.json", "copy.json", "sub/notes.txt"]
        assert node.node.models() == []
        (again,) = await imported(node, folder)
        assert (again["outcome"], again["copied_bytes"], again["files"]) == ("incomplete", 0, 1)
        hub.seen.clear()
        receipt = await pinned(node, "hf:org/open")
        assert fetched(hub) == {"config.json", "sub/notes.txt"} or fetched(hub) == {"copy.json", "sub/notes.txt"}
        (model,) = node.node.models()
        assert (str(model.root), model.public, model.provenance.hub_commit) == (receipt.root, True, sha)
    (tmp_path / "other").mkdir(mode=0o700)
    async with running(tmp_path / "other", hf_upstream=hub.url) as node:
        assert (await pinned(node, "hf:org/open")).root == receipt.root


async def test_the_tree_that_the_client_noted_will_do_while_the_hub_is_away(
    cache: Path, hub: FakeHub, tmp_path: Path
) -> None:
    """What is taken is private; the pin, for which the Hub confirms the commit, uses it."""
    sha = hub.repos["org/open"].refs["main"]
    without(client_cache(tmp_path / "hf", "org/open", sha, FILES), "sub/notes.txt", ".gitattributes")
    async with running(cache, hf_upstream=hub.url, hf_offline=True) as node:
        (done,) = await imported(node, tmp_path / "hf")
        assert (done["outcome"], done["files"], done["absent"]) == ("incomplete", 3, ["sub/notes.txt"])
        for content in SHOWN.values():
            stored = node.node.store.of_oid(bytes.fromhex(oid("model.safetensors", content)), len(content))
            assert stored is None or not stored.public
    async with running(cache, hf_upstream=hub.url) as node:
        await pinned(node, "hf:org/open")
        assert fetched(hub) == {"sub/notes.txt"}
        (model,) = node.node.models()
        assert (model.public, model.complete) == (True, True)


async def test_where_the_cids_of_all_are_known_it_is_the_commits_incomplete_model(
    cache: Path, hub: FakeHub, tmp_path: Path
) -> None:
    sha = hub.repos["org/open"].refs["main"]
    without(client_cache(tmp_path / "hf", "org/open", sha, FILES), "model.safetensors")
    async with running(cache, hf_upstream=hub.url) as node:
        root = (await pinned(node, "hf:org/open")).root
        await node.admin("DELETE", "/api/pins/hf:org/open")
        await node.admin("DELETE", "/api/store/hf:org/open")
        assert node.node.models() == []
        (done,) = await imported(node, tmp_path / "hf")
        assert (done["outcome"], done["root"], done["absent"]) == ("incomplete", root, ["model.safetensors"])
        (model,) = node.node.models()
        assert (model.complete, model.absent_files, model.public) == (False, 1, True)
        hub.seen.clear()
        assert (await pinned(node, "hf:org/open")).root == root
        assert fetched(hub) == {"model.safetensors"}
        (model,) = node.node.models()
        assert model.complete


async def test_what_the_store_has_of_that_commit_completes_it(cache: Path, hub: FakeHub, tmp_path: Path) -> None:
    sha = hub.repos["org/open"].refs["main"]
    without(client_cache(tmp_path / "hf", "org/open", sha, FILES), "sub/notes.txt")
    async with running(cache, hf_upstream=hub.url) as node:
        assert (await node.ask("GET", f"/org/open/resolve/{sha}/sub/notes.txt")).status == 200
        (done,) = await imported(node, tmp_path / "hf")
        assert (done["outcome"], done["absent"], done["files"]) == ("stored", [], len(SHOWN))


async def test_what_is_private_here_does_not_become_public_because_a_commit_names_it(
    cache: Path, hub: FakeHub, tmp_path: Path
) -> None:
    """A public commit lists the oid of a file that is in a private model only; its cache entry leads to nothing."""
    sha = hub.repos["org/open"].refs["main"]
    client_cache(tmp_path / "private", "org/mine", "a" * 40, {"model.safetensors": FILES["model.safetensors"]})
    snapshot = client_cache(tmp_path / "hf", "org/open", sha, FILES)
    (snapshot / "model.safetensors").resolve().unlink()
    async with running(cache, hf_upstream=hub.url) as node:
        (mine,) = await imported(node, tmp_path / "private")
        assert (mine["outcome"], mine["public"]) == ("stored", False)
        (done,) = await imported(node, tmp_path / "hf")
        assert (done["outcome"], [why["path"] for why in done["refused"]]) == ("refused", ["model.safetensors"])
        stored = node.node.store.of_oid(bytes.fromhex(oid("model.safetensors", FILES["model.safetensors"])), 5_120_000)
        assert stored is not None
        assert not stored.public


async def test_a_cache_that_lies_about_a_commit_makes_no_pin_believe_it(
    cache: Path, hub: FakeHub, tmp_path: Path
) -> None:
    """Its tree and files agree with each other, and are not what the Hub has there."""
    sha = hub.repos["org/open"].refs["main"]
    other = {**FILES, "config.json": b'{"a": 2}'}
    client_cache(tmp_path / "hf", "org/open", sha, other)
    async with running(cache, hf_upstream=hub.url, hf_offline=True) as node:
        (lied,) = await imported(node, tmp_path / "hf")
        assert (lied["outcome"], lied["public"]) == ("stored", False)
        (model,) = node.node.models()
        assert (model.provenance.hub_commit, model.provenance.claimed_commit) == (None, sha)
        assert "as huggingface cache claims" in model.provenance.reference
        assert node.node.find(f"hf:org/open@{sha}").root == model.root  # named as what it is said to be, for its user
    async with running(cache, hf_upstream=hub.url) as node:
        root = (await pinned(node, f"hf:org/open@{sha}")).root
        assert root != lied["root"]
        assert (await node.ask("GET", f"/ipfs/{root}/config.json")).body == FILES["config.json"]
        assert node.node.find(f"hf:org/open@{sha}").root == node.node.find(root).root
    (tmp_path / "other").mkdir(mode=0o700)
    async with running(tmp_path / "other", hf_upstream=hub.url) as node:
        assert (await pinned(node, "hf:org/open")).root == root


async def test_an_unconfirmed_import_that_is_shared_has_no_map_until_the_hub_says_what_it_is(
    cache: Path, hub: FakeHub, tmp_path: Path
) -> None:
    sha = hub.repos["org/open"].refs["main"]
    client_cache(tmp_path / "hf", "org/open", sha, FILES)
    asked = f"/api/maps?repo=org/open@{sha}"
    async with running(cache, hf_upstream=hub.url, hf_offline=True) as node:
        (done,) = await imported(node, tmp_path / "hf")
        shared = (await node.admin("POST", "/api/share", json={"ref": "hf:org/open"})).json
        assert shared["public"]
        assert "never confirmed" in shared["warning"]
        assert (await node.ask("GET", f"/ipfs/{done['root']}/config.json")).status == 200
        assert (await node.ask("GET", asked)).status == 404
        published = await node.admin("POST", "/api/maps", json={"ref": "hf:org/open", "publish": False})
        assert published.status == 404
        assert node.node.maps.maker.maps.own(HubRepo("org/open"), sha) is None
    async with running(cache, hf_upstream=hub.url) as node:
        await pinned(node, "hf:org/open")
        assert fetched(hub) == set()
        told = (await node.ask("GET", asked)).json
        assert (told["commit"], len(told["maps"])) == (sha, 1)
        (model,) = node.node.models()
        assert (model.provenance.hub_commit, model.provenance.claimed_commit) == (sha, None)
        assert (await node.admin("POST", "/api/audit", json={"ref": "hf:org/open"})).json["outcome"] == "confirmed"


async def test_a_pin_that_the_hub_confirms_makes_an_import_public(cache: Path, hub: FakeHub, tmp_path: Path) -> None:
    client_cache(tmp_path / "hf", "org/open", hub.repos["org/open"].refs["main"], FILES)
    async with running(cache, hf_upstream=hub.url, hf_offline=True) as node:
        (done,) = await imported(node, tmp_path / "hf")
        assert (await node.ask("GET", f"/ipfs/{done['root']}")).status == 404
    async with running(cache, hf_upstream=hub.url) as node:
        assert (await pinned(node, "hf:org/open")).root == done["root"]
        assert (await node.ask("GET", f"/ipfs/{done['root']}")).status == 200


async def test_a_cache_convicts_no_peer(cache: Path, hub: FakeHub, tmp_path: Path) -> None:
    """Its tree is not the Hub's, so a peer's true map that differs from it is not thrown away."""
    sha = hub.repos["org/open"].refs["main"]
    without(client_cache(tmp_path / "hf", "org/open", sha, FILES | {"config.json": b"other"}), "sub/notes.txt")
    (tmp_path / "a").mkdir(mode=0o700)
    async with running(tmp_path / "a", hf_upstream=hub.url) as peer:
        root = (await pinned(peer, "hf:org/open")).root
        async with running(cache, hf_offline=True, peers=(peer.url,)) as node:
            await imported(node, tmp_path / "hf")
            claim = await node.node.maps.claims.ask(HubRepo("org/open"), sha)
            assert claim is not None
            assert claim.root == root
            assert node.node.maps.claims.maps.refuted() == {}


# hidden files


async def test_hidden_files_that_were_seen_make_a_hydrated_snapshot_whole(
    cache: Path, hub: FakeHub, tmp_path: Path
) -> None:
    """Imported from a client's cache; after the original is gone, all of it is written again, its tree too, and the
    client's own tools find nothing lacking."""
    sha = hub.repos["org/open"].refs["main"]
    client_cache(tmp_path / "hf", "org/open", sha, FILES)
    (new := tmp_path / "new").mkdir()
    async with running(cache, hf_upstream=hub.url) as node:
        (done,) = await imported(node, tmp_path / "hf")
        await node.admin("POST", "/api/gc")
        body = {"ref": "hf:org/open", "cache_dir": str(new)}
        written = (await node.admin("POST", "/api/hydrate", json=body)).json
    assert (written["absent"], written["root"]) == ([], done["root"])
    home = new / "models--org--open"
    assert (home / "snapshots" / sha / ".gitattributes").read_bytes() == FILES[".gitattributes"]
    assert json.loads((home / "trees" / f"{sha}.json").read_bytes())["files"].keys() == FILES.keys()
    assert not [path for path in (home / "blobs").iterdir() if path.stat().st_mode & 0o222]
    hf = Path(sys.executable).with_name("hf")
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "HF_HUB_CACHE": str(new)}
    command = [str(hf), "cache", "verify", "org/open", "--fail-on-missing-files", "--fail-on-extra-files"]
    environment |= {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_TELEMETRY": "1"}

    def verify() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    told = await asyncio.to_thread(verify)
    assert told.returncode == 0, told.stdout + told.stderr


async def test_a_hidden_file_that_a_client_asked_for_is_there_offline_and_after_a_gc(cache: Path, hub: FakeHub) -> None:
    sha = hub.repos["org/open"].refs["main"]
    path = f"/org/open/resolve/{sha}/.gitattributes"
    async with running(cache, hf_upstream=hub.url) as node:
        assert (await node.ask("GET", path)).body == FILES[".gitattributes"]
        await node.admin("POST", "/api/gc")
    async with running(cache, hf_upstream=hub.url, hf_offline=True) as node:
        assert (await node.ask("GET", path)).body == FILES[".gitattributes"]
        listed = (await node.ask("GET", f"/api/models/org/open/tree/{sha}")).json
        assert ".gitattributes" in [line["path"] for line in listed]


async def test_a_hidden_file_that_went_bad_or_is_too_large_is_not_written(cache: Path, tmp_path: Path) -> None:
    large = {**SHOWN, ".large": bytes(70_000), ".small": b"small"}
    client_cache(tmp_path / "hf", "org/m", "a" * 40, large)
    (new := tmp_path / "new").mkdir()
    async with running(cache, hf_offline=True) as node:
        await imported(node, tmp_path / "hf")
        (kept,) = (cache / "hub" / "hidden").iterdir()
        assert kept.name == oid(".small", b"small")
        kept.chmod(0o600)
        kept.write_bytes(b"SMALL")
        body = {"ref": "hf:org/m", "cache_dir": str(new)}
        written = (await node.admin("POST", "/api/hydrate", json=body)).json
    assert sorted(written["absent"]) == [".large", ".small"]
    assert not (new / "models--org--m" / "trees").exists()
    assert not kept.exists()


def test_a_tree_file_lists_hidden_files_too() -> None:
    assert b".gitattributes" in encode_tree(entries(FILES))
