"""The directories of a store, held open: every access goes by these descriptors, so that swapping a directory for a
symlink later cannot lead it elsewhere. Also the lock that makes one process the owner."""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import AlreadyRunning, InvalidCid, StorageError
from ipfs_accelerate_node.store import disk

SUBDIRECTORIES = ("blobs", "models", "partial", "quarantine", "unnamed")


@dataclass(slots=True)
class Layout:
    """root: absolute. The other fields are directory descriptors."""

    root: Path
    root_fd: int
    blobs: int
    models: int
    partial: int
    quarantine: int
    unnamed: int

    @classmethod
    def open(cls, root: Path) -> Layout:
        """Makes what is missing (0700). Raises StorageError for what is not a directory, or not writable."""
        root = Path(os.path.abspath(root))
        with disk.storing(f"cache directory {root}"):
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            if root.is_symlink():
                raise StorageError(f"cache directory {root} is a symlink; give the directory itself")
            root_fd = disk.open_directory(root)
        opened = [root_fd]
        try:
            for name in SUBDIRECTORIES:
                opened.append(_open_private(root, root_fd, name))
        except StorageError:
            for fd in opened:
                os.close(fd)
            raise
        return cls(root, *opened)

    def close(self) -> None:
        """The numbers are forgotten: another file may get them at once."""
        for name in (*SUBDIRECTORIES, "root_fd"):
            os.close(getattr(self, name))
            setattr(self, name, -1)

    def check(self) -> None:
        """Raises StorageError unless the paths still lead to the directories that were opened."""
        self._check(self.root, self.root_fd)
        for name in SUBDIRECTORIES:
            self._check(self.root / name, getattr(self, name))

    def blob_path(self, cid: Cid) -> Path:
        return self.root / "blobs" / str(cid.canonical)

    def model_path(self, root: Cid) -> Path:
        return self.root / "models" / str(root.canonical)

    def set_aside(self, name: str, dir_fd: int, *, called: str | None = None) -> str:
        """Moves a file or directory into quarantine; returns its name there. Nothing there is ever overwritten."""
        wanted = called or name
        target, number = wanted, 0
        while disk.stat_if_there(target, dir_fd=self.quarantine) is not None:
            number += 1
            target = f"{wanted}.{number}"
        os.rename(name, target, src_dir_fd=dir_fd, dst_dir_fd=self.quarantine)
        os.fsync(self.quarantine)
        return target

    @staticmethod
    def _check(path: Path, fd: int) -> None:
        held = os.fstat(fd)
        try:
            found = os.stat(path, follow_symlinks=False)
        except OSError as exc:
            raise StorageError(f"{path} is gone: {exc.strerror}") from exc
        if not os.path.samestat(held, found):
            raise StorageError(f"{path} was replaced while the node runs; restart it")


def _open_private(root: Path, root_fd: int, name: str) -> int:
    with disk.storing(f"cache directory {root / name}"):
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=root_fd)
        found = os.stat(name, dir_fd=root_fd, follow_symlinks=False)
        if not stat.S_ISDIR(found.st_mode):
            raise StorageError(f"{root / name} is not a directory (symlinks are not followed)")
        fd = disk.open_directory(name, dir_fd=root_fd)
        try:
            if stat.S_IMODE(found.st_mode) != 0o700:
                os.fchmod(fd, 0o700)
            if not os.access(name, os.W_OK | os.X_OK, dir_fd=root_fd):
                raise StorageError(f"{root / name} is not writable")
        except BaseException:
            os.close(fd)
            raise
    return fd


def canonical_name(name: str) -> Cid | None:
    """The CID whose canonical spelling is this file name, else None."""
    try:
        cid = Cid.parse(name)
    except InvalidCid:
        return None
    return cid if str(cid.canonical) == name else None


class OwnerLock:
    """``<cache>/store.lock``: held by flock, which the kernel drops with its process, so there is no stale lock; the
    file says whose it is."""

    def __init__(self, root: Path) -> None:
        self._path = root / "store.lock"
        self._lock = FileLock(self._path, timeout=0, thread_local=False)

    def acquire(self) -> None:
        """Raises AlreadyRunning, naming the pid that holds the cache; StorageError if the file cannot be made."""
        with disk.storing(f"lock {self._path}"):
            if self._path.is_symlink():
                raise StorageError(f"{self._path} is a symlink")
            try:
                self._lock.acquire()
            except Timeout as exc:
                message = f"already running pid {self._holder()}"
                raise AlreadyRunning(message, cache=str(self._path.parent)) from exc
            self._path.write_text(f"{os.getpid()}\n")

    def release(self) -> None:
        self._lock.release()

    def _holder(self) -> str:
        with contextlib.suppress(OSError):
            text = self._path.read_text().strip()
            if text.isdecimal():
                return text
        return "unknown"
