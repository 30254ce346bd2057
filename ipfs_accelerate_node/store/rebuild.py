"""At every start: makes index and disk agree, whatever a crash, a power cut or a hand left behind.

The disk wins. A label (``models/<root>.json``) means a model; a missing index is the case in which all of them are new.
No file is hashed here: sizes are compared, and every later read and `verify` hash.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import replace

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.plan import FilePlan, ModelPlan
from ipfs_accelerate_node.errors import NotFound, StorageError
from ipfs_accelerate_node.store import disk
from ipfs_accelerate_node.store.index import Index, IndexDamaged
from ipfs_accelerate_node.store.layout import Layout, canonical_name
from ipfs_accelerate_node.store.members import member_path
from ipfs_accelerate_node.store.models import Models
from ipfs_accelerate_node.store.partials import Partials
from ipfs_accelerate_node.store.sidecar import Label

log = logging.getLogger(__name__)


def open_index(layout: Layout) -> Index:
    """The index, or an empty one where it cannot be read (the old one goes to quarantine).

    Raises StorageError for one of a newer version.
    """
    path = layout.root / "index.sqlite"
    with disk.storing(f"index {path}"):
        found = disk.stat_if_there(path.name, dir_fd=layout.root_fd)
        if found is not None and not stat.S_ISREG(found.st_mode):
            raise StorageError(f"{path} is not a file (symlinks are not followed)")
        try:
            return Index(path)
        except IndexDamaged as exc:
            log.warning("store.index_rebuilt reason=%s", exc)
            for suffix in ("", "-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    layout.set_aside(path.name + suffix, layout.root_fd)
        try:
            return Index(path)
        except IndexDamaged as exc:
            raise StorageError(f"index {path}: {exc}") from exc


class Reconciliation:
    """One pass over the store's directories; `run` needs the store's lock and no other user of the store."""

    def __init__(self, layout: Layout, index: Index, models: Models, partials: Partials) -> None:
        self._layout = layout
        self._index = index
        self._models = models
        self._partials = partials

    def run(self) -> None:
        """Raises StorageError if the disk refuses."""
        with disk.storing(f"cannot check {self._layout.root}"):
            self._clean_root()
            labels = dict(self._labels())
            self._drop_models_without(labels)
            blobs = self._blob_sizes()
            for label in labels.values():
                self._agree(label, blobs)
            self._settle_blobs(blobs)
            self._partials.scan()

    def _clean_root(self) -> None:
        for name in os.listdir(self._layout.root_fd):
            if name.endswith(".tmp"):
                with contextlib.suppress(IsADirectoryError):
                    disk.unlink_if_there(name, dir_fd=self._layout.root_fd)

    def _labels(self) -> Iterator[tuple[Cid, Label]]:
        """Complete models; what is in ``models/`` without a label is removed on the way."""
        models = self._layout.models
        names = set(os.listdir(models))
        labelled = set()
        for name in sorted(names):
            root = canonical_name(name.removesuffix(".json")) if name.endswith(".json") else None
            if root is None:
                continue
            label = self._models.read_label(name, models)
            if label is None or label.root != root:
                log.warning("store.bad_label root=%s", root)
                self._layout.set_aside(name, models)
                continue
            labelled.add(str(root))
            yield root, label
        for name in names:
            if name.removesuffix(".json").removesuffix(".plan") not in labelled:
                self._remove_stray(name)

    def _remove_stray(self, name: str) -> None:
        found = disk.stat_if_there(name, dir_fd=self._layout.models)
        if found is None:
            return
        if stat.S_ISDIR(found.st_mode):
            shutil.rmtree(name, dir_fd=self._layout.models)
        else:
            disk.unlink_if_there(name, dir_fd=self._layout.models)

    def _drop_models_without(self, labels: dict[Cid, Label]) -> None:
        for model in self._models.shelf.models():
            if model.root not in labels:
                self._models.shelf.drop(model.root)

    def _blob_sizes(self) -> dict[Cid, int]:
        """Blobs by their name; what has no such name, or is no plain file, goes to quarantine."""
        sizes: dict[Cid, int] = {}
        with os.scandir(self._layout.blobs) as entries:
            for entry in entries:
                cid = canonical_name(entry.name)
                if cid is None or not entry.is_file(follow_symlinks=False):
                    self._layout.set_aside(entry.name, self._layout.blobs)
                else:
                    sizes[cid] = entry.stat(follow_symlinks=False).st_size
        return sizes

    def _agree(self, label: Label, blobs: dict[Cid, int]) -> None:
        """The model's rows are there and say what its label says; files that lost their blob are linked back.

        An incomplete model may have got files that its rows do not tell of yet: its plan is read every time.
        """
        known = self._models.shelf.model(label.root)
        if known is not None and known.complete and self._is_whole(label.root, blobs):
            if self._models.shelf.label(known) != label:
                self._models.shelf.relabel(label)
            return
        try:
            self._adopt(label if known is None else replace(label, last_used=known.last_used), blobs)
        except (StorageError, NotFound) as exc:
            log.warning("store.model_taken_down root=%s reason=%s", label.root, exc)
            self._models.take_down(label.root)

    def _is_whole(self, root: Cid, blobs: dict[Cid, int]) -> bool:
        if not self._has_directory(root):
            return False
        if disk.stat_if_there(f"{root}.plan", dir_fd=self._layout.models) is None:
            return False
        sql = (
            "SELECT DISTINCT files.cid, size FROM files JOIN members ON file=files.id"
            " JOIN models ON models.id=model WHERE root=?"
        )
        rows = self._index.all(sql, (bytes(root),))
        return all(blobs.get(Cid.decode(cid)) == size for cid, size in rows)

    def _has_directory(self, root: Cid) -> bool:
        found = disk.stat_if_there(str(root), dir_fd=self._layout.models)
        return found is not None and stat.S_ISDIR(found.st_mode)

    def _adopt(self, label: Label, blobs: dict[Cid, int]) -> None:
        """Rows out of the plan. Raises StorageError if the plan is unreadable or a file is gone for good."""
        record = self._models.read_plan(label.root)
        for file in record.here:
            self._find_blob(record.plan, file, label.root, blobs)
        name, directories = str(label.root), self._models.directories
        if self._has_directory(label.root):
            directories.mend(name, record.plan, record.here)
        else:
            self._remove_stray(name)
            directories.fill(name, record.plan, record.here)
        with self._index.transaction():
            self._models.shelf.drop(label.root)
            files = {}
            for file in record.here:
                hashes = record.hashes[file.cid.canonical]
                row = self._index.add_file(file.cid, file.size, hashes.sha256, hashes.git_sha1, file.leaves)
                files[file.cid.canonical] = row
            self._models.shelf.put(label, record.plan, files, record.nodes)

    def _find_blob(self, plan: ModelPlan, file: FilePlan, root: Cid, blobs: dict[Cid, int]) -> None:
        cid, name = file.cid.canonical, str(file.cid.canonical)
        if blobs.get(cid) == file.size:
            return
        if blobs.pop(cid, None) is not None:
            self._layout.set_aside(name, self._layout.blobs)
        link = f"{root}/{member_path(plan, file.path)}"
        found = self._stat_inside(link)
        if found is None or not stat.S_ISREG(found.st_mode) or found.st_size != file.size:
            raise StorageError(f"{file.path or root} ({cid}) is missing or cut short")
        fds = {"src_dir_fd": self._layout.models, "dst_dir_fd": self._layout.blobs}
        os.link(link, name, follow_symlinks=False, **fds)
        blobs[cid] = file.size

    def _stat_inside(self, path: str) -> os.stat_result | None:
        try:
            return os.stat(path, dir_fd=self._layout.models, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _settle_blobs(self, blobs: dict[Cid, int]) -> None:
        """Rows without a blob go; blobs without a row become parts, whose leaves count once they are hashed again."""
        rows = {row.cid: row for row in self._index.files()}
        for cid, row in rows.items():
            if blobs.get(cid) != row.size:
                if cid in blobs:
                    self._layout.set_aside(str(cid), self._layout.blobs)
                self._index.drop_file(cid)
        for cid in blobs.keys() - rows.keys():
            name = str(cid)
            found = disk.stat_if_there(name, dir_fd=self._layout.blobs)
            if found is not None and found.st_nlink > 1:  # its bytes stay under their other name
                disk.unlink_if_there(name, dir_fd=self._layout.blobs)
            elif found is not None:
                self._partials.adopt(name, self._layout.blobs, cid)
