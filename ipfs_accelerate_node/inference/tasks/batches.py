"""Which items go through the model together, and the arrays they become."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

# Tokens of one forward pass, padding included: bounds memory, and how long a pass may go without a sign of life.
BATCH_TOKENS = 2048


def batches(lengths: Sequence[int], budget: int = BATCH_TOKENS, *, most: int = 4096) -> Iterator[list[int]]:
    """Indices of rows that go through the model together: similar lengths, at most ``budget`` tokens with padding (or
    one row), at most ``most`` rows. Longest first, so that memory peaks at once or never."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and (len(batch) >= most or lengths[batch[0]] * (len(batch) + 1) > budget):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def padded(
    rows: Sequence[Sequence[int]], fill: int, *, left: bool = False, least: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(values, mask), both (rows, longest or least): rows filled up on the right, or on the left."""
    longest = max(least, *map(len, rows))
    values = np.full((len(rows), longest), fill, dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    for at, row in enumerate(rows):
        place = slice(longest - len(row), longest) if left else slice(0, len(row))
        values[at, place] = row
        mask[at, place] = 1
    return values, mask
