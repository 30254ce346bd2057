"""Converted models on OpenVINO's CPU device, beside the same ones on torch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino
import openvino.opset13
import pytest
import pytest_asyncio
from numpy.typing import NDArray

from ipfs_accelerate_node.errors import BadContent, DeviceUnavailable, InferenceFailed, ModelUnsupported
from ipfs_accelerate_node.inference.model import Generated, Options, Text
from ipfs_accelerate_node.inference.model_files import ModelFiles, inspect
from ipfs_accelerate_node.inference.openvino import artefacts
from ipfs_accelerate_node.inference.openvino.decoder import positions
from ipfs_accelerate_node.inference.openvino.engine import OpenVinoEngine, load
from ipfs_accelerate_node.inference.process import worker_environment
from ipfs_accelerate_node.inference.session import Engine
from ipfs_accelerate_node.inference.tasks import processing_for
from tests.support.models import tiny_model
from tests.support.models_openvino import tiny_files
from tests.support.sample import CLIP, SAMPLE, T5

from ipfs_accelerate_node.inference.torch import engine as torch_engine  # isort: skip - after torch's own warnings

pytestmark = [pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="module")]

WORDS = (
    "apple table window orchard granite thimble lantern harbour velvet whisper basket candle dragon engine forest "
    "garden hammer island jacket kettle ladder"
).split()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


async def converted(directory: Path, task: str, kept: Path) -> tuple[ModelFiles, Path]:
    files = inspect(directory, available_bytes=1 << 33, task=task)
    return files, await artefacts.ensure(directory, f"root of {directory.name}", task, "f32", kept)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bert(tmp_path_factory: pytest.TempPathFactory, kept: Path) -> tuple[ModelFiles, Path]:
    return await converted(tiny_model(tmp_path_factory.mktemp("models") / "bert"), "embedding", kept)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def t5(kept: Path) -> tuple[ModelFiles, Path]:
    return await converted(T5, "text2text-generation", kept)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def clip(kept: Path) -> tuple[ModelFiles, Path]:
    return await converted(CLIP, "embedding", kept)


def on_openvino(found: tuple[ModelFiles, Path], task: str, precision: str = "f32") -> OpenVinoEngine:
    files, artefact = found
    return load(artefact, files, task, device="openvino:CPU", precision=precision, threads=1)


def on_torch(found: tuple[ModelFiles, Path], task: str) -> Engine:
    return torch_engine.load(found[0], task, device="cpu", precision="f32")


def least_cosine(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    a, b = one.astype(np.float64), other.astype(np.float64)
    return float(((a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def has_bf16() -> bool:
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def computes(precision: str) -> bool:
    """Asked in another way than the engine does: a device takes the nearest that it has."""
    x = openvino.opset13.parameter([1, 1], openvino.Type.f32)
    model = openvino.Model([openvino.opset13.relu(x)], [x], "one")
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision})
    return bool(compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == precision)


def rows(vocab: int, shape: tuple[int, int]) -> dict[str, NDArray[np.int64]]:
    """Random tokens; each row has one padding token more than the one before, as far as that goes."""
    ids = np.random.default_rng(3).integers(5, vocab, shape)
    mask = (np.arange(shape[1])[None, :] < shape[1] - np.minimum(np.arange(shape[0]), shape[1] - 1)[:, None]) * 1
    return {"input_ids": ids * mask, "attention_mask": mask.astype(np.int64)}


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (5, 3), (33, 9)])
async def test_vectors(bert: tuple[ModelFiles, Path], shape: tuple[int, int]) -> None:
    inputs = rows(bert[0].vocab_size, shape)
    ours = on_openvino(bert, "embedding").run("vectors", inputs)
    theirs = on_torch(bert, "embedding").run("vectors", inputs)
    assert ours.keys() == theirs.keys() == {"vectors", "pooled"}
    for name, expected in theirs.items():
        assert ours[name].dtype == np.float32
        np.testing.assert_allclose(ours[name], expected, atol=2e-5)


async def test_vectors_of_tokens_cost_nothing_until_they_are_asked_for(bert: tuple[ModelFiles, Path]) -> None:
    engine, inputs = on_openvino(bert, "embedding"), rows(bert[0].vocab_size, (5, 9))
    assert {port.get_any_name() for port in engine.compiled["vectors"].outputs} == {"vectors", "pooled"}
    before = engine.run("vectors", inputs)
    (hidden,) = engine.run("hidden", inputs).values()
    np.testing.assert_allclose(hidden, on_torch(bert, "embedding").run("hidden", inputs)["hidden"], atol=1e-5)
    assert not hidden[inputs["attention_mask"] == 0].any()
    for name, values in engine.run("vectors", inputs).items():
        np.testing.assert_array_equal(values, before[name])


async def test_precision_is_read_back(bert: tuple[ModelFiles, Path]) -> None:
    exact = on_openvino(bert, "embedding")
    assert (exact.device, exact.engine, exact.precision) == ("openvino:CPU", "openvino", "f32")
    assert exact.versions["openvino"]
    assert exact.memory_bytes() == 0
    inputs = rows(bert[0].vocab_size, (7, 12))
    expected = exact.run("vectors", inputs)["vectors"]
    for precision, able in (("bf16", has_bf16()), ("f16", computes("f16"))):
        if not able:
            with pytest.raises(DeviceUnavailable, match=f"when it is asked for {precision}"):
                on_openvino(bert, "embedding", precision)
            continue
        narrow = on_openvino(bert, "embedding", precision)
        assert narrow.precision == precision
        assert 0.999 <= least_cosine(narrow.run("vectors", inputs)["vectors"], expected) < 1.0


async def test_a_device_that_is_not_there(bert: tuple[ModelFiles, Path]) -> None:
    files, artefact = bert
    for device in ("openvino:GPU.7", "openvino:NPU", "openvino:TPU"):
        with pytest.raises(DeviceUnavailable, match=r"is not available.*it has: openvino:CPU") as caught:
            load(artefact, files, "embedding", device=device, precision="f32")
        assert caught.value.detail["device"] == device


async def test_an_artefact_of_another_task_or_precision(bert: tuple[ModelFiles, Path]) -> None:
    files, artefact = bert
    for task, precision in (("embedding", "int8"), ("fill-mask", "f32")):
        with pytest.raises(BadContent) as caught:
            load(artefact, files, task, device="openvino:CPU", precision=precision)
        assert caught.value.code == "bad_artefact"


async def test_what_an_engine_has_not(bert: tuple[ModelFiles, Path]) -> None:
    engine = on_openvino(bert, "embedding")
    for ask in (lambda: engine.run("logits", {}), lambda: engine.run("decoder", {}), engine.decoder):
        with pytest.raises(ModelUnsupported):
            ask()
    with pytest.raises(InferenceFailed, match="attention_mask"):
        engine.run("vectors", {"input_ids": np.ones((1, 2), dtype=np.int64)})
    with pytest.raises(InferenceFailed, match="41 tokens, the model has positions for 40"):
        engine.run("vectors", rows(bert[0].vocab_size, (1, 41)))
    with pytest.raises(InferenceFailed, match="token id"):
        engine.run("vectors", rows(bert[0].vocab_size + 1000, (3, 30)))
    with pytest.raises(InferenceFailed, match="mask"):
        engine.run("vectors", rows(bert[0].vocab_size, (2, 5)) | {"attention_mask": np.ones((3, 5), dtype=np.int64)})
    assert engine.run("vectors", rows(bert[0].vocab_size, (2, 5)))["vectors"].shape == (2, 16)


async def test_two_towers(clip: tuple[ModelFiles, Path]) -> None:
    ours, theirs = on_openvino(clip, "zero-shot-image-classification"), on_torch(clip, "embedding")
    ids = np.array([[0, 300, 301, 1, 1], [0, 40, 41, 42, 1]])
    text = {"input_ids": ids, "attention_mask": np.array([[1, 1, 1, 1, 0], [1] * 5])}
    pixels = {"pixel_values": np.random.default_rng(0).normal(size=(3, 3, 64, 64)).astype(np.float32)}
    for graph, inputs in (("text", text), ("image", pixels)):
        assert least_cosine(ours.run(graph, inputs)["embeds"], theirs.run(graph, inputs)["embeds"]) >= 0.99999
    with pytest.raises(InferenceFailed, match="OpenVINO failed in graph 'image'"):
        ours.run("image", {"pixel_values": pixels["pixel_values"][:, :, :60]})
    np.testing.assert_allclose(ours.run("scale", {})["scale"], theirs.run("scale", {})["scale"], rtol=1e-6)
    if has_bf16():
        narrow = on_openvino(clip, "embedding", "bf16")
        for graph, inputs in (("text", text), ("image", pixels)):
            assert least_cosine(narrow.run(graph, inputs)["embeds"], theirs.run(graph, inputs)["embeds"]) >= 0.999


async def test_twenty_words_are_written_alike(t5: tuple[ModelFiles, Path]) -> None:
    processing = processing_for(t5[0], "text2text-generation")
    items, options = [Text(word) for word in WORDS], Options(max_new_tokens=24)

    def written(engine: Engine, together: bool) -> list[tuple[int, ...]]:
        batches = [items] if together else [[item] for item in items]
        outputs = [one for batch in batches for one in processing.infer(engine, batch, options, lambda: None)]
        return [output.ids for output in outputs if isinstance(output, Generated)]

    ours = on_openvino(t5, "text2text-generation")
    expected = written(on_torch(t5, "text2text-generation"), together=True)
    assert written(ours, together=True) == written(ours, together=False) == expected
    assert len({*expected}) == len(WORDS) >= 20


async def test_t5_in_bf16(t5: tuple[ModelFiles, Path]) -> None:
    """A sentence, which its encoder has never seen the like of, and a word."""
    if not has_bf16():
        with pytest.raises(DeviceUnavailable):
            on_openvino(t5, "text2text-generation", "bf16")
        return
    narrow = on_openvino(t5, "text2text-generation", "bf16")
    assert (narrow.precision, narrow.notes) == ("bf16", ("graph encoder computes in f32",))
    processing = processing_for(t5[0], "text2text-generation")
    for item in (Text("The old bridge was closed to lorries after engineers found cracks in it."), Text("table")):
        primaries = [processing.primary(one, item) for one in (narrow, on_torch(t5, "text2text-generation"))]
        assert least_cosine(*[array.reshape(1, -1) for array in primaries]) >= 0.9995


def encoded(engine: Engine, vocab: int) -> dict[str, NDArray[np.float32]]:
    inputs = rows(vocab, (3, 6))
    return {**engine.run("encoder", inputs), "attention_mask": inputs["attention_mask"]}


async def test_rows_go_on_from_others(t5: tuple[ModelFiles, Path]) -> None:
    engines = on_openvino(t5, "text2text-generation"), on_torch(t5, "text2text-generation")
    steps: list[list[NDArray[np.float32]]] = []
    for engine in engines:
        decoder = engine.decoder()
        decoder.start(encoded(engine, t5[0].vocab_size))
        ids, logits = np.array([[0], [0], [0]]), []
        logits.append(decoder.step(ids, np.ones((3, 1), dtype=np.int64)))
        for length, order in ((2, [2, 0, 1]), (3, [1, 1]), (4, [0, 1, 1, 0])):  # reordered, fewer, more
            ids = np.arange(5, 5 + len(order))[:, None]
            mask = np.ones((len(order), length), dtype=np.int64)
            logits.append(decoder.step(ids, mask, beam=np.array(order)))
        steps.append(logits)
    for ours, theirs in zip(*steps, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=2e-3)


async def test_decoders_do_not_share_what_they_read(t5: tuple[ModelFiles, Path]) -> None:
    engine = on_openvino(t5, "text2text-generation")
    begun = encoded(engine, t5[0].vocab_size)
    one, other = engine.decoder(), engine.decoder()
    first = np.zeros((3, 1), dtype=np.int64)
    one.start(begun)
    expected = [one.step(first, first + 1), one.step(first + 7, np.ones((3, 2), dtype=np.int64))]
    one.start(begun)
    other.start(begun)
    found = [one.step(first, first + 1)]
    other.step(first + 9, first + 1)
    found.append(one.step(first + 7, np.ones((3, 2), dtype=np.int64)))
    np.testing.assert_array_equal(found, expected)


async def test_a_decoder_wants_what_it_needs(t5: tuple[ModelFiles, Path]) -> None:
    decoder = on_openvino(t5, "text2text-generation").decoder()
    ids = np.zeros((1, 1), dtype=np.int64)
    with pytest.raises(InferenceFailed, match="started"):
        decoder.step(ids, ids + 1)
    with pytest.raises(InferenceFailed, match="encoder's"):
        decoder.start(None)


async def test_a_prompt_in_pieces_and_padded_on_the_left(tmp_path: Path, kept: Path) -> None:
    files, task = tiny_files(tmp_path / "llama", "llama")
    found = files, await artefacts.ensure(tmp_path / "llama", "root of llama", task, "f32", kept)
    ids = np.random.default_rng(1).integers(5, files.vocab_size, (2, 9))
    mask = np.ones_like(ids)
    mask[0, :2] = ids[0, :2] = 0
    steps = []
    for engine in (on_openvino(found, task), on_torch(found, task)):
        decoder = engine.decoder()
        decoder.start(None)
        decoder.step(ids[:, :5], mask[:, :5])
        steps.append([decoder.step(ids[:, 5:8], mask[:, :8]), decoder.step(ids[:, 8:], mask)])
    np.testing.assert_allclose(steps[0], steps[1], atol=2e-5)
    engine = on_openvino(found, task)
    caches = {model.get_property("KV_CACHE_PRECISION").to_string() for model in engine.compiled.values()}
    assert caches == {"f32"}


async def test_positions() -> None:
    mask = np.array([[0, 0, 1, 1], [1, 1, 1, 1]])
    np.testing.assert_array_equal(positions(mask, 4), [[0, 0, 0, 1], [0, 1, 2, 3]])
    np.testing.assert_array_equal(positions(mask, 1), [[1], [3]])


FIRST_VECTOR = """
import sys, time
began = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + float(open("/proc/self/stat").read().split()[21]) / 100
from pathlib import Path
from ipfs_accelerate_node.inference.model import Options, Text
from ipfs_accelerate_node.inference.model_files import inspect
from ipfs_accelerate_node.inference.openvino.engine import load
from ipfs_accelerate_node.inference.tasks import processing_for
files = inspect(Path(sys.argv[1]), available_bytes=1 << 33)
engine = load(Path(sys.argv[2]), files, "embedding", device="openvino:CPU", precision="f32", threads=2)
(vector,) = processing_for(files, "embedding").infer(engine, [Text("hello world")], Options(), lambda: None)
assert not {"torch", "transformers", "nncf"} & sys.modules.keys(), "imported"
print(time.time() - began, vector.values.size)
"""


@pytest.mark.model
async def test_first_vector_of_a_new_process(kept: Path, figure: Callable[[str], None]) -> None:
    """From a saved artefact, without torch, within two seconds; the best of a few, as the machine is shared."""
    _, artefact = await converted(SAMPLE, "embedding", kept)
    arguments = [sys.executable, "-c", FIRST_VECTOR, str(SAMPLE), str(artefact)]
    best = 1e9
    for _ in range(6):
        done = subprocess.run(arguments, env=worker_environment(2), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        seconds, width = done.stdout.split()
        assert width == "384"
        best = min(best, float(seconds))
        if best <= 2.0:
            break
    figure(f"{best:.2f} s, load {os.getloadavg()[0]:.1f}")
    assert best <= 2.0


MANY_SHAPES = """
import os, random, sys
from pathlib import Path
import numpy as np
from ipfs_accelerate_node.inference.memory import resident_bytes
from ipfs_accelerate_node.inference.model_files import inspect
from ipfs_accelerate_node.inference.openvino.engine import load
files = inspect(Path(sys.argv[1]), available_bytes=1 << 33)
engine = load(Path(sys.argv[2]), files, "embedding", device="openvino:CPU", precision="f32", threads=1)
shapes = [(rows, tokens) for rows in range(1, 258) for tokens in range(2, 41)]
random.Random(1).shuffle(shapes)
for number, shape in enumerate(shapes[:10_000], 1):
    ones = np.ones(shape, dtype=np.int64)
    engine.run("vectors", {"input_ids": ones, "attention_mask": ones})
    if number % 1000 == 0:
        print(resident_bytes(os.getpid()))
"""


@pytest.mark.full
@pytest.mark.timeout(1200)
async def test_memory_over_many_shapes(bert: tuple[ModelFiles, Path], figure: Callable[[str], None]) -> None:
    """10,000 shapes of a batch, none twice: what OpenVINO and oneDNN keep of each is limited."""
    arguments = [sys.executable, "-c", MANY_SHAPES, str(bert[0].directory), str(bert[1])]
    environment = worker_environment(1, "openvino")
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    sizes = [int(line) for line in done.stdout.split()]
    figure(f"MB after each 1,000 of 10,000 shapes: {', '.join(f'{size / 1e6:.0f}' for size in sizes)}")
    assert len(sizes) == 10
    assert sizes[-1] <= 1.05 * sizes[1]
    assert sizes[-1] <= 300e6 + 1.3 * bert[0].estimate_bytes("f32")
