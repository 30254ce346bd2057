"""The forward pass of the Llama family over paged keys and values, for GPUs in bf16 and f16.

Weights and sizes are those of transformers' module, which checked them: its products of query, key and value, and of
gate and up, become one each, and its parameters views of them. f32 and other architectures go by transformers itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ipfs_accelerate_node.inference.pages import pages_for
from ipfs_accelerate_node.inference.torch.decode_kernels import (
    HEAD_WIDTHS,
    PAGE_TOKENS,
    Heads,
    add_norm,
    attend,
    silu_times,
    turn_and_keep,
)

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
_TURNS = ("default", "linear", "llama3", "yarn")  # rotations that do not depend on a text's length


@dataclass(frozen=True, slots=True)
class _Layer:
    before: Tensor
    qkv: tuple[Tensor, Tensor | None]
    norms: tuple[Tensor, Tensor] | None
    out: nn.Linear
    after: Tensor
    gate_up: tuple[Tensor, Tensor | None]
    down: nn.Linear


Rows = tuple[Tensor, Tensor, Tensor]  # positions, owners, table: see ``decode_kernels.turn_and_keep``


def fits(module: Any, limit: int) -> bool:
    """Is this a module whose pass is written here, for texts of so many tokens?"""
    config = module.config
    if config.model_type not in MODEL_TYPES or getattr(config, "hidden_act", None) != "silu":
        return False
    window = getattr(config, "sliding_window", None)
    windowed = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if (windowed or (config.model_type == "mistral" and window)) and (window is None or window < limit):
        return False
    turns = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    weight = module.lm_head.weight
    return turns in _TURNS and width in HEAD_WIDTHS and weight.dtype in (torch.bfloat16, torch.float16)


class Llama:
    """One model with its weights. limit: tokens of one text."""

    def __init__(self, module: Any, *, limit: int) -> None:
        config, inner = module.config, module.model
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.heads = Heads(
            config.num_attention_heads,
            config.num_key_value_heads,
            width,
            pages_for(limit, PAGE_TOKENS),
            config.rms_norm_eps,
        )
        self._embedding: Tensor = inner.embed_tokens.weight
        self._layers = [_layer(layer) for layer in inner.layers]
        self._norm: Tensor = inner.norm.weight
        self._head: nn.Linear = module.lm_head
        self._turns = _turns_of(inner.rotary_emb, limit)
        self.device = self._embedding.device
        self.dtype = self._embedding.dtype

    @property
    def token_bytes(self) -> int:
        """Of keys and values, for one token."""
        return 2 * len(self._layers) * self.heads.kept * self.heads.width * int(self.dtype.itemsize)

    def cache(self, pages: int) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each layer."""
        shape = (pages, self.heads.kept, PAGE_TOKENS, self.heads.width)
        return [
            (
                torch.zeros(shape, device=self.device, dtype=self.dtype),
                torch.zeros(shape, device=self.device, dtype=self.dtype),
            )
            for _ in self._layers
        ]

    def step(self, ids: Tensor, rows: Rows, cache: Sequence[tuple[Tensor, Tensor]], *, splits: int) -> Tensor:
        """Scores, (rows, vocabulary), after one more token of each of several texts. Nothing in it waits for the
        device, so it can be recorded."""

        def attention(qkv: Tensor, layer: _Layer, kept: tuple[Tensor, Tensor]) -> Tensor:
            query = turn_and_keep(qkv, self.heads, self._turns, layer.norms, rows, kept)
            return attend(query, self.heads, rows, kept, splits)

        return self._scores(self._through(ids, attention, cache))

    def read(
        self, ids: Tensor, rows: Rows, cache: Sequence[tuple[Tensor, Tensor]], *, pages: Tensor, before: int
    ) -> Tensor:
        """Scores, (1, vocabulary), after tokens of one text. pages: its own, int64. before: tokens that it has read."""
        until = before + len(ids)
        mask = None
        if before:
            at = torch.arange(until, device=self.device)
            mask = at[None] <= at[before:, None]

        def attention(qkv: Tensor, layer: _Layer, kept: tuple[Tensor, Tensor]) -> Tensor:
            query = turn_and_keep(qkv, self.heads, self._turns, layer.norms, rows, kept)
            key, value = (_gathered(one, pages, until) for one in kept)
            mixed = functional.scaled_dot_product_attention(
                query.view(1, len(ids), self.heads.query, -1).transpose(1, 2), key, value,
                attn_mask=mask, is_causal=mask is None and len(ids) > 1, enable_gqa=self.heads.query > self.heads.kept,
            )  # fmt: skip
            return mixed.transpose(1, 2).reshape(len(ids), -1)

        return self._scores(self._through(ids, attention, cache)[-1:])

    def _through(self, ids: Tensor, attention: Any, cache: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        epsilon = self.heads.epsilon
        total = functional.embedding(ids, self._embedding)
        out: Tensor | None = None
        for layer, kept in zip(self._layers, cache, strict=True):
            total, hidden = add_norm(
                total if out is None else out, None if out is None else total, layer.before, epsilon
            )
            mixed = attention(functional.linear(hidden, *layer.qkv), layer, kept)
            total, hidden = add_norm(layer.out(mixed), total, layer.after, epsilon)
            out = layer.down(silu_times(functional.linear(hidden, *layer.gate_up)))
        assert out is not None
        return add_norm(out, total, self._norm, epsilon)[1]

    def _scores(self, hidden: Tensor) -> Tensor:
        scores: Tensor = self._head(hidden)
        return scores.float()


def _layer(layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    normed = hasattr(attention, "q_norm")
    return _Layer(
        before=layer.input_layernorm.weight,
        qkv=_fused(attention.q_proj, attention.k_proj, attention.v_proj),
        norms=(attention.q_norm.weight, attention.k_norm.weight) if normed else None,
        out=attention.o_proj,
        after=layer.post_attention_layernorm.weight,
        gate_up=_fused(mlp.gate_proj, mlp.up_proj),
        down=mlp.down_proj,
    )


def _fused(*parts: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of several products as one; the modules keep views of them."""
    weight = _joined([part.weight for part in parts])
    bias = None if parts[0].bias is None else _joined([part.bias for part in parts])
    return weight, bias


def _joined(parameters: Sequence[Tensor]) -> Tensor:
    whole = torch.cat([parameter.data for parameter in parameters])
    at = 0
    for parameter in parameters:
        parameter.data = whole[at : at + len(parameter)]
        at += len(parameter)
    return whole


def _turns_of(rotary: Any, limit: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each position, (limit, width / 2) f32."""
    frequencies: Tensor = rotary.inv_freq.float()
    angles = torch.arange(limit, device=frequencies.device, dtype=torch.float32)[:, None] * frequencies[None]
    scale = float(getattr(rotary, "attention_scaling", 1.0))
    return (angles.cos() * scale).contiguous(), (angles.sin() * scale).contiguous()


def _gathered(cache: Tensor, pages: Tensor, tokens: int) -> Tensor:
    """(1, kept heads, tokens, width): what the pages hold, one after the other."""
    found = cache[pages].permute(1, 0, 2, 3)
    return found.reshape(1, found.shape[0], -1, found.shape[3])[:, :, :tokens]
