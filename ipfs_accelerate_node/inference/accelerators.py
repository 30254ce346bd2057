"""Which devices are here, asked of the runtimes themselves, each in a process of its own."""

from __future__ import annotations

import asyncio
import platform
import sys
from pathlib import Path

import msgspec

from ipfs_accelerate_node.errors import NodeError
from ipfs_accelerate_node.inference import wire
from ipfs_accelerate_node.inference.memory import total_bytes
from ipfs_accelerate_node.inference.model import Accelerator
from ipfs_accelerate_node.inference.process import WorkerGone, WorkerProcess, worker_environment

_SURVEY_S = 60.0
_NOT_YET = "this version runs models on the CPU with torch only"
_OPENVINO = """
import json, openvino
core = openvino.Core()
names = [[d, core.get_property(d, "FULL_DEVICE_NAME")] for d in core.available_devices]
print(json.dumps([openvino.__version__, names]))
"""


async def survey(worker: WorkerProcess) -> list[Accelerator]:
    """torch's devices, from an idle worker, then OpenVINO's, from a process that ends again."""
    return [*await _torch(worker), *await _openvino()]


async def _torch(worker: WorkerProcess) -> list[Accelerator]:
    try:
        reply, _ = await worker.ask(wire.Devices(), silence_s=_SURVEY_S)
    except (WorkerGone, NodeError) as exc:
        return [Accelerator("cpu", "torch", _cpu_name(), available=False, reason=str(exc))]
    assert isinstance(reply, wire.DeviceList)
    cpu = Accelerator("cpu", "torch", _cpu_name(), available=True, total_bytes=total_bytes(), versions=reply.versions)
    return [
        cpu,
        *(
            Accelerator(device, "torch", name, False, _NOT_YET, size, reply.versions)
            for device, name, size in reply.cuda
        ),
    ]


async def _openvino() -> list[Accelerator]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-c", _OPENVINO,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env=worker_environment(1), cwd="/", start_new_session=True,
    )  # fmt: skip
    try:
        async with asyncio.timeout(_SURVEY_S):
            out, err = await process.communicate()
    except TimeoutError:
        return [_no_openvino(f"no answer within {_SURVEY_S:g} s")]
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        last = err.decode("utf-8", "replace").strip().rpartition("\n")[2]
        return [_no_openvino(last[:200] or f"exit code {process.returncode}")]
    version, devices = msgspec.json.decode(out, type=tuple[str, list[tuple[str, str]]])
    return [
        Accelerator(f"openvino:{device}", "openvino", name, False, _NOT_YET, versions={"openvino": version})
        for device, name in devices
    ]


def _no_openvino(reason: str) -> Accelerator:
    return Accelerator("openvino", "openvino", "OpenVINO", available=False, reason=reason)


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
