"""Pages of keys and values, and which text holds which. Page 0 belongs to nobody: rows that pad a step write there."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(slots=True, eq=False)
class Place:
    """pages: of one text, in its order. length: tokens that they hold by now. limit: tokens that fit."""

    pages: NDArray[np.int32]
    limit: int
    length: int = 0


@dataclass(slots=True)
class Pages:
    """count: of pages, with page 0. size: tokens of one. most: texts at once. limit: tokens of one text."""

    count: int
    size: int
    most: int
    limit: int
    places: dict[int, Place] = field(default_factory=dict)
    _free: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self._free = list(range(self.count - 1, 0, -1))

    def fits(self, tokens: int) -> bool:
        return tokens <= self.limit and pages_for(tokens, self.size) < self.count

    def open(self, tokens: int) -> int | None:
        """Number of the place; None while there is no room."""
        wanted = pages_for(tokens, self.size)
        if len(self.places) >= self.most or wanted > len(self._free) or tokens > self.limit:
            return None
        taken = [self._free.pop() for _ in range(wanted)]
        number = next(n for n in range(self.most) if n not in self.places)
        self.places[number] = Place(np.array(taken, dtype=np.int32), tokens)
        return number

    def close(self, number: int) -> None:
        self._free.extend(self.places.pop(number).pages.tolist())

    @property
    def free(self) -> int:
        return len(self._free)


def pages_for(tokens: int, size: int) -> int:
    return -(-tokens // size)
