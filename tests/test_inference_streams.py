"""Answers that are told while they are written: many at once, callers who leave, a worker that ends, deadlines."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
import pytest_asyncio
import transformers

from ipfs_accelerate_node.errors import InvalidInput, PayloadTooLarge, Unavailable
from ipfs_accelerate_node.inference.model import (
    Generated,
    Ids,
    Item,
    LoadedModel,
    ModelSpec,
    ModelStats,
    Options,
    Text,
)
from ipfs_accelerate_node.inference.registry import Registry
from ipfs_accelerate_node.inference.wire import Delta
from tests.support.models_tasks import byte_level, random_model, saved
from tests.support.workers import registry_in_its_task, until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

POSITIONS = 2048
LONG = Options(max_new_tokens=1500)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def registry() -> AsyncIterator[Registry]:
    async with registry_in_its_task(silence_s=20.0, steady_s=0.0) as registry:
        yield registry


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama that never ends by itself."""
    config = transformers.LlamaConfig(
        vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=POSITIONS, eos_token_id=None, pad_token_id=0, bos_token_id=1,
    )  # fmt: skip
    model = random_model(transformers.LlamaForCausalLM, config)
    return saved(tmp_path_factory.mktemp("models") / "llama", model, byte_level("<pad>", "<s>", "</s>"))


@pytest_asyncio.fixture(loop_scope="module")
async def model(registry: Registry, directory: Path) -> LoadedModel:
    return await registry.load(ModelSpec("bafyllama", directory, ("llama",), source="cid"), device="cpu")


def stats(registry: Registry) -> ModelStats:
    return next(found for found in registry.stats() if found.root == "bafyllama")


def at_rest(registry: Registry) -> bool:
    found = stats(registry)
    return (found.waiting, found.flying, found.waiting_tokens) == (0, 0, 0)


async def streamed(registry: Registry, model: LoadedModel, items: list[Item], options: Options) -> list[list[Delta]]:
    """The deltas of each item."""
    found: list[list[Delta]] = [[] for _ in items]
    async for delta in registry.stream(model, items, options):
        found[delta.index].append(delta)
    return found


async def written(registry: Registry, model: LoadedModel, item: Item, options: Options) -> Generated:
    (output,) = (await registry.infer(model, [item], options)).outputs
    assert isinstance(output, Generated)
    return output


@pytest.mark.parametrize(
    "options",
    [
        Options(max_new_tokens=30),
        Options(max_new_tokens=30, temperature=1.0, seed=7),
        Options(max_new_tokens=60, temperature=1.5, seed=3, top_p=0.9, stop=("e", "ab")),
    ],
)
async def test_what_is_told_is_what_is_written(registry: Registry, model: LoadedModel, options: Options) -> None:
    for prompt in ("once upon a time", "x", "the end of the long story"):
        whole = await written(registry, model, Text(prompt), options)
        (deltas,) = await streamed(registry, model, [Text(prompt)], options)
        assert "".join(delta.text for delta in deltas) == whole.text
        assert tuple(token for delta in deltas for token in delta.ids) == whole.ids
        assert [delta.finish for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
        assert (deltas[-1].finish, deltas[-1].tokens_in) == (whole.finish, whole.tokens_in)
        assert all(delta.text or delta.finish for delta in deltas)


async def test_it_is_told_while_it_is_written(registry: Registry, model: LoadedModel) -> None:
    """The first words are there while most of the answer is not."""
    async with aclosing(registry.stream(model, [Text("once")], LONG)) as deltas:
        first = await anext(deltas)
        assert first.finish is None
        assert len(first.ids) < 100
        assert stats(registry).flying == 1
    await until(lambda: at_rest(registry))


async def test_many_at_once_are_what_each_is_alone(registry: Registry, model: LoadedModel) -> None:
    prompts = [f"story number {number} of {'many ' * (number % 5)}" for number in range(20)]
    options = [Options(max_new_tokens=3 + 7 * (number % 6)) for number in range(20)]
    alone = [await written(registry, model, Text(p), o) for p, o in zip(prompts[:10], options, strict=False)]
    before = stats(registry)
    async with asyncio.TaskGroup() as group:
        whole = [group.create_task(written(registry, model, Text(p), o)) for p, o in zip(prompts, options, strict=True)]
        told = [
            group.create_task(streamed(registry, model, [Text(p), Ids((5, 6, 7))], o))
            for p, o in zip(prompts[:10], options, strict=False)
        ]
    after = stats(registry)
    for number in range(10):
        assert whole[number].result().text == alone[number].text
        first, second = told[number].result()
        assert "".join(delta.text for delta in first) == alone[number].text
        assert second[-1].finish == "length"
    tokens = after.tokens - before.tokens
    assert after.passes - before.passes < tokens / 3  # they shared their steps
    assert at_rest(registry)


async def test_who_leaves_takes_the_writing_along(registry: Registry, model: LoadedModel) -> None:
    before = stats(registry).dropped

    async def leave_early(number: int) -> None:
        async with aclosing(registry.stream(model, [Text(f"once {number}")], LONG)) as deltas:
            async for _ in deltas:
                break

    async with asyncio.TaskGroup() as group:
        for number in range(20):
            group.create_task(leave_early(number))
    await until(lambda: at_rest(registry))
    assert stats(registry).dropped == before + 20
    assert (await written(registry, model, Text("after"), Options(max_new_tokens=3))).finish == "length"


async def test_a_worker_that_ends_ends_what_was_told_and_no_more(registry: Registry, model: LoadedModel) -> None:
    first = registry.stream(model, [Text("once")], LONG)
    await anext(first)
    pid = next(found.pid for found in registry.loaded() if found.root == "bafyllama")
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(Unavailable) as caught:
        async for _ in first:
            pass
    assert caught.value.code == "worker_crashed"
    assert (await written(registry, model, Text("after"), Options(max_new_tokens=3))).finish == "length"
    assert at_rest(registry)


async def test_a_deadline_ends_it_in_the_middle(registry: Registry, model: LoadedModel) -> None:
    told: list[Delta] = []

    async def take_all() -> None:
        async for delta in registry.stream(model, [Text("once")], LONG, deadline_s=0.3):
            told.append(delta)

    with pytest.raises(Unavailable) as caught:
        await take_all()
    assert caught.value.code == "deadline_exceeded"
    assert told
    await until(lambda: at_rest(registry))


async def test_bad_items_are_refused_before_anything_is_told(registry: Registry, model: LoadedModel) -> None:
    with pytest.raises(InvalidInput) as caught:
        await streamed(registry, model, [Text("fine"), Ids((5, 399_999))], Options(max_new_tokens=3))
    assert caught.value.detail["index"] == 1
    with pytest.raises(PayloadTooLarge):
        await streamed(registry, model, [Ids((5,) * POSITIONS)], Options(truncate=False))
    assert at_rest(registry)


async def test_a_mock_tells_its_answer_in_one_piece(registry: Registry) -> None:
    mock = await registry.load(ModelSpec("mock:text-generation", None, source="mock", mock=True))
    ((delta,),) = await streamed(registry, mock, [Text("once")], Options())
    assert delta.text
    assert delta.finish in ("stop", "length")


async def test_other_work_goes_on_beside_the_writing(registry: Registry, model: LoadedModel) -> None:
    async with aclosing(registry.stream(model, [Text("once")], LONG)) as deltas:
        await anext(deltas)
        assert "torch" in await registry.imports(model)
        assert (await anext(deltas)).finish is None
    await until(lambda: at_rest(registry))
