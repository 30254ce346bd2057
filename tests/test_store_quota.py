from __future__ import annotations

import shutil
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ipfs_accelerate_node.errors import NotFound, QuotaExceeded
from ipfs_accelerate_node.store import PartialFile, Reservation, Store, StoredModel
from tests.support.small_model import CHUNK, FROM_CID, SmallModel, bring, bring_files, random_model, small_model

QUOTA = 40 * CHUNK


def on_disk(root: Path) -> int:
    """Bytes of distinct files under blobs/ and partial/, holes not counted."""
    inodes = {}
    for folder in ("blobs", "partial"):
        for path in (root / folder).iterdir():
            if not path.name.endswith(".have"):
                found = path.stat()
                inodes[found.st_ino] = min(found.st_size, found.st_blocks * 512)
    return sum(inodes.values())


def test_reservation_counts_until_it_is_released(tmp_path: Path) -> None:
    store = Store.open(tmp_path, quota_bytes=QUOTA)
    with store.reserve(30 * CHUNK) as reservation:
        assert store.used_bytes() == 30 * CHUNK
        with pytest.raises(QuotaExceeded) as refused:
            store.reserve(11 * CHUNK)
        assert refused.value.detail["available_bytes"] == 10 * CHUNK
        reservation.grow(10 * CHUNK)
        with pytest.raises(QuotaExceeded):
            reservation.grow(1)
        assert store.used_bytes() == QUOTA
    assert store.used_bytes() == 0


def test_hopeless_reservation_evicts_nothing(tmp_path: Path) -> None:
    store = Store.open(tmp_path, quota_bytes=QUOTA)
    bring(store, random_model(1), pinned=False)
    with pytest.raises(QuotaExceeded):
        store.reserve(QUOTA + 1)
    assert len(store.models()) == 1


def test_longest_unused_goes_first(tmp_path: Path) -> None:
    store = Store.open(tmp_path, quota_bytes=QUOTA)
    models = [random_model(seed, size=8 * CHUNK) for seed in range(4)]
    for model in models:
        bring(store, model, pinned=model is models[1])
    with store.use(models[0].root):
        pass
    with store.reserve(15 * CHUNK):
        assert {model.root for model in store.models()} == {models[0].root, models[1].root}


def test_a_file_counted_on_by_a_transfer_is_not_evicted(tmp_path: Path) -> None:
    """A fetch that found a file here must still find it when it commits, though its model was evicted meanwhile."""
    shared = b"s" * 8 * CHUNK
    old = small_model({"shared.bin": shared, "old.bin": b"o" * 20 * CHUNK})
    new = small_model({"shared.bin": shared, "new.bin": b"n" * 25 * CHUNK})
    store = Store.open(tmp_path, quota_bytes=QUOTA)
    bring(store, old, pinned=False)
    file = next(file for file in new.plan.files if file.path == "shared.bin")
    assert store.file(file.cid) is not None
    with store.reserve(25 * CHUNK) as reservation:
        assert store.model(old.root) is None
        bring_files(store, new, reservation)
        store.commit(new.plan, new.nodes, provenance=FROM_CID)
    assert store.block(file.cid) is not None


def test_parts_of_an_earlier_run_count_and_go_when_room_is_needed(tmp_path: Path) -> None:
    model = random_model(1, size=20 * CHUNK)
    file = max(model.plan.files, key=lambda file: file.size)
    store = Store.open(tmp_path, quota_bytes=QUOTA)
    part = store.partial(file.cid, file.size)
    for leaf in file.leaves[:8]:
        part.write(leaf, model.blocks[leaf.cid])
    part.sync()
    store.close()
    store = Store.open(tmp_path, quota_bytes=QUOTA)
    assert 8 * CHUNK <= store.used_bytes() <= 12 * CHUNK
    with store.reserve(QUOTA):
        assert list((tmp_path / "partial").iterdir()) == []


class Quota(RuleBasedStateMachine):
    """P5: used bytes stay within the quota, what is in flight included; pinned and used models are never evicted."""

    def __init__(self) -> None:
        super().__init__()
        memory = Path("/dev/shm")  # hundreds of syncs: in memory where that is possible
        self.folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
        self.store = Store.open(self.folder, quota_bytes=QUOTA)
        self.pinned: set[int] = set()
        self.pool = [random_model(seed, size=(seed % 5 + 1) * 3 * CHUNK + seed) for seed in range(6)]
        twin = {"weights.bin": self.pool[4].files["weights.bin"], "other": b"x" * CHUNK}
        self.pool.append(small_model(twin))
        self.paths: dict[int, set[str]] = {}  # of the files that a pinned or used model has, at least
        self.used: dict[int, AbstractContextManager[StoredModel]] = {}
        self.reservations: list[Reservation] = []
        self.parts: list[PartialFile] = []

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)

    def model(self, number: int) -> SmallModel:
        return self.pool[number % len(self.pool)]

    @rule(number=st.integers(0, 6), pinned=st.booleans())
    def add(self, number: int, pinned: bool) -> None:
        self.bring(number, pinned, set(self.model(number).files), None)

    @rule(number=st.integers(0, 6), pinned=st.booleans(), which=st.integers(0, 1))
    def add_a_part(self, number: int, pinned: bool, which: int) -> None:
        paths = {sorted(self.model(number).files)[which]}
        self.bring(number, pinned, paths, paths)

    def bring(self, number: int, pinned: bool, wanted: set[str], paths: set[str] | None) -> None:
        try:
            stored = bring(self.store, self.model(number), pinned=pinned, paths=paths)
        except QuotaExceeded:
            return
        there = {str(path.relative_to(stored.path)) for path in stored.path.rglob("*") if path.is_file()}
        assert wanted <= there
        if number in self.pinned or number in self.used:
            assert self.paths[number] <= there
        if pinned:
            self.pinned.add(number)
        self.paths[number] = there

    @rule(number=st.integers(0, 6))
    def unpin(self, number: int) -> None:
        if number in self.pinned:
            self.store.unpin(self.model(number).root)
            self.pinned.discard(number)

    @rule(number=st.integers(0, 6))
    def use(self, number: int) -> None:
        if number not in self.used and self.store.model(self.model(number).root) is not None:
            context = self.store.use(self.model(number).root)
            stored = context.__enter__()
            self.used[number] = context
            self.paths[number] = {str(p.relative_to(stored.path)) for p in stored.path.rglob("*") if p.is_file()}

    @precondition(lambda self: self.used)
    @rule()
    def leave(self) -> None:
        _, context = self.used.popitem()
        context.__exit__(None, None, None)

    @rule(size=st.integers(0, 30 * CHUNK))
    def reserve(self, size: int) -> None:
        try:
            self.reservations.append(self.store.reserve(size))
        except QuotaExceeded:
            assert size > self.store.room_bytes()

    @precondition(lambda self: self.reservations)
    @rule()
    def release(self) -> None:
        self.reservations.pop().release()

    @rule(number=st.integers(0, 6), leaves=st.integers(0, 4))
    def begin(self, number: int, leaves: int) -> None:
        model = self.model(number)
        file = max(model.plan.files, key=lambda file: file.size)
        if self.store.file(file.cid) is not None:
            return
        try:
            part = self.store.partial(file.cid, file.size)
        except QuotaExceeded:
            return
        for leaf in part.missing(file.leaves)[:leaves]:
            part.write(leaf, model.blocks[leaf.cid])
        self.parts.append(part)

    @precondition(lambda self: self.parts)
    @rule(discard=st.booleans())
    def end(self, discard: bool) -> None:
        part = self.parts.pop()
        if discard and part not in self.parts:
            part.discard()
        else:
            part.close()

    @rule()
    def collect(self) -> None:
        self.store.gc()

    @rule(number=st.integers(0, 6))
    def remove(self, number: int) -> None:
        if number in self.pinned or number in self.used:
            return
        try:
            self.store.remove(self.model(number).root)
        except NotFound:
            assert self.store.model(self.model(number).root) is None

    @precondition(lambda self: not self.used)
    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = Store.open(self.folder, quota_bytes=QUOTA)
        self.reservations, self.parts = [], []

    @invariant()
    def within_the_quota(self) -> None:
        assert on_disk(self.folder) <= self.store.used_bytes() <= QUOTA

    @invariant()
    def kept_what_must_stay(self) -> None:
        here = {model.root: model for model in self.store.models()}
        for number in self.pinned | set(self.used):
            model = self.model(number)
            stored = here[model.root]
            for path in self.paths[number]:
                assert (stored.path / path).read_bytes() == model.files[path]
            absent = model.files.keys() - self.paths[number]
            assert {file.path for file in self.store.absent(model.root)} == absent
            assert (stored.complete, stored.file_count) == (not absent, len(self.paths[number]))


TestQuota = Quota.TestCase
TestQuota.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
