"""The graphs of ``session.py`` on torch: one class per kind of model, tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from inspect import signature
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ipfs_accelerate_node.errors import InferenceFailed
from ipfs_accelerate_node.inference.sentence import SentenceSettings
from ipfs_accelerate_node.inference.torch.encoder import Encoder
from ipfs_accelerate_node.inference.torch.vectors import DenseWeights, finish

Tensors = Mapping[str, Tensor]


class Graphs(Protocol):
    def run(self, graph: str, inputs: Tensors) -> dict[str, Tensor]:
        """Raises InferenceFailed: this kind of model has no such graph."""
        ...

    def weights(self) -> Mapping[str, Tensor]:
        """What device and precision are read back from."""
        ...


def no_graph(graph: str) -> InferenceFailed:
    return InferenceFailed(f"this model has no graph {graph[:40]!r}")


class SentenceGraphs:
    """``vectors`` and ``hidden`` of our own encoder, or of a base model of transformers."""

    def __init__(self, encoder: Encoder | nn.Module, settings: SentenceSettings, dense: Sequence[DenseWeights]) -> None:
        self._encoder = encoder
        self.is_own = isinstance(encoder, Encoder)
        self._settings = settings
        self._dense = dense

    def run(self, graph: str, inputs: Tensors) -> dict[str, Tensor]:
        if graph not in ("vectors", "hidden"):
            raise no_graph(graph)
        mask = inputs["attention_mask"] != 0
        hidden = self.hidden(inputs, mask)
        return self._pooled(hidden, mask) if graph == "vectors" else _shown(hidden, mask)

    def both(self, inputs: Tensors) -> dict[str, Tensor]:
        """The outputs of both graphs, of one pass."""
        mask = inputs["attention_mask"] != 0
        hidden = self.hidden(inputs, mask)
        return self._pooled(hidden, mask) | _shown(hidden, mask)

    def _pooled(self, hidden: Tensor, mask: Tensor) -> dict[str, Tensor]:
        vectors, pooled = finish(hidden, mask, self._settings, self._dense)
        return {"vectors": vectors, "pooled": pooled}

    def hidden(self, inputs: Tensors, mask: Tensor) -> Tensor:
        """(batch, tokens, width): of the last layer."""
        if isinstance(self._encoder, Encoder):
            padded = None if bool(mask.all()) else mask
            return self._encoder(inputs["input_ids"], padded, inputs.get("token_type_ids"))
        hidden: Tensor = self._encoder(**accepted(self._encoder, inputs)).last_hidden_state
        return hidden

    def weights(self) -> Mapping[str, Tensor]:
        return self._encoder.tensors if isinstance(self._encoder, Encoder) else self._encoder.state_dict()


def _shown(hidden: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Zeros in place of padding, where models may give anything."""
    return {"hidden": hidden.float().masked_fill(~mask[:, :, None], 0.0)}


class HeadGraphs:
    """``logits`` of a classifier, of texts or of pictures, or of a masked language model."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._dtype = next(p.dtype for p in module.parameters() if p.is_floating_point())

    def run(self, graph: str, inputs: Tensors) -> dict[str, Tensor]:
        if graph != "logits":
            raise no_graph(graph)
        given = {k: v.to(self._dtype) if v.is_floating_point() else v for k, v in inputs.items()}
        return {"logits": self.module(**accepted(self.module, given)).logits}

    def weights(self) -> Mapping[str, Tensor]:
        return self.module.state_dict()


class DualGraphs:
    """``text``, ``image`` and ``scale`` of a CLIP-like model."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self._dtype = next(p.dtype for p in module.parameters() if p.is_floating_point() and p.dim() > 1)

    def run(self, graph: str, inputs: Tensors) -> dict[str, Tensor]:
        if graph == "text":
            named = _named(type(self.module).get_text_features)
            return {
                "embeds": _features(self.module.get_text_features(**{k: v for k, v in inputs.items() if k in named}))
            }
        if graph == "image":
            return {"embeds": _features(self.module.get_image_features(inputs["pixel_values"].to(self._dtype)))}
        if graph == "scale":
            scales = {"scale": self.module.logit_scale.exp().reshape(())}
            if (bias := getattr(self.module, "logit_bias", None)) is not None:
                scales["bias"] = bias.reshape(())
            return scales
        raise no_graph(graph)

    def weights(self) -> Mapping[str, Tensor]:
        tensors: Mapping[str, Tensor] = self.module.state_dict()
        return tensors


def _features(given: Any) -> Tensor:
    """transformers 5 returns the whole output of a tower, its projection in place of the pooled vector."""
    features: Tensor = given if isinstance(given, Tensor) else given.pooler_output
    return features


class GeneratorGraphs:
    """``encoder`` of a model that writes text; a decoder-only model has no graph, only its decoder."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.dtype: torch.dtype = next(p.dtype for p in module.parameters() if p.is_floating_point() and p.dim() > 1)

    def run(self, graph: str, inputs: Tensors) -> dict[str, Tensor]:
        if graph != "encoder" or not self.module.config.is_encoder_decoder:
            raise no_graph(graph)
        encoder = self.module.get_encoder()
        given = {k: v.to(self.dtype) if v.is_floating_point() else v for k, v in inputs.items()}
        return {"hidden": encoder(**accepted(encoder, given)).last_hidden_state}

    def weights(self) -> Mapping[str, Tensor]:
        tensors: Mapping[str, Tensor] = self.module.state_dict()
        return tensors


def accepted(module: nn.Module, inputs: Tensors) -> dict[str, Tensor]:
    """The inputs that this class knows: not each has token types."""
    named = _named(type(module).forward)
    return {name: tensor for name, tensor in inputs.items() if name in named}


@cache
def _named(method: Callable[..., object]) -> frozenset[str]:
    return frozenset(signature(method).parameters)


def last_of(logits: Tensor) -> Tensor:
    """(batch, vocabulary) f32 of (batch, positions, vocabulary)."""
    return logits[:, -1].to(torch.float32)
