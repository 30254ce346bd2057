"""Token vectors into one vector a text: pooling, dense layers, normalising, as the model's author wants them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from ipfs_accelerate_node.inference.safetensors_check import TensorEntry
from ipfs_accelerate_node.inference.sentence import Dense, Pooling, SentenceSettings

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


def read_dense(
    layers: Sequence[tuple[Dense, Mapping[str, TensorEntry]]], *, device: torch.device
) -> tuple[DenseWeights, ...]:
    """The layers after pooling; they are small and stay in f32."""
    loaded: list[DenseWeights] = []
    for settings, entries in layers:
        tensors = read_tensors(
            {name: (entry.file, name) for name, entry in entries.items()}, device=device, dtype=torch.float32
        )
        loaded.append(DenseWeights(settings, tensors["linear.weight"], tensors.get("linear.bias")))
    return tuple(loaded)


def read_tensors(
    named: Mapping[str, tuple[Path, str]], *, device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Tensors by their plain name. named: plain name → file, name in the file. On the CPU, what is in dtype already
    stays mapped from its file."""
    tensors: dict[str, Tensor] = {}
    for file in {path for path, _ in named.values()}:
        with safe_open(file, framework="pt", device="cpu") as opened:
            for plain, (path, name) in named.items():
                if path == file:
                    tensors[plain] = opened.get_tensor(name).to(device=device, dtype=dtype)
    return tensors


def finish(
    hidden: Tensor, mask: Tensor, settings: SentenceSettings, dense: Sequence[DenseWeights]
) -> tuple[Tensor, Tensor]:
    """(vectors, pooled), both (batch, width) f32: as the author's settings say, and before normalising.

    hidden: (batch, tokens, width) of any float. mask: (batch, tokens), True for real tokens, which come first.
    """
    wide = hidden.float()
    pooled = through_dense(torch.cat([pool(mode, wide, mask) for mode in settings.pooling], dim=1), dense)
    return functional.normalize(pooled, dim=1) if settings.normalize else pooled, pooled


def through_dense(pooled: Tensor, dense: Sequence[DenseWeights]) -> Tensor:
    """(batch, out) of (batch, into), both f32."""
    for layer in dense:
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
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(dim=1) - 1]
    if mode == "max":
        return hidden.masked_fill(~mask[:, :, None], -1e9).amax(dim=1)
    weights = mask.to(hidden.dtype)
    if mode == "weightedmean":
        weights = weights * torch.arange(1, mask.shape[1] + 1, dtype=hidden.dtype, device=hidden.device)
    total = (hidden * weights[:, :, None]).sum(dim=1)
    divisor = weights.sum(dim=1, keepdim=True)
    return total / (divisor.sqrt() if mode == "mean_sqrt_len" else divisor)
