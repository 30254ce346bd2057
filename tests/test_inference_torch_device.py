"""Devices and precisions of torch: what is here, what is refused and why, whose errors are whose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ipfs_accelerate_node.errors import DeviceUnavailable, InferenceFailed, InvalidInput, NodeError, Unavailable
from ipfs_accelerate_node.inference.families import MODEL_TYPES
from ipfs_accelerate_node.inference.model_files import ModelFiles, inspect
from tests.support.models import tiny_model
from tests.support.models_torch import torch, written

from ipfs_accelerate_node.inference.torch.device import (  # isort: skip - after torch's own warnings
    bad_numbers,
    device_errors,
    find_device,
    find_dtype,
    precision_of,
)
from ipfs_accelerate_node.inference.torch.engine import TorchEngine, load  # isort: skip

pytestmark = pytest.mark.timeout(180)
IDS = np.array([[2, 10, 11, 12, 13, 3], [2, 20, 3, 0, 0, 0]])
MASK = np.array([[1] * 6, [1] * 3 + [0] * 3])


@pytest.fixture
def files(tmp_path: Path) -> ModelFiles:
    return inspect(tiny_model(tmp_path), available_bytes=1 << 30)


@pytest.mark.parametrize(
    "device", ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:99", "xpu:0", "meta", "cpu:1", "cuda:٣"]
)
def test_a_device_that_is_not_here_is_refused_by_name(files: ModelFiles, device: str) -> None:
    with pytest.raises(DeviceUnavailable) as caught:
        load(files, "embedding", device=device, precision="f32")
    assert caught.value.detail["device"] == device


def test_the_runtimes_own_reason_is_given(files: ModelFiles) -> None:
    beyond = f"cuda:{torch.cuda.device_count()}"  # the first that is not there
    with pytest.raises(DeviceUnavailable, match=r"cannot be used: .*(NVIDIA|CUDA|driver)|torch sees"):
        load(files, "embedding", device=beyond, precision="f32")


@pytest.mark.parametrize("precision", ["f16", "int8", "f64", "", "float32"])
def test_precisions_that_the_cpu_has_not(files: ModelFiles, precision: str) -> None:
    with pytest.raises(InvalidInput, match="bf16, f32 on cpu") as caught:
        load(files, "embedding", device="cpu", precision=precision)
    assert caught.value.detail["param"] == "precision"


def test_what_is_loaded_says_what_it_is(files: ModelFiles) -> None:
    loaded = load(files, "embedding", device="cpu", precision="bf16")
    assert (loaded.device, loaded.engine, loaded.precision, loaded.memory_bytes()) == ("cpu", "torch", "bf16", 0)
    assert {"torch", "safetensors", "tokenizers", "numpy"} <= loaded.versions.keys()
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cuda.matmul.allow_tf32


def test_precision_is_that_of_most_numbers() -> None:
    narrow, wide = torch.zeros(10, dtype=torch.bfloat16), torch.zeros(3)
    assert precision_of([narrow, wide, torch.zeros(100, dtype=torch.int64)]) == "bf16"


def test_bad_numbers_are_not_sums_that_overflow() -> None:
    tensors = {"big": torch.full((4,), 3e38), "nan": torch.tensor([1.0, float("nan")]), "none": torch.zeros(0)}
    assert bad_numbers(tensors) == ["nan"]
    assert bad_numbers({"index": torch.arange(3)}) == []


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB. If reserved"), Unavailable, "out_of_memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), Unavailable, "out_of_memory"),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), Unavailable, "out_of_memory"),
        (RuntimeError("CUDA error: unspecified launch failure"), Unavailable, "device_lost"),
        (torch.AcceleratorError("CUDA error: an illegal memory access", 700), Unavailable, "device_lost"),
        (RuntimeError("shapes do not match"), InferenceFailed, "inference_failed"),
        (IndexError("index out of range in self"), InferenceFailed, "inference_failed"),
        (DeviceUnavailable("gone"), DeviceUnavailable, "device_unavailable"),
    ],
)  # fmt: skip
def test_errors_of_torch_become_ours(error: Exception, kind: type[NodeError], code: str) -> None:
    with pytest.raises(kind) as caught, device_errors("the test"):
        raise error
    assert caught.value.code == code
    assert "\n" not in str(caught.value)


# What follows runs where a GPU is: the same tiny models there and on the CPU.


def on(device: str, directory: Path, precision: str = "f32") -> TorchEngine:
    files = inspect(directory, available_bytes=1 << 32)
    return load(files, files.tasks[0], device=device, precision=precision)


FEATURES = np.random.default_rng(0).normal(size=(2, 8, 40)).astype(np.float32)
CLASSES = {
    "bert": ("ForSequenceClassification", "logits", {"input_ids": IDS, "attention_mask": MASK}),
    "mpnet": ("Model", "vectors", {"input_ids": IDS, "attention_mask": MASK}),
    "deberta-v2": ("ForTokenClassification", "logits", {"input_ids": IDS, "attention_mask": MASK}),
    "clip": ("Model", "text", {"input_ids": IDS, "attention_mask": MASK}),
    "t5": ("ForConditionalGeneration", "encoder", {"input_ids": IDS, "attention_mask": MASK}),
    "bart": ("ForConditionalGeneration", "encoder", {"input_ids": IDS, "attention_mask": MASK}),
    "whisper": ("ForConditionalGeneration", "encoder", {"input_features": FEATURES}),
    "efficientnet": ("ForImageClassification", "logits", {"pixel_values": np.ones((2, 3, 32, 32), np.float32)}),
    "vit": ("ForImageClassification", "logits", {"pixel_values": np.ones((2, 3, 16, 16), np.float32)}),
}


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("model_type", CLASSES)
def test_cuda_gives_what_the_cpu_gives(tmp_path: Path, model_type: str, precision: str) -> None:
    ending, graph, inputs = CLASSES[model_type]
    written(tmp_path, model_type, MODEL_TYPES[model_type].stem + ending)
    there = on("cuda:0", tmp_path, precision)
    assert (there.device, there.precision) == ("cuda:0", precision)
    assert there.memory_bytes() > 0
    assert "cuda" in there.versions
    ours, expected = there.run(graph, inputs), on("cpu", tmp_path).run(graph, inputs)
    for name, reference in expected.items():
        kept = reference if graph != "encoder" or "input_ids" not in inputs else reference * MASK[:, :, None]
        got = ours[name] if kept is reference else ours[name] * MASK[:, :, None]
        if precision == "f32":
            np.testing.assert_allclose(got, kept, atol=2e-5)
        else:
            cosine = (got * kept).sum() / np.linalg.norm(got) / np.linalg.norm(kept)
            assert cosine >= 0.999


@pytest.mark.cuda
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "t5", "bart", "whisper"])
def test_cuda_writes_what_the_cpu_writes(tmp_path: Path, model_type: str) -> None:
    written(tmp_path, model_type, MODEL_TYPES[model_type].generator)
    texts: list[list[list[int]]] = []
    for device in ("cpu", "cuda:0"):
        loaded = on(device, tmp_path)
        decoder = loaded.decoder()
        given, mask = IDS[:, :3], np.ones((2, 3), np.int64)
        if model_type == "whisper":
            decoder.start(loaded.run("encoder", {"input_features": FEATURES}))
        elif model_type in ("t5", "bart"):
            encoded = loaded.run("encoder", {"input_ids": IDS, "attention_mask": MASK})
            decoder.start(encoded | {"attention_mask": MASK})
        else:
            decoder.start(None)
        rows: list[list[int]] = []
        for _ in range(12):
            given = decoder.step(given, mask).argmax(axis=1)[:, None]
            mask = np.concatenate([mask, np.ones_like(given)], axis=1)
            rows.append(given[:, 0].tolist())
        texts.append(rows)
    assert texts[0] == texts[1]


@pytest.mark.cuda
def test_cuda_out_of_memory_is_said_and_survived(tmp_path: Path) -> None:
    loaded = on("cuda:0", tiny_model(tmp_path))
    wide = np.full((1 << 16, 40), 5)
    held = torch.empty(torch.cuda.mem_get_info()[0] - (64 << 20), dtype=torch.uint8, device="cuda:0")
    with pytest.raises(Unavailable) as caught:
        loaded.run("vectors", {"input_ids": wide, "attention_mask": np.ones_like(wide)})
    assert caught.value.code == "out_of_memory"
    del held
    torch.cuda.empty_cache()
    assert loaded.run("vectors", {"input_ids": IDS, "attention_mask": MASK})["vectors"].shape == (2, 16)


@pytest.mark.cuda
def test_cuda_knows_its_precisions() -> None:
    device = find_device("cuda:0")
    assert find_device("cuda") == device
    assert [find_dtype(p, device) for p in ("f32", "bf16", "f16")] == [torch.float32, torch.bfloat16, torch.float16]
    with pytest.raises(InvalidInput):
        find_dtype("int8", device)
    with pytest.raises(DeviceUnavailable, match="torch sees"):
        find_device("cuda:99")
