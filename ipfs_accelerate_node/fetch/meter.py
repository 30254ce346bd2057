"""How fast something goes, over the last few seconds. Pure: told the time."""

from __future__ import annotations

from collections import deque

WINDOW_S = 3.0
_STEP_S = 0.1  # what comes within it is one entry
_MEASURED_S = 0.05  # a rate over less than this says nothing


class Meter:
    """Bytes a second of one source, or of all together."""

    def __init__(self) -> None:
        self._came: deque[tuple[float, int]] = deque()
        self._since: float | None = None

    def begin(self, now: float) -> None:
        """Work starts, after a pause or for the first time: what follows is measured from here."""
        self._drop(now)
        if not self._came:
            self._since = now

    def add(self, size_bytes: int, now: float) -> None:
        if self._since is None:
            self._since = now
        if self._came and now - self._came[-1][0] < _STEP_S:
            at, before = self._came[-1]
            self._came[-1] = (at, before + size_bytes)
        else:
            self._came.append((now, size_bytes))
        self._drop(now)

    def rate(self, now: float) -> float | None:
        """Bytes a second over the last WINDOW_S, or since the beginning; None before there is anything to go by."""
        self._drop(now)
        if self._since is None:
            return None
        passed = min(WINDOW_S, now - self._since)
        if passed < _MEASURED_S:
            return None
        return sum(size for _, size in self._came) / passed

    def _drop(self, now: float) -> None:
        while self._came and now - self._came[0][0] > WINDOW_S:
            self._came.popleft()
