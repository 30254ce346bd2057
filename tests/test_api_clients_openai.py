"""OpenAI's client, sync and async, against one node: completions, chats, streams, transcriptions, errors, retries."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import pytest_asyncio

from ipfs_accelerate_node.api.openai_audio import MAX_FIELD_BYTES
from tests.support.models import tiny_model
from tests.support.running import Running, running
from tests.support.sample import DATA, SAMPLE, T5, made

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

WRITER, SPEECH = "mock:text-generation", "mock:automatic-speech-recognition"
HELLO: list[Any] = [{"role": "user", "content": "hello"}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    folder = tmp_path_factory.mktemp("openai-clients")
    async with running(folder / "cache", threads=1) as node:
        await node.node.add(T5, name="own/t5")
        await node.node.serving.load("own/t5")
        await node.node.add(tiny_model(folder / "tiny"), name="org/tiny")
        yield node


@pytest_asyncio.fixture(loop_scope="module")
async def client(here: Running) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{here.url}/v1", api_key="sk-anything", max_retries=0) as made:
        yield made


async def test_completions_of_several_prompts_several_times(client: openai.AsyncOpenAI) -> None:
    done = await client.completions.create(model=WRITER, prompt=["one two", "three"], n=2, max_tokens=4)
    assert [choice.index for choice in done.choices] == [0, 1, 2, 3]
    assert done.choices[0].text == done.choices[1].text != done.choices[2].text
    assert {choice.finish_reason for choice in done.choices} == {"length"}
    assert done.usage is not None
    assert (done.usage.prompt_tokens, done.usage.completion_tokens, done.usage.total_tokens) == (3, 16, 19)
    assert (done.object, done.model, done.system_fingerprint) == ("text_completion", WRITER, "mock")
    assert done.id.startswith("cmpl-")
    by_ids = await client.completions.create(model=WRITER, prompt=[[1, 2], [3]])
    assert len(by_ids.choices) == 2
    echoed = await client.completions.create(model=WRITER, prompt="one two", echo=True, max_tokens=4)
    assert echoed.choices[0].text == "one two" + done.choices[0].text


async def test_completions_stream_what_they_would_have_said(client: openai.AsyncOpenAI) -> None:
    whole = await client.completions.create(model=WRITER, prompt="go on")
    stream = await client.completions.create(
        model=WRITER, prompt="go on", stream=True, stream_options={"include_usage": True}
    )
    parts = [part async for part in stream]
    assert "".join(choice.text for part in parts for choice in part.choices) == whole.choices[0].text
    assert parts[-1].choices == []
    assert parts[-1].usage == whole.usage
    assert [c.finish_reason for part in parts for c in part.choices][-1] == "stop"
    assert len({part.id for part in parts}) == 1


async def test_a_translator_completes_too(client: openai.AsyncOpenAI) -> None:
    done = await client.completions.create(model="own/t5", prompt="cat", temperature=0)
    assert done.choices[0].text
    with pytest.raises(openai.UnprocessableEntityError):
        await client.completions.create(model="org/tiny", prompt="no writer")
    with pytest.raises(openai.UnprocessableEntityError):
        await client.chat.completions.create(model="own/t5", messages=HELLO)


async def test_chats(client: openai.AsyncOpenAI) -> None:
    done = await client.chat.completions.create(model=WRITER, messages=HELLO, n=2)
    assert [choice.index for choice in done.choices] == [0, 1]
    message = done.choices[0].message
    assert (message.role, done.choices[0].finish_reason, done.object) == ("assistant", "stop", "chat.completion")
    assert message.content is not None
    assert message.content.startswith("MOCK")
    parts: list[Any] = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hello"}]},
    ]
    in_parts = await client.chat.completions.create(model=WRITER, messages=parts)
    plain: list[Any] = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    assert in_parts.choices == (await client.chat.completions.create(model=WRITER, messages=plain)).choices


async def test_chats_streamed(client: openai.AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(model=WRITER, messages=HELLO)
    stream = await client.chat.completions.create(
        model=WRITER, messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    first, last = chunks[0].choices[0], chunks[-2].choices[0]
    assert (first.delta.role, first.delta.content, first.finish_reason) == ("assistant", "", None)
    assert (last.delta.content, last.finish_reason) == (None, "stop")
    assert "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices) == whole.choices[0].message.content
    assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)
    assert {chunk.system_fingerprint for chunk in chunks} == {"mock"}


async def test_a_stream_is_server_sent_events_with_a_mark_in_each(here: Running) -> None:
    body = {"model": WRITER, "messages": HELLO, "stream": True}
    reply = await here.ask("POST", "/v1/chat/completions", json=body)
    assert reply.headers["Content-Type"].startswith("text/event-stream")
    assert reply.headers["Cache-Control"] == "no-cache"
    assert reply.headers["X-Implementation"] == "MOCK"
    lines = reply.body.decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    assert {event["implementation"] for event in events} == {"MOCK"}
    assert not any("usage" in event for event in events)


async def test_a_client_with_nothing_but_a_url_gets_the_only_chat_model(here: Running) -> None:
    reply = await here.ask("POST", "/v1/chat/completions", json={"model": "dummy", "messages": HELLO})
    assert (reply.status, reply.json["error"]["param"]) == (400, "model")  # two models are here, none of them chats


async def test_the_blocking_client_gets_the_same(here: Running, client: openai.AsyncOpenAI) -> None:
    def ask() -> tuple[str, str | None, list[str], list[float]]:
        with openai.OpenAI(base_url=f"{here.url}/v1", api_key="sk-anything", max_retries=0) as blocking:
            text = blocking.completions.create(model=WRITER, prompt="go on").choices[0].text
            chat = blocking.chat.completions.create(model=WRITER, messages=HELLO).choices[0].message.content
            stream = blocking.completions.create(model=WRITER, prompt="go on", stream=True)
            parts = [choice.text for part in stream for choice in part.choices]
            vector = blocking.embeddings.create(model="org/tiny", input="the cat").data[0].embedding
            return text, chat, parts, vector

    text, chat, parts, vector = await asyncio.to_thread(ask)
    assert text == "".join(parts) == (await client.completions.create(model=WRITER, prompt="go on")).choices[0].text
    assert chat == (await client.chat.completions.create(model=WRITER, messages=HELLO)).choices[0].message.content
    root = str(here.node.find("org/tiny").root)
    assert vector == (await client.embeddings.create(model=root, input="the cat")).data[0].embedding


async def test_two_models_at_once(client: openai.AsyncOpenAI) -> None:
    async def embed(text: str) -> list[float]:
        return (await client.embeddings.create(model="org/tiny", input=text)).data[0].embedding

    async def rewrite(text: str) -> str:
        return (await client.completions.create(model="own/t5", prompt=text, temperature=0)).choices[0].text

    words = ["cat", "mat", "one", "two"]
    alone = [(await embed(word), await rewrite(word)) for word in words]
    mixed = await asyncio.gather(*(embed(word) for word in words), *(rewrite(word) for word in words))
    for at, (vector, text) in enumerate(alone):
        assert np.allclose(np.array(mixed[at]), vector, atol=1e-5)
        assert mixed[at + len(words)] == text


async def test_transcriptions_in_each_format(here: Running, client: openai.AsyncOpenAI) -> None:
    path = DATA / "audio" / "checked.wav"
    with path.open("rb") as file:
        said = await client.audio.transcriptions.create(model=SPEECH, file=file)
    assert said.text.startswith("MOCK")
    text = await client.audio.transcriptions.create(model=SPEECH, file=path, response_format="text")
    assert text.strip() == said.text
    verbose = await client.audio.transcriptions.create(
        model=SPEECH, file=path, response_format="verbose_json", language="en", temperature=0
    )
    assert (verbose.text, verbose.language) == (said.text, "en")
    assert verbose.duration == pytest.approx(3.3, abs=1)


def form(**fields: str | bytes) -> tuple[bytes, dict[str, str]]:
    lines = []
    for name, value in fields.items():
        extra = '; filename="a.wav"' if isinstance(value, bytes) else ""
        body = value if isinstance(value, bytes) else value.encode()
        lines.append(f'--b\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'.encode() + body + b"\r\n")
    return b"".join([*lines, b"--b--\r\n"]), {"Content-Type": "multipart/form-data; boundary=b"}


BAD_FORMS: dict[str, tuple[dict[str, str | bytes], str]] = {
    "no file": ({"model": SPEECH}, "file"),
    "no model": ({"file": b"x"}, "model"),
    "subtitles": ({"model": SPEECH, "file": b"x", "response_format": "srt"}, "response_format"),
    "hot": ({"model": SPEECH, "file": b"x", "temperature": "1e308"}, "temperature"),
    "no number": ({"model": SPEECH, "file": b"x", "temperature": "nan"}, "temperature"),
    "a prompt": ({"model": SPEECH, "file": b"x", "prompt": "names"}, "prompt"),
    "a stream": ({"model": SPEECH, "file": b"x", "stream": "true"}, "stream"),
    "an empty file": ({"model": SPEECH, "file": b""}, "file"),
}


@pytest.mark.parametrize(("fields", "param"), BAD_FORMS.values(), ids=BAD_FORMS)
async def test_forms_of_no_use(here: Running, fields: dict[str, str | bytes], param: str) -> None:
    data, headers = form(**fields)
    reply = await here.ask("POST", "/v1/audio/transcriptions", data=data, headers=headers)
    assert (reply.status, reply.json["error"]["param"]) == (400, param), reply.body


async def test_forms_that_are_none_or_too_large(here: Running) -> None:
    async def status(data: bytes, **headers: str) -> int:
        sent = {"Content-Type": "multipart/form-data; boundary=b", **headers}
        return (await here.ask("POST", "/v1/audio/transcriptions", data=data, headers=sent)).status

    whole, _ = form(model=SPEECH, file=b"x")
    assert await status(whole) == 200
    assert await status(whole[:-10]) == 400
    assert await status(b"nothing of the kind") == 400
    assert await status(form(model="m" * (MAX_FIELD_BYTES + 1))[0]) == 413
    assert await status(b"".join(form(model=SPEECH)[0][:-7] for _ in range(40)) + b"--b--\r\n") == 400
    assert await status(whole, **{"Content-Type": "application/json"}) == 415
    too_much = io.BytesIO(form(model=SPEECH, file=b"\0" * (65 << 20))[0])
    reply = await here.ask(
        "POST", "/v1/audio/transcriptions", data=too_much, headers={"Content-Type": "multipart/form-data; boundary=b"}
    )
    assert reply.status == 413


async def test_reranking_in_coheres_shape(here: Running) -> None:
    documents = ["first", {"text": "second"}, "third"]
    body = {"model": "mock:rerank", "query": "q", "documents": documents}
    for path in ("/v1/rerank", "/v3/rerank"):
        found = (await here.ask("POST", path, json={**body, "top_n": 2, "return_documents": True})).json
        scores = [one["relevance_score"] for one in found["results"]]
        assert len(scores) == 2
        assert scores == sorted(scores, reverse=True)
        assert all(one["document"]["text"] in ("first", "second", "third") for one in found["results"])
        assert (found["implementation"], found["model"]) == ("MOCK", "mock:rerank")
    plain = (await here.ask("POST", "/v1/rerank", json=body)).json
    assert {one["index"] for one in plain["results"]} == {0, 1, 2}
    assert not any("document" in one for one in plain["results"])


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "no prompt": ("completions", {"prompt": None}, "prompt"),
    "empty prompt": ("completions", {"prompt": ["a", ""]}, "prompt"),
    "max_tokens 0": ("completions", {"max_tokens": 0}, "max_tokens"),
    "max_tokens text": ("completions", {"max_tokens": "5"}, "max_tokens"),
    "max_tokens true": ("completions", {"max_tokens": True}, "max_tokens"),
    "n 0": ("completions", {"n": 0}, "n"),
    "n 129": ("completions", {"n": 129}, "n"),
    "temperature -1": ("completions", {"temperature": -1}, "temperature"),
    "temperature 1e308": ("completions", {"temperature": 1e308}, "temperature"),
    "top_p 0": ("completions", {"top_p": 0}, "top_p"),
    "seed 1e308": ("completions", {"seed": 1e308}, "seed"),
    "stop of numbers": ("completions", {"stop": [1]}, "stop"),
    "empty stop": ("completions", {"stop": ""}, "stop"),
    "logprobs": ("completions", {"logprobs": 1}, "logprobs"),
    "suffix": ("completions", {"suffix": "x"}, "suffix"),
    "best_of": ("completions", {"best_of": 3}, "best_of"),
    "penalty": ("completions", {"frequency_penalty": 1.0}, "frequency_penalty"),
    "bias": ("completions", {"logit_bias": {"5": 1}}, "logit_bias"),
    "echoed ids": ("completions", {"prompt": [1, 2], "echo": True}, "echo"),
    "options without a stream": ("completions", {"stream_options": {"include_usage": True}}, "stream_options"),
    "no message": ("chat/completions", {"messages": []}, "messages"),
    "no role": ("chat/completions", {"messages": [{"content": "a"}]}, "messages"),
    "a strange role": ("chat/completions", {"messages": [{"role": "king", "content": "a"}]}, "messages"),
    "no content": ("chat/completions", {"messages": [*HELLO, {"role": "user"}]}, "messages"),
    "a schema": (
        "chat/completions",
        {"response_format": {"type": "json_schema", "json_schema": {}}},
        "response_format",
    ),
    "tools": ("chat/completions", {"tools": [{"type": "function"}]}, "tools"),
    "logprobs of a chat": ("chat/completions", {"logprobs": True}, "logprobs"),
    "two limits": ("chat/completions", {"max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens"),
    "a picture": (
        "chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:;base64,YQ=="}}]}]},
        "messages",
    ),
    "a picture elsewhere": (
        "chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y"}}]}]},
        "messages",
    ),
    "no documents": ("rerank", {"documents": []}, "documents"),
    "a number for a document": ("rerank", {"documents": ["a", 1]}, "documents"),
    "an empty document": ("rerank", {"documents": ["a", ""]}, "documents"),
    "top_n 0": ("rerank", {"top_n": 0}, "top_n"),
}
GOOD: dict[str, dict[str, Any]] = {
    "completions": {"model": WRITER, "prompt": "a"},
    "chat/completions": {"model": WRITER, "messages": HELLO},
    "rerank": {"model": "mock:rerank", "query": "q", "documents": ["a"]},
}


@pytest.mark.parametrize(("route", "change", "param"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_values_that_cannot_be_used(
    here: Running, route: str, change: dict[str, Any], param: str, stream: bool
) -> None:
    more = {"stream": True} if stream and param != "stream_options" else {}
    reply = await here.ask("POST", f"/v1/{route}", json={**GOOD[route], **more, **change})
    assert (reply.status, reply.json["error"]["param"]) == (400, param), reply.body
    assert reply.json["error"]["type"] == "invalid_request_error"


async def test_the_client_retries_what_may_work_later(here: Running) -> None:
    """A node that is stopping says when to come back; the client asks again twice, then gives up with our words."""
    from ipfs_accelerate_node.api.pipeline import TRAFFIC

    traffic = here.served.app[TRAFFIC]
    asked = 0

    class Counting(openai.AsyncOpenAI):
        async def _sleep_for_retry(self, **_: Any) -> None:
            nonlocal asked
            asked += 1
            traffic.draining = asked < 2

    async with Counting(base_url=f"{here.url}/v1", api_key="sk-anything", max_retries=2) as client:
        traffic.draining = True
        try:
            done = await client.completions.create(model=WRITER, prompt="a")
        finally:
            traffic.draining = False
    assert done.choices[0].text.startswith("MOCK")
    assert asked == 2


@pytest.mark.model("smollm2-135m", "whisper-tiny-en")
@pytest.mark.model
async def test_real_models_answer_well(tmp_path: Path) -> None:
    async with running(tmp_path / "cache") as here:
        for name in ("smollm2-135m", "whisper-tiny-en"):
            await here.node.add(made(name), name=f"own/{name}")
            await here.node.serving.load(f"own/{name}")
        await here.node.add(SAMPLE, name="sentence-transformers/all-MiniLM-L6-v2")
        async with openai.AsyncOpenAI(base_url=f"{here.url}/v1", api_key="k", max_retries=0, timeout=90) as client:
            text = await client.completions.create(
                model="own/smollm2-135m", prompt="The capital of France is", max_tokens=4, temperature=0
            )
            assert "Paris" in text.choices[0].text
            stream = await client.chat.completions.create(
                model="own/smollm2-135m",
                messages=[{"role": "user", "content": "What is the capital of France?"}],
                max_tokens=16,
                temperature=0,
                stream=True,
            )
            said = "".join([c.delta.content or "" async for chunk in stream for c in chunk.choices])
            assert "Paris" in said
            heard = await client.audio.transcriptions.create(
                model="own/whisper-tiny-en", file=DATA / "audio" / "checked.wav"
            )
            assert "file" in heard.text.lower()
            drawn = [
                (
                    await client.completions.create(
                        model="own/smollm2-135m", prompt="Once", max_tokens=8, seed=seed, temperature=1
                    )
                )
                .choices[0]
                .text
                for seed in (1, 1, 2)
            ]
            assert drawn[0] == drawn[1] != drawn[2]
