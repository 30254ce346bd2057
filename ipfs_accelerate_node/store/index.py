"""The searchable copy of what lies on disk: `index.sqlite`.

It is derived from ``blobs/``, ``models/*.plan`` and ``models/*.json``, which are synced before a row is written. So
``synchronous=NORMAL`` is enough: WAL keeps the database whole through a power cut, and the last transactions, which may
then be lost, are made again from the files at the next start.

One connection behind one lock; every method is short, and no method reads a model's bytes.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.plan import Leaf
from ipfs_accelerate_node.errors import StorageError
from ipfs_accelerate_node.store.sidecar import LATER

_QUICK_CHECK_BYTES = 16 << 20  # a larger database is checked only after an unclean end
_TABLES = """
CREATE TABLE models(
    id INTEGER PRIMARY KEY, root BLOB NOT NULL UNIQUE, size_bytes INTEGER NOT NULL, file_count INTEGER NOT NULL,
    pinned INTEGER NOT NULL, public INTEGER NOT NULL, announce INTEGER NOT NULL, provenance TEXT NOT NULL,
    last_used INTEGER NOT NULL);
CREATE TABLE names(name TEXT PRIMARY KEY, model INTEGER NOT NULL REFERENCES models ON DELETE CASCADE) WITHOUT ROWID;
CREATE INDEX names_of ON names(model);
CREATE TABLE files(
    id INTEGER PRIMARY KEY, cid BLOB NOT NULL UNIQUE, size INTEGER NOT NULL, sha256 BLOB NOT NULL,
    git_sha1 BLOB NOT NULL);
CREATE INDEX files_by_sha256 ON files(sha256);
CREATE TABLE leaves(
    file INTEGER NOT NULL REFERENCES files ON DELETE CASCADE, offset INTEGER NOT NULL, length INTEGER NOT NULL,
    cid BLOB NOT NULL, prefix BLOB NOT NULL, suffix BLOB NOT NULL);
CREATE INDEX leaves_by_cid ON leaves(cid);
CREATE INDEX leaves_of ON leaves(file);
CREATE TABLE members(
    model INTEGER NOT NULL REFERENCES models ON DELETE CASCADE, path TEXT NOT NULL,
    file INTEGER NOT NULL REFERENCES files, PRIMARY KEY(model, path)) WITHOUT ROWID;
CREATE INDEX members_of ON members(file);
CREATE TABLE nodes(id INTEGER PRIMARY KEY, cid BLOB NOT NULL UNIQUE, block BLOB NOT NULL);
CREATE TABLE model_nodes(
    model INTEGER NOT NULL REFERENCES models ON DELETE CASCADE, node INTEGER NOT NULL REFERENCES nodes,
    PRIMARY KEY(model, node)) WITHOUT ROWID;
CREATE INDEX model_nodes_of ON model_nodes(node);
"""
_CHANGES = (  # one for each version after the first; a database of any earlier one is brought forward
    "ALTER TABLE models ADD COLUMN absent_files INTEGER NOT NULL DEFAULT 0;"
    "ALTER TABLE models ADD COLUMN absent_bytes INTEGER NOT NULL DEFAULT 0;",
    "ALTER TABLE files ADD COLUMN last_used INTEGER NOT NULL DEFAULT 0;",  # of those that no model holds
)
SCHEMA = 1 + len(_CHANGES)


class IndexDamaged(Exception):
    """The database cannot be read; the store rebuilds it."""


def key(cid: Cid) -> bytes:
    """Equal for all spellings of a CID."""
    return bytes(cid.canonical)


@dataclass(frozen=True, slots=True)
class FileRow:
    """sha256, git_sha1: as `Hashes`, so that sha256 may be a stand-in."""

    id: int
    cid: Cid
    size: int
    sha256: bytes
    git_sha1: bytes


@dataclass(frozen=True, slots=True)
class LeafRow:
    """A leaf and the file that holds it."""

    file: Cid
    leaf: Leaf


class Index:
    """Owns the connection. `transaction` nests; outside of one every statement commits by itself."""

    def __init__(self, path: Path) -> None:
        """Raises IndexDamaged, or StorageError for a database of a newer version or one that cannot be opened."""
        self.path = path
        self.lock = threading.RLock()
        self._depth = 0
        clean = not path.with_name(path.name + "-wal").exists()
        with _typed(path):
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(clean)
        except (IndexDamaged, StorageError):
            self._db.close()
            raise
        self._stored: int | None = None
        used = "SELECT max((SELECT coalesce(max(last_used), 0) FROM {}), (SELECT coalesce(max(last_used), 0) FROM {}))"
        self._clock = int(self.one(used.format("models", "files"))[0])

    def close(self) -> None:
        with self.lock:
            self._db.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; holds the lock."""
        with self.lock:
            if self._depth == 0:
                self.run("BEGIN IMMEDIATE")
            self._depth += 1
            try:
                yield
            except BaseException:
                self._depth -= 1
                if self._depth == 0 and self._db.in_transaction:
                    self._db.rollback()
                self._stored = None
                raise
            self._depth -= 1
            self._stored = None
            if self._depth == 0:
                self._commit()

    def _commit(self) -> None:
        try:
            self.run("COMMIT")
        except StorageError:
            if self._db.in_transaction:  # a full disk leaves it open
                self._db.rollback()
            raise

    def run(self, sql: str, values: Iterable[Any] = ()) -> sqlite3.Cursor:
        with self.lock, _typed(self.path):
            return self._db.execute(sql, tuple(values))

    def many(self, sql: str, rows: Iterable[tuple[Any, ...]]) -> None:
        with self.lock, _typed(self.path):
            self._db.executemany(sql, rows)

    def all(self, sql: str, values: Iterable[Any] = ()) -> list[tuple[Any, ...]]:
        with self.lock, _typed(self.path):
            return self._db.execute(sql, tuple(values)).fetchall()

    def one(self, sql: str, values: Iterable[Any] = ()) -> tuple[Any, ...]:
        """The first row; () if there is none."""
        with self.lock, _typed(self.path):
            row: tuple[Any, ...] | None = self._db.execute(sql, tuple(values)).fetchone()
        return () if row is None else row

    def tick(self) -> int:
        """The next value of the counter that orders uses; larger than all before, whatever the clock does."""
        with self.lock:
            self._clock += 1
            return self._clock

    def stored_bytes(self) -> int:
        """Bytes of distinct files and of node blocks."""
        with self.lock:
            if self._stored is None or self._depth:
                files = self.one("SELECT coalesce(sum(size), 0) FROM (SELECT DISTINCT sha256, size FROM files)")
                nodes = self.one("SELECT coalesce(sum(length(block)), 0) FROM nodes")
                self._stored = int(files[0]) + int(nodes[0])
            return self._stored

    # files and leaves

    def add_file(self, cid: Cid, size: int, sha256: bytes, git_sha1: bytes, leaves: Iterable[Leaf]) -> int:
        """Its row's id; a file that is there already keeps its row."""
        with self.transaction():
            found = self.one("SELECT id FROM files WHERE cid=?", (key(cid),))
            if found:
                return int(found[0])
            insert = "INSERT INTO files(cid, size, sha256, git_sha1, last_used) VALUES(?,?,?,?,?)"
            row_id = self.run(insert, (key(cid), size, sha256, git_sha1, self.tick())).lastrowid or 0
            self.many(
                "INSERT INTO leaves(file, offset, length, cid, prefix, suffix) VALUES(?,?,?,?,?,?)",
                ((row_id, leaf.offset, leaf.length, key(leaf.cid), leaf.prefix, leaf.suffix) for leaf in leaves),
            )
            return row_id

    def file(self, cid: Cid) -> FileRow | None:
        row = self.one("SELECT id, cid, size, sha256, git_sha1 FROM files WHERE cid=?", (key(cid),))
        return _file_row(row) if row else None

    def files(self) -> list[FileRow]:
        return [_file_row(row) for row in self.all("SELECT id, cid, size, sha256, git_sha1 FROM files ORDER BY id")]

    def same_bytes(self, sha256: bytes) -> list[FileRow]:
        rows = self.all("SELECT id, cid, size, sha256, git_sha1 FROM files WHERE sha256=?", (sha256,))
        return [_file_row(row) for row in rows]

    def of_oid(self, oid: bytes) -> list[FileRow]:
        """Files by what Hugging Face calls an oid: sha256 (32 bytes) or git's blob sha1 (20)."""
        column = "sha256" if len(oid) == 32 else "git_sha1"
        rows = self.all(f"SELECT id, cid, size, sha256, git_sha1 FROM files WHERE {column}=? ORDER BY id", (oid,))
        return [_file_row(row) for row in rows]

    def of_size(self, size: int) -> list[FileRow]:
        sql = "SELECT id, cid, size, sha256, git_sha1 FROM files WHERE size=? ORDER BY id"
        return [_file_row(row) for row in self.all(sql, (size,))]

    def unhashed(self) -> list[Cid]:
        """Files with a stand-in for their sha256, oldest first."""
        first, after = LATER + b"\x01", LATER + b"\x02"  # version 1 CIDs
        sql = "SELECT cid FROM files WHERE sha256>=? AND sha256<? AND length(sha256)>32 ORDER BY id"
        return [Cid.decode(row[0]) for row in self.all(sql, (first, after))]

    def set_sha256(self, cid: Cid, sha256: bytes) -> bool:
        """In place of a stand-in. Whether there was one."""
        changed = self.run("UPDATE files SET sha256=? WHERE cid=? AND length(sha256)>32", (sha256, key(cid)))
        return changed.rowcount > 0

    def is_public(self, file_id: int) -> bool:
        sql = "SELECT 1 FROM members JOIN models ON models.id=model WHERE file=? AND public LIMIT 1"
        return bool(self.one(sql, (file_id,)))

    def loose(self) -> list[tuple[int, FileRow]]:
        """Files of no model, each with its last use, the longest unused first."""
        sql = (
            "SELECT id, cid, size, sha256, git_sha1, last_used FROM files"
            " WHERE NOT EXISTS(SELECT 1 FROM members WHERE file=files.id) ORDER BY last_used, id"
        )
        return [(int(row[5]), _file_row(row)) for row in self.all(sql)]

    def use_loose(self, file_id: int) -> None:
        """Somebody asked for it just now; nothing for a file of a model, whose own use counts."""
        sql = "UPDATE files SET last_used=? WHERE id=? AND NOT EXISTS(SELECT 1 FROM members WHERE file=files.id)"
        self.run(sql, (self.tick(), file_id))

    def drop_file(self, cid: Cid) -> None:
        self.run("DELETE FROM files WHERE cid=?", (key(cid),))
        with self.lock:
            self._stored = None

    def leaves(self, cid: Cid, *, public_only: bool = False) -> list[LeafRow]:
        """Every place that holds this block as a leaf."""
        sql = (
            "SELECT files.cid, leaves.cid, offset, length, prefix, suffix"
            " FROM leaves JOIN files ON files.id=leaves.file WHERE leaves.cid=?"
        )
        if public_only:
            sql += (
                " AND EXISTS(SELECT 1 FROM members JOIN models ON models.id=members.model"
                " WHERE members.file=leaves.file AND models.public)"
            )
        return [
            LeafRow(Cid.decode(row[0]), Leaf(Cid.decode(row[1]), row[2], row[3], row[4], row[5]))
            for row in self.all(sql + " LIMIT 8", (key(cid),))
        ]

    def leaves_of(self, file_id: int) -> list[Leaf]:
        """In file order."""
        sql = "SELECT cid, offset, length, prefix, suffix FROM leaves WHERE file=? ORDER BY offset, rowid"
        return [Leaf(Cid.decode(row[0]), row[1], row[2], row[3], row[4]) for row in self.all(sql, (file_id,))]

    def homes(self, file_id: int) -> list[tuple[Cid, str]]:
        """(root, path) of every model that holds the file."""
        sql = "SELECT root, path FROM members JOIN models ON models.id=model WHERE file=? ORDER BY root, path"
        return [(Cid.decode(row[0]), row[1]) for row in self.all(sql, (file_id,))]

    # node blocks

    def add_node(self, cid: Cid, block: bytes) -> int:
        with self.transaction():
            self.run("INSERT OR IGNORE INTO nodes(cid, block) VALUES(?,?)", (key(cid), block))
            return int(self.one("SELECT id FROM nodes WHERE cid=?", (key(cid),))[0])

    def node(self, cid: Cid, *, public_only: bool = False) -> bytes | None:
        sql = "SELECT block FROM nodes WHERE cid=?"
        if public_only:
            sql += (
                " AND EXISTS(SELECT 1 FROM model_nodes JOIN models ON models.id=model"
                " WHERE node=nodes.id AND models.public)"
            )
        row = self.one(sql, (key(cid),))
        return bytes(row[0]) if row else None

    def roots_of_node(self, cid: Cid) -> list[Cid]:
        sql = (
            "SELECT root FROM models JOIN model_nodes ON model=models.id JOIN nodes ON nodes.id=node WHERE nodes.cid=?"
        )
        return [Cid.decode(row[0]) for row in self.all(sql, (key(cid),))]

    # private

    def _prepare(self, clean: bool) -> None:
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute("PRAGMA foreign_keys=ON")
            self._db.execute("PRAGMA temp_store=MEMORY")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version > SCHEMA:
                raise StorageError(f"{self.path} was made by a newer version of this program (schema {version})")
            if not clean or self.path.stat().st_size <= _QUICK_CHECK_BYTES:
                found = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
                if found != "ok":
                    raise IndexDamaged(found)
            if version < SCHEMA:
                steps = "".join((_TABLES, *_CHANGES)[version:])
                self._db.executescript(f"BEGIN;{steps}PRAGMA user_version={SCHEMA};COMMIT")
            self._db.execute("CREATE INDEX IF NOT EXISTS files_by_git_sha1 ON files(git_sha1)")
            self._db.execute("CREATE INDEX IF NOT EXISTS files_by_size ON files(size)")
        except sqlite3.OperationalError as exc:
            if "already exists" in str(exc) or "malformed" in str(exc):
                raise IndexDamaged(str(exc)) from exc
            raise StorageError(f"index {self.path}: {exc}") from exc
        except sqlite3.DatabaseError as exc:
            raise IndexDamaged(str(exc)) from exc


def _file_row(row: tuple[Any, ...]) -> FileRow:
    return FileRow(row[0], Cid.decode(row[1]), row[2], row[3], row[4])


@contextlib.contextmanager
def _typed(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as exc:
        raise StorageError(f"index {path}: {exc}") from exc
    except sqlite3.Error as exc:
        raise StorageError(f"index {path}: {exc}; a restart rebuilds it") from exc
