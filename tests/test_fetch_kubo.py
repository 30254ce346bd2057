"""Fetching through a real Kubo that is stopped, killed, restarted, or has a block damaged on its disk."""

from __future__ import annotations

import base64
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ipfs_accelerate_node.content.cid import Cid
from tests.support.capped import LEAF_BYTES, FileServer, describe
from tests.support.kubo import KuboDaemon
from tests.support.node import NodeProcess
from tests.support.pinning import MIB, Pin, free_ports, pin, random_model, same_files

pytestmark = [pytest.mark.kubo, pytest.mark.timeout(240)]

ADD = "add -r -Q --cid-version=1 --raw-leaves --chunker=size-1048576 --max-file-links=1024".split()
PATIENCE = ("--stall-timeout-s", "2", "--first-byte-timeout-s", "2")  # of Kubo four times that
SIZE_BYTES = 24 * MIB
RECOVERY_S = 10.0


@dataclass
class Bed:
    folder: Path
    root: str
    description: Path
    cache: Path
    kubo: KuboDaemon
    stack: ExitStack

    def server(self, **behaviour: Any) -> FileServer:
        return self.stack.enter_context(FileServer(self.description, **behaviour))

    def node(self, *arguments: str) -> NodeProcess:
        node = NodeProcess(self.cache, "--kubo", self.kubo.api_url, *PATIENCE, *arguments)
        self.stack.enter_context(node).wait_for_kubo()
        return node


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    """An external Kubo of the test's own at a fixed port, which has a model."""
    folder = random_model(tmp_path / "model", SIZE_BYTES)
    root = describe(folder, description := tmp_path / "model.json")
    (cache := tmp_path / "cache").mkdir(mode=0o700)
    with free_ports(1) as ports:
        api = f"/ip4/127.0.0.1/tcp/{ports[0]}"
    with ExitStack() as stack:
        kubo = stack.enter_context(KuboDaemon(tmp_path / "repo", config={"Addresses.API": api}))
        assert kubo.cli(*ADD, folder) == root
        yield Bed(folder, root, description, cache, kubo, stack)


def block_file(repo: Path, cid: str) -> Path:
    """Where flatfs keeps a block: named by the multihash in base32, in a folder named by its last letters but one."""
    name = base64.b32encode(Cid.parse(cid).multihash).decode().rstrip("=")
    return repo / "blocks" / name[-3:-1] / f"{name}.data"


def weights(bed: Bed) -> list[str]:
    import json

    files = json.loads(bed.description.read_text())["files"]
    return next(list(f["leaves"]) for f in files if f["path"] == "weights.bin")


def damage(bed: Bed, leaf: int) -> str:
    """One byte of a leaf's block is wrong on Kubo's disk. Returns its CID."""
    cid = weights(bed)[leaf]
    path = block_file(bed.kubo.repo, cid)
    data = bytearray(path.read_bytes())
    assert len(data) == LEAF_BYTES
    data[77] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    return cid


def test_a_block_damaged_on_kubos_disk(bed: Bed) -> None:
    """F20: it is named, nothing of the model counts, and what was right is kept."""
    victim = damage(bed, 5)
    node = bed.node()
    done = pin(node, bed.root)
    assert done.error is not None
    assert (done.error["code"], done.error["source"]) == ("hash_mismatch", "kubo")
    assert done.error["cid"] == victim
    assert node.json("ls")["models"] == []


def test_another_source_has_the_block_that_is_damaged_on_kubos_disk(bed: Bed) -> None:
    """F20."""
    damage(bed, 5)
    server = bed.server(rate_bytes=20_000_000)
    done = pin(bed.node("--gateway", server.url), bed.root)
    assert done.receipt is not None, done.error
    assert same_files(Path(done.receipt["path"]), bed.folder)
    assert done.shares[server.url]["rejected"] == 0
    if done.shares["kubo"]["bytes"] == SIZE_BYTES:
        pytest.fail("Kubo cannot have given all of it")


def healthy_again(node: NodeProcess) -> float:
    """Seconds until the node says that Kubo is ready."""
    began = time.monotonic()
    node.wait_for_kubo()
    return time.monotonic() - began


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
def test_kubo_leaves_in_the_middle_and_another_source_finishes(bed: Bed, how: signal.Signals) -> None:
    """F19: and once Kubo is back, the node has it again within seconds."""
    server = bed.server(rate_bytes=10_000_000)
    node = bed.node("--gateway", server.url)
    under_way = Pin(node, bed.root, timeout_s=60)
    for state in under_way.states():
        if state["bytes_done"] or state["state"] != "fetching":
            break
    os.kill(bed.kubo.pid, how)
    try:
        done = under_way.wait()
    finally:
        if how == signal.SIGSTOP:
            os.kill(bed.kubo.pid, signal.SIGCONT)
    assert done.receipt is not None, done.error
    assert same_files(Path(done.receipt["path"]), bed.folder)
    if how == signal.SIGKILL:
        bed.kubo.stop()
        bed.kubo.start()
    assert healthy_again(node) < RECOVERY_S


def test_kubo_alone_and_stopped(bed: Bed) -> None:
    """F19: a typed failure in bounded time, the node answers meanwhile, and the next pin works once Kubo goes on."""
    node = bed.node()
    os.kill(bed.kubo.pid, signal.SIGSTOP)
    try:
        done = pin(node, bed.root, timeout_s=90)
        assert node.request("GET", "/healthz") is not None
    finally:
        os.kill(bed.kubo.pid, signal.SIGCONT)
    assert done.error is not None
    assert done.error["status"] == 503
    assert healthy_again(node) < RECOVERY_S
    again = pin(node, bed.root)
    assert again.receipt is not None, again.error
    assert same_files(Path(again.receipt["path"]), bed.folder)


def test_kubo_killed_alone_comes_back_with_a_stale_lock(bed: Bed) -> None:
    """F19: what was verified before stays; the pin after the restart finishes."""
    node = bed.node()
    under_way = Pin(node, bed.root, timeout_s=90)
    for state in under_way.states():
        if state["bytes_done"] or state["state"] != "fetching":
            break
    os.kill(bed.kubo.pid, signal.SIGKILL)
    done = under_way.wait()
    assert done.receipt is not None or done.error is not None
    bed.kubo.stop()
    assert (bed.kubo.repo / "repo.lock").exists()
    bed.kubo.start()
    assert healthy_again(node) < RECOVERY_S
    again = pin(node, bed.root)
    assert again.receipt is not None, again.error
    assert same_files(Path(again.receipt["path"]), bed.folder)
