"""Task image-classification."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ipfs_accelerate_node.inference.model import Image, Item, Options, Output, Scores
from ipfs_accelerate_node.inference.session import Engine
from ipfs_accelerate_node.inference.tasks import samples
from ipfs_accelerate_node.inference.tasks.checks import check_items, check_options
from ipfs_accelerate_node.inference.tasks.classification import Meaning, scored
from ipfs_accelerate_node.inference.tasks.numbers import check_finite
from ipfs_accelerate_node.inference.tasks.picture_graphs import PictureGraph

LABELS = 5


@dataclass(frozen=True, slots=True)
class ImageClassification:
    graph: PictureGraph
    labels: Sequence[str]
    meaning: Meaning

    def check(self, items: Sequence[Item], options: Options) -> None:
        check_items(items, (Image,), task="image-classification")
        check_options(options)

    def infer(
        self, engine: Engine, items: Sequence[Item], options: Options, between: Callable[[], None]
    ) -> list[Output]:
        data = {index: item.data for index, item in enumerate(items) if isinstance(item, Image)}
        found: dict[int, Output] = {}
        for batch, outputs in self.graph.passes(engine, data, between):
            check_finite(outputs["logits"], batch)
            for at, index in enumerate(batch):
                logits = outputs["logits"][at]
                top_k = options.top_k or LABELS
                found[index] = Scores(scored(logits, self.labels, self.meaning, top_k=top_k, raw=options.raw_scores))
        return [found[index] for index in range(len(items))]

    def primary(self, engine: Engine, item: Item) -> NDArray[np.float32]:
        assert isinstance(item, Image)
        return self.graph.one(engine, item.data, "logits")

    def example(self, number: int) -> Item:
        return Image(samples.picture(number))
