"""Files that a command writes: whole or not at all, and none that is there is touched unasked."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest

from ipfs_accelerate_node.cli.new_files import check_new, write_new
from ipfs_accelerate_node.errors import Conflict, StorageError


def test_a_file_that_is_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "out.svg"
    write_new(path, b"one", force=False)
    with pytest.raises(Conflict, match="--force writes over it"):
        write_new(path, b"two", force=False)
    with pytest.raises(Conflict, match="--force writes over it"):
        check_new(path, force=False)
    assert path.read_bytes() == b"one"
    write_new(path, b"three", force=True)
    assert path.read_bytes() == b"three"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.svg"]


def test_a_link_is_replaced_and_never_followed(tmp_path: Path) -> None:
    (target := tmp_path / "precious").write_bytes(b"precious")
    (link := tmp_path / "out.png").symlink_to(target)
    (dangling := tmp_path / "dangling.png").symlink_to(tmp_path / "nothing")
    for path in (link, dangling):
        with pytest.raises(Conflict):
            write_new(path, b"data", force=False)
    write_new(link, b"data", force=True)
    assert (target.read_bytes(), link.read_bytes(), link.is_symlink()) == (b"precious", b"data", False)
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("make", [
    lambda folder: folder,
    lambda folder: folder / "absent" / "out.png",
    lambda folder: folder / ("x" * 300),
])  # fmt: skip
def test_where_no_file_can_be_nothing_is_left(make: Any, tmp_path: Path) -> None:
    path = make(tmp_path)
    with pytest.raises((StorageError, Conflict)):
        write_new(path, b"data", force=False)
    with pytest.raises(StorageError):
        write_new(path, b"data", force=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "absent/out.png"])
def test_what_cannot_be_written_is_known_before_any_work(name: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        check_new(tmp_path / name, force=True)


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    (path := tmp_path / "out.png").write_bytes(b"before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 10, hard))
    try:
        with pytest.raises(StorageError, match="cannot be written"):
            write_new(path, b"x" * (1 << 20), force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.png"]
