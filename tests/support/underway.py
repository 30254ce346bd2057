"""A fetch that came so far: part of a small model in a store, announced as a fetch announces it."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.store import PartialFile, Store
from tests.support.gateway import SmallModel, small_model

LEAF = 64
BYTES = random.Random(5).randbytes(LEAF * 10 + 5)
MODEL = small_model({"w.bin": BYTES, "config.json": b"{}", "sub/v.bin": random.Random(6).randbytes(LEAF * 3)})
HERE = {"w.bin": {1, 2, 3, 7, 10}, "config.json": {0}, "sub/v.bin": set[int]()}


@contextmanager
def coming(
    store: Store, model: SmallModel, here: Mapping[str, set[int]], *, public: bool = True
) -> Iterator[dict[str, PartialFile]]:
    """A fetch as far as it came: its node blocks and those leaves of its files; yields the partial files by path."""
    for cid, block in model.nodes.items():
        store.keep_node(cid, block)
    parts = {file.path: store.partial(file.cid, file.size) for file in model.plan.files}
    for file in model.plan.files:
        for number in here[file.path]:
            leaf = file.leaves[number]
            parts[file.path].write(leaf, model.leaves[leaf.cid.canonical])
    arriving = store.underway.announce(model.plan, model.nodes.items(), public=public)
    try:
        yield parts
    finally:
        store.underway.withdraw(arriving)
        for part in parts.values():
            part.close()


def cid_of(path: str, model: SmallModel = MODEL) -> Cid:
    return next(file.cid for file in model.plan.files if file.path == path)


def descriptors(of: Path) -> list[str]:
    """Open files of this process below a folder."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:  # the one that listed the directory
            continue
    return [name for name in found if name.startswith((f"{of}/partial/", f"{of}/blobs/"))]
