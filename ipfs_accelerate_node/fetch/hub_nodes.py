"""The node blocks of commits whose files were checked here: what a confirmed map means, leaf by leaf.

``<cache>/hub/nodes/<root>.car``, written when a root of a public commit is noted, stays when the model goes. So a file
that is fetched from the Hub again is known by its leaves beforehand, each is checked as it comes, and nobody else need
be asked what they are. A CAR that is damaged, or lacks a block, is as good as none.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from ipfs_accelerate_node.content.car import CarReader, car_block, car_header
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import NodeError
from ipfs_accelerate_node.fetch.hub_shelf import KeptCommit
from ipfs_accelerate_node.store import Store
from ipfs_accelerate_node.store.disk import open_directory, read_file, write_file

log = logging.getLogger(__name__)

MAX_CAR_BYTES = 64 << 20  # the nodes of a TiB
MAX_TOTAL_BYTES = 1 << 30  # the longest unused go first


class HubNodes:
    """Blocks, and may be used from several threads."""

    def __init__(self, cache: Path, store: Store) -> None:
        self._folder = cache / "hub" / "nodes"
        self._store = store
        for left in self._folder.glob("*.tmp"):  # by a crash
            left.unlink(missing_ok=True)

    def keep(self, kept: KeptCommit) -> None:
        """Of a stored model, the commit's root; what strangers may not have is not kept beyond it."""
        if kept.root is None or kept.restricted or not kept.confirmed or self._place(kept.root).exists():
            return
        root = Cid.parse(kept.root)
        try:
            model = self._store.model(root)
            if model is None or not model.complete:
                return
            parts = [car_header((root,)), *(car_block(cid, block) for cid, block in self._store.nodes(root))]
            if sum(map(len, parts)) > MAX_CAR_BYTES:
                return
            self._write(kept.root, b"".join(parts))
        except (NodeError, OSError) as exc:
            log.warning("hub_nodes.not_kept root=%s reason=%s", kept.root, exc)

    def lay_out(self, kept: KeptCommit) -> bool:
        """Puts what is known of the commit's root where a fetch looks first. Whether anything is known."""
        if kept.root is None or not kept.confirmed:
            return False
        blocks = self._read(kept.root)
        try:
            for cid, block in blocks.items():
                self._store.keep_node(cid, block)
        except NodeError as exc:
            log.warning("hub_nodes.not_laid_out root=%s reason=%s", kept.root, exc)
            return False
        return bool(blocks)

    # private

    def _place(self, root: str) -> Path:
        return self._folder / f"{Cid.parse(root).canonical}.car"

    def _read(self, root: str) -> dict[Cid, bytes]:
        place = self._place(root)
        try:
            fd = open_directory(self._folder)
            try:
                data = read_file(place.name, dir_fd=fd, limit_bytes=MAX_CAR_BYTES)
            finally:
                os.close(fd)
            os.utime(place)
            reader = CarReader(origin=place.name)
            blocks = {cid.canonical: block for cid, block in reader.feed(data)}
            reader.close()
            return blocks
        except FileNotFoundError:
            return {}
        except (NodeError, OSError) as exc:
            log.warning("hub_nodes.damaged file=%s reason=%s", place.name, exc)
            place.unlink(missing_ok=True)
            return {}

    def _write(self, root: str, data: bytes) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = open_directory(self._folder)
        try:
            write_file(self._place(root).name, data, dir_fd=fd)
        finally:
            os.close(fd)
        self._make_room()

    def _make_room(self) -> None:
        found = sorted(((file.stat(), file) for file in self._folder.glob("*.car")), key=lambda it: it[0].st_mtime)
        over = sum(stat.st_size for stat, _ in found) - MAX_TOTAL_BYTES
        for stat, file in found:
            if over <= 0:
                return
            file.unlink(missing_ok=True)
            over -= stat.st_size
