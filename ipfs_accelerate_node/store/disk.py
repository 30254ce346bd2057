"""System calls of the store: durable, never through a symlink, and with the system's errors turned into ours."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import struct
from collections.abc import Iterator

from ipfs_accelerate_node.errors import NodeError, StorageError, Unavailable

_FICLONE = 0x40049409
_FICLONERANGE = 0x4020940D
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)
READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


def storage_failure(exc: OSError, what: str) -> NodeError:
    """The typed error for a failed system call: Unavailable when out of file descriptors, else StorageError.

    detail: errno by name.
    """
    name = errno.errorcode.get(exc.errno or 0, "unknown")
    if exc.errno in _TOO_MANY_FILES:
        return Unavailable(f"{what}: too many open files", code="too_many_files", retry_after_s=1.0, errno=name)
    hint = "; free some space or lower the quota" if exc.errno in _NO_SPACE else ""
    return StorageError(f"{what}: {exc.strerror or exc}{hint}", errno=name)


@contextlib.contextmanager
def storing(what: str) -> Iterator[None]:
    """Turns an OSError inside into StorageError or Unavailable; what names the action and its object."""
    try:
        yield
    except OSError as exc:
        raise storage_failure(exc, what) from exc


def is_full(exc: OSError) -> bool:
    return exc.errno in _NO_SPACE


def open_directory(name: str | os.PathLike[str], *, dir_fd: int | None = None) -> int:
    """A descriptor of a directory itself, never of what a symlink points to."""
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)


def open_read(name: str | os.PathLike[str], *, dir_fd: int | None = None) -> int:
    return os.open(name, READ_FLAGS, dir_fd=dir_fd)


@contextlib.contextmanager
def closing(fd: int) -> Iterator[None]:
    """A descriptor that ends with what it is needed for."""
    try:
        yield
    finally:
        os.close(fd)


def create(name: str, *, dir_fd: int, mode: int = 0o600) -> int:
    """A new file, open for reading and writing; FileExistsError if the name is taken."""
    return os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=dir_fd)


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def read_exactly(fd: int, length: int, offset: int) -> bytes:
    """May return fewer bytes only at the end of the file."""
    data = os.pread(fd, length, offset)
    if len(data) == length or not data:
        return data
    parts = [data]
    have = len(data)
    while have < length and (more := os.pread(fd, length - have, offset + have)):
        parts.append(more)
        have += len(more)
    return b"".join(parts)


def write_file(name: str, data: bytes, *, dir_fd: int, mode: int = 0o600) -> None:
    """Atomically and durably: after it returns, also a power cut finds the new content; before, the old one."""
    temporary = f"{name}.{secrets.token_hex(4)}.tmp"
    fd = create(temporary, dir_fd=dir_fd, mode=mode)
    try:
        try:
            write_all(fd, data, 0)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    except OSError:
        unlink_if_there(temporary, dir_fd=dir_fd)
        raise
    os.fsync(dir_fd)


def read_file(name: str, *, dir_fd: int, limit_bytes: int) -> bytes:
    """Raises OSError EFBIG over the limit."""
    fd = open_read(name, dir_fd=dir_fd)
    try:
        size = os.fstat(fd).st_size
        if size > limit_bytes:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), name)
        return read_exactly(fd, size, 0)
    finally:
        os.close(fd)


def unlink_if_there(name: str, *, dir_fd: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=dir_fd)


def stat_if_there(name: str, *, dir_fd: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def clone(target_fd: int, source_fd: int) -> bool:
    """Makes target share the source's blocks (reflink). False where the file system cannot."""
    try:
        fcntl.ioctl(target_fd, _FICLONE, source_fd)
    except OSError as exc:
        if exc.errno in _TOO_MANY_FILES or exc.errno == errno.EIO:
            raise
        return False
    return True


def clone_range(target_fd: int, target_offset: int, source_fd: int, source_offset: int, length: int) -> bool:
    """As `clone` for a part; False also where offsets and length do not fit the file system's blocks."""
    argument = struct.pack("=qQQQ", source_fd, source_offset, length, target_offset)
    try:
        fcntl.ioctl(target_fd, _FICLONERANGE, argument)
    except OSError as exc:
        if exc.errno in _TOO_MANY_FILES or exc.errno == errno.EIO:
            raise
        return False
    return True


def data_ranges(fd: int, size: int) -> list[tuple[int, int]]:
    """Where the file has data at all; a file system that does not know says everywhere."""
    end = min(size, os.fstat(fd).st_size)
    found, at = [], 0
    while at < end:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:
                break
            raise
        at = os.lseek(fd, start, os.SEEK_HOLE)
        found.append((start, min(at, end)))
    return found
