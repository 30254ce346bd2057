"""Task token-classification: which stretches of a text are of which kind.

Source: transformers' pipeline with ``aggregation_strategy="simple"``: neighbouring tokens of one kind are one entity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ipfs_accelerate_node.errors import NodeError
from ipfs_accelerate_node.inference.batching import Passes, Piece
from ipfs_accelerate_node.inference.model import Entities, Entity, Ids, Item, Options, Output, Text
from ipfs_accelerate_node.inference.session import Array, Asked, Engine, Feed
from ipfs_accelerate_node.inference.tasks import samples
from ipfs_accelerate_node.inference.tasks.checks import check_items, check_options
from ipfs_accelerate_node.inference.tasks.numbers import not_finite, softmax
from ipfs_accelerate_node.inference.tasks.rows import infer_rows
from ipfs_accelerate_node.inference.tasks.tensors import check_answer, raw_logits
from ipfs_accelerate_node.inference.tasks.text_graphs import TextGraph, real
from ipfs_accelerate_node.inference.tasks.texts import Row

OUTSIDE = "O"


@dataclass(frozen=True, slots=True)
class _Token:
    begins: bool
    kind: str
    score: float
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class TokenClassification:
    graph: TextGraph
    labels: Sequence[str]

    def check(self, items: Sequence[Item], options: Options) -> None:
        kinds = (Text, Ids) if options.output == "logits" else (Text,)
        check_items(items, kinds, task="token-classification")
        check_options(options)

    def infer(
        self, engine: Engine, items: Sequence[Item], options: Options, between: Callable[[], None]
    ) -> list[Output]:
        return infer_rows(self, engine, items, options, between)

    def takes(self, items: Sequence[Item]) -> bool:
        return True

    def passes(self, engine: Passes) -> Passes:
        return replace(engine, packed=False)

    def prepare(self, items: Sequence[Item], options: Options) -> list[Piece[Row]]:
        pieces = self.graph.pieces(items, options)
        if options.output == "logits":
            check_answer(sum(piece.cost for piece in pieces) * len(self.labels))
        return pieces

    def feed(self, pieces: Sequence[Piece[Row]], passes: Passes) -> Feed:
        return self.graph.feed(pieces, passes)

    def outputs(self, found: Mapping[str, Array], rows: Sequence[Asked]) -> list[Output | NodeError]:
        outputs: list[Output | NodeError] = []
        for at, asked in enumerate(rows):
            row, item = asked.piece.content, asked.item
            logits = real(found["logits"][at], row)
            if asked.options.output == "logits":
                outputs.append(raw_logits(logits, asked))
                continue
            assert isinstance(item, Text)
            if not np.isfinite(logits).all():
                outputs.append(not_finite(asked.index))
                continue
            outputs.append(Entities(self._entities(item.text, row, softmax(logits)), len(row.ids), row.truncated))
        return outputs

    def primary(self, engine: Engine, item: Item) -> NDArray[np.float32]:
        """(tokens, labels)"""
        (row,) = self.graph.rows([item], Options())
        return np.asarray(self.graph.one(engine, row)["logits"][0])

    def example(self, number: int) -> Item:
        return Text(samples.text(number))

    def _entities(self, text: str, row: Row, scores: NDArray[np.float32]) -> tuple[Entity, ...]:
        groups: list[list[_Token]] = []
        for at, (start, end) in enumerate(row.spans):
            if row.special[at]:
                continue
            best = int(scores[at].argmax())
            token = self._token(self.labels[best], float(scores[at][best]), start, end)
            if groups and groups[-1][-1].kind == token.kind and not token.begins:
                groups[-1].append(token)
            else:
                groups.append([token])
        return tuple(_entity(text, group) for group in groups if group[0].kind != OUTSIDE)

    @staticmethod
    def _token(label: str, score: float, start: int, end: int) -> _Token:
        begins = label.startswith("B-")
        kind = label[2:] if label.startswith(("B-", "I-")) else label
        return _Token(begins, kind, score, start, end)


def _entity(text: str, tokens: Sequence[_Token]) -> Entity:
    start, end = tokens[0].start, tokens[-1].end
    score = float(np.mean([token.score for token in tokens]))
    return Entity(tokens[0].kind, score, start, end, text[start:end])
