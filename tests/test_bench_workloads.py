"""Every workload on a tiny model of its task, through a whole node; names, sizes, and why something is left out."""

from __future__ import annotations

import asyncio
import io
import wave
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from ipfs_accelerate_node.benchmarks import Limits, RecordShelf, read_benchmark, workload
from ipfs_accelerate_node.benchmarks.loading import fetched
from ipfs_accelerate_node.benchmarks.measure import milliseconds
from ipfs_accelerate_node.benchmarks.record import Circumstances, benchmark_record
from ipfs_accelerate_node.benchmarks.workload import DEFAULTS, QUICK, inputs, usual
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import BadRequest, Conflict, InferenceFailed, InvalidInput
from ipfs_accelerate_node.fetch.jobs import Receipt
from ipfs_accelerate_node.inference.model import TASKS, Audio, Ids, Item, Pair, Text
from ipfs_accelerate_node.inference.tasks import samples
from ipfs_accelerate_node.store.types import SourceShare
from tests.support.benchmarks import MODEL, NO_LIMITS, ROOT, STORED, examples
from tests.support.models import tiny_model
from tests.support.models_openvino import tiny_files
from tests.support.running import Running, running
from tests.test_tasks_generation import llama, whisper

pytestmark = pytest.mark.timeout(150)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    folder = tmp_path_factory.mktemp("bench")
    (folder / "cache").mkdir(mode=0o700)
    async with running(folder / "cache") as node:
        node.node.bench_limits = NO_LIMITS
        await node.node.add(tiny_model(folder / "tiny"), name="tiny")
        await node.node.add(llama(folder / "llama"), name="llama")
        await node.node.add(whisper(folder / "whisper"), name="whisper")
        tiny_files(folder / "vit", "vit")
        await node.node.add(folder / "vit", name="vit")
        yield node


async def measured(here: Running, ref: str, *names: str, **wanted: Any) -> dict[str, Any]:
    body = {"ref": ref, "device": "cpu", "workloads": names, "quick": True, **wanted}
    reply = await here.admin("POST", "/api/benchmarks", json=body)
    assert reply.status == 200, reply.body
    found: dict[str, Any] = reply.json
    return found


@pytest.mark.asyncio(loop_scope="module")
async def test_encoders_by_batch_and_length_and_loading_by_phase(here: Running) -> None:
    found = await measured(here, "tiny", "load", "encode-1x8", "encode-3x16", "encode-1x512")
    load, short, long = found["results"]
    assert [result["record"]["workload"]["name"] for result in (load, short, long)] == [
        "load",
        "encode-1x8",
        "encode-3x16",
    ]
    assert load["record"]["phases_ns"].keys() <= {"loading", "converting", "warming"}
    assert load["figures"]["phases_ms"]["loading"] <= load["figures"]["p95_ms"]
    assert load["record"]["unit"] == "loads"
    record = long["record"]
    assert record["workload"].items() >= {"batch": 3, "length": 16, "seed": 1, "warmup": 1}.items()
    assert record["work"] == [record["workload"]["tokens"]] * len(record["samples_ns"])
    assert (record["unit"], record["device"], record["engine"], record["precision"]) == (
        "tokens",
        "cpu",
        "torch",
        "f32",
    )
    assert record["agreement"] == {"min_ppm": 1_000_000, "mean_ppm": 1_000_000}
    assert record["memory_peak_bytes"] > 10_000_000
    assert record["machine"]["threads"] >= 1
    assert found["left_out"] == [
        {
            "device": "cpu", "workload": "encode-1x512", "code": "too_long",
            "reason": "encode-1x512 has 512 tokens, the model takes 40",
        }
    ]  # fmt: skip
    assert here.node.registry.loaded() == []
    listing = await asyncio.to_thread(RecordShelf(here.node.config.cache).listing)
    assert {str(opened.record_cid) for opened in listing.records} >= {load["record_cid"], long["record_cid"]}
    assert all(read_benchmark(opened.record).seq for opened in listing.records)


@pytest.mark.asyncio(loop_scope="module")
async def test_generation_to_the_first_token_and_after_it(here: Running) -> None:
    prompt, generated = (await measured(here, "llama", "pp64", "tg16"))["results"]
    assert prompt["record"]["work"][0] == 64
    assert prompt["figures"]["ttft_ms"] == prompt["figures"]["p50_ms"]
    record = generated["record"]
    assert record["workload"]["new_tokens"] == 16
    assert 0 <= record["workload"]["prompt"] < 8
    assert all(1 < made <= 16 for made in record["work"])
    assert len(record["phases_ns"]["first_token"]) == len(record["samples_ns"])
    assert 0 < generated["figures"]["ttft_ms"]
    assert generated["figures"]["tpot_ms"] is not None
    assert generated["figures"]["unit"] == "tokens/s"


@pytest.mark.asyncio(loop_scope="module")
async def test_pictures_and_speech(here: Running) -> None:
    (pictures,) = (await measured(here, "vit", "images-2"))["results"]
    assert (pictures["record"]["work"][0], pictures["figures"]["unit"]) == (2, "images/s")
    (speech,) = (await measured(here, "whisper", "rtf-4"))["results"]
    assert speech["record"]["work"][0] == 4000
    assert speech["figures"]["rtf"] == pytest.approx(speech["figures"]["p50_ms"] / 4000, rel=0.5)
    assert speech["figures"]["unit"] == "s of audio/s"


@pytest.mark.asyncio(loop_scope="module")
async def test_a_busy_machine_is_refused_or_marked(here: Running) -> None:
    here.node.bench_limits = Limits(spread=-1.0)
    try:
        body = {"ref": "tiny", "device": "cpu", "workloads": ["encode-1x8"], "quick": True}
        reply = await here.admin("POST", "/api/benchmarks", json=body)
        assert (reply.status, reply.json["code"], reply.json["exit_code"]) == (503, "machine_busy", 5)
        assert reply.json["workload"] == "encode-1x8"
        assert len(reply.json["samples_ns"]) >= 3
        assert {"cores", "load_before", "load_during"} <= set(reply.json)
        (kept,) = (await measured(here, "tiny", "encode-1x8", even_if_busy=True))["results"]
    finally:
        here.node.bench_limits = NO_LIMITS
    assert kept["record"]["state"]["busy"] is True
    assert "machine busy" in kept["note"]
    assert not kept["published"]


@pytest.mark.asyncio(loop_scope="module")
async def test_two_at_once_would_measure_each_other(here: Running) -> None:
    body = {"ref": "tiny", "device": "cpu", "workloads": ["encode-1x8"], "quick": True}
    replies = await asyncio.gather(*(here.admin("POST", "/api/benchmarks", json=body) for _ in range(2)))
    assert sorted(reply.status for reply in replies) == [200, 409]
    assert [reply.json["code"] for reply in replies if reply.status == 409] == ["bench_running"]


@pytest.mark.asyncio(loop_scope="module")
async def test_what_is_loaded_stays_and_is_not_measured_loading(here: Running) -> None:
    loaded = await here.node.serving.load("tiny", device="cpu")
    found = await measured(here, "tiny", "load", "encode-1x8")
    assert [left["code"] for left in found["left_out"]] == ["loaded_already"]
    assert [result["record"]["workload"]["name"] for result in found["results"]] == ["encode-1x8"]
    assert [model.pid for model in here.node.registry.loaded()] == [loaded.pid]
    await here.node.serving.unload("tiny")


@pytest.mark.asyncio(loop_scope="module")
async def test_every_device_is_compared_with_the_reference(here: Running) -> None:
    found = await measured(here, "tiny", "encode-1x8", device="all", precision="f32", quick=False)
    records = {result["record"]["device"]: result["record"] for result in found["results"]}
    available = {one.device for one in await here.node.accelerators() if one.available}
    assert set(records) | {left["device"] for left in found["left_out"]} == available
    assert (records["cpu"]["engine"], records["openvino:CPU"]["engine"]) == ("torch", "openvino")
    assert all(999_900 <= record["agreement"]["min_ppm"] <= 1_000_000 for record in records.values())
    assert all(record["device_name"] for record in records.values())
    assert "moved" in records["openvino:CPU"]["agreement"]
    assert here.node.registry.loaded() == []


@pytest.mark.asyncio(loop_scope="module")
async def test_what_cannot_be_measured_says_why(here: Running) -> None:
    for body, status, code in (
        ({"ref": "mock:embedding"}, 400, "mock_not_measurable"),
        ({"ref": "mock:embedding", "publish": True}, 400, "mock_not_measurable"),
        ({"ref": "nobody"}, 404, "model_not_found"),
        ({"ref": "tiny", "workloads": ["sleep"]}, 422, "invalid_input"),
        ({"ref": "tiny", "workloads": ["encode-9999x16"]}, 422, "invalid_input"),
        ({"ref": "tiny", "device": "tpu"}, 422, "device_unavailable"),
        ({"ref": "tiny", "device": "cuda:7", "quick": True}, 422, "device_unavailable"),
        ({"ref": "tiny", "workloads": ["fetch"]}, 400, "nothing_fetched"),
        ({"ref": "tiny", "device": "cpu", "workloads": ["pp16"]}, 422, "not_its_task"),
        ({"ref": "tiny", "device": "cpu", "workloads": ["images-2"]}, 422, "not_its_task"),
        ({"ref": "tiny", "device": "cpu", "workloads": ["rtf-3"]}, 422, "not_its_task"),
    ):
        reply = await here.admin("POST", "/api/benchmarks", json=body)
        assert reply.status == status, (body, reply.body)
        assert reply.json["code"] == code, body
    assert here.node.registry.loaded() == []


@pytest.mark.asyncio(loop_scope="module")
async def test_a_private_model_is_not_spoken_of(here: Running) -> None:
    root = here.node.find("vit").root
    (kept,) = (await measured(here, "vit", "images-1"))["results"]
    await asyncio.to_thread(here.node.store.set_public, root, False)
    for body in ({"ref": "vit", "publish": True}, {"ref": str(root), "publish": True}):
        reply = await here.admin("POST", "/api/benchmarks", json=body)
        assert (reply.status, reply.json["code"]) == (409, "private_model")
    with pytest.raises(Conflict):
        here.node.check_public(root)
    await asyncio.to_thread(here.node.store.set_public, root, True)
    here.node.check_public(Cid.parse(kept["record"]["model"]))


# -- names and inputs


@pytest.mark.parametrize("name", ["encode-0x8", "encode-1x2", "pair-1x8", "tg1", "pp0", "rtf-0", "rtf-601", "images-0",
                                  "encode-8x128 ", "../x", "", "ENCODE-1x8", "x" * 500])  # fmt: skip
def test_what_is_no_workload(name: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        workload(name)
    assert caught.value.detail["param"] == "workload"
    assert len(str(caught.value)) < 300


def test_every_task_has_usual_workloads() -> None:
    assert set(DEFAULTS) == set(QUICK) == set(TASKS)
    for task in TASKS:
        for quick in (False, True):
            found = usual(task, quick=quick)
            assert found
            assert all(workload(one.name) == one or quick for one in found)
        assert set(QUICK[task]) - {"tg32"} <= set(DEFAULTS[task])


async def test_inputs_are_the_same_every_time() -> None:
    for name, task, kind in (
        ("encode-4x32", "embedding", Text),
        ("pair-2x32", "rerank", Pair),
        ("pp16", "text-generation", Ids),
        ("examples-2", "fill-mask", Text),
    ):
        model = replace(MODEL, task=task, vocab_size=100)
        one, two = [await inputs(workload(name), model, examples) for _ in range(2)]
        assert one == two
        assert all(isinstance(item, kind) for item in one)
    model = replace(MODEL, task="text-generation", vocab_size=100)
    other = await inputs(workload("tg8"), model, examples, attempt=1)
    assert other != await inputs(workload("tg8"), model, examples)


async def test_sound_is_as_long_as_its_name_says() -> None:
    async def clips(count: int) -> list[Item]:
        return [Audio(samples.sound(number)) for number in range(count)]

    model = replace(MODEL, task="automatic-speech-recognition")
    (sound,) = await inputs(workload("rtf-10"), model, clips)
    assert isinstance(sound, Audio)
    assert milliseconds(sound) == 10_000
    with wave.open(io.BytesIO(sound.data)) as file:
        assert file.getframerate() == 16_000
    with pytest.raises(InferenceFailed):
        await inputs(workload("rtf-10"), model, examples)


# -- fetch


@pytest.mark.asyncio(loop_scope="module")
async def test_a_fetch_from_another_node_is_measured(here: Running, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o700)
    root = str(here.node.find("tiny").root)
    async with running(tmp_path / "cache") as other:
        job = (await other.admin("POST", "/api/pins", json={"ref": root, "source": here.url})).json
        await other.admin("GET", f"/api/pins/{job['id']}/events")  # ends with the job
        (result,) = (await measured(other, root, "fetch"))["results"]
        assert other.node.registry.loaded() == []
    record = result["record"]
    assert record["work"][0] > 1000
    (share,) = record["sources"]
    assert share["kind"] == "gateway"  # what a URL is taken for until it says more
    assert share["bytes"] >= record["work"][0]  # of the blocks of directories too
    assert result["figures"]["unit"] == "bytes/s"
    assert "127.0.0.1" not in str(record)


RECEIPT = Receipt(
    root=str(ROOT), name=None, path="/somewhere", bytes_total=100, bytes_fetched=90, bytes_copied=10, seconds=0.5,
    sources=(SourceShare("http://192.0.2.7:8090", "peer", 60, 3, 1, 0.25), SourceShare("kubo", "kubo", 30, 2, 0)),
    seeded=False, seed_note=None, announced=False, reference=str(ROOT),
)  # fmt: skip


def test_a_fetch_is_told_by_its_receipt() -> None:
    found = fetched(RECEIPT, str(ROOT))
    around = Circumstances(STORED, 2, sources=RECEIPT.sources)
    record = benchmark_record(workload("fetch"), found, around, created=1, seq=1)
    read = read_benchmark(record)
    assert (read.engine, read.device, read.unit) == ("fetch", "network", "bytes")
    assert (read.samples_ns, read.work) == ((500_000_000,), (90,))
    assert read.parameters.items() >= {"sources": 2, "requests": 5, "rejected": 1, "copied_bytes": 10}.items()
    assert record["sources"] == [
        {"kind": "peer", "bytes": 60, "requests": 3, "rejected": 1, "ms": 250},
        {"kind": "kubo", "bytes": 30, "requests": 2, "rejected": 0, "ms": 0},
    ]
    assert "192.0.2.7" not in str(record)


@pytest.mark.parametrize("receipt", [None, replace(RECEIPT, bytes_fetched=0), replace(RECEIPT, root=str(Cid.of(b"x")))])
def test_what_was_here_was_not_fetched(receipt: Receipt | None) -> None:
    with pytest.raises(BadRequest) as caught:
        fetched(receipt, str(ROOT))
    assert caught.value.code == "nothing_fetched"
