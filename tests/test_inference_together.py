"""Texts written together, on each engine: every step's scores are those of the text alone, by transformers' class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from numpy.typing import NDArray

from ipfs_accelerate_node.errors import InferenceFailed
from ipfs_accelerate_node.inference.families import MODEL_TYPES
from ipfs_accelerate_node.inference.model_files import inspect
from ipfs_accelerate_node.inference.sequences import DecoderSequences, Sequences
from tests.support.models_torch import VOCAB, torch, written

from ipfs_accelerate_node.inference.torch.engine import TorchEngine, load  # isort: skip - after torch's own warnings
from ipfs_accelerate_node.inference.torch.slot_sequences import RowCache, SlotSequences  # isort: skip

pytestmark = pytest.mark.timeout(240)

CAUSAL = [name for name, kind in MODEL_TYPES.items() if kind.family == "causal"]
LIMIT = 40


def engine_of(directory: Path, model_type: str) -> TorchEngine:
    written(directory, model_type, MODEL_TYPES[model_type].class_name("text-generation"))
    return load(
        inspect(directory, available_bytes=1 << 32, task="text-generation"),
        "text-generation",
        device="cpu",
        precision="f32",
    )


def alone(module: Any, ids: list[int]) -> NDArray[np.float32]:
    with torch.inference_mode():
        scores: NDArray[np.float32] = module(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].numpy()
    return scores


def check_together(sequences: Sequences, module: Any) -> None:
    """Texts that come and go, at lengths of their own; a place that is taken again knows nothing of its last text."""
    random = np.random.default_rng(0)
    texts: dict[int, list[int]] = {}

    def comes(count: int) -> int:
        place = sequences.open(LIMIT)
        assert place is not None
        texts[place] = random.integers(4, VOCAB, count).tolist()
        found = sequences.read(place, texts[place], scores=True)
        np.testing.assert_allclose(found.scores[0], alone(module, texts[place]), atol=2e-4)
        assert found.best[0] == found.scores[0].argmax()
        return place

    def step(places: list[int]) -> None:
        tokens = random.integers(4, VOCAB, len(places)).tolist()
        for place, token in zip(places, tokens, strict=True):
            texts[place].append(token)
        found = sequences.step(places, tokens, scores=range(len(places)))
        for row, place in enumerate(places):
            np.testing.assert_allclose(found.scores[row], alone(module, texts[place]), atol=2e-4)
        assert sequences.step([places[0]], [5]).scores.shape == (0, VOCAB)
        texts[places[0]].append(5)

    first, second = comes(1), comes(9)
    for _ in range(3):
        step([first, second])
    third = comes(17)
    step([third, first, second])
    sequences.close(second)
    step([first, third])
    again = comes(4)
    step([again, third, first])
    for place in (again, third, first):
        sequences.close(place)


@pytest.mark.parametrize("model_type", CAUSAL)
def test_every_decoder_of_transformers(tmp_path: Path, model_type: str) -> None:
    engine = engine_of(tmp_path, model_type)
    sequences = engine.sequences() or DecoderSequences(engine.decoder, length=LIMIT)
    check_together(sequences, engine.graphs.module)  # type: ignore[attr-defined]


def test_most_classes_are_written_together(tmp_path: Path) -> None:
    together = [name for name in CAUSAL if engine_of(tmp_path / name, name).sequences() is not None]
    assert {"llama", "qwen2", "qwen3", "gpt2", "gpt_neox", "phi"} <= set(together)
    assert "mistral" not in together  # whose sample looks back over a window


def test_a_place_is_refused_more_than_it_was_taken_for(tmp_path: Path) -> None:
    sequences = engine_of(tmp_path, "llama").sequences()
    assert isinstance(sequences, SlotSequences)
    place = sequences.open(5)
    assert place is not None
    sequences.read(place, [5] * 5, scores=False)
    with pytest.raises(InferenceFailed):
        sequences.step([place], [5])
    assert sequences.open(10_000) is None
    assert not sequences.fits(10_000)
    taken = [sequences.open(2) for _ in range(sequences.most)]
    assert taken[-1] is None
    assert None not in taken[:-1]


def test_what_is_no_number_stays_with_its_text(tmp_path: Path) -> None:
    """Who comes after a text that broke the model is not broken by what it left."""
    engine = engine_of(tmp_path, "llama")
    sequences, module = engine.sequences(), engine.graphs.module  # type: ignore[attr-defined]
    assert isinstance(sequences, SlotSequences)
    with torch.inference_mode():
        module.get_input_embeddings().weight[7] = torch.nan
    first, long = sequences.open(20), sequences.open(20)
    assert first is not None
    assert long is not None
    assert sequences.read(first, [4, 5, 7, 7, 7, 7], scores=False).best[0] == -1
    sequences.read(long, [4] * 10, scores=False)
    sequences.close(first)
    again = sequences.open(20)
    assert again == first
    sequences.read(again, [4, 5], scores=False)
    found = sequences.step([again, long], [6, 6], scores=[0])
    np.testing.assert_allclose(found.scores[0], alone(module, [4, 5, 6]), atol=2e-4)


def test_room_that_there_is_no_memory_for_changes_nothing() -> None:
    cache = RowCache()
    cache.kept.append((torch.zeros(1, 1, 256, 1), torch.zeros(1, 1, 256, 1)))
    with pytest.raises(RuntimeError):
        cache.grow(1, 1 << 60)
    assert cache.room == (1, 256)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def paged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """(engine on OpenVINO, module of transformers) of one tiny model, converted in a process of its own."""
    from ipfs_accelerate_node.inference.openvino import artefacts
    from ipfs_accelerate_node.inference.openvino import engine as openvino_engine

    directory = tmp_path_factory.mktemp("llama")
    plain = engine_of(directory, "llama")
    kept = tmp_path_factory.mktemp("kept")
    artefact = await artefacts.ensure(directory, "bafytiny", "text-generation", "f32", kept)
    files = inspect(directory, available_bytes=1 << 32, task="text-generation")
    engine = openvino_engine.load(artefact, files, "text-generation", device="openvino:CPU", precision="f32", threads=1)
    return engine, plain.graphs.module  # type: ignore[attr-defined]


@pytest.mark.asyncio(loop_scope="module")
async def test_openvino_writes_together_over_pages(paged: tuple[Any, Any]) -> None:
    engine, module = paged
    sequences = engine.sequences()
    assert sequences is not None
    assert engine.sequences() is sequences
    check_together(sequences, module)
    check_together(sequences, module)


@pytest.mark.asyncio(loop_scope="module")
async def test_openvino_has_the_plain_decoder_too(paged: tuple[Any, Any]) -> None:
    engine, module = paged
    decoder = engine.decoder()
    decoder.start(None)
    ids = [5, 6, 7]
    found = decoder.step(np.array([ids]), np.ones((1, 3), dtype=np.int64))
    np.testing.assert_allclose(found[0], alone(module, ids), atol=2e-4)
