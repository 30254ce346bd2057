"""A file of the Hub while it comes, as those see it who wait for it or read along."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import NodeError, Unavailable
from ipfs_accelerate_node.fetch.threads import in_thread
from ipfs_accelerate_node.sources.hub_answers import HubFile
from ipfs_accelerate_node.store import Store, StoredFile

Report = Callable[[int], None]


class Part(Protocol):
    """What has come of a file."""

    def reaches(self, offset: int) -> int:
        """Where the bytes end that came and lie without a gap from offset; offset itself if there are none."""

    def lend(self) -> int:
        """A descriptor of it, for the caller to close, that stays good whatever becomes of the file's name."""


class MappedPart:
    """A file that is fetched by its CID: what has come is verified leaf by leaf, but by a map that may lie."""

    def __init__(self, store: Store, cid: Cid) -> None:
        self._store = store
        self._cid = cid
        self._begins = 0

    def reaches(self, offset: int) -> int:
        """See `Part`."""
        file = self._store.underway.file(self._cid, public_only=False)
        end = offset if file is None else self._store.underway.reaches(file, offset)
        self._begins = offset if end > offset else self._begins
        return end

    def lend(self) -> int:
        """See `Part`. Raises Unavailable where it is whole or given up by now."""
        file = self._store.underway.file(self._cid, public_only=False)
        fd = None if file is None else self._store.underway.lend(file, self._begins, self._begins + 1)
        if fd is None:
            raise Unavailable("the file has just been stored or given up; ask again", retry_after_s=1)
        return fd


class Arrival:
    """A file under way, as those see it who wait for it or read along. part: None until it is open."""

    def __init__(self, file: HubFile, source: str) -> None:
        self.file = file
        self.source = source
        self.part: Part | None = None
        self.outcome: StoredFile | NodeError | None = None  # once ended, unless its caller was cancelled
        self.ended = asyncio.Event()
        self.is_sure = False  # each byte that `part` has is verified, and by what was once found right here
        self.restarts = 0  # how often all that had come was dropped
        self._reports: list[Report] = []
        self._stir = asyncio.Event()
        self.is_given = False
        self.received_bytes = 0
        self._is_lost = False
        self._copy = object()

    @contextmanager
    def watched(self, report: Report) -> Iterator[None]:
        self._reports.append(report)
        try:
            yield
        finally:
            self._reports.remove(report)

    def follow(self, before: Arrival, received_bytes: int) -> None:
        """It goes on where another one was cancelled, with so many bytes: of the same copy if none of them was lost."""
        if before.was_left and received_bytes >= before.received_bytes:
            self._copy, self.is_given = before._copy, before.is_given

    @property
    def was_left(self) -> bool:
        """Ended as its caller was cancelled: what came of it stays."""
        return self.ended.is_set() and self.outcome is None and self.restarts == 0 and not self._is_lost

    def goes_on(self, before: Arrival) -> bool:
        """Whether it completes the very copy that bytes were given of when it was another one's."""
        return self._copy is before._copy and self.is_trusted

    def came(self, total_bytes: int) -> None:
        self.received_bytes = total_bytes
        for report in self._reports:
            report(total_bytes)
        self.stir()

    def stir(self) -> None:
        """Wakes everyone who waits in `change`."""
        self._stir.set()
        self._stir = asyncio.Event()

    async def change(self) -> None:
        """Until something came, or it began anew, or ended."""
        if not self.ended.is_set():
            await self._stir.wait()

    @property
    def is_whole(self) -> bool:
        """Verified, and as it came at first: what was given of it is right."""
        return self.restarts == 0 and isinstance(self.outcome, StoredFile)

    @property
    def is_trusted(self) -> bool:
        """Whether bytes of it may be given before all are verified: nobody can have others yet."""
        return self.restarts == 0 and not self._is_lost and not (self.ended.is_set() and not self.is_whole)

    def restart(self) -> None:
        self.restarts += 1
        self._is_lost = True
        self._copy = object()
        self.stir()

    def end(self) -> None:
        self.ended.set()
        self.stir()

    async def give(self, store: Store) -> None:
        """To be called before the first byte that is not verified leaves: so it is known, also after a crash, that
        somebody may have a beginning that is not the right file's."""
        if not self.is_given:
            self.is_given = True
            if not await in_thread(store.unnamed.note_given, self.file.oid):
                self._is_lost = True

    def settle(self, store: Store) -> None:
        """All of it is verified, so what was given was right, if it was of this very copy. Blocks."""
        if self.is_given and not self._is_lost:
            store.unnamed.forget_given(self.file.oid)
