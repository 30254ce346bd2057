"""What goes when room is needed: unpinned models and files of no model, longest unused first, then parts of files that
nobody brings now."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.store.index import FileRow, Index
from ipfs_accelerate_node.store.models import Models
from ipfs_accelerate_node.store.partials import Partials
from ipfs_accelerate_node.store.types import GcReport, StoredModel
from ipfs_accelerate_node.store.unnameds import Unnameds

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Evicted:
    """Since the store was opened: models and files, and the bytes that were freed for room."""

    count: int = 0
    size_bytes: int = 0


class Eviction:
    """Never takes what is pinned, in use, or being brought by someone. Callers hold the store's lock."""

    def __init__(self, index: Index, models: Models, partials: Partials, unnamed: Unnameds) -> None:
        self._index = index
        self._models = models
        self._partials = partials
        self._unnamed = unnamed
        self.evicted = Evicted()

    def evictable_bytes(self) -> int:
        """What `evict` could free at most: files all of whose models may go count once, as one inode."""
        going = {model.root for model in self._candidates()}
        staying = [model.root for model in self._models.shelf.models() if model.root not in going]
        kept = {sha for root in staying for sha, _ in self._bytes_of(root)}
        kept |= {row.sha256 for row in self._models.blobs.guarded_files()}
        loose = {row.sha256: row.size for _, row in self._models.blobs.loose()}
        freed = {sha: size for root in going for sha, size in self._bytes_of(root)}
        files = sum(int(size) for sha, size in {**loose, **freed}.items() if sha not in kept)
        return files + self._partials.resting_bytes() + self._unnamed.resting_bytes()

    def evict(self, needed_bytes: int) -> int:
        """Frees at least so much if that is possible. Returns the bytes freed."""
        freed = self._evict(needed_bytes)
        self.evicted.size_bytes += freed
        return freed

    def _evict(self, needed_bytes: int) -> int:
        models: list[tuple[int, StoredModel | FileRow]] = [(model.last_used, model) for model in self._candidates()]
        freed = 0
        for _, going in sorted([*models, *self._models.blobs.loose()], key=lambda used: used[0]):
            if freed >= needed_bytes:
                return freed
            self.evicted.count += 1
            if isinstance(going, StoredModel):
                freed += self._models.remove(going.root)
                log.info("store.evict root=%s", going.root)
            else:
                freed += self._models.blobs.drop(going)
                log.info("store.evict file=%s", going.cid)
        if freed < needed_bytes:
            freed += self._partials.drop_resting(needed_bytes - freed)
        if freed < needed_bytes:
            freed += self._unnamed.drop_resting(needed_bytes - freed)
        return freed

    def collect(self) -> GcReport:
        """All that `evict` may ever take, and node blocks of no model."""
        removed: list[Cid] = []
        freed = 0
        for model in self._candidates():
            freed += self._models.remove(model.root)
            removed.append(model.root)
        loose = [row for _, row in self._models.blobs.loose()]
        freed += sum(self._models.blobs.drop(row) for row in loose)
        freed += self._partials.drop_resting() + self._unnamed.drop_resting()
        if not self._partials.is_open():
            self._index.run("DELETE FROM nodes WHERE NOT EXISTS(SELECT 1 FROM model_nodes WHERE node=nodes.id)")
        return GcReport(tuple(removed), freed, tuple(row.cid for row in loose))

    def _candidates(self) -> list[StoredModel]:
        models = self._models.shelf.models()
        return [model for model in models if not model.pinned and not self._models.in_use(model.root)]

    def _bytes_of(self, root: Cid) -> list[tuple[bytes, int]]:
        """sha256 and size of the distinct files of a model."""
        sql = (
            "SELECT DISTINCT sha256, size FROM files JOIN members ON file=files.id"
            " JOIN models ON models.id=model WHERE root=?"
        )
        return [(row[0], int(row[1])) for row in self._index.all(sql, (bytes(root),))]
