"""The real models of the tests on torch, against transformers' own loading of the same directories."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ipfs_accelerate_node.inference.families import MODEL_TYPES
from ipfs_accelerate_node.inference.model_files import inspect
from tests.support.models_torch import torch
from tests.support.sample import CLIP, T5, made

from ipfs_accelerate_node.inference.torch.engine import TorchEngine, load  # isort: skip - after torch's own warnings

pytestmark = pytest.mark.timeout(300)

SMOLLM, WHISPER, EFFICIENTNET = made("smollm2-135m"), made("whisper-tiny-en"), made("efficientnet-lite0")


def engine(directory: Path, precision: str = "f32") -> TorchEngine:
    files = inspect(directory, available_bytes=1 << 33)
    loaded = load(files, files.tasks[0], device="cpu", precision=precision)
    assert (loaded.device, loaded.precision, loaded.notes) == ("cpu", precision, ())
    return loaded


def by_transformers(directory: Path) -> Any:
    """The same directory, loaded in the library's own way; nothing missing, nothing unexpected."""
    files = inspect(directory, available_bytes=1 << 33)
    modelling = importlib.import_module(f"transformers.models.{files.kind.module}.modeling_{files.kind.module}")
    model_class = getattr(modelling, MODEL_TYPES[files.model_type].class_name(files.tasks[0]))
    model, told = model_class.from_pretrained(
        directory, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
    )
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    return model.eval()


def assert_near(ours: NDArray[np.float32], theirs: torch.Tensor, part: float = 1e-5) -> None:
    expected = theirs.numpy()
    assert np.abs(ours - expected).max() <= part * max(1.0, float(np.abs(expected).max()))


def cosine(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    one, other = one.ravel(), other.ravel()
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def test_clip() -> None:
    model = by_transformers(CLIP)
    pixels = np.random.default_rng(0).normal(size=(3, 3, 64, 64)).astype(np.float32)
    ids, mask = np.array([[0, 300, 301, 1, 1], [0, 40, 41, 42, 1]]), np.array([[1, 1, 1, 1, 0], [1] * 5])
    with torch.no_grad():
        theirs = model(
            input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask), pixel_values=torch.tensor(pixels)
        )
    loaded = engine(CLIP)
    text = loaded.run("text", {"input_ids": ids, "attention_mask": mask})["embeds"]
    image = loaded.run("image", {"pixel_values": pixels})["embeds"]
    scale = loaded.run("scale", {})["scale"]
    unit = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (text, image)]
    assert_near(unit[0] @ unit[1].T * scale, theirs.logits_per_text)
    narrow = engine(CLIP, "bf16").run("image", {"pixel_values": pixels})["embeds"]
    assert min(cosine(a, b) for a, b in zip(narrow, image, strict=True)) >= 0.999


def test_t5_writes_what_transformers_writes() -> None:
    model = by_transformers(T5)
    loaded = engine(T5)
    generator = np.random.default_rng(1)
    for _ in range(20):
        ids = np.append(generator.integers(3, 29, generator.integers(2, 10)), 1)[None]
        theirs = model.generate(torch.tensor(ids), max_new_tokens=16, num_beams=1, do_sample=False)[0].tolist()
        mask = np.ones_like(ids)
        decoder = loaded.decoder()
        decoder.start(loaded.run("encoder", {"input_ids": ids, "attention_mask": mask}) | {"attention_mask": mask})
        written = [0]
        while written[-1] != 1 and len(written) < 17:
            logits = decoder.step(np.array([[written[-1]]]), np.ones((1, len(written)), np.int64))
            written.append(int(logits.argmax()))
        assert written == theirs


@pytest.mark.model
def test_smollm_writes_what_transformers_writes() -> None:
    model = by_transformers(SMOLLM)
    loaded = engine(SMOLLM)
    prompts = [[504, 3575, 282, 4649, 314], [20041, 6, 28, 357]]
    longest = max(map(len, prompts))
    given = np.array([[0] * (longest - len(row)) + row for row in prompts])
    mask = np.array([[0] * (longest - len(row)) + [1] * len(row) for row in prompts])
    decoder = loaded.decoder()
    decoder.start(None)
    written: list[list[int]] = [[], []]
    for step in range(12):
        logits = decoder.step(given, mask)
        if step == 0:
            with torch.no_grad():
                assert_near(logits[:1], model(input_ids=torch.tensor(prompts[:1])).logits[:, -1], 1e-4)
        given = logits.argmax(axis=1)[:, None]
        mask = np.concatenate([mask, np.ones_like(given)], axis=1)
        for row, token in zip(written, given[:, 0].tolist(), strict=True):
            row.append(token)
    for prompt, ours in zip(prompts, written, strict=True):
        theirs = model.generate(
            torch.tensor([prompt]), max_new_tokens=12, min_new_tokens=12, do_sample=False, eos_token_id=None
        )
        assert theirs[0, len(prompt) :].tolist() == ours


@pytest.mark.model
def test_whisper() -> None:
    model = by_transformers(WHISPER)
    features = np.random.default_rng(2).normal(size=(1, 80, 3000)).astype(np.float32)
    start = np.array([[50257, 50362, 383]])
    with torch.no_grad():
        theirs = model(input_features=torch.tensor(features), decoder_input_ids=torch.tensor(start)).logits[:, -1]
    loaded = engine(WHISPER)
    decoder = loaded.decoder()
    decoder.start(loaded.run("encoder", {"input_features": features}))
    decoder.step(start[:, :2], np.ones((1, 2), np.int64))
    assert_near(decoder.step(start[:, 2:], np.ones((1, 3), np.int64)), theirs, 1e-4)


@pytest.mark.model
def test_efficientnet() -> None:
    model = by_transformers(EFFICIENTNET)
    pixels = np.random.default_rng(3).normal(size=(2, 3, 224, 224)).astype(np.float32)
    with torch.no_grad():
        theirs = model(pixel_values=torch.tensor(pixels)).logits
    loaded = engine(EFFICIENTNET)
    ours = loaded.run("logits", {"pixel_values": pixels})["logits"]
    assert_near(ours, theirs)
    files = inspect(EFFICIENTNET, available_bytes=1 << 33)
    assert len(files.labels) == ours.shape[1] == 1000
