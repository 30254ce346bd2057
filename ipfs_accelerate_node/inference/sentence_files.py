"""What an embedding model of the sentence kind needs beyond its settings: sizes, tensors, dense layers; all checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from ipfs_accelerate_node.errors import ModelUnsupported
from ipfs_accelerate_node.inference.architectures import (
    FLOAT_DTYPES,
    EncoderConfig,
    MatchedTensors,
    match,
    read_encoder,
)
from ipfs_accelerate_node.inference.safetensors_check import TensorEntry, read_header
from ipfs_accelerate_node.inference.sentence import Dense, SentenceSettings
from ipfs_accelerate_node.inference.strict_json import JsonObject


@dataclass(frozen=True, slots=True)
class SentenceFiles:
    """encoder, tensors: of our own forward pass; None for a model type that transformers' classes compute. dense:
    settings and tensors of the layers after pooling. numbers: of encoder and dense layers."""

    settings: SentenceSettings
    encoder: EncoderConfig | None
    tensors: MatchedTensors | None
    dense: tuple[tuple[Dense, Mapping[str, TensorEntry]], ...]
    numbers: int
    notes: tuple[str, ...]


def read_sentence_files(
    directory: Path, settings: SentenceSettings, config: JsonObject | None, tensors: Mapping[str, TensorEntry]
) -> SentenceFiles:
    """config: of an encoder that our own forward pass computes; None for any other.

    Raises ModelUnsupported: bad_config, bad_weights, format_refused, task_unsupported, model_too_large.
    """
    dense = tuple((layer, _dense_tensors(directory, layer)) for layer in settings.dense)
    numbers = sum(layer.into * layer.out for layer, _ in dense)
    encoder = matched = None
    if config is None:
        numbers += sum(prod(entry.shape) for entry in tensors.values() if entry.dtype in FLOAT_DTYPES)
        _check_widths(None, settings)
    else:
        encoder = read_encoder(config)
        numbers += encoder.parameters
        matched = match(encoder, tensors)
        _check_widths(encoder.width, settings)
    return SentenceFiles(settings, encoder, matched, dense, numbers, _notes(settings, matched))


def _dense_tensors(directory: Path, layer: Dense) -> Mapping[str, TensorEntry]:
    file = directory / layer.directory / "model.safetensors"
    if not file.exists():
        raise ModelUnsupported(
            f"{layer.directory}: no model.safetensors; pickled layers are not loaded", code="format_refused"
        )
    expected: dict[str, tuple[int, ...]] = {"linear.weight": (layer.out, layer.into)}
    if layer.bias:
        expected["linear.bias"] = (layer.out,)
    tensors = read_header(file)
    if {name: entry.shape for name, entry in tensors.items()} != expected:
        raise ModelUnsupported(f"{layer.directory}: tensors differ from its config.json", code="bad_weights")
    return tensors


def _check_widths(encoder_width: int | None, settings: SentenceSettings) -> None:
    width = None if encoder_width is None else encoder_width * len(settings.pooling)
    for layer in settings.dense:
        if width is not None and layer.into != width:
            raise ModelUnsupported(f"{layer.directory}: takes vectors of {layer.into}, gets {width}", code="bad_config")
        width = layer.out


def _notes(settings: SentenceSettings, tensors: MatchedTensors | None) -> tuple[str, ...]:
    notes: list[str] = []
    if settings.origin == "default":
        notes.append("no modules.json: mean pooling and normalisation are assumed")
    if tensors is not None and tensors.ignored:
        heads = sorted({name.split(".")[0] for name in tensors.ignored})
        notes.append(f"{len(tensors.ignored)} tensors not needed for embeddings are ignored ({', '.join(heads)[:200]})")
    return tuple(notes)
