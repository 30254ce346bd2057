"""Tasks text-classification and rerank: logits of a text, or of two that are read together, as scores of labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ipfs_accelerate_node.errors import NodeError
from ipfs_accelerate_node.inference.batching import Passes, Piece
from ipfs_accelerate_node.inference.model import Ids, Item, Options, Output, Pair, Score, Scores, Text
from ipfs_accelerate_node.inference.session import Array, Asked, Engine, Feed
from ipfs_accelerate_node.inference.strict_json import JsonObject
from ipfs_accelerate_node.inference.tasks import samples
from ipfs_accelerate_node.inference.tasks.checks import check_items, check_options
from ipfs_accelerate_node.inference.tasks.numbers import finite_rows, not_finite, sigmoid, softmax
from ipfs_accelerate_node.inference.tasks.rows import infer_rows
from ipfs_accelerate_node.inference.tasks.tensors import raw_logits
from ipfs_accelerate_node.inference.tasks.text_graphs import TextGraph
from ipfs_accelerate_node.inference.tasks.texts import Row

Meaning = Literal["one of", "any of", "amount"]


def meaning_of(config: JsonObject, labels: int) -> Meaning:
    """What the logits of a classifier stand for: labels that exclude each other, labels that do not, or a number.

    Source: the text and image classification pipelines of transformers.
    """
    problem = config.get("problem_type")
    if problem == "regression":
        return "amount"
    return "any of" if problem == "multi_label_classification" or labels == 1 else "one of"


def scored(
    logits: NDArray[np.float32], labels: Sequence[str], meaning: Meaning, *, top_k: int | None, raw: bool
) -> tuple[Score, ...]:
    """logits: of one item. Best first; of equals, the first label."""
    if raw or meaning == "amount":
        values = logits
    else:
        values = softmax(logits) if meaning == "one of" else sigmoid(logits)
    order = np.argsort(-values, kind="stable")[:top_k]
    return tuple(Score(labels[at], float(values[at])) for at in order)


@dataclass(frozen=True, slots=True)
class TextClassification:
    """pairs: only items of two texts are taken, as a reranker does."""

    graph: TextGraph
    labels: Sequence[str]
    meaning: Meaning
    pairs: bool

    def check(self, items: Sequence[Item], options: Options) -> None:
        kinds = (Pair,) if self.pairs else (Text, Pair, Ids)
        check_items(items, kinds, task="rerank" if self.pairs else "text-classification")
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
        return self.graph.pieces(items, options)

    def feed(self, pieces: Sequence[Piece[Row]], passes: Passes) -> Feed:
        return self.graph.feed(pieces, passes)

    def outputs(self, found: Mapping[str, Array], rows: Sequence[Asked]) -> list[Output | NodeError]:
        return [
            self._said(logits, row) if finite else not_finite(row.index)
            for logits, finite, row in zip(found["logits"], finite_rows(found["logits"]), rows, strict=True)
        ]

    def _said(self, logits: NDArray[np.float32], row: Asked) -> Output | NodeError:
        return raw_logits(logits, row) if row.options.output == "logits" else self._scores(logits, row)

    def _scores(self, logits: NDArray[np.float32], row: Asked) -> Scores:
        options, tokens = row.options, row.piece.content
        scores = scored(logits, self.labels, self.meaning, top_k=options.top_k, raw=options.raw_scores)
        return Scores(scores, len(tokens.ids), tokens.truncated)

    def primary(self, engine: Engine, item: Item) -> NDArray[np.float32]:
        (row,) = self.graph.rows([item], Options())
        return np.asarray(self.graph.one(engine, row)["logits"][0])

    def example(self, number: int) -> Item:
        text = samples.text(number)
        return Pair(text, samples.text(number + 1)) if self.pairs else Text(text)
