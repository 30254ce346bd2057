"""Classifiers, masked language models and towers on torch against the classes of transformers that wrote the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ipfs_accelerate_node.inference.architectures import LAYOUTS
from ipfs_accelerate_node.inference.families import MODEL_TYPES
from ipfs_accelerate_node.inference.model_files import inspect
from tests.support.models import write_pooling
from tests.support.models_torch import LABELS, VOCAB, torch, written

from ipfs_accelerate_node.inference.torch.engine import TorchEngine, load  # isort: skip - after torch's own warnings

pytestmark = pytest.mark.timeout(120)

ENCODERS = [name for name, kind in MODEL_TYPES.items() if kind.family == "encoder"]
PICTURES = [name for name, kind in MODEL_TYPES.items() if kind.family == "image"]
TOWERS = [name for name, kind in MODEL_TYPES.items() if kind.family == "dual"]
IDS = np.array([[2, 10, 11, 12, 13, 14, 3, 0, 0], [2, 20, 21, 22, 23, 24, 25, 26, 3]])
MASK = np.array([[1] * 7 + [0] * 2, [1] * 9])


def engine(directory: Path, task: str | None = None, precision: str = "f32") -> TorchEngine:
    files = inspect(directory, available_bytes=1 << 32)
    return load(files, files.check_task(task), device="cpu", precision=precision)


def padded(model: Any, ids: NDArray[np.int64] = IDS) -> NDArray[np.int64]:
    """The ids with the padding of this model."""
    return np.where(MASK == 1, ids, model.config.pad_token_id)


def largest_difference(ours: NDArray[np.float32], theirs: torch.Tensor) -> float:
    """Of our logits from theirs, as a part of their scale."""
    assert ours.shape == tuple(theirs.shape)
    assert ours.dtype == np.float32
    return float(np.abs(ours - theirs.float().numpy()).max() / max(1.0, float(theirs.abs().max())))


HEADS = [
    ("ForSequenceClassification", "text-classification"),
    ("ForTokenClassification", "token-classification"),
    ("ForMaskedLM", "fill-mask"),
]


@pytest.mark.parametrize(("head", "task"), HEADS)
@pytest.mark.parametrize("model_type", ENCODERS)
def test_heads_of_encoders(tmp_path: Path, model_type: str, head: str, task: str) -> None:
    labels: dict[str, Any] = {} if task == "fill-mask" else {"id2label": LABELS}
    model = written(tmp_path, model_type, MODEL_TYPES[model_type].stem + head, **labels)
    ids = padded(model)
    with torch.no_grad():
        theirs = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(MASK)).logits
    loaded = engine(tmp_path)
    ours = loaded.run("logits", {"input_ids": ids, "attention_mask": MASK})["logits"]
    if task == "text-classification":
        assert largest_difference(ours, theirs) <= 1e-5
    else:
        for row in range(2):  # what stands at padding means nothing
            real = MASK[row] == 1
            assert largest_difference(ours[row][real], theirs[row][torch.tensor(real)]) <= 1e-5
    files = inspect(tmp_path, available_bytes=1 << 32)
    assert files.tasks[0] == task
    assert files.labels == (() if task == "fill-mask" else ("first", "second", "third"))
    assert (loaded.device, loaded.precision, loaded.notes) == ("cpu", "f32", ())
    assert files.vocab_size == VOCAB


@pytest.mark.parametrize("model_type", ["bert", "modernbert"])
def test_token_types_and_pairs(tmp_path: Path, model_type: str) -> None:
    name = MODEL_TYPES[model_type].class_name("rerank")
    model = written(tmp_path, model_type, name, num_labels=1)
    types = np.where(np.arange(9) > 4, 1, 0)[None].repeat(2, axis=0)
    given = {"input_ids": padded(model), "attention_mask": MASK}
    theirs = {key: torch.tensor(value) for key, value in given.items()}
    if model_type == "bert":
        theirs["token_type_ids"] = torch.tensor(types)
    with torch.no_grad():
        expected = model(**theirs).logits
    loaded = engine(tmp_path)
    assert inspect(tmp_path, available_bytes=1 << 32).tasks[:2] == ("rerank", "text-classification")
    ours = loaded.run("logits", given | {"token_type_ids": types})["logits"]
    assert largest_difference(ours, expected) <= 1e-5


@pytest.mark.parametrize("model_type", ENCODERS)
def test_embeddings_of_every_encoder(tmp_path: Path, model_type: str) -> None:
    """Also of those that have no forward pass of ours; padding changes nothing."""
    model = written(tmp_path, model_type, f"{MODEL_TYPES[model_type].stem}Model")
    write_pooling(tmp_path, "mean_tokens")
    ids = padded(model)
    with torch.no_grad():
        hidden = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(MASK)).last_hidden_state
    weights = torch.tensor(MASK)[:, :, None]
    mean = (hidden * weights).sum(dim=1) / weights.sum(dim=1)
    loaded = engine(tmp_path)
    ours = loaded.run("vectors", {"input_ids": ids, "attention_mask": MASK})
    assert largest_difference(ours["pooled"], mean) <= 1e-5
    assert largest_difference(ours["vectors"], torch.nn.functional.normalize(mean, dim=1)) <= 1e-5
    assert ("transformers" in loaded.versions) == (model_type not in LAYOUTS)


def test_embeddings_of_a_causal_model(tmp_path: Path) -> None:
    model = written(tmp_path, "qwen3", "Qwen3Model")
    write_pooling(tmp_path, "lasttoken")
    with torch.no_grad():
        hidden = model(input_ids=torch.tensor(IDS), attention_mask=torch.tensor(MASK)).last_hidden_state
    files = inspect(tmp_path, available_bytes=1 << 32)
    assert files.tasks == ("embedding", "text-generation")
    ours = engine(tmp_path).run("vectors", {"input_ids": IDS, "attention_mask": MASK})["pooled"]
    assert largest_difference(ours, torch.stack([hidden[0, 6], hidden[1, 8]])) <= 1e-5


@pytest.mark.parametrize("model_type", PICTURES)
def test_pictures(tmp_path: Path, model_type: str) -> None:
    model = written(tmp_path, model_type, MODEL_TYPES[model_type].class_name("image-classification"), id2label=LABELS)
    size = int(tiny_size(model))
    pixels = np.random.default_rng(0).normal(size=(2, 3, size, size)).astype(np.float32)
    with torch.no_grad():
        theirs = model(pixel_values=torch.tensor(pixels)).logits
    loaded = engine(tmp_path)
    assert largest_difference(loaded.run("logits", {"pixel_values": pixels})["logits"], theirs) <= 1e-5
    assert loaded.notes == ()


def tiny_size(model: Any) -> Any:
    return getattr(model.config, "image_size", 16)


@pytest.mark.parametrize("model_type", TOWERS)
def test_towers(tmp_path: Path, model_type: str) -> None:
    model = written(tmp_path, model_type, MODEL_TYPES[model_type].class_name("embedding"))
    pixels = np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32)
    ids, mask = torch.tensor(IDS), torch.tensor(MASK)
    with torch.no_grad():
        whole = model(input_ids=ids, attention_mask=mask, pixel_values=torch.tensor(pixels))
    loaded = engine(tmp_path)
    text = loaded.run("text", {"input_ids": IDS, "attention_mask": MASK})["embeds"]
    image = loaded.run("image", {"pixel_values": pixels})["embeds"]
    scale = loaded.run("scale", {})
    for ours, theirs in ((text, whole.text_embeds), (image, whole.image_embeds)):
        assert largest_difference(ours / np.linalg.norm(ours, axis=1, keepdims=True), theirs) <= 1e-5
    cosines = (text / np.linalg.norm(text, axis=1, keepdims=True)) @ (image.T / np.linalg.norm(image, axis=1))
    logits = cosines * scale["scale"] + scale.get("bias", np.float32(0))
    assert largest_difference(logits.astype(np.float32), whole.logits_per_text) <= 1e-5
    assert inspect(tmp_path, available_bytes=1 << 32).tasks == ("embedding", "zero-shot-image-classification")
