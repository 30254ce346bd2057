"""Texts of any decoder-only model of transformers written together: one row of the cache each, by the class's own pass.

Every row is at a position of its own, which the classes take as ``position_ids`` and a mask of four dimensions. The
cache grows by doubling, in rows and in tokens, so that short texts cost little. Where a class knows no positions, or
looks back over a window only, texts are written one after the other instead (``sequences.DecoderSequences``).
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from ipfs_accelerate_node.errors import InferenceFailed
from ipfs_accelerate_node.inference.sequences import Scored, scored
from ipfs_accelerate_node.inference.torch.device import device_errors
from ipfs_accelerate_node.inference.torch.graphs import last_of

MOST = 16
_FIRST_TOKENS = 256
_READ = 1024  # tokens of a prompt in one pass
_ALIBI = frozenset({"bloom", "mpt", "falcon"})  # positions are in the scores, or may be


def fits_slots(module: Any, positions: int) -> bool:
    """Does this class take rows at positions of their own?"""
    config = module.config
    window = getattr(config, "sliding_window", None)
    layers = set(getattr(config, "layer_types", None) or ()) | set(getattr(config, "attention_layers", None) or ())
    local = bool(layers - {"full_attention", "global"}) or (window is not None and window < positions)
    takes = "position_ids" in signature(type(module).forward).parameters
    return takes and not local and config.model_type not in _ALIBI and module.config._attn_implementation == "sdpa"


class RowCache(Cache):  # type: ignore[misc]
    """Keys and values, (rows, heads, tokens, width) a layer. rows: that the next pass is of; at: (rows, tokens), where
    its tokens stand; window: tokens that it looks at."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.kept: list[tuple[Tensor, Tensor]] = []
        self.rows: Tensor | None = None
        self.at: Tensor | None = None
        self.window = 0
        self.room = (1, _FIRST_TOKENS)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """What transformers' layers call with their new keys and values; returns all that they look at."""
        while layer_idx >= len(self.kept):
            self.kept.append((_like(key_states, self.room), _like(value_states, self.room)))
        found = []
        assert self.rows is not None
        assert self.at is not None
        for kept, new in zip(self.kept[layer_idx], (key_states, value_states), strict=True):
            kept[self.rows[:, None], :, self.at] = new.transpose(1, 2)
            found.append(kept[self.rows, :, : self.window])
        return found[0], found[1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.window, 0

    def grow(self, rows: int, tokens: int) -> None:
        """Room for so many rows of so many tokens; what is kept stays."""
        now = (max(self.room[0], _doubled(self.room[0], rows)), max(self.room[1], _doubled(self.room[1], tokens)))
        if now != self.room:
            self.kept = [(_grown(key, now), _grown(value, now)) for key, value in self.kept]
            self.room = now  # only once it is there

    def clear(self, row: int) -> None:
        """What a text leaves behind is weighed with 0 by who comes next, and must be a number."""
        for key, value in self.kept:
            key[row] = 0
            value[row] = 0


def _doubled(size: int, wanted: int) -> int:
    while size < wanted:
        size *= 2
    return size


def _like(new: Tensor, room: tuple[int, int]) -> Tensor:
    return torch.zeros((room[0], new.shape[1], room[1], new.shape[3]), dtype=new.dtype, device=new.device)


def _grown(kept: Tensor, room: tuple[int, int]) -> Tensor:
    larger = torch.zeros((room[0], kept.shape[1], room[1], kept.shape[3]), dtype=kept.dtype, device=kept.device)
    larger[: kept.shape[0], :, : kept.shape[2]] = kept
    return larger


class SlotSequences:
    """See ``sequences.Sequences``. length: tokens of one text."""

    def __init__(self, module: Any, *, length: int) -> None:
        self.most = MOST
        self._module = module
        self._length = length
        self._device = next(module.parameters()).device
        self._cache = RowCache()
        self._lengths: dict[int, int] = {}
        self._limits: dict[int, int] = {}
        self._keeps = "logits_to_keep" in signature(type(module).forward).parameters

    def fits(self, tokens: int) -> bool:
        return tokens <= self._length

    def open(self, tokens: int) -> int | None:
        if len(self._lengths) >= self.most or not self.fits(tokens):
            return None
        place = next(number for number in range(self.most) if number not in self._lengths)
        with torch.inference_mode(), device_errors("the decoder"):
            self._cache.grow(place + 1, tokens)
            self._cache.clear(place)
        self._lengths[place], self._limits[place] = 0, tokens
        return place

    def close(self, place: int) -> None:
        del self._lengths[place], self._limits[place]

    def read(self, place: int, ids: Sequence[int], *, scores: bool) -> Scored:
        if not ids:
            raise InferenceFailed("a text without a token")
        for start in range(0, len(ids), _READ):
            found = self._pass([place], [ids[start : start + _READ]])
        return scored(found.numpy(), [0] if scores else [])

    def step(self, places: Sequence[int], tokens: Sequence[int], *, scores: Sequence[int] = ()) -> Scored:
        return scored(self._pass(places, [[token] for token in tokens]).numpy(), scores)

    def _pass(self, places: Sequence[int], given: Sequence[Sequence[int]]) -> Tensor:
        """Scores after the last tokens, (rows, vocabulary) f32 on the CPU. given: as many tokens for each."""
        lengths = [self._lengths[place] for place in places]
        count = len(given[0])
        if any(length + count > self._limits[place] for place, length in zip(places, lengths, strict=True)):
            raise InferenceFailed("a text is longer than what it was let in for")
        with torch.inference_mode(), device_errors("the decoder"):
            at = torch.tensor(lengths)[:, None] + torch.arange(count)
            cache = self._cache
            cache.rows, cache.at = torch.tensor(places, device=self._device), at.to(self._device)
            cache.window = max(lengths) + count
            mask = torch.arange(cache.window)[None, None] <= at[:, :, None]
            asked: dict[str, Any] = {"logits_to_keep": 1} if self._keeps else {}
            logits = self._module(
                input_ids=torch.tensor([list(tokens) for tokens in given], device=self._device),
                position_ids=cache.at, attention_mask=mask[:, None].to(self._device), past_key_values=cache,
                use_cache=True, **asked,
            ).logits  # fmt: skip
            found = last_of(logits).cpu()
        for place in places:
            self._lengths[place] += count
        return found
