"""Row H5 of the bad-input catalogue, and the mocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ipfs_accelerate_node.errors import InvalidInput, ModelUnsupported, PayloadTooLarge
from ipfs_accelerate_node.inference import mock
from ipfs_accelerate_node.inference.inputs import (
    KINDS,
    MAX_CHARS,
    MAX_IDS,
    MAX_INPUTS,
    check_dimensions,
    check_inputs,
    check_items,
)
from ipfs_accelerate_node.inference.model import (
    TASKS,
    Audio,
    Chat,
    Entities,
    Fills,
    Generated,
    Ids,
    Image,
    ImageChoice,
    Item,
    Message,
    ModelSpec,
    Options,
    Output,
    Pair,
    Scores,
    Text,
    Vector,
)


@pytest.mark.parametrize("inputs", [["a"], ["a", " "], ["\U0001f600", "e\u0301"], [[0]], [[1, 2], [9]], ([3],)])
def test_accepted(inputs: object) -> None:
    assert check_inputs(inputs, vocab_size=10) == list(inputs)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("inputs", "index"),
    [
        ("text", None),
        (b"text", None),
        (7, None),
        (None, None),
        ({"a": 1}, None),
        ([], None),
        (["a", ""], 1),
        (["a\0b"], 0),
        (["ok", "\ud800"], 1),
        (["\udfff x"], 0),
        (["a", 1], 1),
        (["a", None], 1),
        (["a", [1]], 1),
        ([[1], "a"], 1),
        ([1, 2], 0),
        ([None], 0),
        ([[1], []], 1),
        ([[1.0]], 0),
        ([[True]], 0),
        ([[1], [2, "3"]], 1),
        ([[10]], 0),
        ([[-1]], 0),
        ([[2**70]], 0),
    ],
)
def test_refused_with_the_index(inputs: object, index: int | None) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_inputs(inputs, vocab_size=10)
    assert caught.value.detail == {"param": "input"} | ({} if index is None else {"index": index})


@pytest.mark.parametrize("inputs", [["a"] * (MAX_INPUTS + 1), ["a" * (MAX_CHARS + 1)], [[1] * (MAX_IDS + 1)]])
def test_too_much(inputs: object) -> None:
    with pytest.raises(PayloadTooLarge):
        check_inputs(inputs, vocab_size=10)


@pytest.mark.parametrize("dimensions", [0, -1, 17, True, 2.0, "4"])
def test_dimensions_refused(dimensions: int) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_dimensions(dimensions, width=16)
    assert caught.value.detail["param"] == "dimensions"


def test_dimensions_accepted() -> None:
    for dimensions in (None, 1, 16):
        check_dimensions(dimensions, width=16)


def mocked(task: str, *items: Item, **options: Any) -> list[Output]:
    return mock.infer(task, items, Options(**options))


def vectors(*texts: str, **options: Any) -> list[NDArray[np.float32]]:
    outputs = mocked("embedding", *map(Text, texts), **options)
    return [output.values for output in outputs if isinstance(output, Vector)]


class TestMockEmbedding:
    def test_equal_texts_have_equal_unit_vectors_others_do_not(self) -> None:
        one, two, again = vectors("one", "two", "one")
        assert one.shape == (384,)
        assert one.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm([one, two], axis=1), 1.0, atol=1e-6)
        assert (one == again).all()
        assert abs(one @ two) < 0.3

    def test_is_the_same_everywhere(self) -> None:
        """A fixed vector: other machines and later versions must give it too."""
        (found,) = vectors("hello")
        assert found[:3].tolist() == pytest.approx([0.07642774, 0.0690992, 0.061499704], abs=1e-7)

    def test_text_and_token_ids_differ(self) -> None:
        (ids,) = mocked("embedding", Ids((104,)))
        assert isinstance(ids, Vector)
        assert not np.allclose(ids.values, vectors("h")[0])

    def test_dimensions_cut_then_normalise(self) -> None:
        whole = vectors("x")[0][:8]
        np.testing.assert_allclose(vectors("x", dimensions=8)[0], whole / np.linalg.norm(whole), rtol=1e-6)
        np.testing.assert_array_equal(vectors("x", dimensions=8, normalize=False)[0], whole)


SAMPLES: dict[str, Item] = {
    "embedding": Text("a"),
    "text-classification": Pair("a", "b"),
    "rerank": Pair("query", "document"),
    "token-classification": Text("Ada met Bob"),
    "fill-mask": Text("Paris is the [MASK] of France"),
    "zero-shot-image-classification": ImageChoice(b"x", ("cat", "dog", "cow")),
    "text2text-generation": Text("a"),
    "text-generation": Chat((Message("user", "hello"),)),
    "automatic-speech-recognition": Audio(b"x"),
    "image-classification": Image(b"x"),
}
SHAPES = {
    "embedding": Vector,
    "token-classification": Entities,
    "fill-mask": Fills,
    "text2text-generation": Generated,
    "text-generation": Generated,
    "automatic-speech-recognition": Generated,
}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_a_mock_that_says_so(task: str) -> None:
    model = mock.mock_model(ModelSpec(f"mock:{task}", None, source="mock", mock=True), ())
    assert (model.implementation, model.engine, model.source) == ("MOCK", "mock", "mock")
    assert (model.task, model.notes) == (task, (mock.WARNING,))
    (output,) = mocked(task, SAMPLES[task])
    assert type(output) is SHAPES.get(task, Scores)
    if not isinstance(output, Vector):
        assert [output] == mocked(task, SAMPLES[task])


def test_mocks_answer_in_the_shape_of_the_request() -> None:
    (choice,) = mocked("zero-shot-image-classification", SAMPLES["zero-shot-image-classification"], top_k=2)
    assert isinstance(choice, Scores)
    assert len(choice.items) == 2
    assert {score.label for score in choice.items} < {"cat", "dog", "cow"}
    assert choice.items[0].score >= choice.items[1].score
    (entities,) = mocked("token-classification", Text("Ada met Bob"))
    assert isinstance(entities, Entities)
    assert [("Ada met Bob"[e.start : e.end], e.text) for e in entities.items] == [("Ada", "Ada"), ("Bob", "Bob")]
    (filled,) = mocked("fill-mask", SAMPLES["fill-mask"], top_k=3)
    assert isinstance(filled, Fills)
    assert len(filled.items) == 3
    assert all("[MASK]" not in fill.text for fill in filled.items)
    (short,) = mocked("text-generation", Text("a"), max_new_tokens=2)
    assert isinstance(short, Generated)
    assert (len(short.ids), short.finish, short.text[:4]) == (2, "length", "MOCK")


def test_no_other_mocks() -> None:
    with pytest.raises(ModelUnsupported) as caught:
        mock.mock_model(ModelSpec("mock:dreaming", None, source="mock", mock=True), ())
    assert caught.value.code == "task_unsupported"


@pytest.mark.parametrize(
    ("task", "items", "index"),
    [
        ("embedding", [Text("a"), Pair("a", "b")], 1),
        ("rerank", [Text("a")], 0),
        ("fill-mask", [Text("a"), Text("")], 1),
        ("image-classification", [Image(b"")], 0),
        ("automatic-speech-recognition", [Image(b"x")], 0),
        ("zero-shot-image-classification", [ImageChoice(b"x", ())], 0),
        ("text-generation", [Chat(())], 0),
        ("text-classification", [Pair("a\0", "b")], 0),
    ],
)
def test_items_that_a_task_cannot_use(task: str, items: list[Item], index: int) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_items(items, Options(), task)
    assert caught.value.detail["index"] == index


def test_items_of_every_task() -> None:
    assert set(KINDS) == set(TASKS) == set(SAMPLES)
    for task, item in SAMPLES.items():
        check_items([item], Options(), task)
    with pytest.raises(InvalidInput):
        check_items([Text("a")], Options(temperature=-1.0), "text-generation")
