"""Devices as the runtimes report them, and what is said about those that are not here."""

from __future__ import annotations

import pytest

from ipfs_accelerate_node.errors import DeviceUnavailable, exit_code, http_status
from ipfs_accelerate_node.inference.devices import canonical, check_available, kind_of, survey
from ipfs_accelerate_node.inference.memory import total_bytes
from ipfs_accelerate_node.inference.model import Accelerator
from ipfs_accelerate_node.inference.process import WorkerProcess

FOUND = [
    Accelerator("cpu", "torch", "A CPU", available=True, precisions=("f32", "bf16")),
    Accelerator("openvino:CPU", "openvino", "A CPU", available=True, precisions=("f32", "int8")),
    Accelerator("openvino:GPU", "openvino", "A GPU", available=False, reason="its driver is too old"),
]


@pytest.mark.parametrize(
    ("given", "meant", "kind"),
    [
        ("auto", "auto", "torch"),
        ("cpu", "cpu", "torch"),
        ("cuda", "cuda:0", "torch"),
        ("cuda:3", "cuda:3", "torch"),
        ("openvino", "openvino:CPU", "openvino"),
        ("openvino:GPU.1", "openvino:GPU.1", "openvino"),
        ("openvino:NPU", "openvino:NPU", "openvino"),
    ],
)
def test_names_of_devices(given: str, meant: str, kind: str) -> None:
    assert (canonical(given), kind_of(canonical(given))) == (meant, kind)


@pytest.mark.parametrize(
    "given", ["", "CPU", "cuda:", "cuda:-1", "cuda:1234", "openvino:cpu", "tpu", "cpu\n", "auto,cpu"]
)
def test_what_no_runtime_calls_a_device(given: str) -> None:
    with pytest.raises(DeviceUnavailable, match="no such device"):
        canonical(given)


def test_why_a_device_cannot_be_had() -> None:
    check_available("cpu", FOUND, "bf16")
    check_available("openvino:CPU", FOUND, "int8")
    with pytest.raises(DeviceUnavailable, match="computes in f32, int8, not in f16"):
        check_available("openvino:CPU", FOUND, "f16")
    with pytest.raises(DeviceUnavailable, match="too old") as caught:
        check_available("openvino:GPU", FOUND, "f32")
    assert (http_status(caught.value), exit_code(caught.value)) == (422, 5)
    assert caught.value.detail == {"device": "openvino:GPU", "reason": "its driver is too old"}
    with pytest.raises(DeviceUnavailable, match="it has: cpu"):
        check_available("cuda:0", FOUND, "f32")
    broken = [Accelerator("openvino", "openvino", "OpenVINO", available=False, reason="not installed")]
    with pytest.raises(DeviceUnavailable, match="not installed"):
        check_available("openvino:CPU", broken, "f32")


@pytest.mark.timeout(90)
async def test_openvino_reports_its_devices() -> None:
    worker = await WorkerProcess.start(threads=1, kind="openvino")
    try:
        found = await survey(worker, "openvino")
    finally:
        await worker.stop()
    cpu = next(one for one in found if one.device == "openvino:CPU")
    assert cpu.available
    assert cpu.name
    assert cpu.total_bytes == total_bytes()
    assert 0 < (cpu.free_bytes or 0) <= total_bytes()
    assert cpu.precisions[0] == "f32"
    assert "int8" in cpu.precisions
    assert cpu.versions.keys() == {"openvino"}


@pytest.mark.timeout(90)
async def test_a_runtime_that_does_not_answer_has_no_devices() -> None:
    worker = await WorkerProcess.start(threads=1, kind="openvino")
    await worker.kill()
    (found,) = await survey(worker, "openvino")
    await worker.stop()
    assert not found.available
    assert found.reason
