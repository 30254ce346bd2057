"""Task embedding, of texts: one vector each, pooled and normalised as the model's author says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ipfs_accelerate_node.errors import InvalidInput, NodeError
from ipfs_accelerate_node.inference.batching import Passes, Piece
from ipfs_accelerate_node.inference.model import Ids, Item, Options, Output, Text, Vector
from ipfs_accelerate_node.inference.session import Array, Asked, Engine, Feed
from ipfs_accelerate_node.inference.tasks import samples
from ipfs_accelerate_node.inference.tasks.checks import check_items, check_options
from ipfs_accelerate_node.inference.tasks.numbers import finite_rows, not_finite, unit
from ipfs_accelerate_node.inference.tasks.rows import infer_rows
from ipfs_accelerate_node.inference.tasks.tensors import HIDDEN, token_vectors
from ipfs_accelerate_node.inference.tasks.text_graphs import TextGraph
from ipfs_accelerate_node.inference.tasks.texts import Row


@dataclass(frozen=True, slots=True)
class TextEmbedding:
    """prompts: those that the author named. prompt: before every text, unless the caller names another."""

    graph: TextGraph
    prompts: Mapping[str, str]
    prompt: str

    def check(self, items: Sequence[Item], options: Options) -> None:
        check_items(items, (Text, Ids), task="embedding")
        check_options(options)
        self._prompt(options)

    def infer(
        self, engine: Engine, items: Sequence[Item], options: Options, between: Callable[[], None]
    ) -> list[Output]:
        if options.output == HIDDEN:
            rows = self.graph.rows(items, options, prompt=self._prompt(options))
            return token_vectors(self.graph, engine, rows, between)
        return infer_rows(self, engine, items, options, between)

    def takes(self, items: Sequence[Item]) -> bool:
        return True

    def passes(self, engine: Passes) -> Passes:
        return engine

    def prepare(self, items: Sequence[Item], options: Options) -> list[Piece[Row]]:
        return self.graph.pieces(items, options, prompt=self._prompt(options))

    def feed(self, pieces: Sequence[Piece[Row]], passes: Passes) -> Feed:
        return self.graph.feed(pieces, passes)

    def outputs(self, found: Mapping[str, Array], rows: Sequence[Asked]) -> list[Output | NodeError]:
        return vector_outputs(found, rows)

    def primary(self, engine: Engine, item: Item) -> NDArray[np.float32]:
        (output,) = self.infer(engine, [item], Options(), _nothing)
        assert isinstance(output, Vector)
        return output.values

    def example(self, number: int) -> Item:
        return Text(samples.text(number))

    def _prompt(self, options: Options) -> str:
        if options.prompt_name is None:
            return self.prompt
        if options.prompt_name not in self.prompts:
            known = ", ".join(self.prompts) or "none"
            raise InvalidInput(
                f"prompt_name {options.prompt_name[:40]!r} is not one of the model's: {known[:200]}",
                param="prompt_name",
            )
        return self.prompts[options.prompt_name]


def vector_outputs(found: Mapping[str, Array], rows: Sequence[Asked]) -> list[Output | NodeError]:
    """Each row's vector as its caller wants it."""
    finite = finite_rows(found["pooled" if "pooled" in found else "vectors"])
    outputs: list[Output | NodeError] = []
    for at, row in enumerate(rows):
        if not finite[at]:
            outputs.append(not_finite(row.index))
            continue
        try:
            (vector,) = finished({name: array[at : at + 1] for name, array in found.items()}, row.options)
        except InvalidInput as exc:
            outputs.append(exc)
            continue
        tokens: Row = row.piece.content
        outputs.append(Vector(vector, len(tokens.ids), tokens.truncated))
    return outputs


def finished(outputs: Mapping[str, NDArray[np.float32]], options: Options) -> NDArray[np.float32]:
    """What graph ``vectors`` gave, as the caller wants it: cut, then normalised again unless told otherwise.

    Raises InvalidInput(param=dimensions): more than there are.
    """
    if options.dimensions is None and options.normalize is None:
        return outputs["vectors"]
    vectors = cut(outputs["pooled"], options)
    return vectors if options.normalize is False else unit(vectors)


def cut(vectors: NDArray[np.float32], options: Options) -> NDArray[np.float32]:
    width = vectors.shape[1]
    if options.dimensions is not None and options.dimensions > width:
        raise InvalidInput(f"dimensions must be a whole number from 1 to {width}", param="dimensions")
    return vectors[:, : options.dimensions]


def _nothing() -> None:
    """Between the passes of work that nobody interrupts."""
