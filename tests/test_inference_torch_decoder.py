"""Models that write text on torch: what a batch is given step by step against one pass of transformers' own class, and
against its ``generate``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ipfs_accelerate_node.errors import InferenceFailed
from ipfs_accelerate_node.inference.families import MODEL_TYPES
from ipfs_accelerate_node.inference.model_files import inspect
from tests.support.models_torch import torch, written

from ipfs_accelerate_node.inference.torch.engine import TorchEngine, load  # isort: skip - after torch's own warnings

pytestmark = pytest.mark.timeout(120)

CAUSAL = [name for name, kind in MODEL_TYPES.items() if kind.family == "causal"]
WITH_ENCODER = [name for name, kind in MODEL_TYPES.items() if kind.family == "seq2seq"]
PROMPTS = [[2, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19], [2, 20, 21], [2, 30, 31, 32, 33, 34]]
NEW = 8


def engine(directory: Path) -> TorchEngine:
    files = inspect(directory, available_bytes=1 << 32)
    return load(files, files.tasks[0], device="cpu", precision="f32")


def left_padded(rows: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    longest = max(map(len, rows))
    ids = np.array([[0] * (longest - len(row)) + list(row) for row in rows])
    mask = np.array([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def greedy(loaded: TorchEngine, ids: NDArray[np.int64], mask: NDArray[np.int64], encoded: Any = None,
           new: int = NEW) -> tuple[NDArray[np.int64], list[NDArray[np.float32]]]:  # fmt: skip
    """(new tokens, logits of each step)."""
    decoder = loaded.decoder()
    decoder.start(encoded)
    logits: list[NDArray[np.float32]] = []
    written_ids: list[NDArray[np.int64]] = []
    given = ids
    for _ in range(new):
        logits.append(decoder.step(given, mask))
        given = logits[-1].argmax(axis=1)[:, None]
        written_ids.append(given)
        mask = np.concatenate([mask, np.ones_like(given)], axis=1)
    return np.concatenate(written_ids, axis=1), logits


def assert_close(ours: NDArray[np.float32], theirs: torch.Tensor) -> None:
    scale = max(1.0, float(theirs.abs().max()))
    assert np.abs(ours - theirs.numpy()).max() / scale <= 1e-5


@pytest.mark.parametrize("model_type", CAUSAL)
def test_causal_models_in_a_left_padded_batch(tmp_path: Path, model_type: str) -> None:
    model = written(tmp_path, model_type, MODEL_TYPES[model_type].generator)
    loaded = engine(tmp_path)
    assert loaded.notes == ()
    new, logits = greedy(loaded, *left_padded(PROMPTS))
    for row, prompt in enumerate(PROMPTS):  # each as if it were alone, in one pass over all it has written
        whole = torch.tensor([[*prompt, *new[row]]])
        with torch.no_grad():
            expected = model(input_ids=whole).logits[0]
        for step in range(NEW):
            assert_close(logits[step][row], expected[len(prompt) - 1 + step])
    alone = torch.tensor([PROMPTS[0]])
    theirs = model.generate(alone, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, eos_token_id=None)
    assert theirs[0, len(PROMPTS[0]) :].tolist() == new[0].tolist()


@pytest.mark.parametrize("model_type", WITH_ENCODER)
def test_encoder_and_decoder(tmp_path: Path, model_type: str) -> None:
    model = written(tmp_path, model_type, MODEL_TYPES[model_type].generator)
    loaded = engine(tmp_path)
    assert loaded.notes == ()
    ids = np.array([[10, 11, 12, 13, 3], [20, 21, 3, 0, 0]])
    mask = np.array([[1] * 5, [1, 1, 1, 0, 0]])
    encoded = loaded.run("encoder", {"input_ids": ids, "attention_mask": mask}) | {"attention_mask": mask}
    start = np.full((2, 1), model.config.decoder_start_token_id)
    new, logits = greedy(loaded, start, np.ones_like(start), encoded)
    whole = torch.tensor(np.concatenate([start, new[:, :-1]], axis=1))
    with torch.no_grad():
        expected = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask), decoder_input_ids=whole).logits
    for step in range(NEW):
        assert_close(logits[step], expected[:, step])


def test_speech(tmp_path: Path) -> None:
    model = written(tmp_path, "whisper", "WhisperForConditionalGeneration")
    loaded = engine(tmp_path)
    features = np.random.default_rng(0).normal(size=(2, 8, 40)).astype(np.float32)
    encoded = loaded.run("encoder", {"input_features": features})
    start = np.array([[2, 5, 6], [2, 5, 7]])
    new, logits = greedy(loaded, start, np.ones_like(start), encoded)
    whole = torch.tensor(np.concatenate([start, new[:, :-1]], axis=1))
    with torch.no_grad():
        expected = model(input_features=torch.tensor(features), decoder_input_ids=whole).logits
    for step in range(NEW):
        assert_close(logits[step], expected[:, 2 + step])


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "t5", "bart", "whisper"])
def test_rows_go_on_from_others(tmp_path: Path, model_type: str) -> None:
    """``beam`` takes the cache along: what follows is as if the row had been written from the start."""
    written(tmp_path, model_type, MODEL_TYPES[model_type].generator)
    loaded = engine(tmp_path)
    ids, mask = left_padded([PROMPTS[0], PROMPTS[2]])
    encoded: Any = None
    if model_type == "whisper":
        features = np.random.default_rng(0).normal(size=(2, 8, 40)).astype(np.float32)
        encoded = loaded.run("encoder", {"input_features": features})
    elif model_type in WITH_ENCODER:
        encoded = loaded.run("encoder", {"input_ids": ids, "attention_mask": mask}) | {"attention_mask": mask}
    first = ids if encoded is None else np.array([[2, 10], [2, 11]])
    over = mask if encoded is None else np.ones_like(first)
    token = np.array([[40], [41]])
    longer = np.concatenate([over, np.ones_like(token)], axis=1)
    plain = loaded.decoder()
    plain.start(encoded)
    plain.step(first, over)
    straight = plain.step(token, longer)
    crossed = loaded.decoder()
    crossed.start(encoded)
    crossed.step(first, over)
    swapped = crossed.step(token[::-1].copy(), longer[::-1].copy(), beam=np.array([1, 0]))
    np.testing.assert_allclose(swapped[::-1], straight, atol=1e-5)
    fewer = loaded.decoder()
    fewer.start(encoded)
    fewer.step(first, over)
    np.testing.assert_allclose(fewer.step(token[1:], longer[1:], beam=np.array([1])), straight[1:], atol=1e-5)


def test_a_decoder_starts_from_what_belongs_to_it(tmp_path: Path) -> None:
    written(tmp_path / "gpt2", "gpt2", "GPT2LMHeadModel")
    written(tmp_path / "t5", "t5", "T5ForConditionalGeneration")
    with pytest.raises(InferenceFailed, match="no encoder"):
        engine(tmp_path / "gpt2").decoder().start({"hidden": np.zeros((1, 2, 16), np.float32)})
    decoder = engine(tmp_path / "t5").decoder()
    with pytest.raises(InferenceFailed, match="encoder"):
        decoder.start(None)
    with pytest.raises(InferenceFailed, match="before start"):
        decoder.step(np.array([[0]]), np.array([[1]]))
    with pytest.raises(InferenceFailed, match="no graph"):
        engine(tmp_path / "gpt2").run("encoder", {})
