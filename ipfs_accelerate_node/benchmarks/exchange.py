"""Results between nodes, as one part: this node's own records told and published, those of others asked for, kept and
compared.

Everything of others is a claim (`peers.claims`); our own records are on the shelf, and stand beside.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from ipfs_accelerate_node.benchmarks.publish import publish
from ipfs_accelerate_node.benchmarks.record import json_value
from ipfs_accelerate_node.benchmarks.run import BenchResult
from ipfs_accelerate_node.benchmarks.schema import read_benchmark
from ipfs_accelerate_node.benchmarks.shelf import RecordShelf
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import BadContent, Conflict, NotFound, Unavailable
from ipfs_accelerate_node.fetch.threads import in_thread
from ipfs_accelerate_node.kubo import KuboClient, KuboService
from ipfs_accelerate_node.peers.book import PeerBook
from ipfs_accelerate_node.peers.claims import Claim, open_claim
from ipfs_accelerate_node.peers.confirming import Confirming
from ipfs_accelerate_node.peers.publishing import OwnRecord, ResultsPublisher, Standing
from ipfs_accelerate_node.peers.ranking import Hardware, Result, ranked
from ipfs_accelerate_node.peers.results import Inquiry, Patience, Reach, Results
from ipfs_accelerate_node.peers.results_http import MAX_ANSWER_BYTES, MAX_PARCELS, RecordParcel
from ipfs_accelerate_node.peers.results_store import ResultsStore
from ipfs_accelerate_node.records.canonical import decode
from ipfs_accelerate_node.records.envelope import Opened
from ipfs_accelerate_node.records.key import NodeKey

State = Literal["published", "queued", "here"]


@dataclass(frozen=True, slots=True)
class Told:
    """A record as this node answers with it. seen: another's, which was accepted here."""

    record: object
    record_cid: Cid
    envelope_cid: Cid
    signer: str
    seen: bool
    parcel: RecordParcel


@dataclass(frozen=True, slots=True)
class Kept:
    """One of our own records as the user sees it. state: published (pinned, and read back by CID), queued (it will be,
    as soon as that can be done), or here."""

    opened: Opened
    state: State


@dataclass(frozen=True, slots=True)
class Found:
    """What is known about a model: results ranked, how many claims and keys they rest on, which keys contradicted
    themselves, and what each peer answered; inquiry is None where nobody was asked. confirmed: somebody was found who
    has the model; where nobody was, what others claim of it is in unconfirmed, newest first, and nothing but our own in
    results. queued: how many of our own records of it wait to be published. revoked: keys that say of themselves that
    they are lost: what they signed about it is here, and counts for nothing."""

    model: Cid
    results: tuple[Result, ...]
    claims: int
    keys: int
    flagged: tuple[str, ...]
    inquiry: Inquiry | None
    confirmed: bool = True
    unconfirmed: tuple[Result, ...] = ()
    queued: int = 0
    revoked: tuple[str, ...] = ()


class Exchange:
    """Async context manager, within that of kubo. configured: peers of the configuration, allowed: keys of it. reach:
    URL of a node by its PeerID while inside; None without tunnels. consent: the user agreed to publish whatever is
    measured. check: raises NotFound or Conflict where a model is not to be spoken of; it may have become private while
    its record waited. here: whether this node has a root itself."""

    def __init__(
        self,
        cache: Path,
        kubo: KuboService,
        key: NodeKey,
        *,
        configured: Sequence[str] = (),
        allowed: Sequence[str] = (),
        reach: Reach | None = None,
        consent: bool = False,
        patience: Patience | None = None,
        check: Callable[[Cid], None] = lambda root: None,
        here: Callable[[Cid], bool] = lambda root: True,
    ) -> None:
        self._here = here
        self._cache = cache
        self._kubo = kubo
        self._key = key
        self._shelf = RecordShelf(cache)
        self._reach = reach
        self._consent = consent
        self._patience = patience
        self._check = check
        self.book = PeerBook(cache, configured, own=key.peer_id, tunnels=reach is not None, allowed=allowed)
        self._exit = AsyncExitStack()
        self.published = 0  # records, in this run

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self.store = await in_thread(lambda: ResultsStore(self._cache, trusted=lambda: self.book.trusted))
            stack.callback(self.store.close)
            self.publisher = ResultsPublisher(
                self.store,
                self._kubo,
                self._key,
                own=self._own,
                publish=self._publish,
                consent=self._consent,
                may_tell=self._may_tell,
            )
            self.asking = Results(
                self.store,
                self._kubo,
                read_benchmark,
                own=self._key.peer_id,
                reach=self._reach,
                changed=self.publisher.wake,
                patience=self._patience,
            )
            self.confirming = Confirming(
                self.store, self._kubo, here=self._here, reach=self._reach, patience=self._patience or Patience()
            )
            publishing = asyncio.create_task(self.publisher.run(), name="publish results")
            stack.push_async_callback(_ended, publishing)
            self._exit = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exit.__aexit__(kind, error, trace)

    async def results(
        self, model: Cid, *, peers: Sequence[str] | None = None, ask: bool = True, like: Hardware | None = None
    ) -> Found:
        """What is known of it. ask: others are asked now: these peers, or all that are known and whoever announced
        that they have results. like: only what ran on such hardware, ours apart. Raises StorageError."""
        model = model.canonical
        inquiry = None
        confirmed = await in_thread(self.confirming.known, model)
        if ask:
            inquiry, confirmed = await self._asked(model, peers, confirmed)
        return await in_thread(self._found, model, inquiry, like, confirmed)

    async def _asked(self, model: Cid, peers: Sequence[str] | None, confirmed: bool) -> tuple[Inquiry, bool]:
        """While others are asked for results, the network is asked for the model itself, unless that is known; then
        those who answered, if there is anything to confirm."""
        whom = self.book.all() if peers is None else peers
        async with asyncio.TaskGroup() as group:
            looking = None
            if not confirmed and peers is None:
                looking = group.create_task(self.confirming.by_network(model), name=f"confirm {model}")
            inquiry = await self.asking.ask(model, whom, search=peers is None)
            claimed = await in_thread(lambda: self.store.of(model, limit=1))
            if claimed and not confirmed:
                answered = [answer.peer for answer in inquiry.answers]
                confirmed = await self.confirming.by_peers(model, answered) or (looking is not None and await looking)
            if looking is not None:
                looking.cancel()
        return inquiry, confirmed

    def kept(self, model: Cid | None) -> tuple[list[Kept], int]:
        """Our own records, of one model or of all, oldest first, and how many entries are broken. Blocks."""
        listing = self._shelf.listing(model)
        public = {opened.envelope_cid for opened in self._shelf.listing(model, published=True).records}
        queued = self.store.queued()
        found = [
            Kept(opened, "published" if cid in public else "queued" if cid in queued else "here")
            for opened in listing.records
            for cid in (opened.envelope_cid,)
        ]
        return found, len(listing.broken)

    def told(self, model: Cid | None) -> list[Told]:
        """What this node answers to whoever asks: its published records and, about a model, those it accepted; the
        newest first, as many as fit into an answer. Blocks."""
        standing = self.publisher.standing()
        found = []
        if standing is None or not standing.revoked:  # else nobody is to believe them
            found = [self._ours(opened) for opened in reversed(self._shelf.listing(model, published=True).records)]
        if model is not None and self._may_tell(model):
            found += [_theirs(claim) for claim in self.store.of(model, now=int(time.time()))]
        kept, size = [], 0
        for told in found[:MAX_PARCELS]:
            size += 4 * (len(told.parcel.envelope) + len(told.parcel.block))  # base64, and again as JSON
            if size > MAX_ANSWER_BYTES // 2:
                break
            kept.append(told)
        return kept

    def votes(self, model: Cid) -> list[Claim]:
        """What is claimed about a model by keys that have a vote. Blocks. Raises StorageError."""
        claims = self.store.of(model, now=int(time.time()))
        flagged = {key for key in {claim.key for claim in claims} if self.store.standing(key).flagged}
        return [claim for claim in claims if claim.key not in flagged]

    def own(self, envelope: Cid) -> Claim:
        """A record of ours in the form of a claim, one of a busy machine too. Blocks. Raises NotFound, BadContent."""
        sealed = self._shelf.sealed(envelope)
        return open_claim(sealed.envelope_bytes, sealed.record_bytes, partial(read_benchmark, busy=True), now=None)

    async def client(self, patience_s: float) -> KuboClient | None:
        """Where to publish now; None where that has to wait. Raises Unavailable where there never will be a Kubo."""
        try:
            return await self._kubo.wait_ready(patience_s)
        except Unavailable:
            if self._kubo.state == "off":
                raise
            return None

    async def settled(self, result: BenchResult) -> BenchResult:
        """For a record that the user wants public: what could not be published is, as soon as Kubo is there, and the
        index follows. Raises StorageError."""
        if not result.published and await in_thread(self._queue, Cid.parse(result.envelope_cid)):
            reason = result.note or "kept here, not published: Kubo is away"
            result = replace(result, note=f"{reason}; published as soon as Kubo is there", queued=True)
        self.publisher.wake()
        return result

    async def revoke(self) -> Standing:
        """Says to everybody, for good, that this node's key is not to be believed. Raises Unavailable."""
        return await self.publisher.revoke(self._kubo.client)

    # --- private

    def _may_tell(self, model: Cid) -> bool:
        """Not of what is private here; of what is not here at all."""
        try:
            self._check(model)
        except Conflict:
            return False
        except NotFound:
            return True
        return True

    def _queue(self, envelope: Cid) -> bool:
        """False for a record that nobody would take: of a busy machine, say."""
        sealed = self._shelf.sealed(envelope)
        try:
            open_claim(sealed.envelope_bytes, sealed.record_bytes, read_benchmark, now=None)
        except BadContent:
            return False
        self.store.want(envelope)
        return True

    def _found(self, model: Cid, inquiry: Inquiry | None, like: Hardware | None, confirmed: bool) -> Found:
        claims = self.store.of(model, now=int(time.time()))
        keys = {claim.key: claim.signer for claim in claims}
        flagged = {key: signer for key, signer in keys.items() if self.store.standing(key).flagged}
        if like is not None:
            claims = [claim for claim in claims if like.is_like(claim)]
        own, trusted = self._own_claims(model), self.book.trusted
        results = ranked(claims if confirmed else (), own, trusted=trusted, flagged=flagged)
        unconfirmed = () if confirmed else ranked(claims, (), trusted=trusted, flagged=flagged)
        return Found(
            model,
            tuple(results),
            len(claims),
            len(keys),
            tuple(sorted(flagged.values())),
            inquiry,
            confirmed,
            tuple(sorted(unconfirmed, key=lambda result: -result.newest)),
            sum(kept.state == "queued" for kept in self.kept(model)[0]),
            tuple(sorted(self.store.revoked(model))),
        )

    def _own_claims(self, model: Cid) -> list[Claim]:
        """Ours, in the same form; one that this version does not read any more is left out."""
        found = []
        for opened in self._shelf.listing(model).records:
            sealed = self._shelf.sealed(opened.envelope_cid)
            try:
                found.append(open_claim(sealed.envelope_bytes, sealed.record_bytes, read_benchmark, now=None))
            except BadContent:
                continue
        return found

    def _ours(self, opened: Opened) -> Told:
        sealed = self._shelf.sealed(opened.envelope_cid)
        parcel = RecordParcel(sealed.envelope_bytes, sealed.record_bytes)
        return Told(
            json_value(opened.record), opened.record_cid, opened.envelope_cid, opened.signer, seen=False, parcel=parcel
        )

    def _own(self) -> list[OwnRecord]:
        found = []
        for opened in reversed(self._shelf.listing(published=True).records):
            if isinstance(model := opened.record.get("model"), Cid):
                found.append(OwnRecord(opened.envelope_cid, model.canonical))
        return found

    async def _publish(self, client: KuboClient, envelope: Cid) -> None:
        sealed = await in_thread(self._shelf.sealed, envelope)
        claim = open_claim(sealed.envelope_bytes, sealed.record_bytes, read_benchmark, now=None)
        await in_thread(self._check, claim.model)
        await publish(client, sealed)
        await in_thread(self._shelf.note_published, envelope)
        self.published += 1


def _theirs(claim: Claim) -> Told:
    parcel = RecordParcel(claim.envelope_bytes, claim.record_bytes)
    record = json_value(decode(claim.record_bytes))
    return Told(record, claim.record_cid, claim.envelope_cid, claim.signer, seen=True, parcel=parcel)


async def _ended(task: asyncio.Task[None]) -> None:
    """Cancels it and waits; a bug that ended it before is raised."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled() and (bug := task.exception()) is not None:
        raise bug
