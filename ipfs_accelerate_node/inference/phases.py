"""Where the time of a load goes."""

from __future__ import annotations

import time


class Phases:
    """Seconds of each phase of a load, one after the other."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._name: str | None = None
        self._began = 0.0

    def enter(self, name: str | None) -> None:
        """None: the load has ended."""
        now = time.monotonic()
        if self._name is not None:
            self.seconds[self._name] = self.seconds.get(self._name, 0.0) + now - self._began
        self._name, self._began = name, now
