"""The forward pass of the BERT family in plain torch.

Why not transformers' classes: importing them takes three times as long as torch itself and 200 MB of every worker, a
module built from them starts from random numbers that must be proven gone, and their configuration can name code to
fetch. Here every number comes from a tensor that was matched by name and shape. The tests hold the results to
transformers' within 1e-5 in f32 for each architecture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from ipfs_accelerate_node.inference.architectures import EncoderConfig

ACTIVATION: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_new": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
    "swish": functional.silu,
    "tanh": torch.tanh,
}
_MAX_BIAS_DISTANCE = 128  # MPNet: farther tokens share one bucket


class Encoder:
    """One encoder with its weights. tensors: under the names of ``architectures.expected_tensors``."""

    def __init__(self, config: EncoderConfig, tensors: Mapping[str, Tensor]) -> None:
        self.config = config
        self.tensors = tensors
        self._activation = ACTIVATION[config.activation]

    @property
    def device(self) -> torch.device:
        """Where the weights really are."""
        return self.tensors["embeddings.word_embeddings.weight"].device

    def __call__(self, ids: Tensor, mask: Tensor | None, types: Tensor | None = None) -> Tensor:
        """Token vectors of the last layer.

        ids: (batch, tokens) int64, padded on the right. mask: the same shape, True for real tokens; None: no padding.
        types: token types, the same shape; None: all 0.
        Returns (batch, tokens, width); rows of padding are meaningless.
        """
        hidden = self._embed(ids, types)
        attention = self._attention_mask(mask, tokens=ids.shape[1], dtype=hidden.dtype)
        for index in range(self.config.layers):
            hidden = self._layer(f"{self.config.layout.layers}{index}.", hidden, attention)
        return hidden

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return functional.linear(x, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        return functional.layer_norm(x, weight.shape, weight, bias, self.config.norm_eps)

    def _embed(self, ids: Tensor, types: Tensor | None) -> Tensor:
        table, config = self.tensors, self.config
        hidden = functional.embedding(ids, table["embeddings.word_embeddings.weight"])
        if config.token_types:
            kinds = table["embeddings.token_type_embeddings.weight"]
            hidden = hidden + (kinds[0] if types is None else functional.embedding(types, kinds))
        hidden = hidden + functional.embedding(self._positions(ids), table["embeddings.position_embeddings.weight"])
        hidden = self._norm("embeddings.LayerNorm", hidden)
        return self._linear("embeddings_project", hidden) if config.embedding_width != config.width else hidden

    def _positions(self, ids: Tensor) -> Tensor:
        if not self.config.layout.positions_after_padding:
            return torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
        real = ids.ne(self.config.padding_id).long()
        return torch.cumsum(real, dim=1) * real + self.config.padding_id

    def _attention_mask(self, mask: Tensor | None, *, tokens: int, dtype: torch.dtype) -> Tensor | None:
        """What is added to (or, as booleans, cuts) the attention scores."""
        cut = None if mask is None else mask[:, None, None, :]
        if not self.config.bias_buckets:
            return None if cut is None else cut.expand(-1, 1, tokens, -1)
        buckets = relative_buckets(tokens, self.config.bias_buckets).to(self.device)
        bias = functional.embedding(buckets, self.tensors["encoder.relative_attention_bias.weight"])
        bias = bias.permute(2, 0, 1).unsqueeze(0)
        return bias if cut is None else bias.masked_fill(~cut, torch.finfo(dtype).min)

    def _layer(self, at: str, hidden: Tensor, attention: Tensor | None) -> Tensor:
        names, (batch, tokens, width) = self.config.layout, hidden.shape
        query, key, value = (
            self._linear(at + name, hidden).view(batch, tokens, self.config.heads, -1).transpose(1, 2)
            for name in (names.query, names.key, names.value)
        )
        context = functional.scaled_dot_product_attention(query, key, value, attn_mask=attention)
        context = context.transpose(1, 2).reshape(batch, tokens, width)
        hidden = self._norm(at + names.attention_norm, self._linear(at + names.attention_out, context) + hidden)
        inner = self._activation(self._linear(at + names.up, hidden))
        return self._norm(at + names.output_norm, self._linear(at + names.down, inner) + hidden)


def relative_buckets(tokens: int, buckets: int) -> Tensor:
    """(tokens, tokens) int64: the bucket of each pair's distance; half of them for either side, exact near, then
    logarithmic. The model always uses 32 of them, whatever the table's size. Source: MPNetEncoder in transformers."""
    side = min(buckets, 32) // 2
    position = torch.arange(tokens)
    behind = position[:, None] - position[None, :]
    distance = behind.abs()
    exact = side // 2
    scale = (side - exact) / math.log(_MAX_BIAS_DISTANCE / exact)
    far = exact + (torch.log(distance.clamp(min=1).float() / exact) * scale).long()
    bucket = torch.where(distance < exact, distance, far.clamp(max=side - 1))
    return bucket + (behind < 0).long() * side
