"""Whole files by ranges from servers of which some lie: from the command line, with the receipt that names them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.capped import FileServer, describe
from tests.support.node import COMMAND, NodeProcess
from tests.support.pinning import MIB, random_model, same_files

pytestmark = pytest.mark.timeout(180)

SIZE_BYTES = 12 * MIB
RATE_BYTES = 20_000_000  # so that everybody gets a turn
PATIENCE = ("--stall-timeout-s", "2", "--first-byte-timeout-s", "2")


@dataclass
class Bed:
    folder: Path
    root: str
    description: Path
    cache: Path
    stack: ExitStack

    @property
    def size_bytes(self) -> int:
        return sum(p.stat().st_size for p in self.folder.iterdir())

    def server(self, **behaviour: Any) -> FileServer:
        return self.stack.enter_context(FileServer(self.description, **{"rate_bytes": RATE_BYTES, **behaviour}))

    def node(self, flag: str, *servers: FileServer) -> NodeProcess:
        urls = [part for server in servers for part in (flag, server.url)]
        return self.stack.enter_context(NodeProcess(self.cache, *PATIENCE, *urls))


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    folder = random_model(tmp_path / "model", SIZE_BYTES)
    root = describe(folder, description := tmp_path / "model.json")
    (cache := tmp_path / "cache").mkdir(mode=0o700)
    with ExitStack() as stack:
        yield Bed(folder, root, description, cache, stack)


@dataclass(frozen=True)
class Told:
    """Of the receipt, by source: what it gave, and the code of what it did wrong."""

    shares: dict[str, dict[str, Any]]
    failures: dict[str, str]


def pinned(node: NodeProcess, bed: Bed) -> Told:
    """What the receipt tells, once the model is here, byte for byte."""
    receipt = node.json("pin", bed.root)
    assert receipt["root"] == bed.root
    assert same_files(Path(receipt["path"]), bed.folder)
    assert node.json("verify")["corrupt"] == []
    return Told(
        {share["source"]: share for share in receipt["sources"]},
        {failure["source"]: failure["code"] for failure in receipt["failures"]},
    )


LIES: dict[str, dict[str, Any]] = {
    "wrong bytes": {"corrupt_every": 1},
    "a page": {"html": True},
    "one byte short": {"short": True},
    "cut off": {"truncate_after": MIB + MIB // 2},
}


@pytest.mark.parametrize(("lie", "flag"), [*((lie, "--gateway") for lie in LIES), ("wrong bytes", "--peer")])
def test_one_of_three_lies(bed: Bed, lie: str, flag: str) -> None:
    """F17."""
    liar, *others = (bed.server(have=flag == "--peer", **behaviour) for behaviour in (LIES[lie], {}, {}))
    told = pinned(bed.node(flag, liar, *others), bed)
    shares = told.shares
    assert not {server.url for server in others} & set(told.failures)
    assert sum(shares[server.url]["bytes"] for server in others if server.url in shares) > 0
    assert all(shares[server.url]["rejected"] == 0 for server in others if server.url in shares)
    if lie == "wrong bytes":
        assert shares[liar.url]["rejected"] > 0
        assert told.failures[liar.url] == "hash_mismatch"
        assert liar.sent_bytes() < bed.size_bytes / 2  # nobody goes on asking it


def test_only_liars(bed: Bed) -> None:
    """Exit 4: it is no matter of availability, and nothing of what they sent is kept."""
    liars = [bed.server(have=True, corrupt_every=1) for _ in range(2)]
    node = bed.node("--peer", *liars)
    done = node.cli("pin", bed.root, "--json", check=False)
    problem = json.loads(done.stdout)
    assert (done.returncode, problem["code"]) == (4, "hash_mismatch")
    assert any(liar.url in problem["source"] for liar in liars)
    assert node.json("ls")["models"] == []


def test_the_receipt_names_the_corrupting_and_the_stalling_source(bed: Bed) -> None:
    """One honest, one corrupting, one stalling."""
    corrupting = bed.server(have=True, corrupt_every=3)
    stalling = bed.server(have=True, stall_after=SIZE_BYTES // 8)
    honest = bed.server(have=True)
    told = pinned(bed.node("--peer", corrupting, stalling, honest), bed)
    assert told.shares[corrupting.url]["rejected"] > 0
    assert told.failures[corrupting.url] == "hash_mismatch"
    assert told.failures[stalling.url] == "stalled"
    assert told.shares[honest.url]["rejected"] == 0
    assert told.shares[honest.url]["bytes"] > 0
    assert honest.url not in told.failures


def test_two_commands_one_fetch(bed: Bed) -> None:
    """F28: both end well, and the source sent everything once."""
    server = bed.server()
    node = bed.node("--gateway", server)
    commands = [
        subprocess.Popen([*COMMAND, "pin", bed.root, "--json"], env=node.env, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    receipts = [json.loads(command.communicate(timeout=120)[0]) for command in commands]
    assert [command.returncode for command in commands] == [0, 0, 0]
    assert {receipt["root"] for receipt in receipts} == {bed.root}
    assert server.sent_bytes() <= bed.size_bytes * 1.05
    assert same_files(Path(receipts[0]["path"]), bed.folder)


def test_two_daemons_one_cache(bed: Bed) -> None:
    """F28: the second is refused before it touches anything, while the first one fetches."""
    server = bed.server()
    node = bed.node("--gateway", server)
    under_way = subprocess.Popen([*COMMAND, "pin", bed.root, "--json"], env=node.env, stdout=subprocess.PIPE, text=True)
    server.wait_for(2 * MIB)
    second = node.cli("up", "--port", "0", "--kubo", "off", check=False)
    assert second.returncode != 0
    assert "already running" in second.stderr
    receipt = json.loads(under_way.communicate(timeout=120)[0])
    assert under_way.returncode == 0
    assert same_files(Path(receipt["path"]), bed.folder)
    assert node.json("verify")["corrupt"] == []


def test_two_nodes_fetch_at_once_and_share_nothing(bed: Bed, tmp_path: Path) -> None:
    """F28: two processes over two caches, one root, one source."""
    server = bed.server()
    (other := tmp_path / "other").mkdir(mode=0o700)
    nodes = [bed.node("--gateway", server), bed.stack.enter_context(NodeProcess(other, "--gateway", server.url))]
    commands = [
        subprocess.Popen([*COMMAND, "pin", bed.root, "--json"], env=node.env, stdout=subprocess.PIPE, text=True)
        for node in nodes
    ]
    for command in commands:
        receipt = json.loads(command.communicate(timeout=120)[0])
        assert command.returncode == 0
        assert same_files(Path(receipt["path"]), bed.folder)
