"""What models themselves give, over the wire: vectors of tokens, logits, prepared pixels; beside transformers."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import pytest_asyncio
import requests
import tritonclient.http as triton
from numpy.typing import NDArray
from PIL import Image
from tritonclient.utils import InferenceServerException

from ipfs_accelerate_node.inference.tasks.picture_settings import read_picture_settings
from ipfs_accelerate_node.inference.tasks.pictures import pixel_values, read_picture
from tests.support.models import write_json
from tests.support.models_torch import torch, written
from tests.support.running import Running, running
from tests.support.sample import CLIP

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

IDS = np.array([[2, 56, 57, 58, 3], [2, 59, 3, 0, 0]], dtype=np.int64)
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=np.int64)
LABELS = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
EDGE = 16


@dataclass
class Here:
    """models: of transformers, by the name under which the node serves the same files."""

    node: Running
    models: dict[str, Any]

    async def ask(self, call: Callable[[Any], Any]) -> Any:
        """With the blocking client, off the loop that serves it."""

        def work() -> Any:
            with triton.InferenceServerClient(self.node.url.removeprefix("http://")) as client:
                return call(client)

        return await asyncio.to_thread(work)

    async def infer(self, name: str, given: dict[str, Any], *outputs: str, **more: Any) -> Any:
        inputs = [tensor(key, value) for key, value in given.items()]
        wanted = [triton.InferRequestedOutput(output) for output in outputs] or None
        return await self.ask(lambda client: client.infer(name, inputs, outputs=wanted, **more))

    async def post(self, path: str, body: Any) -> requests.Response:
        return await asyncio.to_thread(requests.post, self.node.url + path, json=body, timeout=60)

    def expected(self, name: str, output: str, **given: NDArray[Any]) -> NDArray[np.float32]:
        with torch.no_grad():
            found = self.models[name](**{key: torch.from_numpy(value) for key, value in given.items()})
        return np.asarray(getattr(found, output).numpy())


def tensor(name: str, values: Any, kind: str = "") -> triton.InferInput:
    if isinstance(values, list):
        values = np.array([one.encode() for one in values], dtype=np.object_)
    kinds = {"O": "BYTES", "i": "INT64"}
    kind = kind or kinds.get(values.dtype.kind) or {2: "FP16", 4: "FP32"}[values.dtype.itemsize]
    made = triton.InferInput(name, list(values.shape), kind)
    made.set_data_from_numpy(values)
    return made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Here]:
    folder = tmp_path_factory.mktemp("tensors")
    kinds: dict[str, tuple[str, str, dict[str, Any]]] = {
        "own/bert": ("bert", "BertModel", {}),
        "own/classes": ("bert", "BertForSequenceClassification", LABELS),
        "own/tokens": ("bert", "BertForTokenClassification", LABELS),
        "own/masked": ("bert", "BertForMaskedLM", {}),
        "own/vit": ("vit", "ViTForImageClassification", LABELS),
    }
    models = {
        name: written(folder / name.partition("/")[2], model_type, class_name, **changes)
        for name, (model_type, class_name, changes) in kinds.items()
    }
    size = {"height": EDGE, "width": EDGE}
    write_json(folder / "vit" / "preprocessor_config.json", {"image_processor_type": "ViTImageProcessor", "size": size})
    write_json(folder / "masked" / "tokenizer_config.json", {"mask_token": "[UNK]"})
    async with running(folder / "cache", threads=1) as node:
        for name in kinds:
            await node.node.add(folder / name.partition("/")[2], name=name)
        await node.node.add(CLIP, name="own/clip")
        yield Here(node, models)


async def test_every_token_has_its_vector(here: Here) -> None:
    texts = ["the cat sat", "mat"]
    reply = await here.post("/embed_all?model=own/bert", {"inputs": texts})
    assert reply.status_code == 200, reply.text
    tokens = (await here.post("/tokenize?model=own/bert", {"inputs": texts})).json()
    assert int(reply.headers["x-compute-tokens"]) == sum(map(len, tokens))
    for row, found in zip(tokens, reply.json(), strict=True):
        ids = np.array([[one["id"] for one in row]])
        np.testing.assert_allclose(found, here.expected("own/bert", "last_hidden_state", input_ids=ids)[0], atol=1e-5)
    one = await here.post("/embed_all?model=own/bert", {"inputs": texts[1], "truncate": True})
    np.testing.assert_allclose(one.json()[0], reply.json()[1], atol=1e-6)
    by_ids = await here.post("/embed_all?model=own/bert", {"inputs": [[2, 56, 57, 58, 3], [2, 59, 3]]})
    wanted = here.expected("own/bert", "last_hidden_state", input_ids=IDS, attention_mask=MASK)
    for found, row, mask in zip(by_ids.json(), wanted, MASK, strict=True):
        np.testing.assert_allclose(found, row[mask == 1], atol=1e-5)


async def test_vectors_of_tokens_that_cannot_be(here: Here) -> None:
    for path, body, status, said in (
        ("own/bert", {"inputs": []}, 400, "empty"),
        ("own/bert", {"inputs": ["cat " * 60], "truncate": False}, 422, "40 tokens"),
        ("own/bert", {"inputs": ["cat cat"] * 1900 + ["mat " * 60] * 140 + [""]}, 422, "empty"),
        ("own/vit", {"inputs": "cat"}, 424, "embedding"),
        ("own/clip", {"inputs": "cat"}, 424, "two towers"),
        ("mock:embedding", {"inputs": "word " * 30_000}, 422, "MiB"),
        ("mock:embedding", {"inputs": "word " * 12_000}, 422, "JSON"),
    ):
        reply = await here.post(f"/embed_all?model={path}", body)
        assert (reply.status_code, said in reply.json()["error"]) == (status, True), reply.text
    assert (await here.post("/embed_all?model=own/bert", {"inputs": "cat"})).ok


async def test_the_last_hidden_state(here: Here) -> None:
    wanted = here.expected("own/bert", "last_hidden_state", input_ids=IDS, attention_mask=MASK)
    wanted[MASK == 0] = 0
    given = {"input_ids": IDS, "attention_mask": MASK}
    found = await here.infer("own/bert", given, "last_hidden_state", "attention_mask", "embedding")
    np.testing.assert_allclose(found.as_numpy("last_hidden_state"), wanted, atol=1e-5)
    np.testing.assert_array_equal(found.as_numpy("attention_mask"), MASK)
    assert found.get_output("attention_mask")["datatype"] == "INT64"
    mean = wanted.sum(axis=1) / MASK.sum(axis=1, keepdims=True)
    unit = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(found.as_numpy("embedding"), unit, atol=1e-5)
    texts = await here.infer("own/bert", {"text": ["the cat sat", "mat"]}, "last_hidden_state", "attention_mask")
    assert texts.as_numpy("attention_mask").tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert [one["name"] for one in (await here.infer("own/bert", given)).get_response()["outputs"]] == ["embedding"]
    about = await here.ask(lambda client: client.get_model_metadata("own/bert"))
    assert {"name": "last_hidden_state", "datatype": "FP32", "shape": [-1, -1, -1]} in about["outputs"]


async def test_padding_in_front_keeps_its_place(here: Here) -> None:
    left = {"input_ids": IDS[1:, [3, 4, 0, 1, 2]], "attention_mask": MASK[1:, [3, 4, 0, 1, 2]]}
    found = (await here.infer("own/bert", left, "last_hidden_state")).as_numpy("last_hidden_state")
    wanted = here.expected("own/bert", "last_hidden_state", input_ids=IDS[1:, :3])
    np.testing.assert_allclose(found[:, 2:], wanted, atol=1e-5)
    assert not found[:, :2].any()


@pytest.mark.parametrize("name", ["own/classes", "own/tokens", "own/masked"])
async def test_logits_of_token_ids(here: Here, name: str) -> None:
    found = await here.infer(name, {"input_ids": IDS, "attention_mask": MASK}, "logits")
    wanted = here.expected(name, "logits", input_ids=IDS, attention_mask=MASK)
    if wanted.ndim == 3:
        wanted[MASK == 0] = 0
    np.testing.assert_allclose(found.as_numpy("logits"), wanted, atol=1e-5)
    if name == "own/classes":
        both = await here.infer(name, {"input_ids": IDS, "attention_mask": MASK}, "score", "logits")
        scores = np.exp(wanted) / np.exp(wanted).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(both.as_numpy("score"), -np.sort(-scores, axis=1), atol=1e-5)
        np.testing.assert_allclose(both.as_numpy("logits"), wanted, atol=1e-5)


@pytest.mark.parametrize("kind", ["FP32", "FP16", "BF16"])
async def test_pixels_as_the_model_takes_them(here: Here, kind: str) -> None:
    drawn = np.random.default_rng(1).standard_normal((3, 3, EDGE, EDGE)).astype(np.float32)
    narrow = {"FP32": np.float32, "FP16": np.float16, "BF16": ml_dtypes.bfloat16}[kind]
    rounded = drawn.astype(narrow)
    sent = tensor("pixel_values", rounded, kind)
    found = await here.ask(lambda client: client.infer("own/vit", [sent]))
    wanted = here.expected("own/vit", "logits", pixel_values=rounded.astype(np.float32))
    np.testing.assert_allclose(found.as_numpy("logits"), wanted, atol=1e-5)


async def test_a_prepared_picture_is_the_same_as_its_file(here: Here) -> None:
    file = io.BytesIO()
    Image.effect_noise((40, 50), 60).convert("RGB").save(file, "PNG")
    settings = json.loads((CLIP / "preprocessor_config.json").read_bytes())
    pixels = pixel_values(read_picture(file.getvalue()), read_picture_settings(settings, model_type="clip"))
    own = np.array([file.getvalue()], dtype=np.object_)
    by_file = await here.infer("own/clip", {"image": own})
    prepared = await here.infer("own/clip", {"pixel_values": pixels[None]})
    np.testing.assert_allclose(prepared.as_numpy("embedding"), by_file.as_numpy("embedding"), atol=1e-6)
    about = await here.ask(lambda client: client.get_model_metadata("own/clip"))
    assert [one["name"] for one in about["outputs"]] == ["embedding"]


@pytest.mark.parametrize(
    ("name", "given", "output", "said"),
    [
        ("own/vit", {"pixel_values": np.zeros((1, 3, EDGE, EDGE + 1), np.float32)}, "logits", "the model takes"),
        ("own/vit", {"pixel_values": np.zeros((1, 4, EDGE, EDGE), np.float32)}, "logits", "the model takes"),
        ("own/vit", {"pixel_values": np.full((1, 3, EDGE, EDGE), np.nan, np.float32)}, "logits", "finite"),
        ("own/vit", {"pixel_values": np.zeros((3, EDGE, EDGE), np.float32)}, "logits", "pictures, channels"),
        ("own/vit", {"pixel_values": np.zeros((1, 3, EDGE, EDGE), np.int64)}, "logits", "FP32"),
        ("own/bert", {"pixel_values": np.zeros((1, 3, EDGE, EDGE), np.float32)}, "embedding", "pixelvalues"),
        ("own/bert", {"input_ids": np.full((1, 41), 56)}, "last_hidden_state", "the model takes 40"),
        ("own/bert", {"input_ids": np.zeros((1, 0), np.int64)}, "last_hidden_state", "empty"),
        ("own/clip", {"text": ["cat"]}, "last_hidden_state", "two towers"),
        ("own/bert", {"text": ["cat"]}, "logits", "no output"),
        ("mock:embedding", {"text": ["a " * 9000, *["a"] * 9]}, "last_hidden_state", "one length"),
    ],
)
async def test_tensors_of_no_use(here: Here, name: str, given: Any, output: str, said: str) -> None:
    with pytest.raises(InferenceServerException, match=said):
        await here.infer(name, given, output)


async def test_statistics_count(here: Here) -> None:
    await here.infer("own/bert", {"text": ["a", "b", "c"]})
    (before,) = (await here.ask(lambda client: client.get_inference_statistics("own/bert")))["model_stats"]
    await here.infer("own/bert", {"text": ["d", "e"]})
    (after,) = (await here.ask(lambda client: client.get_inference_statistics("own/bert")))["model_stats"]
    assert after["name"] == "own/bert"
    assert after["inference_count"] - before["inference_count"] == 2
    assert after["inference_stats"]["success"]["count"] - before["inference_stats"]["success"]["count"] == 1
    assert after["inference_stats"]["compute_infer"]["ns"] > before["inference_stats"]["compute_infer"]["ns"]
    everything = await here.ask(lambda client: client.get_inference_statistics())
    assert "own/bert" in [one["name"] for one in everything["model_stats"]]
