"""Data sets of the Hub go every way that models go: pinned, mapped, audited, served, hydrated, imported."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.hf_cache import client
from tests.support.hub import FakeHub
from tests.support.node import NodeProcess
from tests.support.running import Running, running

pytestmark = pytest.mark.timeout(180)

TOKEN = "hf_canaryCanaryCanary"
REF = "hf:datasets/org/rows"
FILES = {
    ".gitattributes": b"*.parquet filter=lfs\n",
    "README.md": b"# rows",
    "data/train.csv": b"text,label\na,0\n",
    "data/weights.bin": bytes(range(256)) * 20_000,
}
SHOWN = {path: content for path, content in FILES.items() if not path.startswith(".")}
SNAPSHOT = """
import json, os, sys
from huggingface_hub import snapshot_download
folder = snapshot_download("org/rows", repo_type="dataset")
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
        fake.repo("datasets/org/rows", FILES)
        fake.repo("datasets/org/private", FILES, readers=frozenset([TOKEN]))
        fake.repo("org/rows", {"config.json": b"a model of that name"})
        yield fake


def hexed(files: Mapping[str, bytes]) -> dict[str, str]:
    return {path: content.hex() for path, content in files.items()}


async def pinned(node: Running, ref: str) -> Any:
    job = node.node.pin_job((await node.admin("POST", "/api/pins", json={"ref": ref})).json["id"])
    assert job is not None
    async for state in node.node.updates(job):
        job = state
    assert job.state == "pinned", job
    return job.receipt


async def test_the_client_gets_a_data_set_from_the_second_node_whose_only_source_is_the_first(
    tmp_path: Path, hub: FakeHub
) -> None:
    sha = hub.repos["datasets/org/rows"].refs["main"]
    for name in ("a", "b"):
        (tmp_path / name).mkdir(mode=0o700)
    first = NodeProcess(tmp_path / "a", "--hf-upstream", hub.url)
    await asyncio.to_thread(first.start)
    try:
        pin = await asyncio.to_thread(first.json, "pin", REF)
        hub.seen.clear()
        second = NodeProcess(tmp_path / "b", "--hf-upstream", hub.url, "--hf-offline", "--peer", first.url)
        await asyncio.to_thread(second.start)
        try:
            got = await client(SNAPSHOT, cache=tmp_path / "hf", home=tmp_path / "home", HF_ENDPOINT=second.url)
            audit = await asyncio.to_thread(first.json, "audit", REF)
            info = await asyncio.to_thread(second.json, "info", REF)
        finally:
            await asyncio.to_thread(second.stop)
    finally:
        await asyncio.to_thread(first.stop)
    assert got == [sha, hexed(SHOWN)]
    assert info["model"]["root"] == pin["root"]
    assert info["model"]["provenance"]["hub_repo"] == "datasets/org/rows"
    assert [source["kind"] for source in info["model"]["provenance"]["sources"]] == ["peer"]
    assert not [seen for seen in hub.seen if "/resolve/" in seen.path]
    assert (audit["repo"], audit["outcome"]) == ("datasets/org/rows", "confirmed")


async def test_out_of_the_store_into_the_cache_and_back(cache: Path, hub: FakeHub, tmp_path: Path) -> None:
    """Hydrated it is what the client loads offline and its tools list; imported elsewhere it is the same root."""
    sha, folder = hub.repos["datasets/org/rows"].refs["main"], tmp_path / "hf"
    folder.mkdir()
    async with running(cache, hf_upstream=hub.url) as node:
        root = (await pinned(node, REF)).root
        await pinned(node, "hf:org/rows")
        body = {"ref": REF, "cache_dir": str(folder)}
        done = (await node.admin("POST", "/api/hydrate", json=body)).json
    assert (done["repo"], done["commit"], done["root"]) == ("datasets/org/rows", sha, root)
    assert done["snapshot"] == str(folder / "datasets--org--rows" / "snapshots" / sha)
    commit, found = await client(SNAPSHOT, cache=folder, home=tmp_path / "home")
    assert (commit, {path: found[path] for path in SHOWN}) == (sha, hexed(SHOWN))
    hf = Path(sys.executable).with_name("hf")
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path / "home"), "HF_HUB_CACHE": str(folder)}
    more = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_TELEMETRY": "1"}
    for arguments in (("ls", "--format", "json"), ("verify", "org/rows", "--repo-type", "dataset")):
        told = await asyncio.to_thread(
            subprocess.run, [hf, "cache", *arguments], env=environment | more, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip
        assert told.returncode == 0, told.stdout + told.stderr
        if "ls" in arguments:
            assert [(line["repo_type"], line["repo_id"]) for line in json.loads(told.stdout)] == [
                ("dataset", "org/rows")
            ]
    (tmp_path / "other").mkdir(mode=0o700)
    async with running(tmp_path / "other", hf_upstream=hub.url) as node:
        body = {"cache_dir": str(folder), "ref": "hf:org/rows"}
        assert (await node.admin("POST", "/api/import-hf-cache", json=body)).status == 404  # that is a model
        body["ref"] = REF
        (taken,) = (await node.admin("POST", "/api/import-hf-cache", json=body)).json["imported"]
        assert (taken["repo"], taken["outcome"], taken["root"], taken["public"]) == (
            "datasets/org/rows", "stored", root, True,
        )  # fmt: skip
        assert (await node.ask("GET", "/api/maps?repo=org/rows&kind=dataset")).json["commit"] == sha


async def test_a_private_one_is_private(cache: Path, hub: FakeHub) -> None:
    sha = hub.repos["datasets/org/private"].refs["main"]
    async with running(cache, hf_upstream=hub.url, hf_token=TOKEN) as node:
        root = (await pinned(node, "hf:datasets/org/private")).root
        assert (await node.ask("GET", f"/ipfs/{root}")).status == 404
        assert (await node.ask("GET", "/api/maps?repo=org/private&kind=dataset")).status == 404
        path = f"/datasets/org/private/resolve/{sha}/README.md"
        assert (await node.ask("GET", path)).status == 401
        assert (await node.ask("GET", path, key=TOKEN)).body == FILES["README.md"]
        shared = (await node.admin("POST", "/api/share", json={"ref": "hf:datasets/org/private"})).json
        assert (shared["repo"], "private or gated" in shared["warning"]) == ("datasets/org/private", True)
        assert (await node.ask("GET", "/api/maps?repo=org/private&kind=dataset")).status == 200
