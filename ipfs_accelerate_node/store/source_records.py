"""What was seen of each source, kept across starts: what it can do, how fast it was, whether it lied.

A record is experience, not truth: it orders the questions of the next fetch and spares a probe, nothing more. It lives
in the index alone, so a rebuilt index has none.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import astuple, dataclass, replace
from typing import Any

from ipfs_accelerate_node.store.index import Index

MAX_ROWS = 256  # the longest unseen go first
ABILITIES_LAST_S = 7 * 86400  # then a server is asked anew: it may have learned
LIE, FAILURE, MAX_STRIKES = 4, 1, 16  # strikes for each fetch; a good fetch halves them
BAD = 2  # strikes from which on a source is tried after the others

TABLE = """
CREATE TABLE IF NOT EXISTS sources(
    source TEXT PRIMARY KEY, kind TEXT NOT NULL, ranges INTEGER, cars INTEGER, probed INTEGER NOT NULL,
    bytes INTEGER NOT NULL, seconds REAL NOT NULL, rejected INTEGER NOT NULL, strikes INTEGER NOT NULL, fault TEXT,
    seen INTEGER NOT NULL) WITHOUT ROWID
"""
_COLUMNS = "source, kind, ranges, cars, probed, bytes, seconds, rejected, strikes, fault, seen"


@dataclass(frozen=True, slots=True)
class SourceRecord:
    """ranges, cars: as last seen; None: not known (any more). bytes, seconds, rejected: over all fetches. strikes: how
    doubtful it is. fault: code of what it did wrong last; None if its last fetch was good. probed, seen: seconds since
    1970."""

    source: str
    kind: str
    ranges: bool | None = None
    cars: bool | None = None
    probed: int = 0
    bytes: int = 0
    seconds: float = 0.0
    rejected: int = 0
    strikes: int = 0
    fault: str | None = None
    seen: int = 0

    @property
    def bad(self) -> bool:
        return self.strikes >= BAD

    @property
    def bytes_per_s(self) -> int:
        return int(self.bytes / self.seconds) if self.seconds > 0 else 0


@dataclass(frozen=True, slots=True)
class Conduct:
    """What one source did in one fetch. rejected: answers that failed a check. fault: code of what ended it, if
    something did. ranges, cars: None where it was not asked."""

    source: str
    kind: str
    bytes: int = 0
    seconds: float = 0.0
    rejected: int = 0
    fault: str | None = None
    ranges: bool | None = None
    cars: bool | None = None


class SourceRecords:
    """Thread-safe. Asking is a look into memory; `note` writes to the index."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._lock = threading.Lock()
        index.run(TABLE)
        rows = index.all(f"SELECT {_COLUMNS} FROM sources ORDER BY seen DESC, source LIMIT ?", (MAX_ROWS,))
        self._known = {row[0]: _record(row) for row in rows}

    def find(self, source: str, now: float) -> SourceRecord | None:
        """now: seconds since 1970; abilities that were seen long ago are not known any more."""
        with self._lock:
            record = self._known.get(source)
        if record is not None and now - record.probed >= ABILITIES_LAST_S:
            return replace(record, ranges=None, cars=None)
        return record

    def all(self) -> list[SourceRecord]:
        with self._lock:
            return list(self._known.values())

    def note(self, conducts: Iterable[Conduct], now: float) -> None:
        """Blocking. Raises StorageError; what memory knows is then ahead of the disk."""
        with self._lock:
            changed = [self._noted(conduct, int(now)) for conduct in conducts]
            latest = sorted(self._known.values(), key=lambda record: (-record.seen, record.source))
            gone = [record.source for record in latest[MAX_ROWS:]]
            for source in gone:
                del self._known[source]
        with self._index.transaction():
            self._index.many(
                f"INSERT OR REPLACE INTO sources({_COLUMNS}) VALUES(?,?,?,?,?,?,?,?,?,?,?)",
                [astuple(record) for record in changed],
            )
            self._index.many("DELETE FROM sources WHERE source=?", [(source,) for source in gone])

    def _noted(self, did: Conduct, now: int) -> SourceRecord:
        before = self._known.get(did.source) or SourceRecord(did.source, did.kind)
        probed = (did.ranges, did.cars) != (None, None)
        after = replace(
            before,
            kind=did.kind,
            ranges=did.ranges if probed else before.ranges,
            cars=did.cars if probed else before.cars,
            probed=now if probed else before.probed,
            bytes=before.bytes + did.bytes,
            seconds=before.seconds + did.seconds,
            rejected=before.rejected + did.rejected,
            strikes=_strikes(before.strikes, did),
            fault=did.fault,
            seen=now,
        )
        self._known[did.source] = after
        return after


def _strikes(before: int, did: Conduct) -> int:
    if did.rejected:
        return min(before + LIE, MAX_STRIKES)
    if did.fault is not None:
        return min(before + FAILURE, MAX_STRIKES)
    return before // 2 if did.bytes else before


def _record(row: tuple[Any, ...]) -> SourceRecord:
    source, kind, ranges, cars, *rest = row
    return SourceRecord(source, kind, _flag(ranges), _flag(cars), *rest)


def _flag(value: int | None) -> bool | None:
    return None if value is None else bool(value)
