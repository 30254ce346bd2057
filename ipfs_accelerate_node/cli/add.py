"""`add`: a directory of the daemon's host, one that is uploaded to it, or (``--only-hash``) no daemon at all."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from ipfs_accelerate_node.cli.options import MODEL_NAME, daemon_options
from ipfs_accelerate_node.cli.render import clean, fields, print_json, receipt, size
from ipfs_accelerate_node.errors import BadRequest, StorageError, UnsafeContent

if TYPE_CHECKING:
    from ipfs_accelerate_node.cli.client import Daemon

PIECE_BYTES = 1 << 20


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--name", type=MODEL_NAME, help="A name to call it by from now on.")
@click.option("--announce", is_flag=True, help="Tell the IPFS network that it can be had here; else nobody is told.")
@click.option("--move", is_flag=True, help="Take the files over instead of copying them.")
@click.option("--upload", is_flag=True, help="Send the files: the daemon runs on another machine.")
@click.option("--only-hash", is_flag=True, help="Print the CID; nothing is stored, no daemon is needed.")
@daemon_options
def add(
    directory: Path, name: str | None, announce: bool, move: bool, upload: bool, only_hash: bool, daemon: Daemon,
    as_json: bool,
) -> None:  # fmt: skip
    """Take a directory into the store and print its CID.

    Hidden files are left out, symbolic links refused. The root is the one that `ipfs add -r` gives with the import
    profile unixfs-v1-2025.
    """
    if only_hash:
        if name or announce or move or upload:
            raise click.UsageError("--only-hash stores nothing, so it goes with no other option of add")
        _print_root(directory, as_json=as_json)
        return
    if move and upload:
        raise click.UsageError("--move and --upload exclude each other")
    if upload:
        files = upload_files(directory)
        boundary = f"ian-{secrets.token_hex(16)}"
        form = _form(directory, files, boundary, {"name": name, "announce": "true" if announce else "false"})
        done = daemon.upload("/api/add", f"multipart/form-data; boundary={boundary}", form)
    else:
        wanted = {"path": str(directory.absolute()), "name": name, "announce": announce, "move": move}
        done = daemon.call("POST", "/api/add", wanted)
    if as_json:
        print_json(done)
    else:
        receipt(done)


def _print_root(directory: Path, *, as_json: bool) -> None:
    from ipfs_accelerate_node.store.ingest import hash_directory

    plan = hash_directory(directory.absolute()).plan
    if as_json:
        print_json({"root": str(plan.root), "bytes_total": plan.size_bytes, "files": len(plan.files)})
    else:
        fields([("root", plan.root), ("size", f"{size(plan.size_bytes)} in {len(plan.files)} files")])


def upload_files(directory: Path) -> list[str]:
    """Relative paths, "/"-separated and sorted, of the files that `add` takes.

    Raises UnsafeContent for what is neither file nor directory, and BadRequest for an empty directory, which a form
    cannot carry (the root would be another).
    """
    found: list[str] = []
    pending = [""]
    while pending:
        folder = pending.pop()
        entries = _entries(directory / folder)
        if not entries:
            raise BadRequest(f"{clean(folder or directory)} is an empty directory, which an upload cannot carry")
        for entry in entries:
            path = f"{folder}{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                pending.append(f"{path}/")
            elif entry.is_file(follow_symlinks=False):
                found.append(path)
            else:
                raise UnsafeContent(f"{clean(path)} is neither a file nor a directory", code="unsafe_file")
    return sorted(found)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as exc:
        raise StorageError(f"{clean(folder)} cannot be read: {exc.strerror}") from exc


def _form(directory: Path, files: list[str], boundary: str, values: dict[str, Any]) -> Iterator[bytes]:
    """multipart/form-data in pieces: the fields, then one part per file with its percent-encoded path as filename."""
    for field, value in values.items():
        if value is not None:
            yield f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"\r\n\r\n{value}\r\n'.encode()
    for path in files:
        name = quote(os.fsencode(path), safe="/")
        yield (
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        ).encode()
        yield from _pieces(directory / path)
        yield b"\r\n"
    yield f"--{boundary}--\r\n".encode()


def _pieces(path: Path) -> Iterator[bytes]:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise UnsafeContent(f"{clean(path)} is no regular file any more", code="unsafe_file")
            while piece := file.read(PIECE_BYTES):
                yield piece
    except OSError as exc:
        raise StorageError(f"{clean(path)} cannot be read: {exc.strerror}") from exc
