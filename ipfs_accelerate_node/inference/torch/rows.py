"""Texts of different lengths one after the other, without padding: the arrays that a packed pass is given.

All of them lie in one array of int32, each at a multiple of 16 bytes, so that one copy brings them to the device.
Attention goes by blocks: so many queries of one text and of one head. Every array has a place of fixed size, so that a
recorded pass finds it again:

=========  ==========  ===============================================================================================
array      size        holds
=========  ==========  ===============================================================================================
ids        tokens      token ids; 0 beyond the last text
positions  tokens      row of the position table; 0 beyond the last text
types      tokens      token types; 0 beyond the last text
starts     texts + 1   where each text begins; beyond the last one where that ends: texts without a token
at         blocks      first query of the block, counted within its text
first      blocks      where the block's text begins
length     blocks      tokens of the block's text; 0 beyond the last block
=========  ==========  ===============================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]

BLOCK_QUERIES = 64


@dataclass(frozen=True, slots=True)
class Room:
    """How many tokens, texts and blocks of attention fit into one pass."""

    tokens: int
    texts: int
    blocks: int

    @classmethod
    def of(cls, lengths: NDArray[np.integer]) -> Room:
        """Just enough for texts of these lengths."""
        return cls(int(lengths.sum()), len(lengths), int(_blocks(lengths).sum()))

    @classmethod
    def upto(cls, tokens: int, texts: int) -> Room:
        """Enough for any so many texts of so many tokens in all."""
        return cls(tokens, texts, tokens // BLOCK_QUERIES + texts)

    def holds(self, other: Room) -> bool:
        return self.tokens >= other.tokens and self.texts >= other.texts and self.blocks >= other.blocks

    @property
    def size(self) -> int:
        """Numbers in the one array."""
        return sum(map(_aligned, self._sizes().values()))

    def parts(self) -> Mapping[str, slice]:
        """Where each array lies."""
        parts, at = {}, 0
        for name, size in self._sizes().items():
            parts[name] = slice(at, at + size)
            at += _aligned(size)
        return parts

    def _sizes(self) -> Mapping[str, int]:
        return {
            "ids": self.tokens, "positions": self.tokens, "types": self.tokens, "starts": self.texts + 1,
            "at": self.blocks, "first": self.blocks, "length": self.blocks,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Positions:
    """after: a text's first token has this position. padding: a token that stands for none has position ``after - 1``
    and moves no other (RoBERTa); None: every token counts."""

    after: int = 0
    padding: int | None = None


def fill(
    into: Ints,
    room: Room,
    *,
    ids: NDArray[np.integer],
    lengths: NDArray[np.integer],
    types: NDArray[np.integer] | None,
    positions: Positions,
) -> None:
    """Write a batch into the one array, ``room.size`` numbers. ids, types: (tokens,), text after text. lengths:
    (texts,), each at least 1. The batch must fit."""
    parts = room.parts()
    starts = np.concatenate([[0], np.cumsum(lengths)])
    count, rows = len(ids), len(lengths)
    assert count == starts[-1] <= room.tokens
    into[:] = 0
    into[parts["ids"]][:count] = ids
    into[parts["positions"]][:count] = _positions(ids, lengths, starts, positions)
    if types is not None:
        into[parts["types"]][:count] = types
    into[parts["starts"]][: rows + 1] = starts
    into[parts["starts"]][rows + 1 :] = count
    blocks = _blocks(lengths)
    total = int(blocks.sum())
    into[parts["at"]][:total] = (np.arange(total) - np.repeat(np.cumsum(blocks) - blocks, blocks)) * BLOCK_QUERIES
    into[parts["first"]][:total] = np.repeat(starts[:-1], blocks)
    into[parts["length"]][:total] = np.repeat(lengths, blocks)


def _aligned(size: int) -> int:
    return -(-size // 4) * 4


def _blocks(lengths: NDArray[np.integer]) -> NDArray[np.integer]:
    blocks: NDArray[np.integer] = -(-lengths // BLOCK_QUERIES)
    return blocks


def _positions(
    ids: NDArray[np.integer], lengths: NDArray[np.integer], starts: NDArray[np.integer], positions: Positions
) -> NDArray[np.integer]:
    if positions.padding is None:
        counted: NDArray[np.integer] = np.arange(len(ids)) - np.repeat(starts[:-1], lengths)
        return counted + positions.after
    real = (ids != positions.padding).astype(np.int64)
    upto = np.cumsum(real)
    before = np.concatenate([[0], upto])[starts[:-1]]
    inside: NDArray[np.integer] = (upto - np.repeat(before, lengths)) * real
    return inside + positions.padding
