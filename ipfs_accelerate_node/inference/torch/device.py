"""torch's devices and number formats, and its errors as ours."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from ipfs_accelerate_node.errors import DeviceUnavailable, InferenceFailed, InvalidInput, NodeError, Unavailable

DTYPES: Mapping[str, torch.dtype] = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def find_device(device: str) -> torch.device:
    """The device of that name, if it is here and answers. Raises DeviceUnavailable with the runtime's reason."""
    if device == "cpu":
        return torch.device("cpu")
    if not re.fullmatch(r"cuda(:[0-9]{1,4})?", device):
        raise DeviceUnavailable(f"torch has no device {device[:40]!r} here", device=device[:40])
    index = int(device.partition(":")[2] or 0)
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        count = torch.cuda.device_count()
        if index >= count:
            raise DeviceUnavailable(f"{device} is not here: torch sees {count} CUDA device(s)", device=device)
        found = torch.device("cuda", index)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as exc:
        reason = " ".join(str(exc).split())[:200]
        raise DeviceUnavailable(f"{device} cannot be used: {reason}", device=device) from exc
    return found


def find_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Raises InvalidInput: not a precision that torch computes on this device."""
    able = {"f32", "bf16", "f16"} if device.type == "cuda" else {"f32", "bf16"}
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        able.discard("bf16")
    if precision not in able:
        known = ", ".join(sorted(able))
        raise InvalidInput(f"torch computes {known} on {device}, not {precision[:20]}", param="precision")
    return DTYPES[precision]


def set_up_arithmetic() -> None:
    """For the whole process. No TF32 nor other short cuts in products of f32. Attention not by cuDNN, which makes a
    plan for every new shape: 100 ms for each length of a text, and no two texts are as long."""
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def precision_of(tensors: Iterable[Tensor]) -> str:
    """The format in which most of the numbers are, as read back from the tensors."""
    counted: Counter[torch.dtype] = Counter()
    for tensor in tensors:
        if tensor.is_floating_point():
            counted[tensor.dtype] += tensor.numel()
    ((dtype, _),) = counted.most_common(1)
    return next((name for name, known in DTYPES.items() if known == dtype), str(dtype))


def bad_numbers(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinity."""
    named = [(name, tensor) for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()]
    if not named:
        return []
    # a sum is not finite when a summand is not; where only the sum overflows, each number is looked at
    finite = torch.stack([torch.isfinite(tensor.sum(dtype=torch.float32)) for _, tensor in named]).tolist()
    return [
        name for (name, tensor), fine in zip(named, finite, strict=True) if not fine and not tensor.isfinite().all()
    ]


@contextmanager
def device_errors(doing: str) -> Iterator[None]:
    """torch's errors as ours. doing: what fails, for a person.

    Raises Unavailable: out_of_memory; device_lost, after which nothing works in this process any more. InferenceFailed
    for any other RuntimeError, IndexError or ValueError of the library.
    """
    try:
        yield
    except NodeError:
        raise
    except torch.OutOfMemoryError as exc:
        torch.cuda.empty_cache()
        said = str(exc).partition(". If reserved")[0][:300]
        raise Unavailable(f"not enough memory: {said}", code="out_of_memory", retry_after_s=5.0) from exc
    except (RuntimeError, IndexError, ValueError) as exc:
        raise _translated(doing, exc) from exc


def _translated(doing: str, exc: Exception) -> NodeError:
    said = " ".join(str(exc).split())
    if "allocate memory" in said or "out of memory" in said or "ALLOC_FAILED" in said:
        return Unavailable(f"not enough memory: {said[:200]}", code="out_of_memory", retry_after_s=5.0)
    if isinstance(exc, torch.AcceleratorError) or "CUDA error" in said or "CUDA driver error" in said:
        return Unavailable(f"the device was lost: {said[:200]}", code="device_lost", retry_after_s=5.0)
    return InferenceFailed(f"{doing} failed: {type(exc).__name__}: {said[:300]}")


def versions(device: torch.device) -> dict[str, str]:
    """Of what computes the result."""
    import safetensors
    import tokenizers

    found = {
        "torch": str(torch.__version__),
        "tokenizers": tokenizers.__version__,
        "safetensors": safetensors.__version__,
        "numpy": np.__version__,
    }
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        found |= {"cuda": str(torch.version.cuda), "cuda_capability": f"{major}.{minor}"}
        found["cudnn"] = str(torch.backends.cudnn.version())  # type: ignore[no-untyped-call]
    return found
