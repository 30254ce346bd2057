"""transformers' model classes, built from the checked config alone and filled from the checked files alone.

The class comes from our own table, never from the model's files; its parameters are made without memory (on ``meta``)
and each is then replaced by a tensor of the file, so that no number is ever made up. Importing transformers' modelling
code takes several times as long as torch, so this module does it only when a model needs it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from ipfs_accelerate_node.errors import ModelUnsupported
from ipfs_accelerate_node.inference.families import ModelType
from ipfs_accelerate_node.inference.model_files import ModelFiles
from ipfs_accelerate_node.inference.strict_json import JsonObject
from ipfs_accelerate_node.inference.torch.device import bad_numbers
from ipfs_accelerate_node.inference.torch.weights import fill, match_names

# Of no consequence for what is computed, or decided here and not by the model.
_DROPPED = frozenset(
    {
        "_attn_implementation", "_attn_implementation_internal", "attn_implementation", "_experts_implementation",
        "_experts_implementation_internal", "experts_implementation", "auto_map", "trust_remote_code",
        "custom_pipelines", "torch_dtype", "dtype", "use_bfloat16", "torchscript", "output_attentions",
        "output_hidden_states", "return_dict", "use_return_dict", "use_cache", "_name_or_path", "name_or_path",
        "transformers_version", "pruned_heads", "task_specific_params", "use_kernels", "gradient_checkpointing",
        "_commit_hash",
    }
)  # fmt: skip
# Inner models of a dual encoder that name their own type: what that may be.
_INNER_TYPES = frozenset(
    {"bert", "roberta", "xlm-roberta", "distilbert", "camembert", "electra", "clip_vision_model", "clip_text_model",
     "vit", "deit", "siglip_vision_model", "siglip_text_model", "chinese_clip_text_model", "chinese_clip_vision_model"}
)  # fmt: skip


# What configuration and model classes raise for settings that they cannot use.
_CONFIG_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, MemoryError, RuntimeError,
    StrictDataclassError, TypeError, ValueError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LoadedModule:
    """module: in evaluation mode, without gradients. notes: what a person should know of its weights."""

    module: nn.Module
    notes: tuple[str, ...]


def load_module(files: ModelFiles, task: str, *, device: torch.device, dtype: torch.dtype) -> LoadedModule:
    """The class of transformers that computes a task, with the model's weights.

    Raises ModelUnsupported: bad_config, bad_weights, task_unsupported; torch's own errors for memory.
    """
    module = build_module(files, task)
    matched = match_names(module, files.tensors)
    notes = fill(module, matched, device=device, dtype=dtype)
    left = [name for name, tensor in module.state_dict(keep_vars=True).items() if tensor.is_meta]
    if left:
        raise ModelUnsupported(f"no values for {', '.join(left[:3])}", code="bad_weights")
    if matched.unused:
        heads = sorted({name.split(".")[0] for name in matched.unused})
        notes.append(f"{len(matched.unused)} tensors not needed for {task} are ignored ({', '.join(heads)[:200]})")
    if odd := bad_numbers(module.state_dict()):
        notes.append(f"weights hold NaN or infinity: {', '.join(odd[:3])}")
    return LoadedModule(module.eval().requires_grad_(False), tuple(notes))


def build_module(files: ModelFiles, task: str) -> nn.Module:
    """The empty class: parameters on ``meta``, buffers real. Raises ModelUnsupported: bad_config, task_unsupported."""
    model_class, config_class = _classes(files.kind, task)
    _check_inner_types(files)
    try:
        config = config_class.from_dict(_cleaned(files.config))
        config._attn_implementation = "sdpa" if getattr(model_class, "_supports_sdpa", False) else "eager"
        with _without_numbers():
            module: nn.Module = model_class(config, **_construction(model_class, task))
    except _CONFIG_ERRORS as exc:
        said = " ".join(f"{type(exc).__name__}: {exc}".split())[:300]
        raise ModelUnsupported(f"config.json cannot be used: {said}", code="bad_config") from exc
    return module


def _classes(kind: ModelType, task: str) -> tuple[Any, Any]:
    quiet()
    where = f"transformers.models.{kind.module}"
    modelling = importlib.import_module(f"{where}.modeling_{kind.module}")
    configuration = importlib.import_module(f"{where}.configuration_{kind.module}")
    name = kind.class_name(task)
    model_class = getattr(modelling, name, None) if name else None
    if model_class is None:
        raise ModelUnsupported(f"{kind.name} models do not do {task}", code="task_unsupported")
    return model_class, getattr(configuration, kind.config)


def quiet() -> None:
    """Nothing of what the library says of itself goes to this process's output."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _construction(model_class: Any, task: str) -> dict[str, object]:
    """A pooler that the task does not need would have to be in the weights."""
    takes = signature(model_class.__init__).parameters
    return {"add_pooling_layer": False} if task == "embedding" and "add_pooling_layer" in takes else {}


def _cleaned(config: JsonObject) -> JsonObject:
    return {
        key: _cleaned(value) if isinstance(value, dict) and key.endswith("_config") else value
        for key, value in config.items()
        if key not in _DROPPED
    }


def _check_inner_types(files: ModelFiles) -> None:
    if files.model_type != "vision-text-dual-encoder":
        return
    for key in ("text_config", "vision_config"):
        inner = files.config.get(key)
        name = inner.get("model_type") if isinstance(inner, dict) else None
        if name not in _INNER_TYPES:
            raise ModelUnsupported(f"config.json: {key} of model_type {str(name)[:40]!r} is not supported",
                                   code="task_unsupported")  # fmt: skip


@contextmanager
def _without_numbers() -> Iterator[None]:
    """While it lasts, parameters are made on ``meta`` and nothing is drawn at random; buffers get their real values."""
    from transformers.initialization import no_init_weights

    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, parameter)
        if parameter is not None and not parameter.is_meta:
            module._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=False)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign, assignment]
    try:
        with no_init_weights():
            yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
