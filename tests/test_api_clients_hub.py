"""`huggingface_hub.InferenceClient`, sync and async, against one node: every task that is served, by URL."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from huggingface_hub import AsyncInferenceClient, InferenceClient, set_client_factory
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import _http

from tests.support.models import tiny_model
from tests.support.running import Running, running
from tests.support.sample import CLIP, DATA, SAMPLE, T5, made

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

PICTURE = (DATA / "images" / "chelsea.jpg").read_bytes()


def silence(seconds: float = 0.5, rate: int = 16_000) -> bytes:
    """A WAV file."""
    body = b"\0\0" * int(seconds * rate)
    head = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16)
    return b"RIFF" + struct.pack("<I", 4 + len(head) + 8 + len(body)) + b"WAVE" + head + struct.pack(
        "<4sI", b"data", len(body)
    ) + body  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def own_client() -> Iterator[None]:
    """A node that asked the Hub before, in this process, has replaced the library's client by one that speaks to its
    upstream alone."""
    before = _http._GLOBAL_CLIENT_FACTORY
    set_client_factory(_http.default_client_factory)
    yield
    set_client_factory(before)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    folder = tmp_path_factory.mktemp("hub-client")
    async with running(folder / "cache", threads=1) as node:
        await node.node.add(tiny_model(folder / "tiny"), name="org/tiny")
        await node.node.add(CLIP, name="own/clip")
        await node.node.add(T5, name="own/t5")
        await node.node.serving.load("own/t5")
        for task in ("embedding", "zero-shot-image-classification"):
            await node.node.serving.load("own/clip", task=task)
        yield node


def of(here: Running, path: str = "", **more: Any) -> Any:
    return InferenceClient(model=here.url + path, token="hf_unused", timeout=60, **more)


async def calling(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """A client that blocks, off the loop that serves it."""
    return await asyncio.to_thread(call, *arguments, **options)


async def test_vectors_by_model_and_by_pipeline(here: Running) -> None:
    for path in ("/models/org/tiny", "/models/org/tiny/pipeline/feature-extraction"):
        vectors = await calling(of(here, path).feature_extraction, "the cat", normalize=True, truncate=True)
        assert vectors.shape == (1, 16)
    root = str(here.node.find("org/tiny").root)
    assert np.allclose(await calling(of(here, f"/models/{root}").feature_extraction, "the cat"), vectors)
    cosines = await calling(
        of(here, "/models/org/tiny/pipeline/sentence-similarity").sentence_similarity,
        "the cat",
        other_sentences=["the cat", "one two"],
    )
    assert cosines[0] == pytest.approx(1, abs=1e-5)
    assert await calling(of(here, "/models/org/tiny").sentence_similarity, "the cat", other_sentences=["the cat"]) == (
        pytest.approx([1], abs=1e-5)
    )


async def test_labels_of_texts(here: Running) -> None:
    client = of(here, "/models/mock:text-classification")
    assert len(await calling(client.text_classification, "a text")) == 5
    top = await calling(client.text_classification, "a text", top_k=2, function_to_apply="softmax")
    assert len(top) == 2
    assert top[0].score >= top[1].score
    by_url = await calling(of(here, "/?model=mock:text-classification").text_classification, "a text")
    assert by_url == await calling(client.text_classification, "a text")


async def test_parts_of_texts(here: Running) -> None:
    found = await calling(of(here, "/models/mock:token-classification").token_classification, "Ada met Bob")
    assert [(one.word, one.start, one.end, one.entity_group) for one in found] == [
        ("Ada", 0, 3, "MOCK"),
        ("Bob", 8, 11, "MOCK"),
    ]
    fills = await calling(of(here, "/models/mock:fill-mask").fill_mask, "Paris is [MASK].", top_k=3)
    assert len(fills) == 3
    assert fills[0].sequence == f"Paris is {fills[0].token_str}."
    with pytest.raises(HfHubHTTPError) as caught:
        await calling(of(here, "/models/mock:fill-mask").fill_mask, "[MASK]", targets=["a"])
    assert caught.value.response is not None
    assert caught.value.response.status_code == 422


async def test_pictures(here: Running) -> None:
    client = of(here, "/models/mock:image-classification")
    assert len(await calling(client.image_classification, PICTURE)) == 5
    assert len(await calling(client.image_classification, PICTURE, top_k=2)) == 2
    cats = DATA / "models" / "clip-emoji-tiny" / "samples"
    picture = next(iter(sorted(cats.iterdir())))
    labels = ["a cat", "a spoon"]
    found = await calling(
        of(here, "/models/own/clip").zero_shot_image_classification, picture.read_bytes(), candidate_labels=labels
    )
    assert {one.label for one in found} == set(labels)
    assert sum(one.score for one in found) == pytest.approx(1)


async def test_vectors_of_pictures_and_texts_lie_in_one_space(here: Running) -> None:
    data = "data:image/jpeg;base64," + base64.b64encode(PICTURE).decode()
    body = {"model": "own/clip", "input": [data, data], "modality": "image"}
    reply = await here.ask("POST", "/v1/embeddings", json=body)
    assert reply.status == 200, reply.body
    one, two = (np.array(item["embedding"]) for item in reply.json["data"])
    assert np.array_equal(one, two)
    raw = await here.ask("POST", "/models/own/clip", data=PICTURE, headers={"Content-Type": "image/jpeg"})
    assert raw.status in (200, 424), raw.body
    vector = await here.ask(
        "POST",
        "/models/own/clip/pipeline/image-feature-extraction",
        data=PICTURE,
        headers={"Content-Type": "image/jpeg"},
    )
    assert np.allclose(vector.json[0], one, atol=1e-5)
    text = await here.ask("POST", "/v1/embeddings", json={"model": "own/clip", "input": "a cat"})
    assert len(text.json["data"][0]["embedding"]) == len(one)


async def test_speech(here: Running) -> None:
    client = of(here, "/models/mock:automatic-speech-recognition")
    assert (await calling(client.automatic_speech_recognition, silence())).text.startswith("MOCK")
    with_more = await calling(
        client.automatic_speech_recognition, silence(), extra_body={"generation_parameters": {"max_new_tokens": 3}}
    )
    assert len(with_more.text.split()) == 4


async def test_texts_are_rewritten_under_the_name_that_the_task_reads(here: Running) -> None:
    client = of(here, "/models/own/t5")
    translated = (await calling(client.translation, "cat")).translation_text
    assert translated
    assert (await calling(client.summarization, "cat")).summary_text == translated
    assert await calling(client.text_generation, "cat", max_new_tokens=20) == translated
    named = of(here, "/models/own/t5/pipeline/translation")
    assert (await calling(named.translation, "cat")).translation_text == translated


async def test_writing_whole_and_as_events(here: Running) -> None:
    client = of(here, "/models/mock:text-generation")
    text = await calling(client.text_generation, "go on")
    assert text.startswith("MOCK")
    full = await calling(client.text_generation, "go on", return_full_text=True, details=True)
    assert full.generated_text == f"go on{text}"
    assert (full.details.finish_reason, full.details.generated_tokens) == ("eos_token", 8)
    parts = await calling(lambda: list(client.text_generation("go on", stream=True)))
    assert "".join(parts) == text
    last = (await calling(lambda: list(client.text_generation("go on", stream=True, details=True))))[-1]
    assert last.generated_text == text
    assert last.details.finish_reason == "eos_token"


async def test_chats_whole_and_streamed(here: Running) -> None:
    client = of(here, "/models/mock:text-generation")
    messages = [{"role": "user", "content": "hello"}]
    answer = await calling(client.chat_completion, messages, max_tokens=8)
    assert answer.choices[0].message.content.startswith("MOCK")
    chunks = await calling(lambda: list(client.chat_completion(messages, max_tokens=8, stream=True)))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == answer.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_the_client_learns_whom_it_talks_to(here: Running) -> None:
    for path in ("", "/models/org/tiny"):
        assert await calling(of(here, path, provider="hf-inference").health_check)
    about = await calling(of(here, "/models/org/tiny", provider="hf-inference").get_endpoint_info)
    assert about["model_id"] == "org/tiny"
    assert (await here.ask("GET", "/models/nobody/nothing/health")).status == 404


async def test_the_async_client_gets_the_same(here: Running) -> None:
    async with AsyncInferenceClient(model=f"{here.url}/models/org/tiny", token="hf_unused", timeout=60) as client:
        vectors = await client.feature_extraction("the cat")
    assert np.allclose(vectors, await calling(of(here, "/models/org/tiny").feature_extraction, "the cat"))
    writer: Any = AsyncInferenceClient(model=f"{here.url}/models/mock:text-generation", token="hf_unused")
    async with writer:
        parts = [part async for part in await writer.text_generation("go on", stream=True)]
        assert "".join(parts) == await writer.text_generation("go on")
        messages = [{"role": "user", "content": "hello"}]
        chunks = [chunk async for chunk in await writer.chat_completion(messages, stream=True)]
        assert chunks[0].choices[0].delta.role == "assistant"


async def test_errors_reach_the_client(here: Running) -> None:
    for path, status in (
        ("/models/nobody/nothing", 404),
        ("/models/own/clip/pipeline/fill-mask", 424),
        ("/models/org/tiny/pipeline/depth-estimation", 404),
        ("/", 422),
    ):
        with pytest.raises(HfHubHTTPError) as caught:
            await calling(of(here, path).fill_mask, "[MASK]")
        assert caught.value.response is not None
        assert caught.value.response.status_code == status, path
        assert caught.value.response.json()["error"]


async def test_mocks_mark_every_object(here: Running) -> None:
    for task, inputs in (
        ("text-classification", "a"),
        ("token-classification", "Ada"),
        ("fill-mask", "[MASK]"),
        ("text-generation", "a"),
        ("text2text-generation", "a"),
    ):
        reply = await here.ask("POST", f"/models/mock:{task}", json={"inputs": inputs, "parameters": {}})
        found = reply.json
        while isinstance(found[0], list):
            found = found[0]
        assert all(one["implementation"] == "MOCK" for one in found), task
        assert reply.headers["X-Implementation"] == "MOCK"


@pytest.mark.model("smollm2-135m", "whisper-tiny-en", "efficientnet-lite0")
@pytest.mark.model
async def test_real_models_of_every_kind(tmp_path: Path) -> None:
    async with running(tmp_path / "cache") as here:
        for name in ("smollm2-135m", "whisper-tiny-en", "efficientnet-lite0"):
            await here.node.add(made(name), name=f"own/{name}")
            await here.node.serving.load(f"own/{name}")
        await here.node.add(SAMPLE, name="sentence-transformers/all-MiniLM-L6-v2")
        await here.node.serving.load("sentence-transformers/all-MiniLM-L6-v2")
        text = await calling(
            of(here, "/models/own/smollm2-135m").text_generation, "The capital of France is", max_new_tokens=3
        )
        assert "Paris" in text
        chat = await calling(
            of(here, "/models/own/smollm2-135m").chat_completion,
            [{"role": "user", "content": "What is the capital of France?"}],
            max_tokens=16,
            temperature=0,
        )
        assert "Paris" in chat.choices[0].message.content
        labels = await calling(of(here, "/models/own/efficientnet-lite0").image_classification, PICTURE)
        assert "cat" in labels[0].label.lower()
        sound = (DATA / "audio" / "checked.wav").read_bytes()
        heard = await calling(of(here, "/models/own/whisper-tiny-en").automatic_speech_recognition, sound)
        assert heard.text
        similar = await calling(
            of(here, "/models/sentence-transformers/all-MiniLM-L6-v2").sentence_similarity,
            "A man is eating food.",
            other_sentences=["A man is eating a piece of bread.", "The girl is carrying a baby."],
        )
        assert similar[0] > 0.6 > 0.2 > similar[1]
