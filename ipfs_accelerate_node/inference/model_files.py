"""Is this directory a model that may be loaded? Answered before a library or the device sees any of it.

Runs inside the worker process: hostile files cost one process, not the daemon. Imports neither torch nor transformers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from ipfs_accelerate_node.errors import ModelUnsupported
from ipfs_accelerate_node.inference.architectures import FLOAT_DTYPES, LAYOUTS
from ipfs_accelerate_node.inference.families import EMBEDDING, TASKS, Family, ModelType, model_type_of
from ipfs_accelerate_node.inference.families import tasks_of as tasks_of
from ipfs_accelerate_node.inference.refusals import read_settings, refuse_code
from ipfs_accelerate_node.inference.safetensors_check import TensorEntry, weights_of
from ipfs_accelerate_node.inference.sentence import SentenceSettings, read_sentence_settings
from ipfs_accelerate_node.inference.sentence_files import SentenceFiles, read_sentence_files
from ipfs_accelerate_node.inference.sizes import check_sizes, read_labels
from ipfs_accelerate_node.inference.strict_json import JsonObject
from ipfs_accelerate_node.inference.text_limits import max_tokens_of

MAX_TOKENIZER_BYTES = 64 << 20
BYTES_OF_PRECISION: Mapping[str, int] = {"f32": 4, "bf16": 2, "f16": 2, "int8": 1}

_TABLES = tuple(
    f"{name}.weight"
    for name in ("word_embeddings", "token_embedding", "embed_tokens", "tok_embeddings", "shared", "wte")
)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model that passed.

    directory: the model. model_directory: where config, weights and tokenizer lie (the same, or below it). config: the
    checked config.json. tasks: what it can do, the default first. tensors: every tensor by its name in the files.
    numbers: of the weights. max_tokens: the longest text input, special tokens included; of a generator, prompt and
    answer together; of speech, the answer; 0 without text. vocab_size: token ids are below it; 0 without text. labels:
    in the order of the logits; empty without a classifier. tokenizer_config, preprocessor_config, generation_config:
    the author's JSON, empty where there is none. sentence: how token vectors become one; None when the model gives no
    such vectors (a CLIP-like model gives its own).
    """

    directory: Path
    model_directory: Path
    config: JsonObject
    kind: ModelType
    tasks: tuple[str, ...]
    tensors: Mapping[str, TensorEntry]
    numbers: int
    max_tokens: int
    vocab_size: int
    labels: tuple[str, ...]
    tokenizer_config: JsonObject
    preprocessor_config: JsonObject
    generation_config: JsonObject
    sentence: SentenceFiles | None
    notes: tuple[str, ...]

    @property
    def family(self) -> Family:
        return self.kind.family

    @property
    def model_type(self) -> str:
        """``model_type`` of config.json."""
        return self.kind.name

    @property
    def architecture(self) -> str:
        """What a person is shown."""
        return self.kind.name

    @property
    def tokenizer_json(self) -> Path | None:
        """The tokenizers library's own file; None where there is none."""
        return self._present("tokenizer.json")

    @property
    def vocab_txt(self) -> Path | None:
        """BERT's word pieces, one a line; for models without tokenizer.json."""
        return self._present("vocab.txt")

    def _present(self, name: str) -> Path | None:
        path = self.model_directory / name
        return path if path.exists() else None

    def estimate_bytes(self, precision: str) -> int:
        """Memory that the weights take in ``f32``, ``bf16``, ``f16`` or ``int8``."""
        return self.numbers * BYTES_OF_PRECISION[precision]

    def check_task(self, task: str | None) -> str:
        """The task, or the model's own when None. Raises ModelUnsupported(task_unsupported) naming what it can do."""
        if task is None:
            return self.tasks[0]
        if task not in self.tasks:
            known = "" if task in TASKS else f" ({task[:40]!r} is no task; those are {', '.join(TASKS)})"
            raise ModelUnsupported(
                f"this {self.model_type} model does {', '.join(self.tasks)}, not {task[:40]}{known}",
                code="task_unsupported",
            )
        return task


def inspect(directory: Path, *, available_bytes: int, precision: str = "f32", task: str | None = None) -> ModelFiles:
    """Check a model directory and say how to load it. Blocking; reads headers and JSON only.

    available_bytes: memory that the weights may take. task: the one that it is loaded for, if not its default. Raises
    ModelUnsupported with one of: bad_config, bad_weights, format_refused, remote_code_refused, model_too_large,
    task_unsupported.
    """
    refuse_code(directory)
    settings = read_sentence_settings(directory)
    model_directory = directory / settings.transformer
    if not os.path.lexists(model_directory / "config.json"):
        raise ModelUnsupported("no config.json: not a model directory", code="bad_config")
    config = read_settings(model_directory / "config.json")
    tokenizer_config = read_settings(model_directory / "tokenizer_config.json")
    generation_config = read_settings(model_directory / "generation_config.json")
    tensors = weights_of(model_directory)
    kind = model_type_of(config)
    _refuse_too_large(check_sizes(config), available_bytes, precision, "by its config.json")
    tasks, sentence = _with_sentence(directory, settings, config, kind, tensors)
    asked = sentence if (task or tasks[0]) == EMBEDDING else None
    whole = sum(prod(entry.shape) for entry in tensors.values() if entry.dtype in FLOAT_DTYPES)
    numbers = whole if asked is None else asked.numbers
    _refuse_too_large(numbers, available_bytes, precision, "by its weights")
    files = ModelFiles(
        directory=directory,
        model_directory=model_directory,
        config=config,
        kind=kind,
        tasks=tasks,
        tensors=tensors,
        numbers=numbers,
        max_tokens=max_tokens_of(kind, config, tokenizer_config, sentence),
        vocab_size=_vocab_size(config, tensors),
        labels=_labels(config, tasks),
        tokenizer_config=tokenizer_config,
        preprocessor_config=_preprocessor(model_directory),
        generation_config=generation_config,
        sentence=sentence,
        notes=() if asked is None else asked.notes,
    )
    files.check_task(task)
    return files


def _with_sentence(
    directory: Path,
    settings: SentenceSettings,
    config: JsonObject,
    kind: ModelType,
    tensors: Mapping[str, TensorEntry],
) -> tuple[tuple[str, ...], SentenceFiles | None]:
    """The tasks, and what embeddings need where they are among them. Who wrote modules.json meant them first."""
    tasks = tasks_of(config)
    if settings.origin == "modules.json" and kind.family in ("encoder", "causal"):
        tasks = (EMBEDDING, *(other for other in tasks if other != EMBEDDING))
    if EMBEDDING not in tasks or kind.family == "dual":
        return tasks, None
    try:
        return tasks, read_sentence_files(directory, settings, config if kind.name in LAYOUTS else None, tensors)
    except ModelUnsupported as exc:
        if exc.code != "task_unsupported" or tasks[0] == EMBEDDING:
            raise
        return tuple(other for other in tasks if other != EMBEDDING), None


def _refuse_too_large(numbers: int, available_bytes: int, precision: str, why: str) -> None:
    needed = numbers * BYTES_OF_PRECISION[precision]
    if needed > available_bytes:
        raise ModelUnsupported(
            f"the model needs {needed:,} bytes in {precision} {why}, {available_bytes:,} are available",
            code="model_too_large",
        )


def _labels(config: JsonObject, tasks: tuple[str, ...]) -> tuple[str, ...]:
    return read_labels(config) if any(task.endswith("-classification") or task == "rerank" for task in tasks) else ()


def _vocab_size(config: JsonObject, tensors: Mapping[str, TensorEntry]) -> int:
    """Of config.json, or of the text model's part of it; where both leave it to transformers, rows of the table."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        size = part.get("vocab_size")
        if type(size) is int:
            return size
    tables = [entry.shape[0] for name, entry in tensors.items() if name.endswith(_TABLES) and len(entry.shape) == 2]
    return min(tables, default=0)


def _preprocessor(directory: Path) -> JsonObject:
    """How pictures and sound become arrays: of preprocessor_config.json, else of the parts of processor_config.json."""
    if settings := read_settings(directory / "preprocessor_config.json"):
        return settings
    whole = read_settings(directory / "processor_config.json")
    for part in ("image_processor", "feature_extractor"):
        inner = whole.get(part)
        if isinstance(inner, dict):
            return inner
    return {}
