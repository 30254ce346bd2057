"""int8: how near it has to be, and what is told of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ipfs_accelerate_node.errors import ModelUnsupported
from ipfs_accelerate_node.inference.model import Pair, Text
from ipfs_accelerate_node.inference.model_files import inspect
from ipfs_accelerate_node.inference.openvino import artefacts
from ipfs_accelerate_node.inference.openvino.artefact import read_artefact
from ipfs_accelerate_node.inference.openvino.engine import load
from ipfs_accelerate_node.inference.openvino.int8 import LEAST_MEAN_COSINE, items_of, judge
from ipfs_accelerate_node.inference.openvino.int8_texts import CALIBRATION, JUDGING, lengthened
from ipfs_accelerate_node.inference.tasks import processing_for
from tests.support.models import tiny_model
from tests.support.sample import SAMPLE

pytestmark = pytest.mark.timeout(600)


def test_judging_is_not_calibrating() -> None:
    assert not set(CALIBRATION) & set(JUDGING)
    assert len({*CALIBRATION, *JUDGING}) == len(CALIBRATION) + len(JUDGING) >= 100
    lengths = [len(text) for text in lengthened(JUDGING)]
    assert min(lengths) < 5
    assert max(lengths) > 400


def test_what_is_read_for_a_task() -> None:
    assert items_of(["a", "b"], "embedding") == [Text("a"), Text("b")]
    assert items_of(["a", "b"], "rerank") == [Pair("a", "b"), Pair("b", "a")]


def test_judgement() -> None:
    draw = np.random.default_rng(0)
    exact = [draw.standard_normal(64).astype(np.float32) for _ in range(20)]
    assert judge(exact, exact) == pytest.approx((1.0, 1.0, 0.0))
    turned = [exact[0] * 3, *(-vector for vector in exact[1:])]
    mean, least, changed = judge(exact, turned)
    assert (mean, least) == pytest.approx((-0.9, -1.0))
    assert changed > 0
    assert judge(exact, [vector * 0 for vector in exact])[:2] == (0.0, 0.0)


def test_judgement_of_single_numbers_and_of_many_lengths() -> None:
    numbers = [np.array([value], dtype=np.float32) for value in (2.0, -1.0, 0.5)]
    nearly = [value + np.float32(0.01) for value in numbers]
    assert 0.999 < judge(numbers, nearly)[0] < 1.0  # each for itself would be 1
    rows = [np.ones((length, 3), dtype=np.float32) for length in (2, 5)]
    assert judge(rows, rows) == pytest.approx((1.0, 1.0, 0.0))


async def test_a_tiny_model(tmp_path: Path) -> None:
    """Through the converting process: either near enough, with its figures, or refused with them."""
    directory = tiny_model(tmp_path / "bert", hidden_size=32, intermediate_size=64)
    told: list[str] = []
    try:
        folder = await artefacts.ensure(directory, "root", "embedding", "int8", tmp_path, told.append)
    except ModelUnsupported as exc:
        assert exc.code == "int8_inaccurate"  # noqa: PT017 - both ends are right
        assert float(str(exc.detail["mean_cosine"])) < LEAST_MEAN_COSINE  # noqa: PT017
    else:
        found = read_artefact(folder)
        assert found.gate is not None
        assert found.gate.mean_cosine >= LEAST_MEAN_COSINE
        assert found.weights == "int8"
        assert f"minimum {found.gate.min_cosine:.4f}" in found.notes[-1]
        files = inspect(directory, available_bytes=1 << 30)
        engine = load(folder, files, "embedding", device="openvino:CPU", precision="int8", threads=1)
        assert (engine.precision, engine.notes) == ("int8", found.notes)
    assert told[-1] == "judging int8"


@pytest.mark.model
@pytest.mark.full
async def test_the_sample_model(tmp_path: Path, figure: Callable[[str], None]) -> None:
    folder = await artefacts.ensure(SAMPLE, "root", "embedding", "int8", tmp_path)
    found, files = read_artefact(folder), inspect(SAMPLE, available_bytes=1 << 33)
    assert found.gate is not None
    figure(found.notes[-1])
    assert found.gate.mean_cosine >= 0.99
    assert found.gate.changed_neighbours < 0.1
    assert found.size_bytes < 0.3 * files.estimate_bytes("f32")
    engine = load(folder, files, "embedding", device="openvino:CPU", precision="int8")
    processing = processing_for(files, "embedding")
    alike, other = ("The cat sits on the mat.", "A cat is sitting on a rug."), "Shares fell on Monday."
    a, b, c = (processing.primary(engine, Text(text)) for text in (*alike, other))
    assert a @ b > 0.5 > a @ c
