"""Packed texts: the arrays of a pass, and a forward pass over them that equals the padded one of every text alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ipfs_accelerate_node.inference.model_files import inspect
from ipfs_accelerate_node.inference.sentence import SentenceSettings
from tests.support.models import tiny_model
from tests.support.models_torch import torch

from ipfs_accelerate_node.inference.torch.encoder import Encoder  # isort: skip - after torch's own warnings
from ipfs_accelerate_node.inference.torch.packed import PackedEncoder, TorchSteps, find_steps, fits  # isort: skip
from ipfs_accelerate_node.inference.torch.rows import BLOCK_QUERIES, Positions, Room, fill  # isort: skip
from ipfs_accelerate_node.inference.torch.vectors import finish, read_tensors  # isort: skip

pytestmark = pytest.mark.timeout(120)
LENGTHS = st.lists(st.integers(1, 3 * BLOCK_QUERIES), min_size=1, max_size=20).map(np.array)


def arrays_of(
    ids: NDArray[np.int64], lengths: NDArray[np.int64], room: Room, positions: Positions
) -> dict[str, NDArray[np.int32]]:
    into = np.full(room.size, -7, dtype=np.int32)
    fill(into, room, ids=ids, lengths=lengths, types=None, positions=positions)
    return {name: into[part] for name, part in room.parts().items()}


@given(LENGTHS, st.integers(0, 100), st.integers(0, 9), st.integers(0, 5))
def test_every_query_stands_in_one_block_of_its_text(
    lengths: NDArray[np.int64], tokens: int, texts: int, blocks: int
) -> None:
    least = Room.of(lengths)
    room = Room(least.tokens + tokens, least.texts + texts, least.blocks + blocks)
    assert room.holds(least)
    arrays = arrays_of(np.arange(least.tokens), lengths, room, Positions())
    seen: list[int] = []
    for at, first, length in zip(arrays["at"], arrays["first"], arrays["length"], strict=True):
        seen += range(first + at, first + min(length, at + BLOCK_QUERIES)) if length else []
    assert seen == list(range(least.tokens))
    starts = arrays["starts"]
    assert (np.diff(starts)[: len(lengths)] == lengths).all()
    assert (starts[len(lengths) :] == least.tokens).all()
    assert all(part.start % 4 == 0 for part in room.parts().values())


@given(LENGTHS)
def test_a_room_upto_so_much_holds_whatever_comes_to_that(lengths: NDArray[np.int64]) -> None:
    assert Room.upto(int(lengths.sum()), len(lengths)).holds(Room.of(lengths))


def test_positions_start_anew_with_every_text() -> None:
    lengths = np.array([3, 1, 4])
    ids = np.array([5, 6, 7, 5, 8, 1, 9, 9])
    room = Room.of(lengths)
    plain = arrays_of(ids, lengths, room, Positions())["positions"]
    assert plain.tolist() == [0, 1, 2, 0, 0, 1, 2, 3]
    after = arrays_of(ids, lengths, room, Positions(after=2, padding=1))["positions"]
    assert after.tolist() == [2, 3, 4, 2, 2, 1, 3, 4]  # as RoBERTa: a token of padding stands at its id, and moves none


def encoder_of(directory: Path) -> tuple[Encoder, SentenceSettings]:
    sentence = inspect(directory, available_bytes=1 << 30).sentence
    assert sentence is not None
    assert sentence.encoder is not None
    assert sentence.tensors is not None
    named = {plain: (entry.file, name) for plain, (name, entry) in sentence.tensors.entries.items()}
    tensors = read_tensors(named, device=torch.device("cpu"), dtype=torch.float32)
    return Encoder(sentence.encoder, tensors), sentence.settings


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "xlm-roberta", "camembert"])
@pytest.mark.parametrize("pooling", [("mean",), ("cls",), ("lasttoken",), ("cls", "mean")])
def test_packed_texts_have_the_vectors_of_each_alone(
    tmp_path: Path, architecture: str, pooling: tuple[str, ...]
) -> None:
    encoder, settings = encoder_of(tiny_model(tmp_path, architecture))
    settings = SentenceSettings(pooling=pooling, normalize=True)  # type: ignore[arg-type]
    random = np.random.default_rng(0)
    lengths = np.array([5, 1, 30, 12, 30])
    ids = random.integers(4, 60, lengths.sum())
    alone = []
    for text in np.split(ids, np.cumsum(lengths)[:-1]):
        hidden = encoder(torch.from_numpy(text[None]), None)
        alone.append(torch.stack(finish(hidden, torch.ones((1, len(text)), dtype=torch.bool), settings, ()))[:, 0])
    packed = PackedEncoder(encoder, settings, (), find_steps(encoder.config, torch.device("cpu")))
    room = Room.of(lengths)
    given = arrays_of(ids, lengths, room, packed.positions)
    found = packed({name: torch.from_numpy(array) for name, array in given.items()})
    torch.testing.assert_close(found, torch.stack(alone, dim=1), atol=1e-5, rtol=0)
    hidden = encoder(torch.from_numpy(ids[None, :5]), None)  # whose weights are views now
    one = torch.stack(finish(hidden, torch.ones((1, 5), dtype=torch.bool), settings, ()))
    torch.testing.assert_close(one[:, 0], alone[0], atol=1e-6, rtol=0)


def test_query_key_and_value_are_kept_once(tmp_path: Path) -> None:
    encoder, settings = encoder_of(tiny_model(tmp_path))
    before = sum(tensor.numel() for tensor in encoder.tensors.values())
    packed = PackedEncoder(encoder, settings, (), TorchSteps(4, 16, 1e-12))
    kept = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in encoder.tensors.values()}
    assert sum(storage.nbytes() for storage in kept.values()) == 4 * before
    assert packed.device == torch.device("cpu")


def test_which_models_are_packed(tmp_path: Path) -> None:
    encoder, settings = encoder_of(tiny_model(tmp_path / "bert"))
    assert fits(encoder.config, settings, torch.bfloat16)
    assert not fits(encoder.config, settings, torch.float32)
    assert not fits(encoder.config, SentenceSettings(pooling=("max",)), torch.bfloat16)
    for other in ("mpnet", "electra"):
        encoder, settings = encoder_of(tiny_model(tmp_path / other, other))
        assert not fits(encoder.config, settings, torch.bfloat16)
