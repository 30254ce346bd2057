"""Row H5 of the bad-input catalogue, and the mock."""

from __future__ import annotations

import numpy as np
import pytest

from ipfs_accelerate_node.errors import InvalidInput, PayloadTooLarge
from ipfs_accelerate_node.inference import mock
from ipfs_accelerate_node.inference.inputs import (
    MAX_CHARS,
    MAX_IDS,
    MAX_INPUTS,
    check_dimensions,
    check_inputs,
)
from ipfs_accelerate_node.inference.model import Embeddings, ModelSpec


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


class TestMock:
    model = mock.mock_model(ModelSpec("mock:embedding", None, source="mock", mock=True), ())

    def embed(self, *inputs: str, dimensions: int | None = None, normalize: bool | None = None) -> Embeddings:
        return mock.embed(self.model, list(inputs), dimensions=dimensions, normalize=normalize, seconds=0.0)

    def test_says_what_it_is(self) -> None:
        model = self.model
        assert (model.implementation, model.engine, model.source) == ("MOCK", "mock", "mock")

    def test_equal_texts_have_equal_unit_vectors_others_do_not(self) -> None:
        vectors = self.embed("one", "two", "one").vectors
        assert vectors.shape == (3, 384)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
        assert (vectors[0] == vectors[2]).all()
        assert abs(vectors[0] @ vectors[1]) < 0.3

    def test_is_the_same_everywhere(self) -> None:
        """A fixed vector: other machines and later versions must give it too."""
        assert self.embed("hello").vectors[0, :3].tolist() == pytest.approx(
            [0.07642774, 0.0690992, 0.061499704], abs=1e-7
        )

    def test_text_and_token_ids_differ(self) -> None:
        ids = mock.embed(self.model, [[104]], dimensions=None, normalize=None, seconds=0.0)
        assert not np.allclose(ids.vectors, self.embed("h").vectors)

    def test_dimensions_cut_then_normalise(self) -> None:
        whole = self.embed("x").vectors[0, :8]
        np.testing.assert_allclose(self.embed("x", dimensions=8).vectors[0], whole / np.linalg.norm(whole), rtol=1e-6)
        np.testing.assert_array_equal(self.embed("x", dimensions=8, normalize=False).vectors[0], whole)
