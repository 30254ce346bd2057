"""CLIP-like models: texts and pictures as vectors of one space, and which text says best what a picture shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ipfs_accelerate_node.errors import InvalidInput, ModelUnsupported, NodeError
from ipfs_accelerate_node.inference.batching import Passes, Piece
from ipfs_accelerate_node.inference.model import (
    Ids,
    Image,
    ImageChoice,
    Item,
    Options,
    Output,
    PixelValues,
    Scores,
    Text,
    Vector,
)
from ipfs_accelerate_node.inference.session import Array, Asked, Engine, Feed
from ipfs_accelerate_node.inference.tasks import samples
from ipfs_accelerate_node.inference.tasks.checks import check_items, check_options
from ipfs_accelerate_node.inference.tasks.classification import Meaning, scored
from ipfs_accelerate_node.inference.tasks.embedding import cut
from ipfs_accelerate_node.inference.tasks.numbers import check_finite, finite_rows, not_finite, unit
from ipfs_accelerate_node.inference.tasks.picture_graphs import TOGETHER, PictureGraph, pictures_of
from ipfs_accelerate_node.inference.tasks.tensors import HIDDEN
from ipfs_accelerate_node.inference.tasks.text_graphs import TextGraph
from ipfs_accelerate_node.inference.tasks.texts import Row


@dataclass(frozen=True, slots=True)
class DualEmbedding:
    """Vectors are normalised unless the caller says otherwise: only then can texts and pictures be compared."""

    texts: TextGraph
    pictures: PictureGraph

    def check(self, items: Sequence[Item], options: Options) -> None:
        check_items(items, (Text, Ids, Image, PixelValues), task="embedding")
        check_options(options)
        if options.output == HIDDEN:
            raise ModelUnsupported(
                "its vectors of single tokens are not given: it has two towers", code="task_unsupported"
            )

    def infer(
        self, engine: Engine, items: Sequence[Item], options: Options, between: Callable[[], None]
    ) -> list[Output]:
        found: dict[int, Output] = {}
        drawn = pictures_of(items)
        texts = {index: item for index, item in enumerate(items) if index not in drawn}
        rows = self.texts.rows_of(texts, options)
        written = list(rows)
        for batch, outputs in self.texts.passes(engine, list(rows.values()), between):
            indices = [written[at] for at in batch]
            vectors = _finished(outputs["embeds"], options)
            check_finite(vectors, indices)
            for at, index in enumerate(indices):
                found[index] = Vector(vectors[at], len(rows[index].ids), rows[index].truncated)
        for batch, outputs in self.pictures.passes(engine, drawn, between):
            vectors = _finished(outputs["embeds"], options)
            check_finite(vectors, batch)
            found.update((index, Vector(vectors[at])) for at, index in enumerate(batch))
        return [found[index] for index in range(len(items))]

    def takes(self, items: Sequence[Item]) -> bool:
        return len(pictures_of(items)) <= TOGETHER

    def passes(self, engine: Passes) -> Passes:
        return replace(engine, packed=False)

    def prepare(self, items: Sequence[Item], options: Options) -> list[Piece[Any]]:
        drawn = pictures_of(items)
        rows = self.texts.rows_of({index: item for index, item in enumerate(items) if index not in drawn}, options)
        return [
            self.pictures.piece(index, drawn[index]) if index in drawn else self.texts.piece(rows[index])
            for index in range(len(items))
        ]

    def feed(self, pieces: Sequence[Piece[Any]], passes: Passes) -> Feed:
        written = isinstance(pieces[0].content, Row)
        return self.texts.feed(pieces, passes) if written else self.pictures.feed(pieces)

    def outputs(self, found: Mapping[str, Array], rows: Sequence[Asked]) -> list[Output | NodeError]:
        finite = finite_rows(found["embeds"])
        outputs: list[Output | NodeError] = []
        for at, asked in enumerate(rows):
            row = asked.piece.content
            try:
                (vector,) = _finished(found["embeds"][at : at + 1], asked.options)
            except InvalidInput as exc:
                outputs.append(exc)
                continue
            told = Vector(vector, len(row.ids), row.truncated) if isinstance(row, Row) else Vector(vector)
            outputs.append(told if finite[at] else not_finite(asked.index))
        return outputs

    def primary(self, engine: Engine, item: Item) -> NDArray[np.float32]:
        (output,) = self.infer(engine, [item], Options(), lambda: None)
        assert isinstance(output, Vector)
        return output.values

    def example(self, number: int) -> Item:
        """Pictures and texts by turns."""
        return Text(samples.text(number // 2)) if number % 2 else Image(samples.picture(number // 2))


def _finished(embeds: NDArray[np.float32], options: Options) -> NDArray[np.float32]:
    vectors = cut(embeds, options)
    return vectors if options.normalize is False else unit(vectors)


@dataclass(frozen=True, slots=True)
class ZeroShotImageClassification:
    """Labels are taken as they are written: "a photo of a cat" may do better than "cat", as the model was trained.

    meaning: ``one of`` for models like CLIP, ``any of`` for SigLIP, whose labels do not exclude each other.
    """

    texts: TextGraph
    pictures: PictureGraph
    meaning: Meaning

    def check(self, items: Sequence[Item], options: Options) -> None:
        check_items(items, (ImageChoice,), task="zero-shot-image-classification")
        check_options(options)

    def infer(
        self, engine: Engine, items: Sequence[Item], options: Options, between: Callable[[], None]
    ) -> list[Output]:
        choices = {index: item for index, item in enumerate(items) if isinstance(item, ImageChoice)}
        rows = self._rows(choices, options)
        labels = self._labels(engine, rows, between)
        scale, bias = scale_and_bias(engine)
        found: dict[int, Output] = {}
        data = {index: choice.data for index, choice in choices.items()}
        for batch, outputs in self.pictures.passes(engine, data, between):
            pictures = unit(outputs["embeds"])
            check_finite(pictures, batch)
            for at, index in enumerate(batch):
                names = choices[index].labels
                logits = np.stack([labels[name] for name in names]) @ pictures[at] * scale + bias
                scores = scored(logits, names, self.meaning, top_k=options.top_k, raw=options.raw_scores)
                read = [rows[name] for name in names]
                found[index] = Scores(scores, sum(len(r.ids) for r in read), any(r.truncated for r in read))
        return [found[index] for index in range(len(items))]

    def primary(self, engine: Engine, item: Item) -> NDArray[np.float32]:
        """The picture's vector and that of the first label, one after the other."""
        assert isinstance(item, ImageChoice)
        rows = self._rows({0: item}, Options())
        labels = self._labels(engine, rows, lambda: None)
        picture = unit(self.pictures.one(engine, item.data, "embeds")[None])[0]
        return np.concatenate([picture, labels[item.labels[0]]])

    def example(self, number: int) -> Item:
        return ImageChoice(samples.picture(number), samples.LABELS)

    def _rows(self, choices: dict[int, ImageChoice], options: Options) -> dict[str, Row]:
        first = {label: index for index, choice in reversed(choices.items()) for label in choice.labels}
        found = self.texts.tokens.rows([(i, label, None) for label, i in first.items()], truncate=options.truncate)
        return dict(zip(first, found, strict=True))

    def _labels(
        self, engine: Engine, rows: dict[str, Row], between: Callable[[], None]
    ) -> dict[str, NDArray[np.float32]]:
        names = list(rows)
        found: dict[str, NDArray[np.float32]] = {}
        for batch, outputs in self.texts.passes(engine, list(rows.values()), between):
            vectors = unit(outputs["embeds"])
            found.update((names[index], vectors[at]) for at, index in enumerate(batch))
        return found


def scale_and_bias(engine: Engine) -> tuple[float, float]:
    """What cosines are multiplied by, and what is added (SigLIP's; 0 elsewhere)."""
    outputs = engine.run("scale", {})
    return float(outputs["scale"].reshape(())), float(outputs["bias"].reshape(())) if "bias" in outputs else 0.0
