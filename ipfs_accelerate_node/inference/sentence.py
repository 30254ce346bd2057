"""How a model wants its token vectors made into one: the settings that sentence-transformers writes beside it.

Source: sentence-transformers' ``modules.json`` (Transformer, then Pooling, then Dense and Normalize in any number),
``1_Pooling/config.json``, ``sentence_bert_config.json``, ``config_sentence_transformers.json``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from ipfs_accelerate_node.errors import ModelUnsupported
from ipfs_accelerate_node.inference.strict_json import JsonObject, parse_object, read_bytes, read_object

Pooling = Literal["cls", "max", "mean", "mean_sqrt_len", "weightedmean", "lasttoken"]

# in the order in which sentence-transformers concatenates them
_FLAGS: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
DENSE_ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid")
MODULE_TYPES = ("Transformer", "Pooling", "Dense", "Normalize")


@dataclass(frozen=True, slots=True)
class Dense:
    """One linear layer after pooling. directory: relative, holds its model.safetensors."""

    directory: str
    into: int
    out: int
    bias: bool
    activation: str


@dataclass(frozen=True, slots=True)
class SentenceSettings:
    """transformer: directory of the encoder, relative. max_tokens: the author's limit, if any. lower_case: before the
    tokenizer. prompt: goes before every text. origin: ``modules.json``, or ``default`` when the model says nothing."""

    transformer: str = ""
    pooling: tuple[Pooling, ...] = ("mean",)
    dense: tuple[Dense, ...] = ()
    normalize: bool = True
    max_tokens: int | None = None
    lower_case: bool = False
    prompt: str = ""
    origin: Literal["modules.json", "default"] = "default"


def _bad(message: str, code: str = "bad_config") -> ModelUnsupported:
    return ModelUnsupported(message, code=code)


def read_sentence_settings(directory: Path) -> SentenceSettings:
    """The settings of a model directory; mean pooling and normalisation where it has no modules.json.

    Raises ModelUnsupported. bad_config: unreadable or contradictory settings. task_unsupported: a module that is not
    implemented. remote_code_refused: a module that would be the author's own code.
    """
    if not (directory / "modules.json").exists():
        return SentenceSettings()
    modules = _modules(directory)
    kinds = [kind for kind, _ in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or {"Transformer", "Pooling"} & set(kinds[2:]):
        raise _bad(f"modules.json: {' → '.join(kinds)} is not Transformer → Pooling → …", "task_unsupported")
    if "Normalize" in kinds[:-1]:
        raise _bad("modules.json: Normalize is supported as the last module only", "task_unsupported")
    transformer = modules[0][1]
    pooling_config = read_object(directory / modules[1][1] / "config.json")
    limits = _optional(directory / transformer / "sentence_bert_config.json")
    return SentenceSettings(
        transformer=transformer,
        pooling=_pooling(pooling_config),
        dense=tuple(_dense(directory, path) for kind, path in modules if kind == "Dense"),
        normalize=kinds[-1] == "Normalize",
        max_tokens=_max_tokens(limits),
        lower_case=limits.get("do_lower_case") is True,
        prompt=_prompt(_optional(directory / "config_sentence_transformers.json"), pooling_config),
        origin="modules.json",
    )


def _optional(path: Path) -> JsonObject:
    return read_object(path) if path.exists() else {}


def _modules(directory: Path) -> list[tuple[str, str]]:
    """(kind, relative directory) of every module, in order."""
    data = read_bytes(directory / "modules.json", max_bytes=1 << 20, code="bad_config")
    listed = parse_object(b'{"modules":' + data + b"}", what="modules.json", code="bad_config")["modules"]
    if not isinstance(listed, list) or not 0 < len(listed) <= 16:
        raise _bad("modules.json: not a list of modules")
    modules: list[tuple[str, str]] = []
    for module in listed:
        if not isinstance(module, dict):
            raise _bad("modules.json: a module is not an object")
        dotted, path = module.get("type"), module.get("path", "")
        if not isinstance(dotted, str) or not isinstance(path, str):
            raise _bad("modules.json: a module's type or path is not a string")
        if not dotted.startswith("sentence_transformers."):
            raise _bad(f"modules.json: {dotted[:80]!r} is the author's own code", "remote_code_refused")
        kind = dotted.rpartition(".")[2]
        if kind not in MODULE_TYPES:
            known = ", ".join(MODULE_TYPES)
            raise _bad(f"modules.json: module {kind[:40]!r} is not one of {known}", "task_unsupported")
        parts = PurePosixPath(path).parts
        if path.startswith("/") or ".." in parts or len(parts) > 1 or "\\" in path or "\0" in path:
            raise _bad(f"modules.json: path {json.dumps(path[:80])} is not a directory of the model")
        modules.append((kind, path))
    return modules


def _pooling(config: JsonObject) -> tuple[Pooling, ...]:
    named = config.get("pooling_mode")
    if named is not None:
        names = named if isinstance(named, list) else [named]
        modes = tuple(mode for mode in _FLAGS.values() if mode in names)
        known = len(modes) == len(names)
    else:
        modes = tuple(mode for flag, mode in _FLAGS.items() if config.get(flag) is True)
        known = all(config[key] is not True for key in config if key.startswith("pooling_mode_") and key not in _FLAGS)
    if not modes or not known:
        raise _bad(f"pooling: no mode, or one that is not among {', '.join(_FLAGS.values())}", "task_unsupported")
    return modes


def _dense(directory: Path, path: str) -> Dense:
    config = read_object(directory / path / "config.json")
    into, out = config.get("in_features"), config.get("out_features")
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    if type(into) is not int or type(out) is not int or min(into, out) < 1:
        raise _bad(f"{path}/config.json: in_features or out_features is not a size")
    if activation not in DENSE_ACTIVATIONS:
        raise _bad(f"{path}/config.json: activation {activation[:40]!r} is not supported", "task_unsupported")
    return Dense(path, into, out, config.get("bias", True) is True, activation)


def _max_tokens(config: JsonObject) -> int | None:
    value = config.get("max_seq_length")
    if value is None:
        return None
    if type(value) is not int or value < 1:
        raise _bad(f"sentence_bert_config.json: max_seq_length is {str(value)[:40]!r}")
    return value


def _prompt(config: JsonObject, pooling: JsonObject) -> str:
    name, prompts = config.get("default_prompt_name"), config.get("prompts")
    if name is None:
        return ""
    prompt = prompts.get(name) if isinstance(prompts, dict) and isinstance(name, str) else None
    if not isinstance(prompt, str):
        raise _bad("config_sentence_transformers.json: default_prompt_name names no prompt")
    if prompt and pooling.get("include_prompt", True) is not True:
        raise _bad("pooling without the prompt's own tokens is not supported", "task_unsupported")
    return prompt
