"""The forward pass of the BERT family over packed texts: no token of padding goes through the model.

For GPUs, in bf16 and f16; f32 goes by ``encoder.Encoder``, whose results are held to 1e-5. Here the products of query,
key and value are one, the GELU runs in the epilogue of its product (in its tanh form, whose difference is below what
the 8 bits of bf16 keep), and a sum is normalised while it is read.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from ipfs_accelerate_node.inference.architectures import EncoderConfig
from ipfs_accelerate_node.inference.sentence import SentenceSettings
from ipfs_accelerate_node.inference.torch.encoder import ACTIVATION, Encoder
from ipfs_accelerate_node.inference.torch.rows import Positions
from ipfs_accelerate_node.inference.torch.vectors import DenseWeights, through_dense

log = logging.getLogger(__name__)

Arrays = Mapping[str, Tensor]
_GELU = ("gelu", "gelu_new", "gelu_pytorch_tanh")
POOLINGS = ("cls", "mean", "lasttoken")


class Steps(Protocol):
    """What is not a product of matrices. arrays: see ``rows``. recordable: nothing of it waits for the device."""

    name: str
    recordable: bool

    def attention(self, qkv: Tensor, arrays: Arrays) -> Tensor:
        """(tokens, width) of (tokens, 3 x width). Rows beyond the last text hold anything."""
        ...

    def add_norm(self, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """(tokens, width): the sum, normalised."""
        ...

    def embed(self, arrays: Arrays, tables: Arrays) -> Tensor:
        """(tokens, width): words, positions and types, summed and normalised."""
        ...

    def mean(self, hidden: Tensor, arrays: Arrays) -> Tensor:
        """(texts, width) f32; zeros for a text without a token."""
        ...


class TorchSteps:
    """With torch's own kernels: where Triton cannot compile."""

    name = "torch"
    recordable = False

    def __init__(self, heads: int, width: int, epsilon: float) -> None:
        self._heads = heads
        self._width = width
        self._epsilon = epsilon

    def attention(self, qkv: Tensor, arrays: Arrays) -> Tensor:
        split = qkv.view(len(qkv), 3, self._heads, -1)
        starts = arrays["starts"]
        if qkv.is_cuda:
            from torch.nn.attention.varlen import varlen_attn

            query, key, value = split.unbind(1)
            longest = int((starts[1:] - starts[:-1]).max())
            mixed = varlen_attn(query, key, value, starts, starts, longest, longest)
            assert isinstance(mixed, Tensor)
            return mixed.reshape(len(qkv), self._width)
        out = torch.zeros((len(qkv), self._width), dtype=qkv.dtype)
        for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            query, key, value = split[start:stop].permute(1, 2, 0, 3)
            one = functional.scaled_dot_product_attention(query, key, value)
            out[start:stop] = one.transpose(0, 1).reshape(stop - start, self._width)
        return out

    def add_norm(self, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional.layer_norm(x + y, weight.shape, weight, bias, self._epsilon)

    def embed(self, arrays: Arrays, tables: Arrays) -> Tensor:
        hidden = functional.embedding(arrays["ids"], tables["words"])
        hidden = hidden + functional.embedding(arrays["positions"], tables["positions"])
        if "types" in tables:
            hidden = hidden + functional.embedding(arrays["types"], tables["types"])
        return functional.layer_norm(hidden, tables["weight"].shape, tables["weight"], tables["bias"], self._epsilon)

    def mean(self, hidden: Tensor, arrays: Arrays) -> Tensor:
        starts = arrays["starts"].long()
        last = int(starts[-1])
        counts = (starts[1:] - starts[:-1]).clamp(min=1)
        sums: Tensor = torch.segment_reduce(hidden[:last].float(), "sum", offsets=starts, axis=0)
        return sums / counts[:, None]


def fits(config: EncoderConfig, settings: SentenceSettings, dtype: torch.dtype) -> bool:
    """Is this a model whose pass can be packed?"""
    plain = not config.bias_buckets and config.embedding_width == config.width
    return plain and dtype in (torch.bfloat16, torch.float16) and set(settings.pooling) <= set(POOLINGS)


def find_steps(config: EncoderConfig, device: torch.device) -> Steps:
    """Triton's where they compile, else torch's. Within ``compiling``."""
    sizes = (config.heads, config.width, config.norm_eps)
    if device.type != "cuda":
        return TorchSteps(*sizes)
    try:
        from ipfs_accelerate_node.inference.torch.kernels import HEAD_WIDTHS, MAX_WIDTH, TritonSteps, compiles
    except ImportError as exc:
        log.warning("kernels.none reason=%s", exc)
        return TorchSteps(*sizes)
    if config.width // config.heads not in HEAD_WIDTHS or config.width > MAX_WIDTH:
        return TorchSteps(*sizes)
    if (reason := compiles(device)) is not None:
        log.warning("kernels.none reason=%s", reason)
        return TorchSteps(*sizes)
    return TritonSteps(*sizes)


class PackedEncoder:
    """One encoder with its weights, which stay those of ``encoder``: its query, key and value become views."""

    def __init__(
        self, encoder: Encoder, settings: SentenceSettings, dense: Sequence[DenseWeights], steps: Steps
    ) -> None:
        config, tensors = encoder.config, dict(encoder.tensors)
        self.config = config
        self.steps = steps
        self._settings = settings
        self._dense = dense
        after = config.padding_id + 1 if config.layout.positions_after_padding else 0
        self.positions = Positions(after, config.padding_id if after else None)
        self._fused: list[tuple[Tensor, Tensor]] = []
        for index in range(config.layers):
            self._fused.append(_fuse(tensors, f"{config.layout.layers}{index}.", config))
        encoder.tensors = tensors
        self._tensors = tensors
        self._tables = _tables(tensors, config)
        self._epilogue = config.activation in _GELU and self.device.type == "cuda"

    @property
    def device(self) -> torch.device:
        return self._tensors["embeddings.word_embeddings.weight"].device

    def __call__(self, arrays: Arrays) -> Tensor:
        """(2, texts, width) f32: vectors, pooled and finished as the author's settings say, and the same before
        normalising. arrays: see ``rows``; on this device."""
        hidden = self.steps.embed(arrays, self._tables)
        for index, (weight, bias) in enumerate(self._fused):
            hidden = self._layer(f"{self.config.layout.layers}{index}.", hidden, weight, bias, arrays)
        pooled = torch.cat([self._pooled(mode, hidden, arrays) for mode in self._settings.pooling], dim=1)
        pooled = through_dense(pooled, self._dense)
        vectors = functional.normalize(pooled, dim=1) if self._settings.normalize else pooled
        return torch.stack([vectors, pooled])

    def _layer(self, at: str, hidden: Tensor, weight: Tensor, bias: Tensor, arrays: Arrays) -> Tensor:
        names, table = self.config.layout, self._tensors
        context = self.steps.attention(functional.linear(hidden, weight, bias), arrays)
        mixed = functional.linear(context, *self._of(at + names.attention_out))
        norm = at + names.attention_norm
        hidden = self.steps.add_norm(mixed, hidden, table[f"{norm}.weight"], table[f"{norm}.bias"])
        out = functional.linear(self._inner(hidden, *self._of(at + names.up)), *self._of(at + names.down))
        norm = at + names.output_norm
        return self.steps.add_norm(out, hidden, table[f"{norm}.weight"], table[f"{norm}.bias"])

    def _of(self, name: str) -> tuple[Tensor, Tensor]:
        return self._tensors[f"{name}.weight"], self._tensors[f"{name}.bias"]

    def _inner(self, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if self._epilogue:
            return torch._addmm_activation(bias, hidden, weight.t(), use_gelu=True)
        return ACTIVATION[self.config.activation](functional.linear(hidden, weight, bias))

    def _pooled(self, mode: str, hidden: Tensor, arrays: Arrays) -> Tensor:
        if mode == "mean":
            return self.steps.mean(hidden, arrays)
        starts = arrays["starts"]
        # texts without a token, in a pass that was recorded for more of them, read the first row: nobody reads theirs
        at = starts[:-1].clamp(max=len(hidden) - 1) if mode == "cls" else (starts[1:] - 1).clamp(min=0)
        return hidden[at].float()


def _fuse(tensors: dict[str, Tensor], at: str, config: EncoderConfig) -> tuple[Tensor, Tensor]:
    names = [at + name for name in (config.layout.query, config.layout.key, config.layout.value)]
    fused = []
    for part in ("weight", "bias"):
        whole = torch.cat([tensors[f"{name}.{part}"] for name in names])
        for name, view in zip(names, whole.chunk(3), strict=True):
            tensors[f"{name}.{part}"] = view
        fused.append(whole)
    return fused[0], fused[1]


def _tables(tensors: Mapping[str, Tensor], config: EncoderConfig) -> dict[str, Tensor]:
    tables = {
        "words": tensors["embeddings.word_embeddings.weight"],
        "positions": tensors["embeddings.position_embeddings.weight"],
        "weight": tensors["embeddings.LayerNorm.weight"],
        "bias": tensors["embeddings.LayerNorm.bias"],
    }
    return tables | ({"types": tensors["embeddings.token_type_embeddings.weight"]} if config.token_types else {})
