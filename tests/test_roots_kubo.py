"""Kubo as the oracle: our roots are those of `ipfs add`, and we read whatever `ipfs add` makes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from ipfs_accelerate_node.content.build import (
    HAMT_THRESHOLD,
    UNIXFS_V1_2025,
    BuiltTree,
    Profile,
    file_dag,
    tree_dag,
)
from ipfs_accelerate_node.content.cid import Cid
from tests.support.dags import OfflineKubo, cut, names_filling, walk

pytestmark = pytest.mark.kubo

CHUNK, WIDTH = 64, 4
SMALL = Profile(chunk_bytes=CHUNK, width=WIDTH)
SMALL_FLAGS = (f"--chunker=size-{CHUNK}", f"--max-file-links={WIDTH}")
# Empty; around one leaf; around one parent; around a grandparent and its parent.
SIZES = [
    size
    for full in (0, CHUNK, CHUNK * WIDTH, CHUNK * WIDTH**2, CHUNK * WIDTH**3)
    for size in (full - 1, full, full + 1)
    if size >= 0
]
MIB = 1 << 20


@pytest.fixture(scope="module")
def kubo(tmp_path_factory: pytest.TempPathFactory) -> OfflineKubo:
    return OfflineKubo(tmp_path_factory.mktemp("kubo") / "repo")


def content(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def tree(directory: Path, profile: Profile = UNIXFS_V1_2025) -> BuiltTree:
    paths = {str(path.relative_to(directory)): path for path in directory.rglob("*")}
    files = {
        name: file_dag(cut(path.read_bytes(), profile.chunk_bytes), profile)
        for name, path in paths.items()
        if path.is_file()
    }
    return tree_dag(files, [name for name, path in paths.items() if path.is_dir()], profile)


def write(directory: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return directory


def test_file_roots_around_every_boundary(kubo: OfflineKubo, tmp_path: Path) -> None:
    """One `add` of a directory with a file of each size: every file's root shows in the directory's."""
    files = {f"{size:06}": content(size) for size in SIZES}
    write(tmp_path / "d", files)
    assert kubo.add(tmp_path / "d", *SMALL_FLAGS, only_hash=True) == tree(tmp_path / "d", SMALL).plan.root


@pytest.mark.parametrize("size", [0, 1, CHUNK, CHUNK * WIDTH + 1])
def test_single_file_roots(kubo: OfflineKubo, tmp_path: Path, size: int) -> None:
    (tmp_path / "f").write_bytes(content(size))
    built = file_dag(cut(content(size), CHUNK), SMALL)
    assert kubo.add(tmp_path / "f", *SMALL_FLAGS, only_hash=True) == built.cid


@pytest.mark.parametrize("size", [MIB - 1, MIB, MIB + 1, 3 * MIB + 5])
def test_roots_under_the_real_profile(kubo: OfflineKubo, tmp_path: Path, size: int) -> None:
    (tmp_path / "f").write_bytes(content(size))
    assert kubo.add(tmp_path / "f", only_hash=True) == file_dag(cut(content(size), MIB)).cid


def test_the_real_width_of_a_file_node(kubo: OfflineKubo, tmp_path: Path) -> None:
    """1,024 links and one more, over small chunks."""
    profile = Profile(chunk_bytes=16)
    files = {"full": content(16 * 1024), "over": content(16 * 1024 + 1)}
    write(tmp_path / "d", files)
    assert kubo.add(tmp_path / "d", "--chunker=size-16", only_hash=True) == tree(tmp_path / "d", profile).plan.root


def test_a_tree_with_everything(kubo: OfflineKubo, tmp_path: Path) -> None:
    directory = write(
        tmp_path / "model",
        {
            "config.json": b"{}",
            "empty": b"",
            "a b/ü/日本語.txt": b"unicode",
            "a-b": b"sorts between",
            "a/deep/er/x": content(3000),
            "B": b"upper case first",
            "emoji-🎉": content(200),
        },
    )
    (directory / "nothing" / "below").mkdir(parents=True)
    root = kubo.add(directory, *SMALL_FLAGS)
    built = tree(directory, SMALL)
    assert root == built.plan.root
    blocks = kubo.blocks(root)
    assert walk(root, blocks).plan == built.plan
    assert dict(built.nodes) == {cid: block for cid, block in blocks.items() if cid in dict(built.nodes)}


def test_an_empty_directory(kubo: OfflineKubo, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    assert kubo.add(tmp_path / "d", only_hash=True) == tree(tmp_path / "d").plan.root


@pytest.mark.parametrize("over", [-1, 0, 1])
@pytest.mark.parametrize("subdirectory", [False, True])
def test_directories_around_the_hamt_threshold(
    kubo: OfflineKubo, tmp_path: Path, over: int, subdirectory: bool
) -> None:
    directory = tmp_path / "d"
    directory.mkdir()
    if subdirectory:
        write(directory, {"sub/file": content(300)})
    used = len(dict(tree(directory).nodes)[tree(directory).plan.root])
    for name in names_filling(HAMT_THRESHOLD + over - used):
        (directory / name).touch()
    built = tree(directory)
    assert (len(built.nodes) > 100) == (over > 0)
    assert kubo.add(directory, only_hash=True) == built.plan.root


def files_of_all_kinds() -> dict[str, bytes]:
    block = content(70_000)
    return {
        "weights.bin": content(900_000) + block * 3 + bytes(600_000),  # repeated and zero blocks inside
        "again/weights.bin": content(900_000) + block * 3 + bytes(600_000),  # the same file twice
        "empty": b"",
        "tiny": b"twenty bytes of text",
        "small/config.json": content(1500),
    }


LAYOUTS = {
    "default of kubo: CIDv0": ("--cid-version=0", "--raw-leaves=false", "--chunker=size-262144"),
    "dag-pb leaves": ("--chunker=size-262144", "--raw-leaves=false"),
    "CIDv0 with raw leaves": ("--cid-version=0", "--raw-leaves=true"),
    "many levels of dag-pb": ("--raw-leaves=false", "--chunker=size-4096", "--max-file-links=3"),
    "buzhash": ("--chunker=buzhash",),
    "rabin": ("--chunker=rabin",),
    "rabin, small": ("--chunker=rabin-512-1024-2048", "--raw-leaves=false"),
    "trickle": ("--trickle", "--chunker=size-4096"),
    "trickle with dag-pb leaves": ("--trickle", "--raw-leaves=false", "--chunker=size-4096"),
    "blake2b-256": ("--hash=blake2b-256", "--chunker=size-65536"),
    "sha3-512": ("--hash=sha3-512", "--raw-leaves=false"),
    "blake2s-256": ("--hash=blake2s-256",),
    "inline": ("--inline",),
    "inline up to the limit": ("--inline", "--inline-limit=128", "--raw-leaves=false", "--chunker=size-32"),
    "mode and mtime": ("--preserve-mode", "--preserve-mtime", "--raw-leaves=false"),
    "odd chunks": ("--chunker=size-99999", "--max-file-links=2"),
}


@pytest.mark.parametrize("flags", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_reads_what_kubo_adds(kubo: OfflineKubo, tmp_path: Path, flags: tuple[str, ...]) -> None:
    files = files_of_all_kinds()
    if "--inline-limit=128" in flags:
        files = {name: data[:5000] for name, data in files.items()}
    root = kubo.add(write(tmp_path / "d", files), *flags)
    blocks = kubo.blocks(root)
    walked = walk(root, blocks)
    assert walked.files == files
    assert walked.plan.root == root.canonical
    leaves = {leaf.cid for file in walked.plan.files for leaf in file.leaves if leaf.cid.inline is None}
    assert leaves | set(walked.walk.nodes) == set(blocks), "every block is a leaf or a node"


@pytest.mark.parametrize("flags", [LAYOUTS["default of kubo: CIDv0"], LAYOUTS["trickle"], LAYOUTS["inline"]])
@pytest.mark.parametrize("size", [0, 20, 5000, 300_000])
def test_reads_single_files(kubo: OfflineKubo, tmp_path: Path, flags: tuple[str, ...], size: int) -> None:
    (tmp_path / "f").write_bytes(content(size))
    root = kubo.add(tmp_path / "f", *flags)
    blocks = {} if root.inline is not None else kubo.blocks(root)
    assert walk(root, blocks).files == {"": content(size)}


@pytest.mark.parametrize("fanout", [8, 256, 1024])
def test_reads_sharded_directories_of_any_fanout(tmp_path: Path, fanout: int) -> None:
    kubo = OfflineKubo(tmp_path / "repo", profile=None)
    kubo.run("config", "Import.UnixFSHAMTDirectorySizeThreshold", "1B")
    files = {f"datei-ö-{i}": b"%d" % i for i in range(300)}
    root = kubo.add(write(tmp_path / "d", files), f"--max-hamt-fanout={fanout}", "--cid-version=1")
    walked = walk(root, kubo.blocks(root))
    assert walked.files == files
    assert len(walked.walk.nodes) > 1


def test_a_sharded_directory_of_many_entries_is_built_and_read(kubo: OfflineKubo, tmp_path: Path) -> None:
    files = {f"sub/shard-{i:05}-{'of' * 90}": b"%d" % i for i in range(1300)}
    directory = write(tmp_path / "d", files)
    root = kubo.add(directory)
    built = tree(directory)
    assert built.plan.root == root
    walked = walk(root, kubo.blocks(root))
    assert walked.plan == built.plan
    assert walked.files == files


def test_well_known_empty_roots(kubo: OfflineKubo, tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    for flags in ((), ("--cid-version=0", "--raw-leaves=false")):
        root: Cid = kubo.add(tmp_path / "f", *flags)
        walked = walk(root, kubo.blocks(root))
        assert walked.files == {"": b""}
