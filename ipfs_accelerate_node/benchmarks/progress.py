"""What a benchmark is at, for who waits for it.

Telling costs the measurement next to nothing: repeats are told of a few times a second at most, and only between two.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Phase = Literal["loading", "reference", "comparing", "warm-up", "measuring", "publishing"]
Count = Callable[[Phase, int, int], None]

APART_S = 0.5


@dataclass(frozen=True, slots=True)
class Doing:
    """workload: empty where the phase is of the whole device. done, of: repeats; both 0 where nothing is counted."""

    device: str
    workload: str
    phase: Phase
    done: int = 0
    of: int = 0


Tell = Callable[[Doing], None]


def untold(phase: Phase, done: int, of: int) -> None:
    """For a measurement that nobody watches."""


class Telling:
    """tell: gets each new phase at once, and of its repeats those that are APART_S apart."""

    def __init__(self, tell: Tell, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._tell = tell
        self._clock = clock
        self._last: tuple[str, str, Phase] | None = None
        self._told_s = 0.0

    def __call__(self, doing: Doing) -> None:
        what, now = (doing.device, doing.workload, doing.phase), self._clock()
        if what == self._last and now - self._told_s < APART_S:
            return
        self._last, self._told_s = what, now
        self._tell(doing)

    def of(self, device: str, workload: str) -> Count:
        """For the repeats of one workload."""
        return lambda phase, done, of: self(Doing(device, workload, phase, done, of))
