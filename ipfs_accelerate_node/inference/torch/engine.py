"""One model on torch: its graphs, on one device and in one precision. Runs in a worker process, on its main thread."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ipfs_accelerate_node.errors import InferenceFailed, ModelUnsupported
from ipfs_accelerate_node.inference.model_files import ModelFiles
from ipfs_accelerate_node.inference.sentence_files import SentenceFiles
from ipfs_accelerate_node.inference.session import Array
from ipfs_accelerate_node.inference.torch.device import (
    bad_numbers,
    device_errors,
    find_device,
    find_dtype,
    precision_of,
    set_up_arithmetic,
    versions,
)
from ipfs_accelerate_node.inference.torch.encoder import Encoder
from ipfs_accelerate_node.inference.torch.graphs import DualGraphs, GeneratorGraphs, Graphs, HeadGraphs, SentenceGraphs
from ipfs_accelerate_node.inference.torch.packed import fits
from ipfs_accelerate_node.inference.torch.vectors import read_dense, read_tensors

if TYPE_CHECKING:
    from ipfs_accelerate_node.inference.sequences import Sequences
    from ipfs_accelerate_node.inference.session import Decoder

_HEADS = frozenset({"text-classification", "rerank", "token-classification", "fill-mask", "image-classification"})
_GENERATORS = frozenset({"text2text-generation", "text-generation", "automatic-speech-recognition"})


class TorchEngine:
    """A loaded model. device and precision are read back from its tensors. See ``session.Engine``."""

    engine = "torch"

    def __init__(self, graphs: Graphs, notes: tuple[str, ...], *, positions: int = 0) -> None:
        """positions: tokens of one text that it writes."""
        weights = graphs.weights()
        devices = {str(tensor.device) for tensor in weights.values()}
        if len(devices) != 1:
            raise InferenceFailed(f"the weights lie on {', '.join(sorted(devices))} at once")
        self.device = devices.pop()
        self.precision = precision_of(weights.values())
        self._on = torch.device(self.device)
        self.versions = versions(self._on)
        if not (isinstance(graphs, SentenceGraphs) and graphs.is_own):
            import transformers

            self.versions["transformers"] = transformers.__version__
        self.notes = notes
        self.graphs = graphs
        self._positions = positions
        self._sequences: Sequences | None = None

    def run(self, graph: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See ``session.Engine``. Raises InferenceFailed; Unavailable: out_of_memory, device_lost."""
        with torch.inference_mode(), device_errors(f"graph {graph[:40]!r}"):
            given = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in inputs.items()}
            outputs = self.graphs.run(graph, {name: tensor.to(self._on) for name, tensor in given.items()})
            return {name: tensor.to(device="cpu", dtype=torch.float32).numpy() for name, tensor in outputs.items()}

    def decoder(self) -> Decoder:
        """Raises InferenceFailed: the model does not write text."""
        from ipfs_accelerate_node.inference.torch.decoder import TorchDecoder

        if not isinstance(self.graphs, GeneratorGraphs):
            raise InferenceFailed("this model does not generate")
        return TorchDecoder(self.graphs.module, device=self._on, dtype=self.graphs.dtype)

    def sequences(self) -> Sequences | None:
        """See ``session.Engine``. Raises Unavailable: out_of_memory."""
        if self._sequences is None and isinstance(self.graphs, GeneratorGraphs):
            self._sequences = _sequences(self.graphs.module, self._positions)
        return self._sequences

    def memory_bytes(self) -> int:
        """The most that the device's memory held for this process since it started; 0 on the CPU."""
        return torch.cuda.max_memory_allocated(self._on) if self._on.type == "cuda" else 0


def _sequences(module: Any, positions: int) -> Sequences | None:
    """Of a decoder-only model: on a GPU in half precision by kernels of ours, where its family is known; else by
    transformers' own pass over a cache of ours."""
    if module.config.is_encoder_decoder:
        return None
    if next(module.parameters()).is_cuda and importlib.util.find_spec("triton") is not None:
        from ipfs_accelerate_node.inference.torch.llama import fits
        from ipfs_accelerate_node.inference.torch.paged_sequences import MAX_TOKENS, paged_sequences

        if fits(module, min(positions, MAX_TOKENS)) and (paged := paged_sequences(module, limit=positions)):
            return paged
    from ipfs_accelerate_node.inference.torch.slot_sequences import SlotSequences, fits_slots

    return SlotSequences(module, length=positions) if fits_slots(module, positions) else None


def load(files: ModelFiles, task: str, *, device: str, precision: str) -> TorchEngine:
    """Blocking; the first model that is not an encoder of ours pays for importing transformers.

    device: ``cpu`` or ``cuda:N``. precision: f32, bf16, or f16 on CUDA. Raises DeviceUnavailable, InvalidInput (a
    precision that the device has not), ModelUnsupported, Unavailable: out_of_memory, device_lost.
    """
    files.check_task(task)
    on = find_device(device)
    dtype = find_dtype(precision, on)
    set_up_arithmetic()
    with torch.inference_mode(), device_errors("loading"):
        if task == "embedding" and files.sentence is not None:
            return _sentence_engine(files, files.sentence, on, dtype)
        from ipfs_accelerate_node.inference.torch.models import load_module

        loaded = load_module(files, task, device=on, dtype=dtype)
        if task in _GENERATORS:
            return TorchEngine(GeneratorGraphs(loaded.module), loaded.notes, positions=files.max_tokens)
        if task in _HEADS:
            return TorchEngine(HeadGraphs(loaded.module), loaded.notes)
        if files.family == "dual":
            return TorchEngine(DualGraphs(loaded.module), loaded.notes)
    raise ModelUnsupported(f"{files.model_type} models do not do {task}", code="task_unsupported")


def _sentence_engine(
    files: ModelFiles, sentence: SentenceFiles, device: torch.device, dtype: torch.dtype
) -> TorchEngine:
    dense = read_dense(sentence.dense, device=device)
    if sentence.encoder is None or sentence.tensors is None:
        from ipfs_accelerate_node.inference.torch.models import load_module

        loaded = load_module(files, "embedding", device=device, dtype=dtype)
        return TorchEngine(SentenceGraphs(loaded.module, sentence.settings, dense), loaded.notes)
    named = {plain: (entry.file, name) for plain, (name, entry) in sentence.tensors.entries.items()}
    tensors = read_tensors(named, device=device, dtype=dtype)
    odd = bad_numbers(tensors)
    notes = (f"weights hold NaN or infinity: {', '.join(odd[:3])}",) if odd else ()
    encoder = Encoder(sentence.encoder, tensors)
    engine = TorchEngine(SentenceGraphs(encoder, sentence.settings, dense), notes)
    if device.type != "cuda" or not fits(sentence.encoder, sentence.settings, dtype):
        return engine
    from ipfs_accelerate_node.inference.torch.packed_engine import packed_engine

    return packed_engine(engine, encoder, sentence.settings, dense)
