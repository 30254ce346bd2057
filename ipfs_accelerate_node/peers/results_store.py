"""Claims of peers that were verified and accepted: ``<cache>/results.sqlite``.

Bounded for each key and in all: who floods only pushes out itself, and of the whole the oldest go first, those of keys
that the user trusts last: however many keys somebody makes, they hide none of theirs. Of one key and
cell (`Claim.cell`) the newest stays; an older one is refused, one that is here is known. Two records of a key under one
number are both kept, and the key is flagged. What a revoked key says is not shown, and not taken.

Everything here can be asked for again, so a file that cannot be read is put aside and made anew.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import StorageError
from ipfs_accelerate_node.peers.claims import Claim
from ipfs_accelerate_node.peers.results_rows import (
    COLUMNS,
    Taken,
    claim_of,
    flag,
    know,
    least_seqs,
    name_trusted,
    take,
    trim,
)

log = logging.getLogger(__name__)

MAX_ROOTS = 50_000
QUERY_LIMIT = 500
_FILE = "results.sqlite"
_SCHEMA_VERSION = 1
_CACHE_KIB = 16 << 10

_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS claims(
    {", ".join(f"{name} BLOB NOT NULL" for name in ("envelope_cid", "record_cid", "envelope_bytes", "record_bytes"))},
    key BLOB NOT NULL, signer TEXT NOT NULL, model BLOB NOT NULL,
    seq INTEGER NOT NULL, created INTEGER NOT NULL, expires INTEGER NOT NULL,
    task TEXT NOT NULL, engine TEXT NOT NULL, precision TEXT NOT NULL, device TEXT NOT NULL,
    device_name TEXT NOT NULL, workload TEXT NOT NULL, settings TEXT NOT NULL, cell TEXT NOT NULL,
    cpu TEXT NOT NULL, arch TEXT NOT NULL, cores INTEGER NOT NULL,
    samples INTEGER NOT NULL, median_ns INTEGER NOT NULL, low_ns INTEGER NOT NULL, high_ns INTEGER NOT NULL,
    unit TEXT NOT NULL, per_s REAL NOT NULL,
    UNIQUE(key, record_cid));
CREATE UNIQUE INDEX IF NOT EXISTS claims_envelope ON claims(envelope_cid);
CREATE INDEX IF NOT EXISTS claims_model ON claims(model, created DESC);
CREATE INDEX IF NOT EXISTS claims_key ON claims(key, seq);
CREATE INDEX IF NOT EXISTS claims_cell ON claims(key, model, cell, seq);
CREATE INDEX IF NOT EXISTS claims_age ON claims(created);
CREATE TABLE IF NOT EXISTS keys(
    key BLOB PRIMARY KEY, index_seq INTEGER NOT NULL DEFAULT -1, index_cid BLOB, revoked INTEGER NOT NULL DEFAULT 0,
    flagged INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS said(name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS roots(model BLOB PRIMARY KEY, confirmed INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS wanted(
    envelope_cid BLOB PRIMARY KEY, record_cid BLOB, deed TEXT NOT NULL) WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS claims_come AFTER INSERT ON claims BEGIN
    INSERT OR REPLACE INTO wanted VALUES(NEW.envelope_cid, NEW.record_cid, 'keep');
END;
CREATE TRIGGER IF NOT EXISTS claims_go AFTER DELETE ON claims BEGIN
    INSERT OR REPLACE INTO wanted SELECT OLD.envelope_cid, OLD.record_cid, 'drop' WHERE NOT EXISTS (
        SELECT 1 FROM wanted WHERE envelope_cid = OLD.envelope_cid AND deed = 'keep');
    DELETE FROM wanted WHERE envelope_cid = OLD.envelope_cid AND deed = 'keep';
END;
"""

_ABOUT = (
    f"SELECT {', '.join('c.' + name for name in COLUMNS)} FROM claims c LEFT JOIN keys k ON k.key = c.key "
    "WHERE c.model = ? AND c.expires > ? AND ifnull(k.revoked, 0) = 0 {which} ORDER BY c.created DESC LIMIT ?"
)

Deed = Literal["publish", "keep", "drop"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is still to be done in Kubo. record_cid: None for a record of our own, which the shelf knows."""

    envelope_cid: Cid
    record_cid: Cid | None
    deed: Deed


@dataclass(frozen=True, slots=True)
class KeyStanding:
    """index_seq, index_cid: counter and block of its last index; -1 and None if none was seen. flagged: it signed two
    different records under one number."""

    index_seq: int = -1
    index_cid: Cid | None = None
    revoked: bool = False
    flagged: bool = False


class ResultsStore:
    """Blocks; safe for several threads of one process. trusted: PeerIDs of keys, as they are now."""

    def __init__(self, cache: Path, *, trusted: Callable[[], Collection[str]] = frozenset) -> None:
        self._path = cache / _FILE
        self._trusted = trusted
        self._lock = threading.Lock()
        try:
            self._db = self._opened()
        except sqlite3.DatabaseError as exc:
            log.warning("results.unreadable reason=%s: made anew", exc)
            for suffix in ("", "-wal", "-shm"):
                Path(f"{self._path}{suffix}").unlink(missing_ok=True)
            with _storing():
                self._db = self._opened()

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def take(self, claims: Sequence[Claim]) -> list[Taken]:
        """What became of each, in order; all of them in one step. Raises StorageError."""
        least = least_seqs(claims)
        with self._writing() as db:
            name_trusted(db, self._trusted())
            counts: dict[bytes, int] = {}
            taken: list[Taken] = [
                take(db, claim, counts) if claim.seq >= least.get(claim.key, 0) else "full" for claim in claims
            ]
            trim(db)
            return taken

    def of(self, model: Cid, *, limit: int = QUERY_LIMIT, now: int = 0) -> list[Claim]:
        """The newest claims about a root, those of trusted keys before all others; not those of revoked keys, nor
        expired ones (now: seconds since 1970)."""
        about = (bytes(model.canonical), now)
        known = sorted(self._trusted())
        with self._reading() as db:
            named = f"c.signer IN ({', '.join('?' * len(known))})"
            rows = db.execute(_ABOUT.format(which=f"AND {named}"), (*about, *known, limit)).fetchall() if known else []
            which, more = (f"AND NOT {named}", known) if rows else ("", [])
            rows += db.execute(_ABOUT.format(which=which), (*about, *more, limit - len(rows))).fetchall()
        return [claim_of(row) for row in rows]

    def revoked(self, model: Cid) -> dict[str, int]:
        """PeerIDs of keys that were revoked, and how many claims about that root each has here."""
        with self._reading() as db:
            rows = db.execute(
                "SELECT c.signer, count(*) FROM claims c JOIN keys k ON k.key = c.key "
                "WHERE c.model = ? AND k.revoked GROUP BY c.signer LIMIT ?",
                (bytes(model.canonical), QUERY_LIMIT),
            ).fetchall()
        return {signer: int(count) for signer, count in rows}

    def has(self, envelopes: Sequence[Cid]) -> set[Cid]:
        """Those that are here."""
        with self._reading() as db:
            asked = "SELECT 1 FROM claims WHERE envelope_cid = ?"
            return {cid for cid in envelopes if db.execute(asked, (bytes(cid),)).fetchone()}

    def envelopes(self, limit: int, *, without: Collection[Cid] = ()) -> list[Cid]:
        """Of all claims that stand, the newest first; without: none about these roots."""
        hidden = {bytes(model) for model in without}
        with self._reading() as db:
            rows = db.execute(
                "SELECT c.envelope_cid, c.model FROM claims c LEFT JOIN keys k ON k.key = c.key "
                "WHERE ifnull(k.revoked, 0) = 0 ORDER BY c.created DESC LIMIT ?",
                (limit,),
            ).fetchall()
        return [Cid.decode(row[0]) for row in rows if row[1] not in hidden]

    def models(self) -> list[Cid]:
        """Every root that some claim is about."""
        with self._reading() as db:
            return [Cid.decode(row[0]) for row in db.execute("SELECT DISTINCT model FROM claims").fetchall()]

    def count(self) -> int:
        with self._reading() as db:
            return int(db.execute("SELECT count(*) FROM claims").fetchone()[0])

    # --- roots

    def confirmed(self, model: Cid) -> int | None:
        """When somebody was found who has it, in seconds since 1970."""
        with self._reading() as db:
            asked = "SELECT confirmed FROM roots WHERE model = ?"
            row = db.execute(asked, (bytes(model.canonical),)).fetchone()
        return None if row is None else int(row[0])

    def note_confirmed(self, model: Cid, now: int) -> None:
        with self._writing() as db:
            db.execute("INSERT OR REPLACE INTO roots VALUES(?, ?)", (bytes(model.canonical), now))
            surplus = db.execute("SELECT count(*) FROM roots").fetchone()[0] - MAX_ROOTS
            if surplus > 0:
                oldest = "SELECT model FROM roots ORDER BY confirmed LIMIT ?"
                db.execute(f"DELETE FROM roots WHERE model IN ({oldest})", (surplus,))

    # --- keys

    def standing(self, key: bytes) -> KeyStanding:
        with self._reading() as db:
            asked = "SELECT index_seq, index_cid, revoked, flagged FROM keys WHERE key = ?"
            row = db.execute(asked, (key,)).fetchone()
        if row is None:
            return KeyStanding()
        return KeyStanding(row[0], None if row[1] is None else Cid.decode(row[1]), bool(row[2]), bool(row[3]))

    def note_index(self, key: bytes, seq: int, block: Cid, *, revoked: bool) -> None:
        """The last index of that key. A revocation stays, whatever comes later."""
        with self._writing() as db:
            know(db, key)
            db.execute(
                "UPDATE keys SET index_seq = ?, index_cid = ?, revoked = max(revoked, ?) "
                "WHERE key = ? AND index_seq <= ?",
                (seq, bytes(block), revoked, key, seq),
            )

    def flag(self, key: bytes) -> None:
        with self._writing() as db:
            flag(db, key)

    # --- what this node says and wants to say

    def said(self, name: str) -> bytes | None:
        with self._reading() as db:
            row = db.execute("SELECT value FROM said WHERE name = ?", (name,)).fetchone()
        return None if row is None else bytes(row[0])

    def say(self, name: str, value: bytes) -> None:
        with self._writing() as db:
            db.execute("INSERT OR REPLACE INTO said VALUES(?, ?)", (name, value))

    def want(self, envelope: Cid) -> None:
        """A record of ours that is to be published as soon as that can be."""
        with self._writing() as db:
            db.execute("INSERT OR IGNORE INTO wanted VALUES(?, NULL, 'publish')", (bytes(envelope),))

    def queued(self) -> set[Cid]:
        """Envelopes of ours that are to be published, and are not yet."""
        with self._reading() as db:
            rows = db.execute("SELECT envelope_cid FROM wanted WHERE deed = 'publish'").fetchall()
        return {Cid.decode(row[0]) for row in rows}

    def wanted(self, limit: int = 1_000) -> list[Wanted]:
        """What is still to be done in Kubo: claims that came are to be pinned there, those that went to be let go."""
        with self._reading() as db:
            asked = "SELECT envelope_cid, record_cid, deed FROM wanted ORDER BY deed DESC LIMIT ?"
            rows = db.execute(asked, (limit,)).fetchall()
        return [Wanted(Cid.decode(e), None if r is None else Cid.decode(r), deed) for e, r, deed in rows]

    def done(self, wanted: Wanted) -> None:
        with self._writing() as db:
            db.execute(
                "DELETE FROM wanted WHERE envelope_cid = ? AND deed = ?", (bytes(wanted.envelope_cid), wanted.deed)
            )

    def blocks(self, envelope: Cid) -> tuple[bytes, bytes] | None:
        """Envelope and record of a claim."""
        with self._reading() as db:
            asked = "SELECT envelope_bytes, record_bytes FROM claims WHERE envelope_cid = ?"
            row = db.execute(asked, (bytes(envelope),)).fetchone()
        return None if row is None else (bytes(row[0]), bytes(row[1]))

    # --- private

    def _opened(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            if db.execute("PRAGMA user_version").fetchone()[0] not in (0, _SCHEMA_VERSION):
                raise sqlite3.DatabaseError("it is of another version")
            db.executescript(_SCHEMA)
            db.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        except BaseException:
            db.close()
            raise
        return db

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock, _storing():
            yield self._db

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock, _storing():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")


@contextmanager
def _storing() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as exc:
        raise StorageError(f"results of peers: {exc}") from exc
