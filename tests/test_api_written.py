"""A real writer behind OpenAI's client: what a stream counts is what the whole answer counts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio
import transformers

from tests.support.models_tasks import byte_level, random_model, saved
from tests.support.running import Running, running

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

WRITER = "own/llama"
TEMPLATE = "{% for message in messages %}<s>{{ message.content }}{% endfor %}"
HELLO: list[Any] = [{"role": "user", "content": "once upon a time"}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    config = transformers.LlamaConfig(
        vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, eos_token_id=None, pad_token_id=0, bos_token_id=1,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("written")
    model = random_model(transformers.LlamaForCausalLM, config)
    directory = saved(folder / "llama", model, byte_level("<pad>", "<s>", "</s>"), chat_template=TEMPLATE)
    async with running(folder / "cache", threads=1) as node:
        await node.node.add(directory, name=WRITER)
        await node.node.serving.load(WRITER)
        yield node


@pytest_asyncio.fixture(loop_scope="module")
async def client(here: Running) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{here.url}/v1", api_key="sk-anything", max_retries=0) as made:
        yield made


@pytest.mark.parametrize("stop", [None, ["e"], ["ab", "nd"]])
async def test_a_streamed_completion_counts_what_the_whole_one_counts(
    client: openai.AsyncOpenAI, stop: list[str] | None
) -> None:
    asked: dict[str, Any] = {"model": WRITER, "prompt": ["once upon", "a"], "n": 2, "max_tokens": 40, "seed": 5}
    whole = await client.completions.create(**asked, stop=stop)
    stream = await client.completions.create(**asked, stop=stop, stream=True, stream_options={"include_usage": True})
    parts = [part async for part in stream]
    assert whole.usage is not None
    assert whole.usage.prompt_tokens > 0
    assert parts[-1].usage == whole.usage
    for index, choice in enumerate(whole.choices):
        told = "".join(one.text for part in parts for one in part.choices if one.index == index)
        assert told == choice.text


async def test_a_streamed_chat_counts_what_the_whole_one_counts(client: openai.AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"model": WRITER, "messages": HELLO, "n": 2, "max_tokens": 20, "seed": 5}
    whole = await client.chat.completions.create(**asked)
    stream = await client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    assert whole.usage is not None
    assert whole.usage.prompt_tokens > 0
    assert chunks[-1].usage == whole.usage


async def test_a_chat_without_a_limit_is_written_to_its_end(client: openai.AsyncOpenAI) -> None:
    """This model never ends by itself: only the rest of what it can look back on does it."""
    done = await client.chat.completions.create(model=WRITER, messages=HELLO, temperature=0)
    assert done.usage is not None
    assert (done.choices[0].finish_reason, done.usage.total_tokens) == ("length", 512)
