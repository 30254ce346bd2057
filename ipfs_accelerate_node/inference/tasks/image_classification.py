"""Task image-classification."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ipfs_accelerate_node.errors import NodeError
from ipfs_accelerate_node.inference.batching import Passes, Piece
from ipfs_accelerate_node.inference.model import Image, Item, Options, Output, PixelValues, Scores, Tensor
from ipfs_accelerate_node.inference.session import Array, Asked, Engine, Feed
from ipfs_accelerate_node.inference.tasks import samples
from ipfs_accelerate_node.inference.tasks.checks import check_items, check_options
from ipfs_accelerate_node.inference.tasks.classification import Meaning, scored
from ipfs_accelerate_node.inference.tasks.numbers import check_finite, finite_rows, not_finite
from ipfs_accelerate_node.inference.tasks.picture_graphs import TOGETHER, PictureGraph, Pixels, pictures_of

LABELS = 5


@dataclass(frozen=True, slots=True)
class ImageClassification:
    graph: PictureGraph
    labels: Sequence[str]
    meaning: Meaning

    def check(self, items: Sequence[Item], options: Options) -> None:
        check_items(items, (Image, PixelValues), task="image-classification")
        check_options(options)

    def infer(
        self, engine: Engine, items: Sequence[Item], options: Options, between: Callable[[], None]
    ) -> list[Output]:
        data = pictures_of(items)
        found: dict[int, Output] = {}
        for batch, outputs in self.graph.passes(engine, data, between):
            check_finite(outputs["logits"], batch)
            found.update((index, self._said(outputs["logits"][at], options)) for at, index in enumerate(batch))
        return [found[index] for index in range(len(items))]

    def takes(self, items: Sequence[Item]) -> bool:
        return len(items) <= TOGETHER

    def passes(self, engine: Passes) -> Passes:
        return self.graph.passes_of(engine)

    def prepare(self, items: Sequence[Item], options: Options) -> list[Piece[Pixels]]:
        return [self.graph.piece(at, picture) for at, picture in pictures_of(items).items()]

    def feed(self, pieces: Sequence[Piece[Pixels]], passes: Passes) -> Feed:
        return self.graph.feed(pieces)

    def outputs(self, found: Mapping[str, Array], rows: Sequence[Asked]) -> list[Output | NodeError]:
        return [
            self._said(logits, row.options) if finite else not_finite(row.index)
            for logits, finite, row in zip(found["logits"], finite_rows(found["logits"]), rows, strict=True)
        ]

    def _said(self, logits: NDArray[np.float32], options: Options) -> Output:
        if options.output == "logits":
            return Tensor(np.array(logits))
        top_k = options.top_k or LABELS
        return Scores(scored(logits, self.labels, self.meaning, top_k=top_k, raw=options.raw_scores))

    def primary(self, engine: Engine, item: Item) -> NDArray[np.float32]:
        assert isinstance(item, Image)
        return self.graph.one(engine, item.data, "logits")

    def example(self, number: int) -> Item:
        return Image(samples.picture(number))
