"""A node pins what people made with `ipfs add` and whatever options they used, over bitswap, byte for byte."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipfs_accelerate_node.content import unixfs
from tests.support.kubo import KuboDaemon
from tests.support.node import NodeProcess, disk_bytes

pytestmark = [pytest.mark.kubo, pytest.mark.timeout(120)]

OPTIONS = {
    "default CIDv0": (),
    "dag-pb leaves": ("--chunker=size-262144", "--raw-leaves=false"),
    "buzhash": ("--chunker=buzhash",),
    "trickle": ("--trickle",),
    "blake2b": ("--hash=blake2b-256",),
    "inline": ("--inline",),
    "narrow": ("--cid-version=1", "--raw-leaves", "--chunker=size-65536", "--max-file-links=3"),
}

WITH_RAW_LEAVES = {"blake2b", "narrow"}  # what Kubo can refer to in place, without a second copy


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KuboDaemon]:
    with KuboDaemon(tmp_path_factory.mktemp("origin") / "repo") as daemon:
        yield daemon


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, origin: KuboDaemon) -> Iterator[NodeProcess]:
    cache = tmp_path_factory.mktemp("b") / "cache"
    cache.mkdir(mode=0o700)
    with NodeProcess(cache, "--kubo", "managed", "--bootstrap", origin.addr) as started:
        started.wait_for_kubo()
        yield started


def model(folder: Path, seed: int) -> Path:
    """Sizes on both sides of Kubo's 256 KiB chunks, an empty file, a tiny one that can be inlined, a folder."""
    noise = random.Random(seed)
    (folder / "deep").mkdir(parents=True)
    for name, size in {"weights": 700_001, "exact": 524_288, "tiny": 20, "empty": 0, "deep/inner": 262_145}.items():
        (folder / name).write_bytes(noise.randbytes(size))
    return folder


def same_tree(left: Path, right: Path) -> bool:
    def files(top: Path) -> dict[str, bytes]:
        return {str(p.relative_to(top)): p.read_bytes() for p in top.rglob("*") if p.is_file()}

    return files(left) == files(right)


@pytest.mark.parametrize("how", OPTIONS)
def test_pin_what_ipfs_add_made(tmp_path: Path, origin: KuboDaemon, node: NodeProcess, how: str) -> None:
    source = model(tmp_path / "model", seed=len(how))
    root = origin.cli("add", "-r", "-Q", *OPTIONS[how], str(source)).strip()
    receipt = node.json("pin", root)
    assert same_tree(source, Path(receipt["path"]))
    assert receipt["seeded"] == (how in WITH_RAW_LEAVES)
    assert receipt["seeded"] or "dag-pb" in receipt["seed_note"]  # says why it is not


def test_pin_a_directory_sharded_into_a_hamt(tmp_path: Path, origin: KuboDaemon, node: NodeProcess) -> None:
    (source := tmp_path / "wide").mkdir()
    for number in range(1500):  # long names: the block of an unsharded directory would be over 256 KiB
        (source / f"{number:05d}-{'shard-of-a-wide-directory-' * 6}").write_text(str(number))
    root = origin.cli("add", "-r", "-Q", "--cid-version=1", str(source)).strip()
    assert unixfs.decode(origin.block(root)).type is unixfs.NodeType.HAMT_SHARD
    receipt = node.json("pin", root)
    assert same_tree(source, Path(receipt["path"]))
    assert disk_bytes(node.cache / "partial") < 65536
