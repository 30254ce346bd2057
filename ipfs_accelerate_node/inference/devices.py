"""Which devices are here, asked of the runtimes themselves, each in a worker process of its own.

The two functions that import a runtime run inside workers; everything else runs in the daemon.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ipfs_accelerate_node.errors import DeviceUnavailable, NodeError
from ipfs_accelerate_node.inference import wire
from ipfs_accelerate_node.inference.memory import available_bytes, total_bytes
from ipfs_accelerate_node.inference.model import Accelerator
from ipfs_accelerate_node.inference.process import WorkerGone, WorkerProcess

Kind = Literal["torch", "openvino"]

SURVEY_S = 60.0
_DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,3})?|openvino(:[A-Z]+(\.\d{1,3})?)?")


def kind_of(device: str) -> Kind:
    """Which worker runs a device."""
    return "openvino" if device.startswith("openvino") else "torch"


def canonical(device: str) -> str:
    """``cuda`` is ``cuda:0``, ``openvino`` is ``openvino:CPU``. Raises DeviceUnavailable for what no runtime calls a
    device."""
    if not _DEVICE.fullmatch(device):
        raise DeviceUnavailable(
            f"device {device[:40]!r} is not available: no such device; known are auto, cpu, cuda:N, openvino:CPU, "
            "openvino:GPU and openvino:NPU",
            device=device[:40],
        )
    return {"cuda": "cuda:0", "openvino": "openvino:CPU"}.get(device, device)


def no_gpu() -> str:
    """Why torch cannot have a GPU here, without asking it; empty when it may."""
    nodes = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
    if any(Path(node).exists() for node in nodes):
        return ""
    return "this machine has no GPU driver (none of " + ", ".join(nodes) + " is there)"


def check_available(device: str, found: Sequence[Accelerator], precision: str | None = None) -> None:
    """Raises DeviceUnavailable with the reason, unless a model can be loaded on it now in that precision."""
    here = next((accelerator for accelerator in found if accelerator.device == device), None)
    if here is not None and here.available and (precision is None or precision in here.precisions):
        return
    if here is not None and here.available:
        reason = f"it computes in {', '.join(here.precisions)}, not in {precision}"
    elif here is not None:
        reason = here.reason
    else:
        runtime = kind_of(device)
        broken = next((a.reason for a in found if a.runtime == runtime and not a.available), None)
        others = ", ".join(a.device for a in found if a.runtime == runtime and a.available) or "none"
        reason = broken or f"{runtime} reports no such device here (it has: {others})"
    raise DeviceUnavailable(f"device {device} is not available: {reason}", device=device, reason=reason)


async def survey(worker: WorkerProcess, kind: Kind) -> list[Accelerator]:
    """What one runtime reports, asked of an idle worker of its kind."""
    try:
        reply, _ = await worker.ask(wire.Devices(), silence_s=SURVEY_S)
    except (WorkerGone, NodeError) as exc:
        reason = str(exc.detail.get("reason", exc)) if isinstance(exc, NodeError) else str(exc)
        return [Accelerator("cpu" if kind == "torch" else kind, kind, cpu_name(), available=False, reason=reason)]
    if not isinstance(reply, wire.DeviceList):
        return [Accelerator(kind, kind, kind, available=False, reason="its worker answered something else")]
    return [
        Accelerator(
            device=found.device,
            runtime=kind,
            name=found.name,
            available=True,
            total_bytes=found.total_bytes,
            versions=dict(reply.versions),
            free_bytes=found.free_bytes,
            precisions=found.precisions,
            native=found.native,
        )
        for found in reply.devices
    ]


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cpu_native(cpuinfo: str) -> tuple[str, ...]:
    """Precisions that the CPU has arithmetic for; others are computed by converting, which gains nothing. cpuinfo: as
    Linux tells it."""
    lines = (line for line in cpuinfo.splitlines() if line.startswith(("flags", "Features")))
    flags = set(next(lines, "").partition(":")[2].split())
    return ("f32", "bf16") if flags & _BF16_FLAGS else ("f32",)


# x86: a dot product of pairs (Zen 4, Cooper Lake), tiles (Sapphire Rapids); Arm: FEAT_BF16.
_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
_BF16_CARDS = 8  # CUDA's compute capability from which on cards have it


def _here() -> tuple[str, ...]:
    return cpu_native(Path("/proc/cpuinfo").read_text())


def torch_devices() -> wire.DeviceList:
    """Inside the torch worker."""
    import torch

    host = wire.Found("cpu", cpu_name(), total_bytes(), available_bytes(), ("f32", "bf16"), _here())
    cards: list[wire.Found] = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            card = torch.cuda.get_device_properties(index)
            native = ("f32", "bf16", "f16") if card.major >= _BF16_CARDS else ("f32", "f16")
            cards.append(wire.Found(f"cuda:{index}", card.name, total, free, ("f32", "bf16", "f16"), native))
    return wire.DeviceList([host, *cards], {"torch": str(torch.__version__)})


def openvino_devices() -> wire.DeviceList:
    """Inside the OpenVINO worker."""
    import openvino

    core = openvino.Core()
    found: list[wire.Found] = []
    for name in core.available_devices:
        able = set(core.get_property(name, "OPTIMIZATION_CAPABILITIES"))
        precisions = tuple(ours for ours, theirs in _CAPABILITIES if theirs in able)
        total, free = (total_bytes(), available_bytes()) if name == "CPU" else (_openvino_memory(core, name), None)
        full = str(core.get_property(name, "FULL_DEVICE_NAME"))
        # on a CPU OpenVINO offers bf16 from AVX-512 on, whether or not it is in hardware
        native = tuple(p for p in precisions if name != "CPU" or p in _here())
        found.append(wire.Found(f"openvino:{name}", full, total, free, precisions, native))
    return wire.DeviceList(found, {"openvino": str(openvino.__version__)})


_CAPABILITIES = (("f32", "FP32"), ("bf16", "BF16"), ("f16", "FP16"), ("int8", "INT8"))


def _openvino_memory(core: object, name: str) -> int | None:
    supported = core.get_property(name, "SUPPORTED_PROPERTIES")  # type: ignore[attr-defined]
    if "GPU_DEVICE_TOTAL_MEM_SIZE" not in supported:
        return None
    return int(core.get_property(name, "GPU_DEVICE_TOTAL_MEM_SIZE"))  # type: ignore[attr-defined]
