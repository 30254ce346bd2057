"""Second stage: the leaves that the plan lists and the store lacks, each fetched once however often it occurs."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from ipfs_accelerate_node.content.cid import Buffer, Cid
from ipfs_accelerate_node.content.plan import FilePlan, Leaf, ModelPlan
from ipfs_accelerate_node.errors import IntegrityError, NodeError, SourceUnavailable
from ipfs_accelerate_node.fetch.durability import Durability
from ipfs_accelerate_node.fetch.executor import Executor
from ipfs_accelerate_node.fetch.intake import Arrived, Carriage, Intake
from ipfs_accelerate_node.fetch.landing import CHECKED_AT_ONCE, COPY_AT_ONCE, COPY_THREADS, Landing
from ipfs_accelerate_node.fetch.planner import Lease, Planner
from ipfs_accelerate_node.fetch.schedule import WINDOW, Schedule, Standing
from ipfs_accelerate_node.fetch.stage import Came
from ipfs_accelerate_node.fetch.threads import in_thread
from ipfs_accelerate_node.fetch.together import together
from ipfs_accelerate_node.sources.source import LACKS_BLOCK

RANGES_EACH = 2  # at a time of one source, so that one goes on while the other's request is on its way …
FAST = 100 << 20  # bytes a second: so near a source sends one range after another, and the file grows in order
MAX_RANGES = 10  # … of all together; each may hold a few MiB
ASK_AGAIN_S = (0.1, 1.0)  # what a node has that is still fetching: at first so often, later so seldom
LOOK_S = 0.05  # whether others ask us for it
PATIENCE_S = 30.0  # with a node that is still fetching and gets nothing more


@dataclass(slots=True)
class _Open:
    """A file with leaves still to come. left: how many places."""

    file: FilePlan
    left: int


@dataclass(frozen=True, slots=True)
class _Target:
    """One place of a leaf."""

    to: _Open
    leaf: Leaf


class Leaves:
    """Owns what is still missing of every file; a file is made a blob as soon as nothing is."""

    def __init__(
        self,
        landing: Landing,
        came: Came,
        durability: Durability,
        schedule: Schedule,
        executor: Executor,
        start: int,
        others_ask: Callable[[], bool] = lambda: False,
    ) -> None:
        """start: as `Planner`. others_ask: whether other nodes ask this one for what is fetched."""
        self._landing = landing
        self._came = came
        self._durability = durability
        self._schedule = schedule
        self._executor = executor
        self._start = start
        self._root: Cid | None = None
        self._files: list[_Open] = []
        self._others: dict[int, list[_Target]] = {}  # further places of a leaf
        self._others_ask = others_ask
        self._looked_at = 0.0
        self._planner = Planner((), ())
        self._intake = Intake(self._planner, self)
        self._blocks_only: set[tuple[Standing, Cid]] = set()
        self._grew_at: dict[Standing, float] = {}
        self._ranges_open = 0
        self._sharing = 1

    async def open(self, plan: ModelPlan, files: Collection[FilePlan]) -> tuple[int, int]:
        """Finds out what is missing of these files, copies what other stored files hold, makes blobs of what is
        complete.

        Every file's room is claimed here, before its first leaf is fetched. Returns the bytes that are there (of all
        paths), and those of them in files that the store had before. Raises QuotaExceeded, StorageError.
        """
        self._root = plan.root
        here = before = 0
        places = Counter(file.cid for file in files)
        masks: list[int] = []
        first: dict[Cid, int] = {}
        base = 0
        for file in {file.cid: file for file in files}.values():
            twins_bytes = file.size * (places[file.cid] - 1)  # further paths are hard links
            if await in_thread(self._landing.stored, file.cid):
                here += file.size + twins_bytes
                before += twins_bytes + (0 if file.cid in self._landing.finished else file.size)
                continue
            missing = await self._copied(file, await self._missing(file))
            here += file.size + twins_bytes - sum(leaf.length for leaf in missing)
            before += twins_bytes
            if not missing:
                await in_thread(self._landing.finish, file)
                continue
            masks.append(self._want(file, missing, base, first))
            base += len(file.leaves)
        self._planner = Planner([to.file for to in self._files], masks, start=self._start)
        self._intake.planner = self._planner
        return here, before

    def _want(self, file: FilePlan, missing: Sequence[Leaf], base: int, first: dict[Cid, int]) -> int:
        """Which leaves of it are to be fetched: the first place of each. first: by CID, grows."""
        to = _Open(file, len(missing))
        self._files.append(to)
        wanted = {id(leaf) for leaf in missing}
        mask = 0
        for at, leaf in enumerate(file.leaves):
            if id(leaf) not in wanted:
                continue
            number = first.setdefault(leaf.cid, base + at)
            if number == base + at:
                mask |= 1 << at
            else:
                self._others.setdefault(number, []).append(_Target(to, leaf))
        return mask

    async def _missing(self, file: FilePlan) -> list[Leaf]:
        """What an earlier try did not bring; what it left unrecorded is hashed now, some leaves at a time."""
        left: list[Leaf] = []
        for start in range(0, max(1, len(file.leaves)), CHECKED_AT_ONCE):
            left += await in_thread(self._landing.missing, file, file.leaves[start : start + CHECKED_AT_ONCE])
        return left

    async def _copied(self, file: FilePlan, missing: Sequence[Leaf]) -> list[Leaf]:
        """What is missing after copying from the store's other files."""
        copied: set[int] = set()

        async def work(some: Sequence[Leaf]) -> None:
            here = await in_thread(self._landing.copy, file, some)
            self._came(sum(leaf.length for leaf in here), False)
            copied.update(leaf.offset for leaf in here)

        starts = range(0, len(missing), COPY_AT_ONCE)
        await together((partial(work, missing[start : start + COPY_AT_ONCE]) for start in starts), COPY_THREADS)
        return [leaf for leaf in missing if leaf.offset not in copied]

    # as a stage

    @property
    def complete(self) -> bool:
        return self._planner.complete

    def lanes(self, standing: Standing, sources: int) -> int:
        self._sharing = sources
        rate = standing.meter.rate(asyncio.get_running_loop().time())
        one = not standing.source.ranges or sources > MAX_RANGES // RANGES_EACH or (rate or 0) >= FAST
        return 1 if one else RANGES_EACH

    def next(self, standing: Standing, now: float) -> Lease | None:
        if self._ranges_open >= MAX_RANGES:
            return None
        if now - self._looked_at >= LOOK_S:
            self._looked_at = now
            self._planner.courted = self._others_ask()
        lease = self._planner.next(standing, now, standing.meter.rate(now))
        self._ranges_open += lease is not None
        return lease

    async def carry(self, standing: Standing, lease: Lease) -> None:
        leaves = lease.leaves
        only_blocks = not standing.source.ranges or (standing, lease.file.cid) in self._blocks_only
        if not only_blocks and any(leaf.length for leaf in leaves):
            standing.requests += 1
            try:
                await Carriage(self._intake, standing, lease).run()
                return
            except SourceUnavailable as exc:
                if exc.code != "no_ranges" and exc.code not in LACKS_BLOCK:
                    raise
                self._blocks_only.add((standing, lease.file.cid))
            except IntegrityError as exc:
                self._complain_of(standing, lease, exc)
                raise
        await self._blocks(standing, lease)

    def release(self, lease: Lease) -> None:
        self._ranges_open -= 1
        self._planner.give_back(lease)

    async def watch(self, standing: Standing) -> None:
        """Learns what the source has; while it is still fetching, again and again."""
        clock = asyncio.get_running_loop().time
        assert self._root is not None
        began, (least_s, most_s) = clock(), ASK_AGAIN_S
        while not standing.barred:
            try:
                held = await standing.source.held(self._root)
            except SourceUnavailable:
                held = None  # asking for leaves is finding out
            if standing.barred:
                return
            if self._planner.join(standing, held, clock()) or standing not in self._grew_at:
                self._grew_at[standing] = clock()
                self._executor.stir()
            if held is None or held.complete:
                return
            await asyncio.sleep(min(most_s, max(least_s, (clock() - began) / 16)))

    def awaits(self, standing: Standing, now: float) -> bool:
        since = self._grew_at.get(standing)
        return since is None or (self._planner.growing(standing) and now - since < PATIENCE_S)

    def dismiss(self, standing: Standing) -> None:
        self._planner.leave(standing)

    def silent(self, now: float) -> Mapping[Standing, float]:
        return {s: silence for s, silence in self._planner.silent(now).items() if isinstance(s, Standing)}

    # block by block

    async def _blocks(self, standing: Standing, lease: Lease) -> None:
        """The lease's leaves as blocks, several at a time."""
        faults: list[NodeError] = []
        lease.cursor = lease.first
        window = min(standing.window, max(2, WINDOW // self._sharing))
        async with asyncio.TaskGroup() as group:
            tasks: list[asyncio.Task[None]] = []

            async def work() -> None:
                while lease.cursor < lease.stop and not faults and standing.ready(_now()):
                    number = lease.cursor
                    self._planner.carrying(lease, number)
                    if not self._planner.wants(number):
                        continue
                    try:
                        await self._block(standing, lease, number)
                    except SourceUnavailable as exc:  # what is under way may still arrive
                        faults.append(exc)
                    except NodeError as exc:
                        faults.insert(0, exc)
                        for task in tasks:
                            if task is not asyncio.current_task():
                                task.cancel()

            tasks += [group.create_task(work()) for _ in range(min(window, lease.stop - lease.first))]
        if faults:
            raise faults[0]

    async def _block(self, standing: Standing, lease: Lease, number: int) -> None:
        leaf = lease.leaf(number)
        standing.requests += 1
        try:
            block = await standing.source.read_block(leaf.cid)
        except SourceUnavailable as exc:
            if exc.code not in LACKS_BLOCK:
                raise
            self._planner.lacks(standing, number)
            self._schedule.failed(standing, leaf.cid, exc, _now())
            return
        now = _now()
        self._planner.received(lease, len(block), now)
        standing.meter.add(len(block), now)
        fault = await self._intake.take(standing, [Arrived(number, leaf, block, block=True)])
        if fault is not None:
            raise fault

    # as a shelf

    def expect(self, standing: Standing, leaf: Leaf) -> None:
        self._durability.brought(leaf.cid, standing.source)

    def store(self, number: int, payload: Buffer) -> None:
        """In a thread."""
        for target in self._targets(number):
            self._landing.write(target.to.file.cid, target.to.file.size, target.leaf, payload)

    async def landed(self, standing: Standing, numbers: Sequence[int]) -> None:
        done: dict[Cid, FilePlan] = {}
        for number in numbers:
            if not self._planner.landed(number):
                continue
            self._schedule.delivered(standing, self._planner.leaf(number).length)
            for place, target in enumerate(self._targets(number)):
                self._came(target.leaf.length, place == 0)
                target.to.left -= 1
                if not target.to.left:
                    done[target.to.file.cid] = target.to.file
        for file in done.values():
            await in_thread(self._landing.finish, file)
        await self._durability.room()

    def _targets(self, number: int) -> list[_Target]:
        to = self._files[self._planner.file_of(number)]
        return [_Target(to, self._planner.leaf(number)), *self._others.get(number, ())]

    def _complain_of(self, standing: Standing, lease: Lease, error: IntegrityError) -> None:
        leaf = next((leaf for leaf in lease.file.leaves if str(leaf.cid) == error.detail["cid"]), None)
        if leaf is not None:
            self._executor.complain(standing, leaf)


def _now() -> float:
    return asyncio.get_running_loop().time()
