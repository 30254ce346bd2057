"""Files that a command writes where the user says: whole or not at all, and none that is there already is touched
unless the user says so."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from pathlib import Path

import click

from ipfs_accelerate_node.errors import Conflict, StorageError

FORCE = click.option("--force", is_flag=True, help="Write over files that are there.")


def check_new(path: Path, *, force: bool) -> None:
    """Before any work is done for it. Raises Conflict (file_exists), StorageError where it cannot be a file."""
    if os.path.isdir(path):
        raise StorageError(f"{path} is a directory", path=str(path))
    if os.path.lexists(path) and not force:
        raise _exists(path)
    if not os.path.isdir(path.parent):
        raise StorageError(f"{path} cannot be written: there is no directory {path.parent}", path=str(path))
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise StorageError(f"{path} cannot be written: nobody may write in {path.parent}", path=str(path))


def write_new(path: Path, data: bytes, *, force: bool) -> None:
    """Under a name of its own first, then under its name in one step; a link there is replaced, never followed. Raises
    Conflict (file_exists), StorageError."""
    draft = path.parent / f".{path.name[:100]}.{secrets.token_hex(6)}"
    try:
        try:
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            _named(draft, path, force=force)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(draft)
    except FileExistsError as exc:
        raise _exists(path) from exc
    except OSError as exc:
        raise StorageError(f"{path} cannot be written: {exc.strerror or exc}", path=str(path)) from exc


def _named(draft: Path, path: Path, *, force: bool) -> None:
    if not force:
        try:
            os.link(draft, path)  # which never replaces what came there meanwhile
            return
        except OSError as exc:
            if exc.errno not in (errno.EPERM, errno.EOPNOTSUPP) or os.path.lexists(path):
                raise
    os.replace(draft, path)


def _exists(path: Path) -> Conflict:
    return Conflict(f"{path} is there already; --force writes over it", code="file_exists", path=str(path))
