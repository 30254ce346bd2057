"""``<cache>/daemon.json`` (0600): where the daemon of this cache listens, its pid, and the admin key of this run; what
the command line reads. It is written when the daemon listens and removed when it stops; a killed one leaves it behind,
so a reader checks that the pid lives."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from ipfs_accelerate_node.api.keys import write_private

NAME = "daemon.json"
_MAX_BYTES = 4096


class DaemonFile(msgspec.Struct, frozen=True):
    url: str
    pid: int
    key: str

    def __repr__(self) -> str:
        return f"DaemonFile(url={self.url!r}, pid={self.pid})"


def write_daemon_file(cache: Path, url: str, key: str) -> None:
    """Blocks for the disk. Raises StorageError."""
    write_private(cache / NAME, msgspec.json.encode(DaemonFile(url, os.getpid(), key)))


def read_daemon_file(cache: Path) -> DaemonFile | None:
    """What the file says; None when there is none that can be read. Whether the daemon lives is another question."""
    try:
        handle = os.open(cache / NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(handle, "rb") as file:
        try:
            return msgspec.json.decode(file.read(_MAX_BYTES), type=DaemonFile)
        except (msgspec.MsgspecError, UnicodeDecodeError, OSError):
            return None


def running_daemon(cache: Path) -> int | None:
    """The pid of the daemon that the file names, if such a process lives."""
    found = read_daemon_file(cache)
    if found is None or found.pid <= 0 or found.pid == os.getpid():
        return None
    try:
        os.kill(found.pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return found.pid


def remove_daemon_file(cache: Path) -> None:
    """Only our own: another daemon may have taken the cache over."""
    found = read_daemon_file(cache)
    if found is not None and found.pid == os.getpid():
        (cache / NAME).unlink(missing_ok=True)
