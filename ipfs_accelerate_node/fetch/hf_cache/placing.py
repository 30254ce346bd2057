"""One file of the store into the user's cache: as a hard link, else sharing its disk blocks, else as a copy.

A hard link is the same inode as the store's blob, so whoever makes it writable changes the store. It is made only of a
file that is read-only and ours, and is watched from then on (`watch`): the Hub's own client never writes into a blob,
it replaces and unlinks. Nothing that is there already is ever replaced.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import secrets
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ipfs_accelerate_node.errors import Conflict, NotFound, StorageError
from ipfs_accelerate_node.fetch.hf_cache.folder import Folder
from ipfs_accelerate_node.fetch.hf_cache.layout import pointer
from ipfs_accelerate_node.store import disk

log = logging.getLogger(__name__)

Way = Literal["hard", "reflink", "copy"]
How = Literal["hard", "reflink", "copy", "here"]
WAYS: tuple[Way, ...] = ("hard", "reflink", "copy")
LOCK_PATIENCE_S = 10.0  # for a client that writes the same file; what is there is right whoever wins
_STEP_BYTES = 1 << 30
_PIECE_BYTES = 4 << 20
_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EACCES, errno.EOPNOTSUPP)
_NO_RANGE = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ETXTBSY)


@dataclass(frozen=True, slots=True)
class Blob:
    """etag: sha256 or git's blob sha1 of its bytes, in hex. source: a file of ours that never changes."""

    etag: str
    size: int
    source: Path


def place(blobs: Folder, blob: Blob, ways: Sequence[Way] = WAYS) -> How:
    """blobs: the folder it is to be in, under its etag. ways: tried in this order. Durable but for the folder's entry.

    Raises Conflict (code blob_differs) where something else has its name, NotFound if the source is gone, StorageError
    if none of the ways is possible here.
    """
    try:
        source = disk.open_read(blob.source)
    except FileNotFoundError as exc:
        raise NotFound(f"{blob.source.name} has just left the store", code="missing_block") from exc
    try:
        if blobs.stat(blob.etag) is None:
            for way in ways:
                made = _link(blobs, blob, source) if way == "hard" else _copied(blobs, blob, source, way)
                if made:
                    return way
            if blobs.stat(blob.etag) is None:
                raise StorageError(f"{blobs.path} cannot have a file of the store as {' or '.join(ways)}")
        check_there(blobs, blob.etag, blob, os.fstat(source))
    finally:
        os.close(source)
    return "here"


def check_there(folder: Folder, path: str, blob: Blob, ours: os.stat_result | None = None) -> None:
    """Raises Conflict (code blob_differs) unless what is at path has the bytes of the blob; they are read for that,
    unless it is our own file."""
    fd = folder.open_file(path)
    try:
        found = os.fstat(fd)
        if ours is not None and os.path.samestat(found, ours):
            return
        if found.st_size == blob.size and content_etag(fd, found.st_size, git=len(blob.etag) == 40) == blob.etag:
            return
    finally:
        os.close(fd)
    raise Conflict(
        f"{folder.path / path} is there and is not the file of that name: remove it, then try again",
        code="blob_differs",
        path=str(folder.path / path),
    )


def content_etag(fd: int, size: int, *, git: bool) -> str:
    """What the Hub calls these bytes."""
    digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False) if git else hashlib.sha256()
    at = 0
    while piece := os.pread(fd, _PIECE_BYTES, at):
        digest.update(piece)
        at += len(piece)
    return digest.hexdigest()


def point(snapshot: Folder, path: str, blob: Blob) -> None:
    """The entry of a snapshot at that path, a symlink to its blob. One that is there stays, if it is that file.

    Raises Conflict (code blob_differs), UnsafeContent, OSError.
    """
    *folders, name = path.split("/")
    target = pointer(path, blob.etag)
    with snapshot.below(*folders, make=True) as folder:
        try:
            os.symlink(target, name, dir_fd=folder.fd)
        except FileExistsError:
            there = folder.stat(name)
            if there is not None and stat.S_ISLNK(there.st_mode):
                if os.readlink(name, dir_fd=folder.fd) == target:
                    return
                raise Conflict(
                    f"{folder.path / name} leads to another file: remove it, then try again",
                    code="blob_differs",
                    path=str(folder.path / name),
                ) from None
            check_there(folder, name, blob)  # a client without symlinks keeps the file itself there


@contextlib.contextmanager
def client_waits(locks: Folder | None, etag: str) -> Iterator[None]:
    """While a client that downloads the same file holds its lock, we wait, within reason; while we hold it, it waits.
    A lock that no client has made is not made here either."""
    fd = _lock_of(locks, etag)
    try:
        deadline = time.monotonic() + LOCK_PATIENCE_S
        while fd >= 0:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as exc:
                if exc.errno not in (errno.EAGAIN, errno.EACCES) or time.monotonic() > deadline:
                    log.info("hf_cache.not_locked etag=%s errno=%s", etag, exc.errno)
                    break
                time.sleep(0.05)
        yield
    finally:
        if fd >= 0:
            os.close(fd)


def _lock_of(locks: Folder | None, etag: str) -> int:
    if locks is None:
        return -1
    try:
        return os.open(f"{etag}.lock", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=locks.fd)
    except OSError:  # none there, or one that is not ours to open
        return -1


def _link(blobs: Folder, blob: Blob, source: int) -> bool:
    """False where it cannot be, and also where something is there by now."""
    found = os.fstat(source)
    if found.st_uid != os.geteuid() or found.st_mode & 0o222:
        return False
    try:
        os.link(blob.source, blob.etag, dst_dir_fd=blobs.fd, follow_symlinks=False)
    except FileExistsError:
        return False
    except OSError as exc:
        if exc.errno in _NO_LINK:
            return False
        raise
    return True


def _copied(blobs: Folder, blob: Blob, source: int, way: Way) -> bool:
    """Under a name that the Hub's client takes for a broken download, until it is whole."""
    name = f"{blob.etag}.{secrets.token_hex(4)}.incomplete"
    target = disk.create(name, dir_fd=blobs.fd, mode=0o444)
    try:
        try:
            if way == "reflink":
                if not disk.clone(target, source):
                    return False
            else:
                _copy(target, source, blob.size)
            os.fsync(target)
        finally:
            os.close(target)
        return _renamed(blobs, name, blob.etag)
    finally:
        disk.unlink_if_there(name, dir_fd=blobs.fd)


def _renamed(blobs: Folder, name: str, etag: str) -> bool:
    """Never over another file. False if there is one by now."""
    try:
        os.link(name, etag, src_dir_fd=blobs.fd, dst_dir_fd=blobs.fd, follow_symlinks=False)
    except FileExistsError:
        return False
    except OSError as exc:
        if exc.errno not in _NO_LINK or blobs.stat(etag) is not None:
            raise
        os.rename(name, etag, src_dir_fd=blobs.fd, dst_dir_fd=blobs.fd)  # a file system without hard links
    return True


def _copy(target: int, source: int, size: int) -> None:
    """Holes stay holes."""
    os.ftruncate(target, size)
    for start, stop in disk.data_ranges(source, size):
        at = start
        while at < stop:
            count = _copy_range(target, source, at, min(stop - at, _STEP_BYTES))
            if not count:
                raise OSError(errno.EIO, "the file ended early")
            at += count


def _copy_range(target: int, source: int, at: int, count: int) -> int:
    try:
        return os.copy_file_range(source, target, count, at, at)
    except OSError as exc:
        if exc.errno not in _NO_RANGE:
            raise
    piece = disk.read_exactly(source, min(count, _PIECE_BYTES), at)
    disk.write_all(target, piece, at)
    return len(piece)
