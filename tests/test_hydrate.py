"""`hydrate`: the Hugging Face cache written out of the store, and read back by the real clients."""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ipfs_accelerate_node.errors import Conflict, Forbidden, NotFound, StorageError, UnsafeContent
from ipfs_accelerate_node.fetch.hf_cache import layout
from ipfs_accelerate_node.fetch.hf_cache.folder import Folder
from ipfs_accelerate_node.fetch.hf_cache.hydrate import Content, write
from ipfs_accelerate_node.fetch.hf_cache.placing import Blob, place
from ipfs_accelerate_node.sources.hub_names import HubRepo
from tests.support.hf_cache import client, client_cache, entries
from tests.support.hub import FakeHub, oid
from tests.support.node import NodeProcess
from tests.support.running import Running, model, running
from tests.support.sample import SAMPLE

pytestmark = pytest.mark.timeout(120)

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
SNAPSHOT = """
import json, os, sys
from huggingface_hub import snapshot_download, try_to_load_from_cache
folder = snapshot_download(sys.argv[1])
found = {}
for parent, _, names in os.walk(folder):
    for name in names:
        path = os.path.join(parent, name)
        found[os.path.relpath(path, folder)] = open(path, "rb").read().hex()
print(json.dumps([os.path.basename(folder), found]))
"""


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    async with FakeHub([TOKEN], one_origin=True) as fake:
        fake.repo("org/open", FILES)
        fake.repo("org/gated", FILES, gated=True, accepted=frozenset([TOKEN]))
        yield fake


async def pinned(node: Running, ref: str) -> None:
    job = (await node.admin("POST", "/api/pins", json={"ref": ref})).json
    async for state in node.node.updates(node.node.pin_job(job["id"])):  # type: ignore[arg-type]
        job = state
    assert job.state == "pinned", job


async def hydrated(node: Running, ref: str, folder: Path, **more: object) -> Any:
    folder.mkdir(exist_ok=True)
    reply = await node.admin("POST", "/api/hydrate", json={"ref": ref, "cache_dir": str(folder), **more})
    assert reply.status == 200, reply.body
    return reply.json


def listed(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


async def test_a_commit_becomes_what_the_client_would_have_written(cache: Path, hub: FakeHub, tmp_path: Path) -> None:
    sha, folder = hub.repos["org/open"].refs["main"], tmp_path / "hf"
    async with running(cache, hf_upstream=hub.url) as node:
        await pinned(node, "hf:org/open")
        done = await hydrated(node, "hf:org/open", folder)
        again = await hydrated(node, "hf:org/open", folder)
        (stored,) = node.node.models()
    home = folder / "models--org--open"
    assert (done["repo"], done["commit"], done["root"]) == ("org/open", sha, str(stored.root))
    assert (done["refs"], done["absent"], done["claimed"]) == (["main"], [".gitattributes"], False)
    assert done["ways"] == {"hard": {"files": len(SHOWN), "bytes": sum(map(len, SHOWN.values()))}}
    assert again["ways"] == {"here": done["ways"]["hard"]}
    assert (home / "refs/main").read_bytes() == sha.encode()
    for path, content in SHOWN.items():
        entry = home / "snapshots" / sha / path
        blob = home / "blobs" / oid(path, content)
        assert os.readlink(entry) == os.path.relpath(blob, entry.parent)
        assert blob.read_bytes() == content
        assert blob.stat().st_mode & 0o222 == 0
    blobs = {f"models--org--open/blobs/{oid(path, content)}" for path, content in SHOWN.items()}
    snapshot = {f"models--org--open/snapshots/{sha}/{path}" for path in SHOWN}
    assert listed(folder) == {"CACHEDIR.TAG", "models--org--open/refs/main", *blobs, *snapshot}  # no lock, no rest
    assert await client(SNAPSHOT, "org/open", cache=folder, home=tmp_path / "home") == [
        sha,
        {path: content.hex() for path, content in SHOWN.items()},
    ]


async def test_the_clients_own_tools_are_content(cache: Path, hub: FakeHub, tmp_path: Path) -> None:
    """`hf cache ls` lists it; `hf cache verify` compares every file with what the Hub says, none differs; a client that
    is online then takes what is there, and fetches the hidden file only."""
    sha, folder = hub.repos["org/open"].refs["main"], tmp_path / "hf"
    async with running(cache, hf_upstream=hub.url) as node:
        await pinned(node, "hf:org/open")
        await hydrated(node, "hf:org/open", folder)
    scan = """
import json
from huggingface_hub import scan_cache_dir
found = scan_cache_dir()
print(json.dumps([[str(w) for w in found.warnings], [[r.repo_id, r.nb_files, sorted(r.refs)] for r in found.repos]]))
"""
    blobs = len({oid(path, content) for path, content in SHOWN.items()})
    assert await client(scan, cache=folder, home=tmp_path / "home") == [[], [["org/open", blobs, ["main"]]]]
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(tmp_path / "home"), "HF_HUB_CACHE": str(folder),
        "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    hf = Path(sys.executable).with_name("hf")
    for arguments in (("cache", "ls"), ("cache", "verify", "org/open")):
        done = await asyncio.to_thread(
            subprocess.run, [hf, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    hub.seen.clear()
    _, found = await client(SNAPSHOT, "org/open", cache=folder, home=tmp_path / "home", HF_ENDPOINT=hub.url)
    assert found == {path: content.hex() for path, content in FILES.items()}
    fetched = {seen.path.rpartition("/")[2] for seen in hub.seen if seen.method == "GET" and "/resolve/" in seen.path}
    assert fetched == {".gitattributes"}
    assert (folder / "models--org--open/snapshots" / sha / "config.json").read_bytes() == FILES["config.json"]


async def test_a_plain_cid_is_a_repository_of_its_own(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    async with running(cache) as node:
        receipt = await node.node.add(model(tmp_path / "m", "text", "sub/v.bin"), name="mine")
        done = await hydrated(node, "mine", folder)
        (stored,) = node.node.models()
        commit = stored.root.digest.hex()[:40]
        assert (done["repo"], done["commit"], done["absent"]) == (f"ipfs/{receipt.root}", commit, [])
        by_node = (await node.ask("GET", f"/api/models/ipfs/{receipt.root}/tree/main?recursive=true")).json
    tree = folder / f"models--ipfs--{receipt.root}" / "trees" / f"{commit}.json"
    known = layout.decode_tree(tree.read_bytes())
    assert known is not None
    assert {(e.path, e.oid, e.lfs.sha256) for e in known if e.lfs} == {
        (line["path"], line["oid"], line["lfs"]["oid"]) for line in by_node if line["type"] == "file"
    }
    found = await client(SNAPSHOT, f"ipfs/{receipt.root}", cache=folder, home=tmp_path / "home")
    assert found == [commit, {"config.json": b"textconfig.json".hex(), "sub/v.bin": b"textsub/v.bin".hex()}]


@pytest.mark.model
async def test_transformers_loads_it_offline(tmp_path: Path) -> None:
    """The command, against a daemon; the folder is the one that the environment names, and is made by the command."""
    (cache := tmp_path / "cache").mkdir(mode=0o700)
    script = """
import json, sys, torch
from transformers import AutoModel, AutoTokenizer
model, tokenizer = AutoModel.from_pretrained(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1])
with torch.no_grad():
    vector = model(**tokenizer("a sentence", return_tensors="pt")).last_hidden_state.mean(1)[0]
print(json.dumps(vector[:8].tolist()))
"""
    files = {str(p.relative_to(SAMPLE)): p.read_bytes() for p in SAMPLE.rglob("*") if p.is_file()}
    async with FakeHub([TOKEN], one_origin=True) as hub:
        hub.repo("sentence-transformers/all-MiniLM-L6-v2", files)
        env = {"HF_HOME": str(tmp_path / "a place" / "hf")}
        with NodeProcess(cache, "--hf-upstream", hub.url, env=env) as node:
            await asyncio.to_thread(node.cli, "pin", "hf:sentence-transformers/all-MiniLM-L6-v2")
            out = await asyncio.to_thread(node.cli, "hydrate", "sentence-transformers/all-MiniLM-L6-v2")
            assert "hard links" in out.stdout
            local = await client(script, str(SAMPLE), cache=tmp_path / "none", home=tmp_path / "home")
    folder = tmp_path / "a place" / "hf" / "hub"  # no daemon, no Hub
    name = "sentence-transformers/all-MiniLM-L6-v2"
    assert await client(script, name, cache=folder, home=tmp_path / "home") == local


def content(tmp_path: Path, files: dict[str, bytes], commit: str = "a" * 40) -> Content:
    """Of files that lie somewhere read-only, as the store's do."""
    (source := tmp_path / "source").mkdir(exist_ok=True)
    blobs = {}
    for path, data in files.items():
        at = source / oid(path, data)
        if not at.exists():
            at.write_bytes(data)
            at.chmod(0o400)
        blobs[path] = Blob(oid(path, data), len(data), at)
    return Content(HubRepo("org/m"), commit, entries(files), blobs, {"main": 1.0})


def test_nothing_that_is_there_is_replaced(tmp_path: Path) -> None:
    (folder := tmp_path / "hf").mkdir()
    files = {"config.json": b"{}", "w.bin": b"weights"}
    blobs = folder / "models--org--m" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / oid("w.bin", b"weights")).write_bytes(b"WEIGHTS")
    with pytest.raises(Conflict, match="remove it") as refused:
        write(content(tmp_path, files), folder)
    assert refused.value.code == "blob_differs"
    assert (blobs / oid("w.bin", b"weights")).read_bytes() == b"WEIGHTS"
    (blobs / oid("w.bin", b"weights")).write_bytes(b"weights")  # of the client, who owns it and may write
    done = write(content(tmp_path, files), folder)
    assert {file.path: file.how for file in done.files} == {"config.json": "here", "w.bin": "here"}
    entry = done.snapshot / "w.bin"
    entry.unlink()
    entry.write_bytes(b"other")  # a client that makes no symlinks
    with pytest.raises(Conflict):
        write(content(tmp_path, files), folder)
    entry.write_bytes(b"weights")
    write(content(tmp_path, files), folder)
    assert not entry.is_symlink()
    entry.unlink()
    entry.symlink_to("../../blobs/" + oid("config.json", b"{}"))
    with pytest.raises(Conflict):
        write(content(tmp_path, files), folder)


def test_a_younger_answer_that_a_client_has_stays(tmp_path: Path) -> None:
    (folder := tmp_path / "hf").mkdir()
    client_cache(folder, "org/m", "b" * 40, {"config.json": b"2"})
    done = write(content(tmp_path, {"config.json": b"1"}), folder)
    assert (done.refs, done.refs_kept) == ((), ("main",))
    assert (folder / "models--org--m/refs/main").read_text() == "b" * 40
    os.utime(folder / "models--org--m/refs/main", (0.5, 0.5))
    assert write(content(tmp_path, {"config.json": b"1"}), folder).refs == ("main",)
    assert (folder / "models--org--m/refs/main").read_bytes() == b"a" * 40


@pytest.mark.parametrize("where", ["", "models--org--m", "models--org--m/blobs", "models--org--m/snapshots", ".locks"])
def test_no_symlink_leads_elsewhere(tmp_path: Path, where: str) -> None:
    (elsewhere := tmp_path / "elsewhere").mkdir()
    folder = tmp_path / "hf"
    (folder / where).parent.mkdir(parents=True, exist_ok=True)
    (folder / where if where else folder).symlink_to(elsewhere)
    with pytest.raises(UnsafeContent):
        write(content(tmp_path, {"config.json": b"{}"}), folder)
    assert list(elsewhere.iterdir()) == []


def test_a_folder_that_is_none_or_anothers(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        write(content(tmp_path, {"config.json": b"{}"}), tmp_path / "absent")
    if os.geteuid() == 0:
        (folder := tmp_path / "theirs").mkdir()
        os.chown(folder, 12345, 12345)
        with pytest.raises(Forbidden):
            write(content(tmp_path, {"config.json": b"{}"}), folder)


def test_only_a_file_that_nobody_may_write_is_linked(tmp_path: Path) -> None:
    of = content(tmp_path, {"w.bin": b"weights"})
    of.files["w.bin"].source.chmod(0o600)
    (folder := tmp_path / "hf").mkdir()
    with pytest.raises(StorageError):
        write(of, folder, ("hard",))
    done = write(of, folder)
    assert done.files[0].how in ("reflink", "copy")
    blob = folder / "models--org--m" / "blobs" / oid("w.bin", b"weights")
    assert (blob.stat().st_nlink, blob.stat().st_mode & 0o222) == (1, 0)


def test_a_client_that_writes_the_same_file_is_waited_for(tmp_path: Path) -> None:
    (folder := tmp_path / "hf").mkdir()
    of = content(tmp_path, {"w.bin": b"weights"})
    etag = of.files["w.bin"].etag
    (locks := folder / ".locks" / "models--org--m").mkdir(parents=True)
    blob = folder / "models--org--m" / "blobs" / etag
    waiting = threading.Event()
    with (locks / f"{etag}.lock").open("w") as lock, ThreadPoolExecutor() as threads:
        fcntl.flock(lock, fcntl.LOCK_EX)

        def hydrate() -> str:
            waiting.set()
            return write(of, folder).files[0].how

        writing = threads.submit(hydrate)
        assert waiting.wait(10)
        blob.parent.mkdir(parents=True, exist_ok=True)
        (part := blob.with_suffix(".1234abcd.incomplete")).write_bytes(b"weights")
        os.replace(part, blob)  # as the client ends a download
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert writing.result(30) == "here"
    assert [path.name for path in locks.iterdir()] == [f"{etag}.lock"]


def test_many_at_once_make_one_file(tmp_path: Path) -> None:
    of = content(tmp_path, {"w.bin": b"weights" * 100_000})
    (folder := tmp_path / "blobs").mkdir()
    with Folder.open(folder) as blobs, ThreadPoolExecutor(8) as threads:
        done = list(threads.map(lambda _: place(blobs, of.files["w.bin"], ("copy",)), range(8)))
    assert sorted(done)[:1] == ["copy"]
    assert set(done) <= {"copy", "here"}
    assert [path.name for path in folder.iterdir()] == [of.files["w.bin"].etag]


async def test_a_link_that_somebody_writes_to_is_found_out(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    async with running(cache) as node:
        await node.node.add(model(tmp_path / "m", "text"), name="mine")
        done = await hydrated(node, "mine", folder)
        assert "hard" in done["ways"]
        links = node.node.links
        assert await asyncio.to_thread(links.look) == []
        path = Path(done["snapshot"]) / "config.json"
        path.chmod(0o600)
        assert await asyncio.to_thread(links.look) == []
        assert path.stat().st_mode & 0o222 == 0  # read-only again, and what it was
        path.chmod(0o600)
        path.write_bytes(b"something else!")
        assert len(await asyncio.to_thread(links.look)) == 1
        assert node.node.models() == []  # quarantined
        assert (await node.admin("POST", "/api/hydrate", json={"ref": "mine", "cache_dir": str(folder)})).status == 404


async def test_copies_are_the_users_to_change(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    async with running(cache) as node:
        await node.node.add(model(tmp_path / "m", "text"), name="mine")
        done = await hydrated(node, "mine", folder, link="copy")
        path = Path(done["snapshot"]) / "config.json"
        path.chmod(0o600)
        path.write_bytes(b"something else!")
        assert await asyncio.to_thread(node.node.links.look) == []
        assert (await node.node.verify()).corrupt == ()


async def test_who_may_name_a_folder(cache: Path, tmp_path: Path) -> None:
    async with running(cache) as node:
        await node.node.add(model(tmp_path / "m", "text"), name="mine")
        (folder := tmp_path / "hf").mkdir()
        body = {"ref": "mine", "cache_dir": str(folder)}
        assert (await node.ask("POST", "/api/hydrate", json=body)).status == 401
        for path in ("relative", f"{folder}/../hf", ""):
            assert (await node.admin("POST", "/api/hydrate", json={**body, "cache_dir": path})).status == 422
        absent = await node.admin("POST", "/api/hydrate", json={**body, "ref": "hf:org/absent"})
        assert (absent.status, list(folder.iterdir())) == (404, [])
