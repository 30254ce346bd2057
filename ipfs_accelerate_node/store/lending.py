"""How others read a file that is still being written: with descriptors of their own, and without waiting for its end.

A commit holds the file's lock as long as the disk takes to sync it. By then all of it is there and verified, so whoever
only reads need not ask the lock any more.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LOOK_AGAIN_S = 0.05


class Lending:
    """lock: of what is known to be there. whole: all is there and verified; set by who commits, before it takes long.
    numbers: held while a descriptor is closed, whose number may at once be another file's."""

    def __init__(self, lock: threading.RLock) -> None:
        self._lock = lock
        self.numbers = threading.Lock()
        self.whole = False

    @contextmanager
    def looking(self) -> Iterator[bool]:
        """False: all is there. True: that has to be looked up, and the lock is held meanwhile."""
        while not self.whole:
            if self._lock.acquire(timeout=_LOOK_AGAIN_S):
                try:
                    yield not self.whole
                finally:
                    self._lock.release()
                return
        yield False
