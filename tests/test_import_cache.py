"""`import-hf-cache`: what the Hub's client left as models: checked, private till confirmed, not fetched."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ipfs_accelerate_node.fetch.hf_cache.layout import decode_tree, encode_tree
from ipfs_accelerate_node.sources.hub_names import HubRepo
from ipfs_accelerate_node.store import Store
from tests.support.daemon import Daemon, run_cli
from tests.support.hf_cache import client, client_cache, entries
from tests.support.hub import FakeHub, oid
from tests.support.running import Running, running

pytestmark = pytest.mark.timeout(90)

TOKEN = "hf_canaryCanaryCanary"
FILES = {
    ".gitattributes": b"*.safetensors filter=lfs\n",
    "1_Pooling/config.json": b"{}",
    "config.json": b'{"a": 1}',
    "copy.json": b'{"a": 1}',
    "empty.txt": b"",
    "model.safetensors": bytes(range(256)) * 20_000,
}
SHOWN = {path: content for path, content in FILES.items() if not path.startswith(".")}


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    async with FakeHub([TOKEN], one_origin=True) as fake:
        fake.repo("org/open", FILES)
        fake.repo("org/gated", FILES, gated=True, accepted=frozenset([TOKEN]))
        fake.repo("org/private", FILES, readers=frozenset([TOKEN]))
        yield fake


async def imported(node: Running, folder: Path, ref: str | None = None) -> list[dict[str, Any]]:
    reply = await node.admin("POST", "/api/import-hf-cache", json={"cache_dir": str(folder), "ref": ref})
    assert reply.status == 200, reply.body
    found: list[dict[str, Any]] = reply.json["imported"]
    return found


async def pinned(node: Running, ref: str) -> Any:
    job = (await node.admin("POST", "/api/pins", json={"ref": ref})).json
    found = node.node.pin_job(job["id"])
    assert found is not None
    async for state in node.node.updates(found):
        found = state
    assert found.state == "pinned", found
    return found.receipt


def marks(folder: Path) -> dict[Path, tuple[int, ...]]:
    """Everything of a file but when it was read."""
    found = {path: os.lstat(path) for path in folder.rglob("*")}
    return {path: (s.st_mode, s.st_ino, s.st_nlink, s.st_size, s.st_mtime_ns) for path, s in found.items()}


async def test_what_a_real_client_downloaded_is_a_model_and_nothing_is_fetched(
    cache: Path, hub: FakeHub, tmp_path: Path
) -> None:
    """The client's endpoint was another node."""
    sha, folder = hub.repos["org/open"].refs["main"], tmp_path / "hf"
    script = "import json; from huggingface_hub import snapshot_download as s; print(json.dumps(s('org/open')))"
    (tmp_path / "other").mkdir(mode=0o700)
    async with running(tmp_path / "other", hf_upstream=hub.url) as node:
        await client(script, cache=folder, home=tmp_path / "home", HF_ENDPOINT=node.url)
    before = marks(folder)
    hub.seen.clear()
    async with running(cache, hf_upstream=hub.url) as node:
        (done,) = await imported(node, folder)
        assert (done["repo"], done["commit"], done["outcome"], done["public"]) == ("org/open", sha, "stored", True)
        assert (done["files"], done["size_bytes"]) == (len(SHOWN), sum(map(len, SHOWN.values())))
        assert done["copied_bytes"] == sum(map(len, set(SHOWN.values())))
        receipt = await pinned(node, "hf:org/open")
        assert (receipt.root, receipt.bytes_fetched) == (done["root"], 0)
        (again,) = await imported(node, folder)
        assert (again["outcome"], again["copied_bytes"], again["root"]) == ("here", 0, done["root"])
        assert (await node.ask("GET", f"/ipfs/{done['root']}/config.json")).body == FILES["config.json"]
    assert not [seen for seen in hub.seen if "/resolve/" in seen.path]
    assert marks(folder) == before


async def test_it_is_the_root_that_a_pin_gives(cache: Path, hub: FakeHub, tmp_path: Path) -> None:
    sha = hub.repos["org/open"].refs["main"]
    client_cache(tmp_path / "hf", "org/open", sha, FILES)
    (tmp_path / "other").mkdir(mode=0o700)
    async with running(tmp_path / "other", hf_upstream=hub.url) as node:
        root = (await pinned(node, "hf:org/open")).root
    async with running(cache, hf_offline=True) as node:
        (done,) = await imported(node, tmp_path / "hf", "hf:org/open")
    assert done["root"] == root


async def test_what_the_hub_does_not_confirm_is_private_until_it_does(
    cache: Path, hub: FakeHub, tmp_path: Path
) -> None:
    sha = hub.repos["org/open"].refs["main"]
    client_cache(tmp_path / "hf", "org/open", sha, FILES)
    async with running(cache, hf_upstream=hub.url, hf_offline=True) as node:
        (done,) = await imported(node, tmp_path / "hf")
        assert (done["outcome"], done["public"]) == ("stored", False)
        assert (await node.ask("GET", f"/ipfs/{done['root']}")).status == 404
        kept = node.node.hub.shelf.commit(HubRepo("org/open"), sha)
        assert kept is not None
        assert (kept.restricted, kept.root) == (True, done["root"])
    async with running(cache, hf_upstream=hub.url) as node:
        (done,) = await imported(node, tmp_path / "hf", "org/open")
        assert (done["outcome"], done["public"], done["copied_bytes"]) == ("here", True, 0)
        assert (await node.ask("GET", f"/ipfs/{done['root']}")).status == 200


@pytest.mark.parametrize("token", [None, TOKEN])
@pytest.mark.parametrize("repo", ["org/gated", "org/private", "org/absent"])
async def test_of_restricted_repositories_it_is_private(
    cache: Path, hub: FakeHub, tmp_path: Path, repo: str, token: str | None
) -> None:
    sha = "a" * 40 if repo == "org/absent" else hub.repos[repo].refs["main"]
    client_cache(tmp_path / "hf", repo, sha, FILES)
    async with running(cache, hf_upstream=hub.url, hf_token=token) as node:
        (done,) = await imported(node, tmp_path / "hf")
        assert (done["outcome"], done["public"]) == ("stored", False)
        assert (await node.ask("GET", f"/ipfs/{done['root']}")).status == 404
        assert (await node.ask("GET", f"/api/have/{done['root']}")).status == 404


async def test_a_corrupt_file_is_named_and_refused_and_the_others_go_on(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    client_cache(folder, "org/bad", "a" * 40, FILES)
    client_cache(folder, "org/good", "b" * 40, {"config.json": b"fine"})
    blobs = folder / "models--org--bad" / "blobs"
    weights = FILES["model.safetensors"]
    (blobs / oid("model.safetensors", weights)).write_bytes(weights[:-1] + b"!")
    (blobs / oid("1_Pooling/config.json", b"{}")).write_bytes(b"{")
    async with running(cache, hf_offline=True) as node:
        bad, good = await imported(node, folder)
        assert (bad["outcome"], bad["root"], good["outcome"]) == ("refused", None, "stored")
        assert [(why["path"], why["code"]) for why in bad["refused"]] == [
            ("1_Pooling/config.json", "hash_mismatch"),
            ("model.safetensors", "hash_mismatch"),
        ]
        assert [model.provenance.hub_repo for model in node.node.models()] == ["org/good"]


async def test_a_link_to_the_wrong_blob_is_refused(cache: Path, tmp_path: Path) -> None:
    snapshot = client_cache(tmp_path / "hf", "org/m", "a" * 40, {"a.txt": b"one", "b.txt": b"two"})
    (snapshot / "a.txt").unlink()
    (snapshot / "a.txt").symlink_to("../../blobs/" + oid("b.txt", b"two"))
    async with running(cache, hf_offline=True) as node:
        (done,) = await imported(node, tmp_path / "hf")
    assert [(why["path"], why["code"]) for why in done["refused"]] == [("a.txt", "wrong_blob")]


@pytest.mark.parametrize("target", ["../../../../secret", "/etc/passwd", "a.txt", "../../blobs/absent", "../../blobs"])
async def test_no_symlink_leads_out_of_the_cache(cache: Path, tmp_path: Path, target: str) -> None:
    (tmp_path / "secret").write_bytes(b"one")
    snapshot = client_cache(tmp_path / "hf", "org/m", "a" * 40, {"a.txt": b"one", "b.txt": b"two"})
    (snapshot / "a.txt").unlink()
    (snapshot / "a.txt").symlink_to(target)
    async with running(cache, hf_offline=True) as node:
        (done,) = await imported(node, tmp_path / "hf")
        assert [why["path"] for why in done["refused"]] == ["a.txt"]
        assert done["refused"][0]["code"] in ("unsafe_file", "no_file")
        assert node.node.models() == []


async def test_blobs_that_repositories_share_inside_the_cache_are_followed(cache: Path, tmp_path: Path) -> None:
    """As the client's shared store has them, by relative or absolute symlinks."""
    folder = tmp_path / "hf"
    client_cache(folder, "org/m", "a" * 40, {"a.txt": b"one", "b.txt": b"two"})
    blobs = folder / "models--org--m" / "blobs"
    (shared := folder / "blobs" / "12").mkdir(parents=True)
    for name, target in (("a.txt", "../../blobs/12/a.txt"), ("b.txt", str(shared / "b.txt"))):
        blob = blobs / oid(name, {"a.txt": b"one", "b.txt": b"two"}[name])
        blob.rename(shared / name)
        blob.symlink_to(target)
    async with running(cache, hf_offline=True) as node:
        (done,) = await imported(node, folder)
    assert (done["outcome"], done["files"]) == ("stored", 2)


async def test_a_cache_without_symlinks(cache: Path, tmp_path: Path) -> None:
    snapshot = client_cache(tmp_path / "hf", "org/m", "a" * 40, SHOWN)
    for path in SHOWN:
        blob = (snapshot / path).resolve()
        content = blob.read_bytes()
        (snapshot / path).unlink()
        (snapshot / path).write_bytes(content)
    async with running(cache, hf_offline=True) as node:
        (done,) = await imported(node, tmp_path / "hf")
    assert (done["outcome"], done["files"]) == ("stored", len(SHOWN))


async def test_what_is_not_whole_is_named_and_left(cache: Path, hub: FakeHub, tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    snapshot = client_cache(folder, "org/part", "a" * 40, FILES)
    (snapshot / "config.json").unlink()
    client_cache(folder, "org/unknown", "b" * 40, SHOWN, tree=False)
    client_cache(folder, "org/torn", "c" * 40, SHOWN)
    (folder / "models--org--torn/trees" / f"{'c' * 40}.json").write_bytes(b'{"format_version": 1, "files"')
    (folder / "datasets--org--rows" / "snapshots" / ("d" * 40)).mkdir(parents=True)
    (folder / "models--org--empty").mkdir()
    (folder / "not-a-repository").mkdir()
    async with running(cache, hf_offline=True) as node:
        found = {done["repo"]: done for done in await imported(node, folder)}
        assert {repo: done["outcome"] for repo, done in found.items()} == {
            "datasets/org/rows": "incomplete", "org/part": "incomplete", "org/torn": "incomplete",
            "org/unknown": "incomplete",
        }  # fmt: skip
        assert found["org/part"]["absent"] == ["config.json"]
        assert found["org/torn"]["refused"][0]["code"] == "no_tree"
        assert node.node.models() == []
    # the Hub knows which files a commit has
    sha = hub.repos["org/open"].refs["main"]
    client_cache(tmp_path / "other", "org/open", sha, SHOWN, tree=False)
    async with running(cache, hf_upstream=hub.url) as node:
        (done,) = await imported(node, tmp_path / "other")
        assert (done["outcome"], done["public"]) == ("stored", True)


async def test_one_repository_one_revision(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    client_cache(folder, "org/m", "a" * 40, {"config.json": b"1"}, ref="main")
    client_cache(folder, "org/m", "b" * 40, {"config.json": b"2"}, ref="v2")
    client_cache(folder, "org/other", "c" * 40, {"config.json": b"3"})
    async with running(cache, hf_offline=True) as node:
        (done,) = await imported(node, folder, "hf:org/m@v2")
        assert done["commit"] == "b" * 40
        (done,) = await imported(node, folder, f"hf:org/m@{'a' * 40}")
        assert done["commit"] == "a" * 40
        assert len(await imported(node, folder, "org/m")) == 2
        for ref, status in (("hf:org/none", 404), ("hf:org/m@v3", 404), ("mock:embedding", 400)):
            body = {"cache_dir": str(folder), "ref": ref}
            assert (await node.admin("POST", "/api/import-hf-cache", json=body)).status == status, ref
        shelf = node.node.hub.shelf
        assert [shelf.ref(HubRepo("org/m"), ref) is not None for ref in ("main", "v2", "v3")] == [True, True, False]


async def test_what_does_not_fit_is_said(cache: Path, tmp_path: Path) -> None:
    client_cache(tmp_path / "hf", "org/big", "a" * 40, FILES)
    client_cache(tmp_path / "hf", "org/small", "b" * 40, {"config.json": b"fine"})
    async with running(cache, hf_offline=True, quota_bytes=100_000) as node:
        big, small = await imported(node, tmp_path / "hf")
    assert (big["outcome"], big["refused"][0]["code"]) == ("refused", "quota_exceeded")
    assert small["outcome"] == "stored"


async def test_out_of_one_cache_into_another(cache: Path, tmp_path: Path) -> None:
    """Imported, its store rebuilt from the disk, and hydrated: the same snapshot, with no word of the Hub."""
    client_cache(tmp_path / "hf", "org/m", "a" * 40, SHOWN)
    async with running(cache, hf_offline=True) as node:
        await imported(node, tmp_path / "hf")
    (cache / "index.sqlite").unlink()
    with Store.open(cache) as store:
        assert [model.provenance.hub_repo for model in store.models()] == ["org/m"]
    async with running(cache, hf_offline=True) as node:
        (tmp_path / "new").mkdir()
        body = {"ref": "hf:org/m", "cache_dir": str(tmp_path / "new")}
        done = (await node.admin("POST", "/api/hydrate", json=body)).json
    assert (done["commit"], done["refs"], done["absent"]) == ("a" * 40, ["main"], [])
    assert decode_tree((tmp_path / "new/models--org--m/trees" / f"{'a' * 40}.json").read_bytes()) == entries(SHOWN)


@pytest.mark.parametrize(
    "change",
    [
        {"format_version": 2},
        {"files": {"../x": {"size": 1, "blob_id": "a" * 40}}},
        {"files": {"x": {"size": -1, "blob_id": "a" * 40}}},
        {"files": {"x": {"size": 1, "blob_id": "a" * 64}}},
        {"files": {"x": {"size": 1, "blob_id": "a" * 40, "lfs_sha256": "b" * 40, "lfs_size": 1}}},
        {"files": {"x": {"size": 1, "blob_id": "a" * 40, "lfs_sha256": "b" * 64, "lfs_size": 2}}},
        {"files": {"x": {"size": "1", "blob_id": "a" * 40}}},
        {"files": {"x": {"size": 1, "blob_id": "a" * 40}, "X": {"size": 1, "blob_id": "a" * 40}}},
        {"files": []},
    ],
)
def test_a_tree_that_cannot_be_is_none(change: dict[str, object]) -> None:
    assert decode_tree(json.dumps({"format_version": 1, "files": {}} | change).encode()) is None
    assert decode_tree(encode_tree(entries(FILES))) == entries(FILES)


async def test_the_commands_say_what_was_done(tmp_path: Path) -> None:
    item = {
        "repo": "org/m", "commit": "a" * 40, "outcome": "stored", "root": "bafyroot", "files": 2, "size_bytes": 2000,
        "copied_bytes": 1000, "public": False, "absent": [], "refused": [],
    }  # fmt: skip
    why = {"path": "w.bin", "code": "hash_mismatch", "reason": "it is something else"}
    bad = {**item, "repo": "org/bad", "outcome": "refused", "root": None, "refused": [why]}
    shared = {
        "root": "bafyroot", "repo": "org/m", "public": True, "licence": "mit", "warning": "Mind the licence.",
        "seeded": True, "announced": False, "note": None,
    }  # fmt: skip
    written = {
        "repo": "org/m", "commit": "a" * 40, "root": "bafyroot", "snapshot": "/there", "files": [],
        "ways": {"hard": {"files": 2, "bytes": 2000}}, "refs": ["main"], "refs_kept": [], "absent": [".gitattributes"],
        "claimed": False,
    }  # fmt: skip
    async with Daemon(tmp_path / "cache") as daemon:
        daemon.answers["POST", "/api/import-hf-cache"] = (200, {"imported": [item, bad]})
        daemon.answers["POST", "/api/share"] = (200, shared)
        daemon.answers["POST", "/api/hydrate"] = (200, written)
        env = {"XDG_CACHE_HOME": str(tmp_path / "xdg")}
        done = await run_cli(tmp_path, "import-hf-cache", env=env)
        assert done.code == 4
        assert done.out.splitlines()[0] == "org/m\taaaaaaaa\tstored\t2\t2 kB\t1 kB\tno\tbafyroot"
        assert "org/bad@aaaaaaaa w.bin: it is something else" in done.err
        assert daemon.asked("POST", "/api/import-hf-cache")["cache_dir"] == str(tmp_path / "xdg/huggingface/hub")
        done = await run_cli(tmp_path, "hydrate", "hf:org/m", env={"HF_HUB_CACHE": "$HOME/a"})
        assert daemon.asked("POST", "/api/hydrate") == {
            "ref": "hf:org/m", "cache_dir": str(tmp_path / "a"), "link": None,
        }  # fmt: skip
        assert (tmp_path / "a").is_dir()
        assert "hard links  2 files, 2 kB" in done.out
        done = await run_cli(tmp_path, "share", "hf:org/m")
        assert daemon.asked("POST", "/api/share") == {"ref": "hf:org/m", "undo": False}
        assert (done.code, "Mind the licence." in done.err, "licence     mit" in done.out) == (0, True, True)
