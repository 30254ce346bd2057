"""Bytes of stored files on their way out: by sendfile, or (``--paranoid``) leaf by leaf, hashed before it leaves.

A file is opened before the first byte of the reply, so that removing its model meanwhile does not cut the reply short.
"""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Sequence
from pathlib import Path

from aiohttp import web

from ipfs_accelerate_node.api.limiter import Giving
from ipfs_accelerate_node.api.ranges import Span
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.plan import FilePlan, Leaf
from ipfs_accelerate_node.content.walk import DagWalk
from ipfs_accelerate_node.errors import NotFound
from ipfs_accelerate_node.store import Store, StoredFile
from ipfs_accelerate_node.store.disk import READ_FLAGS, storing


async def opened(store: Store, file: StoredFile | FilePlan, span: Span) -> io.BufferedReader | None:
    """The file, for the caller to close; one that is being fetched only if those bytes are all there and verified."""
    if isinstance(file, StoredFile):
        return _open(file.path)  # on the loop: a thread's descriptor would be lost if the caller left meanwhile
    fd = await _lent(store, file, span)
    if fd is not None:
        return io.BufferedReader(io.FileIO(fd, closefd=True))
    stored = await asyncio.to_thread(store.file, file.cid)  # perhaps it has just been finished
    return None if stored is None else _open(stored.path)


async def _lent(store: Store, file: FilePlan, span: Span) -> int | None:
    lending = asyncio.ensure_future(asyncio.to_thread(store.underway.lend, file, span.start, span.stop))
    try:
        return await asyncio.shield(lending)
    except asyncio.CancelledError:
        lending.add_done_callback(_give_back)
        raise


def _give_back(lending: asyncio.Future[int | None]) -> None:
    if not lending.cancelled() and lending.exception() is None and (fd := lending.result()) is not None:
        os.close(fd)


async def send_file(
    request: web.Request, reply: web.StreamResponse, file: io.BufferedReader, span: Span, giving: Giving
) -> None:
    """The prepared head, then those bytes straight from the page cache. Closes the file. Raises ConnectionError after
    the first byte."""
    try:
        reply.content_length = span.length
        await reply.prepare(request)
        if request.method == "HEAD" or not span.length:
            file.close()
            return
        if request.transport is None:
            raise ConnectionResetError("the client is gone")
    except BaseException:
        file.close()
        raise
    await giving.send(request.transport, file, span.start, span.stop)


class LeafMaps:
    """The leaves of stored files, for `send_checked`. The last few are kept: a CID's leaves never change,
    and where leaves are dag-pb blocks, finding them reads the whole file, which not every range may cost."""

    KEPT = 16

    def __init__(self, store: Store) -> None:
        self.store = store
        self._known: dict[Cid, tuple[Leaf, ...]] = {}

    async def leaves(self, root: Cid, file: Cid) -> tuple[Leaf, ...]:
        """root: of the model through which the file is asked for, if it is one. Raises NotFound (code corrupt)."""
        key = file.canonical
        found = self._known.pop(key, None)
        if found is None:
            found = await asyncio.to_thread(self._find, root.canonical, key)
        self._known[key] = found
        while len(self._known) > self.KEPT:
            del self._known[next(iter(self._known))]
        return found

    def _find(self, root: Cid, file: Cid) -> tuple[Leaf, ...]:
        if (plan := self.store.plan(root)) is not None:
            for planned in plan.files:
                if planned.cid.canonical == file:
                    return planned.leaves
        if (coming := self.store.underway.file(file, public_only=False)) is not None:
            return coming.leaves
        walk = DagWalk(file)
        while wanted := walk.wanted(1):
            block = self.store.block(wanted[0])
            if block is None:
                raise NotFound(f"{wanted[0]} is not here any more, or was found corrupt", code="corrupt")
            walk.give(wanted[0], block)
        return walk.plan().files[0].leaves


async def send_checked(
    request: web.Request, reply: web.StreamResponse, store: Store, leaves: Sequence[Leaf], span: Span, giving: Giving
) -> None:
    """The same bytes from leaves that match their CIDs at this moment. The first one is read before the head, so that
    a file that is corrupt from its start is a plain error; later the connection is cut.

    Raises NotFound (code corrupt) for a leaf that does not match; the store has quarantined its file by then.
    """
    wanted = [leaf for leaf in leaves if leaf.offset < span.stop and leaf.offset + leaf.length > span.start]
    reply.content_length = span.length
    if request.method == "HEAD" or not wanted:
        await reply.prepare(request)
        return
    piece = await asyncio.to_thread(_checked, store, wanted[0], span)
    await reply.prepare(request)
    await giving.turn("file", len(piece))
    await reply.write(piece)
    for leaf in wanted[1:]:
        piece = await asyncio.to_thread(_checked, store, leaf, span)
        await giving.turn("file", len(piece))
        await reply.write(piece)


def _checked(store: Store, leaf: Leaf, span: Span) -> bytes:
    block = leaf.cid.inline or store.block(leaf.cid) or store.partial_block(leaf.cid)
    if block is None:
        raise NotFound(f"{leaf.cid} is not here any more, or was found corrupt", code="corrupt", cid=str(leaf.cid))
    start = len(leaf.prefix) + max(span.start - leaf.offset, 0)
    stop = len(leaf.prefix) + min(span.stop - leaf.offset, leaf.length)
    return block[start:stop]


def _open(path: Path) -> io.BufferedReader:
    with storing(f"stored file {path.name}"):
        return io.BufferedReader(io.FileIO(os.open(path, READ_FLAGS), closefd=True))
