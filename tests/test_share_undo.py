"""`share --undo` while somebody else's Kubo is away: noted, and done when it is back, also after a restart."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path

import pytest

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.fetch.withdrawals import NAME, Withdrawals
from ipfs_accelerate_node.store import Store
from ipfs_accelerate_node.store.ingest import hash_directory
from tests.support.hub import FakeHub
from tests.support.kubo import KuboDaemon
from tests.support.node import NodeProcess

TOKEN = "hf_canaryCanaryCanary"
FILES = {"config.json": b'{"a": 1}', "model.safetensors": bytes(range(256)) * 20_000}


@pytest.mark.kubo
@pytest.mark.timeout(120)
@pytest.mark.parametrize("restarted", [False, True])
async def test_it_is_done_when_that_kubo_is_back(tmp_path: Path, restarted: bool) -> None:
    (cache := tmp_path / "cache").mkdir(mode=0o700)
    async with FakeHub([TOKEN], one_origin=True) as hub:
        hub.repo("org/private", FILES, readers=frozenset([TOKEN]))
        await asyncio.to_thread(_by_hand, tmp_path, cache, hub.url, restarted)


def _by_hand(tmp_path: Path, cache: Path, upstream: str, restarted: bool) -> None:
    config = {"Addresses.API": f"/ip4/127.0.0.1/tcp/{_free_port()}", "Experimental.FilestoreEnabled": True}
    of_model = _model_blocks(tmp_path / "model")
    with KuboDaemon(tmp_path / "repo", config=config) as kubo:
        up = NodeProcess(cache, "--hf-upstream", upstream, "--kubo", kubo.api_url, env={"HF_TOKEN": TOKEN})
        up.start()
        try:
            up.wait_for_kubo()
            root = up.json("pin", "hf:org/private")["root"]
            shared = up.json("share", "hf:org/private")
            assert shared["seeded"] is True, shared["note"]
            assert of_model <= _blocks(kubo)
            kubo.stop()
            undone = up.json("share", "hf:org/private", "--undo")
            assert undone["public"] is False
            assert "as soon as Kubo is ready" in undone["note"]
            assert root in (cache / NAME).read_text()
            if restarted:
                up.stop()
            kubo.start()
            if restarted:
                up.start()
            up.wait_for_kubo()
            _settled(up)
            assert not of_model & _blocks(kubo)
            assert root not in kubo.cli("pin", "ls", "--type=recursive")
        finally:
            up.stop()


def _settled(up: NodeProcess) -> None:
    """Until nothing is left to be taken back."""
    deadline = time.monotonic() + 60
    while (up.cache / NAME).read_bytes() != b"[]":
        assert time.monotonic() < deadline, up.tail()
        up.request("GET", "/readyz")


def _model_blocks(folder: Path) -> set[bytes]:
    folder.mkdir()
    for path, content in FILES.items():
        (folder / path).write_bytes(content)
    built = hash_directory(folder)
    leaves = [leaf.cid for file in built.plan.files for leaf in file.leaves]
    return {cid.multihash for cid in (*leaves, *(cid for cid, _ in built.nodes))}


def _blocks(kubo: KuboDaemon) -> set[bytes]:
    return {Cid.parse(line).multihash for line in kubo.cli("refs", "local").split()}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def test_what_is_pending_is_kept_and_a_damaged_note_is_none(tmp_path: Path) -> None:
    one, two = Cid.parse("bafkqaaa"), Cid.parse("bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi")
    with Store.open(tmp_path / "cache") as store:
        pending = Withdrawals(store)
        assert pending.pending() == []
        for root in (one, two, one):
            pending.note(root)
        assert Withdrawals(store).pending() == [one, two]
        pending.done(one)
        pending.done(one)
        assert pending.pending() == [two]
        (tmp_path / "cache" / NAME).write_bytes(b'["bafy')
        assert pending.pending() == []
