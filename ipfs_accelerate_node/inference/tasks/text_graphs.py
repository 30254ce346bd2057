"""Rows of tokens to the arrays of an encoder's graphs, pass by pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ipfs_accelerate_node.inference.batching import Passes, Piece
from ipfs_accelerate_node.inference.model import Ids, Item, Options, Pair, Text
from ipfs_accelerate_node.inference.session import Array, Engine, Feed
from ipfs_accelerate_node.inference.tasks.batches import BATCH_TOKENS, batches, padded
from ipfs_accelerate_node.inference.tasks.texts import Row, TextTokens


@dataclass(frozen=True, slots=True)
class TextGraph:
    """One graph of a text encoder. types: the model tells the first text of a pair from the second by token types.
    full: every row is filled up to so many tokens, which count as real (SigLIP was trained so); 0: as long as needed.
    spans: where in the text a token stands is asked for.
    """

    graph: str
    tokens: TextTokens
    padding_id: int
    types: bool = False
    full: int = 0
    spans: bool = False

    def rows(self, items: Sequence[Item], options: Options, *, prompt: str = "") -> list[Row]:
        """The tokens of texts, pairs and ids, in their order. Raises InvalidInput."""
        return list(self.rows_of(dict(enumerate(items)), options, prompt=prompt).values())

    def rows_of(self, items: Mapping[int, Item], options: Options, *, prompt: str = "") -> dict[int, Row]:
        """``rows`` of some of a request's items, by their index."""
        rows: dict[int, Row] = {}
        texts: list[tuple[int, str, str | None]] = []
        pairs: list[tuple[int, str, str | None]] = []
        for index, item in items.items():
            if isinstance(item, Text):
                texts.append((index, prompt + item.text, None))
            elif isinstance(item, Pair):
                pairs.append((index, item.first, item.second))
            elif isinstance(item, Ids):
                rows[index] = self.tokens.of_ids(index, item.ids, truncate=options.truncate, cut_at=options.cut_at)
        for together in (texts, pairs):
            if together:
                found = self.tokens.rows(together, truncate=options.truncate, spans=self.spans, cut_at=options.cut_at)
                rows.update((text[0], row) for text, row in zip(together, found, strict=True))
        return {index: rows[index] for index in items}

    def pieces(self, items: Sequence[Item], options: Options, *, prompt: str = "") -> list[Piece[Row]]:
        """``rows``, as they are batched."""
        return [self.piece(row) for row in self.rows(items, options, prompt=prompt)]

    def piece(self, row: Row) -> Piece[Row]:
        return Piece(self.graph, max(len(row.ids), self.full), row)

    def feed(self, pieces: Sequence[Piece[Row]], passes: Passes) -> Feed:
        rows = [piece.content for piece in pieces]
        if passes.packed and not self.full:
            return Feed(self.graph, self._packed(rows), packed=True)
        longest = min(passes.length(max(len(row.ids) for row in rows)), max(self.tokens.max_tokens, 1))
        return Feed(self.graph, self.arrays(rows, least=longest))

    def _packed(self, rows: Sequence[Row]) -> dict[str, Array]:
        arrays: dict[str, Array] = {
            "ids": np.concatenate([np.asarray(row.ids, dtype=np.int64) for row in rows]),
            "lengths": np.array([len(row.ids) for row in rows], dtype=np.int32),
        }
        if self.types:
            arrays["types"] = np.concatenate([np.asarray(row.types, dtype=np.int64) for row in rows])
        return arrays

    def arrays(self, rows: Sequence[Row], *, least: int = 0) -> dict[str, Array]:
        ids, mask = padded([row.ids for row in rows], self.padding_id, least=max(least, self.full))
        if self.full:
            mask[:] = 1
        inputs: dict[str, Array] = {"input_ids": ids, "attention_mask": mask}
        if self.types:
            inputs["token_type_ids"], _ = padded([row.types for row in rows], 0, least=max(least, self.full))
        return inputs

    def passes(
        self, engine: Engine, rows: Sequence[Row], between: Callable[[], None], *, budget: int = BATCH_TOKENS
    ) -> Iterator[tuple[list[int], dict[str, Array]]]:
        """(indices, outputs) of one pass after the other, row i of an output for the i-th of the indices."""
        for batch in batches([len(row.ids) for row in rows], budget):
            between()
            yield batch, engine.run(self.graph, self.arrays([rows[index] for index in batch]))

    def one(self, engine: Engine, row: Row) -> dict[str, Array]:
        """One row by itself."""
        return engine.run(self.graph, self.arrays([row]))


def real(values: Array, row: Row) -> Array:
    """What an output (tokens, …) says of the row's own tokens, without padding."""
    return np.asarray(values[: len(row.ids)])
