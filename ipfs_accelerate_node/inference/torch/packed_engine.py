"""An encoder of texts on a GPU, fed with packed passes: small ones are recorded once and replayed, large ones launched.

A replayed pass costs one launch instead of two hundred; that is most of the time of a short request. It is recorded for
a fixed room, and a smaller batch leaves part of it empty. Input and output lie in page-locked memory, so that a pass
can be prepared and another one read while the device computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ipfs_accelerate_node.errors import InferenceFailed
from ipfs_accelerate_node.inference.sentence import SentenceSettings
from ipfs_accelerate_node.inference.session import Array
from ipfs_accelerate_node.inference.torch.compiling import compiling
from ipfs_accelerate_node.inference.torch.device import device_errors
from ipfs_accelerate_node.inference.torch.encoder import Encoder
from ipfs_accelerate_node.inference.torch.engine import TorchEngine
from ipfs_accelerate_node.inference.torch.packed import PackedEncoder, find_steps
from ipfs_accelerate_node.inference.torch.rows import Room, fill
from ipfs_accelerate_node.inference.torch.vectors import DenseWeights

MAX_TOKENS = 32768  # of one pass: longer ones are hardly faster, and a short text may have to wait for one
_ROOMS = tuple(
    Room.upto(tokens, max(4, min(256, tokens // 4))) for tokens in (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
)
_WARM = 3  # passes before a recording: what is set up lazily must not be recorded


class Pending:
    """A pass that was handed to the device."""

    def __init__(self, done: torch.cuda.Event, numbers: Tensor, release: Callable[[], None]) -> None:
        self._done = done
        self._numbers = numbers
        self._release = release

    def result(self) -> dict[str, NDArray[np.float32]]:
        """vectors and pooled, (texts, width) each. Waits for the device. Once only. Raises as ``TorchEngine.run``."""
        with device_errors("graph 'vectors'"):
            self._done.synchronize()
        vectors, pooled = np.array(self._numbers.numpy())
        self._release()
        return {"vectors": vectors, "pooled": pooled}


class PackedEngine(TorchEngine):
    """See ``session.Engine``. Every method blocks, but ``submit`` only for as long as it takes to launch."""

    packed = True
    ahead = True  # the next batch is made up while the device computes
    batch_rows = 1024
    pass_tokens = 256  # what a pass costs beside its tokens
    length_step = 1

    def __init__(self, engine: TorchEngine, encoder: PackedEncoder) -> None:
        super().__init__(engine.graphs, (*engine.notes, f"texts are packed without padding ({encoder.steps.name})"))
        self._encoder = encoder
        self._stream = torch.cuda.Stream(self._on)  # type: ignore[no-untyped-call]
        self._rooms = _ROOMS if encoder.steps.recordable else ()
        self._recorded: dict[Room, _Recorded] = {}
        self._pool: Any = None  # memory that all recordings share
        self._inputs: list[Tensor] = []
        self._outputs: list[Tensor] = []
        self.batch_tokens = _affordable(encoder, self._on)

    def run(self, graph: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Padded rows, which are packed."""
        if graph != "vectors":
            return super().run(graph, inputs)
        mask = np.asarray(inputs["attention_mask"]) != 0
        types = inputs.get("token_type_ids")
        return dict(
            self.run_packed(
                graph,
                np.asarray(inputs["input_ids"])[mask],
                mask.sum(axis=1),
                None if types is None else np.asarray(types)[mask],
            )
        )

    def run_packed(
        self,
        graph: str,
        ids: NDArray[np.integer],
        lengths: NDArray[np.integer],
        types: NDArray[np.integer] | None = None,
    ) -> dict[str, NDArray[np.float32]]:
        """``submit`` and its result."""
        return self.submit(graph, ids, lengths, types).result()

    def submit(
        self,
        graph: str,
        ids: NDArray[np.integer],
        lengths: NDArray[np.integer],
        types: NDArray[np.integer] | None = None,
    ) -> Pending:
        """Hand one pass to the device.

        ids, types: (tokens,), text after text, at most ``batch_tokens``. lengths: (texts,), each at least 1.
        Raises InferenceFailed: no such graph; Unavailable: out_of_memory, device_lost.
        """
        if graph != "vectors":
            raise InferenceFailed(f"this model has no packed graph {graph[:40]!r}")
        least = Room.of(np.asarray(lengths))
        room = next((room for room in self._rooms if room.holds(least)), least)
        staged = _page_locked(self._inputs, room.size, torch.int32)
        with torch.inference_mode(), device_errors("graph 'vectors'"), torch.cuda.stream(self._stream):
            # a staged array is given back with its pass's result, so nobody writes into one that is still being copied
            fill(
                staged.numpy()[: room.size], room,
                ids=ids, lengths=lengths, types=types, positions=self._encoder.positions,
            )  # fmt: skip
            given = staged[: room.size]
            if room in self._rooms:
                numbers = self._recording(room).replay(given)[:, : len(lengths)]
            else:
                numbers = self._encoder(_views(given.to(self._on, non_blocking=True), room))
            out = _page_locked(self._outputs, numbers.numel(), torch.float32)
            shown = out[: numbers.numel()].view(numbers.shape)
            shown.copy_(numbers, non_blocking=True)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(self._stream)
        return Pending(done, shown, lambda: self._give_back(staged, out))

    def _give_back(self, staged: Tensor, out: Tensor) -> None:
        self._inputs.append(staged)
        self._outputs.append(out)

    def warm_up(self) -> None:
        """Compile what is compiled lazily and record the small passes, before somebody waits for one."""
        with torch.inference_mode(), device_errors("recording"), torch.cuda.stream(self._stream):
            for room in self._rooms:
                self._recording(room)
            self._stream.synchronize()

    def _recording(self, room: Room) -> _Recorded:
        if room not in self._recorded:
            self._recorded[room] = recorded = _record(self._encoder, room, self._stream, self._pool)
            self._pool = self._pool or recorded.graph.pool()
        return self._recorded[room]


def packed_engine(
    engine: TorchEngine, encoder: Encoder, settings: SentenceSettings, dense: Sequence[DenseWeights]
) -> PackedEngine:
    """The engine with its encoder packed; small passes are recorded. Blocking: kernels are compiled, which takes
    seconds."""
    with compiling():
        steps = find_steps(encoder.config, encoder.device)
        packed = PackedEngine(engine, PackedEncoder(encoder, settings, dense, steps))
        packed.warm_up()
    return packed


@dataclass(frozen=True, slots=True)
class _Recorded:
    graph: torch.cuda.CUDAGraph
    inputs: Tensor
    outputs: Tensor

    def replay(self, given: Tensor) -> Tensor:
        self.inputs.copy_(given, non_blocking=True)
        self.graph.replay()
        return self.outputs


def _record(encoder: PackedEncoder, room: Room, stream: torch.cuda.Stream, pool: Any) -> _Recorded:
    sample = np.zeros(room.size, dtype=np.int32)
    one = np.zeros(room.tokens, dtype=np.int64)
    longest = min(room.tokens, encoder.config.max_tokens)
    fill(sample, room, ids=one[:longest], lengths=np.array([longest]), types=None, positions=encoder.positions)
    inputs = torch.from_numpy(sample).to(encoder.device)
    arrays = _views(inputs, room)
    for _ in range(_WARM):
        encoder(arrays)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=stream):
        outputs = encoder(arrays)
    return _Recorded(graph, inputs, outputs)


def _views(numbers: Tensor, room: Room) -> dict[str, Tensor]:
    return {name: numbers[part] for name, part in room.parts().items()}


def _page_locked(free: list[Tensor], size: int, dtype: torch.dtype) -> Tensor:
    """One of those that are free and large enough, or a new one."""
    for at, tensor in enumerate(free):
        if tensor.numel() >= size:
            return free.pop(at)
    if free:
        free.pop(0)  # all too small: one fewer of them
    return torch.empty(max(size, 1 << 16), dtype=dtype, pin_memory=True)


def _affordable(encoder: PackedEncoder, device: torch.device) -> int:
    """Tokens of one pass: what fits into a sixteenth of the card's memory."""
    config = encoder.config
    bytes_each = 2 * (config.inner_width + 10 * config.width)
    total = torch.cuda.get_device_properties(device).total_memory
    return max(config.max_tokens, min(MAX_TOKENS, total // 16 // bytes_each))
