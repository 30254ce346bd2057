"""What fetches left to hash is hashed while nothing else goes on."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.fetch import idle_hashing
from ipfs_accelerate_node.fetch.idle_hashing import hash_when_idle
from ipfs_accelerate_node.store import Store, partial
from tests.support.small_model import SmallModel, bring, random_model


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(partial, "LATER_BYTES", 100)
    monkeypatch.setattr(idle_hashing, "LOOK_AGAIN_S", 0)
    with Store.open(tmp_path / "cache") as opened:
        yield opened


def weights(model: SmallModel) -> Cid:
    return next(file.cid for file in model.plan.files if file.path == "weights.bin")


async def hashed(store: Store, model: SmallModel) -> bool:
    """Once it is."""
    async with asyncio.timeout(10):
        while (stored := store.file(weights(model))) is None or stored.sha256 is None:  # noqa: ASYNC110 - a row is watched
            await asyncio.sleep(0)
    return stored.sha256 == hashlib.sha256(model.files["weights.bin"]).digest()


async def test_what_an_earlier_run_left_and_what_comes_later(store: Store) -> None:
    first, second = random_model(1), random_model(2)
    bring(store, first)
    task = asyncio.create_task(hash_when_idle(store, lambda: False))
    assert await hashed(store, first)
    await asyncio.to_thread(bring, store, second)
    assert await hashed(store, second)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_not_while_somebody_fetches_or_a_model_computes(store: Store) -> None:
    model, looked = random_model(1), 0

    def busy() -> bool:
        nonlocal looked
        looked += 1
        return looked < 20

    bring(store, model)
    reservation = store.reserve(0)
    task = asyncio.create_task(hash_when_idle(store, busy))
    for _ in range(50):
        await asyncio.sleep(0)
    assert looked == 0
    reservation.release()
    assert await hashed(store, model)
    assert looked >= 20
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
