"""What leaves the store leaves Kubo, however it left, and comes back over the network when it is pinned again."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ipfs_accelerate_node.content.build import CHUNK_BYTES
from tests.support.kubo import KuboDaemon
from tests.support.node import NodeProcess, disk_bytes

pytestmark = [pytest.mark.kubo, pytest.mark.timeout(120)]

FILES = {"weights": random.Random(5).randbytes(3 * CHUNK_BYTES + 7), "config.json": b"{}"}


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[KuboDaemon]:
    """A stranger's daemon that has the model."""
    with KuboDaemon(tmp_path / "origin") as daemon:
        yield daemon


@pytest.fixture
def root(origin: KuboDaemon, tmp_path: Path) -> str:
    (folder := tmp_path / "model").mkdir()
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    options = ("--cid-version=1", "--raw-leaves", f"--chunker=size-{CHUNK_BYTES}", "--max-file-links=1024")
    return str(origin.cli("add", "-r", "-Q", *options, folder)).strip()


def node(tmp_path: Path, *kubo: str) -> NodeProcess:
    (cache := tmp_path / "cache").mkdir(mode=0o700, exist_ok=True)
    return NodeProcess(cache, *kubo)


def managed(tmp_path: Path, origin: KuboDaemon) -> NodeProcess:
    return node(tmp_path, "--kubo", "managed", "--bootstrap", origin.addr)


def pinned(up: NodeProcess, root: str) -> Any:
    """The receipt of a pin that brought the model whole, from Kubo, into one copy on disk."""
    receipt = up.json("pin", root)
    for name, data in FILES.items():
        assert (Path(receipt["path"]) / name).read_bytes() == data
    assert receipt["seeded"], receipt
    return receipt


def flip(file: Path, at: int) -> None:
    file.chmod(0o600)
    with file.open("r+b") as opened:
        opened.seek(at)
        byte = opened.read(1)[0]
        opened.seek(at)
        opened.write(bytes([byte ^ 1]))
    file.chmod(0o400)


def test_what_was_quarantined_is_fetched_again_and_seeded(tmp_path: Path, origin: KuboDaemon, root: str) -> None:
    with managed(tmp_path, origin) as up:
        up.wait_for_kubo()
        flip(Path(pinned(up, root)["path"]) / "weights", CHUNK_BYTES + 5)
        report = up.cli("verify", "--json", check=False)
        assert report.returncode == 4
        again = pinned(up, root)
        assert again["bytes_fetched"] == len(FILES["weights"])
        assert up.cli("verify", check=False).returncode == 0
        total = sum(map(len, FILES.values()))
        quarantined = disk_bytes(up.cache / "quarantine")
        assert disk_bytes(up.cache / "blobs") + disk_bytes(up.cache / "kubo" / "blocks") <= total * 1.1
        assert quarantined >= len(FILES["weights"])


def test_a_model_that_left_while_kubo_was_away_is_let_go_and_comes_back(
    tmp_path: Path, origin: KuboDaemon, root: str
) -> None:
    with managed(tmp_path, origin) as up:
        up.wait_for_kubo()
        pinned(up, root)
    with node(tmp_path, "--kubo", "off") as up:
        up.cli("rm", root, "--force")
    with managed(tmp_path, origin) as up:
        up.wait_for_kubo()
        assert pinned(up, root)["bytes_fetched"] == sum(map(len, FILES.values()))
