"""Routes of text-embeddings-inference: shapes, defaults, headers and errors as its own server has them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from tests.support.models import tiny_model
from tests.support.running import Running, running

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(90)]

TIMES = ("x-compute-time", "x-total-time", "x-tokenization-time", "x-queue-time", "x-inference-time")
HEADERS = ("X-Model-Root", "X-Device", "X-Engine", "X-Precision", "X-Implementation", "X-Model-Source")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """One tiny encoder, which is therefore the default."""
    folder = tmp_path_factory.mktemp("tei")
    async with running(folder / "cache", threads=1) as node:
        await node.node.add(tiny_model(folder / "tiny"), name="org/tiny")
        yield node


async def post(here: Running, path: str, body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Any:
    reply = await here.ask("POST", path, json=body, headers=headers)
    assert reply.status == status, reply.body
    return reply.json


async def test_vectors_of_the_default_model(here: Running) -> None:
    one = await post(here, "/embed", {"inputs": "the cat"})
    many = await post(here, "/embed", {"inputs": ["one mat", "the cat"]})
    assert (np.array(one).shape, np.array(many).shape) == ((1, 16), (2, 16))
    assert np.allclose(one[0], many[1], atol=1e-6)
    assert np.isclose(np.linalg.norm(one[0]), 1)
    ids = await post(here, "/embed", {"inputs": [[2, 56, 3], [2, 57, 3]]})
    alone = await post(here, "/embed", {"inputs": [2, 57, 3]})
    assert np.allclose(ids[1], alone[0], atol=1e-6)


async def test_options_of_vectors(here: Running) -> None:
    raw = np.array(await post(here, "/embed", {"inputs": "the cat", "normalize": False}))[0]
    cut = np.array(await post(here, "/embed", {"inputs": "the cat", "dimensions": 4}))[0]
    assert not np.isclose(np.linalg.norm(raw), 1)
    assert np.allclose(cut, raw[:4] / np.linalg.norm(raw[:4]), atol=1e-5)
    await post(here, "/embed", {"inputs": "cat " * 100})
    refused = await post(here, "/embed", {"inputs": "cat " * 100, "truncate": False}, status=422)
    assert refused["error_type"] == "Validation"
    assert (await post(here, "/embed", {"inputs": "a", "truncation_direction": "right"}))[0]


async def test_either_end_of_a_text_is_cut(here: Running) -> None:
    """The model takes 40 tokens, of them two around the text."""
    text, kept = "cat " * 50 + "mat " * 30, {"Left": "cat " * 8 + "mat " * 30, "Right": "cat " * 38}
    for direction, left in kept.items():
        for path in ("/embed", "/embed_all"):
            cut = await post(here, path, {"inputs": text, "truncation_direction": direction})
            assert np.allclose(cut, await post(here, path, {"inputs": left}), atol=1e-6)
    ids = [56] * 50 + [57] * 30
    for direction, own in (("left", ids[-40:]), ("right", ids[:40])):
        cut = await post(here, "/embed", {"inputs": ids, "truncation_direction": direction})
        assert np.allclose(cut, await post(here, "/embed", {"inputs": own}), atol=1e-6)


async def test_every_reply_says_what_ran_and_how_long(here: Running) -> None:
    root = str(here.node.find("org/tiny").root)
    reply = await here.ask("POST", "/embed", json={"inputs": ["the cat", "one"]})
    assert [reply.headers[name] for name in HEADERS] == [root, "cpu", "torch", "f32", "REAL", "local"]
    assert all(int(reply.headers[name]) >= 0 for name in TIMES)
    assert (reply.headers["x-compute-type"], reply.headers["x-compute-characters"]) == ("cpu", "10")
    assert int(reply.headers["x-compute-tokens"]) == 4 + 3
    assert int(reply.headers["x-total-time"]) >= int(reply.headers["x-inference-time"])


async def test_similarity_is_the_cosine(here: Running) -> None:
    texts = ["the cat", "the cat", "three two one"]
    vectors = np.array(await post(here, "/embed", {"inputs": texts}))
    body = {"inputs": {"source_sentence": texts[0], "sentences": texts[1:]}, "parameters": {"truncate": True}}
    for path in ("/similarity", "/"):
        assert np.allclose(await post(here, path, body), vectors[1:] @ vectors[0], atol=1e-5)


PREDICTIONS: list[tuple[Any, bool, int]] = [
    ("a text", True, 1),
    (["a text"], True, 1),
    (["a text", "its pair"], True, 1),
    ([["a text"]], False, 1),
    ([["a text"], ["first", "second"]], False, 2),
]


@pytest.mark.parametrize(("inputs", "single", "count"), PREDICTIONS)
async def test_two_texts_are_a_pair_and_not_a_batch(here: Running, inputs: Any, single: bool, count: int) -> None:
    found = await post(here, "/predict?model=mock:text-classification", {"inputs": inputs})
    rows = [found] if single else found
    assert len(rows) == count
    for row in rows:
        assert [set(one) for one in row] == [{"score", "label", "implementation"}] * 5
        assert [one["score"] for one in row] == sorted((one["score"] for one in row), reverse=True)


async def test_ranks_are_sorted_and_know_their_text(here: Running) -> None:
    body = {"query": "q", "texts": ["a", "b", "c"]}
    found = await post(here, "/rerank", body, headers={"x-model": "mock:rerank"})
    assert [one["score"] for one in found] == sorted((one["score"] for one in found), reverse=True)
    assert {one["index"] for one in found} == {0, 1, 2}
    assert not any("text" in one for one in found)
    texts = await post(here, "/rerank?model=mock:rerank", {**body, "return_text": True})
    assert [one["text"] for one in texts] == [body["texts"][one["index"]] for one in found]


async def test_one_url_does_what_its_model_does(here: Running) -> None:
    for path in ("/", "/invocations"):
        assert await post(here, path, {"inputs": "the cat"}) == await post(here, "/embed", {"inputs": "the cat"})
        ranks = await post(here, f"{path}?model=mock:rerank", {"query": "q", "texts": ["a", "b"]})
        assert {"index", "score"} <= set(ranks[0])
        scores = await post(here, f"{path}?model=mock:text-classification", {"inputs": ["a", "b"]})
        assert {"label", "score"} <= set(scores[0])


async def test_what_the_server_says_of_itself(here: Running) -> None:
    for path in ("/health", "/ping", "/"):
        reply = await here.ask("GET", path)
        assert (reply.status, reply.body) == (200, b"")
    about = (await here.ask("GET", "/info")).json
    assert about["model_id"] == "org/tiny"
    assert about["model_sha"] == str(here.node.find("org/tiny").root)
    assert about["model_type"] == {"embedding": {"pooling": "mean"}}
    assert (about["max_input_length"], about["model_dtype"], about["auto_truncate"]) == (40, "float32", True)
    assert "implementation" not in about
    assert (await here.ask("GET", "/info?model=mock:rerank")).json["implementation"] == "MOCK"


async def test_tokens_and_back(here: Running) -> None:
    (row,) = await post(here, "/tokenize", {"inputs": "The  cat"})
    assert [(one["text"], one["special"], one["start"], one["stop"]) for one in row] == [
        ("[CLS]", True, None, None),
        ("The", False, 0, 3),
        ("cat", False, 5, 8),
        ("[SEP]", True, None, None),
    ]
    ids = [one["id"] for one in row]
    bare = await post(here, "/tokenize", {"inputs": ["The cat", "one"], "add_special_tokens": False})
    assert [one["id"] for one in bare[0]] == ids[1:-1]
    assert len(bare) == 2
    assert len((await post(here, "/tokenize", {"inputs": "cat " * 100}))[0]) == 102  # nothing is cut
    assert await post(here, "/decode", {"ids": ids}) == ["the cat"]
    assert await post(here, "/decode", {"ids": [ids, ids[1:2]], "skip_special_tokens": False}) == [
        "[CLS] the cat [SEP]",
        "the",
    ]


BAD: dict[str, tuple[str, Any, int, str]] = {
    "no inputs": ("/embed", {}, 422, "Validation"),
    "null": ("/embed", {"inputs": None}, 422, "Validation"),
    "empty text": ("/embed", {"inputs": ["a", ""]}, 422, "Validation"),
    "no item": ("/embed", {"inputs": []}, 400, "Empty"),
    "dimensions 0": ("/embed", {"inputs": "a", "dimensions": 0}, 422, "Validation"),
    "dimensions beyond": ("/embed", {"inputs": "a", "dimensions": 1000}, 422, "Validation"),
    "normalize": ("/embed", {"inputs": "a", "normalize": "yes"}, 422, "Validation"),
    "prompt": ("/embed", {"inputs": "a", "prompt_name": "nobody's"}, 422, "Validation"),
    "sparse": ("/embed_sparse", {"inputs": "a"}, 424, "Backend"),
    "no classifier": ("/predict", {"inputs": "a"}, 424, "Backend"),
    "no reranker": ("/rerank", {"query": "a", "texts": ["b"]}, 424, "Backend"),
    "three texts": ("/predict?model=mock:text-classification", {"inputs": ["a", "b", "c"]}, 422, "Validation"),
    "an empty pair": ("/predict?model=mock:text-classification", {"inputs": [["a"], []]}, 422, "Validation"),
    "no texts": ("/rerank?model=mock:rerank", {"query": "a", "texts": []}, 400, "Empty"),
    "no query": ("/rerank?model=mock:rerank", {"query": "", "texts": ["a"]}, 422, "Validation"),
    "no sentences": ("/similarity", {"inputs": {"source_sentence": "a", "sentences": []}}, 400, "Empty"),
    "nothing to tokenize": ("/tokenize", {"inputs": []}, 400, "Empty"),
    "no text to tokenize": ("/tokenize", {"inputs": [5]}, 422, "Validation"),
    "an empty text": ("/tokenize", {"inputs": ["a", ""]}, 422, "Validation"),
    "a mock's tokens": ("/tokenize?model=mock:embedding", {"inputs": "a"}, 424, "Backend"),
    "no ids": ("/decode", {"ids": []}, 400, "Empty"),
    "ids and lists": ("/decode", {"ids": [1, [2]]}, 422, "Validation"),
    "an id that is none": ("/decode", {"ids": [-1]}, 422, "Validation"),
    "an id that is no token": ("/decode", {"ids": [100_000]}, 422, "Validation"),
    "no model": ("/embed?model=nobody/nothing", {"inputs": "a"}, 404, "Validation"),
    "two models": ("/embed?model=a&model=b", {"inputs": "a"}, 422, "Validation"),
}


@pytest.mark.parametrize(("path", "body", "status", "kind"), BAD.values(), ids=BAD)
async def test_errors_have_the_servers_own_words(here: Running, path: str, body: Any, status: int, kind: str) -> None:
    found = await post(here, path, body, status=status)
    assert found["error_type"] == kind
    assert found["error"]


async def test_a_request_without_a_model_never_gets_a_mock_or_one_of_several(tmp_path: Path) -> None:
    async with running(tmp_path / "cache", threads=1) as here:
        await post(here, "/embed?model=mock:embedding", {"inputs": "loads the mock"})
        assert (await post(here, "/embed", {"inputs": "a"}, status=404))["code"] == "model_not_found"
        await here.node.add(tiny_model(tmp_path / "a"), name="org/a")
        await here.node.add(tiny_model(tmp_path / "b", seed=1), name="org/b")
        assert (await post(here, "/embed", {"inputs": "a"}, status=422))["code"] == "model_not_named"
        named = await post(here, "/embed?model=org/b", {"inputs": "a"})
        assert await post(here, "/embed", {"inputs": "a"}) == named  # the only one that is loaded
        assert await post(here, "/embed", {"inputs": "a"}, headers={"x-model": "org/a"}) != named
    async with running(tmp_path / "cache", threads=1, default_model="org/a") as here:
        assert await post(here, "/embed", {"inputs": "a"}) == await post(here, "/embed?model=org/a", {"inputs": "a"})


async def test_a_server_that_stops_is_unhealthy(tmp_path: Path) -> None:
    from ipfs_accelerate_node.api.pipeline import TRAFFIC

    async with running(tmp_path / "cache") as here:
        here.served.app[TRAFFIC].drain()
        reply = await here.ask("GET", "/health")
        assert (reply.status, reply.json) == (503, {"error": "unhealthy", "error_type": "Unhealthy"})
        assert (await here.ask("POST", "/embed", json={"inputs": "a"})).status == 503
