"""sha256 of a whole file that came by its CID: left for later, and never missing for who asks."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import NotFound
from ipfs_accelerate_node.store import Store, partial
from tests.support.small_model import bring, foreign_model, random_model, small_model

MODEL = random_model(1)
WEIGHTS = next(file for file in MODEL.plan.files if file.path == "weights.bin")
DATA = MODEL.files["weights.bin"]
OID = hashlib.sha256(DATA).digest()


@pytest.fixture(autouse=True)
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of test size are left for later too, as large ones are."""
    monkeypatch.setattr(partial, "LATER_BYTES", 100)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "cache") as opened:
        yield opened


def sha256_of(store: Store, cid: Cid = WEIGHTS.cid) -> bytes | None:
    stored = store.file(cid)
    assert stored is not None
    return stored.sha256


def test_left_for_later_and_done_on_demand(store: Store) -> None:
    bring(store, MODEL)
    assert sha256_of(store) is None
    assert store.digests(WEIGHTS.cid).sha256 == OID
    assert sha256_of(store) == OID
    small = next(file for file in MODEL.plan.files if file is not WEIGHTS)
    assert sha256_of(store, small.cid) == hashlib.sha256(MODEL.files[small.path]).digest()


def test_found_by_its_oid_at_once(store: Store) -> None:
    bring(store, MODEL)
    found = store.of_oid(OID, len(DATA))
    assert found is not None
    assert found.cid == WEIGHTS.cid
    assert store.of_oid(hashlib.sha256(b"other").digest(), len(DATA)) is None


def test_steps_of_the_background_end(store: Store) -> None:
    told: list[None] = []
    store.hashing.on_unhashed = lambda: told.append(None)
    bring(store, MODEL)
    assert told == [None]
    steps = 0
    while store.hashing.forward(1):
        steps += 1
    assert steps == len(WEIGHTS.leaves)
    assert sha256_of(store) == OID


def test_survives_a_restart_and_the_loss_of_the_index(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with Store.open(cache) as store:
        bring(store, MODEL)
    with Store.open(cache) as store:
        assert sha256_of(store) is None
    (cache / "index.sqlite").unlink()
    with Store.open(cache) as store:
        assert sha256_of(store) is None
        assert store.hashing.forward(1 << 20)
        assert sha256_of(store) == OID
    (cache / "index.sqlite").unlink()
    with Store.open(cache) as store:  # the plan beside the model was brought up to date
        assert sha256_of(store) == OID
        assert not store.hashing.forward()


def test_verify_does_it_on_the_way(store: Store) -> None:
    bring(store, MODEL)
    assert not store.verify().corrupt
    assert sha256_of(store) == OID


def test_bytes_that_went_bad_get_no_hash(store: Store) -> None:
    bring(store, MODEL)
    stored = store.file(WEIGHTS.cid)
    assert stored is not None
    stored.path.chmod(0o600)
    stored.path.write_bytes(DATA[:-1] + bytes([DATA[-1] ^ 1]))
    with pytest.raises(NotFound):
        store.digests(WEIGHTS.cid)
    assert store.file(WEIGHTS.cid) is None
    assert store.model(MODEL.root) is None


def test_what_went_away_is_not_found(store: Store) -> None:
    bring(store, MODEL)
    assert store.hashing.forward(1)
    store.remove(MODEL.root, force=True)
    with pytest.raises(NotFound):
        store.digests(WEIGHTS.cid)
    assert not store.hashing.forward()


def test_many_who_ask_at_once_read_it_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    bring(store, MODEL)
    noted: list[Cid] = []
    learned = store.hashing.learned

    def note(cid: Cid, sha256: bytes) -> None:
        noted.append(cid)
        learned(cid, sha256)

    monkeypatch.setattr(store.hashing, "learned", note)
    got: list[bytes] = []
    threads = [threading.Thread(target=lambda: got.append(store.digests(WEIGHTS.cid).sha256)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [OID] * 8
    assert noted == [WEIGHTS.cid.canonical]


def test_files_of_one_size_that_differ_are_not_hashed_for_each_other(store: Store) -> None:
    other = random_model(2)
    bring(store, MODEL)
    before = store.used_bytes()
    bring(store, other)
    assert sha256_of(store) is None
    assert store.used_bytes() - before >= len(DATA)
    assert store.hashing.forward(1 << 20)
    assert store.hashing.forward(1 << 20)
    assert not store.hashing.forward()


@pytest.mark.parametrize("first_known", [False, True])
def test_equal_bytes_under_another_cid_still_share_the_disk(store: Store, first_known: bool) -> None:
    foreign = foreign_model(9)
    own = small_model({"copy.bin": foreign.files["big.bin"]})
    bring(store, foreign)
    big = next(file for file in foreign.plan.files if file.path == "big.bin")
    assert sha256_of(store, big.cid) is None
    if first_known:
        store.digests(big.cid)
    bring(store, own)
    one, two = store.file(big.cid), store.file(own.plan.files[0].cid)
    assert one is not None
    assert two is not None
    assert one.path.stat().st_ino == two.path.stat().st_ino
    assert one.sha256 == two.sha256 == hashlib.sha256(foreign.files["big.bin"]).digest()


def test_room_is_counted_for_each_that_is_left_for_later(store: Store) -> None:
    models = [random_model(seed) for seed in range(3)]
    for model in models:
        bring(store, model)
    used = store.used_bytes()
    assert store.remove(models[0].root, force=True) >= len(DATA)
    assert used - store.used_bytes() >= len(DATA)
