"""Many requests to one model at once: their rows share passes, and each caller gets its own answer, once."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from ipfs_accelerate_node.errors import InferenceFailed, InvalidInput, NodeError, Overloaded, Unavailable
from ipfs_accelerate_node.inference import lanes, wire
from ipfs_accelerate_node.inference.intake import Intake, Ready
from ipfs_accelerate_node.inference.jobs import Job
from ipfs_accelerate_node.inference.lanes import Lanes
from ipfs_accelerate_node.inference.model import Embeddings, LoadedModel, ModelSpec, ModelStats, Options, Text
from ipfs_accelerate_node.inference.registry import Registry
from ipfs_accelerate_node.inference.session import Array, Session
from ipfs_accelerate_node.inference.tasks.embedding import TextEmbedding
from ipfs_accelerate_node.inference.tasks.text_graphs import TextGraph
from ipfs_accelerate_node.inference.tasks.texts import TextTokens
from ipfs_accelerate_node.inference.tasks.tokenizer_files import read_tokenizer
from tests.support.models import WORDS, tiny_model
from tests.support.sample import SAMPLE
from tests.support.workers import at_work, registry_in_its_task, until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(90)]

NOUNS = WORDS[-10:]


def texts(count: int, *, seed: int = 0, most: int = 30) -> list[str]:
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(NOUNS, size=draw.integers(1, most))) + f" {number}" for number in range(count)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def registry() -> AsyncIterator[Registry]:
    async with registry_in_its_task(silence_s=20.0, steady_s=0.0) as registry:
        yield registry


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest_asyncio.fixture(loop_scope="module")
async def model(registry: Registry, directory: Path) -> LoadedModel:
    return await registry.load(ModelSpec("bafytiny", directory, ("tiny",), source="cid"), device="cpu")


def stats(registry: Registry) -> ModelStats:
    return next(found for found in registry.stats() if found.root == "bafytiny")


def at_rest(registry: Registry) -> bool:
    found = stats(registry)
    return (found.waiting, found.flying, found.waiting_tokens) == (0, 0, 0)


async def test_rows_of_many_requests_equal_single_ones(registry: Registry, model: LoadedModel) -> None:
    inputs = texts(240)
    alone = [(await registry.embed(model, [text])).vectors[0] for text in inputs[:24]]
    before = stats(registry)
    requests = [inputs[at : at + 1 + at % 5] for at in range(0, 230)]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(registry.embed(model, request)) for request in requests]
    after = stats(registry)
    for at, task in enumerate(tasks[:20]):
        for row, vector in enumerate(task.result().vectors):
            np.testing.assert_allclose(vector, alone[at + row], atol=1e-5)
    rows = sum(map(len, requests))
    assert after.rows - before.rows == rows
    assert after.passes - before.passes < rows  # how many share one is a matter of who comes when
    assert after.tokens - before.tokens == sum(task.result().prompt_tokens for task in tasks)
    assert at_rest(registry)


async def test_where_the_time_went(registry: Registry, model: LoadedModel) -> None:
    timing = (await registry.embed(model, ["the cat"])).timing
    assert timing.tokenize_s > 0
    assert timing.compute_s > 0
    assert timing.queue_s >= 0


async def test_a_short_request_is_not_behind_a_large_one(registry: Registry, model: LoadedModel) -> None:
    large = asyncio.create_task(registry.embed(model, texts(4000, seed=1)))
    await at_work(registry, "tiny")
    short = await registry.embed(model, ["the cat"])
    assert short.vectors.shape == (1, 16)
    assert not large.done()
    assert len((await large).vectors) == 4000


async def test_clients_that_vanish_free_everything(registry: Registry, model: LoadedModel) -> None:
    """1,000 at once: those that are not refused are dropped, also those that the worker has."""
    before = stats(registry)
    asked = [asyncio.create_task(registry.embed(model, texts(60, seed=seed))) for seed in range(1000)]
    await at_work(registry, "tiny")
    for task in asked:
        task.cancel()
    began = time.monotonic()
    done, _ = await asyncio.wait(asked)
    await until(lambda: at_rest(registry))
    assert time.monotonic() - began < 2.0
    outcomes = [None if task.cancelled() else task.exception() for task in done]
    assert all(outcome is None or isinstance(outcome, Overloaded) for outcome in outcomes)
    assert (await registry.embed(model, ["the cat"])).model.pid == model.pid  # and passes so far are told with it
    passes = stats(registry).passes
    await registry.embed(model, ["the mat"])
    assert stats(registry).passes == passes + 1
    vanished = sum(task.cancelled() for task in done)
    assert vanished / 2 < stats(registry).dropped - before.dropped <= vanished  # the others were just answered
    assert stats(registry).rows - before.rows < 60 * vanished / 2


async def outcome_of(call: Any) -> Embeddings | NodeError:
    try:
        found: Embeddings = await call
    except NodeError as exc:
        return exc
    return found


async def test_a_worker_that_is_killed_under_load(registry: Registry, model: LoadedModel) -> None:
    """Only what was at the device fails; the others are computed by the successor."""
    inputs = texts(200, seed=5)
    asked = [asyncio.create_task(outcome_of(registry.embed(model, [text] * 20))) for text in inputs]
    struck = await at_work(registry, "tiny")
    os.kill(model.pid or 0, signal.SIGKILL)
    found = [await task for task in asked]
    failed = [one for one in found if isinstance(one, NodeError)]
    assert all(isinstance(one, Unavailable) and one.code == "worker_crashed" for one in failed)
    assert len(failed) <= len(struck) + 40
    assert len(failed) < 100
    for text, one in zip(inputs, found, strict=True):
        if isinstance(one, Embeddings):
            expected = (await registry.embed(model, [text])).vectors[0] if text in inputs[:3] else one.vectors[0]
            np.testing.assert_allclose(one.vectors, np.tile(expected, (20, 1)), atol=1e-5)
    assert at_rest(registry)


async def test_a_deadline(registry: Registry, model: LoadedModel) -> None:
    large = asyncio.create_task(registry.embed(model, texts(4000, seed=7)))
    await at_work(registry, "tiny")
    with pytest.raises(Unavailable) as caught:
        await registry.embed(model, ["too late"], deadline_s=1e-4)
    assert caught.value.code in ("deadline_exceeded", "overloaded")
    large.cancel()
    await until(lambda: at_rest(registry))
    assert (await registry.embed(model, ["the cat"], deadline_s=60)).vectors.shape == (1, 16)


async def test_identical_requests_share_one_computation(registry: Registry, model: LoadedModel) -> None:
    before = stats(registry)
    inputs = texts(200, seed=9)
    asked = [asyncio.create_task(registry.embed(model, inputs)) for _ in range(5)]
    other = asyncio.create_task(registry.embed(model, inputs, dimensions=4))
    await at_work(registry, "tiny")
    asked[0].cancel()  # the first who asked leaves; the others still get theirs
    vectors = [(await task).vectors for task in asked[1:]]
    for found in vectors:
        np.testing.assert_array_equal(found, vectors[0])
    assert (await other).vectors.shape == (200, 4)
    after = stats(registry)
    assert (after.shared - before.shared, after.rows - before.rows) == (4, 400)


async def test_what_would_wait_too_long_is_refused_with_a_time(
    registry: Registry, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "ALWAYS_QUEUED", 1)
    await registry.embed(model, texts(300, seed=10))  # its pace is known now
    assert stats(registry).tokens_per_s > 0
    asked = [asyncio.create_task(outcome_of(registry.embed(model, texts(2000, seed=seed)))) for seed in range(40)]
    began = time.monotonic()
    await until(lambda: any(task.done() for task in asked))
    assert time.monotonic() - began < 2.0
    refused = [one for task in asked if task.done() and isinstance(one := task.result(), Overloaded)]
    assert refused
    assert all(one.retry_after_s is not None and one.retry_after_s > 1.0 for one in refused)
    for task in asked:
        task.cancel()
    await asyncio.wait(asked)
    await until(lambda: at_rest(registry))


# -- the worker's side, with an engine under the test's control


class Fragile:
    """Vectors of ones; fails in the passes that are named, and waits where it is told to."""

    device, engine, precision = "cpu", "torch", "f32"
    versions: dict[str, str] = {}  # noqa: RUF012
    notes: tuple[str, ...] = ()

    def __init__(self, *failing: int) -> None:
        self.failing = failing
        self.sizes: list[int] = []

    def run(self, graph: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.sizes.append(len(inputs["input_ids"]))
        if len(self.sizes) - 1 in self.failing:
            raise RuntimeError("the device is on fire")
        vectors = inputs["input_ids"][:, 1:3].astype(np.float32)
        return {"vectors": vectors, "pooled": vectors}

    def decoder(self) -> Any:
        raise AssertionError

    def memory_bytes(self) -> int:
        return 0


def intake(directory: Path, engine: Fragile) -> tuple[Intake, Session, list[wire.Reply]]:
    tokenizer = read_tokenizer(directory, model_type="bert")
    tokens = TextTokens(tokenizer, max_tokens=40, vocab_size=len(WORDS))
    processing = TextEmbedding(TextGraph("vectors", tokens, 0), {}, "")
    session = Session("embedding", processing, engine)  # type: ignore[arg-type]  # it has no decoder
    sent: list[wire.Reply] = []
    found = Intake(lambda reply, payload: sent.append(reply))
    found.open(session)
    return found, session, sent


def infer(job: int, inputs: Sequence[str], **how: Any) -> wire.Infer:
    return wire.Infer(job, [Text(text) for text in inputs], Options(), since=time.monotonic(), **how)


def answered(found: Intake, session: Session) -> list[wire.Outputs | wire.Failure | wire.Dropped]:
    ready = found.next()
    assert isinstance(ready, Ready)
    return found.finish(found.begin(ready, session))[0].answers


async def test_an_engine_that_fails_fails_the_jobs_of_its_pass_only(directory: Path) -> None:
    engine = Fragile(1)
    desk, session, sent = intake(directory, engine)
    desk.put(infer(1, ["the cat"]))
    assert [type(answer) for answer in answered(desk, session)] == [wire.Outputs]
    desk.put(infer(2, ["the cat", "one two three one two three one two three one two three one two three"]))
    desk.put(infer(3, ["the mat"]))
    (failed, *others) = answered(desk, session)
    assert isinstance(failed, wire.Failure)
    assert isinstance(failed.error(), InferenceFailed)
    desk.put(infer(4, ["the mat"]))
    assert [(type(a), a.job) for a in answered(desk, session)] == [(wire.Outputs, 4)]
    assert {failed.job, *(other.job for other in others)} == {2, 3}
    assert not sent


async def test_wrong_input_is_answered_before_the_device(directory: Path) -> None:
    desk, session, sent = intake(directory, Fragile())
    desk.put(infer(1, ["the cat", ""]))
    desk.put(infer(2, ["the cat"]))
    (refused,) = sent
    assert isinstance(refused, wire.Failure)
    assert refused.job == 1
    assert isinstance(refused.error(), InvalidInput)
    assert [answer.job for answer in answered(desk, session)] == [2]


async def test_cancelled_and_expired_rows_never_reach_the_device(directory: Path) -> None:
    engine = Fragile()
    desk, session, sent = intake(directory, engine)
    desk.put(infer(1, ["the cat"] * 3))
    desk.put(infer(2, ["the cat"], expires=time.monotonic() - 1))
    desk.put(infer(3, ["the cat"]))
    desk.cancel(1)
    desk.cancel(99)
    assert [answer.job for answer in answered(desk, session)] == [3]
    assert sent == [wire.Dropped(1), wire.Dropped(2, expired=True)]
    assert engine.sizes == [1]


async def test_a_job_that_is_cancelled_while_it_is_computed_is_answered_once(directory: Path) -> None:
    desk, session, sent = intake(directory, Fragile())
    desk.put(infer(1, ["the cat"]))
    desk.put(infer(2, ["the mat"]))
    ready = desk.next()
    assert isinstance(ready, Ready)
    desk.cancel(1)
    answers, _ = desk.finish(desk.begin(ready, session))
    assert [answer.job for answer in answers.answers] == [2]
    assert sent == [wire.Dropped(1)]


async def test_long_requests_are_tokenized_by_another_thread(directory: Path) -> None:
    desk, session, sent = intake(directory, Fragile())
    threading.Thread(target=desk.tokenize, daemon=True).start()
    desk.put(infer(1, ["the cat sat on the mat"] * 400))
    found: list[int | None] = []
    while not found:
        found = [answer.job for answer in answered(desk, session)]
    assert (found, sent) == ([1], [])


# -- what the worker is given


def job(tokens: int) -> Job:
    made = Job.infer([Text("x" * 4 * (tokens - 2))], Options())
    assert made.tokens == tokens
    return made


async def test_large_and_small_requests_have_windows_of_their_own() -> None:
    line = Lanes(wait_s=None)
    large, small = [job(20_000) for _ in range(3)], [job(100) for _ in range(400)]
    for one in (*large, *small):
        line.put(one)
    given = []
    while (one_more := line.next()) is not None:
        given.append(one_more)
    assert [one for one in given if one in large] == large[:1]
    assert len(given) - 1 == lanes.WINDOW_TOKENS // 100
    assert line.landed(large[0].number) is large[0]
    assert line.next() is large[1]
    line.again(large[1])
    assert line.next() is large[1]
    assert line.remove(large[2])
    assert not line.remove(large[2])
    for one in (large[1], *given[:-1]):
        line.landed(one.number)
    line.drain()
    for number in list(line.flying):
        line.landed(number)
    assert (line.tokens, line.queued, line.flying) == (0, 0, {})


# -- the sample model on OpenVINO


@pytest.mark.model
@pytest.mark.timeout(240)
@pytest.mark.parametrize("precision", ["f32", "bf16"])
async def test_the_sample_model_alone_and_among_others(tmp_path: Path, precision: str) -> None:
    inputs = texts(96, seed=3, most=120)
    async with registry_in_its_task(cache=tmp_path, queue_wait_s=60.0) as registry:
        spec = ModelSpec("bafysample", SAMPLE, ("sample",))
        model = await registry.load(spec, device="openvino:CPU", precision=precision)
        alone = [(await registry.embed(model, [text])).vectors[0] for text in inputs[:12]]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(registry.embed(model, inputs[at : at + 4])) for at in range(0, 96, 4)]
        together = np.concatenate([task.result().vectors for task in tasks])
    for one, other in zip(alone, together, strict=False):
        if precision == "f32":
            np.testing.assert_allclose(other, one, atol=1e-5)
        assert float(one @ other) >= 0.9999
