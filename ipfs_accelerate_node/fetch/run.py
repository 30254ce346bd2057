"""One fetch, from a root to a committed model.

First the DAG's nodes, then the leaves they list; all sources at once, also those that join on the way. Every byte is
hashed in a thread before anything else looks at it. Whatever ends the fetch, a cancel too, what was verified is synced
and kept, every task has ended and every descriptor is closed.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from datetime import UTC, datetime

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.plan import FilePlan, ModelPlan
from ipfs_accelerate_node.content.selection import Only, is_meant, selected
from ipfs_accelerate_node.content.walk import DagWalk
from ipfs_accelerate_node.errors import NodeError
from ipfs_accelerate_node.fetch.durability import Durability
from ipfs_accelerate_node.fetch.executor import Executor
from ipfs_accelerate_node.fetch.landing import Landing
from ipfs_accelerate_node.fetch.leaves import Leaves
from ipfs_accelerate_node.fetch.meter import Meter
from ipfs_accelerate_node.fetch.outcome import Fetched, Progress, SourceNow
from ipfs_accelerate_node.fetch.schedule import Schedule
from ipfs_accelerate_node.fetch.stage import Job, Stage
from ipfs_accelerate_node.fetch.threads import in_thread
from ipfs_accelerate_node.fetch.walking import Walking
from ipfs_accelerate_node.sources.source import Source
from ipfs_accelerate_node.store import Provenance, Reservation, Store, StoredModel
from ipfs_accelerate_node.store.underway import Arriving

UNBOUNDED_BYTES = 2**63 - 1
ASKED_WITHIN_S = 1.5  # a node that fetches with us asks more often
SOURCES_EVERY_S = 0.2  # what the sources do is told at most so often; bytes whenever they come

Discover = Callable[[Cid], AsyncIterator[Source]]


@dataclass(frozen=True, slots=True)
class Into:
    """How the model is labelled once it is here. only: the paths that are wanted, as `Only`; None for all."""

    name: str | None
    pinned: bool
    public: bool
    reference: str
    only: Only | None = None

    def wanted(self, plan: ModelPlan) -> tuple[FilePlan, ...]:
        """Raises NotFound if no file matches."""
        return selected(plan, self.only)


class Run:
    """One try of one fetch. report: called on every change, on the loop. discover: finds further sources, which this
    closes; the given ones stay their caller's."""

    def __init__(
        self,
        store: Store,
        root: Cid,
        sources: Sequence[Source],
        report: Callable[[Progress], None],
        discover: Discover | None = None,
    ) -> None:
        self._store = store
        self._root = root.canonical
        self._discover = discover
        self._schedule = Schedule(sources)
        self._executor = Executor(self._schedule, self._root)
        self._report = report
        self._landing = Landing(store)
        self._durability = Durability(self._landing, self._executor.fail)
        self._phase = "walking"
        self._total: int | None = None
        self._done = self._fetched = self._copied = 0
        self._meter = Meter()
        self._sources: tuple[SourceNow, ...] = ()
        self._sources_at = 0.0
        self._claims: list[Reservation] = []
        self._arriving: Arriving | None = None

    async def fetch(self, into: Into) -> Fetched:
        """The model, committed.

        Raises IntegrityError or NoSource when no source could finish it, and at once what no source can mend:
        BadContent, UnsafeContent, QuotaExceeded, StorageError, Conflict, NotFound (no file is wanted).
        """
        began = time.perf_counter()
        try:
            await in_thread(self._claim)
            plan, nodes, files = await self._bring_all(into)
            self._change("committing")
            model = await self._commit(plan, nodes, files, into)
        finally:
            await in_thread(self._end)
        return Fetched(
            model=model,
            plan=plan,
            nodes=nodes,
            bytes_total=sum(file.size for file in files),
            bytes_fetched=self._fetched,
            bytes_copied=self._copied,
            seconds=time.perf_counter() - began,
            sources=self._schedule.shares,
            already_here=False,
            failures=self._schedule.failures,
        )

    def _claim(self) -> None:
        """Marks that a model is on its way: blobs that no model holds yet are not litter meanwhile."""
        self._claims.append(self._store.reserve(0))

    def _end(self) -> None:
        if self._arriving is not None:
            self._store.underway.withdraw(self._arriving)
        self._landing.close()
        for claim in self._claims:
            claim.release()

    async def _commit(
        self, plan: ModelPlan, nodes: Sequence[tuple[Cid, bytes]], files: Sequence[FilePlan], into: Into
    ) -> StoredModel:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        return await in_thread(
            self._store.commit,
            plan,
            nodes,
            name=into.name,
            pinned=into.pinned,
            public=into.public,
            provenance=Provenance("cid", into.reference, at, self._schedule.shares),
            paths=None if len(files) == len(plan.files) else frozenset(file.path for file in files),
        )

    async def _bring_all(self, into: Into) -> tuple[ModelPlan, tuple[tuple[Cid, bytes], ...], tuple[FilePlan, ...]]:
        """As `_bring`, with what runs beside it: syncing, and the search for sources."""
        brought: list[tuple[ModelPlan, tuple[tuple[Cid, bytes], ...], tuple[FilePlan, ...]]] = []
        failed: list[NodeError] = []
        async with AsyncExitStack() as found, asyncio.TaskGroup() as group:
            beside = [group.create_task(self._durability.run(), name="fetch sync")]
            if self._discover is not None:
                self._executor.sources_open = True
                beside.append(group.create_task(self._find(self._discover, found), name="fetch sources"))
            try:
                brought.append(await self._bring(into))
            except NodeError as exc:
                failed.append(exc)
            for task in beside:
                task.cancel()
        if failed:
            raise failed[0]
        return brought[0]

    async def _find(self, discover: Discover, found: AsyncExitStack) -> None:
        known = {standing.source.name for standing in self._schedule.standings}
        try:
            async with aclosing(discover(self._root)) as sources:  # type: ignore[type-var]  # generators, all of them
                async for source in sources:
                    found.push_async_callback(source.aclose)
                    if source.name not in known:
                        known.add(source.name)
                        self._schedule.join(source)
                        self._executor.stir()
        finally:
            self._executor.sources_open = False
            self._executor.stir()

    async def _bring(self, into: Into) -> tuple[ModelPlan, tuple[tuple[Cid, bytes], ...], tuple[FilePlan, ...]]:
        """Every wanted file a blob, every node block known."""
        walk = DagWalk(
            self._root,
            max_bytes=self._store.quota_bytes or UNBOUNDED_BYTES,
            skips=lambda path: not is_meant(path, into.only),
        )
        walking = Walking(self._store, self._landing, walk, self._came, self._durability, self._schedule)
        self._change("walking")
        await walking.open()
        await self._complete(walking)
        plan, nodes = walk.plan(), tuple(walking.nodes.items())
        files = into.wanted(plan)
        self._total = sum(file.size for file in files)
        self._arriving = self._store.underway.announce(plan, nodes, public=into.public)
        asked = frozenset((plan.root.canonical, *(file.cid.canonical for file in files)))
        leaves = Leaves(
            self._landing,
            self._came,
            self._durability,
            self._schedule,
            self._executor,
            random.getrandbits(62),
            lambda: self._store.underway.asked_for(asked, ASKED_WITHIN_S),
        )
        here, before = await leaves.open(plan, files)
        self._done = here
        self._copied += before
        self._change("fetching")
        await self._complete(leaves)
        for file in files:  # those whose last step a cancelled request did not get to
            if not await in_thread(self._landing.stored, file.cid):
                await in_thread(self._landing.finish, file)
        await in_thread(self._landing.flush)
        await self._durability.settle()
        return plan, nodes, files

    async def _complete(self, stage: Stage[Job]) -> None:
        error = await self._executor.complete(stage)
        if error is not None:
            raise error

    def _came(self, size_bytes: int, from_source: bool) -> None:
        self._done += size_bytes
        self._durability.written(size_bytes)
        if from_source:
            self._fetched += size_bytes
            self._meter.add(size_bytes, asyncio.get_running_loop().time())
        else:
            self._copied += size_bytes
        self._change(self._phase)

    def _change(self, phase: str) -> None:
        now = asyncio.get_running_loop().time()
        if phase != self._phase or now - self._sources_at >= SOURCES_EVERY_S:
            self._sources, self._sources_at = self._schedule.now(now), now
        self._phase = phase
        rate = self._meter.rate(now)
        left_s = None if not rate or self._total is None else max(0, self._total - self._done) / rate
        self._report(Progress(self._total, self._done, phase, self._schedule.last, self._sources, left_s))
