"""Decoders of transformers as functions from arrays to arrays: their cache flat, past in and present out.

A cache travels as one flat sequence of tensors, key and value of the first layer, of the second, …, each of the shape
(rows, heads, tokens, width).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer, EncoderDecoderCache

from ipfs_accelerate_node.errors import ModelUnsupported

Shape = tuple[int, int]  # heads, width of one


class FlatLayer(DynamicLayer):  # type: ignore[misc]
    """Begins with the first keys and values themselves. The library's own layer begins with an empty tensor of another
    rank and appends to it, which OpenVINO's converter refuses."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.keys, self.values = key_states, value_states
            self.dtype, self.device = key_states.dtype, key_states.device
            self.is_initialized: bool = True
            return key_states, value_states
        keys, values = super().update(key_states, value_states)
        return keys, values


def cache_of(flat: Sequence[Tensor] = ()) -> Cache:
    cache = Cache(layer_class_to_replicate=FlatLayer)
    for layer, (keys, values) in enumerate(zip(flat[::2], flat[1::2], strict=True)):
        cache.update(keys, values, layer)
    return cache


def flat(cache: Cache) -> list[Tensor]:
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


def shapes(tensors: Sequence[Tensor]) -> tuple[Shape, ...]:
    """Raises ModelUnsupported: a cache of another form, which is not converted."""
    if not tensors or any(tensor.dim() != 4 for tensor in tensors):
        raise ModelUnsupported("this decoder's cache has a form that is not converted", code="task_unsupported")
    return tuple((tensor.shape[1], tensor.shape[3]) for tensor in tensors)


def accepts(module: nn.Module, name: str) -> bool:
    return name in inspect.signature(module.forward).parameters


class Causal(nn.Module):
    """A decoder-only model. Returns logits of the last position and the present cache."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.names = ["input_ids", "attention_mask"]
        if accepts(model, "position_ids"):
            self.names.append("position_ids")
        self._keep = {"logits_to_keep": 1} if accepts(model, "logits_to_keep") else {}

    def forward(self, *arrays: Tensor) -> tuple[Tensor, ...]:
        """arrays: as ``names`` says, then the past cache."""
        count = len(self.names)
        cache = cache_of(arrays[count:])
        named = dict(zip(self.names, arrays[:count], strict=True))
        output = self.model(**named, **self._keep, past_key_values=cache, use_cache=True)
        return (output.logits[:, -1], *flat(cache))


class CrossEncoder(nn.Module):
    """The encoder, and the keys and values that the decoder's cross-attention makes of its output: computed once by a
    decoder step over one token, whose own result nobody reads."""

    def __init__(self, model: Any, *, speech: bool) -> None:
        super().__init__()
        self.model: Any = model
        self.names = ["input_features"] if speech else ["input_ids", "attention_mask"]

    def forward(self, first: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, ...]:
        mask = {} if attention_mask is None else {"attention_mask": attention_mask}
        hidden = self.model.get_encoder()(first, **mask).last_hidden_state
        cache = EncoderDecoderCache(cache_of(), cache_of())
        start = torch.zeros((hidden.shape[0], 1), dtype=torch.long)
        cross = {} if attention_mask is None else {"encoder_attention_mask": attention_mask}
        self.model.get_decoder()(
            input_ids=start, encoder_hidden_states=hidden, **cross, past_key_values=cache, use_cache=True
        )
        return (hidden, *flat(cache.cross_attention_cache))


class CrossDecoder(nn.Module):
    """The decoder of an encoder-decoder model over a ready cross-attention. Returns logits of the last position and the
    present cache."""

    def __init__(self, model: Any, *, speech: bool, cross: int) -> None:
        super().__init__()
        self.model: Any = model
        self.names = ["input_ids", "attention_mask", *([] if speech else ["encoder_attention_mask"])]
        self._cross = cross
        self._width = int(model.config.d_model)

    def forward(self, *arrays: Tensor) -> tuple[Tensor, ...]:
        """arrays: as ``names`` says, then the cross cache, then the past one."""
        count = len(self.names)
        cross, past = arrays[count : count + self._cross], arrays[count + self._cross :]
        cache = EncoderDecoderCache(cache_of(past), cache_of(cross))
        hidden = torch.zeros((arrays[0].shape[0], cross[0].shape[2], self._width))  # read by nobody but for its shape
        mask = {"attention_mask": arrays[2]} if count > 2 else {}
        output = self.model(
            decoder_input_ids=arrays[0],
            decoder_attention_mask=arrays[1],
            encoder_outputs=(hidden,),
            past_key_values=cache,
            use_cache=True,
            **mask,
        )
        return (output.logits[:, -1], *flat(cache.self_attention_cache))
