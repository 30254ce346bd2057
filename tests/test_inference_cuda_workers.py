"""Packed passes and paged writing through a worker, as requests meet them: kernels are compiled there too, and what
comes out is what the CPU gives in f32, within bf16."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ipfs_accelerate_node.inference.model import Generated, Ids, LoadedModel, ModelSpec, Options, Text
from ipfs_accelerate_node.inference.registry import Registry
from tests.support.models import tiny_model
from tests.support.models_tasks import byte_level, random_model, saved
from tests.support.workers import registry_in_its_task, until
from tests.test_inference_cuda_packed import BERT_BASE, cosines, ids_of, lengths_of

pytestmark = [pytest.mark.cuda, pytest.mark.timeout(300)]

GPU = "cuda:0"


async def test_packed_vectors_through_a_worker(tmp_path: Path, figure: Callable[[str], None]) -> None:
    directory = tiny_model(tmp_path, **BERT_BASE)
    async with registry_in_its_task() as registry:
        model = await registry.load(ModelSpec("bafybase", directory), device=GPU, precision="bf16")
        assert any("packed without padding (triton)" in note for note in model.notes)
        lengths = lengths_of(400_000)
        texts = [tuple(text.tolist()) for text in np.split(ids_of(lengths), np.cumsum(lengths)[:-1])]
        alone = [(await registry.embed(model, [text])).vectors[0] for text in texts[:8]]
        together = (await registry.embed(model, texts[:1000])).vectors
        assert (1 - cosines(together[:8], np.stack(alone))).max() < 0.01  # of random weights
        spent = []
        for number in range(200):
            began = time.perf_counter()
            await registry.embed(model, [texts[number % 8]])
            spent.append(time.perf_counter() - began)
        figure(f"one text through the worker, p50: {float(np.median(spent)) * 1e3:.3f} ms")
        requests = [texts[at : at + 32] for at in range(0, len(texts), 32)]
        for _ in range(2):
            began = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                for request in requests:
                    group.create_task(registry.embed(model, request))
            seconds = time.perf_counter() - began
        (stats,) = registry.stats()
        figure(
            f"{int(lengths.sum())} tokens in requests of 32 texts through registry and worker: "
            f"{lengths.sum() / seconds / 1e6:.3f} M tokens/s; {stats.passes} passes"
        )


def llama(directory: Path, **changes: Any) -> Path:
    import transformers

    sizes: dict[str, Any] = {
        "vocab_size": 400, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3,
        "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 2048,
        "eos_token_id": None, "pad_token_id": 0, "bos_token_id": 1,
    }  # fmt: skip
    config = transformers.LlamaConfig(**sizes | changes)
    model = random_model(transformers.LlamaForCausalLM, config, spread=0.5)
    return saved(directory, model, byte_level("<pad>", "<s>", "</s>"))


async def written(registry: Registry, model: LoadedModel, prompt: str, count: int) -> Generated:
    (output,) = (await registry.infer(model, [Text(prompt)], Options(max_new_tokens=count))).outputs
    assert isinstance(output, Generated)
    return output


@pytest.mark.parametrize("precision", ["bf16", "f32"])
async def test_texts_are_written_together_in_a_worker(
    tmp_path: Path, precision: str, figure: Callable[[str], None]
) -> None:
    directory = llama(tmp_path)
    async with registry_in_its_task() as registry:
        model = await registry.load(ModelSpec("bafyllama", directory), device=GPU, precision=precision)
        prompts = [f"number {number} " * (number % 7 + 1) for number in range(24)]
        alone = [await written(registry, model, prompt, 40) for prompt in prompts[:6]]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(written(registry, model, prompt, 40)) for prompt in prompts]
        if precision == "f32":
            assert [task.result().ids for task in tasks[:6]] == [one.ids for one in alone]
        streamed = ""
        async for delta in registry.stream(model, [Text(prompts[0])], Options(max_new_tokens=40)):
            streamed += delta.text
        assert streamed == (await written(registry, model, prompts[0], 40)).text
        deltas = registry.stream(model, [Ids((5, 6, 7))], Options(max_new_tokens=1900))
        await anext(deltas)
        await deltas.aclose()
        await until(lambda: not registry.stats()[0].flying)


async def test_the_shape_of_a_small_model_through_a_worker(tmp_path: Path, figure: Callable[[str], None]) -> None:
    directory = llama(
        tmp_path, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, vocab_size=49152, tie_word_embeddings=True,
    )  # fmt: skip
    async with registry_in_its_task() as registry:
        model = await registry.load(ModelSpec("bafysmol", directory), device=GPU, precision="bf16")
        for texts in (1, 8, 64):
            began = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                for number in range(texts):
                    group.create_task(written(registry, model, f"story {number}", 200))
            figure(
                f"135M bf16 through a worker, {texts} texts: {texts * 200 / (time.perf_counter() - began):.0f} tokens/s"
            )
