"""Model directories: committed as a whole, changed only in their label, removed as a whole.

Order of a commit: links in a hidden directory, plan, rename, label, rows. Of a removal: label, rows, links, blobs. So
wherever it stops, a label means a whole model, and everything without one is cleared at the next start.

A model may be incomplete: its plan names every file, and gives the hashes of those that are here. When further files
come, the order is plan, links, label, rows; the next start links what a crash left unlinked.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.names import check_name
from ipfs_accelerate_node.content.plan import ModelPlan
from ipfs_accelerate_node.errors import Conflict, NotFound, StorageError
from ipfs_accelerate_node.store import disk, sidecar
from ipfs_accelerate_node.store.blobs import Blobs
from ipfs_accelerate_node.store.failpoints import Failpoints
from ipfs_accelerate_node.store.index import FileRow, Index
from ipfs_accelerate_node.store.layout import Layout
from ipfs_accelerate_node.store.members import Directories, files_here, member_path, root_is_known, wanted_files
from ipfs_accelerate_node.store.shelf import Shelf
from ipfs_accelerate_node.store.sidecar import Hashes, Label, is_known
from ipfs_accelerate_node.store.types import CorruptFile, Provenance, StoredModel

log = logging.getLogger(__name__)
NEW_PREFIX = ".new-"

Departure = Callable[[ModelPlan, Sequence[tuple[Cid, bytes]]], None]


class Models:
    """lock: the store's; every change of what is on disk happens under it."""

    def __init__(
        self,
        layout: Layout,
        index: Index,
        lock: threading.RLock,
        failpoints: Failpoints,
    ) -> None:
        self._layout = layout
        self._index = index
        self._lock = lock
        self._failpoints = failpoints
        self._in_use: Counter[Cid] = Counter()
        self.shelf = Shelf(index, layout)
        self.directories = Directories(layout)
        self.blobs = Blobs(layout, index, lock, failpoints, self.quarantine)
        self.on_departure: Departure = lambda plan, nodes: None

    def commit(
        self,
        plan: ModelPlan,
        nodes: Iterable[tuple[Cid, bytes]],
        label: Label,
        paths: Collection[str] | None = None,
    ) -> StoredModel:
        """The model, durable, with the files at those paths (None: all); one that is here already gains label's names,
        pin and visibility, and the files that it lacked.

        Raises NotFound if such a file is not a blob, IntegrityError for a wrong node block, UnsafeContent,
        StorageError, Conflict if a name means another root.
        """
        nodes = list(nodes)
        for cid, block in nodes:
            cid.check(block, "a node block")
        with self._lock, disk.storing(f"cannot commit {plan.root}"):
            self._layout.check()
            for name in label.names:
                self._check_name_free(name, plan.root)
            here = wanted_files(plan, paths)
            label, returns = self._with_damaged(label)
            if returns:  # what the quarantine left of it
                here |= {file.cid.canonical for file in plan.files if self._index.file(file.cid) is not None}
            if (found := self.shelf.model(plan.root)) is not None:
                return self._widen(found, label, plan, here, nodes)
            files = self._rows_of(plan, here)
            if not root_is_known(plan, nodes):
                raise NotFound(f"the block of {plan.root} itself is missing", code="missing_block")
            label = replace(label, root=plan.root.canonical, last_used=self._index.tick())
            self._write(plan, files, nodes, label)
            self._failpoints.hit("commit.before_row")
            self.shelf.put(label, plan, {cid: row.id for cid, row in files.items()}, nodes)
            disk.unlink_if_there(f"{label.root}.json", dir_fd=self._layout.quarantine)
        return self.get(plan.root)

    def get(self, root: Cid) -> StoredModel:
        """Raises NotFound."""
        found = self.shelf.model(root)
        if found is None:
            raise NotFound(f"{root} is not stored here", cid=str(root))
        return found

    def relabel(
        self,
        root: Cid,
        *,
        names: Iterable[str] | None = None,
        pinned: bool | None = None,
        public: bool | None = None,
        announce: bool | None = None,
        provenance: Provenance | None = None,
    ) -> StoredModel:
        """Durable before it returns. Raises NotFound, StorageError."""
        with self._lock, disk.storing(f"cannot change {root}"):
            found = self.get(root)
            label = replace(
                self.shelf.label(found),
                names=found.names if names is None else tuple(sorted(set(names))),
                pinned=found.pinned if pinned is None else pinned,
                public=found.public if public is None else public,
                announce=found.announce if announce is None else announce,
                provenance=provenance or found.provenance,
            )
            self._write_label(label)
            self._failpoints.hit("label.before_row")
            self.shelf.relabel(label)
        return self.get(root)

    def set_name(self, root: Cid, name: str) -> StoredModel:
        with self._lock:
            found = self.get(root)
            self._check_name_free(name, root)
            return found if name in found.names else self.relabel(root, names=(*found.names, name))

    def drop_name(self, name: str) -> None:
        """Raises NotFound."""
        with self._lock:
            root = self.shelf.named(name)
            if root is None:
                raise NotFound(f"no model is called {name!r}")
            self.relabel(root, names=[other for other in self.get(root).names if other != name])

    @contextlib.contextmanager
    def use(self, root: Cid) -> Iterator[StoredModel]:
        """Not removed meanwhile. Raises NotFound."""
        with self._lock:
            found = self.get(root)
            self._in_use[found.root] += 1
            self.shelf.touch(root)
        try:
            yield found
        finally:
            with self._lock:
                self._in_use[found.root] -= 1

    def in_use(self, root: Cid) -> bool:
        return self._in_use[root.canonical] > 0

    def remove(self, root: Cid, *, force: bool = False) -> int:
        """Returns the bytes freed: files that other models hold stay. Raises NotFound, Conflict, StorageError."""
        with self._lock, disk.storing(f"cannot remove {root}"):
            found = self.get(root)
            if self.in_use(root):
                raise Conflict(f"{root} is in use; unload it first", cid=str(found.root))
            if found.pinned and not force:
                raise Conflict(f"{root} is pinned; unpin it or use force", cid=str(found.root))
            self._layout.check()
            self._departing(found.root)
            disk.unlink_if_there(f"{found.root}.json", dir_fd=self._layout.models)
            os.fsync(self._layout.models)
            self._failpoints.hit("remove.before_rows")
            members = self._files_of(found.root)
            self.shelf.drop(found.root)
            self._failpoints.hit("remove.before_links")
            self._clear(found.root)
            going = [row for row in members if not self._index.homes(row.id) and not self.blobs.is_guarded(row.cid)]
            freed = sum(self.blobs.drop(row) for row in going)
        log.info("store.remove root=%s freed=%d", found.root, freed)
        return freed

    def quarantine(self, cid: Cid, reason: str) -> CorruptFile:
        """Takes a file out of the store, with every equal file (the same inode) and every model that holds one.

        Their labels stay in quarantine: a later commit of the same root gets its names and pin back.
        """
        with self._lock, disk.storing(f"cannot quarantine {cid}"):
            row = self._index.file(cid)
            if row is None:
                return CorruptFile(cid, (), (), reason)
            twins = [row, *(twin for twin in self._index.same_bytes(row.sha256) if twin.id != row.id)]
            homes = sorted({home for twin in twins for home in self._index.homes(twin.id)}, key=str)
            roots = tuple(dict.fromkeys(root for root, _ in homes))
            if disk.stat_if_there(str(row.cid), dir_fd=self._layout.blobs) is not None:
                self._layout.set_aside(str(row.cid), self._layout.blobs)
            for root in roots:
                self.take_down(root)
            for twin in twins:
                self.blobs.drop(twin)
        log.error("store.quarantine file=%s roots=%s reason=%s", cid, ",".join(map(str, roots)), reason)
        return CorruptFile(row.cid, tuple(f"{root}/{path}" for root, path in homes), roots, reason)

    def _departing(self, root: Cid) -> None:
        """Tells who refers to the model's files (Kubo's filestore) what goes, while its plan can still be read."""
        try:
            plan = self.read_plan(root)
        except (NotFound, StorageError) as exc:
            log.warning("store.depart root=%s plan unreadable: %s", root, exc)
        else:
            self.on_departure(plan.plan, plan.nodes)

    def take_down(self, root: Cid) -> None:
        """A model that lost a file: its label goes to quarantine, its other files and node blocks stay for a retry."""
        self._departing(root)
        name = f"{root.canonical}.json"
        with contextlib.suppress(FileNotFoundError):
            os.rename(name, name, src_dir_fd=self._layout.models, dst_dir_fd=self._layout.quarantine)
        os.fsync(self._layout.models)
        self.shelf.drop(root, keep_nodes=True)
        self._clear(root)

    def damaged(self) -> list[Label]:
        """Models that were taken down and not fetched again."""
        with self._lock, disk.storing("cannot read the quarantine"):
            names = [name for name in os.listdir(self._layout.quarantine) if name.endswith(".json")]
            return [label for name in sorted(names) if (label := self.read_label(name, self._layout.quarantine))]

    def read_label(self, name: str, dir_fd: int) -> Label | None:
        """None if there is none that can be read."""
        try:
            return sidecar.decode_label(disk.read_file(name, dir_fd=dir_fd, limit_bytes=sidecar.LABEL_LIMIT_BYTES))
        except (FileNotFoundError, sidecar.BadSidecar):
            return None

    def read_plan(self, root: Cid) -> sidecar.PlanFile:
        """Raises NotFound, StorageError where it cannot be read or is corrupt."""
        try:
            with disk.storing(f"cannot read the plan of {root}"):
                data = disk.read_file(
                    f"{root.canonical}.plan", dir_fd=self._layout.models, limit_bytes=sidecar.PLAN_LIMIT_BYTES
                )
            return sidecar.decode_plan(data)
        except sidecar.BadSidecar as exc:
            raise StorageError(f"the plan of {root} is corrupt: {exc}") from exc

    def mend(self, root: Cid) -> list[tuple[Cid, str]]:
        """Links again whatever of a model's directory is not its blob. Returns file and ``<root>/<path>`` of each."""
        with self._lock, disk.storing(f"cannot put {root} right"):
            if self.shelf.model(root) is None:
                return []
            record = self.read_plan(root)
            mended = self.directories.mend(str(root.canonical), record.plan, record.here)
        return [(file.cid, f"{root.canonical}/{member_path(record.plan, file.path)}") for file in mended]

    def note_hashes(self, root: Cid) -> None:
        """Puts hashes that became known since into the model's plan, once all of them are. With the store's lock."""
        rows = {row.cid: row for row in self._files_of(root)}
        if all(is_known(row.sha256) for row in rows.values()):
            record = self.read_plan(root)
            self._write_plan(record.plan, rows, record.nodes)

    # private

    def _write(self, plan: ModelPlan, files: dict[Cid, FileRow], nodes: list[tuple[Cid, bytes]], label: Label) -> None:
        new, name = f"{NEW_PREFIX}{label.root}", str(label.root)
        self._clear(label.root)
        self._failpoints.hit("commit.before_links")
        try:
            self.directories.fill(new, plan, files_here(plan, files))
            self._failpoints.hit("commit.before_plan")
            self._write_plan(plan, files, nodes)
            self._failpoints.hit("commit.before_rename")
            os.rename(new, name, src_dir_fd=self._layout.models, dst_dir_fd=self._layout.models)
            os.fsync(self._layout.models)
            self._failpoints.hit("commit.before_label")
            self._write_label(label)
        except OSError:
            self._clear(label.root)
            raise

    def _write_plan(self, plan: ModelPlan, files: dict[Cid, FileRow], nodes: list[tuple[Cid, bytes]]) -> None:
        hashes = {cid: Hashes(row.sha256, row.git_sha1) for cid, row in files.items()}
        name = f"{plan.root.canonical}.plan"
        disk.write_file(name, sidecar.encode_plan(plan, hashes, nodes), dir_fd=self._layout.models)

    def _rows_of(self, plan: ModelPlan, here: Collection[Cid]) -> dict[Cid, FileRow]:
        """The rows of the files that are to be here. Every name of the plan is checked, also of those that are not."""
        rows: dict[Cid, FileRow] = {}
        for file in plan.files:
            for part in member_path(plan, file.path).split("/"):
                check_name(part)
            cid = file.cid.canonical
            if cid not in here or cid in rows:
                continue
            row = self._index.file(cid)
            if row is None:
                raise NotFound(f"{file.path or plan.root} ({file.cid}) is not stored yet", cid=str(file.cid))
            rows[cid] = row
        return rows

    def _widen(
        self, found: StoredModel, label: Label, plan: ModelPlan, here: Collection[Cid], nodes: list[tuple[Cid, bytes]]
    ) -> StoredModel:
        names = set(found.names) | set(label.names)
        pinned, public = found.pinned or label.pinned, found.public or label.public
        announce = found.announce or label.announce
        self.shelf.touch(found.root)
        if not found.complete:
            self._extend(found, plan, here, nodes)
        before = (found.names, found.pinned, found.public, found.announce)
        if (tuple(sorted(names)), pinned, public, announce) == before:
            return self.get(found.root)
        return self.relabel(found.root, names=names, pinned=pinned, public=public, announce=announce)

    def _extend(
        self, found: StoredModel, plan: ModelPlan, here: Collection[Cid], nodes: list[tuple[Cid, bytes]]
    ) -> None:
        """An incomplete model gains those of the files that it lacks. Raises NotFound if one is not a blob.

        What its own plan says of a file that was not here may be a claim of its directory: that of plan counts. The
        nodes of such a file may come now.
        """
        record = self.read_plan(found.root)
        if not set(here) - record.hashes.keys():
            return
        known = {file.path: file for file in record.here}
        plan = replace(record.plan, files=tuple(known.get(file.path, file) for file in plan.files))
        files = self._rows_of(plan, record.hashes.keys() | set(here))
        nodes = list({cid.canonical: (cid, block) for cid, block in (*record.nodes, *nodes)}.values())
        self._failpoints.hit("extend.before_plan")
        self._write_plan(plan, files, nodes)
        try:
            self._failpoints.hit("extend.before_links")
            self.directories.mend(str(found.root), plan, files_here(plan, files))
        except OSError:
            self._write_plan(record.plan, {cid: files[cid] for cid in record.hashes}, record.nodes)
            raise
        self._failpoints.hit("extend.before_row")
        self.shelf.extend(found.root, plan, {cid: row.id for cid, row in files.items()}, nodes)

    def _with_damaged(self, label: Label) -> tuple[Label, bool]:
        """With what its label in quarantine adds, and whether there is one."""
        old = self.read_label(f"{label.root.canonical}.json", self._layout.quarantine)
        if old is None:
            return label, False
        names = (name for name in old.names if self.shelf.named(name) is None)
        widened = replace(
            label,
            names=tuple(sorted({*label.names, *names})),
            pinned=label.pinned or old.pinned,
            public=label.public or old.public,
            announce=label.announce or old.announce,
        )
        return widened, True

    def _check_name_free(self, name: str, root: Cid) -> None:
        other = self.shelf.named(name)
        if other is not None and other != root.canonical:
            raise Conflict(f"{name!r} is the name of {other}", cid=str(other))

    def _files_of(self, root: Cid) -> list[FileRow]:
        sql = (
            "SELECT DISTINCT files.cid FROM members JOIN models ON models.id=model JOIN files ON files.id=file"
            " WHERE root=?"
        )
        rows = [self._index.file(Cid.decode(row[0])) for row in self._index.all(sql, (bytes(root.canonical),))]
        return [row for row in rows if row is not None]

    def _write_label(self, label: Label) -> None:
        disk.write_file(f"{label.root}.json", sidecar.encode_label(label), dir_fd=self._layout.models)

    def _clear(self, root: Cid) -> None:
        """Directory and plan of a model without a label."""
        for name in (str(root.canonical), f"{NEW_PREFIX}{root.canonical}"):
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(name, dir_fd=self._layout.models)
        disk.unlink_if_there(f"{root.canonical}.plan", dir_fd=self._layout.models)
