"""The remote pinning services that the user named, and what is asked of them.

Names, URLs and keys lie in ``<cache>/remotes.json`` (0600, written whole or not at all). What a service keeps is asked
of it each time, so nothing here can differ from it; and a pin that may have been taken, because its answer was lost, is
found again instead of being made twice.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from ipfs_accelerate_node.content.cid import Cid, shown
from ipfs_accelerate_node.content.reference import RootRef, parse_reference
from ipfs_accelerate_node.errors import (
    BadContent,
    BadRequest,
    Conflict,
    NotFound,
    QuotaExceeded,
    Unavailable,
)
from ipfs_accelerate_node.kubo import KuboService
from ipfs_accelerate_node.pinning.origins import MAX_ORIGINS, dial
from ipfs_accelerate_node.pinning.remote import Remote, RemotePin, RemotePins, RemoteService, checked_key, checked_url
from ipfs_accelerate_node.pinning.requests import Ask, Status
from ipfs_accelerate_node.store import StoredModel, disk

log = logging.getLogger(__name__)

FILE = "remotes.json"
MAX_REMOTES = 64
_MAX_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ALIVE = (Status.QUEUED, Status.PINNING, Status.PINNED)


class _Kept(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    url: str
    key: str


class _Page(msgspec.Struct, forbid_unknown_fields=True):
    remotes: list[_Kept] = []


class Remotes:
    """find: the stored model of a reference; raises NotFound. Opening raises BadContent for a file that is not ours."""

    def __init__(self, cache: Path, kubo: KuboService, find: Callable[[str], StoredModel]) -> None:
        self._cache = cache
        self._kubo = kubo
        self._find = find
        self._lock = threading.Lock()
        self._remotes = {kept.name: Remote(kept.name, kept.url, kept.key) for kept in self._read().remotes}

    def all(self) -> list[Remote]:
        return list(self._remotes.values())

    def get(self, name: str) -> Remote:
        """Raises NotFound."""
        if name not in self._remotes:
            raise NotFound(f"no remote is called {shown(name)}; `remote ls` lists them", code="remote_not_found")
        return self._remotes[name]

    async def add(self, name: str, url: str, key: str) -> Remote:
        """Once the service accepts the key. Raises BadRequest, Conflict (code remote_exists), QuotaExceeded, and as
        `RemoteService` does; nothing is kept then."""
        if not _NAME.fullmatch(name):
            raise BadRequest(
                f"{shown(name)} is no name for a remote: letters, digits, . _ - and at most 64",
                code="bad_remote_name",
                param="name",
            )
        remote = Remote(name, checked_url(url), checked_key(key))
        self._check_new(name)
        await RemoteService(remote).find(limit=1)
        await asyncio.to_thread(self._keep, remote)
        log.info("remote.added name=%s url=%s", name, remote.url)
        return remote

    def remove(self, name: str) -> Remote:
        """What it keeps, it goes on keeping. Blocks. Raises NotFound, StorageError."""
        with self._lock:
            removed = self.get(name)
            self._write({other: remote for other, remote in self._remotes.items() if other != name})
        return removed

    async def pin(self, name: str, ref: str, label: str | None) -> RemotePin:
        """Asks it to keep that root; the request that it has of it already, where it has one.

        Raises Conflict (code private_model), NotFound, BadRequest, and as `RemoteService` does.
        """
        service = RemoteService(self.get(name))
        cid, here = await asyncio.to_thread(self._meant, ref)
        if (known := await service.find(cid=cid, statuses=_ALIVE, limit=1)).results:
            made = known.results[0]
        else:
            origins = await self._addresses() if here else ()
            made = await service.add(Ask(cid, label, origins))
            log.info("remote.pin name=%s root=%s id=%s", name, cid, made.requestid)
        if here and made.status is not Status.PINNED:
            await self._meet(made, local=service.remote.local)
        return made

    async def pin_status(self, name: str, request_id: str) -> RemotePin:
        return await RemoteService(self.get(name)).get(request_id)

    async def pins(self, name: str, ref: str | None, limit: int) -> RemotePins:
        """Its latest requests. ref: only of that root."""
        service = RemoteService(self.get(name))
        cid = None if ref is None else (await asyncio.to_thread(self._meant, ref, private=True))[0]
        return await service.find(cid=cid, limit=limit)

    async def unpin(self, name: str, ref: str) -> list[RemotePin]:
        """Every request of that root, or the one with that id, is removed there. Raises NotFound if there is none."""
        service = RemoteService(self.get(name))
        try:
            cid, _ = await asyncio.to_thread(self._meant, ref, private=True)
        except (NotFound, BadRequest):
            found = [await service.get(ref)]
        else:
            found = (await service.find(cid=cid, limit=1000)).results
        if not found:
            raise NotFound(f"{name} has no request of {ref}", code="remote_pin_not_found", remote=name)
        for pin in found:
            await service.remove(pin.requestid)
        return found

    def _meant(self, ref: str, *, private: bool = False) -> tuple[Cid, bool]:
        """The root, and whether it is here. private: it may be. Blocks. Raises NotFound, BadRequest, Conflict."""
        reference = parse_reference(ref)
        try:
            model = self._find(ref)
        except NotFound:
            if isinstance(reference, RootRef) and not reference.path:
                return reference.cid, False
            raise NotFound(f"{shown(ref)} is not here: pin it here first, or name it by its CID") from None
        if not (model.public or private):
            raise Conflict(
                f"{ref} is private here; `share` it before a service is given it", code="private_model", ref=ref
            )
        return model.root, True

    async def _addresses(self) -> tuple[str, ...]:
        if self._kubo.state != "ready":
            return ()
        try:
            return tuple((await self._kubo.client.addresses())[:MAX_ORIGINS])
        except Unavailable as exc:
            log.info("remote.no_origins reason=%s", exc)
            return ()

    async def _meet(self, made: RemotePin, *, local: bool) -> None:
        """Our Kubo, which has it, connects to those of the service that fetch it."""
        if made.delegates and self._kubo.state == "ready":
            await dial(self._kubo.client, made.delegates, local=local)

    # -- the file

    def _check_new(self, name: str) -> None:
        if name in self._remotes:
            raise Conflict(f"a remote is called {name} already: remove it first", code="remote_exists", param="name")
        if len(self._remotes) >= MAX_REMOTES:
            raise QuotaExceeded(f"{MAX_REMOTES} remotes are the most", code="too_many_remotes")

    def _keep(self, remote: Remote) -> None:
        with self._lock:
            self._check_new(remote.name)
            self._write({**self._remotes, remote.name: remote})

    def _write(self, remotes: dict[str, Remote]) -> None:
        page = _Page([_Kept(r.name, r.url, r.key) for r in remotes.values()])
        with disk.storing(f"cannot write {FILE}"):
            folder = disk.open_directory(self._cache)
            try:
                disk.write_file(FILE, msgspec.json.encode(page), dir_fd=folder)
            finally:
                os.close(folder)
        self._remotes = remotes

    def _read(self) -> _Page:
        with disk.storing(f"cannot read {FILE}"):
            folder = disk.open_directory(self._cache)
            try:
                data = disk.read_file(FILE, dir_fd=folder, limit_bytes=_MAX_BYTES)
            except FileNotFoundError:
                return _Page()
            finally:
                os.close(folder)
        try:
            return msgspec.json.decode(data, type=_Page)
        except msgspec.MsgspecError as exc:
            raise BadContent(f"{FILE} in the cache is damaged: {exc}; mend or remove it", code="bad_remotes") from exc
