"""Real models say sane things: paraphrases are close, the cat is a cat, the capital of France is Paris. On each engine,
through the path of a request."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ipfs_accelerate_node.inference.model import (
    Audio,
    Chat,
    Generated,
    Image,
    ImageChoice,
    Item,
    Message,
    ModelSpec,
    Options,
    Output,
    Scores,
    Text,
    Vector,
)
from ipfs_accelerate_node.inference.registry import Registry
from tests.support.sample import CLIP, DATA, SAMPLE, T5, made

DEVICES = ["cpu", "openvino:CPU"]
pytestmark = [
    pytest.mark.timeout(240),  # the first load on OpenVINO converts the model
    pytest.mark.parametrize("device", DEVICES),
]

PARAPHRASES = [
    ("A man is playing a guitar.", "Someone plays the guitar."),
    ("The cat sleeps on the sofa.", "A cat is asleep on the couch."),
    ("How do I reset my password?", "I forgot my password, how can I change it?"),
]


class Asked:
    """A loaded model."""

    def __init__(self, registry: Registry, id_: str) -> None:
        self._registry = registry
        self._id = id_

    async def __call__(self, *items: Item, **options: int | float | bool) -> Sequence[Output]:
        answer = await self._registry.infer(self._id, items, Options(**options))  # type: ignore[arg-type]
        assert answer.model.implementation == "REAL"
        return answer.outputs


@asynccontextmanager
async def loaded(directory: Path, device: str, cache: Path, *, task: str | None = None) -> AsyncIterator[Asked]:
    async with Registry(cache=cache, prestart=False) as registry:
        spec = ModelSpec(root=f"test-{directory.name}", path=directory, names=(directory.name,))
        model = await registry.load(spec, device=device, task=task)
        assert (model.device, model.precision, model.implementation) == (device, "f32", "REAL")
        yield Asked(registry, directory.name)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder that all tests here share, so that no model is converted twice."""
    return tmp_path_factory.mktemp("converted")


def vectors(outputs: Sequence[Output]) -> NDArray[np.float64]:
    rows = np.stack([output.values for output in outputs if isinstance(output, Vector)]).astype(np.float64)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def best(output: Output) -> str:
    assert isinstance(output, Scores)
    return output.items[0].label


def text(output: Output) -> str:
    assert isinstance(output, Generated)
    return output.text


@pytest.mark.model
async def test_paraphrases_are_closer_than_strangers(device: str, converted: Path) -> None:
    async with loaded(SAMPLE, device, converted) as ask:
        first = vectors(await ask(*(Text(one) for one, _ in PARAPHRASES)))
        second = vectors(await ask(*(Text(other) for _, other in PARAPHRASES)))
    likeness = first @ second.T
    same = np.eye(len(PARAPHRASES), dtype=bool)
    assert likeness[same].min() > 0.5
    assert likeness[~same].max() < 0.3


def samples() -> dict[str, bytes]:
    return {path.stem.replace("_", " "): path.read_bytes() for path in sorted((CLIP / "samples").glob("*.png"))}


async def test_clip_ranks_half_of_its_samples_first(device: str, converted: Path) -> None:
    pictures = samples()
    assert len(pictures) == 12
    async with loaded(CLIP, device, converted, task="zero-shot-image-classification") as ask:
        outputs = await ask(*(ImageChoice(data, tuple(pictures)) for data in pictures.values()))
    assert sum(best(output) == name for output, name in zip(outputs, pictures, strict=True)) >= 6


async def test_clip_puts_texts_and_pictures_into_one_space(device: str, converted: Path) -> None:
    pictures = samples()
    async with loaded(CLIP, device, converted, task="embedding") as ask:
        images = vectors(await ask(*(Image(data) for data in pictures.values())))
        texts = vectors(await ask(*(Text(name) for name in pictures)))
    assert ((images @ texts.T).argmax(axis=1) == np.arange(12)).sum() >= 6


async def test_t5_says_how_words_are_spoken(device: str, converted: Path) -> None:
    async with loaded(T5, device, converted) as ask:
        spoken = [text(output) for output in await ask(Text("serving"), Text("network"), max_new_tokens=32)]
    assert spoken == ["sˈɜɹvɪŋ", "nˈɛtwˌɜɹk"]


@pytest.mark.model("smollm2-135m")
async def test_smollm2_knows_the_capital_of_france(device: str, converted: Path) -> None:
    async with loaded(made("smollm2-135m"), device, converted) as ask:
        (said,) = await ask(Text("The capital of France is"), max_new_tokens=4)
        (answered,) = await ask(Chat((Message("user", "What is the capital of France?"),)), max_new_tokens=24)
    assert text(said).startswith(" Paris.")
    assert "Paris" in text(answered)


SPOKEN = {
    "window.wav": "please open the window and bring me a glass of water",
    "checked.wav": "every file is checked before the model is loaded",
}


@pytest.mark.model("whisper-tiny-en")
async def test_whisper_writes_down_what_is_said(device: str, converted: Path) -> None:
    recordings = [Audio((DATA / "audio" / name).read_bytes()) for name in SPOKEN]
    async with loaded(made("whisper-tiny-en"), device, converted) as ask:
        heard = [text(output).lower() for output in await ask(*recordings)]
    assert [" ".join(re.findall(r"[a-z']+", words)) for words in heard] == list(SPOKEN.values())


@pytest.mark.model("efficientnet-lite0")
async def test_efficientnet_sees_the_cat_and_the_coffee(device: str, converted: Path) -> None:
    files = [(DATA / "images" / name).read_bytes() for name in ("chelsea.jpg", "coffee.jpg")]
    async with loaded(made("efficientnet-lite0"), device, converted) as ask:
        cat, cup = await ask(*(Image(file) for file in files))
    assert best(cat) == "Egyptian cat"
    assert best(cup) == "espresso"
