"""Which results the page shows: of the models that this node measured, has, or heard of, in that order; bounded.

Own records are verified when they are read, those of others were when they came; what others say stays a claim.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ipfs_accelerate_node.benchmarks import RecordShelf
from ipfs_accelerate_node.benchmarks.schema import read_benchmark
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import BadContent
from ipfs_accelerate_node.peers.claims import Claim, open_claim
from ipfs_accelerate_node.peers.ranking import Result, ranked
from ipfs_accelerate_node.peers.results_store import ResultsStore
from ipfs_accelerate_node.store.types import StoredModel

MAX_MODELS = 12
MAX_ROWS = 60  # of one model
MAX_HEARD = 5_000  # roots that are looked at, of those that only others measured
FRESH_S = 60.0  # nothing that is shown is older


@dataclass(frozen=True, slots=True)
class Measured:
    """One thing measured: what this node says of it, and what others do. own: this node's own record."""

    result: Result
    own: Claim | None

    @property
    def batch(self) -> int | None:
        """Inputs of one request, where the workload says so."""
        return settings(self.result).get("batch")


@dataclass(frozen=True, slots=True)
class ModelResults:
    """rows: as `ranked`. left_out: how many more there are. newest: seconds since 1970."""

    root: str
    name: str
    rows: tuple[Measured, ...]
    left_out: int
    claims: int
    newest: int


@dataclass(frozen=True, slots=True)
class Findings:
    """models: those with results, the latest of this node first. more: how many models have results beside them.
    broken: own records that do not verify."""

    models: tuple[ModelResults, ...]
    more: int
    broken: int


def settings(result: Result) -> dict[str, int]:
    """Of the workload, read off its text, which a peer may have written: what is no number is left out."""
    pairs = (word.partition("=") for word in result.settings.split(" "))
    return {name: int(value) for name, _, value in pairs if value.isascii() and value.isdigit() and len(value) < 16}


class ResultsReader:
    """Reads again only when something may have changed. Blocks; one thread at a time."""

    def __init__(self, cache: Path, store: ResultsStore) -> None:
        self._cache = cache
        self._store = store
        self._shelf = RecordShelf(cache)
        self._opened: dict[Cid, Claim | None] = {}
        self._seen: tuple[object, ...] | None = None
        self._read_s = 0.0
        self._findings = Findings((), 0, 0)

    def read(self, models: Sequence[StoredModel], trusted: Collection[str]) -> Findings:
        """models: those in the store. Raises StorageError."""
        state = (self._changed_ns(), self._store.count(), frozenset(trusted), tuple((m.root, m.names) for m in models))
        if state != self._seen or time.monotonic() - self._read_s > FRESH_S:
            self._findings = self._read(models, trusted)
            self._seen, self._read_s = state, time.monotonic()
        return self._findings

    def _changed_ns(self) -> int:
        try:
            return (self._cache / "records").stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def _read(self, models: Sequence[StoredModel], trusted: Collection[str]) -> Findings:
        own, broken = self._own()
        stored = {model.root: model for model in models}
        newest_first = sorted(own, key=lambda root: -max(claim.created for claim in own[root]))
        roots = [*newest_first, *self._heard_of(own, stored)]
        shown = [self._of(root, own.get(root, []), stored.get(root), trusted) for root in roots[:MAX_MODELS]]
        return Findings(tuple(one for one in shown if one.rows), max(0, len(roots) - MAX_MODELS), broken)

    def _heard_of(self, own: Collection[Cid], stored: Collection[Cid]) -> list[Cid]:
        """What only others measured: stored models first, then those that somebody is known to have; what is claimed of
        a root that nobody may have at all is left out."""
        heard = sorted(set(self._store.models()).difference(own), key=lambda root: (root not in stored, str(root)))
        return [root for root in heard[:MAX_HEARD] if root in stored or self._store.confirmed(root) is not None]

    def _of(self, root: Cid, own: list[Claim], model: StoredModel | None, trusted: Collection[str]) -> ModelResults:
        claims = self._store.of(root, now=int(time.time()))
        flagged = {key for key in {claim.key for claim in claims} if self._store.standing(key).flagged}
        confirmed = model is not None or self._store.confirmed(root) is not None
        found = ranked(claims if confirmed else (), own, trusted=trusted, flagged=flagged)
        mine = _newest(own)
        rows = [Measured(result, mine.get(_cell(result)) if result.own_ns is not None else None) for result in found]
        rows.sort(key=lambda row: row.own is None)
        name = model.names[0] if model is not None and model.names else ""
        newest = max((row.result.newest for row in rows), default=0)
        return ModelResults(str(root), name, tuple(rows[:MAX_ROWS]), max(0, len(rows) - MAX_ROWS), len(claims), newest)

    def _own(self) -> tuple[dict[Cid, list[Claim]], int]:
        listing = self._shelf.listing()
        here = {opened.envelope_cid for opened in listing.records}
        self._opened = {cid: claim for cid, claim in self._opened.items() if cid in here}
        own: dict[Cid, list[Claim]] = {}
        for cid in here:
            if cid not in self._opened:
                self._opened[cid] = self._claim(cid)
            if (claim := self._opened[cid]) is not None:
                own.setdefault(claim.model, []).append(claim)
        return own, len(listing.broken)

    def _claim(self, envelope: Cid) -> Claim | None:
        """None for a record of a machine that was busy, or of another version: not to be compared with others."""
        sealed = self._shelf.sealed(envelope)
        try:
            return open_claim(sealed.envelope_bytes, sealed.record_bytes, read_benchmark, now=None)
        except BadContent:
            return None


def _newest(own: Sequence[Claim]) -> Mapping[tuple[str, ...], Claim]:
    found: dict[tuple[str, ...], Claim] = {}
    for claim in sorted(own, key=lambda claim: claim.seq):
        found[_cell(claim)] = claim
    return found


def _cell(what: Claim | Result) -> tuple[str, ...]:
    """What has to be the same for figures to be of the same thing; of one machine, so without its processor."""
    return (
        what.task,
        what.engine,
        what.precision,
        what.device,
        what.device_name,
        what.workload,
        what.settings,
        what.unit,
    )
