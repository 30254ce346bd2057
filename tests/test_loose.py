"""Files that no model holds: counted, named, evicted by last use, freed by `gc` unless a fetch needs them."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ipfs_accelerate_node.errors import QuotaExceeded
from ipfs_accelerate_node.store import Store
from ipfs_accelerate_node.store.copying import copy_in
from ipfs_accelerate_node.store.ingest import ingest
from ipfs_accelerate_node.store.types import Provenance
from tests.support.hub import FakeHub, oid
from tests.support.node import NodeProcess
from tests.support.running import model, running

pytestmark = pytest.mark.timeout(90)

FILES = {"config.json": b'{"a": 1}', "model.safetensors": bytes(range(256)) * 400, "other.bin": b"other" * 1000}
SIZE = 60_000
LOCAL = Provenance(kind="local", reference="m", at="2026-01-01T00:00:00+00:00")


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    async with FakeHub(one_origin=True) as fake:
        fake.repo("org/open", FILES)
        yield fake


def loosely(store: Store, folder: Path, number: int) -> str:
    """Stores a file of no model, of `SIZE` bytes; its CID."""
    content = bytes([number]) * SIZE
    path = folder / str(number)
    path.write_bytes(content)
    with store.reserve(SIZE) as room, path.open("rb") as file:
        return str(copy_in(store, file.fileno(), oid("x.bin", content), "a test", room).cid)


def names(store: Store) -> list[str]:
    return [str(file.cid) for file, _ in store.loose()]


def used(store: Store, number: int) -> None:
    assert store.of_oid(bytes.fromhex(oid("x.bin", bytes([number]) * SIZE)), SIZE) is not None


def test_the_longest_unused_goes_first_also_after_a_restart(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with Store.open(cache, quota_bytes=SIZE * 3 + 1000) as store:
        cids = [loosely(store, tmp_path, number) for number in range(3)]
        assert (names(store), store.used_bytes()) == (cids, SIZE * 3)
        used(store, 0)
        assert names(store) == [cids[1], cids[2], cids[0]]
    with Store.open(cache, quota_bytes=SIZE * 3 + 1000) as store:
        assert names(store) == [cids[1], cids[2], cids[0]]
        new = loosely(store, tmp_path, 7)
        assert names(store) == [cids[2], cids[0], new]


def test_models_and_loose_files_go_by_one_order(tmp_path: Path) -> None:
    with Store.open(tmp_path / "cache", quota_bytes=SIZE * 2 + 20_000) as store:
        first = loosely(store, tmp_path, 1)
        (folder := tmp_path / "m").mkdir()
        (folder / "w.bin").write_bytes(b"\xff" * SIZE)
        root = ingest(store, folder, provenance=LOCAL, public=True).model.root
        store.unpin(root)
        with store.reserve(SIZE):  # the file of no model was used longest ago
            assert names(store) == []
            assert store.model(root) is not None
        second = loosely(store, tmp_path, 2)
        with store.reserve(SIZE):  # now the model was
            assert store.model(root) is None
            assert names(store) == [second]
        assert first != second


def test_what_a_transfer_counts_on_stays(tmp_path: Path) -> None:
    with Store.open(tmp_path / "cache", quota_bytes=SIZE * 2 + 1000) as store, store.reserve(0):
        cid = loosely(store, tmp_path, 1)
        assert store.loose()[0][1]
        with pytest.raises(QuotaExceeded):
            store.reserve(SIZE * 2)
        assert store.gc().files == ()
        assert names(store) == [cid]


async def test_a_client_takes_one_file_and_gc_names_it(cache: Path, hub: FakeHub, tmp_path: Path) -> None:
    sha = hub.repos["org/open"].refs["main"]
    async with running(cache, hf_upstream=hub.url) as node:
        await node.node.add(model(tmp_path / "m", "text"), name="mine")
        for path in ("config.json", "model.safetensors"):
            assert (await node.ask("GET", f"/org/open/resolve/main/{path}")).body == FILES[path]
        store = (await node.admin("GET", "/api/store")).json
        assert [(file["name"], file["size_bytes"], file["needed"]) for file in store["loose"]] == [
            (f"org/open@{sha[:8]}/{path}", len(FILES[path]), False) for path in ("config.json", "model.safetensors")
        ]
        assert store["used_bytes"] >= sum(len(FILES[path]) for path in ("config.json", "model.safetensors"))
        assert (await node.ask("GET", "/api/store")).status == 401
        done = (await node.admin("POST", "/api/gc")).json
        assert {file["name"].partition("/open@")[0] for file in done["files"]} == {"org"}
        assert (len(done["files"]), done["models"]) == (2, [])
        assert done["freed_bytes"] >= sum(len(FILES[path]) for path in ("config.json", "model.safetensors"))
        assert (await node.admin("GET", "/api/store")).json["loose"] == []
        assert (await node.ask("GET", "/org/open/resolve/main/config.json")).body == FILES["config.json"]  # again


async def test_gc_leaves_what_a_pin_under_way_has_brought(cache: Path, hub: FakeHub) -> None:
    async with running(cache, hf_upstream=hub.url, stall_timeout_s=60) as node:
        hub.faults["model.safetensors"] += ["stall"] * 20
        job = node.node.pin_job((await node.admin("POST", "/api/pins", json={"ref": "hf:org/open"})).json["id"])
        assert job is not None
        async for _ in node.node.updates(job):
            loose = (await node.admin("GET", "/api/store")).json["loose"]
            if len(loose) == 2:
                break
        assert [job.state for job in node.node.pin_jobs()] == ["fetching"]
        assert all(file["needed"] for file in loose)
        assert (await node.admin("POST", "/api/gc")).json["files"] == []
        assert len((await node.admin("GET", "/api/store")).json["loose"]) == 2
        await node.admin("DELETE", "/api/pins/hf:org/open")


async def test_what_ls_and_gc_print(tmp_path: Path, hub: FakeHub) -> None:
    sha = hub.repos["org/open"].refs["main"]
    (cache := tmp_path / "cache").mkdir(mode=0o700)

    def by_hand(node: NodeProcess) -> tuple[str, str]:
        return node.cli("ls").stderr, node.cli("gc").stdout

    with_node = NodeProcess(cache, "--hf-upstream", hub.url)
    await asyncio.to_thread(with_node.start)
    try:
        command = ["curl", "-sf", f"{with_node.url}/org/open/resolve/{sha}/config.json"]
        await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True, timeout=30)
        listed, gone = await asyncio.to_thread(by_hand, with_node)
    finally:
        await asyncio.to_thread(with_node.stop)
    assert f"1 file (8 B) of no model, until room is needed or `gc`: org/open@{sha[:8]}/config.json" in listed
    assert f"8 B org/open@{sha[:8]}/config.json" in gone
