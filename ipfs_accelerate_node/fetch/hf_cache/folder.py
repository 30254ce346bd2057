"""A folder that is somebody else's: reached by descriptor, one component at a time, never led out of by a symlink."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Self

from ipfs_accelerate_node.errors import Conflict, Forbidden, NotFound, UnsafeContent
from ipfs_accelerate_node.store import disk

MAX_HOPS = 16
MAX_DEPTH = 64
MAX_ENTRIES = 100_000
_ANOTHER_KIND = (errno.ELOOP, errno.ENOTDIR)


class Folder:
    """Owns its descriptor. path: for messages only."""

    def __init__(self, fd: int, path: Path) -> None:
        self.fd = fd
        self.path = path

    @classmethod
    def open(cls, path: Path) -> Self:
        """A folder of the user who runs this process. Raises NotFound, Forbidden (of another user), UnsafeContent (it
        is a symlink or no folder), StorageError."""
        with disk.storing(f"cannot open {path}"):
            try:
                fd = disk.open_directory(path)
            except FileNotFoundError as exc:
                raise NotFound(f"{path} does not exist", code="no_folder") from exc
            except OSError as exc:
                if exc.errno not in _ANOTHER_KIND:
                    raise
                raise _unsafe(path, "it is a symlink or no folder") from exc
            if os.fstat(fd).st_uid != os.geteuid():
                os.close(fd)
                raise Forbidden(f"{path} belongs to another user than the daemon", code="foreign_folder")
        return cls(fd, path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.fd)

    def below(self, *names: str, make: bool = False) -> Folder:
        """A folder in it, to be entered. make: those that lack are made. Raises NotFound, UnsafeContent where one of
        the names is a symlink or no folder, OSError."""
        at, path = os.dup(self.fd), self.path
        try:
            for name in names:
                path = path / name
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(name, dir_fd=at)
                following = _directory(name, at, path)
                os.close(at)
                at = following
        except BaseException:
            os.close(at)
            raise
        return Folder(at, path)

    def stat(self, name: str) -> os.stat_result | None:
        return disk.stat_if_there(name, dir_fd=self.fd)

    def names(self) -> list[str]:
        """Of what lies in it, sorted."""
        return sorted(os.listdir(self.fd))

    def folders(self) -> list[str]:
        return [name for name in self.names() if (found := self.stat(name)) and stat.S_ISDIR(found.st_mode)]

    def read(self, name: str, *, limit_bytes: int) -> bytes | None:
        """None if there is no such plain file, or it is over the limit."""
        found = self.stat(name)
        if found is None or not stat.S_ISREG(found.st_mode) or found.st_size > limit_bytes:
            return None
        return disk.read_file(name, dir_fd=self.fd, limit_bytes=limit_bytes)

    def tree(self) -> list[str]:
        """Paths of everything in it that is no folder, "/"-separated, sorted. Raises UnsafeContent for more than
        anybody means."""
        found: list[str] = []
        pending = [""]
        while pending:
            prefix = pending.pop()
            with self.below(*filter(None, prefix.split("/"))) as folder:
                for name in folder.names():
                    about = folder.stat(name)
                    if about is not None and stat.S_ISDIR(about.st_mode):
                        pending.append(f"{prefix}{name}/")
                    elif about is not None:
                        found.append(f"{prefix}{name}")
            if prefix.count("/") > MAX_DEPTH or len(found) + len(pending) > MAX_ENTRIES:
                raise _unsafe(self.path, "it is too deep, or has too many entries")
        return sorted(found)

    def open_file(self, path: str) -> int:
        """A plain file below, also behind symlinks as long as they stay in here. The caller closes it.

        Raises UnsafeContent (a symlink leads out, or to what is no plain file), NotFound, OSError.
        """
        way: deque[str] = deque(path.split("/"))
        with contextlib.ExitStack() as stack:
            folders: list[int] = []
            hops = 0
            while way:
                name = way.popleft()
                if name in ("", "."):
                    continue
                if name == "..":
                    if not folders:
                        raise _unsafe(self.path / path, "a symlink leads out of the folder")
                    folders.pop()
                    continue
                at = folders[-1] if folders else self.fd
                found = disk.stat_if_there(name, dir_fd=at)
                if found is None:
                    raise NotFound(f"{self.path / path} does not exist, or a symlink leads to nothing", code="no_file")
                if stat.S_ISLNK(found.st_mode):
                    if (hops := hops + 1) > MAX_HOPS:
                        raise _unsafe(self.path / path, "it has too many symlinks")
                    target = os.readlink(name, dir_fd=at)
                    if target.startswith("/"):
                        target = self._inside(target, path)
                        folders.clear()
                    way.extendleft(reversed(target.split("/")))
                elif way and stat.S_ISDIR(found.st_mode):
                    folders.append(fd := _directory(name, at, self.path / path))
                    stack.callback(os.close, fd)
                elif not way and stat.S_ISREG(found.st_mode):
                    return _regular(name, at, self.path / path)
                else:
                    break
        raise _unsafe(self.path / path, "it is no plain file")

    def _inside(self, target: str, path: str) -> str:
        top = f"{self.path}/"
        if not target.startswith(top):
            raise _unsafe(self.path / path, "a symlink leads out of the folder")
        return target.removeprefix(top)


def _directory(name: str, dir_fd: int, path: Path) -> int:
    try:
        return disk.open_directory(name, dir_fd=dir_fd)
    except FileNotFoundError as exc:
        raise NotFound(f"{path} does not exist", code="no_folder") from exc
    except OSError as exc:
        if exc.errno in _ANOTHER_KIND:
            raise _unsafe(path, "it is a symlink or no folder") from exc
        raise


def _regular(name: str, dir_fd: int, path: Path) -> int:
    """Without waiting for a pipe that came in its place."""
    try:
        fd = os.open(name, disk.READ_FLAGS | os.O_NONBLOCK, dir_fd=dir_fd)
    except OSError as exc:
        if exc.errno in (*_ANOTHER_KIND, errno.ENXIO, errno.ENOENT):
            raise Conflict(f"{path} changed while it was looked at", code="source_changed") from exc
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise _unsafe(path, "it is no plain file")
    return fd


def _unsafe(path: Path, reason: str) -> UnsafeContent:
    return UnsafeContent(f"{ascii(str(path))[1:-1]} is refused: {reason}", code="unsafe_file")
