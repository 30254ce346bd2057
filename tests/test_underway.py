"""What the store says of roots that are being fetched: their bitmaps, and descriptors that it lends."""

from __future__ import annotations

import os
import random
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipfs_accelerate_node.store import Store
from tests.support.gateway import small_model
from tests.support.underway import BYTES, LEAF, MODEL, coming


def leaf_sets() -> st.SearchStrategy[list[tuple[int, int, frozenset[int]]]]:
    """Per file: how many leaves, bytes in the last one, which are here."""
    return st.lists(
        st.integers(1, 20).flatmap(
            lambda count: st.tuples(st.just(count), st.integers(1, LEAF), st.frozensets(st.integers(0, count - 1)))
        ),
        min_size=1,
        max_size=4,
    )


@given(leaf_sets())
@settings(max_examples=30, deadline=None)
def test_the_bitmap_is_what_was_written(files: list[tuple[int, int, frozenset[int]]]) -> None:
    """Against the set that was written; a file of which all is here is committed, and is a blob then."""
    rng = random.Random(repr(files))
    model = small_model({f"{n}.bin": rng.randbytes(LEAF * (c - 1) + last) for n, (c, last, _) in enumerate(files)})
    here = {f"{n}.bin": set(which) for n, (_, _, which) in enumerate(files)}
    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder) / "cache") as store:
        with coming(store, model, here) as parts:
            for file in model.plan.files:
                if len(here[file.path]) == len(file.leaves):
                    parts[file.path].commit(file)
            have = store.underway.have(model.root, public_only=True)
            assert have is not None
            assert not have.complete
            for held, file in zip(have.files, model.plan.files, strict=True):
                reference = sum(1 << n for n in here[file.path])
                assert (held.path, held.leaves) == (file.path, len(file.leaves))
                assert held.bitmap == reference.to_bytes((held.leaves + 7) // 8, "little")
        assert store.underway.have(model.root, public_only=False) is None


@pytest.mark.parametrize("end", ["commit", "close", "discard"])
def test_a_lent_descriptor_outlives_the_partial_file(tmp_path: Path, end: str) -> None:
    whole = {file.path: set(range(len(file.leaves))) for file in MODEL.plan.files}
    with Store.open(tmp_path / "cache") as store, coming(store, MODEL, whole) as parts:
        file = next(file for file in MODEL.plan.files if file.path == "w.bin")
        fd = store.underway.lend(file, 3, len(BYTES) - 3)
        assert fd is not None
        match end:
            case "commit":
                parts["w.bin"].commit(file)
            case "close":
                parts["w.bin"].close()
            case "discard":
                parts["w.bin"].discard()
        assert store.underway.lend(file, 0, 1) is None
        assert os.pread(fd, len(BYTES), 0) == BYTES
        os.close(fd)


def test_nobody_waits_for_a_commit(tmp_path: Path) -> None:
    """A big file takes the disk a while; what asks for it meanwhile is answered, and all of it is there."""
    whole = {file.path: set(range(len(file.leaves))) for file in MODEL.plan.files}
    file = next(file for file in MODEL.plan.files if file.path == "w.bin")
    committing, go_on = threading.Event(), threading.Event()
    with Store.open(tmp_path / "cache") as store, coming(store, MODEL, whole) as parts, ThreadPoolExecutor() as threads:
        hit = store.failpoints.hit

        def held(name: str) -> None:
            if name == "partial.before_fsync":
                committing.set()
                assert go_on.wait(10)
            hit(name)

        store.failpoints.hit = held  # type: ignore[method-assign]
        commit = threads.submit(parts["w.bin"].commit, file)
        assert committing.wait(10)
        try:
            fd = threads.submit(store.underway.lend, file, 3, len(BYTES)).result(5)
            assert fd is not None
            assert os.pread(fd, len(BYTES), 0) == BYTES
            os.close(fd)
            have = threads.submit(store.underway.have, MODEL.root, public_only=True).result(5)
            assert have is not None
            assert {held.path: held.bitmap for held in have.files}["w.bin"] == b"\xff\x07"
            leaf = file.leaves[4].cid
            assert (
                threads.submit(store.underway.block, leaf, public_only=True).result(5) == MODEL.leaves[leaf.canonical]
            )
        finally:
            go_on.set()
        assert commit.result(10).size == len(BYTES)
