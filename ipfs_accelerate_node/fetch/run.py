"""One fetch, from a root to a committed model: brings what the stages want from whom the schedule names.

Every block is hashed in a thread before anything else looks at it. At most `WINDOW` blocks of at most 2 MiB are in
memory. Whatever ends the fetch, a cancel too, what was verified is synced and kept, and every descriptor is closed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.plan import ModelPlan
from ipfs_accelerate_node.content.walk import DagWalk
from ipfs_accelerate_node.errors import IntegrityError, NodeError, SourceUnavailable
from ipfs_accelerate_node.fetch.landing import Landing
from ipfs_accelerate_node.fetch.leaves import Leaves
from ipfs_accelerate_node.fetch.outcome import Fetched, Progress
from ipfs_accelerate_node.fetch.schedule import Rest, Schedule, Standing
from ipfs_accelerate_node.fetch.stage import Stage
from ipfs_accelerate_node.fetch.threads import in_thread
from ipfs_accelerate_node.fetch.walking import Walking
from ipfs_accelerate_node.sources.source import Source
from ipfs_accelerate_node.store import Provenance, Reservation, Store
from ipfs_accelerate_node.store.underway import Arriving

SYNC_BYTES = 64 << 20  # written and not yet durable, at most about so many; also what a source keeps for us meanwhile
UNBOUNDED_BYTES = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Into:
    """How the model is labelled once it is here."""

    name: str | None
    pinned: bool
    public: bool
    reference: str


class Run:
    """One try of one fetch. report: called on every change, on the loop."""

    def __init__(self, store: Store, root: Cid, sources: Sequence[Source], report: Callable[[Progress], None]) -> None:
        self._store = store
        self._root = root.canonical
        self._schedule = Schedule(sources)
        self._report = report
        self._landing = Landing(store)
        self._phase = "walking"
        self._total: int | None = None
        self._done = self._fetched = self._copied = 0
        self._unsynced = 0
        self._brought: dict[Cid, Source] = {}  # blocks from a source that are not durable yet
        self._fatal: NodeError | None = None
        self._claims: list[Reservation] = []
        self._arriving: Arriving | None = None

    async def fetch(self, into: Into) -> Fetched:
        """The model, committed.

        Raises IntegrityError or NoSource when no source could finish it, and at once what no source can mend:
        BadContent, UnsafeContent, QuotaExceeded, StorageError, Conflict.
        """
        began = time.perf_counter()
        try:
            await in_thread(self._claim)
            plan, nodes = await self._bring(into)
            self._change("committing")
            shares = self._schedule.shares
            provenance = Provenance("cid", into.reference, datetime.now(UTC).isoformat(timespec="seconds"), shares)
            model = await in_thread(
                self._store.commit,
                plan,
                nodes,
                name=into.name,
                pinned=into.pinned,
                public=into.public,
                provenance=provenance,
            )
        finally:
            await in_thread(self._end)
        return Fetched(
            model=model,
            plan=plan,
            nodes=nodes,
            bytes_total=plan.size_bytes,
            bytes_fetched=self._fetched,
            bytes_copied=self._copied,
            seconds=time.perf_counter() - began,
            sources=shares,
            already_here=False,
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

    async def _bring(self, into: Into) -> tuple[ModelPlan, tuple[tuple[Cid, bytes], ...]]:
        """Every file a blob, every node block known."""
        walk = DagWalk(self._root, max_bytes=self._store.quota_bytes or UNBOUNDED_BYTES)
        walking = Walking(self._store, self._landing, walk, self._came)
        self._change("walking")
        await walking.open()
        await self._complete(walking)
        plan = walk.plan()
        self._total = plan.size_bytes
        self._arriving = self._store.underway.announce(plan, walking.nodes.items(), public=into.public)
        leaves = Leaves(self._landing, self._came)
        here, before = await leaves.open(plan)
        self._done = here
        self._copied += before
        self._change("fetching")
        await self._complete(leaves)
        for file in plan.files:  # those whose last step a cancelled request did not get to
            if not await in_thread(self._landing.stored, file.cid):
                await in_thread(self._landing.finish, file)
        await self._settle()
        return plan, tuple(walking.nodes.items())

    async def _complete(self, stage: Stage) -> None:
        clock = asyncio.get_running_loop().time
        self._schedule.renew()
        while not stage.complete:
            step = self._schedule.next(clock())
            if step is None:
                raise self._schedule.verdict(self._root)
            if isinstance(step, Rest):
                await asyncio.sleep(step.seconds)
                continue
            await self._turn(stage, step.standing)
            self._schedule.ended(step.standing)
            if self._fatal is not None:
                raise self._fatal

    async def _turn(self, stage: Stage, standing: Standing) -> None:
        """Keeps a window of requests at one source until it fails or has nothing more that is wanted."""
        tasks: set[asyncio.Task[None]] = set()
        async with asyncio.TaskGroup() as group:
            while True:
                while len(tasks) < standing.window and not standing.over:
                    cid = stage.take(standing.lacks)
                    if cid is None:
                        break
                    name = f"block {cid} from {standing.source.name}"
                    tasks.add(group.create_task(self._block(stage, standing, cid), name=name))
                if not tasks:
                    return
                _, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                if standing.barred or self._fatal is not None:
                    for task in tasks:  # nothing more is worth waiting for
                        task.cancel()

    async def _block(self, stage: Stage, standing: Standing, cid: Cid) -> None:
        """One block, from the store or this source, to disk. Its failures go to the schedule, never up."""
        try:
            block = await stage.local(cid)
            if block is not None:
                await stage.land(cid, block, None)
                return
            standing.requests += 1
            block = await standing.source.read_block(cid)
            self._brought[cid] = standing.source
            await stage.land(cid, block, standing.source)
            self._schedule.delivered(standing, len(block))
            self._change(self._phase, standing.source.name)
            await self._make_durable()
        except IntegrityError as exc:
            self._brought.pop(cid, None)
            self._schedule.rejected(standing, exc)
        except SourceUnavailable as exc:
            self._brought.pop(cid, None)
            self._schedule.failed(standing, cid, exc, asyncio.get_running_loop().time())
        except NodeError as exc:
            self._fatal = self._fatal or exc
            standing.over = True
        finally:
            stage.put_back(cid)

    def _came(self, size_bytes: int, from_source: bool) -> None:
        self._done += size_bytes
        self._unsynced += size_bytes
        if from_source:
            self._fetched += size_bytes
        else:
            self._copied += size_bytes

    async def _make_durable(self) -> None:
        if self._unsynced >= SYNC_BYTES:
            self._unsynced = 0
            await in_thread(self._landing.sync)
        await self._settle()

    async def _settle(self) -> None:
        """Tells each source which of its blocks it need not keep for us any longer."""
        settled: dict[str, tuple[Source, list[Cid]]] = {}
        for leaf in self._landing.durable():
            if (source := self._brought.pop(leaf.cid, None)) is not None:
                settled.setdefault(source.name, (source, []))[1].append(leaf.cid)
        for source, cids in settled.values():
            await source.settled(cids)

    def _change(self, phase: str, source: str | None = None) -> None:
        self._phase = phase
        self._report(Progress(self._total, self._done, phase, source))


async def single_block(cid: Cid, sources: Sequence[Source]) -> bytes:
    """One verified block from the first source that has it. Raises as a fetch does when none could."""
    schedule = Schedule(sources)
    clock = asyncio.get_running_loop().time
    while (step := schedule.next(clock())) is not None:
        if isinstance(step, Rest):
            await asyncio.sleep(step.seconds)
            continue
        standing = step.standing
        standing.requests += 1
        try:
            block = await standing.source.read_block(cid)
            await in_thread(cid.check, block, standing.source.name)
            return block
        except IntegrityError as exc:
            schedule.rejected(standing, exc)
        except SourceUnavailable as exc:
            schedule.failed(standing, cid, exc, clock())
        schedule.ended(standing)
    raise schedule.verdict(cid)
