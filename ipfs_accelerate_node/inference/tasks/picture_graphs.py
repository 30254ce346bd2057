"""Pictures to the arrays of an image model's graph, pass by pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from ipfs_accelerate_node.inference.batching import Passes, Piece
from ipfs_accelerate_node.inference.session import Array, Engine, Feed
from ipfs_accelerate_node.inference.tasks.checks import refuse
from ipfs_accelerate_node.inference.tasks.picture_settings import PictureSettings
from ipfs_accelerate_node.inference.tasks.pictures import BadPicture, pixel_values, read_picture

# Pixels of one forward pass: sixteen pictures of 224 × 224.
_PIXELS = 16 * 224 * 224
_PATCH = 16 * 16  # pixels that count as one token
TOGETHER = 16  # pictures of a request that may wait as pixels; of a larger one a few at a time are read

Pixels = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class PictureGraph:
    graph: str
    settings: PictureSettings

    def pixels(self, index: int, data: bytes) -> NDArray[np.float32]:
        """(3, height, width). Raises InvalidInput with the index: not a picture that can be read."""
        try:
            return pixel_values(read_picture(data), self.settings)
        except BadPicture as exc:
            refuse(index, f"is no picture of use: {exc}")

    def piece(self, index: int, data: bytes) -> Piece[Pixels]:
        """Raises as ``pixels``."""
        pixels = self.pixels(index, data)
        return Piece((self.graph, pixels.shape), max(1, pixels[0].size // _PATCH), pixels)

    def passes_of(self, engine: Passes) -> Passes:
        return replace(engine, tokens=max(engine.tokens, _PIXELS // _PATCH), step=1, packed=False)

    def feed(self, pieces: Sequence[Piece[Pixels]]) -> Feed:
        return Feed(self.graph, {"pixel_values": np.stack([piece.content for piece in pieces])})

    def passes(
        self, engine: Engine, data: Mapping[int, bytes], between: Callable[[], None]
    ) -> Iterator[tuple[list[int], dict[str, Array]]]:
        """(indices, outputs) of one pass after the other. data: encoded pictures by index."""
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

    def one(self, engine: Engine, data: bytes, output: str) -> NDArray[np.float32]:
        """An output's row for one picture."""
        _, outputs = next(islice(self.passes(engine, {0: data}, lambda: None), 1))
        return np.asarray(outputs[output][0])
