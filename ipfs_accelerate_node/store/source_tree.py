"""A directory that a user hands in: what `ipfs add -r` takes of it, or why it is refused."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ipfs_accelerate_node.content.names import check_name, check_tree
from ipfs_accelerate_node.errors import BadRequest, NotFound, UnsafeContent
from ipfs_accelerate_node.store import disk

MAX_ENTRIES = 10_000  # what a walk of the same root admits
MAX_DEPTH = 128


@dataclass(frozen=True, slots=True)
class SourceFile:
    """path: relative, "/"-separated; "" where the source is itself a file."""

    path: str
    size: int


@dataclass(slots=True)
class SourceTree:
    """files and directories in the order of their paths. fd: of the directory, or of the parent of a single file."""

    fd: int
    name: str
    files: list[SourceFile] = field(default_factory=list)
    directories: list[str] = field(default_factory=list)
    single: bool = False

    @property
    def size_bytes(self) -> int:
        return sum(file.size for file in self.files)

    @contextlib.contextmanager
    def open(self, path: str) -> Iterator[tuple[int, int, str]]:
        """(descriptor of the file, of its directory, its name there). No component may be a symlink."""
        parts = (path or self.name).split("/")
        folder = os.dup(self.fd)
        try:
            for part in parts[:-1]:
                below = disk.open_directory(part, dir_fd=folder)
                os.close(folder)
                folder = below
            flags = disk.READ_FLAGS | os.O_NONBLOCK  # a FIFO in its place must not hang
            fd = os.open(parts[-1], flags, dir_fd=folder)
            try:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    raise _unsafe(path, "it is no plain file")
                yield fd, folder, parts[-1]
            finally:
                os.close(fd)
        except OSError as exc:
            if exc.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENOENT, errno.ENXIO):
                raise BadRequest(f"{path or self.name} changed while it was read", code="source_changed") from exc
            raise
        finally:
            os.close(folder)


@contextlib.contextmanager
def scan(source: Path) -> Iterator[SourceTree]:
    """Lists a directory, or a single file. Hidden entries are left out, as `ipfs add -r` does.

    Raises UnsafeContent (unsafe_file: symlinks, devices; invalid_path: names that are refused), NotFound, BadRequest
    (code too_many_entries), StorageError.
    """
    with disk.storing(f"cannot read {source}"):
        try:
            found = os.stat(source, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError) as exc:
            raise NotFound(f"{source} does not exist") from exc
        single = stat.S_ISREG(found.st_mode)
        if not single and not stat.S_ISDIR(found.st_mode):
            raise _unsafe(str(source), _kind(found.st_mode))
        fd = disk.open_directory(source.absolute().parent if single else source)
        try:
            tree = SourceTree(fd, source.name, single=single)
            if single:
                tree.files.append(SourceFile("", found.st_size))
            else:
                _list(tree)
            yield tree
        finally:
            os.close(fd)


def _list(tree: SourceTree) -> None:
    pending = [""]
    while pending:
        folder = pending.pop()
        if folder.count("/") >= MAX_DEPTH:
            raise _unsafe(folder, f"it lies deeper than {MAX_DEPTH} directories", code="invalid_path")
        fd = _open_below(tree.fd, folder)
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    _take(tree, folder, entry, pending)
        finally:
            os.close(fd)
    tree.files.sort(key=lambda file: file.path)
    tree.directories.sort()
    check_tree([file.path for file in tree.files], tree.directories)


def _take(tree: SourceTree, folder: str, entry: os.DirEntry[str], pending: list[str]) -> None:
    if entry.name.startswith("."):
        return
    check_name(entry.name)
    path = f"{folder}/{entry.name}" if folder else entry.name
    found = entry.stat(follow_symlinks=False)
    if stat.S_ISDIR(found.st_mode):
        tree.directories.append(path)
        pending.append(path)
    elif stat.S_ISREG(found.st_mode):
        tree.files.append(SourceFile(path, found.st_size))
    else:
        raise _unsafe(path, _kind(found.st_mode))
    if len(tree.files) + len(tree.directories) > MAX_ENTRIES:
        raise BadRequest(f"more than {MAX_ENTRIES} files and directories", code="too_many_entries")


def _open_below(fd: int, path: str) -> int:
    at = os.dup(fd)
    for part in filter(None, path.split("/")):
        try:
            below = disk.open_directory(part, dir_fd=at)
        finally:
            os.close(at)
        at = below
    return at


def _kind(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return "it is a symlink; models hold plain files only"
    return "it is neither a plain file nor a directory"


def _unsafe(path: str, reason: str, code: str = "unsafe_file") -> UnsafeContent:
    return UnsafeContent(f"{path[:200]!a} is refused: {reason}", code=code, path=path[:200])
