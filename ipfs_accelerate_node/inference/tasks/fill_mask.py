"""Task fill-mask: what could stand where the text has the model's mask token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ipfs_accelerate_node.errors import NodeError
from ipfs_accelerate_node.inference.batching import Passes, Piece
from ipfs_accelerate_node.inference.model import Fill, Fills, Ids, Item, Options, Output, Text
from ipfs_accelerate_node.inference.session import Array, Asked, Engine, Feed
from ipfs_accelerate_node.inference.tasks import samples
from ipfs_accelerate_node.inference.tasks.checks import check_items, check_options, refuse
from ipfs_accelerate_node.inference.tasks.numbers import not_finite, softmax
from ipfs_accelerate_node.inference.tasks.rows import infer_rows
from ipfs_accelerate_node.inference.tasks.tensors import check_answer, raw_logits
from ipfs_accelerate_node.inference.tasks.text_graphs import TextGraph, real
from ipfs_accelerate_node.inference.tasks.texts import Row

CANDIDATES = 5
MAX_MASKS = 64  # of one text
# Logits are as wide as the vocabulary for every token, so fewer tokens go through together than elsewhere.
_TOKENS = 512


@dataclass(frozen=True, slots=True)
class FillMask:
    """mask: the mask token as it is written; mask_id: its id."""

    graph: TextGraph
    mask: str
    mask_id: int

    def check(self, items: Sequence[Item], options: Options) -> None:
        check_items(items, (Text, Ids), task="fill-mask")
        check_options(options)

    def infer(
        self, engine: Engine, items: Sequence[Item], options: Options, between: Callable[[], None]
    ) -> list[Output]:
        return infer_rows(self, engine, items, options, between)

    def takes(self, items: Sequence[Item]) -> bool:
        return True

    def passes(self, engine: Passes) -> Passes:
        return replace(engine, tokens=min(engine.tokens, _TOKENS), packed=False)

    def prepare(self, items: Sequence[Item], options: Options) -> list[Piece[Row]]:
        rows = self.graph.rows(items, options)
        if options.output == "logits":
            check_answer(sum(len(row.ids) for row in rows) * self.graph.tokens.vocab_size)
            return [self.graph.piece(row) for row in rows]
        for index, row in enumerate(rows):
            masks = row.ids.count(self.mask_id)
            if not 1 <= masks <= MAX_MASKS:
                what = f"has {masks} masks, at most {MAX_MASKS}" if masks else f"has no mask; it is written {self.mask}"
                refuse(index, what)
        return [self.graph.piece(row) for row in rows]

    def feed(self, pieces: Sequence[Piece[Row]], passes: Passes) -> Feed:
        return self.graph.feed(pieces, passes)

    def outputs(self, found: Mapping[str, Array], rows: Sequence[Asked]) -> list[Output | NodeError]:
        outputs: list[Output | NodeError] = []
        for at, asked in enumerate(rows):
            row: Row = asked.piece.content
            logits = real(found["logits"][at], row)
            if asked.options.output == "logits":
                outputs.append(raw_logits(logits, asked))
                continue
            if not np.isfinite(logits).all():
                outputs.append(not_finite(asked.index))
                continue
            fills = self._fills(row, logits, asked.options.top_k or CANDIDATES)
            outputs.append(Fills(fills, len(row.ids), row.truncated))
        return outputs

    def primary(self, engine: Engine, item: Item) -> NDArray[np.float32]:
        """(tokens, vocabulary)"""
        (row,) = self.graph.rows([item], Options())
        return np.asarray(self.graph.one(engine, row)["logits"][0])

    def example(self, number: int) -> Item:
        return Text(samples.MASKED[number % len(samples.MASKED)].format(self.mask))

    def _fills(self, row: Row, logits: NDArray[np.float32], count: int) -> tuple[Fill, ...]:
        places = [at for at, token in enumerate(row.ids) if token == self.mask_id]
        fills: list[Fill] = []
        for place in places:
            scores = softmax(logits[place])
            for token in np.argsort(-scores, kind="stable")[:count].tolist():
                ids = [*row.ids[:place], token, *row.ids[place + 1 :]]
                # the other masks of a text are special tokens too, and must stay to be seen
                text = self.graph.tokens.text(ids, skip_special=len(places) == 1)
                fills.append(
                    Fill(self.graph.tokens.text([token], skip_special=False), token, float(scores[token]), text)
                )
        return tuple(fills)
