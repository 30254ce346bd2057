"""One pass over a file's bytes, three digests: each leaf's, the file's sha256, git's blob sha1 (of files that git may
hold). Constant memory.

The caller's thread reads (and writes, when copying); one thread for each digest hashes, all without the interpreter's
lock. A buffer is used again once all three are done with it, which also bounds how far reading runs ahead.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from types import TracebackType
from typing import Self

from ipfs_accelerate_node.content.build import CHUNK_BYTES
from ipfs_accelerate_node.content.cid import RAW, SHA2_256, Cid
from ipfs_accelerate_node.content.plan import Leaf
from ipfs_accelerate_node.errors import BadRequest
from ipfs_accelerate_node.store.sidecar import Hashes

BUFFERS = 12  # of one leaf each
GIT_BYTES = 16 << 20  # the Hub keeps files over 10 MB outside git: of larger ones nobody asks for git's digest
Sink = Callable[[memoryview, int], None]
_Task = Callable[[], None]


@dataclass(frozen=True, slots=True)
class HashedFile:
    size: int
    leaves: tuple[Leaf, ...]
    hashes: Hashes


class _Buffer:
    """A leaf's worth of bytes, and how many digests still want them."""

    def __init__(self, free: SimpleQueue[_Buffer]) -> None:
        self.memory = bytearray(CHUNK_BYTES)
        self._free = free
        self._wanted = 0
        self._lock = threading.Lock()

    def lend(self, readers: int) -> None:
        self._wanted = readers

    def done(self) -> None:
        with self._lock:
            self._wanted -= 1
            if self._wanted:
                return
        self._free.put(self)


class Hasher:
    """A context that owns the hashing threads; `hash` may be called for one file after another."""

    def __init__(self) -> None:
        self._free: SimpleQueue[_Buffer] = SimpleQueue()
        self._queues: list[SimpleQueue[_Task | None]] = [SimpleQueue() for _ in range(3)]
        self._threads = [
            threading.Thread(target=_serve, args=(queue,), name=f"hash {name}", daemon=True)
            for name, queue in zip(("leaves", "sha256", "git-sha1"), self._queues, strict=True)
        ]

    def __enter__(self) -> Self:
        for _ in range(BUFFERS):
            self._free.put(_Buffer(self._free))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        for queue in self._queues:
            queue.put(None)
        for thread in self._threads:
            thread.join()

    def hash(
        self, fd: int, size: int, sink: Sink | None = None, progress: Callable[[int], None] | None = None
    ) -> HashedFile:
        """size: what the file is expected to have; git's digest needs it first. sink: is given every leaf in order, and
        its offset, in this thread. progress: told the bytes read so far of this file.

        Raises BadRequest (code source_changed) if the file is shorter or longer, OSError.
        """
        sha256 = hashlib.sha256()
        git_sha1 = git_blob(size)
        digests: list[bytes] = []
        offset = 0
        while offset < size:
            buffer = self._free.get()
            view = memoryview(buffer.memory)
            try:
                count = _fill(fd, view[: min(CHUNK_BYTES, size - offset)], offset)
            except OSError:
                self._free.put(buffer)
                raise
            if count != min(CHUNK_BYTES, size - offset):
                self._free.put(buffer)
                raise changed()
            part = view[:count]
            buffer.lend(2 + bool(git_sha1) + bool(sink))
            self._queues[0].put(_leaf(digests, part, buffer))
            self._queues[1].put(_update(sha256.update, part, buffer))
            if git_sha1:
                self._queues[2].put(_update(git_sha1.update, part, buffer))
            if sink:
                try:
                    sink(part, offset)
                finally:
                    buffer.done()
            offset += count
            if progress:
                progress(offset)
        if os.pread(fd, 1, size):
            raise changed()
        self._drain()
        return HashedFile(
            size, leaves_of(digests, size), Hashes(sha256.digest(), git_sha1.digest() if git_sha1 else b"")
        )

    def _drain(self) -> None:
        """Waits until every thread has done what was queued."""
        for queue in self._queues:
            finished = threading.Event()
            queue.put(finished.set)
            finished.wait()


def git_blob(size: int) -> hashlib._Hash | None:
    """Begins git's digest of a file of that size; None for one too large to be in a repository of the Hub."""
    return hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False) if size <= GIT_BYTES else None


def changed() -> BadRequest:
    return BadRequest("the file changed while it was read; nothing was stored", code="source_changed")


def _serve(queue: SimpleQueue[_Task | None]) -> None:
    while (task := queue.get()) is not None:
        task()


def _leaf(digests: list[bytes], part: memoryview, buffer: _Buffer) -> _Task:
    def task() -> None:
        digests.append(hashlib.sha256(part).digest())
        buffer.done()

    return task


def _update(update: Callable[[memoryview], None], part: memoryview, buffer: _Buffer) -> _Task:
    def task() -> None:
        update(part)
        buffer.done()

    return task


def _fill(fd: int, view: memoryview, offset: int) -> int:
    """Bytes read: fewer than asked for only at the end of the file."""
    have = 0
    while have < len(view):
        count = os.preadv(fd, [view[have:]], offset + have)
        if count == 0:
            break
        have += count
    return have


def leaves_of(digests: list[bytes], size: int) -> tuple[Leaf, ...]:
    """digests: sha256 of each leaf of a file of that size, in order."""
    head = bytes((SHA2_256, 32))
    if not digests:
        return (Leaf(Cid.of(b""), 0, 0),)
    return tuple(
        Leaf(Cid(1, RAW, head + digest), at * CHUNK_BYTES, min(CHUNK_BYTES, size - at * CHUNK_BYTES))
        for at, digest in enumerate(digests)
    )
