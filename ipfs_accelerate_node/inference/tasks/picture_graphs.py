"""Pictures to the arrays of an image model's graph, pass by pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from ipfs_accelerate_node.inference.batching import Passes, Piece
from ipfs_accelerate_node.inference.model import Image, Item, PixelValues
from ipfs_accelerate_node.inference.session import Array, Engine, Feed
from ipfs_accelerate_node.inference.tasks.checks import refuse
from ipfs_accelerate_node.inference.tasks.picture_settings import MAX_EDGE, PictureSettings
from ipfs_accelerate_node.inference.tasks.pictures import BadPicture, pixel_values, read_picture

# Pixels of one forward pass: sixteen pictures of 224 × 224.
_PIXELS = 16 * 224 * 224
_PATCH = 16 * 16  # pixels that count as one token
TOGETHER = 16  # pictures of a request that may wait as pixels; of a larger one a few at a time are read

Pixels = NDArray[np.float32]
Picture = bytes | PixelValues  # as it lies in its file, or prepared by the caller


def pictures_of(items: Sequence[Item]) -> dict[int, Picture]:
    """The pictures among a request's items, by their index."""
    return {
        index: item.data if isinstance(item, Image) else item
        for index, item in enumerate(items)
        if isinstance(item, Image | PixelValues)
    }


@dataclass(frozen=True, slots=True)
class PictureGraph:
    graph: str
    settings: PictureSettings

    def pixels(self, index: int, data: Picture) -> Pixels:
        """(3, height, width). Raises InvalidInput with the index: not a picture that can be read, or no pixels that
        this model takes."""
        if isinstance(data, PixelValues):
            return self._given(index, data)
        try:
            return pixel_values(read_picture(data), self.settings)
        except BadPicture as exc:
            refuse(index, f"is no picture of use: {exc}")

    def _given(self, index: int, data: PixelValues) -> Pixels:
        height, width, exact = self.settings.prepared
        channels, *edges = data.shape
        if channels != 3 or min(edges) < 1 or max(edges) > MAX_EDGE or (exact and edges != [height, width]):
            wanted = f"(3, {height}, {width})" if exact else f"(3, height, width), at most {MAX_EDGE} each"
            refuse(index, f"has pixels of the shape {data.shape}, the model takes {wanted}")
        pixels = np.frombuffer(data.data, dtype="<f4").reshape(data.shape)
        if not np.isfinite(pixels).all():
            refuse(index, "has a pixel that is no finite number")
        return pixels

    def piece(self, index: int, data: Picture) -> Piece[Pixels]:
        """Raises as ``pixels``."""
        pixels = self.pixels(index, data)
        return Piece((self.graph, pixels.shape), max(1, pixels[0].size // _PATCH), pixels)

    def passes_of(self, engine: Passes) -> Passes:
        return replace(engine, tokens=max(engine.tokens, _PIXELS // _PATCH), step=1, packed=False)

    def feed(self, pieces: Sequence[Piece[Pixels]]) -> Feed:
        return Feed(self.graph, {"pixel_values": np.stack([piece.content for piece in pieces])})

    def passes(
        self, engine: Engine, data: Mapping[int, Picture], between: Callable[[], None]
    ) -> Iterator[tuple[list[int], dict[str, Array]]]:
        """(indices, outputs) of one pass after the other. data: pictures by index."""
        pending: dict[tuple[int, ...], dict[int, NDArray[np.float32]]] = {}
        for index, encoded in data.items():
            between()
            pixels = self.pixels(index, encoded)
            waiting = pending.setdefault(pixels.shape, {})
            waiting[index] = pixels
            if (len(waiting) + 1) * pixels[0].size > _PIXELS:
                yield self._run(engine, pending.pop(pixels.shape))
        for waiting in pending.values():
            between()
            yield self._run(engine, waiting)

    def _run(self, engine: Engine, pixels: Mapping[int, NDArray[np.float32]]) -> tuple[list[int], dict[str, Array]]:
        return list(pixels), engine.run(self.graph, {"pixel_values": np.stack(list(pixels.values()))})

    def one(self, engine: Engine, data: Picture, output: str) -> NDArray[np.float32]:
        """An output's row for one picture."""
        _, outputs = next(islice(self.passes(engine, {0: data}, lambda: None), 1))
        return np.asarray(outputs[output][0])
