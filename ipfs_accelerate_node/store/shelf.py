"""Rows of models in the index: what is here, under which names, pinned or not, used when."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.plan import ModelPlan
from ipfs_accelerate_node.store.index import Index, key
from ipfs_accelerate_node.store.layout import Layout
from ipfs_accelerate_node.store.members import files_here
from ipfs_accelerate_node.store.sidecar import Label, label_json, parse_provenance
from ipfs_accelerate_node.store.types import StoredModel

_COLUMNS = (
    "id, root, size_bytes, file_count, pinned, public, announce, provenance, last_used, absent_files, absent_bytes"
)


class Shelf:
    """Queries over models; changes only rows, never files."""

    def __init__(self, index: Index, layout: Layout) -> None:
        self._index = index
        self._layout = layout

    def models(self) -> list[StoredModel]:
        """In the order of their last use, latest last."""
        with self._index.lock:
            names: dict[int, list[str]] = {}
            for name, model in self._index.all("SELECT name, model FROM names ORDER BY name"):
                names.setdefault(model, []).append(name)
            rows = self._index.all(f"SELECT {_COLUMNS} FROM models ORDER BY last_used, root")
        return [self._model(row, names.get(row[0], ())) for row in rows]

    def model(self, root: Cid) -> StoredModel | None:
        with self._index.lock:
            row = self._index.one(f"SELECT {_COLUMNS} FROM models WHERE root=?", (key(root),))
            if not row:
                return None
            names = self._index.all("SELECT name FROM names WHERE model=? ORDER BY name", (row[0],))
        return self._model(row, [name for (name,) in names])

    def named(self, name: str) -> Cid | None:
        row = self._index.one("SELECT root FROM models JOIN names ON model=models.id WHERE name=?", (name,))
        return Cid.decode(row[0]) if row else None

    def put(self, label: Label, plan: ModelPlan, files: Mapping[Cid, int], nodes: Iterable[tuple[Cid, bytes]]) -> None:
        """A new model. files: canonical CID -> row, each of which must be there, of those that are here."""
        with self._index.transaction():
            insert = (
                "INSERT INTO models(root, size_bytes, file_count, pinned, public, announce, provenance, last_used)"
                " VALUES(?,0,0,?,?,?,?,?)"
            )
            state = (label.pinned, label.public, label.announce, label_json(label.provenance), label.last_used)
            model = self._index.run(insert, (key(label.root), *state)).lastrowid
            self.extend(label.root, plan, files, nodes)
            self._name(label, model)

    def extend(self, root: Cid, plan: ModelPlan, files: Mapping[Cid, int], nodes: Iterable[tuple[Cid, bytes]]) -> None:
        """Which of the plan's files and nodes are here from now on; files as in `put`."""
        here = files_here(plan, files)
        size = sum(file.size for file in here)
        absent = (len(plan.files) - len(here), plan.size_bytes - size)
        with self._index.transaction():
            model = self._index.one("SELECT id FROM models WHERE root=?", (key(root),))[0]
            self._index.many(
                "INSERT OR REPLACE INTO members(model, path, file) VALUES(?,?,?)",
                ((model, file.path, files[file.cid.canonical]) for file in here),
            )
            self._index.run(
                "UPDATE models SET size_bytes=?, file_count=?, absent_files=?, absent_bytes=? WHERE id=?",
                (size, len(here), *absent, model),
            )
            ids = {self._index.add_node(cid, block) for cid, block in nodes}
            self._index.many(
                "INSERT OR IGNORE INTO model_nodes(model, node) VALUES(?,?)", ((model, node) for node in ids)
            )

    def relabel(self, label: Label) -> None:
        """Names, pin, visibility and provenance of a model that is there."""
        with self._index.transaction():
            self._index.run(
                "UPDATE models SET pinned=?, public=?, announce=?, provenance=? WHERE root=?",
                (label.pinned, label.public, label.announce, label_json(label.provenance), key(label.root)),
            )
            model = self._index.one("SELECT id FROM models WHERE root=?", (key(label.root),))[0]
            self._index.run("DELETE FROM names WHERE model=?", (model,))
            self._name(label, model)

    def touch(self, root: Cid) -> None:
        self._index.run("UPDATE models SET last_used=? WHERE root=?", (self._index.tick(), key(root)))

    def drop(self, root: Cid, *, keep_nodes: bool = False) -> None:
        """Its rows and, unless kept for a retry, node blocks that no other model has; its files' rows stay."""
        with self._index.transaction():
            nodes = self._index.all(
                "SELECT node FROM model_nodes JOIN models ON models.id=model WHERE root=?", (key(root),)
            )
            self._index.run("DELETE FROM models WHERE root=?", (key(root),))
            if not keep_nodes:
                self._index.many(
                    "DELETE FROM nodes WHERE id=? AND NOT EXISTS(SELECT 1 FROM model_nodes WHERE node=nodes.id)", nodes
                )

    def label(self, model: StoredModel) -> Label:
        return Label(
            model.root, model.names, model.pinned, model.public, model.provenance, model.last_used, model.announce
        )

    def _name(self, label: Label, model: Any) -> None:
        """A name that another model has by now stays with it."""
        self._index.many("INSERT OR IGNORE INTO names(name, model) VALUES(?,?)", ((n, model) for n in label.names))

    def _model(self, row: tuple[Any, ...], names: Iterable[str]) -> StoredModel:
        root = Cid.decode(row[1])
        return StoredModel(
            root=root,
            path=self._layout.model_path(root),
            size_bytes=row[2],
            file_count=row[3],
            names=tuple(names),
            pinned=bool(row[4]),
            public=bool(row[5]),
            announce=bool(row[6]),
            provenance=parse_provenance(row[7]),
            last_used=row[8],
            absent_files=row[9],
            absent_bytes=row[10],
        )
