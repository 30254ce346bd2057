"""What a model directory must not ask for: code of its own, code from elsewhere, files outside it. Tables M1 to M3."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePath

from ipfs_accelerate_node.errors import ModelUnsupported
from ipfs_accelerate_node.inference.strict_json import JsonObject, read_object

_MAX_FILES = 10_000

# Training records that authors of sentence-transformers leave beside the weights; nothing refers to them.
INERT_SCRIPTS = frozenset({"train_script.py"})
_CODE_KEYS = frozenset({"auto_map", "trust_remote_code", "custom_pipelines", "custom_code"})
_KERNEL_KEYS = frozenset(
    {
        "_attn_implementation_internal",
        "_attn_implementation",
        "attn_implementation",
        "_experts_implementation_internal",
        "_experts_implementation",
        "experts_implementation",
    }
)
_KERNEL_SETTINGS = frozenset({"use_kernels", "kernel_config", "kernels"})
_PATH_KEYS = frozenset(
    {
        "vocab_file",
        "merges_file",
        "tokenizer_file",
        "spm_file",
        "sp_model",
        "tokenizer_model_file",
        "source_spm",
        "target_spm",
        "target_vocab_file",
        "normalizer_file",
    }
)


def refuse_code(directory: Path) -> None:
    """Raises ModelUnsupported. remote_code_refused: a file of Python or native code lies anywhere below directory.
    bad_config: more files than any model has."""
    seen = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            seen += 1
            if seen > _MAX_FILES:
                raise ModelUnsupported(f"over {_MAX_FILES:,} files", code="bad_config")
            if name.lower().endswith((".py", ".pyc", ".so", ".dll", ".dylib")) and name not in INERT_SCRIPTS:
                shown = (PurePath(folder) / name).relative_to(directory)
                raise ModelUnsupported(
                    f"{shown}: the model comes with code of its own, which is never run", code="remote_code_refused"
                )


def read_settings(path: Path) -> JsonObject:
    """A JSON object of the author's, empty where the file is not there. Raises ModelUnsupported as ``refuse_settings``,
    and bad_config for what is no JSON object."""
    if not os.path.lexists(path):
        return {}
    settings = read_object(path)
    refuse_settings(path.name, settings)
    return settings


def refuse_settings(file: str, settings: JsonObject) -> None:
    """Raises ModelUnsupported. remote_code_refused: a key at any depth asks for code. bad_config: a path that leads out
    of the model's directory."""
    for key, value in _walk(settings):
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
