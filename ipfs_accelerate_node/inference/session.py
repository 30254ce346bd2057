"""What a worker process holds: a model's arithmetic on one device, and what turns requests into it and back.

An engine knows arrays and nothing of texts or pictures; a processing knows those and nothing of devices. Both engines
(torch, OpenVINO) run the same graphs with the same arrays:

==========  ================================================  =====================================================
graph       inputs                                            outputs
==========  ================================================  =====================================================
vectors     input_ids, attention_mask[, token_type_ids]       vectors (batch, width), pooled and normalised as the
                                                              author's settings say; pooled: before normalising
logits      the same, or pixel_values                         logits
text        input_ids, attention_mask                         embeds (batch, projection), not normalised
image       pixel_values                                      embeds (batch, projection), not normalised
hidden      as vectors                                        hidden: (batch, tokens, width), last layer, 0 for padding
scale       nothing                                           scale: a scalar
encoder     input_ids, attention_mask, or input_features      hidden, and whatever the decoder's start needs
            (batch, mel, frames)
==========  ================================================  =====================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ipfs_accelerate_node.errors import NodeError
from ipfs_accelerate_node.inference.batching import Passes, Piece
from ipfs_accelerate_node.inference.model import Item, Options, Output
from ipfs_accelerate_node.inference.sequences import Sequences

Array = NDArray[Any]


class Decoder(Protocol):
    """One batch of sequences with its key-value cache; made by ``Engine.decoder``, thrown away after the batch."""

    def start(self, encoded: Mapping[str, Array] | None) -> None:
        """encoded: what graph ``encoder`` returned, and its attention_mask; None for a decoder-only model."""
        ...

    def step(self, input_ids: Array, attention_mask: Array, *, beam: Array | None = None) -> NDArray[np.float32]:
        """Logits of the last position, (batch, vocabulary) float32.

        input_ids: (batch, n) int64, the new tokens. attention_mask: (batch, total) int64 over past and new ones,
        left-padded for a decoder-only model. beam: (batch,) int64, which of the earlier sequences each row goes on
        from; None: its own.
        """
        ...


class Engine(Protocol):
    """One model's weights on one device. Every method blocks; main thread of the worker only.

    An engine may also say what it does well in one pass, where that is not what ``Passes`` has: ``batch_tokens``,
    ``batch_rows``, ``pass_tokens`` (what a pass costs beside its tokens, in tokens), ``length_step``, ``even_rows``;
    ``ahead``: the next batch is made up while it computes; and ``packed``: it has
    ``run_packed(graph, ids (total,) int64, lengths (rows,) int32, types (total,) or None)`` for graph ``vectors``.
    """

    device: str  # as read back: "cpu", "cuda:0", "openvino:CPU"
    engine: str  # "torch" or "openvino"
    precision: str  # as read back: f32, bf16, f16, int8
    versions: dict[str, str]
    notes: tuple[str, ...]

    def run(self, graph: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """One pass: int64 and float32 arrays in, float32 out."""
        ...

    def decoder(self) -> Decoder:
        """For models that generate."""
        ...

    def sequences(self) -> Sequences | None:
        """Where texts of a decoder-only model are written together, the same at every call; None: nowhere."""
        ...

    def memory_bytes(self) -> int:
        """Memory on the device, where that has its own; else 0."""
        ...


class Processing(Protocol):
    """A task's way from items to arrays and from arrays to outputs. Imports neither torch nor transformers."""

    def check(self, items: Sequence[Item], options: Options) -> None:
        """Cheap, before anything is computed. Raises InvalidInput (with ``index``), PayloadTooLarge."""
        ...

    def infer(
        self, engine: Engine, items: Sequence[Item], options: Options, between: Callable[[], None]
    ) -> list[Output]:
        """One output per item, in their order. between: called between passes; what it raises ends the work."""
        ...

    def primary(self, engine: Engine, item: Item) -> NDArray[np.float32]:
        """What two engines are compared by: the pooled vector, or logits (a generator: one teacher-forced pass)."""
        ...

    def example(self, number: int) -> Item:
        """A sample input of this task, the same for the same number everywhere."""
        ...


@dataclass(frozen=True, slots=True)
class Asked:
    """One row and what was asked of it. index: of its item."""

    piece: Piece[Any]
    index: int
    item: Item
    options: Options


@dataclass(frozen=True, slots=True)
class Feed:
    """What one pass is fed with; see ``Engine``."""

    graph: str
    arrays: Mapping[str, Array]
    packed: bool = False

    def begin(self, engine: Engine) -> Callable[[], Mapping[str, Array]]:
        """What gives the pass's outputs. An engine that can hands the pass to its device meanwhile (``submit``); the
        others compute it here."""
        if not self.packed:
            found = engine.run(self.graph, self.arrays)
            return lambda: found
        submit = getattr(engine, "submit", None)
        if submit is not None:
            result: Callable[[], Mapping[str, Array]] = submit(self.graph, **self.arrays).result
            return result
        packed: Mapping[str, Array] = engine.run_packed(self.graph, **self.arrays)  # type: ignore[attr-defined]
        return lambda: packed


@runtime_checkable
class Rowwise(Processing, Protocol):
    """A processing whose items are rows of their own, so that those of several requests go through together."""

    def takes(self, items: Sequence[Item]) -> bool:
        """Is this request one of rows? Else it is computed by itself, by ``infer``."""
        ...

    def passes(self, engine: Passes) -> Passes:
        """What the engine does well, or less where this task's outputs are large."""
        ...

    def prepare(self, items: Sequence[Item], options: Options) -> list[Piece[Any]]:
        """One piece per item, in their order; in the thread that tokenizes. Raises InvalidInput, PayloadTooLarge."""
        ...

    def feed(self, pieces: Sequence[Piece[Any]], passes: Passes) -> Feed:
        """Arrays of pieces of one lane; in any thread."""
        ...

    def outputs(self, found: Mapping[str, Array], rows: Sequence[Asked]) -> list[Output | NodeError]:
        """One for each of the rows of a pass, in their order; an error is that row's alone."""
        ...


def passes_of(engine: Engine) -> Passes:
    """What an engine says of itself; see ``Engine``."""
    usual = Passes()
    return Passes(
        tokens=getattr(engine, "batch_tokens", usual.tokens),
        rows=getattr(engine, "batch_rows", usual.rows),
        overhead=getattr(engine, "pass_tokens", usual.overhead),
        step=getattr(engine, "length_step", usual.step),
        even=getattr(engine, "even_rows", usual.even),
        packed=getattr(engine, "packed", usual.packed),
    )


@dataclass(frozen=True, slots=True)
class Session:
    """A loaded model as it answers requests."""

    task: str
    processing: Processing
    engine: Engine

    def infer(self, items: Sequence[Item], options: Options, between: Callable[[], None]) -> list[Output]:
        """Raises InvalidInput, PayloadTooLarge, InferenceFailed, and whatever ``between`` raises."""
        self.processing.check(items, options)
        between()
        return self.processing.infer(self.engine, items, options, between)

    def primary(self, item: Item) -> NDArray[np.float32]:
        return self.processing.primary(self.engine, item)

    def warm_up(self) -> Output:
        """The first pass pays for what is set up lazily. Returns what it gave, to be described."""
        options = Options(max_new_tokens=2)
        (output,) = self.processing.infer(self.engine, [self.processing.example(0)], options, lambda: None)
        return output
