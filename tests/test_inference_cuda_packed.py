"""Packed passes on a GPU: they agree with the padded one in f32, a batch with each text alone, and their speed."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ipfs_accelerate_node.errors import InferenceFailed
from ipfs_accelerate_node.inference.model_files import ModelFiles, inspect
from tests.support.models import tiny_model
from tests.support.models_torch import torch

from ipfs_accelerate_node.inference.torch.engine import TorchEngine, load  # isort: skip - after torch's own warnings
from ipfs_accelerate_node.inference.torch.packed_engine import PackedEngine  # isort: skip

pytestmark = [pytest.mark.cuda, pytest.mark.timeout(300)]

GPU = "cuda:0"
BERT_BASE: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "vocab_size": 30522,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    """A BERT of the base size, of random weights."""
    return inspect(tiny_model(tmp_path_factory.mktemp("models") / "base", **BERT_BASE), available_bytes=1 << 34)


@pytest.fixture(scope="module")
def packed(base: ModelFiles) -> PackedEngine:
    engine = load(base, "embedding", device=GPU, precision="bf16")
    assert isinstance(engine, PackedEngine)
    return engine


def lengths_of(tokens: int, seed: int = 0) -> NDArray[np.int64]:
    """Log-normal with a median of 60, at most 512, so many in all."""
    random = np.random.default_rng(seed)
    drawn = np.clip(random.lognormal(np.log(60), 0.9, tokens), 3, 512).astype(np.int64)
    fitting: NDArray[np.int64] = drawn[: np.searchsorted(np.cumsum(drawn), tokens, side="right")]
    return fitting


def ids_of(lengths: NDArray[np.int64], seed: int = 1) -> NDArray[np.int64]:
    drawn: NDArray[np.int64] = np.random.default_rng(seed).integers(4, 30000, lengths.sum())
    return drawn


def cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return found


def median_s(call: Callable[[], object], rounds: int = 20) -> float:
    call()
    torch.cuda.synchronize()
    spent = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        spent.append(time.perf_counter() - began)
    return float(np.median(spent))


def test_packed_agrees_with_f32_as_well_as_padded_does(
    base: ModelFiles, packed: PackedEngine, figure: Callable[[str], None]
) -> None:
    assert "packed without padding (triton)" in " ".join(packed.notes)
    exact = load(base, "embedding", device=GPU, precision="f32")
    for tokens in (16, 100, 700, 3000, 9000):
        lengths = lengths_of(tokens) if tokens > 16 else np.array([16])
        ids = ids_of(lengths)
        found = packed.run_packed("vectors", ids, lengths)["vectors"]
        padded = np.zeros((len(lengths), lengths.max()), dtype=np.int64)
        mask = np.arange(lengths.max()) < lengths[:, None]
        padded[mask] = ids
        inputs = {"input_ids": padded, "attention_mask": mask.astype(np.int64)}
        wanted = exact.run("vectors", inputs)["vectors"]
        usual = TorchEngine.run(packed, "vectors", inputs)["vectors"]  # padded, of the same weights
        away, usually_away = 1 - cosines(found, wanted), 1 - cosines(usual, wanted)
        assert away.max() < 1.25 * usually_away.max() + 1e-4
        figure(f"{tokens} tokens of random weights: 1 - cosine {away.max():.5f}, padded {usually_away.max():.5f}")
        np.testing.assert_array_equal(packed.run("vectors", inputs)["vectors"], found)


@pytest.mark.parametrize("precision", ["bf16", "f16"])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert"])
def test_small_heads_and_other_architectures(tmp_path: Path, architecture: str, precision: str) -> None:
    sizes: dict[str, Any] = {"dim": 64, "n_heads": 4} if architecture == "distilbert" else {"hidden_size": 64}
    files = inspect(tiny_model(tmp_path, architecture, **sizes), available_bytes=1 << 30)
    engine = load(files, "embedding", device=GPU, precision=precision)
    assert isinstance(engine, PackedEngine)
    exact = load(files, "embedding", device=GPU, precision="f32")
    lengths = np.array([1, 30, 7, 30, 2])
    ids = np.random.default_rng(0).integers(4, 60, lengths.sum())
    found = engine.run_packed("vectors", ids, lengths)["vectors"]
    for at, text in enumerate(np.split(ids, np.cumsum(lengths)[:-1])):
        wanted = exact.run("vectors", {"input_ids": text[None], "attention_mask": np.ones_like(text[None])})["vectors"]
        assert cosines(found[at : at + 1], wanted).min() > 0.99


def test_a_batch_has_the_vectors_of_each_text_alone(packed: PackedEngine) -> None:
    lengths = lengths_of(20_000)
    ids = ids_of(lengths)
    together = packed.run_packed("vectors", ids, lengths)["vectors"]
    for at in range(0, len(lengths), 17):
        text = ids[lengths[:at].sum() :][: lengths[at]]
        alone = packed.run_packed("vectors", text, lengths[at : at + 1])["vectors"]
        # these random weights make much of a rounding: bf16 is 0.02 to 0.05 away from f32, see above
        assert 1 - cosines(together[at : at + 1], alone)[0] < 0.01


def test_passes_under_way_do_not_disturb_each_other(packed: PackedEngine) -> None:
    batches = [lengths_of(tokens, seed) for seed, tokens in enumerate([900, 5000, 64, 20_000, 900, 64, 3000])]
    alone = [packed.run_packed("vectors", ids_of(lengths), lengths)["vectors"] for lengths in batches]
    pending = [packed.submit("vectors", ids_of(lengths), lengths) for lengths in batches]
    for wanted, one in zip(alone, pending, strict=True):
        np.testing.assert_array_equal(one.result()["vectors"], wanted)


def test_another_graph_is_refused(packed: PackedEngine) -> None:
    with pytest.raises(InferenceFailed):
        packed.submit("logits", np.array([1]), np.array([1]))


def test_memory_stays_flat_over_shapes(packed: PackedEngine) -> None:
    random = np.random.default_rng(3)
    for _ in range(50):
        lengths = random.integers(1, 512, random.integers(1, 60))
        packed.run_packed("vectors", ids_of(lengths), lengths)
    before = torch.cuda.memory_reserved()
    for _ in range(500):
        lengths = random.integers(1, 512, random.integers(1, 60))
        packed.run_packed("vectors", ids_of(lengths), lengths)
    assert torch.cuda.memory_reserved() <= 1.5 * before


def test_throughput_of_mixed_lengths(packed: PackedEngine, figure: Callable[[str], None]) -> None:
    """Token ids in, f32 vectors in host memory out, the next pass handed over while one computes."""
    for budget in (16_384, packed.batch_tokens, 65_536):
        batches = [(ids_of(lengths), lengths) for lengths in (lengths_of(budget, seed) for seed in range(12))]

        def all_of(batches: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = batches) -> None:
            pending = None
            for ids, lengths in batches:
                following = packed.submit("vectors", ids, lengths)
                if pending is not None:
                    pending.result()
                pending = following
            assert pending is not None
            pending.result()

        tokens = sum(len(ids) for ids, _ in batches)
        figure(f"BERT-base bf16 packed, {budget} tokens a pass: {tokens / median_s(all_of, 5) / 1e6:.3f} M tokens/s")


def test_latency_of_one_query(packed: PackedEngine, figure: Callable[[str], None]) -> None:
    for tokens in (16, 32, 128, 512):
        ids, lengths = ids_of(np.array([tokens])), np.array([tokens])
        spent = median_s(partial(packed.run_packed, "vectors", ids, lengths), 200)
        figure(f"BERT-base bf16 packed, one text of {tokens} tokens: {spent * 1e3:.3f} ms")
