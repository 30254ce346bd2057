"""Which jobs a worker is at, on a page of memory that its daemon shares: read after a crash, to tell the jobs that were
at the device from those that only waited there.

The page: how many jobs are at the device, the job that is tokenized (0: none), then the jobs at the device; 8 bytes
each, little-endian. The worker writes, and may write nonsense: that costs its own jobs a second try, no more.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterable

MOST = 1022
_BYTES = 8 * (MOST + 2)


class Blame:
    """One end of the page. descriptor: of the memory."""

    def __init__(self, descriptor: int) -> None:
        self._page = mmap.mmap(descriptor, _BYTES)

    @classmethod
    def create(cls) -> tuple[Blame, int]:
        """The daemon's end, and a descriptor for the worker, which the caller closes."""
        descriptor = os.memfd_create("worker-blame")
        os.ftruncate(descriptor, _BYTES)
        return cls(descriptor), descriptor

    def computing(self, jobs: Iterable[int]) -> None:
        """The device's thread: these from now on; none: it is idle."""
        numbers = list(jobs)[:MOST]
        struct.pack_into("<Q", self._page, 0, 0)
        struct.pack_into(f"<{len(numbers)}Q", self._page, 16, *numbers)
        struct.pack_into("<Q", self._page, 0, len(numbers))

    def tokenizing(self, job: int) -> None:
        struct.pack_into("<Q", self._page, 8, job)

    def jobs(self) -> frozenset[int]:
        if self._page.closed:
            return frozenset()
        count, tokenized = struct.unpack_from("<2Q", self._page)
        return frozenset((*struct.unpack_from(f"<{min(count, MOST)}Q", self._page, 16), tokenized)) - {0}

    def close(self) -> None:
        self._page.close()
