"""Task fill-mask: what could stand where the text has the model's mask token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ipfs_accelerate_node.inference.model import Fill, Fills, Ids, Item, Options, Output, Text
from ipfs_accelerate_node.inference.session import Engine
from ipfs_accelerate_node.inference.tasks import samples
from ipfs_accelerate_node.inference.tasks.checks import check_items, check_options, refuse
from ipfs_accelerate_node.inference.tasks.numbers import check_finite, softmax
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
        rows = self.graph.rows(items, options)
        for index, row in enumerate(rows):
            masks = row.ids.count(self.mask_id)
            if not 1 <= masks <= MAX_MASKS:
                what = f"has {masks} masks, at most {MAX_MASKS}" if masks else f"has no mask; it is written {self.mask}"
                refuse(index, what)
        found: dict[int, Output] = {}
        for batch, outputs in self.graph.passes(engine, rows, between, budget=_TOKENS):
            for at, index in enumerate(batch):
                row = rows[index]
                logits = real(outputs["logits"][at], row)
                check_finite(logits[None], [index])
                fills = self._fills(row, logits, options.top_k or CANDIDATES)
                found[index] = Fills(fills, len(row.ids), row.truncated)
        return [found[index] for index in range(len(items))]

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
