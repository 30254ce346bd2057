"""A file's tensors into a module's parameters: every name and shape accounted for, nothing made up.

The names in files are older than the classes that read them; transformers' own table of renamings is applied, and then
the comparison is strict. Source of the rules for tied weights: PreTrainedModel.tie_weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ipfs_accelerate_node.errors import ModelUnsupported
from ipfs_accelerate_node.inference.architectures import FLOAT_DTYPES, complain
from ipfs_accelerate_node.inference.safetensors_check import TensorEntry
from ipfs_accelerate_node.inference.torch.narrowing import Narrowing

# Index tables and masks that older versions saved; every version computes them itself.
_COMPUTED = re.compile(r"(position_ids|token_type_ids|inv_freq|masked_bias|num_batches_tracked)$")


@dataclass(frozen=True, slots=True)
class Matched:
    """by_file: file → (name in the file, name in the module). unused: names of heads that the task does not need."""

    by_file: Mapping[Path, list[tuple[str, str]]]
    found: frozenset[str]
    unused: tuple[str, ...]


def match_names(module: nn.Module, tensors: Mapping[str, TensorEntry]) -> Matched:
    """Pair the file's tensors with the module's. Raises ModelUnsupported(bad_weights): a tensor that is missing, of
    another shape or no float, there twice under two spellings, or of a part that config.json does not describe."""
    expected = module.state_dict(keep_vars=True)
    ours = _renamed(module, tensors, expected)
    found: dict[str, str] = {}
    unused: list[str] = []
    surplus: list[str] = []
    for name, renamed in ours.items():
        if renamed in expected:
            if renamed in found:
                raise ModelUnsupported(f"tensors {found[renamed]!r} and {name!r} are the same one", code="bad_weights")
            found[renamed] = name
        elif not _superfluous(module, renamed, tensors[name]):
            (surplus if _in_body(module, renamed) else unused).append(name)
    complain("lack", _missing(module, expected, frozenset(found)))
    complain("hold, beyond what config.json describes,", surplus)
    shapes = {inner: (tuple(expected[inner].shape), tensors[name].shape) for inner, name in found.items()}
    complain(
        "hold with another shape than config.json says",
        [f"{found[inner]} {list(has)} not {list(wants)}" for inner, (wants, has) in shapes.items() if wants != has],
    )
    complain(
        "hold in a type that is not f16, bf16, f32 or f64",
        [
            f"{name} ({tensors[name].dtype})"
            for inner, name in found.items()
            if expected[inner].is_floating_point() and tensors[name].dtype not in FLOAT_DTYPES
        ],
    )
    by_file: dict[Path, list[tuple[str, str]]] = {}
    for inner, name in found.items():
        by_file.setdefault(tensors[name].file, []).append((name, inner))
    return Matched(by_file, frozenset(found), tuple(unused))


def _renamed(module: nn.Module, tensors: Mapping[str, TensorEntry], expected: Mapping[str, Tensor]) -> dict[str, str]:
    """Name in the file → name in the module, as transformers reads checkpoints of all ages."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    rules = get_model_conversion_mapping(module)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    prefix = getattr(module, "base_model_prefix", "")
    names: dict[str, str] = {}
    for name in tensors:
        renamed, converter = rename_source_key(name, renamings, converters, prefix, dict(expected))
        if converter is not None and renamed not in expected:
            raise ModelUnsupported(f"tensor {name[:100]!r} has a layout that is not supported", code="bad_weights")
        names[name] = renamed
    return names


def _missing(module: nn.Module, expected: Mapping[str, Tensor], found: frozenset[str]) -> list[str]:
    """What neither the file holds, nor a tied tensor, nor a table that the class computes."""
    tied = _tied(module)
    groups: dict[str, set[str]] = {}
    for target, source in tied.items():
        groups.setdefault(source, {source}).add(target)
    covered = {name for group in groups.values() if group & found for name in group}
    patterns = getattr(module, "_keys_to_ignore_on_load_missing", None) or ()
    return [
        name
        for name, tensor in expected.items()
        if name not in found
        and name not in covered
        and not _COMPUTED.search(name)
        and not (any(re.search(pattern, name) for pattern in patterns) and _computable(module, name, tensor))
    ]


def _computable(module: nn.Module, name: str, tensor: Tensor) -> bool:
    """A buffer has its value from the class; sinusoidal positions can be made again."""
    owner = module.get_submodule(name.rpartition(".")[0])
    return not tensor.is_meta or hasattr(owner, "create_weight")


def _tied(module: nn.Module) -> Mapping[str, str]:
    tied: Mapping[str, str] = getattr(module, "all_tied_weights_keys", None) or {}
    return tied


def _superfluous(module: nn.Module, name: str, entry: TensorEntry) -> bool:
    patterns = getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()
    ignored = _COMPUTED.search(name) or any(re.search(pattern, name) for pattern in patterns)
    return bool(ignored) or entry.dtype not in FLOAT_DTYPES


def _in_body(module: nn.Module, name: str) -> bool:
    """Is it inside a part of the body that config.json describes (so that it describes too little)?"""
    prefix = getattr(module, "base_model_prefix", "")
    body = f"{prefix}." if prefix and hasattr(module, prefix) else ""
    if not name.startswith(body):
        return False
    modules = {path for path, _ in module.named_modules()}
    parts = name.split(".")[:-1]
    parents = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    deepest = next((path for path in parents if path in modules), "")
    return deepest not in ("", prefix)


def fill(module: nn.Module, matched: Matched, *, device: torch.device, dtype: torch.dtype) -> list[str]:
    """Give the module its tensors, on the device, in dtype (some stay in f32, as the class or `Narrowing` wants it). On
    the CPU, f32 stays mapped from its file. Returns notes for a person."""
    narrowing = Narrowing(module, dtype)
    for file, pairs in matched.by_file.items():
        with safe_open(file, framework="pt", device="cpu") as opened:
            for name, inner in pairs:
                tensor = opened.get_tensor(name)
                if tensor.is_floating_point():
                    tensor = tensor.to(device=device, dtype=_dtype_of(module, inner, narrowing.dtype_of(inner)))
                _assign(module, inner, tensor.to(device))
    notes = _tie(module, matched.found)
    for name, parameter in list(module.named_parameters()):
        if parameter.is_meta:
            owner = module.get_submodule(name.rpartition(".")[0])
            owner.to_empty(device="cpu")
            _assign(module, name, owner.create_weight().to(device=device, dtype=dtype))  # type: ignore[operator]
    for name, buffer in list(module.named_buffers()):
        _assign(module, name, buffer.to(device))
    return [*notes, *narrowing.finish()]


def _dtype_of(module: nn.Module, name: str, dtype: torch.dtype) -> torch.dtype:
    wide = set(getattr(module, "_keep_in_fp32_modules_strict", None) or ())
    if dtype == torch.float16:
        wide |= set(getattr(module, "_keep_in_fp32_modules", None) or ())
    kept = any(re.search(rf"(^|\.){part}($|\.)", name) for part in wide)
    return torch.float32 if kept and dtype in (torch.float16, torch.bfloat16) else dtype


def _tie(module: nn.Module, found: frozenset[str]) -> list[str]:
    """Give tied names the one tensor that the file holds. Two that differ in the file stay two."""
    notes: list[str] = []
    have = {name: name for name in found}
    for target, source in _tied(module).items():
        if target in have and source in have:
            if torch.equal(module.get_parameter(target), module.get_parameter(source)):
                _assign(module, target, module.get_parameter(source))
            else:
                notes.append(f"{target} differs from {source} in the weights, against config.json: both are kept")
    groups: dict[str, list[str]] = {}
    for target, source in _tied(module).items():
        groups.setdefault(source, [source]).append(target)
    for group in groups.values():
        holder = next(name for name in group if name in found)
        for name in group:
            if name not in found:
                _assign(module, name, _tensor(module, holder))
    return notes


def _tensor(module: nn.Module, name: str) -> Tensor:
    parent, _, leaf = name.rpartition(".")
    tensor = getattr(module.get_submodule(parent), leaf)
    assert isinstance(tensor, Tensor)
    return tensor


def _assign(module: nn.Module, name: str, tensor: Tensor) -> None:
    parent, _, leaf = name.rpartition(".")
    owner = module.get_submodule(parent)
    if leaf in owner._parameters:
        parameter = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)
        owner._parameters[leaf] = parameter
    else:
        owner._buffers[leaf] = tensor
