"""Asking others for results of a model, all at once and each with its own time; one that hangs, lies, floods or is gone
costs nobody else anything, and is named with its reason.

Who is asked: the peers that were named or configured, and whoever announced the model's rendezvous block. A node is
asked through a tunnel, or, where that does not reach it, by its IPNS index, whose records come by CID from anyone who
has them; so an author that is gone is no loss while another has pinned them. Peers of peers are not asked.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, field
from typing import Literal

from ipfs_accelerate_node.config_values import peer_id
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import NodeError, QuotaExceeded, Unavailable
from ipfs_accelerate_node.fetch.threads import in_thread
from ipfs_accelerate_node.kubo import KuboService
from ipfs_accelerate_node.peers.claims import Claim, Reader, open_claim
from ipfs_accelerate_node.peers.indexes import Indexes
from ipfs_accelerate_node.peers.results_http import RecordParcel, peer_results
from ipfs_accelerate_node.peers.results_store import ResultsStore
from ipfs_accelerate_node.records.rendezvous import rendezvous
from ipfs_accelerate_node.sources.guard import Origin
from ipfs_accelerate_node.sources.http import Pace

log = logging.getLogger(__name__)

MAX_ASKED = 256
MAX_PROVIDERS = 32
MAX_OPENED = 20_000  # records of one question, shared among who was asked …
LEAST_OPENED = 100  # … but so many of each
_OPENED_AT_ONCE = 50  # records, in one go of a thread

Way = Literal["http", "tunnel", "index"]
Reach = Callable[[str], AbstractAsyncContextManager[str]]


@dataclass(frozen=True, slots=True)
class Patience:
    """In seconds. http: for a peer by URL, from the first byte out to the last one in; reach: to find, dial and ask a
    node by PeerID; index: for its IPNS name and what that leads to; search: for who announced the rendezvous block."""

    http: float = 2.0
    reach: float = 8.0
    index: float = 15.0
    search: float = 10.0


@dataclass(frozen=True, slots=True)
class Refusal:
    """How many of a peer's records were not taken, and why."""

    code: str
    reason: str
    count: int


@dataclass(frozen=True, slots=True)
class PeerAnswer:
    """accepted: records that are new here. known: those that were here, or that newer ones of their keys replace."""

    peer: str
    way: Way
    accepted: int
    known: int
    refused: tuple[Refusal, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class PeerFailure:
    peer: str
    code: str
    reason: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Inquiry:
    """note: why the network was not searched, or not to its end; None if it was."""

    answers: tuple[PeerAnswer, ...]
    failures: tuple[PeerFailure, ...]
    note: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Answer:
    """What came over the network in time, not looked at yet. lost: why some records did not."""

    way: Way
    parcels: Sequence[RecordParcel]
    lost: Sequence[NodeError] = ()


@dataclass(slots=True)
class _Batch:
    """What one peer gave, as it is verified."""

    claims: list[Claim] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, str] = field(default_factory=dict)

    def refuse(self, error: NodeError) -> None:
        self.refused[error.code] += 1
        self.reasons.setdefault(error.code, str(error)[:200])


class Results:
    """own: PeerIDs that are this node. read: what a record must hold. reach: URL of a node by its PeerID while inside;
    None without tunnels. changed: called when something new was accepted."""

    def __init__(
        self,
        store: ResultsStore,
        kubo: KuboService,
        read: Reader,
        *,
        own: str,
        reach: Reach | None,
        changed: Callable[[], None] = lambda: None,
        patience: Patience | None = None,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self.store = store
        self._kubo = kubo
        self._read = read
        self._own = own
        self._reach = reach
        self._changed = changed
        self._patience = patience or Patience()
        self._now_s = now_s

    async def ask(self, model: Cid, peers: Sequence[str], *, search: bool = True) -> Inquiry:
        """Asks, verifies, keeps. peers: URLs and PeerIDs. search: also whoever announced to have results of it. Never
        raises for what a peer does. Raises StorageError."""
        asking = _Round(self, model.canonical)
        clock = asyncio.get_running_loop().time
        began = clock()
        async with asyncio.TaskGroup() as group:
            for peer in peers:
                asking.start(group, peer)
            note = await self._search(model, asking, group) if search else None
        if any(answer.accepted for answer in asking.answers):
            self._changed()
        seconds = round(clock() - began, 3)
        log.info("results.asked model=%s answers=%d failures=%d", model, len(asking.answers), len(asking.failures))
        return Inquiry(tuple(asking.answers), tuple(asking.failures), note, seconds)

    async def _search(self, model: Cid, asking: _Round, group: asyncio.TaskGroup) -> str | None:
        meeting, _ = rendezvous("results", model)
        try:
            client = self._kubo.client
            names = client.find_providers(meeting, limit=MAX_PROVIDERS, timeout_s=self._patience.search)
            async with aclosing(names):
                async for found in names:
                    if found not in (self._own, client.peer_id):
                        asking.start(group, found)
        except Unavailable as exc:
            return f"the network was not searched: {exc}"
        return None

    async def ask_url(self, url: str, model: Cid) -> _Answer:
        wait_s = self._patience.http
        asked = peer_results(str(Origin.parse(url)), model, name=url, pace=Pace(wait_s, wait_s, wait_s))
        try:
            async with asyncio.timeout(wait_s):
                return _Answer("http", await asked)
        except TimeoutError as exc:
            raise Unavailable(f"{url}: no whole answer within {wait_s:g} s", code="stalled") from exc

    async def ask_tunnel(self, where: str, model: Cid) -> _Answer:
        if self._reach is None:
            raise Unavailable("this node opens no tunnels", code="no_tunnels")
        reach_s = self._patience.reach
        try:
            async with asyncio.timeout(reach_s), self._reach(where) as url:
                pace = Pace(reach_s, reach_s, reach_s)
                return _Answer("tunnel", await peer_results(url, model, name=f"peer:{where}", pace=pace))
        except TimeoutError as exc:
            raise Unavailable(f"no answer within {reach_s:g} s", code="stalled") from exc

    async def ask_index(self, where: str) -> _Answer:
        """What its IPNS index lists; records of other models come with it, and are as good."""
        indexes = Indexes(self.store, self._kubo.client, int(self._now_s()))
        until = asyncio.get_running_loop().time() + self._patience.index
        try:
            async with asyncio.timeout_at(until):
                listed = await indexes.envelopes(where)
        except TimeoutError as exc:
            raise Unavailable(f"no index within {self._patience.index:g} s", code="stalled") from exc
        found, lost = await indexes.records(listed, until=until)
        return _Answer("index", found, lost)

    async def opened(self, answer: _Answer, model: Cid, most: int) -> _Batch:
        """Each is verified by itself: a bad one is counted, and hides no good one. most: how many are looked at."""
        batch = _Batch()
        for error in answer.lost:
            batch.refuse(error)
        for _ in answer.parcels[most:]:
            batch.refuse(QuotaExceeded(f"more than {most} records in one answer", code="answer_too_long"))
        parcels = answer.parcels[:most]
        about = None if answer.way == "index" else model
        for start in range(0, len(parcels), _OPENED_AT_ONCE):
            await in_thread(self._open, parcels[start : start + _OPENED_AT_ONCE], about, batch)
        return batch

    def _open(self, parcels: Sequence[RecordParcel], model: Cid | None, batch: _Batch) -> None:
        now = int(self._now_s())
        for parcel in parcels:
            try:
                batch.claims.append(open_claim(parcel.envelope, parcel.block, self._read, now=now, model=model))
            except NodeError as exc:
                batch.refuse(exc)

    def foreign(self, claims: Sequence[Claim]) -> list[Claim]:
        """Without our own, which the shelf has."""
        return [claim for claim in claims if claim.signer != self._own]


class _Round:
    """One question to many: whom it went to, and what came of it."""

    def __init__(self, results: Results, model: Cid) -> None:
        self._results = results
        self._model = model
        self._asked: set[str] = set()
        self.answers: list[PeerAnswer] = []
        self.failures: list[PeerFailure] = []

    def start(self, group: asyncio.TaskGroup, peer: str) -> None:
        """Each once, MAX_ASKED at most."""
        where = peer_id(peer) or peer
        if where not in self._asked and len(self._asked) < MAX_ASKED:
            self._asked.add(where)
            group.create_task(self._one(where), name=f"results of {where}")

    async def _one(self, peer: str) -> None:
        """A bad one must not hide the others."""
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            answer = await self._answer(peer)
            most = max(LEAST_OPENED, MAX_OPENED // len(self._asked))
            batch = await self._results.opened(answer, self._model, most)
            claims = self._results.foreign(batch.claims)
            taken = Counter(await in_thread(self._results.store.take, claims))
        except NodeError as exc:
            self.failures.append(PeerFailure(peer, exc.code, str(exc)[:300], round(clock() - began, 3)))
            log.info("results.no_answer peer=%s code=%s", peer, exc.code)
            return
        own = len(batch.claims) - len(claims)
        refused = [Refusal(code, batch.reasons[code], count) for code, count in sorted(batch.refused.items())]
        if taken["revoked"]:
            refused.append(Refusal("key_revoked", "the key that signed it was revoked", taken["revoked"]))
        if taken["full"]:
            refused.append(Refusal("key_quota", "the key has more records than are kept of one", taken["full"]))
        known = taken["known"] + taken["stale"] + own
        seconds = round(clock() - began, 3)
        self.answers.append(PeerAnswer(peer, answer.way, taken["accepted"], known, tuple(refused), seconds))

    async def _answer(self, peer: str) -> _Answer:
        where = peer_id(peer)
        if where is None:
            return await self._results.ask_url(peer, self._model)
        try:
            return await self._results.ask_tunnel(where, self._model)
        except Unavailable as exc:
            log.info("results.no_tunnel peer=%s code=%s", where, exc.code)
            unreached = exc
        try:
            return await self._results.ask_index(where)
        except Unavailable as exc:
            raise Unavailable(f"{unreached}; and {exc}", code=unreached.code) from exc
