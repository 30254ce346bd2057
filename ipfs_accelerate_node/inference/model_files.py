"""Is this directory a model that may be loaded? Answered before a library or the device sees any of it.

Runs inside the worker process: hostile files cost one process, not the daemon.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

from ipfs_accelerate_node.errors import ModelUnsupported
from ipfs_accelerate_node.inference.architectures import EncoderConfig, MatchedTensors, match, read_encoder
from ipfs_accelerate_node.inference.safetensors_check import TensorEntry, read_header, weights_of
from ipfs_accelerate_node.inference.sentence import Dense, SentenceSettings, read_sentence_settings
from ipfs_accelerate_node.inference.strict_json import JsonObject, read_object

MAX_TOKENIZER_BYTES = 64 << 20
_MAX_FILES = 10_000

# Training records that authors of sentence-transformers leave beside the weights; nothing refers to them.
INERT_SCRIPTS = frozenset({"train_script.py"})
_CODE_KEYS = frozenset({"auto_map", "trust_remote_code", "custom_pipelines", "custom_code"})
_KERNEL_KEYS = frozenset({"_attn_implementation_internal", "_attn_implementation", "attn_implementation"})
_KERNEL_SETTINGS = frozenset({"use_kernels", "kernel_config", "kernels"})
_PATH_KEYS = frozenset({"vocab_file", "merges_file", "tokenizer_file", "spm_file", "sp_model", "tokenizer_model_file"})


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model that passed. encoder_directory: where config, weights and tokenizer lie. dense: settings and tensors of
    the layers after pooling. max_tokens: the least of what author, tokenizer and positions allow. estimate_bytes: of
    memory for the weights in f32."""

    directory: Path
    encoder_directory: Path
    encoder: EncoderConfig
    settings: SentenceSettings
    tensors: MatchedTensors
    dense: tuple[tuple[Dense, Mapping[str, TensorEntry]], ...]
    max_tokens: int
    lower_case_vocab: bool
    estimate_bytes: int
    notes: tuple[str, ...]


def inspect(directory: Path, *, available_bytes: int) -> ModelFiles:
    """Check a model directory and say how to load it. Blocking; reads headers and JSON only.

    available_bytes: memory that the weights may take. Raises ModelUnsupported with one of: bad_config, bad_weights,
    format_refused, remote_code_refused, model_too_large, task_unsupported.
    """
    _refuse_code(directory)
    settings = read_sentence_settings(directory)
    encoder_directory = directory / settings.transformer
    config = _config(encoder_directory)
    weights = weights_of(encoder_directory)
    encoder = read_encoder(config)
    dense = tuple((layer, _dense_tensors(directory, layer)) for layer in settings.dense)
    numbers = encoder.parameters + sum(layer.into * layer.out for layer, _ in dense)
    if numbers * 4 > available_bytes:
        raise ModelUnsupported(
            f"the model needs {numbers * 4:,} bytes in f32, {available_bytes:,} are available", code="model_too_large"
        )
    tensors = match(encoder, weights)
    _check_widths(encoder, settings)
    tokenizer_config = _tokenizer_config(encoder_directory)
    return ModelFiles(
        directory=directory,
        encoder_directory=encoder_directory,
        encoder=encoder,
        settings=settings,
        tensors=tensors,
        dense=dense,
        max_tokens=_max_tokens(encoder, settings, tokenizer_config),
        lower_case_vocab=tokenizer_config.get("do_lower_case", True) is not False,
        estimate_bytes=numbers * 4,
        notes=_notes(settings, tensors),
    )


def _refuse_code(directory: Path) -> None:
    seen = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            seen += 1
            if seen > _MAX_FILES:
                raise ModelUnsupported(f"over {_MAX_FILES:,} files", code="bad_config")
            if name.lower().endswith((".py", ".pyc", ".so")) and name not in INERT_SCRIPTS:
                shown = (PurePath(folder) / name).relative_to(directory)
                raise ModelUnsupported(
                    f"{shown}: the model comes with code of its own, which is never run", code="remote_code_refused"
                )


def _config(directory: Path) -> JsonObject:
    if not (directory / "config.json").exists():
        raise ModelUnsupported("no config.json: not a model directory", code="bad_config")
    config = read_object(directory / "config.json")
    _refuse_settings("config.json", config)
    return config


def _tokenizer_config(directory: Path) -> JsonObject:
    path = directory / "tokenizer_config.json"
    if not path.exists():
        return {}
    config = read_object(path)
    _refuse_settings(path.name, config)
    return config


def _refuse_settings(file: str, config: JsonObject) -> None:
    for key, value in _walk(config):
        shown = f"{file}: {key} {str(value)[:80]!r}"
        if key in _CODE_KEYS and value:
            raise ModelUnsupported(
                f"{shown} asks for the author's code, which is never run", code="remote_code_refused"
            )
        if (key in _KERNEL_KEYS and not _plain_word(value)) or (key in _KERNEL_SETTINGS and value):
            raise ModelUnsupported(f"{shown} asks for code from elsewhere", code="remote_code_refused")
        if key in _PATH_KEYS and value is not None and not _file_name(value):
            raise ModelUnsupported(f"{shown} is not the name of a file in the model's directory", code="bad_config")


def _walk(value: object) -> Iterator[tuple[str, object]]:
    """Every key with its value, at any depth."""
    pending = [value]
    while pending:
        inner = pending.pop()
        if isinstance(inner, dict):
            yield from inner.items()
            pending.extend(inner.values())
        elif isinstance(inner, list):
            pending.extend(inner)


def _plain_word(value: object) -> bool:
    return value is None or (isinstance(value, str) and value.replace("_", "").isalnum())


def _file_name(value: object) -> bool:
    return isinstance(value, str) and value not in ("", ".", "..") and not any(c in value for c in "/\\\0")


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


def _check_widths(encoder: EncoderConfig, settings: SentenceSettings) -> None:
    width = encoder.width * len(settings.pooling)
    for layer in settings.dense:
        if layer.into != width:
            raise ModelUnsupported(f"{layer.directory}: takes vectors of {layer.into}, gets {width}", code="bad_config")
        width = layer.out


def _max_tokens(encoder: EncoderConfig, settings: SentenceSettings, tokenizer_config: JsonObject) -> int:
    limits = [encoder.max_tokens]
    if settings.max_tokens is not None:
        limits.append(settings.max_tokens)
    else:
        declared = tokenizer_config.get("model_max_length")  # transformers writes 10**30 for "none"
        if isinstance(declared, int | float) and not isinstance(declared, bool) and declared >= 1:
            limits.append(int(declared))
    return min(limits)


def _notes(settings: SentenceSettings, tensors: MatchedTensors) -> tuple[str, ...]:
    notes: list[str] = []
    if settings.origin == "default":
        notes.append("no modules.json: mean pooling and normalisation are assumed")
    if tensors.ignored:
        heads = sorted({name.split(".")[0] for name in tensors.ignored})
        notes.append(f"{len(tensors.ignored)} tensors not needed for embeddings are ignored ({', '.join(heads)[:200]})")
    return tuple(notes)
