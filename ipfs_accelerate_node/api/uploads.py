"""`POST /api/add`: a directory of this host by its path, or one that is uploaded.

Upload form (multipart/form-data): fields ``name`` and ``announce`` (true or false), and one part ``file`` per file,
whose filename is the relative path, "/"-separated and percent-encoded as `ipfs add` and aiohttp's FormData send it.
They are written as they come to a staging directory on the store's device, under a reservation that grows with
them, so the quota holds at every moment; a caller who vanishes leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote_to_bytes

from aiohttp import BodyPartReader, web

from ipfs_accelerate_node.api.access import Surface
from ipfs_accelerate_node.api.bodies import BODY_STALL_S, check_content_type, read_json
from ipfs_accelerate_node.api.context import CONFIG, node
from ipfs_accelerate_node.api.pipeline import Route
from ipfs_accelerate_node.api.traffic import finished
from ipfs_accelerate_node.api.wire import AddRequest, json_reply
from ipfs_accelerate_node.content.cid import shown
from ipfs_accelerate_node.content.names import check_name, check_tree
from ipfs_accelerate_node.errors import (
    BadRequest,
    InvalidInput,
    NodeError,
    PayloadTooLarge,
    StorageError,
    UnsafeContent,
)
from ipfs_accelerate_node.store import Reservation, Store
from ipfs_accelerate_node.store.disk import storing

UPLOADS = "uploads"  # directory of the cache
MAX_FILES = 10_000
MAX_DEPTH = 64
MAX_FIELD_BYTES = 4096
_PIECE_BYTES = 1 << 20  # reserved and written at once
T = TypeVar("T")
_FLAGS = {"": False, "false": False, "0": False, "true": True, "1": True}


async def add(request: web.Request) -> web.Response:
    if request.content_type == "multipart/form-data":
        return await _add_upload(request)
    body = await read_json(request, AddRequest)
    path = Path(body.path)
    if not path.is_absolute() or "\0" in body.path:
        raise InvalidInput(f"path must be absolute, not {shown(body.path)}", param="path")
    work = node(request).add(path, name=body.name, announce=body.announce, move=body.move)
    return json_reply(await finished(work))


async def _add_upload(request: web.Request) -> web.Response:
    check_content_type(request, "multipart/form-data")
    staging = await asyncio.to_thread(_staging, request.app[CONFIG].cache)
    try:
        upload = Upload(staging)
        await upload.receive(request, node(request).store)
        work = node(request).add_staged(upload.directory, name=upload.name, announce=upload.announce)
        return json_reply(await finished(work))
    finally:
        await finished(asyncio.to_thread(shutil.rmtree, staging, ignore_errors=True))


def _staging(cache: Path) -> Path:
    """A fresh directory on the store's device. Raises StorageError."""
    home = cache / UPLOADS
    with storing(f"upload directory {home}"):
        home.mkdir(mode=0o700, exist_ok=True)
        if home.is_symlink():
            raise StorageError(f"{home} is a symlink; remove it")
        (staging := home / secrets.token_hex(8)).mkdir(mode=0o700)
    return staging


def clear_uploads(cache: Path) -> None:
    """What uploads left behind whose daemon was killed. For the start, while nobody uploads."""
    if not (cache / UPLOADS).is_symlink():
        shutil.rmtree(cache / UPLOADS, ignore_errors=True)


class Upload:
    """One form as it comes in. directory: where its files are; name, announce: its fields."""

    def __init__(self, staging: Path) -> None:
        self.directory = staging / "files"
        self.name: str | None = None
        self.announce = False
        self._paths: set[str] = set()

    async def receive(self, request: web.Request, store: Store) -> None:
        """Raises BadRequest, UnsafeContent, PayloadTooLarge, QuotaExceeded, StorageError."""
        with storing("upload"):
            self.directory.mkdir(mode=0o700)
        with await asyncio.to_thread(store.reserve, 0) as reserved:
            try:
                form = await request.multipart()
                while (part := await _timed(form.next())) is not None:
                    if not isinstance(part, BodyPartReader):
                        raise BadRequest("a form within the form is not an upload", code="bad_body")
                    await self._take(part, reserved)
            except NodeError:
                raise
            except (ValueError, AssertionError, web.RequestPayloadError) as exc:
                raise BadRequest("the upload is not multipart/form-data, or ends early", code="bad_body") from exc
        if not self._paths:
            raise BadRequest("the upload has no file", code="bad_body")
        check_tree(self._paths)

    async def _take(self, part: BodyPartReader, reserved: Reservation) -> None:
        match part.name:
            case "file":
                await self._take_file(part, reserved)
            case "name":
                self.name = await _field(part) or None
            case "announce":
                text = (await _field(part)).strip().lower()
                if text not in _FLAGS:
                    raise InvalidInput(f"announce must be true or false, not {shown(text)}", param="announce")
                self.announce = _FLAGS[text]
            case _:
                while await _timed(part.read_chunk()):
                    pass

    async def _take_file(self, part: BodyPartReader, reserved: Reservation) -> None:
        path = upload_path(part.filename or "")
        if path in self._paths:
            raise UnsafeContent(f"{shown(path)} is uploaded twice")
        if len(self._paths) >= MAX_FILES:
            raise PayloadTooLarge(f"more than {MAX_FILES} files")
        self._paths.add(path)
        sink = Sink(self.directory / path, reserved)
        try:
            await finished(asyncio.to_thread(sink.open))
            await _copy(part, sink)
        finally:
            sink.close()


def upload_path(filename: str) -> str:
    """The relative path that a part's filename means. Raises UnsafeContent (code invalid_path)."""
    try:
        path = unquote_to_bytes(filename).decode("utf-8")
    except UnicodeError as exc:
        raise UnsafeContent(f"the file name {shown(filename)} is not UTF-8") from exc
    parts = path.split("/")
    if len(parts) > MAX_DEPTH:
        raise UnsafeContent(f"{shown(path)} lies more than {MAX_DEPTH} directories deep")
    for part in parts:
        check_name(part)
    return path


class Sink:
    """One file that is written as it comes, each piece reserved before. Its calls run in threads, one after another,
    and are always awaited to their end: a descriptor closed under a writer might be another file's by then."""

    def __init__(self, path: Path, reserved: Reservation) -> None:
        self._path = path
        self._reserved = reserved
        self._handle: int | None = None

    def open(self) -> None:
        """Raises UnsafeContent where a directory has that name, or a file that of a directory on the way."""
        with storing(f"upload of {self._path.name}"):
            try:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                self._handle = os.open(self._path, flags, 0o600)
            except (NotADirectoryError, FileExistsError, IsADirectoryError) as exc:
                raise UnsafeContent(f"{shown(self._path.name)}: one path is a file and a directory") from exc

    def write(self, piece: bytes) -> None:
        """Raises QuotaExceeded, StorageError."""
        assert self._handle is not None  # open came first
        self._reserved.grow(len(piece))
        with storing("upload"):
            view = memoryview(piece)
            while view:
                view = view[os.write(self._handle, view) :]

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


async def _copy(part: BodyPartReader, sink: Sink) -> None:
    piece = bytearray()
    while chunk := await _timed(part.read_chunk(_PIECE_BYTES)):
        piece += chunk
        if len(piece) >= _PIECE_BYTES:
            await finished(asyncio.to_thread(sink.write, bytes(piece)))
            piece.clear()
    await finished(asyncio.to_thread(sink.write, bytes(piece)))


async def _field(part: BodyPartReader) -> str:
    text = b""
    while chunk := await _timed(part.read_chunk(MAX_FIELD_BYTES)):
        text += chunk
        if len(text) > MAX_FIELD_BYTES:
            raise PayloadTooLarge(f"the field {shown(part.name or '')} is over {MAX_FIELD_BYTES} bytes")
    try:
        return text.decode("utf-8")
    except UnicodeError as exc:
        raise BadRequest(f"the field {shown(part.name or '')} is not UTF-8", code="bad_body") from exc


async def _timed(step: Awaitable[T]) -> T:
    try:
        async with asyncio.timeout(BODY_STALL_S):
            return await step
    except TimeoutError as exc:
        raise BadRequest(f"the upload stalled for {BODY_STALL_S:.0f} s", code="timeout") from exc


ROUTES = (Route("POST", "/api/add", add, Surface.STATE),)
