"""Several texts of one model being written together, each at a length of its own: what continuous batching stands on.

A place holds the keys and values of one text. It is taken with the number of tokens that the text may come to, so that
who was let in can always finish; texts come and go between two steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Scored:
    """best: (rows,) int64, each row's likeliest token, of equals the first; -1 where its scores are no numbers. scores:
    (wanted rows, vocabulary) float32, of the rows that were asked for, in their order."""

    best: NDArray[np.int64]
    scores: NDArray[np.float32]


class Sequences(Protocol):
    """Every method blocks; main thread of the worker only. Raises InferenceFailed; Unavailable: out_of_memory,
    device_lost.

    most: texts at once.
    """

    most: int

    def fits(self, tokens: int) -> bool:
        """Could a text of so many tokens, prompt and answer together, ever be let in?"""
        ...

    def open(self, tokens: int) -> int | None:
        """A place for a text that comes to so many tokens at most; None while there is no room."""
        ...

    def close(self, place: int) -> None:
        """The text is done, or nobody wants it any more."""
        ...

    def read(self, place: int, ids: Sequence[int], *, scores: bool) -> Scored:
        """Tokens of a prompt go on from what the place holds; what comes after the last of them: one row. scores: are
        they wanted, too?"""
        ...

    def step(self, places: Sequence[int], tokens: Sequence[int], *, scores: Sequence[int] = ()) -> Scored:
        """One token more of each of several texts. scores: of which rows they are wanted."""
        ...
