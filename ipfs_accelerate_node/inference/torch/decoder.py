"""A batch of sequences being written, with transformers' own key-value cache."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ipfs_accelerate_node.errors import InferenceFailed
from ipfs_accelerate_node.inference.session import Array
from ipfs_accelerate_node.inference.torch.device import device_errors
from ipfs_accelerate_node.inference.torch.graphs import last_of


class TorchDecoder:
    """Of one batch. module: a causal model, or one with an encoder whose output ``start`` was given."""

    def __init__(self, module: Any, *, device: torch.device, dtype: torch.dtype) -> None:
        from transformers.cache_utils import DynamicCache, EncoderDecoderCache

        self._module = module
        self._device = device
        self._dtype = dtype
        self._with_encoder = bool(module.config.is_encoder_decoder)
        config = module.config.get_text_config(decoder=True)
        own = DynamicCache(config=config)
        self._cache = EncoderDecoderCache(own, DynamicCache(config=config)) if self._with_encoder else own
        self._hidden: Tensor | None = None
        self._encoder_mask: Tensor | None = None
        self._named = signature(module.forward).parameters

    def start(self, encoded: Mapping[str, Array] | None) -> None:
        """See ``session.Decoder``. Raises InferenceFailed: not what this kind of model starts from."""
        if not self._with_encoder:
            if encoded is not None:
                raise InferenceFailed("a decoder-only model has no encoder's output to start from")
            return
        if encoded is None or "hidden" not in encoded:
            raise InferenceFailed("the decoder starts from what graph 'encoder' returned")
        self._hidden = torch.from_numpy(np.asarray(encoded["hidden"])).to(self._device, self._dtype)
        if "attention_mask" in encoded and "attention_mask" in self._named and "input_features" not in self._named:
            self._encoder_mask = self._integers(encoded["attention_mask"])

    def step(self, input_ids: Array, attention_mask: Array, *, beam: Array | None = None) -> NDArray[np.float32]:
        """See ``session.Decoder``. Raises InferenceFailed; Unavailable: out_of_memory, device_lost."""
        with torch.inference_mode(), device_errors("the decoder"):
            if beam is not None:
                self._reorder(self._integers(beam))
            ids, mask = self._integers(input_ids), self._integers(attention_mask)
            logits = self._from_encoder(ids, mask) if self._with_encoder else self._from_prompt(ids, mask)
            return last_of(logits).cpu().numpy()

    def _integers(self, array: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(self._device)

    def _reorder(self, beam: Tensor) -> None:
        self._cache.reorder_cache(beam)
        if self._hidden is not None:
            self._hidden = self._hidden.index_select(0, beam)
        if self._encoder_mask is not None:
            self._encoder_mask = self._encoder_mask.index_select(0, beam)

    def _from_prompt(self, ids: Tensor, mask: Tensor) -> Tensor:
        given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if "position_ids" in self._named:  # the first real token of each row has position 0, whatever its padding
            given["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        if "logits_to_keep" in self._named:
            given["logits_to_keep"] = 1
        return self._logits(given)

    def _from_encoder(self, ids: Tensor, mask: Tensor) -> Tensor:
        from transformers.modeling_outputs import BaseModelOutput

        if self._hidden is None:
            raise InferenceFailed("step before start")
        given: dict[str, Any] = {
            "decoder_input_ids": ids,
            "encoder_outputs": BaseModelOutput(last_hidden_state=self._hidden),
        }
        if self._encoder_mask is not None:
            given["attention_mask"] = self._encoder_mask
        if not bool(mask.all()):
            given["decoder_attention_mask"] = mask
        return self._logits(given)

    def _logits(self, given: dict[str, Any]) -> Tensor:
        logits: Tensor = self._module(**given, past_key_values=self._cache, use_cache=True).logits
        return logits
