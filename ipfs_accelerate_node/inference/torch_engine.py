"""One model on torch: load it, embed with it. Runs in a worker process, on its main thread."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from ipfs_accelerate_node.errors import InferenceFailed
from ipfs_accelerate_node.inference.encoder import Encoder
from ipfs_accelerate_node.inference.model_files import ModelFiles
from ipfs_accelerate_node.inference.sentence import Dense, Pooling
from ipfs_accelerate_node.inference.tokens import Rows, TextTokens

# Tokens of one forward pass, padding included: bounds memory, and how long a pass may go without a sign of life.
BATCH_TOKENS = 2048

_DENSE_ACTIVATION: Mapping[str, Callable[[Tensor], Tensor]] = {
    "Identity": lambda x: x,
    "Tanh": torch.tanh,
    "ReLU": functional.relu,
    "GELU": functional.gelu,
    "Sigmoid": torch.sigmoid,
}


@dataclass(frozen=True, slots=True)
class DenseWeights:
    settings: Dense
    weight: Tensor
    bias: Tensor | None


class TorchSession:
    """One loaded model. Every method blocks; main thread of the worker only."""

    def __init__(self, files: ModelFiles, tokens: TextTokens, encoder: Encoder, dense: Sequence[DenseWeights]) -> None:
        self.files = files
        self.tokens = tokens
        self.device = str(encoder.device)
        self.width = dense[-1].settings.out if dense else encoder.config.width * len(files.settings.pooling)
        self._encoder = encoder
        self._dense = dense

    @classmethod
    def load(cls, files: ModelFiles) -> tuple[TorchSession, tuple[str, ...]]:
        """The model, and notes on its weights. Tensors of f32 stay mapped from their file, others are widened to f32.

        Raises ModelUnsupported for the tokenizer; the libraries' own errors for files that changed since they were
        checked.
        """
        named = {plain: (entry.file, name) for plain, (name, entry) in files.tensors.entries.items()}
        tensors = _read(named)
        dense: list[DenseWeights] = []
        for layer, entries in files.dense:
            loaded = _read({name: (entry.file, name) for name, entry in entries.items()})
            dense.append(DenseWeights(layer, loaded["linear.weight"], loaded.get("linear.bias")))
        odd = [name for name, tensor in tensors.items() if not math.isfinite(float(tensor.sum()))]
        notes = (f"weights hold NaN or infinity: {', '.join(odd[:3])}",) if odd else ()
        return cls(files, TextTokens(files), Encoder(files.encoder, tensors), dense), notes

    def embed(
        self, rows: Rows, *, dimensions: int | None, normalize: bool | None, between: Callable[[], None]
    ) -> NDArray[np.float32]:
        """One vector per row, in their order.

        dimensions: cut to so many, then normalised again unless normalize is False. normalize: None is as the model's
        author wants it. between: called between forward passes; what it raises ends the work.
        Raises InferenceFailed: a vector is not finite.
        """
        unit = self.files.settings.normalize or dimensions is not None if normalize is None else normalize
        width = self.width if dimensions is None else dimensions
        vectors = np.empty((len(rows.ids), width), dtype=np.float32)
        for batch in batches([len(row) for row in rows.ids], BATCH_TOKENS):
            between()
            with torch.inference_mode():
                pooled = self._pooled([rows.ids[i] for i in batch])[:, :width]
                if unit:
                    pooled = functional.normalize(pooled, dim=1)
            vectors[batch] = pooled.numpy()
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            index = int(np.argmin(finite))
            raise InferenceFailed(f"the model's vector for input {index} is not finite", index=index)
        return vectors

    def warm_up(self) -> None:
        """One forward pass, its result thrown away: the first one pays for what is set up lazily."""
        with torch.inference_mode():
            self._pooled([[self.files.encoder.padding_id, 0]])

    def _pooled(self, rows: Sequence[Sequence[int]]) -> Tensor:
        lengths = torch.tensor([len(row) for row in rows])
        longest = int(lengths.max())
        ids = torch.full((len(rows), longest), self.files.encoder.padding_id)
        for at, row in enumerate(rows):
            ids[at, : len(row)] = torch.tensor(row)
        mask = torch.arange(longest)[None, :] < lengths[:, None]
        hidden = self._encoder(ids, None if bool(mask.all()) else mask)
        pooled = torch.cat([pool(mode, hidden, mask) for mode in self.files.settings.pooling], dim=1)
        for layer in self._dense:
            activation = _DENSE_ACTIVATION[layer.settings.activation]
            pooled = activation(functional.linear(pooled, layer.weight, layer.bias))
        return pooled


def pool(mode: Pooling, hidden: Tensor, mask: Tensor) -> Tensor:
    """(batch, width): one vector from each row's real tokens; every row has at least one.

    hidden: (batch, tokens, width). mask: (batch, tokens), True for real ones, which come first.
    Source: sentence-transformers' Pooling module.
    """
    if mode == "cls":
        return hidden[:, 0]
    if mode == "lasttoken":
        return hidden[torch.arange(len(hidden)), mask.sum(dim=1) - 1]
    if mode == "max":
        return hidden.masked_fill(~mask[:, :, None], -1e9).amax(dim=1)
    weights = mask.to(hidden.dtype)
    if mode == "weightedmean":
        weights = weights * torch.arange(1, mask.shape[1] + 1, dtype=hidden.dtype)
    total = (hidden * weights[:, :, None]).sum(dim=1)
    divisor = weights.sum(dim=1, keepdim=True)
    return total / (divisor.sqrt() if mode == "mean_sqrt_len" else divisor)


def batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices of rows that go through the model together: similar lengths, at most ``budget`` tokens with padding (or
    one row). Longest first, so that memory peaks at once or never."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _read(named: Mapping[str, tuple[Path, str]]) -> dict[str, Tensor]:
    """Tensors by their plain name, in f32. named: plain name → file, name in the file."""
    tensors: dict[str, Tensor] = {}
    for file in {path for path, _ in named.values()}:
        with safe_open(file, framework="pt", device="cpu") as opened:
            for plain, (path, name) in named.items():
                if path == file:
                    tensors[plain] = opened.get_tensor(name).to(torch.float32)
    return tensors


def versions() -> dict[str, str]:
    """Of what computes the result."""
    import safetensors
    import tokenizers

    return {
        "torch": str(torch.__version__),
        "tokenizers": tokenizers.__version__,
        "safetensors": safetensors.__version__,
        "numpy": np.__version__,
    }


def cuda_devices() -> list[tuple[str, str, int]]:
    """(device, name, bytes of memory) of every GPU that torch sees."""
    if not torch.cuda.is_available():
        return []
    found = [(i, torch.cuda.get_device_properties(i)) for i in range(torch.cuda.device_count())]
    return [(f"cuda:{i}", properties.name, properties.total_memory) for i, properties in found]
