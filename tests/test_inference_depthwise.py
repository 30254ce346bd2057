"""Models with depthwise convolutions in bf16: which parts are narrow, and that the answers stay near f32's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import openvino
import pytest
from numpy.typing import NDArray

from ipfs_accelerate_node.inference.depthwise import exact_blocks, told
from ipfs_accelerate_node.inference.model_files import ModelFiles, inspect
from ipfs_accelerate_node.inference.openvino import artefacts
from ipfs_accelerate_node.inference.openvino import engine as openvino_engine
from ipfs_accelerate_node.inference.session import Engine
from ipfs_accelerate_node.inference.tasks import processing_for
from tests.support.models_openvino import tiny_files
from tests.support.models_torch import torch
from tests.support.sample import made

from ipfs_accelerate_node.inference.torch import engine as torch_engine  # isort: skip - after torch's own warnings

pytestmark = pytest.mark.timeout(300)

TASK = "image-classification"
PICTURES = 20


def on_torch(files: ModelFiles, precision: str) -> torch_engine.TorchEngine:
    return torch_engine.load(files, TASK, device="cpu", precision=precision)


def logits(engine: Engine, edge: int) -> NDArray[np.float32]:
    pixels = np.random.default_rng(1).normal(size=(3, 3, edge, edge)).astype(np.float32)
    return engine.run("logits", {"pixel_values": pixels})["logits"]


def least_cosine(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    a, b = one.astype(np.float64), other.astype(np.float64)
    return float(((a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def dtypes(tensors: Mapping[str, torch.Tensor], part: str) -> set[torch.dtype]:
    return {tensor.dtype for name, tensor in tensors.items() if part in name and tensor.is_floating_point()}


@pytest.mark.parametrize(
    ("model_type", "narrow", "products"),
    [("efficientnet", 10, 10), ("convnext", 7, 7), ("mobilenet_v1", 12, 15), ("mobilenet_v2", 31, 36)],
)
def test_dense_products_alone_are_narrow(tmp_path: Path, model_type: str, narrow: int, products: int) -> None:
    files, _ = tiny_files(tmp_path / "model", model_type)
    engine = on_torch(files, "bf16")
    assert (engine.precision, engine.notes) == ("bf16", (told(narrow, products, "bf16"),))
    tensors = engine.graphs.weights()
    assert dtypes(tensors, "running_") <= {torch.float32}
    assert dtypes(tensors, "norm") | dtypes(tensors, "layer_scale") <= {torch.float32}
    assert dtypes(tensors, "classifier") == {torch.bfloat16}
    exact = on_torch(files, "f32")
    assert exact.notes == ()
    assert 0.999 < least_cosine(logits(engine, 32), logits(exact, 32)) < 1


@pytest.mark.parametrize("model_type", ["resnet", "vit"])
def test_without_depthwise_convolutions_all_of_it_is(tmp_path: Path, model_type: str) -> None:
    files, _ = tiny_files(tmp_path / "model", model_type)
    engine = on_torch(files, "bf16")
    assert (engine.precision, engine.notes) == ("bf16", ())
    assert dtypes(engine.graphs.weights(), "") == {torch.bfloat16}


def test_few_blocks_are_kept_of_few() -> None:
    assert [exact_blocks(count) for count in (1, 3, 4, 11, 12, 16, 40)] == [0, 0, 1, 2, 3, 3, 3]


def primaries(files: ModelFiles, engine: Engine) -> NDArray[np.float32]:
    """Of the report's own pictures."""
    processing = processing_for(files, TASK)
    return np.stack([processing.primary(engine, processing.example(number)) for number in range(PICTURES)])


def computed(engine: openvino_engine.OpenVinoEngine) -> Counter[tuple[str, str]]:
    """How many layers of each type OpenVINO computes in which format, as it says itself."""
    infos = [node.get_rt_info() for node in engine.compiled["logits"].get_runtime_model().get_ordered_ops()]
    return Counter((str(info["layerType"].value), str(info["runtimePrecision"].value)) for info in infos)


@pytest.mark.model("efficientnet-lite0")
async def test_efficientnet_in_bf16(tmp_path: Path) -> None:
    directory = made("efficientnet-lite0")
    files = inspect(directory, available_bytes=1 << 33)
    expected = primaries(files, on_torch(files, "f32"))
    narrow = on_torch(files, "bf16")
    assert narrow.notes == (told(57, 66, "bf16"),)
    assert least_cosine(primaries(files, narrow), expected) >= 0.9995
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return
    artefact = await artefacts.ensure(directory, "efficientnet", TASK, "bf16", tmp_path)
    engine = openvino_engine.load(artefact, files, TASK, device="openvino:CPU", precision="bf16", threads=1)
    assert (engine.precision, engine.notes) == ("bf16", (told(57, 66, "bf16"),))
    assert least_cosine(primaries(files, engine), expected) >= 0.9995
    found = computed(engine)
    assert found["Convolution", "bf16"] + found["FullyConnected", "bf16"] == 57
    assert found["Convolution", "f32"] == 9 + 16  # the first dense ones, and every depthwise one
    exact = openvino_engine.load(artefact, files, TASK, device="openvino:CPU", precision="f32", threads=1)
    assert exact.notes == ()
    assert least_cosine(primaries(files, exact), expected) >= 0.99999
