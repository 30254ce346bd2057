"""Several texts of one model being written together, each at a length of its own: what continuous batching stands on.

A place holds the keys and values of one text. It is taken with the number of tokens that the text may come to, so that
who was let in can always finish; texts come and go between two steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from ipfs_accelerate_node.errors import InferenceFailed

if TYPE_CHECKING:
    from ipfs_accelerate_node.inference.session import Decoder


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


class DecoderSequences:
    """A decoder for each text, one after the other: for engines that write no other way. length: tokens of one text."""

    def __init__(self, decoder: Callable[[], Decoder], *, length: int, most: int = 8) -> None:
        self.most = most
        self._decoder = decoder
        self._length = length
        self._open: dict[int, tuple[Decoder, int]] = {}  # and the tokens that it has read

    def fits(self, tokens: int) -> bool:
        return tokens <= self._length

    def open(self, tokens: int) -> int | None:
        if len(self._open) >= self.most or not self.fits(tokens):
            return None
        decoder = self._decoder()
        decoder.start(None)
        place = next(number for number in range(self.most) if number not in self._open)
        self._open[place] = decoder, 0
        return place

    def close(self, place: int) -> None:
        del self._open[place]

    def read(self, place: int, ids: Sequence[int], *, scores: bool) -> Scored:
        return scored(self._more(place, ids), [0] if scores else [])

    def step(self, places: Sequence[int], tokens: Sequence[int], *, scores: Sequence[int] = ()) -> Scored:
        rows = [self._more(place, [token]) for place, token in zip(places, tokens, strict=True)]
        return scored(np.concatenate(rows), scores)

    def _more(self, place: int, ids: Sequence[int]) -> NDArray[np.float32]:
        decoder, length = self._open[place]
        if not ids or length + len(ids) > self._length:
            raise InferenceFailed("a text is longer than what it was let in for")
        length += len(ids)
        found = decoder.step(np.array([ids], dtype=np.int64), np.ones((1, length), dtype=np.int64))
        self._open[place] = decoder, length
        return found


def scored(found: NDArray[np.float32], wanted: Sequence[int]) -> Scored:
    """found: (rows, vocabulary)."""
    best = found.argmax(axis=1).astype(np.int64)
    best[~np.isfinite(found.max(axis=1))] = -1  # NaN is the most of any
    return Scored(best, found[list(wanted)])
