"""Claims as rows: what becomes of one that comes, and what makes room for it. All inside a step of `ResultsStore`."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import fields
from typing import Any, Literal

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.peers.claims import Claim

MAX_PER_KEY = 1_000
MAX_CLAIMS = 200_000
MAX_KEYS = 20_000
COLUMNS = tuple(field.name for field in fields(Claim))
_NOT_TRUSTED = "WHERE signer NOT IN (SELECT signer FROM trusted)"

Taken = Literal["accepted", "known", "stale", "revoked", "full"]


def least_seqs(claims: Sequence[Claim]) -> dict[bytes, int]:
    """Of keys that come with more than are kept of one: the number below which none would stay."""
    seqs: defaultdict[bytes, list[int]] = defaultdict(list)
    for claim in claims:
        seqs[claim.key].append(claim.seq)
    return {key: sorted(of)[-MAX_PER_KEY] for key, of in seqs.items() if len(of) > MAX_PER_KEY}


def take(db: sqlite3.Connection, claim: Claim, counts: dict[bytes, int]) -> Taken:
    """counts: how many claims there are of each key, as far as it was counted in this step."""
    known = db.execute("SELECT revoked FROM keys WHERE key = ?", (claim.key,)).fetchone()
    if known is not None and known[0]:
        return "revoked"
    record = bytes(claim.record_cid)
    same = db.execute("SELECT record_cid, cell, rowid FROM claims WHERE key = ? AND seq = ?", (claim.key, claim.seq))
    twins = same.fetchall()
    if any(row[0] == record for row in twins):
        return "known"
    if known is None:
        know(db, claim.key)
        counts.clear()  # another key may have made room
    if twins:
        flag(db, claim.key)
    mine = "SELECT max(seq) FROM claims WHERE key = ? AND model = ? AND cell = ?"
    newest = db.execute(mine, (claim.key, bytes(claim.model), claim.cell)).fetchone()[0]
    if newest is not None and newest > claim.seq:
        return "stale"
    if claim.key not in counts:
        counts[claim.key] = db.execute("SELECT count(*) FROM claims WHERE key = ?", (claim.key,)).fetchone()[0]
    if newest is not None:
        replaced = db.execute(
            "DELETE FROM claims WHERE key = ? AND model = ? AND cell = ? AND seq < ?",
            (claim.key, bytes(claim.model), claim.cell, claim.seq),
        )
        counts[claim.key] -= replaced.rowcount
    if counts[claim.key] >= MAX_PER_KEY:
        oldest = db.execute("SELECT min(seq) FROM claims WHERE key = ?", (claim.key,)).fetchone()[0]
        if claim.seq < oldest:
            return "full"
        pushed = db.execute("DELETE FROM claims WHERE key = ? AND seq = ?", (claim.key, oldest))
        counts[claim.key] -= pushed.rowcount
    counts[claim.key] += 1
    db.execute(f"INSERT INTO claims VALUES({', '.join('?' * len(COLUMNS))})", _row(claim))
    return "accepted"


def know(db: sqlite3.Connection, key: bytes) -> None:
    """Makes a row for a key. Beyond MAX_KEYS the key with the oldest claim makes room; what was revoked stays so."""
    if db.execute("SELECT 1 FROM keys WHERE key = ?", (key,)).fetchone():
        return
    if db.execute("SELECT count(*) FROM keys").fetchone()[0] >= MAX_KEYS:
        oldest = db.execute(f"SELECT key FROM claims {_NOT_TRUSTED} ORDER BY created LIMIT 1").fetchone()
        if oldest is not None:
            db.execute("DELETE FROM claims WHERE key = ?", oldest)
        db.execute(
            "DELETE FROM keys WHERE NOT revoked AND NOT EXISTS (SELECT 1 FROM claims WHERE claims.key = keys.key)"
        )
    db.execute("INSERT INTO keys(key) VALUES(?)", (key,))


def name_trusted(db: sqlite3.Connection, signers: Collection[str]) -> None:
    """For this step: those whose claims do not make room for others'."""
    db.execute("CREATE TEMP TABLE IF NOT EXISTS trusted(signer TEXT PRIMARY KEY) WITHOUT ROWID")
    db.execute("DELETE FROM trusted")
    db.executemany("INSERT OR IGNORE INTO trusted VALUES(?)", [(signer,) for signer in signers])


def flag(db: sqlite3.Connection, key: bytes) -> None:
    know(db, key)
    db.execute("UPDATE keys SET flagged = 1 WHERE key = ?", (key,))


def trim(db: sqlite3.Connection) -> None:
    surplus = db.execute("SELECT count(*) FROM claims").fetchone()[0] - MAX_CLAIMS
    if surplus > 0:
        oldest = f"SELECT rowid FROM claims {_NOT_TRUSTED} ORDER BY created LIMIT ?"
        db.execute(f"DELETE FROM claims WHERE rowid IN ({oldest})", (surplus,))


def _row(claim: Claim) -> tuple[object, ...]:
    return tuple(bytes(value) if isinstance(value, Cid) else value for value in _values(claim))


def _values(claim: Claim) -> tuple[object, ...]:
    return tuple(getattr(claim, name) for name in COLUMNS)


def claim_of(row: Sequence[Any]) -> Claim:
    """A row in the order of COLUMNS, which is that of the fields."""
    values: list[Any] = [_cid(row[0]), _cid(row[1]), *row[2:6], _cid(row[6]), *row[7:]]
    return Claim(*values)


def _cid(data: bytes) -> Cid:
    """As `Cid.decode`, without its checks where they cannot fail: a query reads hundreds."""
    return Cid(1, data[1], data[2:]) if data[0] == 1 and data[1] < 0x80 else Cid.decode(data)
