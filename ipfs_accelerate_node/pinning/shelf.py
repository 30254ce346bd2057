"""Requests of others to keep something, in ``<cache>/pin-requests.sqlite``: a crash loses none that was answered.

Beside them the roots that the user of this node keeps for himself, so that the end of the last request lets go only of
what was kept for requests.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import StorageError
from ipfs_accelerate_node.pinning.requests import Ask, Match, PinRequest, Status, Wanted

FILE = "pin-requests.sqlite"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS requests(
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, root TEXT NOT NULL, cid TEXT NOT NULL, name TEXT, origins TEXT NOT NULL,
    meta TEXT NOT NULL, created_ms INTEGER NOT NULL UNIQUE, status TEXT NOT NULL, info TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS requests_root ON requests(root);
CREATE INDEX IF NOT EXISTS requests_owner ON requests(owner, created_ms);
CREATE TABLE IF NOT EXISTS own(root TEXT PRIMARY KEY) WITHOUT ROWID;
"""
_COLUMNS = "id, owner, cid, name, origins, meta, created_ms, status, info"
_NAMED = {
    Match.EXACT: "name = ?",
    Match.IEXACT: "fold(name) = fold(?)",
    Match.PARTIAL: "instr(name, ?) > 0",
    Match.IPARTIAL: "instr(fold(name), fold(?)) > 0",
}


class RequestShelf:
    """Blocks; may be used from several threads. Every method may raise StorageError."""

    def __init__(self, cache: Path) -> None:
        self._lock = threading.Lock()
        with _storing():
            self._base = sqlite3.connect(cache / FILE, check_same_thread=False, isolation_level=None)
            try:
                self._base.execute("PRAGMA journal_mode=WAL")
                self._base.execute("PRAGMA synchronous=FULL")
                self._base.executescript(_SCHEMA)
            except sqlite3.Error:
                self._base.close()
                raise
        self._base.create_function(
            "fold", 1, lambda text: None if text is None else text.casefold(), deterministic=True
        )
        self._base.create_function("has_meta", 2, _has_meta, deterministic=True)

    def close(self) -> None:
        with self._lock:
            self._base.close()

    def add(self, request_id: str, owner: str, ask: Ask, *, replaces: str | None = None) -> PinRequest:
        """A queued one, created now, or a millisecond after the latest. replaces: gone in the same step."""
        with self._writing() as base:
            (latest,) = base.execute("SELECT coalesce(max(created_ms), 0) FROM requests").fetchone()
            made = PinRequest(request_id, owner, ask, max(int(time.time() * 1000), latest + 1), Status.QUEUED)
            if replaces is not None:
                base.execute("DELETE FROM requests WHERE id=?", (replaces,))
            base.execute(
                "INSERT INTO requests VALUES(?,?,?,?,?,?,?,?,?,?)",
                (made.id, owner, ask.root, str(ask.cid), ask.name, json.dumps(ask.origins), json.dumps(dict(ask.meta)),
                 made.created_ms, made.status, "{}"),
            )  # fmt: skip
        return made

    def get(self, request_id: str) -> PinRequest | None:
        with self._reading() as base:
            row = base.execute(f"SELECT {_COLUMNS} FROM requests WHERE id=?", (request_id,)).fetchone()
        return None if row is None else _request(row)

    def mark(self, request_id: str, status: Status, info: Mapping[str, str]) -> None:
        """Nothing, where it was removed meanwhile."""
        with self._writing() as base:
            base.execute(
                "UPDATE requests SET status=?, info=? WHERE id=?", (status, json.dumps(dict(info)), request_id)
            )

    def remove(self, request_id: str) -> None:
        with self._writing() as base:
            base.execute("DELETE FROM requests WHERE id=?", (request_id,))

    def find(self, owner: str | None, wanted: Wanted) -> tuple[int, list[PinRequest]]:
        """How many there are in all, and the latest of them, latest first. owner: None sees everybody's."""
        where, values = _conditions(owner, wanted)
        with self._reading() as base:
            (count,) = base.execute(f"SELECT count(*) FROM requests WHERE {where}", values).fetchone()
            rows = base.execute(
                f"SELECT {_COLUMNS} FROM requests WHERE {where} ORDER BY created_ms DESC LIMIT ?",
                (*values, wanted.limit),
            ).fetchall()
        return count, [_request(row) for row in rows]

    def unfinished(self) -> list[PinRequest]:
        """Oldest first."""
        with self._reading() as base:
            rows = base.execute(
                f"SELECT {_COLUMNS} FROM requests WHERE status IN ('queued', 'pinning') ORDER BY created_ms"
            ).fetchall()
        return [_request(row) for row in rows]

    def count(self, owner: str) -> int:
        with self._reading() as base:
            return int(base.execute("SELECT count(*) FROM requests WHERE owner=?", (owner,)).fetchone()[0])

    def asks_for(self, root: str) -> bool:
        """Whether a request of that root has not failed."""
        with self._reading() as base:
            query = "SELECT count(*) FROM requests WHERE root=? AND status<>'failed'"
            return bool(base.execute(query, (root,)).fetchone()[0])

    def pinned_roots(self) -> set[str]:
        with self._reading() as base:
            return {root for (root,) in base.execute("SELECT DISTINCT root FROM requests WHERE status='pinned'")}

    def lost(self, root: str, info: Mapping[str, str]) -> None:
        """What was pinned is not any more."""
        with self._writing() as base:
            base.execute(
                "UPDATE requests SET status='failed', info=? WHERE root=? AND status='pinned'",
                (json.dumps(dict(info)), root),
            )

    def is_own(self, root: str) -> bool:
        with self._reading() as base:
            return base.execute("SELECT 1 FROM own WHERE root=?", (root,)).fetchone() is not None

    def set_own(self, root: str, own: bool) -> None:
        with self._writing() as base:
            base.execute("INSERT OR IGNORE INTO own VALUES(?)" if own else "DELETE FROM own WHERE root=?", (root,))

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock, _storing():
            yield self._base

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock, _storing():
            self._base.execute("BEGIN IMMEDIATE")
            try:
                yield self._base
            except BaseException:
                self._base.execute("ROLLBACK")
                raise
            self._base.execute("COMMIT")


@contextmanager
def _storing() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as exc:
        raise StorageError(f"{FILE} cannot be used: {exc}") from exc


def _conditions(owner: str | None, wanted: Wanted) -> tuple[str, list[object]]:
    parts, values = ["1"], list[object]()

    def also(part: str, *given: object) -> None:
        parts.append(part)
        values.extend(given)

    if owner is not None:
        also("owner = ?", owner)
    if wanted.cids:
        also(f"root IN ({_marks(wanted.cids)})", *wanted.cids)
    if wanted.statuses:
        also(f"status IN ({_marks(wanted.statuses)})", *wanted.statuses)
    if wanted.name is not None:
        also(_NAMED[wanted.match], wanted.name)
    if wanted.before_ms is not None:
        also("created_ms < ?", wanted.before_ms)
    if wanted.after_ms is not None:
        also("created_ms > ?", wanted.after_ms)
    if wanted.meta:
        also("has_meta(meta, ?)", json.dumps(dict(wanted.meta)))
    return " AND ".join(parts), values


def _marks(values: tuple[object, ...]) -> str:
    return ",".join("?" * len(values))


def _has_meta(kept: str, wanted: str) -> bool:
    return bool(json.loads(wanted).items() <= json.loads(kept).items())


def _request(row: tuple[str, str, str, str | None, str, str, int, str, str]) -> PinRequest:
    request_id, owner, cid, name, origins, meta, created_ms, status, info = row
    ask = Ask(Cid.parse(cid), name, tuple(json.loads(origins)), json.loads(meta))
    return PinRequest(request_id, owner, ask, created_ms, Status(status), json.loads(info))
